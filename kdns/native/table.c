#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "entry.h"
#include "names.h"

#include <math.h>
#include <stdlib.h>

enum {
    TC = 2,
    UDP_MIN = 512,     /* what every client takes over UDP */
    DOOR = 1 << 17,    /* questions that can be remembered as having come once, in one octet each */
    PLENTY = 8,        /* there is plenty of room while less than one part in so many is taken */
    YOUNG_SHARE = 10,  /* the young ones give way first as long as they are more than one in so many */
    CHANCES = 32,      /* old entries in use that one eviction passes over */
    APEXES = 16        /* apexes with general entries at a time; further replies are kept for their own name only */
};

/* --- what a table consists of -------------------------------------------------------------------------------------- */

struct line {
    struct kd_entry end; /* only its older and newer: the row begins and ends here */
    size_t count;
};

/* A name with general entries. */
struct apex {
    size_t entries, size; /* 0 entries: the place is free */
    uint8_t name[LONGEST_NAME];
};

struct kd_table {
    size_t max_entries, max_octets;
    struct kd_secret secret;
    struct kd_entry **buckets;
    struct facts facts;
    size_t bucket_count, count, used;
    struct line young, old;
    struct kd_entry *dead;
    uint64_t misses, evicted, dropped;
    struct apex apexes[APEXES];
    unsigned apex_count; /* places that are or were in use */
    uint8_t *door;
};

/* --- finding ------------------------------------------------------------------------------------------------------- */

static struct kd_entry *find(const struct kd_table *t, const uint8_t *key, size_t size, uint64_t hash)
{
    struct kd_entry *entry = t->buckets[hash & (t->bucket_count - 1)];

    while (entry && (entry->hash != hash || entry->key_size != size || memcmp(entry->key, key, size)))
        entry = entry->next;
    return entry;
}

/* Whether the question's name is below the apex, and where the apex begins in it. */
static int is_below(const struct question *q, const struct apex *apex, size_t *begin)
{
    size_t at = 0;

    if (!apex->entries || apex->size >= q->name_size)
        return 0;
    *begin = q->name_size - apex->size;
    if (memcmp(q->name + *begin, apex->name, apex->size))
        return 0;
    while (at < *begin)
        at += 1 + (size_t)q->name[at];
    return at == *begin;
}

/* The general entry that answers for a name that has none of its own. */
static struct kd_entry *find_general(struct kd_table *t, struct question *q, const uint8_t *packet, size_t size)
{
    struct kd_entry *best = NULL;
    uint8_t key[KEY];

    for (unsigned at = 0; at < t->apex_count; at++) {
        const struct apex *apex = &t->apexes[at];
        struct kd_entry *entry;
        size_t begin, key_size;

        if ((best && best->apex->size >= apex->size) || !is_below(q, apex, &begin))
            continue;
        key_size = kd_general_key(q, key, apex->name, apex->size, packet, size);
        entry = find(t, key, key_size, kd_siphash(&t->secret, key, key_size));
        if (entry && kd_names_deny(entry->names, q->name, begin))
            best = entry;
    }
    return best;
}

/* The entry that answers a packet; NULL: there is none. */
static struct kd_entry *look_up(struct kd_table *t, struct question *q, const struct kd_scope *scope,
                                const uint8_t *packet, size_t size)
{
    struct kd_entry *entry;

    if (!kd_read_question(q, scope, packet, size))
        return NULL;
    entry = find(t, q->key, q->key_size, kd_siphash(&t->secret, q->key, q->key_size));
    return entry || !t->apex_count ? entry : find_general(t, q, packet, size);
}

/* Make the ages good for this second; 0: the entry is of no more use. */
static int renew(struct kd_entry *entry, double now)
{
    double ticks;

    if (now >= entry->until)
        return 0;
    ticks = floor(now - entry->origin);
    for (unsigned i = 0; i < entry->ttl_count; i++) {
        double left = entry->ttls[i].seconds - (ticks - (double)entry->born);
        uint32_t seconds = left < 0 ? 0 : left > 0xffffffff ? 0xffffffff : (uint32_t)left;
        uint8_t *at = entry->tail + entry->ttls[i].at;

        put16(at, seconds >> 16);
        put16(at + 2, seconds & 0xffff);
    }
    entry->fresh = fmin(entry->until, entry->origin + ticks + 1);
    return 1;
}

/* The tail of the reply, with the addresses in the order that is next. */
static void copy_tail(const struct kd_entry *entry, uint8_t *out)
{
    const uint8_t *tail = entry->tail;
    size_t first, turn, last;

    if (!entry->turn_count) {
        memcpy(out, tail, entry->tail_size);
        return;
    }
    first = entry->turns[0];
    last = entry->turns[entry->turn_count];
    turn = entry->turns[entry->hits % entry->turn_count];
    memcpy(out, tail, first);
    memcpy(out + first, tail + turn, last - turn);
    memcpy(out + first + (last - turn), tail + first, turn - first);
    memcpy(out + last, tail + last, entry->tail_size - last);
}

long kd_answer(struct kd_table *t, const struct kd_scope *scope, uint8_t *packet, size_t size, size_t room, double now)
{
    struct question q;
    struct kd_entry *entry = look_up(t, &q, scope, packet, size);
    size_t at = entry ? q.end + ROOT_TYPE_CLASS : 0;

    if (!entry || at > room || entry->tail_size > room - at) {
        t->misses++;
        return KD_MISS;
    }
    if (now >= entry->fresh && !renew(entry, now)) {
        t->misses++;
        return KD_EXPIRED;
    }
    entry->hits++;
    memcpy(packet + 2, entry->head, HEADER - 2);
    copy_tail(entry, packet + at);
    if (entry->by_length) {
        unsigned shift = (unsigned)(q.name_size - entry->name_size);

        entry->by_length[q.name_size]++;
        for (unsigned i = 0; i < entry->pointer_count; i++)
            put16(packet + at + entry->pointers[i], get16(packet + at + entry->pointers[i]) + shift);
    }
    return (long)(at + entry->tail_size);
}

/* --- keeping ------------------------------------------------------------------------------------------------------- */

static void append(struct line *line, struct kd_entry *entry)
{
    entry->newer = &line->end;
    entry->older = line->end.older;
    line->end.older->newer = entry;
    line->end.older = entry;
    line->count++;
}

static void take_out(struct line *line, struct kd_entry *entry)
{
    entry->older->newer = entry->newer;
    entry->newer->older = entry->older;
    line->count--;
}

static struct line *line_of(struct kd_table *t, const struct kd_entry *entry)
{
    return entry->young ? &t->young : &t->old;
}

static void remove_entry(struct kd_table *t, struct kd_entry *entry)
{
    struct kd_entry **at = &t->buckets[entry->hash & (t->bucket_count - 1)];

    while (*at != entry)
        at = &(*at)->next;
    *at = entry->next;
    kd_leave(&t->facts, entry);
    take_out(line_of(t, entry), entry);
    t->count--;
    t->used -= entry->octets;
    if (entry->apex)
        entry->apex->entries--;
    entry->next = t->dead;
    t->dead = entry;
}

static void remove_expired(struct kd_table *t, struct kd_entry *entry, double now)
{
    if (entry && now >= entry->until)
        remove_entry(t, entry);
}

/* Let one entry go: see "Room" in kdns/packetcache.py. */
static void evict(struct kd_table *t)
{
    struct kd_entry *entry;
    int chances = CHANCES;

    for (;;) {
        int young = t->young.count * YOUNG_SHARE > t->count || !t->old.count;
        struct line *line = young ? &t->young : &t->old;

        entry = line->end.newer;
        if (entry->hits == entry->seen || !chances)
            break;
        take_out(line, entry);
        entry->seen = entry->hits;
        entry->young = 0;
        append(&t->old, entry);
        chances -= !young;
    }
    remove_entry(t, entry);
    t->evicted++;
}

/* Whether there is plenty of room, or the question has come before; else it is remembered. */
static int admit(struct kd_table *t, const uint8_t *question, size_t size)
{
    uint64_t mark;
    uint8_t *place, sign;

    if (t->count * PLENTY < t->max_entries && t->used * PLENTY < t->max_octets)
        return 1;
    mark = kd_siphash(&t->secret, question, size);
    place = &t->door[mark % DOOR];
    sign = (uint8_t)(1 + (mark >> 20) % 255); /* 0: nothing has come yet */
    if (*place == sign)
        return 1;
    *place = sign;
    return 0;
}

static void grow_buckets(struct kd_table *t)
{
    size_t old = t->bucket_count;
    struct kd_entry **buckets = t->buckets, **larger = calloc(old * 2, sizeof *larger);

    if (!larger)
        return; /* longer chains */
    t->buckets = larger;
    t->bucket_count = old * 2;
    for (size_t i = 0; i < old; i++)
        for (struct kd_entry *entry = buckets[i], *next; entry; entry = next) {
            struct kd_entry **at = &t->buckets[entry->hash & (t->bucket_count - 1)];

            next = entry->next;
            entry->next = *at;
            *at = entry;
        }
    free(buckets);
}

static void insert(struct kd_table *t, struct kd_entry *entry)
{
    struct kd_entry **at;

    if (t->count >= t->bucket_count)
        grow_buckets(t);
    at = &t->buckets[entry->hash & (t->bucket_count - 1)];
    entry->next = *at;
    *at = entry;
    entry->young = 1;
    append(&t->young, entry);
    t->count++;
    t->used += entry->octets;
    while (t->count > t->max_entries || t->used > t->max_octets)
        evict(t);
}

/* The place of an apex; NULL: there are too many. */
static struct apex *apex_of(struct kd_table *t, const uint8_t *name, size_t size)
{
    struct apex *vacant = NULL;

    for (unsigned i = 0; i < t->apex_count; i++) {
        struct apex *apex = &t->apexes[i];

        if (apex->size == size && !memcmp(apex->name, name, size))
            return apex;
        if (!apex->entries)
            vacant = apex;
    }
    if (!vacant && t->apex_count < APEXES)
        vacant = &t->apexes[t->apex_count++];
    if (vacant) {
        vacant->entries = 0;
        vacant->size = size;
        memcpy(vacant->name, name, size);
    }
    return vacant;
}

/* Under which apex a reply can be kept: its own name must be among those that are denied, it must fit with any name,
 * all its pointers must lead into the apex part of the question, and the names in its data must be known.  NULL: keep
 * it for its own name only. */
static struct apex *general_apex(struct kd_table *t, const struct question *q, const uint8_t *reply, size_t size,
                                 const struct kd_lease *lease)
{
    struct apex wanted = {.entries = 1};
    const uint8_t *tail = reply + q->end + ROOT_TYPE_CLASS;
    size_t begin;

    /* The apex comes with its root octet, names in a question's key without. */
    if (!lease->apex || lease->apex_size < 1 || lease->apex_size > LONGEST_NAME || get16(reply + 6) || reply[2] & TC)
        return NULL;
    if (HEADER + LONGEST_NAME + 4 + (size - q->end - ROOT_TYPE_CLASS) > UDP_MIN)
        return NULL;
    wanted.size = lease->apex_size - 1;
    memcpy(wanted.name, lease->apex, wanted.size);
    if (!is_below(q, &wanted, &begin) || !kd_names_deny(lease->names, q->name, begin) ||
        kd_make_plan(reply, tail, size - q->end - ROOT_TYPE_CLASS, 0, 1))
        return NULL;
    for (unsigned i = 0; i < kd_plan.pointer_count; i++) {
        unsigned target = get16(tail + kd_plan.pointers[i]) & 0x3fff;

        if (target < HEADER + begin || target > q->end)
            return NULL;
    }
    return apex_of(t, wanted.name, wanted.size);
}

int kd_put(struct kd_table *t, const struct kd_scope *scope, const uint8_t *packet, size_t size, const uint8_t *reply,
           size_t reply_size, const struct kd_lease *lease, double now)
{
    struct question q;
    struct kd_lease kept = *lease;
    struct kd_entry *entry, *old;
    struct apex *apex;
    uint8_t general[KEY], *key = q.key;
    size_t key_size, tail_at;

    if (lease->until <= now || !kd_read_question(&q, scope, packet, size))
        return 0;
    tail_at = q.end + ROOT_TYPE_CLASS;
    if (reply_size < tail_at || reply_size > 65535 || lease->fact_count > UINT16_MAX ||
        memcmp(reply + HEADER, packet + HEADER, tail_at - HEADER))
        return 0;
    kept.rotate = lease->rotate && get16(reply + 6) > 1;
    if (kept.rotate && reply[2] & TC)
        return 0;
    key_size = q.key_size;
    apex = general_apex(t, &q, reply, reply_size, lease);
    if (apex) {
        key = general;
        key_size = kd_general_key(&q, general, apex->name, apex->size, packet, size);
        kept.fact_count = 0; /* what exists below the apex is its fact */
    } else if (kd_make_plan(reply, reply + tail_at, reply_size - tail_at, kept.rotate, 0))
        return 0;
    if (!admit(t, key + (q.name - q.key), (apex ? apex->size : q.name_size) + ROOT_TYPE_CLASS))
        return 0;
    entry = kd_make_entry(&q, key, key_size, reply, reply_size, &kept, apex != NULL, now);
    if (!entry || kd_stand(&t->facts, entry, kept.facts, kept.fact_count)) {
        free(entry);
        return 0;
    }
    entry->hash = kd_siphash(&t->secret, key, key_size);
    entry->apex = apex;
    entry->query_size = (uint32_t)size;
    old = find(t, key, key_size, entry->hash);
    if (apex) {
        apex->entries++;
        /* Threads cannot take out what they find to be expired; it would stand in front of this one for good. */
        remove_expired(t, find(t, q.key, q.key_size, kd_siphash(&t->secret, q.key, q.key_size)), now);
    }
    if (old)
        remove_entry(t, old);
    insert(t, entry);
    return 1;
}

void kd_expire(struct kd_table *t, const struct kd_scope *scope, const uint8_t *packet, size_t size, double now)
{
    struct question q;

    remove_expired(t, look_up(t, &q, scope, packet, size), now);
}

uint64_t kd_fact(const struct kd_table *t, const uint8_t *fact, size_t size)
{
    return kd_siphash(&t->secret, fact, size);
}

void kd_forget(struct kd_table *t, uint64_t hash)
{
    struct kd_entry *entry;

    while ((entry = kd_standing(&t->facts, hash)) != NULL) {
        remove_entry(t, entry);
        t->dropped++;
    }
}

void kd_clear(struct kd_table *t)
{
    while (t->young.count)
        remove_entry(t, t->young.end.newer);
    while (t->old.count)
        remove_entry(t, t->old.end.newer);
}

/* --- the table ----------------------------------------------------------------------------------------------------- */

struct kd_table *kd_table_new(size_t max_entries, size_t max_octets)
{
    struct kd_table *t = calloc(1, sizeof *t);

    if (!t)
        return NULL;
    t->max_entries = max_entries;
    t->max_octets = max_octets;
    t->bucket_count = KD_FIRST_BUCKETS;
    t->buckets = calloc(KD_FIRST_BUCKETS, sizeof *t->buckets);
    t->door = calloc(DOOR, 1);
    t->young.end.older = t->young.end.newer = &t->young.end;
    t->old.end.older = t->old.end.newer = &t->old.end;
    if (kd_facts_begin(&t->facts) || !t->buckets || !t->door || kd_draw_secret(&t->secret)) {
        kd_table_free(t);
        return NULL;
    }
    return t;
}

void kd_table_free(struct kd_table *t)
{
    free(t->buckets);
    kd_facts_end(&t->facts);
    free(t->door);
    free(t);
}

void kd_count(const struct kd_table *t, struct kd_counts *counts)
{
    *counts = (struct kd_counts){t->misses,  t->evicted,    t->dropped,     t->count,
                                 t->used,    t->facts.count, t->young.count, t->old.count};
}

struct kd_entry *kd_dead(struct kd_table *t)
{
    struct kd_entry *entry = t->dead;

    if (entry)
        t->dead = entry->next;
    return entry;
}

struct kd_entry *kd_next(struct kd_table *t, struct kd_entry *entry)
{
    struct kd_entry *next = entry ? entry->newer : t->young.end.newer;

    if (next == &t->young.end)
        next = t->old.end.newer;
    return next == &t->old.end ? NULL : next;
}
