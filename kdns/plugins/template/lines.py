"""One line of a master file → a Record, as CoreDNS's parser (``dns.NewRR``) reads it."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from kdns.errors import KdnsError
from kdns.message import IN, OPT, Record, class_number, type_number
from kdns.name import BadName, spell
from kdns.rdata import BadRdata, from_text, seconds

_TTL: Final = 3600
"""Of a line that states none."""
_HIGHEST_TTL: Final = 2**31 - 1
_REMEMBERED: Final = 512
"""Characters of a line whose record is kept, so that what does not change with the query is read once."""
_SIGNS: Final = re.compile(r'"(?:[^"\\]|\\.)*"|;[^\n]*|[()\n]', re.DOTALL)
_BLANK_LINES: Final = re.compile(r"(?:[ \t]*\n)+")


class BadLine(KdnsError):
    """The text is not a resource record; the message says why."""


def record(text: str) -> Record:
    """``owner [TTL] [class] type data`` → Record; the class may also stand before the TTL, names end at the root.

    Only the first record counts, which parentheses or quotes may stretch over lines.  Raises BadLine.
    """
    return _remembered(text) if len(text) <= _REMEMBERED else _read(text)


@lru_cache(maxsize=1024)
def _remembered(text: str) -> Record:
    return _read(text)


def _read(text: str) -> Record:
    blank = _BLANK_LINES.match(text)
    line = _first_entry(text[blank.end() :] if blank else text)
    if not line or line.isspace() or line[0] == ";":
        raise BadLine("no record")
    if line[0].isspace() or line[0] == '"':
        raise BadLine(f"no owner name: {line!r}")
    owner, rest = _word(line)
    ttl = klass = None
    while rest:
        word, rest = _word(rest)
        type = type_number(word)
        if type == OPT:
            raise BadLine("OPT is no record of an answer")
        if type is not None:
            return _record(owner, _TTL if ttl is None else ttl, IN if klass is None else klass, type, rest)
        if klass is None and class_number(word) is not None:
            klass = class_number(word)
        elif ttl is None and word[0].isdigit():
            ttl = _ttl(word)
        else:
            break
    raise BadLine(f"not a TTL, class or type in {line!r}")


def _word(text: str) -> tuple[str, str]:
    """The first word and what follows it."""
    word, *rest = text.split(None, 1)
    return word, rest[0] if rest else ""


def _first_entry(text: str) -> str:
    """Up to the first line end outside quotes and parentheses."""
    if "\n" not in text:
        return text
    depth = 0
    for match in _SIGNS.finditer(text):
        sign = match[0]
        depth += (sign == "(") - (sign == ")")
        if sign == "\n" and depth <= 0:
            return text[: match.start()]
    return text


def _ttl(word: str) -> int:
    try:
        ttl = seconds(word)
    except BadRdata:
        ttl = 2**32
    if ttl >= 2**32:
        raise BadLine(f"not a TTL: {word!r}")
    return ttl if ttl <= _HIGHEST_TTL else 0


def _record(owner: str, ttl: int, klass: int, type: int, data: str) -> Record:
    try:
        return Record(spell(owner), type, ttl, from_text(type, data), klass)
    except (BadName, BadRdata) as error:
        raise BadLine(str(error)) from None
