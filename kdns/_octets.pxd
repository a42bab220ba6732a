"""Octets and names, for the compiled twins: nothing here reads or writes beyond the room that it is told."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.long cimport PyLong_AsLongLong, PyLong_CheckExact
from libc.stdint cimport int64_t, uint8_t

cdef enum:
    MAX_NAME = 255

cdef extern from *:
    """
    /* "A" to "Z" and nothing else; length octets are below them. */
    static const unsigned char kdns_fold[256] = {
    #define R8(n) n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7
    #define R32(n) R8(n), R8(n + 8), R8(n + 16), R8(n + 24)
        R32(0), R32(32),
        64, 97, 98, 99, 100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 110, 111,
        112, 113, 114, 115, 116, 117, 118, 119, 120, 121, 122, 91, 92, 93, 94, 95,
        R32(96), R32(128), R32(160), R32(192), R32(224)
    #undef R32
    #undef R8
    };
    """
    const uint8_t kdns_fold[256]


cdef inline long read16(const uint8_t *at) noexcept nogil:
    return at[0] << 8 | at[1]


cdef inline void write16(uint8_t *at, long value) noexcept nogil:
    at[0] = value >> 8 & 255
    at[1] = value & 255


cdef inline void write32(uint8_t *at, int64_t value) noexcept nogil:
    write16(at, value >> 16)
    write16(at + 2, value)


cdef inline int64_t number(object value, int64_t most) except -1:
    """A plain int from 0 to ``most``; ValueError or OverflowError for anything else."""
    if not PyLong_CheckExact(value):
        raise ValueError
    cdef int64_t found = PyLong_AsLongLong(value)
    if not 0 <= found <= most:
        raise ValueError
    return found


cdef inline const uint8_t *octets_of(object value, Py_ssize_t *size) except NULL:
    """The octets of plain bytes, which live as long as ``value``; ValueError for anything else."""
    if not PyBytes_CheckExact(value):
        raise ValueError
    size[0] = PyBytes_GET_SIZE(value)
    return <const uint8_t *> PyBytes_AS_STRING(value)


cdef inline bint folded_alike(const uint8_t *one, const uint8_t *other, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t at
    for at in range(size):
        if kdns_fold[one[at]] != kdns_fold[other[at]]:
            return False
    return True


cdef inline Py_ssize_t name_size(const uint8_t *name, Py_ssize_t room) noexcept nogil:
    """Octets of the uncompressed name that begins here, within ``room``; 0: it is none."""
    cdef Py_ssize_t at = 0
    cdef uint8_t length
    if room > MAX_NAME:
        room = MAX_NAME
    while at < room:
        length = name[at]
        if length == 0:
            return at + 1
        if length > 63:
            return 0
        at += 1 + length
    return 0


cdef inline bint is_name(const uint8_t *name, Py_ssize_t size) noexcept nogil:
    """Whether these octets are one uncompressed name and nothing else."""
    return size > 0 and name_size(name, size) == size


cdef inline bint is_under(
    const uint8_t *name, Py_ssize_t size, const uint8_t *zone, Py_ssize_t zone_octets
) noexcept nogil:
    """Whether a well-formed name is the zone or below it, whatever the case."""
    cdef Py_ssize_t at = 0
    while size - at > zone_octets:
        at += 1 + name[at]
    return size - at == zone_octets and folded_alike(name + at, zone, zone_octets)
