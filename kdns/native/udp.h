/*
 * UDP without the interpreter: read a batch of datagrams, answer out of the packet cache, leave the rest to Python.
 * The compiled twin of the receive loops in kdns/listen/udp.py.
 */
#ifndef KD_UDP_H
#define KD_UDP_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include "table.h"

enum {
    KD_BATCH = 64,     /* datagrams that are read at once */
    KD_PACKET = 4096,  /* octets of a query that are read, and of a reply that is sent from here (limits.UDP_QUERY) */
    KD_CONTROL = 64    /* room for one in_pktinfo or in6_pktinfo */
};

/* Whom to answer, and from which of our addresses. */
struct kd_peer {
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address;
    socklen_t size;
    uint16_t control_size;
    _Alignas(8) uint8_t control[KD_CONTROL];
};

struct kd_slot {
    struct kd_peer peer;
    size_t size;      /* octets of the query, then of the reply; 0: nothing is to be sent */
    uint8_t *packet;  /* KD_PACKET octets */
};

/* One socket with the batch that was last read from it. */
struct kd_udp {
    int fd;
    int wildcard; /* answers must say from which address they come */
    struct kd_table *table;
    struct kd_scope scope;
    uint64_t unsent; /* replies that the kernel would not take; others ask kd_udp_unsent */
    int count;       /* slots of the batch */
    int left;        /* of these, so many at the front wait for Python */
    int used;        /* headers at the front that the kernel or a reply has changed since they were made to read */
    struct kd_slot slots[KD_BATCH];
    struct mmsghdr messages[KD_BATCH];
    struct iovec parts[KD_BATCH];
    uint8_t *memory;
};

/* NULL: no memory.  The socket stays the caller's. */
struct kd_udp *kd_udp_new(int fd, int wildcard, struct kd_table *table, const struct kd_scope *scope);
void kd_udp_free(struct kd_udp *udp);
/* Reads a batch, answers what the packet cache knows, leaves the others in the first `left` slots.  Returns how many
 * datagrams came; 0: there are none.  `flags` for recvmmsg. */
int kd_udp_turn(struct kd_udp *udp, int flags);
/* Turns for as long as more is likely to wait: asking the kernel whether it does costs as much as reading it, and where
 * one datagram came alone, its sender waits for the answer.  Ends with the first batch that leaves something to Python.
 * Returns how many datagrams came in all. */
int kd_udp_turns(struct kd_udp *udp, int flags);
/* Sends the replies that stand in the first `count` slots. */
void kd_udp_send(struct kd_udp *udp, int count);
/* Replies that the kernel would not take; any thread may ask. */
uint64_t kd_udp_unsent(const struct kd_udp *udp);
/* Sends one reply; 0, or -1 when the kernel does not take it. */
int kd_udp_send_one(int fd, const struct kd_peer *peer, const uint8_t *reply, size_t size);

/* epoll_wait that serves the sockets in `direct` (by file descriptor, up to `direct_count`) itself as long as it can,
 * and returns when something is to be done for Python: another descriptor is ready, a direct one has packets left, or
 * the time (milliseconds, -1: for ever) is over.  Returns the number of events, or -1 with errno. */
int kd_wait(int epoll, int timeout, struct kd_udp *const *direct, int direct_count, struct epoll_event *events,
            int most);

/* --- native receive threads (multisocket) -------------------------------------------------------------------------- */

struct kd_thread;

/* Starts a thread that serves the socket until kd_thread_stop.  What it leaves to Python waits in a queue of at most
 * `queue` octets; `wake`, an eventfd, is written to when something comes into the empty queue.  NULL with errno: it
 * could not be started. */
struct kd_thread *kd_thread_start(struct kd_udp *udp, size_t queue, int wake);
/* Takes the next packet out of the queue: its octets in `packet` (KD_PACKET of them), its size, or -1: none. */
int kd_thread_take(struct kd_thread *thread, struct kd_peer *peer, uint8_t *packet);
/* How many packets found the queue full and were let go. */
uint64_t kd_thread_overflows(struct kd_thread *thread);
/* Answers what the socket holds, then ends the thread; the queue stays.  May be called twice. */
void kd_thread_stop(struct kd_thread *thread);
void kd_thread_free(struct kd_thread *thread);

#endif
