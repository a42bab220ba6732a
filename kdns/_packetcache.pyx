# cython: boundscheck=False, wraparound=False, initializedcheck=False
"""The compiled twin of `kdns.packetcache`, of the receive loops of `kdns.listen.udp` and of `kdns.denial.Existing`.

What the words mean is said there.  The work on octets is C without Python (``native/``): so threads can answer out of
the packet cache while the interpreter is busy, and a fuzzer can reach it.  Here is what needs objects: what is owed for
replays is paid, and what the packet cache does not know is put to the handler.
"""

import os
import socket

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy

from kdns import limits

from kdns._native cimport (
    AF_INET, AF_INET6, epoll_event, inet_ntop, kd_answer, KD_BATCH, kd_clear, kd_count, kd_counts, kd_dead, kd_due,
    kd_due_t, kd_entry, kd_entry_free, kd_entry_owner, kd_expire, KD_EXPIRED, kd_fact, kd_forget, kd_lease, kd_lock,
    kd_names, kd_names_add, kd_names_clear, kd_names_count, kd_names_deny, kd_names_discard, kd_names_free,
    kd_names_has, kd_names_new, kd_next, KD_PACKET, kd_peer, kd_put, KD_SCOPE, kd_scope, kd_slot, kd_table,
    kd_table_free, kd_table_new, kd_thread, kd_thread_free, kd_thread_overflows, kd_thread_start, kd_thread_stop,
    kd_thread_take, kd_udp, kd_udp_free, kd_udp_new, kd_udp_send, kd_udp_send_one, kd_udp_turn, kd_udp_unsent, kd_unlock,
    kd_wait, ntohs,
)

cdef int DONTWAIT = socket.MSG_DONTWAIT
cdef size_t LARGEST = 65535


cdef const uint8_t *octets(bytes value) except NULL:
    if value is None:
        raise TypeError("octets are wanted, not None")
    return <const uint8_t *>PyBytes_AS_STRING(value)


cdef int fill_scope(kd_scope *scope, bytes octets_) except -1:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(octets_)
    if size > KD_SCOPE:
        raise ValueError(f"a scope has at most {KD_SCOPE} octets, not {size}")
    memcpy(scope.octets, octets(octets_), size)
    scope.size = size
    return 0


cdef class Existing:
    """As `kdns.denial.Existing`."""

    cdef kd_names *names
    cdef readonly int depth

    def __cinit__(self, int depth):
        self.depth = depth
        self.names = kd_names_new(depth)
        if self.names == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.names != NULL:
            kd_names_free(self.names)

    def __len__(self):
        return kd_names_count(self.names)

    def __contains__(self, bytes name not None):
        return bool(kd_names_has(self.names, octets(name), PyBytes_GET_SIZE(name)))

    def add(self, bytes name not None):
        """A name has appeared."""
        cdef int failed
        kd_lock()
        failed = kd_names_add(self.names, octets(name), PyBytes_GET_SIZE(name))
        kd_unlock()
        if failed:
            raise MemoryError

    def discard(self, bytes name not None):
        """A name has gone."""
        kd_lock()
        kd_names_discard(self.names, octets(name), PyBytes_GET_SIZE(name))
        kd_unlock()

    def clear(self):
        """All names have gone."""
        kd_lock()
        kd_names_clear(self.names)
        kd_unlock()

    def denies(self, bytes relative not None):
        """Whether nothing can exist at this name."""
        return bool(kd_names_deny(self.names, octets(relative), PyBytes_GET_SIZE(relative)))


cdef class PacketCache:
    """As `kdns.packetcache.PacketCache`."""

    cdef kd_table *table
    cdef uint8_t *buffer
    cdef uint64_t *facts_
    cdef Py_ssize_t facts_room
    cdef readonly size_t max_entries, max_bytes
    cdef uint64_t misses_paid, evicted_paid, dropped_paid
    cdef bint settling
    cdef object _pay, _hits, _misses, _entries, _bytes, _evicted, _dropped

    def __cinit__(self, size_t max_entries, size_t max_bytes, metrics):
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self.table = kd_table_new(max_entries, max_bytes)
        self.buffer = <uint8_t *>malloc(LARGEST)
        if self.table == NULL or self.buffer == NULL:
            raise MemoryError

    def __init__(self, max_entries, max_bytes, metrics):
        from kdns.packetcache import Counts, pay

        self._pay = pay
        counts = Counts(metrics)
        self._hits, self._misses, self._entries = counts.hits, counts.misses, counts.entries
        self._bytes, self._evicted, self._dropped = counts.bytes, counts.evicted, counts.dropped
        metrics.before_scrape(self.settle)

    def __dealloc__(self):
        cdef kd_entry *entry
        if self.table != NULL:
            kd_clear(self.table)
            entry = kd_dead(self.table)
            while entry != NULL:
                release(entry)
                entry = kd_dead(self.table)
            kd_table_free(self.table)
        free(self.buffer)
        free(self.facts_)

    def __len__(self):
        return self.count().entries

    @property
    def lines(self):
        """Young and old entries."""
        cdef kd_counts counts = self.count()
        return counts.young, counts.old

    @property
    def facts(self):
        """How many facts something here stands on."""
        return self.count().facts

    def get(self, bytes scope not None, bytes packet not None, double now):
        """The whole reply to this packet, any packet; None: ask the chain."""
        cdef kd_scope within
        cdef Py_ssize_t size = PyBytes_GET_SIZE(packet)
        cdef long length
        fill_scope(&within, scope)
        if size > <Py_ssize_t>LARGEST:
            size = 0
        memcpy(self.buffer, octets(packet), size)
        kd_lock()
        length = kd_answer(self.table, &within, self.buffer, size, LARGEST, now)
        if length == KD_EXPIRED:
            kd_expire(self.table, &within, octets(packet), size, now)
        kd_unlock()
        if length > 0:
            return PyBytes_FromStringAndSize(<char *>self.buffer, length)
        if length == KD_EXPIRED:
            self.bury()
        return None

    def put(self, bytes scope not None, bytes packet not None, bytes reply not None, lease, double now, report=None):
        """Keep the reply to a packet as long as its lease says."""
        cdef kd_scope within
        cdef kd_lease kept
        cdef tuple facts = lease.facts, duties = lease.duties
        cdef tuple owner = None
        cdef Existing existing = None
        cdef Py_ssize_t i
        cdef int stored
        kept.until = lease.until
        if kept.until <= now:
            return
        fill_scope(&within, scope)
        kept.rotate, kept.age = lease.rotate, lease.age
        kept.facts, kept.fact_count = self.hashes(facts), len(facts)
        kept.apex, kept.apex_size, kept.names = NULL, 0, NULL
        denial = lease.denial
        if denial is not None and isinstance(denial.existing, Existing):
            existing = denial.existing
            apex = denial.apex
            kept.apex, kept.apex_size, kept.names = octets(apex), len(apex), existing.names
        if duties or report is not None or existing is not None:
            owner = (duties, report, existing)
        kept.owner = <void *>owner if owner is not None else NULL
        kd_lock()
        stored = kd_put(self.table, &within, octets(packet), PyBytes_GET_SIZE(packet), octets(reply),
                        PyBytes_GET_SIZE(reply), &kept, now)
        if stored and owner is not None:
            Py_INCREF(owner)
        kd_unlock()
        self.bury()

    def forget(self, facts):
        """Drop the replies that stand on one of these facts."""
        cdef uint64_t fact
        for octets_ in facts:
            fact = kd_fact(self.table, octets(octets_), PyBytes_GET_SIZE(octets_))
            kd_lock()
            kd_forget(self.table, fact)
            kd_unlock()
        self.bury()

    def settle(self):
        """Pay what is owed for all hits so far, so that every counter is up to date; runs before each scrape."""
        cdef kd_counts counts = self.count()
        cdef kd_entry *entry = kd_next(self.table, NULL)
        self._entries.value, self._bytes.value = counts.entries, counts.octets
        self._misses.value += counts.misses - self.misses_paid
        self._evicted.value += counts.evicted - self.evicted_paid
        self._dropped.value += counts.dropped - self.dropped_paid
        self.misses_paid, self.evicted_paid, self.dropped_paid = counts.misses, counts.evicted, counts.dropped
        if self.settling:
            return
        # Only this thread puts entries in and takes them out: the row is walked without the lock.  What is paid may
        # drop facts: then entries leave the row, but stay where they are and lead on, until all has been settled.
        self.settling = True
        try:
            while entry != NULL:
                self.pay(entry)
                entry = kd_next(self.table, entry)
        finally:
            self.settling = False
        self.bury()

    def clear(self):
        """Drop everything: the chain itself has changed."""
        kd_lock()
        kd_clear(self.table)
        kd_unlock()
        self.bury()

    cdef kd_counts count(self):
        cdef kd_counts counts
        kd_lock()
        kd_count(self.table, &counts)
        kd_unlock()
        return counts

    cdef uint64_t *hashes(self, tuple facts) except? NULL:
        """The facts as the table knows them."""
        cdef Py_ssize_t count = len(facts), i
        if count > self.facts_room:
            self.facts_ = <uint64_t *>realloc(self.facts_, count * sizeof(uint64_t))
            if self.facts_ == NULL:
                self.facts_room = 0
                raise MemoryError
            self.facts_room = count
        for i in range(count):
            fact = <bytes?>facts[i]
            self.facts_[i] = kd_fact(self.table, octets(fact), PyBytes_GET_SIZE(fact))
        return self.facts_

    cdef int bury(self) except -1:
        """Pay for and free the entries that have left the table."""
        cdef kd_entry *entry
        while not self.settling:
            kd_lock()
            entry = kd_dead(self.table)
            kd_unlock()
            if entry == NULL:
                break
            try:
                self.pay(entry)
            finally:
                release(entry)
        return 0

    cdef int pay(self, kd_entry *entry) except -1:
        """Settle what is owed for one entry."""
        cdef unsigned cursor = 0
        cdef kd_due_t due
        cdef int more
        cdef void *owner = kd_entry_owner(entry)
        cdef tuple owed
        while True:
            kd_lock()
            more = kd_due(entry, &cursor, &due)
            kd_unlock()
            if not more:
                return 0
            self._hits.value += due.times
            if owner == NULL:
                continue
            owed = <tuple>owner
            self._pay(owed[0], owed[1], due.times, due.query, due.reply)


cdef void release(kd_entry *entry):
    cdef void *owner = kd_entry_owner(entry)
    kd_entry_free(entry)
    if owner != NULL:
        Py_DECREF(<object>owner)


# --- UDP -------------------------------------------------------------------------------------------------------------


cdef class Back:
    """The way back to an asker, for an answer that comes later."""

    cdef kd_peer peer
    cdef Receiver receiver

    def send(self, bytes reply not None):
        """Send the reply; one that the kernel does not take is counted, one whose socket has gone is let go."""
        if self.receiver.closed:
            return
        if kd_udp_send_one(self.receiver.fd, &self.peer, octets(reply), PyBytes_GET_SIZE(reply)):
            self.receiver.udp.unsent += 1


cdef class Receiver:
    """Reads one UDP socket, answers what the packet cache knows, and puts everything else to the handler.

    ``handle(packet, peer, listener, scope)`` gives the reply's octets, None for silence, or something else: then
    ``late(that, back)`` is called, and ``back.send(reply)`` answers later.  The socket stays the caller's.

    ``queue`` octets, when not 0, start a native thread that reads the socket instead; what it leaves waits in a queue
    of that size until `drain` is called: whenever ``fileno()`` is readable.  Raises OSError when there is no thread to
    be had.
    """

    cdef int fd, wake
    cdef bint closed
    cdef PacketCache cache
    cdef bytes scope
    cdef object handle, late, listener
    cdef kd_udp *udp
    cdef kd_udp *threads_
    cdef kd_thread *thread
    cdef uint64_t overflown
    cdef str host
    cdef int host_size
    cdef uint8_t host_octets[16]

    def __cinit__(self, int fd, bint wildcard, PacketCache cache not None, bytes scope not None, handle, late,
                  listener, size_t queue=0):
        cdef kd_scope within
        fill_scope(&within, scope)
        self.fd, self.wake = fd, -1
        self.cache, self.scope, self.handle, self.late, self.listener = cache, scope, handle, late, listener
        self.udp = kd_udp_new(fd, wildcard, cache.table, &within)
        if self.udp == NULL:
            raise MemoryError
        if queue:
            self.threads_ = kd_udp_new(fd, wildcard, cache.table, &within)
            if self.threads_ == NULL:
                raise MemoryError
            self.wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self.thread = kd_thread_start(self.threads_, queue, self.wake)
            if self.thread == NULL:
                PyErr_SetFromErrno(OSError)

    def __dealloc__(self):
        self.end_thread()
        if self.threads_ != NULL:
            kd_udp_free(self.threads_)
        if self.udp != NULL:
            kd_udp_free(self.udp)

    cdef int end_thread(self) except -1:
        """Give back the thread, its queue and what wakes us; without one nothing is done."""
        cdef kd_thread *thread = self.thread
        if thread != NULL:
            self.thread = NULL
            with nogil:
                kd_thread_stop(thread)
            self.overflown += kd_thread_overflows(thread)
            kd_thread_free(thread)
        if self.wake >= 0:
            os.close(self.wake)
            self.wake = -1
        return 0

    def fileno(self):
        """What is readable when `drain` has something to do."""
        return self.fd if self.thread == NULL else self.wake

    @property
    def unsent(self):
        """Replies that the kernel would not take."""
        return kd_udp_unsent(self.udp) + (kd_udp_unsent(self.threads_) if self.threads_ != NULL else 0)

    @property
    def overflows(self):
        """Packets that found the queue full."""
        return self.overflown + (kd_thread_overflows(self.thread) if self.thread != NULL else 0)

    def drain(self):
        """Read and answer one batch; whether there was anything."""
        if self.closed:
            return False
        return self.turn() if self.thread == NULL else self.drain_queue()

    def stop(self):
        """Answer what the socket holds, then read no more; late answers can still be sent.

        Again: answer what has come since.
        """
        if self.closed:
            return
        if self.thread != NULL:
            with nogil:
                kd_thread_stop(self.thread)
            while self.drain_queue():
                pass
        for _ in range(limits.UDP_LAST_BATCHES):
            if not self.turn():
                return

    def send_through(self, sock):
        """Send late answers through another socket of the same address; `stop` came before."""
        self.fd = sock.fileno()

    def close(self):
        """Read and send nothing any more: the socket is about to be closed.  Gives back all but the counts."""
        self.closed = True
        self.end_thread()

    cdef bint turn(self) except -1:
        """Answer what is left of the last batch, or read one; whether there was anything."""
        cdef int count = self.udp.left
        if not count:
            with nogil:
                count = kd_udp_turn(self.udp, DONTWAIT)
        self.ask()
        return count > 0

    cdef bint drain_queue(self) except -1:
        cdef int count = 0, size
        cdef kd_slot *slot
        try:
            os.eventfd_read(self.wake)
        except BlockingIOError:
            pass
        while count < KD_BATCH:
            slot = &self.udp.slots[count]
            size = kd_thread_take(self.thread, &slot.peer, slot.packet)
            if size < 0:
                break
            slot.size = size
            count += 1
        self.udp.left = count
        if count == KD_BATCH:
            os.eventfd_write(self.wake, 1)
        self.ask()
        return count > 0

    cdef int ask(self) except -1:
        """Put to the handler what is left of the batch, and send the replies; raises what went wrong first."""
        cdef int count = self.udp.left, done = 0
        broken = None
        try:
            while done < count:
                done += 1
                try:
                    self.ask_one(&self.udp.slots[done - 1])
                except Exception as error:
                    # It costs this one packet.  The others of the batch have left the socket: nobody else has them.
                    broken = broken or error
        finally:
            # Beyond these, slots hold queries.
            self.udp.left = 0
            kd_udp_send(self.udp, done)
        if broken is not None:
            raise broken
        return 0

    cdef int ask_one(self, kd_slot *slot) except -1:
        """Put one packet to the handler, and its reply in the packet's place."""
        cdef Py_ssize_t size
        packet = PyBytes_FromStringAndSize(<char *>slot.packet, slot.size)
        slot.size = 0
        reply = self.handle(packet, self.peer(&slot.peer), self.listener, self.scope)
        if reply is None:
            return 0
        if not isinstance(reply, bytes):
            self.late(reply, self.back(&slot.peer))
            return 0
        size = PyBytes_GET_SIZE(reply)
        if size <= KD_PACKET:
            memcpy(slot.packet, octets(reply), size)
            slot.size = size
        else:
            self.back(&slot.peer).send(reply)
        return 0

    cdef Back back(self, kd_peer *peer):
        cdef Back back = Back.__new__(Back)
        back.peer, back.receiver = peer[0], self
        return back

    cdef tuple peer(self, kd_peer *peer):
        """(host, port) of an asker; the same host as the last time need not be spelled again."""
        cdef bint v6 = peer.address.any.sa_family == AF_INET6
        cdef const void *address = <void *>&peer.address.v6.sin6_addr if v6 else <void *>&peer.address.v4.sin_addr
        cdef int size = 16 if v6 else 4
        cdef char text[64]
        if self.host_size != size or memcmp(self.host_octets, address, size):
            inet_ntop(AF_INET6 if v6 else AF_INET, address, text, sizeof(text))
            self.host = text.decode("ascii")
            memcpy(self.host_octets, address, size)
            self.host_size = size
        return self.host, ntohs(peer.address.v6.sin6_port if v6 else peer.address.v4.sin_port)


cdef class Direct:
    """Serves UDP sockets from within ``epoll_wait``, so that a hit costs the event loop nothing."""

    cdef dict receivers
    cdef kd_udp **table
    cdef int room

    def __cinit__(self):
        self.receivers = {}

    def __dealloc__(self):
        free(self.table)

    def attach(self, Receiver receiver):
        """Serve a receiver's socket, which the loop must watch for reading; not one with a thread of its own."""
        cdef int fd = receiver.fd, i
        if fd >= self.room:
            table = <kd_udp **>realloc(self.table, (fd + 1) * sizeof(kd_udp *))
            if table == NULL:
                raise MemoryError
            for i in range(self.room, fd + 1):
                table[i] = NULL
            self.table, self.room = table, fd + 1
        self.receivers[fd] = receiver
        self.table[fd] = receiver.udp

    def detach(self, Receiver receiver):
        """Leave the socket to the loop."""
        if self.receivers.get(receiver.fd) is receiver:
            del self.receivers[receiver.fd]
            self.table[receiver.fd] = NULL

    def wait(self, int epoll, int timeout, int most):
        """``epoll.poll``, but for what is answered on the way: [(file descriptor, events)].

        ``timeout`` in milliseconds, -1: for ever.  Raises OSError.
        """
        cdef epoll_event events[64]
        cdef int count, i
        if most > 64:
            most = 64
        with nogil:
            count = kd_wait(epoll, timeout, self.table, self.room, events, most)
        if count < 0:
            PyErr_SetFromErrno(OSError)
        return [(events[i].data.fd, events[i].events) for i in range(count)]
