"""Questions to other servers, and what they reply."""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from kdns.message import AAAA, IN, NAPTR, NSEC, OPT, OPTION_EDE, QR, RRSIG, SOA, TC, A, Edns, Record
from kdns.name import ROOT, Name
from kdns.rdata import NAMES, NXT, SIG, names_in
from kdns.wire.reading import (
    DO,
    HEADER,
    FormatError,
    pack_header,
    pack_opt,
    pack_pair,
    read_fixed,
    read_header,
    read_name,
    read_options,
    read_pair,
)

_TAILED: Final = frozenset({SOA, SIG, NXT, RRSIG, NSEC})
"""Of the types with names, those in which something follows them."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """A reply that another server sent."""

    id: int
    flags: int
    """The header's flags word, its four rcode bits included."""
    name: Name
    """The question, folded."""
    spelling: bytes
    """The question as the reply spells it."""
    type: int
    klass: int
    answer: tuple[Record, ...]
    authority: tuple[Record, ...]
    additional: tuple[Record, ...]
    """Without the OPT record."""
    edns: Edns | None
    rcode: int
    """With the upper bits that the OPT record holds."""
    ede: tuple[tuple[int, str], ...]
    """Extended errors: (info code, text)."""


def pack_query(id: int, flags: int, spelling: bytes, type: int, klass: int, edns: Edns | None) -> bytes:
    """A question to another server; ``spelling`` may mix upper and lower case (0x20)."""
    query = pack_header(id, flags, 1, 0, 0, 0 if edns is None else 1) + spelling + pack_pair(type, klass)
    if edns is None:
        return query
    options = b"".join([pack_pair(code, len(data)) + data for code, data in edns.options])
    return query + pack_opt(0, OPT, edns.size, DO if edns.do else 0, len(options)) + options


def parse_reply(packet: bytes) -> Message:
    """Another server's reply; raises FormatError for anything that is not one whole, well-formed response.

    Names in the data are uncompressed.  A TTL of 2**31 and more is 0 (RFC 2181).  Of a reply that says itself that it
    is truncated, a last record that is cut off is left out.
    """
    try:
        return _parse_reply(packet)
    except (IndexError, struct.error):
        raise FormatError("the message is cut off") from None


def _parse_reply(packet: bytes) -> Message:
    id, flags, questions, *counts = read_header(packet)
    if not flags & QR or questions != 1:
        raise FormatError("not a response to one question")
    known: dict[int, bytes] = {}
    spelling, at = read_name(packet, HEADER, known)
    type, klass = read_pair(packet, at)
    reader = _Reader(packet, at + 4, known, bool(flags & TC))
    answer = reader.section(counts[0], False)
    authority = reader.section(counts[1], False)
    additional = reader.section(counts[2], True)
    if reader.at != len(packet) and not reader.cut:
        raise FormatError("octets after the last record")
    edns = reader.edns
    rcode = flags & 15 | reader.extension >> 24 << 4
    ede = _read_ede(edns.options) if edns is not None and edns.options else ()
    return Message(id, flags, spelling.lower(), spelling, type, klass, answer, authority, additional, edns, rcode, ede)


def _read_ede(options: tuple[tuple[int, bytes], ...]) -> tuple[tuple[int, str], ...]:
    return tuple(
        (data[0] << 8 | data[1], data[2:].decode("utf-8", "replace"))
        for code, data in options
        if code == OPTION_EDE and len(data) >= 2
    )


class _Reader:
    """Walks through the records of a message."""

    __slots__ = ("_known", "_packet", "_truncated", "at", "cut", "edns", "extension")

    def __init__(self, packet: bytes, at: int, known: dict[int, bytes], truncated: bool) -> None:
        self.at = at
        self.edns: Edns | None = None
        self.extension = 0
        self.cut = False
        self._packet = packet
        self._known = known
        self._truncated = truncated

    def section(self, count: int, last: bool) -> tuple[Record, ...]:
        """The records of a section; the OPT of the ``last`` one goes to ``edns``."""
        records: list[Record] = []
        if self.cut:
            return ()
        try:
            for _ in range(count):
                record = self._record(last)
                if record is not None:
                    records.append(record)
        except (IndexError, struct.error):
            if not self._truncated:
                raise
            self.cut = True
        return tuple(records)

    def _record(self, last: bool) -> Record | None:
        packet, at, known = self._packet, self.at, self._known
        first = packet[at]
        owner = known.get((first & 63) << 8 | packet[at + 1]) if first >= 192 else None
        if owner is not None:
            at += 2
        else:
            owner, at = read_name(packet, at, known)
        type, klass, ttl, length = read_fixed(packet, at)
        at += 10
        self.at = end = at + length
        if end > len(packet):
            raise IndexError
        if type == OPT:
            if not last or self.edns is not None or owner != ROOT:
                raise FormatError("a second OPT, or one in the wrong place")
            self.edns = Edns(klass, bool(ttl & DO), read_options(packet, at, end))
            self.extension = ttl
            return None
        if type in NAMES or type == NAPTR:
            rdata = self._rdata(type, at, end)
        else:
            rdata = packet[at:end]
            if klass == IN and ((type == A and length != 4) or (type == AAAA and length != 16)):
                raise FormatError("an address of the wrong length")
        return Record(owner, type, ttl if ttl < 0x80000000 else 0, rdata, klass)

    def _rdata(self, type: int, at: int, end: int) -> bytes:
        """Data with its names uncompressed."""
        packet = self._packet
        begin, count = names_in(type, packet, at)
        out = packet[at:begin]
        for _ in range(count):
            name, begin = read_name(packet, begin, self._known)
            out += name
        rest = end - begin
        if rest < 0 or (type not in _TAILED and rest) or (type == SOA and rest != 20):
            raise FormatError("record data longer or shorter than its length says")
        return out + packet[begin:end]
