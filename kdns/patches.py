"""What changes in a packed reply when it is repeated: ages, the order of addresses, and for which name it is.

In a reply that denies one name and is to deny others (`kdns.denial`) only the question and the compression pointers
depend on the name.  It can be made to fit every name below the apex when its pointers lead to where all those names are
the same.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from kdns.denial import Denial
from kdns.message import AAAA, OPT, SOA, TC, A
from kdns.name import MAX_NAME, Name

POINTER: Final = 0xC0
_HEADER: Final = 12
_LEAST_LIMIT: Final = 512
"""Octets that no reply is cut at, whoever asks (RFC 1035): it must fit under the longest name, too."""
_COUNTS: Final = struct.Struct(">HHH")
_RECORD: Final = struct.Struct(">HHIH")
_SHORT: Final = struct.Struct(">H")


class Plan:
    """Where the changing parts of a reply are; offsets count from the end of the question."""

    __slots__ = ("base", "run", "ttls")

    def __init__(self, base: bytes, ttls: tuple[tuple[int, int], ...], run: tuple[int, ...]) -> None:
        self.base = base
        self.ttls = ttls
        """(Offset, seconds when stored) of every TTL."""
        self.run = run
        """Start of each address of the answer and the end of the last; empty: nothing to rotate."""


def make_plan(head: bytes, tail: bytes, rotate: bool) -> Plan | None:
    """Find the TTLs and the addresses in a reply that ``wire`` packed.

    None: the addresses should rotate and cannot, because they do not stand together under one name.
    """
    answers, authority, additional = _COUNTS.unpack_from(head, 4)
    ttls: list[tuple[int, int]] = []
    addresses: list[int] = []
    end = at = 0
    together = True
    for number in range(answers + authority + additional):
        start = at
        while 0 < tail[at] < POINTER:
            at += 1 + tail[at]
        at += 2 if tail[at] else 1
        type_, _, ttl, size = _RECORD.unpack_from(tail, at)
        if type_ != OPT:
            ttls.append((at + 4, ttl))
        at += _RECORD.size + size
        if rotate and number < answers and type_ in (A, AAAA):
            # A pointer before the run stays true wherever the record moves; a name written out would be moved away
            # under the pointers of the others.
            together &= tail[start] >= POINTER and (
                not addresses or (start == end and tail[start : start + 2] == tail[addresses[0] : addresses[0] + 2])
            )
            addresses.append(start)
            end = at
    if len(addresses) < 2:
        return Plan(tail, tuple(ttls), ())
    return Plan(tail, tuple(ttls), (*addresses, end)) if together else None


class Scheme(NamedTuple):
    """Where the pointers are."""

    places: tuple[int, ...]
    """Of each pointer, from the end of the question."""
    target: int
    """Where all of them lead, from the end of the question's name: 0 or less when it is within the name."""


def scheme(packet: bytes, reply: bytes, denial: Denial) -> Scheme | None:
    """How to make the reply fit other names; ``packet`` asks one question, which the reply repeats.

    None: it cannot be done.  So it is with a reply whose name the denial does not deny; that is cut, or would be with a
    longer name; that holds records other than SOA and OPT; whose pointers lead to different places, or in front of the
    apex, where other names have other labels.
    """
    end = packet.find(0, _HEADER)
    name, tail = packet[_HEADER : end + 1].lower(), reply[end + 5 :]
    below = labels_below(name, denial.apex)
    if not below or not denial.existing.denies(name[:below]):
        return None
    if reply[2] & TC >> 8 or _HEADER + MAX_NAME + 4 + len(tail) > _LEAST_LIMIT:
        return None
    pointers = _pointers(sum(_COUNTS.unpack_from(reply, 6)), tail)
    if not pointers:
        return Scheme((), 0) if pointers is not None else None
    target = pointers[0][1]
    if target < _HEADER + below or any(other != target for _, other in pointers):
        return None
    return Scheme(tuple([at for at, _ in pointers]), target - len(name))


def labels_below(name: Name, apex: Name) -> int:
    """Octets of the labels that ``name`` has in front of ``apex``; 0: it is not below it."""
    below = len(name) - len(apex)
    at = 0
    while at < below:
        at += 1 + name[at]
    return below if at == below and name[at:] == apex else 0


def cut(tail: bytes, places: tuple[int, ...]) -> tuple[bytes, ...]:
    """What stands before, between and behind pointers: joined by them it is the tail again."""
    starts = (0, *(at + 2 for at in places))
    return tuple([tail[start:end] for start, end in zip(starts, (*places, len(tail)), strict=True)])


def _pointers(records: int, tail: bytes) -> list[tuple[int, int]] | None:
    """(Where it stands, where it leads) of each pointer; None: there are other records than SOA and OPT."""
    found: list[tuple[int, int]] = []
    at = 0
    for _ in range(records):
        at = _pass_name(tail, at, found)
        type_, _, _, size = _RECORD.unpack_from(tail, at)
        at += _RECORD.size
        if type_ == SOA:
            _pass_name(tail, _pass_name(tail, at, found), found)
        elif type_ != OPT:
            return None
        at += size
    return found


def _pass_name(tail: bytes, at: int, found: list[tuple[int, int]]) -> int:
    """Where the name at ``at`` ends; the pointer at its end joins ``found``."""
    while 0 < tail[at] < POINTER:
        at += 1 + tail[at]
    if not tail[at]:
        return at + 1
    found.append((at, _SHORT.unpack_from(tail, at)[0] & 0x3FFF))
    return at + 2
