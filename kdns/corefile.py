"""Corefile text → server blocks and directives that know their file and line.

::

    parse(text, file, env=os.environ, read=read_file, glob=glob_files)
        → Corefile(blocks=(ServerBlock(keys, directives), …), warnings, digest)

The language is CoreDNS's (its Caddyfile dialect): words between white space, ``"quoted words"`` that may span lines,
``#`` comments, ``{$ENV}`` and ``{%ENV%}`` inside any word, ``import`` of snippets, files and globs, one directive per
line with an optional ``{ … }`` block.  Parsing takes time in proportion to the text and is bounded by `limits`.

A plugin reads its directive with the helpers of `Directive`, which all raise CorefileError with file and line::

    use = corefile.only(uses)
    zones = use.zones(use.args, site.zones)
    for option in use.options("ttl", "fallthrough"):
        if option.name == "ttl":
            ttl = option.integer(option.arg(), 0, 3600)
"""

from __future__ import annotations

import glob as _glob
import hashlib
import os.path
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from kdns import limits, values
from kdns.name import Name
from kdns.values import BadValue, Network, Regexp
from kdns.words import CorefileError as CorefileError
from kdns.words import Word, Words

_T = TypeVar("_T")


# --- what a Corefile says --------------------------------------------------------------------------------------------


class Directive(msgspec.Struct, frozen=True, gc=False):
    """One line of a server block, or of a directive's own block: a name, words, and a block of further lines."""

    name: str
    args: tuple[str, ...]
    body: tuple[Directive, ...] | None
    """None: no block was written."""
    file: str
    line: int

    def error(self, text: str) -> CorefileError:
        """An error at this line, to be raised by the caller."""
        return CorefileError(self.file, self.line, f"Error during parsing: {text}")

    def wrong_count(self) -> CorefileError:
        """CoreDNS's error for too few or too many words."""
        last = self.args[-1] if self.args else self.name
        return self.error(f"Wrong argument count or unexpected line ending after '{last}'")

    def unknown(self) -> CorefileError:
        """CoreDNS's error for an option that nobody knows."""
        return self.error(f"unknown property '{self.name}'")

    # -- how many words, and is there a block

    def between(self, low: int, high: int | None = None) -> tuple[str, ...]:
        """The arguments, which must be so many; ``high`` None = no upper bound."""
        if len(self.args) < low or (high is not None and len(self.args) > high):
            raise self.wrong_count()
        return self.args

    def exactly(self, count: int) -> tuple[str, ...]:
        """The arguments, which must be so many."""
        return self.between(count, count)

    def arg(self) -> str:
        """The one argument."""
        return self.exactly(1)[0]

    def optional(self, default: str = "") -> str:
        """The one argument, or ``default`` when there is none."""
        return (self.between(0, 1) or (default,))[0]

    def no_block(self) -> None:
        """Refuse a block, even an empty one with lines in it."""
        if self.body:
            raise self.body[0].unknown()

    def options(self, *known: str) -> tuple[Directive, ...]:
        """The lines of the block, none of which has a block of its own; with ``known`` each must be one of these."""
        body = self.body or ()
        for option in body:
            if known and option.name not in known:
                raise option.unknown()
            if option.body is not None:
                raise option.error("Unexpected token '{', expecting argument")
        return body

    # -- what the words say

    def integer(self, text: str, low: int | None = None, high: int | None = None) -> int:
        """A decimal integer within the bounds, both inclusive."""
        return self._value(values.integer, text, low, high)

    def duration(self, text: str, low: float = 0.0, high: float | None = None) -> float:
        """A Go duration in seconds, within the bounds, both inclusive."""
        seconds = self._value(values.duration, text)
        if seconds < low or (high is not None and seconds > high):
            bounds = f"at least {low:g}s" if high is None else f"in range [{low:g}s, {high:g}s]"
            raise self.error(f"duration '{text}' must be {bounds}")
        return seconds

    def zones(self, texts: Sequence[str], default: tuple[Name, ...]) -> tuple[Name, ...]:
        """Zones with networks expanded; ``default`` when there are no words."""
        return self._value(values.zones, texts, default)

    def regexp(self, text: str) -> Regexp:
        """A compiled RE2 expression."""
        return self._value(values.regexp, text)

    def cidr(self, text: str) -> Network:
        """A network in CIDR notation."""
        return self._value(values.cidr, text)

    def listen_address(self, text: str) -> tuple[str, int]:
        """``host:port`` to listen on; an empty host means every address."""
        return self._value(values.listen_address, text)

    def _value(self, read: Callable[..., _T], *args: object) -> _T:
        try:
            return read(*args)
        except BadValue as error:
            raise self.error(str(error)) from None


class Key(msgspec.Struct, frozen=True, gc=False):
    """One zone that a server block answers for."""

    scheme: str
    """``dns``, ``tls``, ``quic``, ``grpc``, ``https`` or ``https3``."""
    zone: Name
    port: int
    """0: the scheme's default, for ``dns`` the process's."""
    text: str
    """As written; a network's zones share it."""


class ServerBlock(msgspec.Struct, frozen=True, gc=False):
    """The zones of a server block and its directives in textual order."""

    keys: tuple[Key, ...]
    directives: tuple[Directive, ...]
    file: str
    line: int


class Corefile(msgspec.Struct, frozen=True, gc=False):
    """All server blocks of a Corefile, imports and all."""

    blocks: tuple[ServerBlock, ...]
    warnings: tuple[str, ...]
    """For the log: globs that match nothing."""
    digest: str
    """SHA-512, in hex, of what the Corefile says; comments, spacing and line numbers don't count."""


def only(uses: Sequence[Directive]) -> Directive:
    """The one use of a directive that a server block may hold once."""
    if len(uses) > 1:
        raise uses[1].error("this plugin can only be used once per Server Block")
    return uses[0]


# --- reading it ------------------------------------------------------------------------------------------------------


def parse(
    text: str,
    file: str,
    *,
    env: Mapping[str, str],
    read: Callable[[str], str],
    glob: Callable[[str], list[str]],
    known: Callable[[str], bool] = lambda directive: True,
) -> Corefile:
    """Read a Corefile.

    ``file`` is its name for messages and the place that imports are relative to.  ``glob`` lists the files that a
    pattern (or a plain name) matches, in order, and ``read`` gives the text of one (OSError: cannot).  ``known`` tells
    which directives there are.  Raises CorefileError for the first thing that is wrong.
    """
    return _Parser(Words(text, file, env, read, glob), known).corefile()


def load(file: str, env: Mapping[str, str], known: Callable[[str], bool] = lambda directive: True) -> Corefile:
    """`parse` a file on disk; raises OSError when it cannot be read."""
    return parse(read_file(file), file, env=env, read=read_file, glob=glob_files, known=known)


def read_file(path: str) -> str:
    """A file's text, as far as `limits.COREFILE_SIZE` and one character more; raises CorefileError and OSError."""
    with open(path, "rb") as file:
        return decode(file.read(limits.COREFILE_SIZE + 1), path)


def decode(data: bytes, file: str) -> str:
    """UTF-8 octets → text; CorefileError says in which line they are not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise CorefileError(file, line, "Error during parsing: not UTF-8") from None


def glob_files(pattern: str) -> list[str]:
    """Absolute paths that match, sorted; ``*`` and ``?`` match hidden files too, as Go's ``filepath.Glob`` does."""
    escaped = pattern.replace("[", "[[]")
    return sorted(os.path.abspath(path) for path in _glob.glob(escaped, include_hidden=True))


class _Parser:
    """The grammar of server blocks and directives over a stream of words."""

    def __init__(self, words: Words, known: Callable[[str], bool]) -> None:
        self._words, self._known = words, known

    def corefile(self) -> Corefile:
        """Everything."""
        found: list[tuple[list[tuple[str, Word]], tuple[Directive, ...]]] = []
        while (word := self._words.take()) is not None:
            keys, opening = self._keys(word)
            if opening is not None and len(keys) == 1 and _is_snippet(keys[0][0]):
                self._snippet(keys[0][0][1:-1], opening)
            elif keys or opening is not None:
                found.append((keys, self._contents(opening) if opening is not None else ()))
        # Keys are looked at when the whole text has been: CoreDNS reports parse errors first.
        blocks: list[ServerBlock] = []
        zones = 0
        for keys, directives in found:
            if keys:
                first = keys[0][1]
                blocks.append(ServerBlock(_server_keys(keys, zones), directives, first.file, first.line))
                zones += len(blocks[-1].keys)
        said = [([key.text for key in block.keys], _said(block.directives)) for block in blocks]
        digest = hashlib.sha512(msgspec.msgpack.encode(said)).hexdigest()
        return Corefile(tuple(blocks), tuple(self._words.warnings), digest)

    def _keys(self, word: Word) -> tuple[list[tuple[str, Word]], Word | None]:
        """The keys of a server block from ``word`` on, and the first word behind them (None at the end)."""
        keys: list[tuple[str, Word]] = []
        more = False
        following: Word | None = word
        while following is not None:
            word = following
            text = self._words.filled(word)
            if text == "import" and word.first:
                self._words.include()
                following = self._words.take()
                continue
            if text == "{":
                if more:
                    raise word.error(f"Expected another address but had '{text}' - check for extra comma")
                return keys, word
            if text:
                more = text.endswith(",")
                keys.append((text.removesuffix(","), word))
            following = self._words.take()
            if following is not None and following.first and not more:
                return keys, following
        if more:
            raise self._words.current.error("Unexpected EOF")
        return keys, None

    def _snippet(self, name: str, opening: Word) -> None:
        if self._words.defined(name):
            raise opening.error(f"redeclaration of previously declared snippet {name}")
        if opening.text != "{":
            raise _unexpected(opening, "{")
        body: list[Word] = []
        depth = 1
        while (word := self._words.take()) is not None:
            depth += (word.text == "{") - (word.text == "}")
            if not depth:
                self._words.define(name, body)
                return
            body.append(word)
        raise _unexpected(self._words.current, "}")

    def _contents(self, opening: Word) -> tuple[Directive, ...]:
        """The directives of a server block, with or without braces."""
        braces = opening.text == "{"
        if not braces:
            self._words.put_back(opening)
        directives: list[Directive] = []
        while (word := self._words.take()) is not None and word.text != "}":
            if word.text == "import":
                self._words.include()
                continue
            name = self._words.filled(word)
            if not self._known(name):
                raise word.error(f"Unknown directive '{name}'")
            directives.append(self._line(word, name, 0))
        # The closing brace of the last directive will do, as in CoreDNS.
        if braces and self._words.current.text != "}":
            raise _unexpected(self._words.current, "}")
        return tuple(directives)

    def _line(self, start: Word, name: str, depth: int) -> Directive:
        """A directive, or a line of a block ``depth`` blocks deep, from behind its first word."""
        args: list[str] = []
        body: tuple[Directive, ...] | None = None
        take = self._words.take
        while (word := take()) is not None:
            text = word.text
            if word.first and text != "{":
                self._words.put_back(word)
                break
            if text == "{":
                if word.first or body is not None:
                    raise word.error("Unexpected '{': a block opens on the line of its directive, once")
                body = self._body(depth + 1)
            elif text == "}":
                if not depth:
                    raise word.error("Unexpected '}' because no matching opening brace")
                self._words.put_back(word)
                break
            elif body is not None:
                raise word.error(f"Unexpected '{text}' behind a block")
            else:
                args.append(self._words.filled(word) if "{" in text else text)
        return Directive(name, tuple(args), body, start.file, start.line)

    def _body(self, depth: int) -> tuple[Directive, ...]:
        if depth > limits.COREFILE_NESTING:
            raise self._words.current.error(f"blocks nested over {limits.COREFILE_NESTING} deep")
        lines: list[Directive] = []
        while (word := self._words.take()) is not None:
            if word.text == "}":
                return tuple(lines)
            if word.text == "{":
                raise word.error("Unexpected '{': a block opens on the line of its directive, once")
            if word.text == "import" and word.first:
                self._words.include()
            else:
                lines.append(self._line(word, self._words.filled(word), depth))
        raise self._words.current.error("Unexpected EOF")


def _is_snippet(key: str) -> bool:
    return len(key) > 1 and key[0] == "(" and key[-1] == ")"


def _unexpected(word: Word, expected: str) -> CorefileError:
    text = f"Syntax error: Unexpected token '{word.text}', expecting '{expected}'"
    return CorefileError(word.file, word.line, text)


def _server_keys(keys: list[tuple[str, Word]], before: int) -> tuple[Key, ...]:
    """The keys of one block; ``before``: how many zones the blocks before it have."""
    out: list[Key] = []
    for text, word in keys:
        try:
            scheme, rest = values.strip_scheme(text)
            zones, port = values.zone_and_port(rest)
            if scheme == "unix":
                raise BadValue(f"cannot serve {text}")
            if before + len(out) + len(zones) > limits.COREFILE_ZONES:
                raise BadValue(f"over {limits.COREFILE_ZONES} zones")
        except BadValue as error:
            raise CorefileError(word.file, word.line, f"error inspecting server blocks: {error}") from None
        out += (Key(scheme, zone, port or 0, text) for zone in zones)
    return tuple(out)


def _said(directives: tuple[Directive, ...] | None) -> list[Any] | None:
    """What directives say, without where they say it."""
    if directives is None:
        return None
    return [(line.name, line.args, _said(line.body)) for line in directives]
