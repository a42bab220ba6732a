/*
 * Throws operations at the table of the packet cache (kdns/native/table.c) under ASan and UBSan.
 *
 * The invariant: whatever octets come in as packets, replies, leases and names, nothing is read or written outside its
 * block, an answer repeats the ID and the question of who asks and holds what was last put for that question, the
 * bounds hold, and in the end everything has been given back.
 *
 *   libFuzzer:  clang -g -O1 -fsanitize=fuzzer,address,undefined -DKD_FIRST_BUCKETS=2 -Ikdns/native tests/native/fuzz_table.c \
 *                   kdns/native/{table,entry,facts,question,plan,names}.c -lm
 *   without:    cc -g -O1 -fsanitize=address,undefined -DDRIVER …, which makes its inputs itself: fuzz [RUNS [SEED]]
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "table.h"

enum { ENTRIES = 24, OCTETS = 12000, LABELS = 5, ROOM = 65535, OWNED = 4096 };

#define DEMAND(truth) \
    do { \
        if (!(truth)) { \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #truth); \
            abort(); \
        } \
    } while (0)

struct input {
    const uint8_t *at, *end;
};

static uint8_t next(struct input *in)
{
    return in->at < in->end ? *in->at++ : 0;
}

static size_t copy(struct input *in, uint8_t *out, size_t size)
{
    size_t i;

    for (i = 0; i < size; i++)
        out[i] = next(in);
    return i;
}

static const char *const labels[LABELS] = {"\3web", "\3WEB", "\7default", "\3svc", "\2x\0"};

/* A name out of few labels, folded by chance only; returns its size with the root octet. */
static size_t name(struct input *in, uint8_t *out)
{
    size_t size = 0;

    for (unsigned count = next(in) % 4; count; count--) {
        const char *label = labels[next(in) % LABELS];
        size_t length = 1 + (size_t)label[0];

        memcpy(out + size, label, length);
        size += length;
    }
    out[size++] = 0;
    return size;
}

/* Where some label of the question's name begins, or its root octet. */
static size_t suffix(struct input *in, const uint8_t *packet)
{
    size_t at = 12;

    for (unsigned skip = next(in) % 3; skip && packet[at]; skip--)
        at += 1 + (size_t)packet[at];
    return at;
}

/* A query, mostly one that can be stored; returns its size. */
static size_t query(struct input *in, uint8_t *out)
{
    static const uint8_t opt[] = {0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0};
    unsigned kind = next(in);
    size_t size = 12;

    if (kind == 7)
        return copy(in, out, next(in));
    memset(out, 0, 12);
    out[0] = next(in);
    out[1] = next(in);
    out[2] = kind >> 3 & 1;
    out[5] = 1;
    size += name(in, out + size);
    memcpy(out + size, "\0\1\0\1", 4);
    out[size + 1] = kind >> 4 & 3;
    size += 4;
    if (kind % 8 > 3) {
        out[11] = 1;
        memcpy(out + size, opt, sizeof opt);
        size += sizeof opt;
        if (kind % 8 > 4) {
            unsigned length = next(in) % 24;

            out[size - 1] = (uint8_t)(4 + length);
            out[size++] = 0;
            out[size++] = kind % 8 > 5 ? 12 : 10;
            out[size++] = 0;
            out[size++] = (uint8_t)length;
            size += copy(in, out + size, length);
        }
    }
    if (next(in) % 64 == 15)
        out[next(in) % size] = next(in);
    return size;
}

/* The size of the question's part of a packet; 0: there is none. */
static size_t question(const uint8_t *packet, size_t size)
{
    size_t at = 12;

    while (at < size && packet[at])
        at += 1 + (size_t)packet[at];
    return at + 5 <= size ? at + 5 : 0;
}

/* A reply to a query: records of some kind, or anything; returns its size. */
static size_t reply(struct input *in, const uint8_t *packet, size_t size, uint8_t *out)
{
    static const uint8_t address[] = {0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 0, 0, 1};
    size_t at = question(packet, size);
    unsigned kind = next(in), answers = kind & 128 ? kind % 5 : 0;

    if (!at)
        return copy(in, out, size);
    memcpy(out, packet, at);
    memset(out + 6, 0, 6);
    out[2] |= 0x80;
    for (unsigned i = 0; i < answers; i++) {
        memcpy(out + at, address, sizeof address);
        out[at + sizeof address - 1] = (uint8_t)i;
        at += sizeof address;
    }
    out[7] = (uint8_t)answers;
    if (kind & 64) { /* a SOA whose names end in the question */
        uint8_t target = (uint8_t)suffix(in, packet);
        uint8_t soa[] = {0xc0, target, 0, 6, 0, 1, 0, 0, 0, 5, 0, 27, 2, 'n', 's', 0xc0, target, 0xc0, target};

        memcpy(out + at, soa, sizeof soa);
        memset(out + at + sizeof soa, 1, 20);
        at += sizeof soa + 20;
        out[9] = 1;
    }
    if (kind % 64 > 60)
        at += copy(in, out + at, next(in));
    if (next(in) % 32 == 15)
        out[next(in) % at] = next(in);
    return at;
}

static uint8_t last[1024]; /* the query whose reply was last kept */
static size_t last_size;
static unsigned owned; /* entries whose owner has not been given back */
static uint8_t owners[OWNED];

static void bury(struct kd_table *table)
{
    struct kd_entry *entry;

    while ((entry = kd_dead(table)) != NULL) {
        unsigned cursor = 0;
        struct kd_due due;
        uint8_t *owner = kd_entry_owner(entry);

        while (kd_due(entry, &cursor, &due))
            DEMAND(due.times && due.query >= 17 && due.reply >= 17);
        DEMAND(*owner == 1);
        *owner = 0;
        owned--;
        kd_entry_free(entry);
    }
}

static void put(struct input *in, struct kd_table *table, const struct kd_scope *scope, struct kd_names *names,
                double now)
{
    static uint8_t packet[ROOM], answer[ROOM], apex[256];
    uint64_t facts[4];
    unsigned how = next(in), owner = 0;
    size_t size = query(in, packet), reply_size = reply(in, packet, size, answer);
    struct kd_lease lease = {.until = how & 1 ? INFINITY : now + next(in) % 40 - 2, .rotate = how >> 1 & 1,
                             .age = how >> 2 & 1, .facts = facts, .fact_count = how >> 3 & 3};

    for (size_t i = 0; i < lease.fact_count; i++) {
        uint8_t fact = next(in) % 8;

        facts[i] = kd_fact(table, &fact, 1);
    }
    if (how & 32) {
        size_t end = question(packet, size);

        lease.apex = apex;
        lease.names = names;
        if (how & 64 || !end)
            lease.apex_size = name(in, apex);
        else {
            size_t at = suffix(in, packet);

            lease.apex_size = end - 4 - at;
            for (size_t i = 0; i < lease.apex_size; i++)
                apex[i] = (uint8_t)(packet[at + i] | (packet[at + i] >= 'A' && packet[at + i] <= 'Z' ? 32 : 0));
        }
    }
    while (owner < OWNED && owners[owner])
        owner++;
    DEMAND(owner < OWNED);
    lease.owner = &owners[owner];
    /* When room is scarce the first time is only remembered. */
    for (int times = how >> 7; times >= 0; times--)
        if (!owners[owner] && kd_put(table, scope, packet, size, answer, reply_size, &lease, now)) {
            owners[owner] = 1;
            owned++;
            memcpy(last, packet, size);
            last_size = size;
        }
}

static void ask(struct input *in, struct kd_table *table, const struct kd_scope *scope, double now)
{
    uint8_t asked[1024], *packet; /* the packet: in a block of its own, so that a step beyond is seen */
    unsigned how = next(in);
    size_t size = query(in, asked), end, room = how % 4 ? 4096 : size + next(in);
    long found;

    if (how & 64 && last_size) {
        size = last_size;
        memcpy(asked, last, size);
        for (size_t i = 12; how & 128 && i < size; i++)
            asked[i] ^= asked[i] >= 'a' && asked[i] <= 'z' ? next(in) & 32 : 0;
    }
    end = question(asked, size);

    packet = malloc(room < size ? size : room);
    DEMAND(packet);
    memcpy(packet, asked, size);
    found = kd_answer(table, scope, packet, size, room, now);
    if (found > 0) {
        DEMAND((size_t)found <= room && end && (size_t)found >= end);
        DEMAND(!memcmp(packet, asked, 2) && !memcmp(packet + 12, asked + 12, end - 12));
    } else if (found == KD_EXPIRED)
        kd_expire(table, scope, asked, size, now);
    free(packet);
}

static void check(struct kd_table *table)
{
    struct kd_counts counts;
    size_t seen = 0;

    kd_count(table, &counts);
    for (struct kd_entry *entry = kd_next(table, NULL); entry; entry = kd_next(table, entry))
        seen++;
    DEMAND(counts.entries <= ENTRIES && counts.octets <= OCTETS);
    DEMAND(seen == counts.entries && counts.young + counts.old == counts.entries && counts.entries == owned);
    DEMAND(counts.entries || (!counts.octets && !counts.facts));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input in = {data, data + size};
    struct kd_scope scopes[2] = {{"u", 1}, {"t", 1}};
    struct kd_table *table = kd_table_new(ENTRIES, OCTETS);
    struct kd_names *names = kd_names_new(2);
    uint8_t text[256];
    double now = 1000;

    DEMAND(table && names);
    last_size = 0;
    while (in.at < in.end) {
        unsigned what = next(&in);
        const struct kd_scope *scope = &scopes[what >> 7];
        uint8_t fact = what >> 4 & 7;

        switch (what % 16) {
        case 0: case 1: case 2: case 3:
            put(&in, table, scope, names, now);
            break;
        case 4:
            kd_forget(table, kd_fact(table, &fact, 1));
            break;
        case 5:
            if (!fact)
                kd_clear(table);
            break;
        case 6:
            size = name(&in, text) - 1;
            DEMAND(!kd_names_add(names, text, size) && kd_names_has(names, text, size));
            break;
        case 7:
            kd_names_discard(names, text, name(&in, text) - 1);
            break;
        case 8:
            now += next(&in) / 8.0;
            break;
        case 9:
            size = copy(&in, text, next(&in));
            kd_names_deny(names, text, size);
            break;
        default:
            ask(&in, table, scope, now);
        }
        bury(table);
        check(table);
    }
    kd_clear(table);
    bury(table);
    check(table);
    DEMAND(!owned);
    kd_names_free(names);
    kd_table_free(table);
    return 0;
}

#ifdef DRIVER
int main(int argc, char **argv)
{
    unsigned long runs = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000;
    uint64_t state = argc > 2 ? strtoul(argv[2], NULL, 10) : 1;
    uint8_t input[16384];

    for (unsigned long run = 0; run < runs; run++) {
        for (size_t i = 0; i < sizeof input; i++) {
            state = state * 6364136223846793005 + 1442695040888963407;
            input[i] = (uint8_t)(state >> 56);
        }
        LLVMFuzzerTestOneInput(input, sizeof input);
    }
    printf("%lu runs\n", runs);
    return 0;
}
#endif
