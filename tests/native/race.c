/*
 * Native receive threads (kdns/native/threads.c) answer over real sockets while the main thread puts, forgets, clears
 * and settles, as the interpreter does: under TSan, so that every access the lock does not order is found.
 *
 * The invariant: every query is answered by a thread or handed over, none twice, and TSan has nothing to say.
 *
 *   cc -g -O1 -fsanitize=thread -Ikdns/native tests/native/race.c kdns/native/[a-z]*.c -lm -lpthread
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "udp.h"

enum { THREADS = 2, NAMES = 8, BURST = 32, PATIENCE = 5000 /* milliseconds */ };

static const struct kd_scope scope = {"u", 1};

static size_t query(uint8_t *out, unsigned number)
{
    static const uint8_t head[12] = {0, 0, 1, 0, 0, 1};

    memcpy(out, head, sizeof head);
    out[12] = 1;
    out[13] = (uint8_t)('a' + number);
    memcpy(out + 14, "\0\0\1\0\1", 5);
    return 19;
}

static void put(struct kd_table *table, unsigned number)
{
    uint8_t packet[64], reply[64], fact = (uint8_t)number;
    uint64_t hash = kd_fact(table, &fact, 1);
    struct kd_lease lease = {.until = 1e18, .age = 1, .facts = &hash, .fact_count = 1};
    size_t size = query(packet, number);

    memcpy(reply, packet, size);
    reply[2] |= 0x80;
    kd_lock();
    kd_put(table, &scope, packet, size, reply, size, &lease, 0);
    kd_unlock();
}

static void settle(struct kd_table *table)
{
    struct kd_entry *entry;
    struct kd_due due;

    for (entry = kd_next(table, NULL); entry; entry = kd_next(table, entry)) {
        unsigned cursor = 0;

        kd_lock();
        while (kd_due(entry, &cursor, &due))
            ;
        kd_unlock();
    }
    for (;;) {
        kd_lock();
        entry = kd_dead(table);
        kd_unlock();
        if (!entry)
            return;
        kd_entry_free(entry);
    }
}

static void forget(struct kd_table *table, unsigned number)
{
    uint8_t fact = (uint8_t)number;

    kd_lock();
    kd_forget(table, kd_fact(table, &fact, 1));
    kd_unlock();
    settle(table);
}

static int open_server(struct sockaddr_in *address)
{
    socklen_t size = sizeof *address;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);

    address->sin_family = AF_INET;
    address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || bind(fd, (struct sockaddr *)address, sizeof *address) ||
        getsockname(fd, (struct sockaddr *)address, &size))
        exit(2);
    return fd;
}

/* Count what has come back, and what the threads have left to us. */
static void collect(struct kd_thread **threads, const int *clients, unsigned *answered, unsigned *handed)
{
    struct pollfd ready[THREADS];
    struct kd_peer peer;
    uint8_t packet[KD_PACKET];

    for (int i = 0; i < THREADS; i++) {
        ready[i] = (struct pollfd){clients[i], POLLIN, 0};
        while (kd_thread_take(threads[i], &peer, packet) >= 0)
            ++*handed;
        while (recv(clients[i], packet, sizeof packet, MSG_DONTWAIT) > 0)
            ++*answered;
    }
    poll(ready, THREADS, 1);
}

int main(int argc, char **argv)
{
    unsigned rounds = argc > 1 ? (unsigned)atoi(argv[1]) : 300, answered = 0, handed = 0, asked = 0;
    struct kd_table *table = kd_table_new(100, 1 << 20);
    struct kd_thread *threads[THREADS];
    struct kd_udp *sockets[THREADS];
    int servers[THREADS], clients[THREADS], wake = eventfd(0, EFD_NONBLOCK);
    uint8_t packet[64];

    for (int i = 0; i < THREADS; i++) {
        struct sockaddr_in address = {0};

        servers[i] = open_server(&address);
        clients[i] = socket(AF_INET, SOCK_DGRAM, 0);
        if (connect(clients[i], (struct sockaddr *)&address, sizeof address))
            return 2;
        sockets[i] = kd_udp_new(servers[i], 0, table, &scope);
        threads[i] = kd_thread_start(sockets[i], 1 << 20, wake);
        if (!threads[i])
            return 2;
    }
    for (unsigned round = 0; round < rounds; round++) {
        for (unsigned i = 0; i < BURST; i++)
            if (send(clients[i % THREADS], packet, query(packet, (round + i) % NAMES), 0) > 0)
                asked++;
        put(table, round % NAMES);
        settle(table);
        if (round % 3 == 0)
            forget(table, round * 5 % NAMES);
        /* A little is always under way, but never more than the sockets hold. */
        for (int wait = 0; wait < PATIENCE && asked - answered - handed > 2 * BURST; wait++)
            collect(threads, clients, &answered, &handed);
    }
    for (int wait = 0; wait < PATIENCE && asked != answered + handed; wait++)
        collect(threads, clients, &answered, &handed);
    for (int i = 0; i < THREADS; i++) {
        kd_thread_stop(threads[i]);
        kd_thread_free(threads[i]);
        kd_udp_free(sockets[i]);
        close(servers[i]);
        close(clients[i]);
    }
    kd_lock();
    kd_clear(table);
    kd_unlock();
    settle(table);
    kd_table_free(table);
    close(wake);
    printf("%u asked, %u answered, %u handed over\n", asked, answered, handed);
    return asked == answered + handed ? 0 : 1;
}
