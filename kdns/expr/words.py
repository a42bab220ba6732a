"""Expression text → words."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from kdns import limits
from kdns.expr.functions import ExpressionError


class Word(NamedTuple):
    """One word."""

    kind: str
    """``number``, ``string`` (``text`` is what it stands for), ``name``, ``sign`` or ``end``."""
    text: str


END: Final = Word("end", "")

_WORD: Final = re.compile(
    r"""(?P<skip>\s+|//[^\n]*|/\*.*?\*/)
      | (?P<number>0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+
          |(?:[0-9][0-9_]*(?:\.(?!\.)[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?)
      | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`[^`]*`)
      | (?P<name>[^\W\d]\w*)
      | (?P<sign>\?\.|\?\?|\|\||&&|==|!=|<=|>=|\*\*|\.\.|::|[-+*/%^<>!?:;,.|#=()\[\]{}])""",
    re.VERBOSE | re.DOTALL,
)
_OPERATORS: Final = frozenset(
    ("in", "or", "and", "matches", "contains", "startsWith", "endsWith", "let", "not", "if", "else")
)
_ESCAPE: Final = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|([0-7]{3})|(.))", re.DOTALL)
_PLAIN: Final = dict(zip("abfnrtv\\'\"`?", "\a\b\f\n\r\t\v\\'\"`?", strict=True))


def split(source: str) -> list[Word]:
    """All words, the last one `END`.  Raises ExpressionError."""
    words: list[Word] = []
    at = 0
    while at < len(source):
        match = _WORD.match(source, at)
        if match is None:
            raise ExpressionError(f"unexpected {source[at : at + 10]!r}")
        at, kind, text = match.end(), match.lastgroup or "", match[0]
        if kind == "name" and text in _OPERATORS:
            kind = "sign"
        if kind == "string":
            text = text[1:-1] if text[0] == "`" else _ESCAPE.sub(_unescape, text[1:-1])
        if kind == "number" and source[at : at + 1].isalnum():
            raise ExpressionError(f"bad number syntax: {source[match.start() : at + 1]!r}")
        if kind != "skip":
            words.append(Word(kind, text))
        if len(words) > limits.EXPRESSION_WORDS:
            raise ExpressionError(f"over {limits.EXPRESSION_WORDS} words")
    return [*words, END]


def _unescape(match: re.Match[str]) -> str:
    octet, four, octal, sign = match.groups()
    if sign is None:
        return chr(int(octal, 8) if octal else int(octet or four, 16))
    if sign not in _PLAIN:
        raise ExpressionError(f"unable to unescape string: \\{sign}")
    return _PLAIN[sign]


def number(text: str) -> int | float:
    """What a number stands for."""
    digits = text.replace("_", "")
    prefix = digits[:2].lower()
    try:
        if prefix in ("0x", "0o", "0b"):
            value: int | float = int(digits, 0)
        elif digits.isdigit():
            value = int(digits) if len(digits) < 40 else 2**64
        else:
            return float(digits)
    except ValueError:
        raise ExpressionError(f"bad number syntax: {text!r}") from None
    if value >= 2**63:
        raise ExpressionError(f"integer literal is too large: {text}")
    return value
