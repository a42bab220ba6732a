# cython: language_level=3
"""The compiled twin of `kdns.upstream.plain`; `kdns.upstream.native` chooses between them.

It knows no DNS policy and takes nothing that the Python twin would not take: replies of the everyday kind are read
here, and all others, the broken ones too, are left to `kdns.wire.parse_reply`.

What comes from outside is a `Packet`, and nobody looks at an octet of it before `has` has said that it is there.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, EINTR, errno
from libc.string cimport memcpy, memset

import os

from kdns.message import Edns, Record
from kdns.wire import FormatError, Message, parse_reply

cdef extern from "<sys/epoll.h>" nogil:
    cdef union epoll_data:
        int fd
    cdef struct epoll_event:
        unsigned int events
        epoll_data data
    int epoll_wait(int, epoll_event *, int, int)

cdef extern from "<sys/socket.h>" nogil:
    ctypedef unsigned int socklen_t
    cdef struct sockaddr:
        unsigned short sa_family
    ssize_t c_recv "recv" (int, void *, size_t, int)
    ssize_t c_send "send" (int, const void *, size_t, int)
    int c_connect "connect" (int, const sockaddr *, socklen_t)
    int c_getsockname "getsockname" (int, sockaddr *, socklen_t *)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    int AF_UNSPEC
    int AF_INET
    int AF_INET6

cdef extern from "<netinet/in.h>" nogil:
    cdef struct in_addr:
        unsigned int s_addr
    cdef struct in6_addr:
        unsigned char s6_addr[16]
    cdef struct sockaddr_in:
        unsigned short sin_family
        unsigned short sin_port
        in_addr sin_addr
    cdef struct sockaddr_in6:
        unsigned short sin6_family
        unsigned short sin6_port
        unsigned int sin6_flowinfo
        in6_addr sin6_addr
        unsigned int sin6_scope_id
    unsigned short htons(unsigned short)
    unsigned int htonl(unsigned int)

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int, const char *, void *)

cdef union address_of:
    sockaddr any
    sockaddr_in ip4
    sockaddr_in6 ip6

ctypedef unsigned char octet

cdef enum:
    HEADER = 12
    MAX_NAME = 255
    MAX_LABEL = 63
    POINTERS = 126      # limits.NAME_POINTERS
    LARGEST = 65535
    AT_ONCE = 64
    RECORDS = 64        # of a section; more are not everyday
    FIXED = 10          # type, class, TTL and length of a record

cdef enum:
    A = 1
    NS = 2
    CNAME = 5
    SOA = 6
    PTR = 12
    MX = 15
    TXT = 16
    AAAA = 28
    OPT = 41
    SVCB = 64
    HTTPS = 65
    CAA = 257
    IN = 1

cdef octet buffer[LARGEST]


# --- sockets ---------------------------------------------------------------------------------------------------------


def receive(epoll, dict watched):
    """What has come on watched sockets: one datagram of each that has any, as (what watches it, datagram or OSError)."""
    cdef epoll_event events[AT_ONCE]
    cdef int count = epoll_wait(epoll.fileno(), events, AT_ONCE, 0)
    cdef int index
    cdef ssize_t size
    cdef list out = []
    if count < 0 and errno != EINTR:
        raise OSError(errno, os.strerror(errno))
    for index in range(count):
        what = watched.get(events[index].data.fd)
        if what is None:
            continue
        size = c_recv(events[index].data.fd, buffer, LARGEST, MSG_DONTWAIT)
        if size >= 0:
            out.append((what, PyBytes_FromStringAndSize(<char *>buffer, size)))
        elif errno != EAGAIN and errno != EINTR:
            out.append((what, OSError(errno, os.strerror(errno))))
    return out


def send_all(list datagrams):
    """Send each datagram of (sender, datagram) on its socket, closed ones left out; what went wrong."""
    cdef int fd
    cdef bytes datagram
    cdef list failed = []
    for sender, datagram in datagrams:
        fd = sender.fd
        if fd >= 0 and c_send(
            fd, PyBytes_AS_STRING(datagram), PyBytes_GET_SIZE(datagram), MSG_DONTWAIT | MSG_NOSIGNAL
        ) < 0:
            failed.append((sender, OSError(errno, os.strerror(errno))))
    return failed


def renew(int fd, tuple address):
    """Give a connected socket another port, and nothing to read; False: that did not work, close it.

    Disconnecting gives the port back, and what had come in on it is read and forgotten before the kernel chooses the
    next one.
    """
    cdef address_of remote, nowhere
    cdef socklen_t size
    cdef int before, left
    memset(&remote, 0, sizeof(remote))
    memset(&nowhere, 0, sizeof(nowhere))
    nowhere.any.sa_family = AF_UNSPEC
    host = address[0].encode()
    if len(address) == 2:
        size = sizeof(remote.ip4)
        remote.ip4.sin_family = AF_INET
        remote.ip4.sin_port = htons(address[1])
        if inet_pton(AF_INET, host, &remote.ip4.sin_addr) != 1:
            return False
    else:
        size = sizeof(remote.ip6)
        remote.ip6.sin6_family = AF_INET6
        remote.ip6.sin6_port = htons(address[1])
        remote.ip6.sin6_flowinfo = htonl(address[2])
        remote.ip6.sin6_scope_id = address[3]
        if inet_pton(AF_INET6, host, &remote.ip6.sin6_addr) != 1:
            return False
    before = port_of(fd)
    if c_connect(fd, &nowhere.any, sizeof(nowhere.any)) < 0:
        return False
    for left in range(AT_ONCE):
        # Other errors are news about the old port, too, and datagrams may stand behind them.
        if c_recv(fd, buffer, LARGEST, MSG_DONTWAIT) < 0 and errno == EAGAIN:
            break
    else:
        return False
    return c_connect(fd, &remote.any, size) == 0 and port_of(fd) not in (-1, before)


cdef int port_of(int fd) noexcept:
    """The port of a socket, in network order; -1: it has none."""
    cdef address_of local
    cdef socklen_t size = sizeof(local)
    if c_getsockname(fd, &local.any, &size) < 0:
        return -1
    return local.ip4.sin_port if local.any.sa_family == AF_INET else local.ip6.sin6_port


# --- replies ---------------------------------------------------------------------------------------------------------

cdef struct Packet:
    const octet *octets
    Py_ssize_t size


cdef inline bint has(const Packet *packet, Py_ssize_t at, Py_ssize_t count) noexcept:
    """Whether so many octets are there."""
    return 0 <= at <= packet.size and 0 <= count <= packet.size - at


cdef inline unsigned int pair(const Packet *packet, Py_ssize_t at) noexcept:
    """16 bits; the caller has made sure of them."""
    return packet.octets[at] << 8 | packet.octets[at + 1]


def matches(bytes packet, bytes name, bytes kind):
    """Whether a packet with a whole header is a response to just this question: ``name`` folded, ``kind`` type and
    class."""
    cdef Packet reply = Packet(<const octet *>PyBytes_AS_STRING(packet), PyBytes_GET_SIZE(packet))
    cdef const octet *asked = <const octet *>PyBytes_AS_STRING(name)
    cdef const octet *about = <const octet *>PyBytes_AS_STRING(kind)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(name)
    cdef Py_ssize_t at
    cdef octet letter
    if PyBytes_GET_SIZE(kind) != 4 or not has(&reply, 0, HEADER) or not has(&reply, HEADER, size + 4):
        return False
    if reply.octets[2] & 0xF8 != 0x80 or pair(&reply, 4) != 1:
        return False
    for at in range(4):
        if reply.octets[HEADER + size + at] != about[at]:
            return False
    for at in range(size):
        letter = reply.octets[HEADER + at]
        if 65 <= letter <= 90:
            letter += 32
        if letter != asked[at]:
            return False
    return True


cdef Py_ssize_t read_name(const Packet *packet, Py_ssize_t at, octet *out, Py_ssize_t *length) noexcept:
    """The name at ``at``, uncompressed, into MAX_NAME octets; where it ends, or -1: it is not well-formed."""
    cdef Py_ssize_t start = at, end = -1, size = 0, target
    cdef int hops = 0
    cdef unsigned int label
    while True:
        if not has(packet, at, 1):
            return -1
        label = packet.octets[at]
        if label <= MAX_LABEL:
            if not has(packet, at, 1 + label) or size + 1 + label > MAX_NAME:
                return -1
            memcpy(out + size, packet.octets + at, 1 + label)
            size += 1 + label
            at += 1 + label
            if label == 0:
                break
        elif label >= 192:
            if not has(packet, at, 2) or hops == POINTERS:
                return -1
            target = (label & 63) << 8 | packet.octets[at + 1]
            # Backwards, before what has been read of the name last: so this ends.
            if not HEADER <= target < start:
                return -1
            if end < 0:
                end = at + 2
            hops += 1
            start = at = target
        else:
            return -1
    length[0] = size
    return end if end >= 0 else at


cdef int names_in(unsigned int type, Py_ssize_t *skip, Py_ssize_t *tail) noexcept:
    """How many names the data of a type holds, and the octets before and behind them; -1: not an everyday type."""
    skip[0] = tail[0] = 0
    if type in (A, AAAA, TXT, SVCB, HTTPS, CAA):
        return 0
    if type in (NS, CNAME, PTR):
        return 1
    if type == MX:
        skip[0] = 2
        return 1
    if type == SOA:
        tail[0] = 20
        return 2
    return -1


cdef bytes read_data(const Packet *packet, unsigned int type, Py_ssize_t at, Py_ssize_t end):
    """Record data without compression; None: not an everyday type, or not well-formed."""
    cdef octet data[2 + 2 * MAX_NAME + 20]
    cdef Py_ssize_t skip, tail, size, length = 0
    cdef int count = names_in(type, &skip, &tail)
    if count < 0:
        return None
    if count == 0:
        return PyBytes_FromStringAndSize(<const char *>packet.octets + at, end - at)
    if skip > end - at:
        return None
    memcpy(data, packet.octets + at, skip)
    size = skip
    at += skip
    while count:
        count -= 1
        at = read_name(packet, at, data + size, &length)
        if at < 0 or at > end:
            return None
        size += length
    if end - at != tail:
        return None
    memcpy(data + size, packet.octets + at, tail)
    return PyBytes_FromStringAndSize(<const char *>data, size + tail)


cdef class _Section:
    """Reads records; ``at``: where, -1 when something is not of the everyday kind."""

    cdef Packet packet
    cdef Py_ssize_t at
    cdef bytes question
    cdef object edns
    cdef unsigned int extension

    cdef tuple read(self, unsigned int count, bint last):
        """The records of the next section; the OPT of the ``last`` one goes to ``edns``."""
        cdef list records
        if count == 0 or self.at < 0:
            return ()
        if count > RECORDS:
            self.at = -1
            return ()
        records = []
        while count and self.at >= 0:
            count -= 1
            record = self.record(last)
            if record is not None:
                records.append(record)
        return tuple(records)

    cdef object record(self, bint last):
        cdef const Packet *packet = &self.packet
        cdef octet name[MAX_NAME]
        cdef Py_ssize_t at = self.at, length = 0, end
        cdef unsigned int type, klass, size
        cdef unsigned long ttl
        cdef bytes owner, data
        self.at = -1
        if has(packet, at, 2) and pair(packet, at) == (0xC000 | HEADER):
            owner = self.question
            at += 2
        else:
            at = read_name(packet, at, name, &length)
            if at < 0:
                return None
            owner = PyBytes_FromStringAndSize(<char *>name, length)
        if not has(packet, at, FIXED):
            return None
        type, klass = pair(packet, at), pair(packet, at + 2)
        ttl = <unsigned long>pair(packet, at + 4) << 16 | pair(packet, at + 6)
        size = pair(packet, at + 8)
        at += FIXED
        end = at + size
        if not has(packet, at, size):
            return None
        if type == OPT:
            # One with options is none of the everyday kind.
            if not last or self.edns is not None or PyBytes_GET_SIZE(owner) != 1 or size:
                return None
            self.edns = Edns(klass, ttl & 0x8000 != 0, ())
            self.extension = ttl >> 24
            self.at = end
            return None
        if klass == IN and ((type == A and size != 4) or (type == AAAA and size != 16)):
            return None
        data = read_data(packet, type, at, end)
        if data is None:
            return None
        self.at = end
        return Record(owner, type, ttl if ttl < 0x80000000 else 0, data, klass)


def read_reply(bytes octets):
    """The Message in a packet; None: it is no whole, well-formed response."""
    message = everyday(octets)
    if message is None:
        try:
            message = parse_reply(octets)
        except FormatError:
            pass
    return message


cdef object everyday(bytes octets):
    """The Message in a reply of the everyday kind; None: it is another."""
    cdef _Section section = _Section.__new__(_Section)
    cdef octet name[MAX_NAME]
    cdef Py_ssize_t length = 0, at
    cdef unsigned int id, flags, type, klass
    section.packet = Packet(<const octet *>PyBytes_AS_STRING(octets), PyBytes_GET_SIZE(octets))
    if not has(&section.packet, 0, HEADER):
        return None
    id, flags = pair(&section.packet, 0), pair(&section.packet, 2)
    # A response to one question that was not truncated.
    if flags & 0x8200 != 0x8000 or pair(&section.packet, 4) != 1:
        return None
    at = read_name(&section.packet, HEADER, name, &length)
    if at < 0 or not has(&section.packet, at, 4):
        return None
    section.question = PyBytes_FromStringAndSize(<char *>name, length)
    type, klass = pair(&section.packet, at), pair(&section.packet, at + 2)
    section.at = at + 4
    answer = section.read(pair(&section.packet, 6), False)
    authority = section.read(pair(&section.packet, 8), False)
    additional = section.read(pair(&section.packet, 10), True)
    if section.at != section.packet.size:
        return None
    return Message(
        id, flags, section.question.lower(), section.question, type, klass, answer, authority, additional,
        section.edns, flags & 15 | section.extension << 4, (),
    )
