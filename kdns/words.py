"""The words of a Corefile: splitting text into words, environment variables, imports and snippets.

`Words` is a stream: the parser in ``kdns.corefile`` takes one word after another and asks for an import to be put in
place where it meets one.  Each word costs the same, however it came in, and all that may be imported is bounded.
"""

from __future__ import annotations

import itertools
import os.path
import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from kdns import limits
from kdns.errors import KdnsError


class CorefileError(KdnsError):
    """A Corefile that cannot be served; reads ``FILE:LINE - MESSAGE`` as CoreDNS says it."""

    def __init__(self, file: str, line: int, message: str, plugin: str = "") -> None:
        """``plugin`` is the one whose directive is wrong, empty when the Corefile itself is."""
        super().__init__(f"{f'plugin/{plugin}: ' if plugin else ''}{file}:{line} - {message}")
        self.file, self.line, self.message = file, line, message


class Word(msgspec.Struct, frozen=True, gc=False):
    """One word and where it stands."""

    text: str
    """Without quotes; environment variables are not filled in yet."""
    line: int
    """Where it begins, counted from 1."""
    first: bool
    """Whether it begins a line."""
    file: str

    def error(self, text: str) -> CorefileError:
        """A parse error at this word."""
        return CorefileError(self.file, self.line, f"Error during parsing: {text}")


# White space is what Go's unicode.IsSpace takes; Python's \s has four more.
_SPACE: Final = r" \t\v\f\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# Three kinds: what ends a line, quoted words, bare words.
_LEXEME: Final = re.compile(
    rf'(?:\#[^\n]*+\n*+)++|\n++|"(?:[^"\\]++|\\.?)*+"?|[^{_SPACE}\n\#"][^{_SPACE}\n\#]*+',
    re.DOTALL,
)
_ESCAPE: Final = re.compile(r'\\(?:(")|.)', re.DOTALL)


def split(text: str, file: str) -> list[Word]:
    """All words of a text.

    A word that starts with ``"`` runs to the next ``"`` that has no backslash before it, over line ends too; ``\\"``
    is the only escape.  ``#`` outside quotes begins a comment, also inside a word.  A leading byte order mark and all
    carriage returns are ignored.  Raises CorefileError for NUL characters and for more than `limits.COREFILE_WORDS`.
    """
    if (at := text.find("\0")) >= 0:
        raise CorefileError(file, text.count("\n", 0, at) + 1, "Error during parsing: NUL character")
    words: list[Word] = []
    append, most = words.append, limits.COREFILE_WORDS
    line, first = 1, True
    for match in _LEXEME.finditer(text.removeprefix("\ufeff").replace("\r", "")):
        lexeme = match[0]
        mark = lexeme[0]
        if mark in "\n#":
            if ends := lexeme.count("\n"):
                line += ends
                first = True
        elif mark == '"':
            if lexeme != '"':
                append(Word(_unquote(lexeme), line, first, file))
                first = False
            line += lexeme.count("\n")
        else:
            append(Word(lexeme, line, first, file))
            first = False
        if len(words) > most:
            raise words[-1].error(f"over {most} words")
    return words


def _unquote(lexeme: str) -> str:
    """The inside of a quoted lexeme; the end of the text closes a quote too, as in CoreDNS."""
    inside = lexeme[1:]
    if inside[-1] == '"':
        inside = inside[:-1]
        if (len(inside) - len(inside.rstrip("\\"))) % 2:
            inside += '"'
    return _ESCAPE.sub(lambda match: match[1] or match[0], inside) if '\\"' in inside else inside


def fill_in(text: str, env: Mapping[str, str]) -> str:
    """The word with its ``{%NAME%}`` and ``{$NAME}`` replaced; what is not set is empty.

    A reference without a name ends the replacing (CoreDNS).  Values are not looked through for further references:
    CoreDNS does so, and never ends when a value refers to itself.
    """
    return _fill_in(_fill_in(text, "{%", "%}", env), "{$", "}", env) if "{" in text else text


def _fill_in(text: str, start: str, end: str, env: Mapping[str, str]) -> str:
    out: list[str] = []
    at = 0
    while (begin := text.find(start, at)) >= 0:
        close = text.find(end, begin)
        if close <= begin + len(start):
            break
        out += text[at:begin], env.get(text[begin + len(start) : close], "")
        at = close + len(end)
    return "".join(out) + text[at:] if out else text


class Words:
    """The words of a Corefile one after another, with imports put in place on demand."""

    def __init__(
        self,
        text: str,
        file: str,
        env: Mapping[str, str],
        read: Callable[[str], str],
        glob: Callable[[str], list[str]],
    ) -> None:
        self.warnings: list[str] = []
        self.current = Word("", 1, True, file)
        """The word taken last; errors are reported there."""
        self._env, self._read, self._glob = env, read, glob
        self._size = self._count = self._snippet_imports = self._file_imports = 0
        self._snippets: dict[str, list[Word]] = {}
        self._files: dict[str, list[Word]] = {}
        # The words to come, the next one last: taking and importing cost the same at any depth.
        self._ahead: list[Word] = []
        self._put(self._split(text, file))

    def take(self) -> Word | None:
        """The next word; None at the end."""
        if not self._ahead:
            return None
        self.current = self._ahead.pop()
        return self.current

    def take_on_line(self) -> Word | None:
        """The next word if it stands on the line of the current one."""
        return self.take() if self._ahead and not self._ahead[-1].first else None

    def put_back(self, word: Word) -> None:
        """Take this word again next time."""
        self._ahead.append(word)

    def filled(self, word: Word) -> str:
        """The word's text with environment variables filled in."""
        text = fill_in(word.text, self._env)
        if text is not word.text:
            self._grow(len(text), word)
        return text

    def define(self, name: str, words: list[Word]) -> None:
        """Remember a snippet; the current word is where its block ends.  Raises CorefileError if it imports itself."""
        if words and not words[0].first:
            words[0] = msgspec.structs.replace(words[0], first=True)
        for word, pattern in itertools.pairwise(words):
            if word.first and word.text == "import" and fill_in(pattern.text, self._env) == name:
                raise self.current.error(f"maximum snippet import depth ({limits.SNIPPET_IMPORTS}) exceeded")
        self._snippets[name] = words

    def defined(self, name: str) -> bool:
        """Whether there is a snippet of this name."""
        return name in self._snippets

    def include(self) -> None:
        """Put what an ``import`` names in its place; the current word is ``import``."""
        word = self.take_on_line()
        if word is None:
            raise self.current.error("Wrong argument count or unexpected line ending after 'import'")
        pattern = self.filled(word)
        if not pattern:
            raise word.error("Import requires a non-empty filepath")
        if self.take_on_line() is not None:
            raise word.error("Import takes only one argument (glob pattern or file)")
        if pattern in self._snippets:
            if self._snippet_imports >= limits.SNIPPET_IMPORTS:
                raise word.error(f"maximum snippet import depth ({limits.SNIPPET_IMPORTS}) exceeded")
            self._snippet_imports += 1
            self._put(self._snippets[pattern])
            return
        words: list[Word] = []
        for path in self._matches(pattern, word):
            words += self._file(path, word)
        self._put(words)

    def _matches(self, pattern: str, word: Word) -> list[str]:
        if self._file_imports >= limits.FILE_IMPORTS:
            raise word.error(f"maximum file import depth ({limits.FILE_IMPORTS}) exceeded")
        self._file_imports += 1
        full = os.path.join(os.path.dirname(word.file), pattern)
        if full.count("*") > 1 or full.count("?") > 1 or ("[" in full and "]" in full):
            raise word.error(f"Glob pattern may only contain one wildcard (*), but has others: {full}")
        if "[" in full:
            raise word.error(f"Failed to use import pattern {pattern}: syntax error in pattern")
        matches = self._glob(full)
        if not matches:
            if not any(sign in full for sign in "*?]"):
                raise word.error(f"File to import not found: {pattern}")
            self.warnings.append(f"No files matching import glob pattern: {pattern}")
        return matches

    def _file(self, path: str, word: Word) -> list[Word]:
        words = self._files.get(path)
        if words is None:
            try:
                text = self._read(path)
            except IsADirectoryError:
                raise word.error(f"Could not import {path}: is a directory") from None
            except OSError as error:
                raise word.error(f"Could not import {path}: open {path}: {(error.strerror or '').lower()}") from None
            words = self._files[path] = self._split(text, path)
        return words

    def _split(self, text: str, file: str) -> list[Word]:
        self._grow(len(text), self.current)
        return split(text, file)

    def _put(self, words: list[Word]) -> None:
        self._count += len(words)
        if self._count > limits.COREFILE_WORDS:
            raise self.current.error(f"over {limits.COREFILE_WORDS} words")
        self._ahead += reversed(words)

    def _grow(self, size: int, word: Word) -> None:
        self._size += size
        if self._size > limits.COREFILE_SIZE:
            raise word.error(f"over {limits.COREFILE_SIZE} characters")
