"""Bytes ↔ values: the wire format of DNS messages (RFC 1035, 6891, 8914), and nothing else.

Strict on what comes in (RFC 9267, 9619): a pointer leads backwards, past the header, at most `limits.NAME_POINTERS`
times; counts, lengths and the end of the packet must agree.  What `parse_query` cannot use is answered or left alone as
RFC 8906 asks, never raised.

What goes out is compressed against the question first and without regard to case, so that the answers to all spellings
of a question differ in the question alone.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

import msgspec

from kdns import limits
from kdns.errors import KdnsError
from kdns.message import (
    AA,
    AAAA,
    AD,
    BADVERS,
    CD,
    FORMERR,
    IN,
    IXFR,
    NAPTR,
    NOTIMP,
    NSEC,
    OPT,
    OPTION_EDE,
    QR,
    RA,
    RD,
    RRSIG,
    SERVFAIL,
    SOA,
    SRV,
    TC,
    A,
    Edns,
    Listener,
    Query,
    Record,
    Reply,
)
from kdns.name import MAX_NAME, ROOT, Name, is_under
from kdns.rdata import COMPRESSED, NAMES, NXT, SIG, names_in

TCP_MAX: Final = 65535
UDP_MIN: Final = 512
"""What every DNS client takes over UDP (RFC 1035); a smaller EDNS size counts as this."""

_HEADER: Final = 12
_OPCODE: Final = 0x7800
_DO: Final = 0x8000
_HIGHEST_POINTER: Final = 0x3FFF
_QUESTION_POINTER: Final = b"\xc0\x0c"
_EDE_TEXT: Final = 255
_TAILED: Final = frozenset({SOA, SIG, NXT, RRSIG, NSEC})
"""Of the types with names, those in which something follows them."""

_pack_header = struct.Struct("!6H").pack
_read_header = struct.Struct("!6H").unpack_from
_pack_pair = struct.Struct("!HH").pack
_read_pair = struct.Struct("!HH").unpack_from
_pack_fixed = struct.Struct("!HHIH").pack
_read_fixed = struct.Struct("!HHIH").unpack_from
_pack_opt = struct.Struct("!BHHIH").pack
_pack_pointer = struct.Struct("!H").pack


class FormatError(KdnsError):
    """A packet that breaks the protocol; the message says how."""


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


# --- queries in ------------------------------------------------------------------------------------------------------


def parse_query(packet: bytes, peer: tuple[str, int], listener: Listener) -> Query | bytes | None:
    """A datagram or frame → the Query; or the complete error reply to send; or None: stay silent.

    Silence for responses, for less than a header and for peers on port 0, which nobody can be answered on.  FORMERR for
    what breaks the format, NOTIMP for other opcodes, BADVERS for another EDNS version.  Never raises.
    """
    size = len(packet)
    if size < _HEADER or packet[2] & 0x80 or not peer[1]:
        return None
    id, flags, questions, answers, authorities, additionals = _read_header(packet)
    question = packet[_HEADER : _HEADER + MAX_NAME + 4]
    end = 0
    try:
        while length := question[end]:
            if length > 63:
                return _refusal(id, flags)
            end += 1 + length
        end += 1
        type, klass = _read_pair(question, end)
    except (IndexError, struct.error):
        return _refusal(id, flags)
    if questions != 1:
        return _refusal(id, flags)
    at = _HEADER + end + 4
    # An IXFR query brings its SOA in the authority section (RFC 1995); otherwise there is nothing but the question.
    if answers or (authorities and (type != IXFR or authorities > 1)) or additionals > 2:
        return _refusal(id, flags, question[: end + 4])
    edns, version = None, 0
    if additionals or at != size:
        try:
            edns, version = _read_rest(packet, at, authorities, additionals)
        except (FormatError, IndexError, struct.error):
            return _refusal(id, flags, question[: end + 4])
    spelling = question[:end]
    query = Query(spelling.lower(), type, klass, spelling, id, flags, edns, peer, listener, size)
    if version or flags & _OPCODE:
        return pack_reply(query, Reply(NOTIMP if flags & _OPCODE else BADVERS), UDP_MIN)
    return query


def _refusal(id: int, flags: int, question: bytes = b"") -> bytes:
    """An error reply to a packet that became no Query: the header, and the question when that could be read."""
    rcode = NOTIMP if flags & _OPCODE else FORMERR
    return _pack_header(id, QR | flags & (_OPCODE | RD | CD) | rcode, 1 if question else 0, 0, 0, 0) + question


def _read_rest(packet: bytes, at: int, authorities: int, additionals: int) -> tuple[Edns | None, int]:
    """What follows the question of a query → its OPT and the EDNS version; other records need only be well-formed."""
    edns, version = None, 0
    for index in range(authorities + additionals):
        root = not packet[at]
        at = at + 1 if root else _read_name(packet, at, {})[1]
        type, size, extension, length = _read_fixed(packet, at)
        at += 10
        if type == OPT:
            if edns is not None or not root or index < authorities:
                raise FormatError("a second OPT, or one in the wrong place")
            version = extension >> 16 & 255
            # What the options of another version look like is unknown.
            options = _read_options(packet, at, at + length) if length and not version else ()
            edns = Edns(size, bool(extension & _DO), options)
        at += length
    if at != len(packet):
        raise FormatError("records and packet end at different places")
    return edns, version


def _read_options(packet: bytes, at: int, end: int) -> tuple[tuple[int, bytes], ...]:
    if end > len(packet):
        raise FormatError("the OPT record is cut off")
    options: list[tuple[int, bytes]] = []
    while at < end:
        code, length = _read_pair(packet, at)
        at += 4
        options.append((code, packet[at : at + length]))
        at += length
        if len(options) > limits.EDNS_OPTIONS:
            raise FormatError("too many EDNS options")
    if at != end:
        raise FormatError("an EDNS option is cut off")
    return tuple(options)


def _read_name(packet: bytes, at: int, known: dict[int, bytes]) -> tuple[bytes, int]:
    """The name at ``at``, uncompressed and as spelled, and where it ends; ``known``: names by offset, added to.

    Raises FormatError; IndexError when the packet ends first.
    """
    begin = start = at
    name = b""
    end = 0
    hops: list[tuple[int, int]] = []
    while length := packet[at]:
        if length < 64 and at - start < MAX_NAME:
            at += 1 + length
            continue
        pointer = (length & 63) << 8 | packet[at + 1]
        if length < 192 or not _HEADER <= pointer < start or len(hops) == limits.NAME_POINTERS:
            raise FormatError("a name that does not end, or a compression pointer that leads nowhere")
        name += packet[start:at]
        end = end or at + 2
        if pointer in known:
            name += known[pointer]
            break
        hops.append((pointer, len(name)))
        start = at = pointer
    else:
        name += packet[start : at + 1]
        end = end or at + 1
    if len(name) > MAX_NAME:
        raise FormatError("a name is over 255 octets")
    known[begin] = name
    # So that a chain of pointers is followed once, however many names lead into it.
    for pointer, skip in hops:
        known[pointer] = name[skip:]
    return name, end


# --- replies out -----------------------------------------------------------------------------------------------------


def reply_limit(query: Query, reply: Reply) -> int:
    """The most octets that this reply may have for this asker."""
    if query.listener.proto != "udp":
        return TCP_MAX
    offered = query.edns.size if query.edns is not None else UDP_MIN
    return min(max(UDP_MIN, offered), reply.limit or limits.UDP_REPLY)


def pack_reply(query: Query, reply: Reply, limit: int) -> bytes:
    """The reply as a packet of at most ``limit`` octets (at least 512).

    What does not fit is left out from the back, whole records at a time, and TC is set; the OPT record stays.  TC also
    when only additional records go, as CoreDNS has it.  A record that cannot be written makes it a SERVFAIL.
    """
    try:
        return _pack(query, reply, limit)
    except (struct.error, IndexError):
        # A plugin (they may come from anywhere) has broken the bounds that `Record` states.
        return _pack(query, Reply(SERVFAIL), limit)


def _pack(query: Query, reply: Reply, limit: int) -> bytes:
    name = query.name
    rcode = reply.rcode
    question = query.spelling + _pack_pair(query.type, query.klass)
    flags = QR | query.flags & (_OPCODE | RD | CD) | reply.flags & (AA | TC | RA | AD)
    opt = b""
    at = _HEADER + len(question)
    if query.edns is not None:
        opt = _opt(query.edns, reply, limit - at)
        limit -= len(opt)
    elif rcode > 15:
        rcode = SERVFAIL
    out = [b"", question]
    counts = [0, 0, 0]
    names: _Names | None = None
    for section, records in enumerate((reply.answer, reply.authority, reply.additional)):
        for record in records:
            type = record.type
            if type in NAMES or record.owner != name or len(name) == 1:
                data = _pack_denial(record, name) if names is None and type == SOA else b""
                if not data:
                    if names is None:
                        names = _Names(name)
                    data = names.pack(record, at)
            else:
                rdata = record.rdata
                data = _QUESTION_POINTER + _pack_fixed(type, record.klass, record.ttl, len(rdata)) + rdata
            at += len(data)
            if at > limit:
                flags |= TC
                break
            out.append(data)
            counts[section] += 1
        else:
            continue
        break
    out[0] = _pack_header(query.id, flags | rcode & 15, 1, counts[0], counts[1], counts[2] + (opt != b""))
    out.append(opt)
    return b"".join(out)


def _pack_denial(soa: Record, question: Name) -> bytes:
    """The SOA of a denial, whose names nearly always end in the zone, as does the question; empty when they don't.

    Search lists make denials the most frequent answer of a cluster's server: this is half the cost of `_Names`.
    """
    zone = soa.owner.lower()
    if len(zone) == 1 or not is_under(question, zone):
        return b""
    parts = _split_soa(soa.rdata, zone)
    if parts is None:
        return b""
    pointer = _pack_pointer(0xC000 | (_HEADER + len(question) - len(zone)))
    rdata = pointer.join(parts)
    return pointer + _pack_fixed(SOA, soa.klass, soa.ttl, len(rdata)) + rdata


@lru_cache(64)
def _split_soa(rdata: bytes, zone: Name) -> tuple[bytes, bytes, bytes] | None:
    """What stands before, between and behind the two ``zone``s in which a SOA's names end; None: they don't both."""
    middle = 0
    while length := rdata[middle]:
        middle += 1 + length
    middle += 1
    end, cut = len(rdata) - 20, len(zone)
    if not (is_under(rdata[:middle].lower(), zone) and is_under(rdata[middle:end].lower(), zone)):
        return None
    return rdata[: middle - cut], rdata[middle : end - cut], rdata[end:]


def _opt(edns: Edns, reply: Reply, room: int) -> bytes:
    """The OPT record of a reply, without its options when they alone don't fit into ``room``.

    Its size is the asker's, or what ``bufsize`` made of that (CoreDNS has it so, over TCP, too).
    """
    size = min(edns.size, reply.limit or edns.size)
    extension = reply.rcode >> 4 << 24 | (_DO if edns.do else 0)
    if reply.options or reply.ede:
        options = b"".join(
            [_pack_pair(code, len(data)) + data for code, data in reply.options]
            + [_pack_ede(code, text) for code, text in reply.ede]
        )
        if 11 + len(options) <= room:
            return _pack_opt(0, OPT, size, extension, len(options)) + options
    return _pack_opt(0, OPT, size, extension, 0)


def _pack_ede(code: int, text: str) -> bytes:
    data = text.encode("utf-8", "replace")[:_EDE_TEXT].decode("utf-8", "ignore").encode()
    return struct.pack("!HHH", OPTION_EDE, 2 + len(data), code) + data


class _Names:
    """The names that a message holds so far, folded, by offset."""

    __slots__ = ("_offsets",)

    def __init__(self, question: Name) -> None:
        self._offsets: dict[bytes, int] = {}
        self._put(question, _HEADER)

    def pack(self, record: Record, at: int) -> bytes:
        """The record as it goes into the message at ``at``."""
        owner = self._put(record.owner, at)
        rdata = record.rdata
        if record.type in COMPRESSED:
            rdata = self._shorten(rdata, at + len(owner) + 10, *COMPRESSED[record.type])
        elif record.type == SRV:
            # Not compressed itself, but what its address records below can point to.
            self._put(rdata[6:], at + len(owner) + 16)
        return owner + _pack_fixed(record.type, record.klass, record.ttl, len(rdata)) + rdata

    def _shorten(self, rdata: bytes, at: int, skip: int, count: int) -> bytes:
        out = rdata[:skip]
        for _ in range(count):
            end = skip
            while length := rdata[end]:
                end += 1 + length
            out += self._put(rdata[skip : end + 1], at + len(out))
            skip = end + 1
        return out + rdata[skip:]

    def _put(self, name: bytes, at: int) -> bytes:
        """The name as it is to be written at ``at``, and remember its parts."""
        offsets = self._offsets
        rest = name.lower()
        done = 0
        while length := rest[0]:
            pointer = offsets.get(rest)
            if pointer is not None:
                return name[:done] + _pack_pointer(0xC000 | pointer)
            if at + done <= _HIGHEST_POINTER:
                offsets[rest] = at + done
            done += 1 + length
            rest = rest[1 + length :]
        return name


# --- questions to other servers, and what they reply -----------------------------------------------------------------


def pack_query(id: int, flags: int, spelling: bytes, type: int, klass: int, edns: Edns | None) -> bytes:
    """A question to another server; ``spelling`` may mix upper and lower case (0x20)."""
    query = _pack_header(id, flags, 1, 0, 0, 0 if edns is None else 1) + spelling + _pack_pair(type, klass)
    if edns is None:
        return query
    options = b"".join([_pack_pair(code, len(data)) + data for code, data in edns.options])
    return query + _pack_opt(0, OPT, edns.size, _DO if edns.do else 0, len(options)) + options


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
    id, flags, questions, *counts = _read_header(packet)
    if not flags & QR or questions != 1:
        raise FormatError("not a response to one question")
    known: dict[int, bytes] = {}
    spelling, at = _read_name(packet, _HEADER, known)
    type, klass = _read_pair(packet, at)
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
            owner, at = _read_name(packet, at, known)
        type, klass, ttl, length = _read_fixed(packet, at)
        at += 10
        self.at = end = at + length
        if end > len(packet):
            raise IndexError
        if type == OPT:
            if not last or self.edns is not None or owner != ROOT:
                raise FormatError("a second OPT, or one in the wrong place")
            self.edns = Edns(klass, bool(ttl & _DO), _read_options(packet, at, end))
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
            name, begin = _read_name(packet, begin, self._known)
            out += name
        rest = end - begin
        if rest < 0 or (type not in _TAILED and rest) or (type == SOA and rest != 20):
            raise FormatError("record data longer or shorter than its length says")
        return out + packet[begin:end]
