#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "udp.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { TURNS = 4 }; /* batches that are read from one socket before another has its turn */

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

struct kd_udp *kd_udp_new(int fd, int wildcard, struct kd_table *table, const struct kd_scope *scope)
{
    struct kd_udp *udp = calloc(1, sizeof *udp);

    if (!udp)
        return NULL;
    udp->fd = fd;
    udp->wildcard = wildcard;
    udp->table = table;
    udp->scope = *scope;
    udp->used = KD_BATCH;
    /* Pages that no batch has reached yet take no memory. */
    udp->memory = mmap(NULL, KD_BATCH * KD_PACKET, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (udp->memory == MAP_FAILED) {
        free(udp);
        return NULL;
    }
    for (int i = 0; i < KD_BATCH; i++)
        udp->slots[i].packet = udp->memory + i * KD_PACKET;
    return udp;
}

void kd_udp_free(struct kd_udp *udp)
{
    munmap(udp->memory, KD_BATCH * KD_PACKET);
    free(udp);
}

static void point(struct kd_udp *udp, int at, struct kd_slot *slot, size_t size)
{
    struct msghdr *head = &udp->messages[at].msg_hdr;

    udp->parts[at] = (struct iovec){slot->packet, size};
    head->msg_name = &slot->peer.address;
    head->msg_namelen = slot->peer.size;
    head->msg_iov = &udp->parts[at];
    head->msg_iovlen = 1;
    head->msg_control = slot->peer.control_size ? slot->peer.control : NULL;
    head->msg_controllen = slot->peer.control_size;
    head->msg_flags = 0;
}

/* The source address is to be kept, the interface is for the routing table to choose. */
static void keep_address(struct msghdr *head, struct kd_peer *peer)
{
    struct cmsghdr *control = CMSG_FIRSTHDR(head);

    peer->control_size = (uint16_t)head->msg_controllen;
    if (control && control->cmsg_level == IPPROTO_IP && control->cmsg_type == IP_PKTINFO) {
        struct in_pktinfo info;

        memcpy(&info, CMSG_DATA(control), sizeof info);
        info.ipi_ifindex = 0;
        memcpy(CMSG_DATA(control), &info, sizeof info);
    }
}

static int receive(struct kd_udp *udp, int flags)
{
    int count;

    for (int i = 0; i < udp->used; i++) {
        struct kd_peer *peer = &udp->slots[i].peer;

        peer->size = sizeof peer->address;
        peer->control_size = udp->wildcard ? KD_CONTROL : 0;
        point(udp, i, &udp->slots[i], KD_PACKET);
    }
    count = recvmmsg(udp->fd, udp->messages, KD_BATCH, flags, NULL);
    /* An ICMP error for an earlier reply, or a fault of this one read: the next datagram is another matter. */
    if (count < 0)
        count = 0;
    udp->used = count;
    for (int i = 0; i < count; i++) {
        struct kd_slot *slot = &udp->slots[i];

        slot->size = udp->messages[i].msg_len;
        slot->peer.size = udp->messages[i].msg_hdr.msg_namelen;
        if (udp->wildcard)
            keep_address(&udp->messages[i].msg_hdr, &slot->peer);
    }
    return count;
}

static void swap(struct kd_slot *one, struct kd_slot *other)
{
    struct kd_slot kept = *one;

    *one = *other;
    *other = kept;
}

static void send_slots(struct kd_udp *udp, int first, int end)
{
    int count = 0;

    for (int i = first; i < end; i++)
        if (udp->slots[i].size)
            point(udp, count++, &udp->slots[i], udp->slots[i].size);
    if (count > udp->used)
        udp->used = count;
    for (int sent = 0; sent < count;) {
        int more = sendmmsg(udp->fd, udp->messages + sent, (unsigned)(count - sent), MSG_DONTWAIT);

        if (more <= 0) {
            /* This one; the next may go elsewhere. */
            __atomic_fetch_add(&udp->unsent, 1, __ATOMIC_RELAXED);
            more = 1;
        }
        sent += more;
    }
}

uint64_t kd_udp_unsent(const struct kd_udp *udp)
{
    return __atomic_load_n(&udp->unsent, __ATOMIC_RELAXED);
}

void kd_udp_send(struct kd_udp *udp, int count)
{
    send_slots(udp, 0, count);
}

int kd_udp_turn(struct kd_udp *udp, int flags)
{
    double time;
    int left = 0;

    udp->left = 0;
    udp->count = receive(udp, flags);
    if (!udp->count)
        return 0;
    time = now();
    kd_lock();
    for (int i = 0; i < udp->count; i++) {
        struct kd_slot *slot = &udp->slots[i];
        long size = kd_answer(udp->table, &udp->scope, slot->packet, slot->size, KD_PACKET, time);

        if (size > 0)
            slot->size = (size_t)size;
        else if (i == left)
            left++;
        else
            swap(slot, &udp->slots[left++]);
    }
    kd_unlock();
    send_slots(udp, left, udp->count);
    udp->left = left;
    return udp->count;
}

int kd_udp_turns(struct kd_udp *udp, int flags)
{
    int all = 0;

    for (int i = 0; i < TURNS; i++) {
        int count = kd_udp_turn(udp, flags);

        all += count;
        if (count < 2 || udp->left)
            break;
    }
    return all;
}

int kd_udp_send_one(int fd, const struct kd_peer *peer, const uint8_t *reply, size_t size)
{
    struct iovec part = {(void *)reply, size};
    struct msghdr head = {.msg_name = (void *)&peer->address, .msg_namelen = peer->size, .msg_iov = &part,
                          .msg_iovlen = 1, .msg_controllen = peer->control_size};

    head.msg_control = peer->control_size ? (void *)peer->control : NULL;
    return sendmsg(fd, &head, MSG_DONTWAIT) < 0 ? -1 : 0;
}

int kd_wait(int epoll, int timeout, struct kd_udp *const *direct, int direct_count, struct epoll_event *events,
            int most)
{
    double end = timeout > 0 ? now() + timeout / 1e3 : 0;

    for (;;) {
        int kept = 0, count = epoll_wait(epoll, events, most, timeout);

        if (count <= 0)
            return count;
        for (int i = 0; i < count; i++) {
            int fd = events[i].data.fd;
            struct kd_udp *udp = fd < direct_count ? direct[fd] : NULL;

            if (udp && events[i].events == EPOLLIN && !udp->left && kd_udp_turns(udp, MSG_DONTWAIT) && !udp->left)
                continue;
            events[kept++] = events[i];
        }
        if (kept)
            return kept;
        if (timeout > 0) {
            double rest = (end - now()) * 1e3;

            timeout = rest > 0 ? (int)rest + 1 : 0;
        }
        if (!timeout)
            return 0;
    }
}
