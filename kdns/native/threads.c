#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "udp.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum { LAST_BATCHES = 64 }; /* limits.UDP_LAST_BATCHES */

/* A packet in the queue is its size, its peer, its octets. */
struct waiting {
    uint32_t size;
    struct kd_peer peer;
};

struct kd_thread {
    struct kd_udp *udp;
    pthread_t thread;
    int stop; /* an eventfd; -1: the thread has ended */
    int wake;
    pthread_mutex_t lock; /* for what follows */
    uint8_t *filling, *emptying; /* the queue: threads fill one half while Python empties the other */
    size_t room, filled;
    uint64_t overflows;
    /* Python's own */
    size_t taken, held;
};

static void push(struct kd_thread *thread, const struct kd_slot *slot)
{
    struct waiting head = {(uint32_t)slot->size, slot->peer};
    uint8_t *at = thread->filling + thread->filled;

    if (thread->room - thread->filled < sizeof head + slot->size) {
        thread->overflows++;
        return;
    }
    memcpy(at, &head, sizeof head);
    memcpy(at + sizeof head, slot->packet, slot->size);
    thread->filled += sizeof head + slot->size;
}

static void hand_over(struct kd_thread *thread)
{
    struct kd_udp *udp = thread->udp;
    uint64_t one = 1;
    int empty;

    if (!udp->left)
        return;
    pthread_mutex_lock(&thread->lock);
    empty = !thread->filled;
    for (int i = 0; i < udp->left; i++)
        push(thread, &udp->slots[i]);
    pthread_mutex_unlock(&thread->lock);
    udp->left = 0;
    /* It fails only when the counter is full, that is, when Python has been woken already. */
    if (empty && write(thread->wake, &one, sizeof one) < 0)
        return;
}

static void *serve(void *argument)
{
    struct kd_thread *thread = argument;
    struct pollfd ready[2] = {{thread->udp->fd, POLLIN, 0}, {thread->stop, POLLIN, 0}};

    while (!ready[1].revents) {
        if (poll(ready, 2, -1) < 0)
            continue;
        if (ready[0].revents && kd_udp_turns(thread->udp, MSG_DONTWAIT))
            hand_over(thread);
    }
    for (int i = 0; i < LAST_BATCHES && kd_udp_turn(thread->udp, MSG_DONTWAIT); i++)
        hand_over(thread);
    return NULL;
}

static int start(struct kd_thread *thread)
{
    sigset_t all, before;
    int error;

    /* Signals are the interpreter's. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread->thread, NULL, serve, thread);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

struct kd_thread *kd_thread_start(struct kd_udp *udp, size_t queue, int wake)
{
    struct kd_thread *thread = calloc(1, sizeof *thread);
    int error = ENOMEM;

    if (!thread)
        return NULL;
    thread->udp = udp;
    thread->wake = wake;
    thread->room = queue;
    pthread_mutex_init(&thread->lock, NULL);
    thread->filling = malloc(queue);
    thread->emptying = malloc(queue);
    thread->stop = eventfd(0, EFD_CLOEXEC);
    if (thread->stop < 0)
        error = errno;
    else if (thread->filling && thread->emptying)
        error = start(thread);
    if (!error)
        return thread;
    if (thread->stop >= 0)
        close(thread->stop);
    thread->stop = -1;
    kd_thread_free(thread);
    errno = error;
    return NULL;
}

/* Begin to empty what has been filled; 0: nothing has. */
static int turn_over(struct kd_thread *thread)
{
    uint8_t *emptied = thread->emptying;

    pthread_mutex_lock(&thread->lock);
    thread->held = thread->filled;
    thread->taken = 0;
    thread->emptying = thread->filling;
    thread->filling = emptied;
    thread->filled = 0;
    pthread_mutex_unlock(&thread->lock);
    return thread->held != 0;
}

int kd_thread_take(struct kd_thread *thread, struct kd_peer *peer, uint8_t *packet)
{
    struct waiting head;

    if (thread->taken == thread->held && !turn_over(thread))
        return -1;
    memcpy(&head, thread->emptying + thread->taken, sizeof head);
    thread->taken += sizeof head;
    *peer = head.peer;
    memcpy(packet, thread->emptying + thread->taken, head.size);
    thread->taken += head.size;
    return (int)head.size;
}

uint64_t kd_thread_overflows(struct kd_thread *thread)
{
    uint64_t overflows;

    pthread_mutex_lock(&thread->lock);
    overflows = thread->overflows;
    pthread_mutex_unlock(&thread->lock);
    return overflows;
}

void kd_thread_stop(struct kd_thread *thread)
{
    uint64_t one = 1;

    if (thread->stop < 0)
        return;
    while (write(thread->stop, &one, sizeof one) < 0 && errno == EINTR)
        ;
    pthread_join(thread->thread, NULL);
    close(thread->stop);
    thread->stop = -1;
}

void kd_thread_free(struct kd_thread *thread)
{
    kd_thread_stop(thread);
    pthread_mutex_destroy(&thread->lock);
    free(thread->filling);
    free(thread->emptying);
    free(thread);
}
