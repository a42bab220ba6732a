# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, cdivision=True
"""The compiled twin of `kdns.wire.road`: octet for octet the same, from C.

Every read of a packet is preceded by a comparison with its size, every write by `reserve`.  A reply whose values are of
other types than `kdns.message` says, or break its bounds, is no business of this module: within it that is an exception,
and the readable twin packs that reply.  So all that is written here is in bounds and has well-formed names.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.tuple cimport PyTuple_CheckExact
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from kdns._draft cimport HEADER, Draft, begin, end, put_name, remember_question, reserve
from kdns._octets cimport (
    MAX_NAME, is_name, is_under, kdns_fold, name_size, number, octets_of, read16, write16, write32,
)

import os

from kdns import limits
from kdns.message import BADVERS as _BADVERS
from kdns.message import NOTIMP as _NOTIMP
from kdns.message import Edns, Query, Record, Reply
from kdns.rdata import COMPRESSED, NAMES

cdef enum:
    UDP_MIN = 512
    TCP_MAX = 65535
    # Header flags and types, as in kdns.message.
    QR = 0x8000
    OPCODE = 0x7800
    AA = 0x0400
    TC = 0x0200
    RD = 0x0100
    RA = 0x0080
    AD = 0x0020
    CD = 0x0010
    DO = 0x8000
    FORMERR = 1
    SERVFAIL = 2
    NOTIMP = 4
    BADVERS = 16
    SOA = 6
    SRV = 33
    OPT = 41
    IXFR = 251
    OPTION_EDE = 15
    EDE_TEXT = 255

cdef int EDNS_OPTIONS = limits.EDNS_OPTIONS
cdef int NAME_POINTERS = limits.NAME_POINTERS
cdef long UDP_REPLY = limits.UDP_REPLY
cdef uint64_t SEED = int.from_bytes(os.urandom(8), "little")

cdef enum Shape:
    PLAIN = 0
    NAMED = 1
    SHORTENED = 2

cdef uint8_t shape[256]
cdef uint8_t octets_before[256]
cdef uint8_t names_within[256]


def _fill_tables():
    for type in NAMES:
        if not 0 <= type < 256:
            raise ValueError(f"type {type} does not fit into the tables")
        shape[<uint8_t> type] = NAMED
    for type, (skip, count) in COMPRESSED.items():
        shape[<uint8_t> type] = SHORTENED
        octets_before[<uint8_t> type] = skip
        names_within[<uint8_t> type] = count


_fill_tables()

cdef object UNVERSIONED = Reply(_BADVERS)
cdef object UNKNOWN_OPCODE = Reply(_NOTIMP)


# --- queries in ------------------------------------------------------------------------------------------------------


def parse_query(bytes packet not None, peer, listener):
    """See `kdns.wire.road.parse_query`."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(packet)
    cdef const uint8_t *octets = <const uint8_t *> PyBytes_AS_STRING(packet)
    if size < HEADER or octets[2] & 0x80 or not peer[1]:
        return None
    cdef long flags = read16(octets + 2)
    cdef Py_ssize_t length = name_size(octets + HEADER, size - HEADER)
    cdef Py_ssize_t at = HEADER + length + 4
    if length == 0 or at > size or read16(octets + 4) != 1:
        return refusal(octets, flags, HEADER)
    cdef long type = read16(octets + at - 4)
    cdef long authorities = read16(octets + 8)
    cdef long additionals = read16(octets + 10)
    # An IXFR query brings its SOA in the authority section (RFC 1995); otherwise there is nothing but the question.
    if read16(octets + 6) or (authorities and (type != IXFR or authorities > 1)) or additionals > 2:
        return refusal(octets, flags, at)
    cdef Rest rest
    memset(&rest, 0, sizeof(Rest))
    edns = None
    if additionals or at != size:
        if not read_rest(octets, size, at, authorities, additionals, &rest):
            return refusal(octets, flags, at)
        if rest.opt:
            options = read_options(octets, rest.options, rest.end) if rest.options < rest.end else ()
            if options is None:
                return refusal(octets, flags, at)
            edns = Edns(rest.size, rest.do != 0, options)
    spelling = PyBytes_FromStringAndSize(<const char *> octets + HEADER, length)
    query = Query(
        fold(spelling), type, read16(octets + at - 2), spelling, read16(octets), flags, edns, peer, listener, size
    )
    if rest.version or flags & OPCODE:
        return pack_reply(query, UNKNOWN_OPCODE if flags & OPCODE else UNVERSIONED, UDP_MIN)
    return query


cdef bytes refusal(const uint8_t *octets, long flags, Py_ssize_t end):
    """An error reply to a packet that became no Query: its header, and the question if that ends at ``end``."""
    cdef uint8_t packet[HEADER + MAX_NAME + 4]
    memset(packet, 0, HEADER)
    memcpy(packet, octets, 2)
    write16(packet + 2, QR | flags & (OPCODE | RD | CD) | (NOTIMP if flags & OPCODE else FORMERR))
    if end > HEADER:
        packet[5] = 1
        memcpy(packet + HEADER, octets + HEADER, end - HEADER)
    return PyBytes_FromStringAndSize(<const char *> packet, end)


cdef bytes fold(bytes spelling):
    """The name in lower case: the same object when it is that already."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(spelling)
    cdef const uint8_t *octets = <const uint8_t *> PyBytes_AS_STRING(spelling)
    cdef uint8_t folded[MAX_NAME]
    cdef Py_ssize_t at
    cdef uint8_t differs = 0
    for at in range(size):
        folded[at] = kdns_fold[octets[at]]
        differs |= folded[at] ^ octets[at]
    return PyBytes_FromStringAndSize(<const char *> folded, size) if differs else spelling


cdef struct Rest:
    bint opt
    long size
    bint do
    long version
    Py_ssize_t options
    Py_ssize_t end


cdef bint read_rest(
    const uint8_t *octets, Py_ssize_t size, Py_ssize_t at, long authorities, long additionals, Rest *rest
) noexcept nogil:
    """What follows the question; false: it breaks the format.  ``rest`` says where the options are."""
    cdef long index, type, length
    cdef bint root
    for index in range(authorities + additionals):
        if at >= size:
            return False
        root = octets[at] == 0
        at = skip_name(octets, size, at)
        if at == 0 or size - at < 10:
            return False
        type = read16(octets + at)
        length = read16(octets + at + 8)
        if type == OPT:
            if rest.opt or not root or index < authorities:
                return False
            rest.opt = True
            rest.size = read16(octets + at + 2)
            rest.version = octets[at + 5]
            rest.do = octets[at + 6] & 0x80
            # What the options of another version look like is unknown.
            rest.options = at + 10
            rest.end = rest.options if rest.version else rest.options + length
        at += 10 + length
    return at == size


cdef Py_ssize_t skip_name(const uint8_t *octets, Py_ssize_t size, Py_ssize_t at) noexcept nogil:
    """Where the name at ``at`` ends; 0: it is none, or its pointers lead nowhere."""
    cdef Py_ssize_t start = at, end = 0, total = 0, pointer
    cdef int hops = 0
    cdef uint8_t length
    while True:
        if at >= size:
            return 0
        length = octets[at]
        if length == 0:
            break
        if length < 64:
            at += 1 + length
            if at - start > MAX_NAME:
                return 0
            continue
        if length < 192 or at + 1 >= size or hops == NAME_POINTERS:
            return 0
        pointer = (length & 63) << 8 | octets[at + 1]
        if pointer < HEADER or pointer >= start:
            return 0
        total += at - start
        if end == 0:
            end = at + 2
        hops += 1
        start = at = pointer
    total += at + 1 - start
    if total > MAX_NAME:
        return 0
    return end if end else at + 1


cdef tuple read_options(const uint8_t *octets, Py_ssize_t at, Py_ssize_t end):
    """The options from ``at`` to ``end``, which is within the packet; None: they break the format."""
    cdef list options = []
    cdef long length
    while at < end:
        if end - at < 4:
            return None
        length = read16(octets + at + 2)
        if end - at - 4 < length or len(options) == EDNS_OPTIONS:
            return None
        options.append((read16(octets + at), PyBytes_FromStringAndSize(<const char *> octets + at + 4, length)))
        at += 4 + length
    return tuple(options)


# --- replies out -----------------------------------------------------------------------------------------------------


def reply_limit(query, reply):
    """See `kdns.wire.road.reply_limit`."""
    if query.listener.proto != "udp":
        return TCP_MAX
    edns = query.edns
    offered = edns.size if edns is not None else UDP_MIN
    most = reply.limit or UDP_REPLY
    if offered < UDP_MIN:
        offered = UDP_MIN
    return most if most < offered else offered


def pack_reply(query, reply, limit):
    """See `kdns.wire.road.pack_reply`."""
    cdef Draft draft
    begin(&draft, SEED)
    try:
        return pack(&draft, query, reply, number(limit, 1 << 30))
    except Exception:
        from kdns.wire import road

        return road.pack_reply(query, reply, limit)
    finally:
        end(&draft)


cdef struct Question:
    # The name that is asked for, folded, to which owners are compared.
    const uint8_t *name
    Py_ssize_t size


cdef bytes pack(Draft *draft, query, reply, long limit):
    if type(query) is not Query or type(reply) is not Reply:
        raise ValueError
    cdef Py_ssize_t size
    cdef Question question
    name = query.name
    spelling = query.spelling
    question.name = octets_of(name, &question.size)
    cdef const uint8_t *octets = octets_of(spelling, &size)
    # Within the smallest limit there is room for the question and an OPT record.
    if size > MAX_NAME or limit < UDP_MIN:
        raise ValueError
    cdef Py_ssize_t at = HEADER + size + 4
    memcpy(draft.octets + HEADER, octets, size)
    write16(draft.octets + at - 4, number(query.type, 65535))
    write16(draft.octets + at - 2, number(query.klass, 65535))
    cdef long rcode = number(reply.rcode, 4095)
    opt = b""
    if query.edns is not None:
        opt = pack_opt(query.edns, reply, rcode, limit - at)
        limit -= PyBytes_GET_SIZE(opt)
    elif rcode > 15:
        rcode = SERVFAIL
    cdef long counts[3]
    memset(counts, 0, sizeof(counts))
    cdef bint whole = pack_section(draft, reply.answer, &question, limit, &at, &counts[0])
    whole = whole and pack_section(draft, reply.authority, &question, limit, &at, &counts[1])
    whole = whole and pack_section(draft, reply.additional, &question, limit, &at, &counts[2])
    size = PyBytes_GET_SIZE(opt)
    if size:
        reserve(draft, at + size)
        memcpy(draft.octets + at, PyBytes_AS_STRING(opt), size)
        counts[2] += 1
    write_header(draft.octets, query, reply, rcode, not whole, counts)
    return PyBytes_FromStringAndSize(<const char *> draft.octets, at + size)


cdef int write_header(uint8_t *octets, query, reply, long rcode, bint truncated, const long *counts) except -1:
    cdef long flags = QR | number(query.flags, 65535) & (OPCODE | RD | CD)
    flags |= number(reply.flags, 65535) & (AA | TC | RA | AD)
    if truncated:
        flags |= TC
    write16(octets, number(query.id, 65535))
    write16(octets + 2, flags | rcode & 15)
    write16(octets + 4, 1)
    cdef int index
    for index in range(3):
        if counts[index] > 65535:
            raise ValueError
        write16(octets + 6 + 2 * index, counts[index])
    return 0


cdef bint pack_section(
    Draft *draft, records, const Question *question, long limit, Py_ssize_t *place, long *count
) except -1:
    """Write the records at ``place``, which moves; false: not all of them fit."""
    cdef Py_ssize_t after
    if not PyTuple_CheckExact(records):
        raise ValueError
    for record in <tuple> records:
        after = pack_record(draft, record, question, place[0])
        if after > limit:
            return False
        place[0] = after
        count[0] += 1
    return True


cdef Py_ssize_t pack_record(Draft *draft, record, const Question *question, Py_ssize_t at) except -1:
    """Write a record; where it ends."""
    cdef Py_ssize_t owner_size, size
    if type(record) is not Record:
        raise ValueError
    owner_bytes = record.owner
    rdata_bytes = record.rdata
    cdef const uint8_t *owner = octets_of(owner_bytes, &owner_size)
    cdef const uint8_t *rdata = octets_of(rdata_bytes, &size)
    cdef long kind = number(record.type, 65535)
    cdef long klass = number(record.klass, 65535)
    cdef int64_t ttl = number(record.ttl, 0xFFFFFFFF)
    if size > 65535:
        raise ValueError
    reserve(draft, at + owner_size + 12 + size)
    cdef uint8_t *octets = draft.octets + at
    if (
        (kind >= 256 or shape[kind] == PLAIN)
        and owner_size == question.size
        and owner_size != 1
        and memcmp(owner, question.name, owner_size) == 0
    ):
        write16(octets, 0xC000 | HEADER)
        write_fixed(octets + 2, kind, klass, ttl, size)
        memcpy(octets + 12, rdata, size)
        return at + 12 + size
    if not is_name(owner, owner_size):
        raise ValueError
    cdef Py_ssize_t after
    if draft.used < 0:
        if not is_name(question.name, question.size):
            raise ValueError
        if kind == SOA:
            after = pack_denial(octets, question, owner, owner_size, klass, ttl, rdata, size)
            if after:
                return at + after
        remember_question(draft, question.name, question.size)
    after = put_name(draft, owner, owner_size, octets, at) + 10
    size = pack_data(draft, kind, rdata, size, octets + after, at + after)
    write_fixed(octets + after - 10, kind, klass, ttl, size)
    return at + after + size


cdef inline void write_fixed(uint8_t *octets, long type, long klass, int64_t ttl, long size) noexcept nogil:
    write16(octets, type)
    write16(octets + 2, klass)
    write32(octets + 4, ttl)
    write16(octets + 8, size)


cdef Py_ssize_t pack_data(
    Draft *draft, long type, const uint8_t *rdata, Py_ssize_t size, uint8_t *octets, Py_ssize_t at
) except -1:
    """Write the data to ``octets``, which is ``at`` in the message and holds so much uncompressed; how many it became."""
    cdef Py_ssize_t done = 0, read = 0, length
    cdef int index
    if type < 256 and shape[type] == SHORTENED:
        read = done = octets_before[type]
        if read > size:
            raise ValueError
        memcpy(octets, rdata, read)
        for index in range(names_within[type]):
            length = name_size(rdata + read, size - read)
            if length == 0:
                raise ValueError
            done += put_name(draft, rdata + read, length, octets + done, at + done)
            read += length
    elif type == SRV:
        # Not compressed itself, but what its address records below can point to.
        if not is_name(rdata + 6, size - 6):
            raise ValueError
        put_name(draft, rdata + 6, size - 6, octets + 6, at + 6)
    memcpy(octets + done, rdata + read, size - read)
    return done + size - read


cdef Py_ssize_t pack_denial(
    uint8_t *octets, const Question *question, const uint8_t *zone, Py_ssize_t zone_size, long klass, int64_t ttl,
    const uint8_t *rdata, Py_ssize_t size
) except -1:
    """Write the SOA of a denial whose names end in the zone, as does the question: how long it is; 0: they don't."""
    cdef Py_ssize_t mname, rname
    cdef long pointer = 0xC000 | HEADER + question.size - zone_size
    cdef uint8_t *out = octets
    if zone_size == 1 or not is_under(question.name, question.size, zone, zone_size):
        return 0
    mname = name_size(rdata, size)
    rname = name_size(rdata + mname, size - mname)
    if mname == 0 or rname == 0 or size - mname - rname != 20:
        raise ValueError
    if not is_under(rdata, mname, zone, zone_size) or not is_under(rdata + mname, rname, zone, zone_size):
        return 0
    write16(out, pointer)
    write_fixed(out + 2, SOA, klass, ttl, size - 2 * zone_size + 4)
    out = write_below(out + 12, rdata, mname - zone_size, pointer)
    out = write_below(out, rdata + mname, rname - zone_size, pointer)
    memcpy(out, rdata + mname + rname, 20)
    return out + 20 - octets


cdef inline uint8_t *write_below(uint8_t *out, const uint8_t *labels, Py_ssize_t size, long pointer) noexcept nogil:
    """Write labels and where they go on; the octet after that."""
    memcpy(out, labels, size)
    write16(out + size, pointer)
    return out + size + 2


# --- EDNS ------------------------------------------------------------------------------------------------------------


cdef bytes pack_opt(edns, reply, long rcode, Py_ssize_t room):
    """The OPT record of a reply, without its options when they alone don't fit into ``room``."""
    if type(edns) is not Edns:
        raise ValueError
    cdef long size = number(edns.size, 65535)
    cdef long most = number(reply.limit, 1 << 30)
    if most and most < size:
        size = most
    cdef uint8_t octets[11]
    octets[0] = 0
    write16(octets + 1, OPT)
    write16(octets + 3, size)
    octets[5] = rcode >> 4
    octets[6] = 0
    write16(octets + 7, DO if edns.do else 0)
    write16(octets + 9, 0)
    cdef bytes options
    options_given = reply.options
    ede = reply.ede
    if options_given or ede:
        options = b"".join(
            [pack_option(code, data) for code, data in options_given] + [pack_ede(code, text) for code, text in ede]
        )
        if 11 + PyBytes_GET_SIZE(options) <= room:
            write16(octets + 9, PyBytes_GET_SIZE(options))
            return PyBytes_FromStringAndSize(<const char *> octets, 11) + options
    return PyBytes_FromStringAndSize(<const char *> octets, 11)


cdef bytes pack_option(code, data):
    cdef Py_ssize_t size
    octets_of(data, &size)
    if size > 65535:
        raise ValueError
    cdef uint8_t head[4]
    write16(head, number(code, 65535))
    write16(head + 2, size)
    return PyBytes_FromStringAndSize(<const char *> head, 4) + data


cdef bytes pack_ede(code, text):
    data = text.encode("utf-8", "replace")[:EDE_TEXT].decode("utf-8", "ignore").encode()
    cdef uint8_t info[2]
    write16(info, number(code, 65535))
    return pack_option(OPTION_EDE, PyBytes_FromStringAndSize(<const char *> info, 2) + data)
