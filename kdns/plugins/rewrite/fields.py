"""Rules about single fields: ``type`` and ``class`` of the question, ``ttl`` and ``rcode`` of the reply."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from kdns import message
from kdns.message import Query, Record, Reply
from kdns.plugins.rewrite.names import KINDS, matcher
from kdns.plugins.rewrite.rule import Applied, Revert
from kdns.values import BadValue

_LONGEST_TTL: Final = 2**31 - 1
_LAST_RCODE: Final = 23


class TypeRule(msgspec.Struct, frozen=True):
    """``type FROM TO``."""

    old: int
    new: int

    def apply(self, query: Query, text: str) -> Applied | None:
        """Ask for the other type."""
        return (query.replace(type=self.new), ()) if query.type == self.old else None


class ClassRule(msgspec.Struct, frozen=True):
    """``class FROM TO``."""

    old: int
    new: int

    def apply(self, query: Query, text: str) -> Applied | None:
        """Ask in the other class."""
        return (query.replace(klass=self.new), ()) if query.klass == self.old else None


class ReplyRule(msgspec.Struct, frozen=True):
    """``ttl`` and ``rcode``: a change of the replies to some names."""

    matches: Callable[[str], bool]
    revert: Revert

    def apply(self, query: Query, text: str) -> Applied | None:
        """Leave the query as it is."""
        return (query, (self.revert,)) if self.matches(text) else None


def type_rule(words: Sequence[str]) -> TypeRule:
    """Read the words behind ``type``; raises BadValue."""
    return TypeRule(*_numbers("type", words, message.type_number))


def class_rule(words: Sequence[str]) -> ClassRule:
    """Read the words behind ``class``; raises BadValue."""
    return ClassRule(*_numbers("class", words, message.class_number))


def _numbers(field: str, words: Sequence[str], number: Callable[[str], int | None]) -> tuple[int, int]:
    if len(words) != 2:
        raise BadValue(f"{field} rules must have exactly two arguments")
    found: list[int] = []
    for word in words:
        value = number(word)
        if value is None:
            raise BadValue(f'invalid {field} "{word.upper()}"')
        found.append(value)
    return found[0], found[1]


def ttl_rule(words: Sequence[str]) -> ReplyRule:
    """Read the words behind ``ttl``: ``[KIND] NAME (S | MIN-MAX | MIN- | -MAX)``; raises BadValue."""
    matches, (text,) = _matcher("ttl", words, 1)
    low, high = _ttl_range(text)

    def clamp(record: Record) -> Record:
        ttl = min(max(record.ttl, low), high)
        return record if ttl == record.ttl else record.with_ttl(ttl)

    async def revert(reply: Reply) -> Reply:
        return reply.replace(
            answer=tuple([clamp(record) for record in reply.answer]),
            authority=tuple([clamp(record) for record in reply.authority]),
            additional=tuple([clamp(record) for record in reply.additional]),
            # A TTL that counts down has to come by here each time.
            lease=reply.lease.shrink(0.0) if reply.lease.age else reply.lease,
        )

    return ReplyRule(matches, revert)


def _ttl_range(text: str) -> tuple[int, int]:
    low, dash, high = text.partition("-")
    lowest = _ttl(low) if low else 0
    highest = _ttl(high) if high else _LONGEST_TTL if dash else lowest
    if lowest is None or highest is None or lowest > highest or not (low or high):
        raise BadValue(f"invalid TTL '{text}' for a ttl rule")
    return lowest, highest


def _ttl(text: str) -> int | None:
    """A TTL of up to 32 bits; more than 31 mean the longest that there is (RFC 2181 section 8)."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10) or int(text) >= 2**32:
        return None
    return min(int(text), _LONGEST_TTL)


def rcode_rule(words: Sequence[str]) -> ReplyRule:
    """Read the words behind ``rcode``: ``[KIND] NAME FROM TO``; raises BadValue."""
    matches, (first, second) = _matcher("rcode", words, 2)
    old, new = _rcode(first), _rcode(second)
    if old is None:
        raise BadValue(f"invalid matching RCODE '{first}' for a rcode rule")
    if new is None:
        raise BadValue(f"invalid replacement RCODE '{second}' for a rcode rule")

    async def revert(reply: Reply) -> Reply:
        return reply.replace(rcode=new) if reply.rcode == old else reply

    return ReplyRule(matches, revert)


def _rcode(text: str) -> int | None:
    if text.isascii() and text.isdigit() and len(text) <= 2 and int(text) <= _LAST_RCODE:
        return int(text)
    return message.rcode_number(text)


def _matcher(field: str, words: Sequence[str], values: int) -> tuple[Callable[[str], bool], Sequence[str]]:
    """``[KIND] NAME VALUE…`` → which names it is about, and the values."""
    if len(words) <= values:
        raise BadValue(f"too few ({len(words)}) arguments for a {field} rule")
    if len(words) > values + 2:
        raise BadValue(f"too many arguments for a {field} rule")
    if len(words) == values + 1:
        return matcher("exact", words[0]), words[1:]
    kind = words[0].lower()
    if kind not in KINDS:
        raise BadValue(f"{field} rule supports only {', '.join(KINDS[:-1])}, and regex name matching")
    return matcher(kind, words[1]), words[2:]
