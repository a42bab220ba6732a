"""Template text → text, and actions as lists of words; what Go's quoted strings and numbers stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from kdns.gotemplate.functions import TemplateError


class Word(NamedTuple):
    """One word of an action."""

    kind: str
    text: str
    spaced: bool
    """White space stands before it."""


_WORD: Final = re.compile(
    r"""(?P<close>(?:[ \t\r\n]+-)?\}\})
      | (?P<space>[ \t\r\n]+)
      | (?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
      | (?P<char>'(?:[^'\\\n]|\\.[^']*)')
      | (?P<number>[+-]?\.?[0-9](?:[eEpP][+-]|[\w.])*)
      | (?P<field>\.\w+)
      | (?P<variable>\$\w*)
      | (?P<word>[^\W\d]\w*)
      | (?P<sign>:=|[=|(),.])""",
    re.VERBOSE,
)
_OPEN: Final = re.compile(r"\{\{(?:-(?=[ \t\r\n]))?")
_COMMENT: Final = re.compile(r"[ \t\r\n]*/\*.*?\*/((?:[ \t\r\n]+-)?\}\})", re.DOTALL)
_BLANKS: Final = " \t\r\n"


def split(source: str) -> Iterable[str | list[Word]]:
    """Text and actions in turn, without comments and without the white space beside trim markers."""
    at, trim = 0, False
    while opening := _OPEN.search(source, at):
        before = source[at : opening.start()]
        if trim:
            before = before.lstrip(_BLANKS)
        if opening[0] == "{{-":
            before = before.rstrip(_BLANKS)
        yield before
        comment = _COMMENT.match(source, opening.end())
        if comment:
            at, trim = comment.end(), "-" in comment[1]
            continue
        words, at, trim = _action(source, opening.end())
        yield words
    yield source[at:].lstrip(_BLANKS) if trim else source[at:]


def _action(source: str, at: int) -> tuple[list[Word], int, bool]:
    """The words of the action that begins at ``at``, where it ends, and whether white space behind it goes."""
    words: list[Word] = []
    spaced = False
    while match := _WORD.match(source, at):
        at = match.end()
        kind = match.lastgroup or ""
        if kind == "close":
            return words, at, match[0] != "}}"
        if kind != "space":
            words.append(Word(kind, match[0], spaced))
        spaced = kind == "space"
    raise TemplateError(f"unexpected {source[at : at + 10]!r} in action" if source[at:] else "unclosed action")


_ESCAPES: Final = dict(zip("abfnrtv\\'\"", "\a\b\f\n\r\t\v\\'\"", strict=True))
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))", re.DOTALL)


def unquote(word: str) -> str:
    """What a string or character stands for; raises TemplateError."""

    def plain(match: re.Match[str]) -> str:
        octet, four, eight, octal, sign = match.groups()
        if sign is not None:
            if sign not in _ESCAPES:
                raise TemplateError(f"invalid syntax: {word}")
            return _ESCAPES[sign]
        try:
            return chr(int(octal, 8) if octal else int(octet or four or eight, 16))
        except (ValueError, OverflowError):
            raise TemplateError(f"invalid syntax: {word}") from None

    return word[1:-1] if word[0] == "`" else _ESCAPE.sub(plain, word[1:-1])


_OLD_OCTAL: Final = re.compile(r"([+-]?)0(_?[0-7_]+)")


def number(word: str) -> int:
    """An integer as Go writes it: ``10``, ``0x1F``, ``0b1``, ``0o17``, ``017``, ``1_000``; raises TemplateError."""
    octal = _OLD_OCTAL.fullmatch(word)
    try:
        value = int(f"{octal[1]}0o{octal[2]}" if octal else word, 0) if len(word) <= 80 else 2**64
    except ValueError:
        raise TemplateError(f"bad number syntax: {word!r}") from None
    if not -(2**63) <= value < 2**63:
        raise TemplateError(f"integer overflow: {word!r}")
    return value
