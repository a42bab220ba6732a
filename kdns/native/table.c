#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "names.h"
#include "plan.h"
#include "question.h"

#include <math.h>
#include <stdlib.h>

#ifndef KD_FIRST_BUCKETS
#define KD_FIRST_BUCKETS 1024 /* a power of two; both kinds of buckets double when there are more things than buckets */
#endif

enum {
    TC = 2,
    UDP_MIN = 512,     /* what every client takes over UDP */
    DOOR = 1 << 17,    /* questions that can be remembered as having come once, in one octet each */
    PLENTY = 8,        /* there is plenty of room while less than one part in so many is taken */
    YOUNG_SHARE = 10,  /* the young ones give way first as long as they are more than one in so many */
    CHANCES = 32,      /* old entries in use that one eviction passes over */
    APEXES = 16,       /* apexes with general entries at a time; further replies are kept for their own name only */
    MALLOC = 16        /* what the allocator takes beside each block */
};

/* --- what a table consists of -------------------------------------------------------------------------------------- */

/* Something in the world that entries stand on. */
struct fact {
    uint64_t hash;
    struct fact *next; /* in its bucket */
    struct link *first;
};

/* One entry stands on one fact. */
struct link {
    struct kd_entry *entry;
    struct fact *fact;
    struct link *before, *next;
};

struct kd_entry {
    struct kd_entry *next; /* in its bucket, or among the dead */
    struct kd_entry *older, *newer;
    struct apex *apex;     /* of a general entry */
    uint64_t hash;
    uint64_t hits, paid, seen;
    double until, fresh, origin;
    int64_t born;
    void *owner;
    struct kd_names *names;
    uint64_t *by_length;   /* general: hits by the octets of the name, since they were last paid */
    struct link *links;
    struct ttl *ttls;
    uint32_t *turns;       /* where the addresses begin, and where the last one ends */
    uint32_t *pointers;    /* general: where in the tail a pointer into the question stands */
    uint8_t *key, *head, *tail;
    size_t octets;         /* that count against the bound */
    uint32_t tail_size;
    uint32_t query_size, reply_size;
    uint16_t key_size, name_size;
    uint16_t link_count, ttl_count, turn_count, pointer_count;
    uint8_t young;
};

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
    struct fact **facts;
    size_t bucket_count, fact_buckets, fact_count, count, used;
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

/* --- facts --------------------------------------------------------------------------------------------------------- */

uint64_t kd_fact(const struct kd_table *t, const uint8_t *fact, size_t size)
{
    return kd_siphash(&t->secret, fact, size);
}

static struct fact **find_fact(const struct kd_table *t, uint64_t hash)
{
    struct fact **at = &t->facts[hash & (t->fact_buckets - 1)];

    while (*at && (*at)->hash != hash)
        at = &(*at)->next;
    return at;
}

static void grow_facts(struct kd_table *t)
{
    size_t old = t->fact_buckets;
    struct fact **facts = t->facts, **larger = calloc(old * 2, sizeof *larger);

    if (!larger)
        return; /* longer chains */
    t->facts = larger;
    t->fact_buckets = old * 2;
    for (size_t i = 0; i < old; i++)
        for (struct fact *fact = facts[i], *next; fact; fact = next) {
            struct fact **at = &t->facts[fact->hash & (t->fact_buckets - 1)];

            next = fact->next;
            fact->next = *at;
            *at = fact;
        }
    free(facts);
}

/* Let an entry stand on a fact; -1: no memory. */
static int stand(struct kd_table *t, struct kd_entry *entry, struct link *link, uint64_t hash)
{
    struct fact **at = find_fact(t, hash), *fact = *at;

    if (!fact) {
        fact = calloc(1, sizeof *fact);
        if (!fact)
            return -1;
        fact->hash = hash;
        *at = fact;
        if (++t->fact_count > t->fact_buckets)
            grow_facts(t);
    }
    link->entry = entry;
    link->fact = fact;
    link->before = NULL;
    link->next = fact->first;
    if (fact->first)
        fact->first->before = link;
    fact->first = link;
    return 0;
}

static void leave(struct kd_table *t, struct link *link)
{
    struct fact *fact = link->fact;

    if (link->next)
        link->next->before = link->before;
    if (link->before)
        link->before->next = link->next;
    else
        fact->first = link->next;
    if (!fact->first) {
        *find_fact(t, fact->hash) = fact->next;
        t->fact_count--;
        free(fact);
    }
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
    for (unsigned i = 0; i < entry->link_count; i++)
        leave(t, &entry->links[i]);
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

/* --- making an entry ----------------------------------------------------------------------------------------------- */

static void *carve(uint8_t **at, size_t size)
{
    void *piece = *at;

    *at += (size + 7) & ~(size_t)7;
    return piece;
}

static size_t room_for(size_t size)
{
    return (size + 7) & ~(size_t)7;
}

/* An entry with all its pieces in one block, filled from the plan; NULL: no memory. */
static struct kd_entry *make_entry(const struct question *q, const uint8_t *key, size_t key_size, const uint8_t *reply,
                                   size_t reply_size, const struct kd_lease *lease, int general)
{
    size_t tail_at = q->end + ROOT_TYPE_CLASS, tail_size = reply_size - tail_at;
    unsigned ttls = lease->age ? kd_plan.ttl_count : 0, turns = kd_plan.turn_count, pointers = kd_plan.pointer_count;
    size_t size = room_for(sizeof(struct kd_entry)) + room_for(lease->fact_count * sizeof(struct link)) +
                  room_for(ttls * sizeof(struct ttl)) + room_for((turns ? turns + 1 : 0) * sizeof(uint32_t)) +
                  room_for(pointers * sizeof(uint32_t)) + room_for(key_size) + room_for(HEADER - 2) +
                  room_for(tail_size) + (general ? (LONGEST_NAME + 1) * sizeof(uint64_t) : 0);
    uint8_t *at = calloc(1, size);
    struct kd_entry *entry = (struct kd_entry *)at;

    if (!at)
        return NULL;
    carve(&at, sizeof *entry);
    entry->links = carve(&at, lease->fact_count * sizeof(struct link));
    entry->ttls = carve(&at, ttls * sizeof(struct ttl));
    entry->turns = carve(&at, (turns ? turns + 1 : 0) * sizeof(uint32_t));
    entry->pointers = carve(&at, pointers * sizeof(uint32_t));
    entry->by_length = general ? carve(&at, (LONGEST_NAME + 1) * sizeof(uint64_t)) : NULL;
    entry->key = carve(&at, key_size);
    entry->head = carve(&at, HEADER - 2);
    entry->tail = carve(&at, tail_size);
    memcpy(entry->ttls, kd_plan.ttls, ttls * sizeof(struct ttl));
    memcpy(entry->turns, kd_plan.turns, turns * sizeof(uint32_t));
    if (turns)
        entry->turns[turns] = (uint32_t)kd_plan.turns_end;
    memcpy(entry->pointers, kd_plan.pointers, pointers * sizeof(uint32_t));
    memcpy(entry->key, key, key_size);
    memcpy(entry->head, reply + 2, HEADER - 2);
    memcpy(entry->tail, reply + tail_at, tail_size);
    entry->ttl_count = (uint16_t)ttls;
    entry->turn_count = (uint16_t)turns;
    entry->pointer_count = (uint16_t)pointers;
    entry->key_size = (uint16_t)key_size;
    entry->name_size = (uint16_t)q->name_size;
    entry->tail_size = (uint32_t)tail_size;
    entry->octets = size + MALLOC + lease->fact_count * (sizeof(struct fact) + MALLOC);
    return entry;
}

static void set_time(struct kd_entry *entry, const struct kd_lease *lease, double now)
{
    entry->until = lease->until;
    entry->fresh = lease->until;
    entry->origin = INFINITY;
    if (lease->age) {
        entry->origin = isinf(lease->until) ? now : lease->until;
        entry->born = (int64_t)floor(now - entry->origin);
        entry->fresh = fmin(lease->until, entry->origin + (double)entry->born + 1);
    }
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

static int stand_on_all(struct kd_table *t, struct kd_entry *entry, const struct kd_lease *lease)
{
    while (entry->link_count < lease->fact_count) {
        if (stand(t, entry, &entry->links[entry->link_count], lease->facts[entry->link_count])) {
            while (entry->link_count)
                leave(t, &entry->links[--entry->link_count]);
            return -1;
        }
        entry->link_count++;
    }
    return 0;
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
    entry = make_entry(&q, key, key_size, reply, reply_size, &kept, apex != NULL);
    if (!entry || stand_on_all(t, entry, &kept)) {
        free(entry);
        return 0;
    }
    entry->hash = kd_siphash(&t->secret, key, key_size);
    entry->owner = lease->owner;
    entry->names = lease->names;
    entry->apex = apex;
    entry->query_size = (uint32_t)size;
    entry->reply_size = (uint32_t)reply_size;
    set_time(entry, lease, now);
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

void kd_forget(struct kd_table *t, uint64_t hash)
{
    struct fact *fact;

    /* The last entry takes its fact with it. */
    while ((fact = *find_fact(t, hash)) != NULL) {
        remove_entry(t, fact->first->entry);
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
    t->bucket_count = t->fact_buckets = KD_FIRST_BUCKETS;
    t->buckets = calloc(KD_FIRST_BUCKETS, sizeof *t->buckets);
    t->facts = calloc(KD_FIRST_BUCKETS, sizeof *t->facts);
    t->door = calloc(DOOR, 1);
    t->young.end.older = t->young.end.newer = &t->young.end;
    t->old.end.older = t->old.end.newer = &t->old.end;
    if (!t->buckets || !t->facts || !t->door || kd_draw_secret(&t->secret)) {
        kd_table_free(t);
        return NULL;
    }
    return t;
}

void kd_table_free(struct kd_table *t)
{
    free(t->buckets);
    free(t->facts);
    free(t->door);
    free(t);
}

void kd_count(const struct kd_table *t, struct kd_counts *counts)
{
    *counts = (struct kd_counts){t->misses,  t->evicted,    t->dropped,     t->count,
                                 t->used,    t->fact_count, t->young.count, t->old.count};
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

int kd_due(struct kd_entry *entry, unsigned *cursor, struct kd_due *due)
{
    due->query = entry->query_size;
    due->reply = entry->reply_size;
    due->times = entry->hits - entry->paid;
    if (!due->times)
        return 0;
    if (!entry->by_length) {
        entry->paid = entry->hits;
        return 1;
    }
    for (; *cursor <= LONGEST_NAME; ++*cursor) {
        due->times = entry->by_length[*cursor];
        if (due->times) {
            entry->by_length[*cursor] = 0;
            entry->paid += due->times;
            due->query = due->query - entry->name_size + *cursor;
            due->reply = due->reply - entry->name_size + *cursor;
            return 1;
        }
    }
    return 0;
}

void *kd_entry_owner(const struct kd_entry *entry)
{
    return entry->owner;
}

void kd_entry_free(struct kd_entry *entry)
{
    free(entry);
}
