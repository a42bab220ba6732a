"""What Cython must know of the C in ``native/``, where it is explained, and of the system's sockets."""

from libc.stdint cimport uint8_t, uint16_t, uint64_t

cdef extern from "native/table.h" nogil:
    enum: KD_SCOPE, KD_EXPIRED
    cdef struct kd_names:
        pass
    cdef struct kd_table:
        pass
    cdef struct kd_entry:
        pass
    cdef struct kd_scope:
        uint8_t octets[16]
        size_t size
    cdef struct kd_lease:
        double until
        int rotate, age
        const uint64_t *facts
        size_t fact_count
        const uint8_t *apex
        size_t apex_size
        kd_names *names
        void *owner
    cdef struct kd_due_t "kd_due":
        uint64_t times
        size_t query, reply
    cdef struct kd_counts:
        uint64_t misses, evicted, dropped
        size_t entries, octets, facts, young, old
    void kd_lock()
    void kd_unlock()
    kd_names *kd_names_new(unsigned depth)
    void kd_names_free(kd_names *names)
    size_t kd_names_count(const kd_names *names)
    int kd_names_add(kd_names *names, const uint8_t *name, size_t size)
    void kd_names_discard(kd_names *names, const uint8_t *name, size_t size)
    int kd_names_has(const kd_names *names, const uint8_t *name, size_t size)
    void kd_names_clear(kd_names *names)
    int kd_names_deny(const kd_names *names, const uint8_t *name, size_t size)
    kd_table *kd_table_new(size_t max_entries, size_t max_octets)
    void kd_table_free(kd_table *table)
    uint64_t kd_fact(const kd_table *table, const uint8_t *fact, size_t size)
    long kd_answer(kd_table *table, const kd_scope *scope, uint8_t *packet, size_t size, size_t room, double now)
    int kd_put(kd_table *table, const kd_scope *scope, const uint8_t *packet, size_t size, const uint8_t *reply,
               size_t reply_size, const kd_lease *lease, double now)
    void kd_expire(kd_table *table, const kd_scope *scope, const uint8_t *packet, size_t size, double now)
    void kd_forget(kd_table *table, uint64_t fact)
    void kd_clear(kd_table *table)
    void kd_count(const kd_table *table, kd_counts *counts)
    kd_entry *kd_dead(kd_table *table)
    kd_entry *kd_next(kd_table *table, kd_entry *entry)
    int kd_due(kd_entry *entry, unsigned *cursor, kd_due_t *due)
    void *kd_entry_owner(const kd_entry *entry)
    void kd_entry_free(kd_entry *entry)

cdef extern from "<netinet/in.h>" nogil:
    enum: AF_INET, AF_INET6, INET6_ADDRSTRLEN
    uint16_t ntohs(uint16_t)
    cdef struct in_addr:
        pass
    cdef struct in6_addr:
        pass
    cdef struct sockaddr:
        uint16_t sa_family
    cdef struct sockaddr_in:
        uint16_t sin_port
        in_addr sin_addr
    cdef struct sockaddr_in6:
        uint16_t sin6_port
        in6_addr sin6_addr

cdef extern from "<arpa/inet.h>" nogil:
    const char *inet_ntop(int family, const void *address, char *out, unsigned size)

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        int fd
    cdef struct epoll_event:
        unsigned events
        epoll_data_t data

cdef extern from "native/udp.h" nogil:
    enum: KD_BATCH, KD_PACKET
    ctypedef union kd_address:
        sockaddr any
        sockaddr_in v4
        sockaddr_in6 v6
    cdef struct kd_peer:
        kd_address address
    cdef struct kd_slot:
        kd_peer peer
        size_t size
        uint8_t *packet
    cdef struct kd_udp:
        uint64_t unsent
        int left
        kd_slot slots[64]
    cdef struct kd_thread:
        pass
    kd_udp *kd_udp_new(int fd, int wildcard, kd_table *table, const kd_scope *scope)
    void kd_udp_free(kd_udp *udp)
    int kd_udp_turn(kd_udp *udp, int flags)
    uint64_t kd_udp_unsent(const kd_udp *udp)
    void kd_udp_send(kd_udp *udp, int count)
    int kd_udp_send_one(int fd, const kd_peer *peer, const uint8_t *reply, size_t size)
    int kd_wait(int epoll, int timeout, kd_udp **direct, int direct_count, epoll_event *events, int most)
    kd_thread *kd_thread_start(kd_udp *udp, size_t queue, int wake)
    int kd_thread_take(kd_thread *thread, kd_peer *peer, uint8_t *packet)
    uint64_t kd_thread_overflows(kd_thread *thread)
    void kd_thread_stop(kd_thread *thread)
    void kd_thread_free(kd_thread *thread)
