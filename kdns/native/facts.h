/* What entries of the packet cache stand on: facts, by hash.  See kdns/standing.py. */
#ifndef KD_FACTS_H
#define KD_FACTS_H

#include <stddef.h>
#include <stdint.h>

#ifndef KD_FIRST_BUCKETS
#define KD_FIRST_BUCKETS 1024 /* a power of two; buckets double when there are more things than buckets */
#endif

struct kd_entry;

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

struct facts {
    struct fact **buckets;
    size_t bucket_count, count;
};

/* 0, or -1: no memory.  kd_facts_end takes either, when nothing stands on anything any more. */
int kd_facts_begin(struct facts *facts);
void kd_facts_end(struct facts *facts);
/* Lets an entry stand on all the facts of which it has the `count` hashes; -1: no memory, it stands on none. */
int kd_stand(struct facts *facts, struct kd_entry *entry, const uint64_t *hashes, size_t count);
/* It stands on nothing any more. */
void kd_leave(struct facts *facts, struct kd_entry *entry);
/* One of the entries that stand on a fact; NULL: there is none. */
struct kd_entry *kd_standing(const struct facts *facts, uint64_t hash);

#endif
