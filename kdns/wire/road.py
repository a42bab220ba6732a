"""The readable twin of `kdns._wire`: what parses a query and packs a reply."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Final

from kdns import limits
from kdns.message import (
    AA,
    AD,
    BADVERS,
    CD,
    FORMERR,
    IXFR,
    NOTIMP,
    OPT,
    OPTION_EDE,
    QR,
    RA,
    RD,
    SERVFAIL,
    SOA,
    SRV,
    TC,
    Edns,
    Listener,
    Query,
    Record,
    Reply,
)
from kdns.name import MAX_NAME, Name, is_under
from kdns.rdata import COMPRESSED, NAMES
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

TCP_MAX: Final = 65535
UDP_MIN: Final = 512
"""What every DNS client takes over UDP (RFC 1035); a smaller EDNS size counts as this."""

_OPCODE: Final = 0x7800
_HIGHEST_POINTER: Final = 0x3FFF
_QUESTION_POINTER: Final = b"\xc0\x0c"
_EDE_TEXT: Final = 255

_pack_fixed = struct.Struct("!HHIH").pack
_pack_pointer = struct.Struct("!H").pack


# --- queries in ------------------------------------------------------------------------------------------------------


def parse_query(packet: bytes, peer: tuple[str, int], listener: Listener) -> Query | bytes | None:
    """A datagram or frame → the Query; or the complete error reply to send; or None: stay silent.

    Silence for responses, for less than a header and for peers on port 0, which nobody can be answered on.  FORMERR for
    what breaks the format, NOTIMP for other opcodes, BADVERS for another EDNS version.  Never raises.
    """
    size = len(packet)
    if size < HEADER or packet[2] & 0x80 or not peer[1]:
        return None
    id, flags, questions, answers, authorities, additionals = read_header(packet)
    question = packet[HEADER : HEADER + MAX_NAME + 4]
    end = 0
    try:
        while length := question[end]:
            if length > 63:
                return _refusal(id, flags)
            end += 1 + length
        end += 1
        type, klass = read_pair(question, end)
    except (IndexError, struct.error):
        return _refusal(id, flags)
    if questions != 1:
        return _refusal(id, flags)
    at = HEADER + end + 4
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
    return pack_header(id, QR | flags & (_OPCODE | RD | CD) | rcode, 1 if question else 0, 0, 0, 0) + question


def _read_rest(packet: bytes, at: int, authorities: int, additionals: int) -> tuple[Edns | None, int]:
    """What follows the question of a query → its OPT and the EDNS version; other records need only be well-formed."""
    edns, version = None, 0
    for index in range(authorities + additionals):
        root = not packet[at]
        at = at + 1 if root else read_name(packet, at, {})[1]
        type, size, extension, length = read_fixed(packet, at)
        at += 10
        if type == OPT:
            if edns is not None or not root or index < authorities:
                raise FormatError("a second OPT, or one in the wrong place")
            version = extension >> 16 & 255
            # What the options of another version look like is unknown.
            options = read_options(packet, at, at + length) if length and not version else ()
            edns = Edns(size, bool(extension & DO), options)
        at += length
    if at != len(packet):
        raise FormatError("records and packet end at different places")
    return edns, version


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
    question = query.spelling + pack_pair(query.type, query.klass)
    flags = QR | query.flags & (_OPCODE | RD | CD) | reply.flags & (AA | TC | RA | AD)
    opt = b""
    at = HEADER + len(question)
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
    out[0] = pack_header(query.id, flags | rcode & 15, 1, counts[0], counts[1], counts[2] + (opt != b""))
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
    pointer = _pack_pointer(0xC000 | (HEADER + len(question) - len(zone)))
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
    extension = reply.rcode >> 4 << 24 | (DO if edns.do else 0)
    if reply.options or reply.ede:
        options = b"".join(
            [pack_pair(code, len(data)) + data for code, data in reply.options]
            + [_pack_ede(code, text) for code, text in reply.ede]
        )
        if 11 + len(options) <= room:
            return pack_opt(0, OPT, size, extension, len(options)) + options
    return pack_opt(0, OPT, size, extension, 0)


def _pack_ede(code: int, text: str) -> bytes:
    data = text.encode("utf-8", "replace")[:_EDE_TEXT].decode("utf-8", "ignore").encode()
    return struct.pack("!HHH", OPTION_EDE, 2 + len(data), code) + data


class _Names:
    """The names that a message holds so far, folded, by offset."""

    __slots__ = ("_offsets",)

    def __init__(self, question: Name) -> None:
        self._offsets: dict[bytes, int] = {}
        self._put(question, HEADER)

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
