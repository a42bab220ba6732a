/*
 * Question bytes -> reply bytes, as long as the lease holds: the core of kdns._packetcache, the compiled twin of
 * kdns/packetcache.py, where the words used here are explained.  No Python in here, and no DNS policy.
 *
 * One lock guards every table and every set of names of the process.  It is held for some microseconds at a time, for a
 * millisecond or two when all of a full table goes at once (a reload, a fact that everything stands on):
 * threads that answer without the interpreter take it once per batch of packets, the interpreter once per change.
 * Whoever calls a function of this file holds it, but for the first and last call about a thing.
 */
#ifndef KD_TABLE_H
#define KD_TABLE_H

#include <stddef.h>
#include <stdint.h>

enum {
    KD_SCOPE = 16,    /* most octets of a scope */
    KD_MISS = 0,      /* ask the chain */
    KD_EXPIRED = -1   /* ask the chain; the entry that was found is of no more use */
};

void kd_lock(void);
void kd_unlock(void);

/* --- names that exist (kdns.denial.Existing) ----------------------------------------------------------------------- */

struct kd_names;

/* NULL: no memory. */
struct kd_names *kd_names_new(unsigned depth);
void kd_names_free(struct kd_names *names);
size_t kd_names_count(const struct kd_names *names);
/* `name`: folded labels without the root octet.  kd_names_add returns 0, or -1 when there is no memory. */
int kd_names_add(struct kd_names *names, const uint8_t *name, size_t size);
void kd_names_discard(struct kd_names *names, const uint8_t *name, size_t size);
int kd_names_has(const struct kd_names *names, const uint8_t *name, size_t size);
void kd_names_clear(struct kd_names *names);
/* Whether nothing can exist at the relative name: one of its last labels, down to the depth, is no member.
 * What cannot be read as labels is not denied. */
int kd_names_deny(const struct kd_names *names, const uint8_t *name, size_t size);

/* --- the table ----------------------------------------------------------------------------------------------------- */

struct kd_table;
struct kd_entry;

struct kd_scope {
    uint8_t octets[KD_SCOPE];
    size_t size;
};

/* What kdns.message.Lease says. */
struct kd_lease {
    double until; /* monotonic seconds; infinite: until a fact is dropped */
    int rotate, age;
    const uint64_t *facts; /* by kd_fact */
    size_t fact_count;
    const uint8_t *apex; /* NULL: true for the question's own name only */
    size_t apex_size;
    struct kd_names *names; /* with an apex: what exists below it; must outlive the entry */
    void *owner;            /* the caller's; handed back by kd_entry_owner */
};

/* What is owed for one size of query: so many replays. */
struct kd_due {
    uint64_t times;
    size_t query, reply; /* octets */
};

struct kd_counts {
    uint64_t misses, evicted, dropped;
    size_t entries, octets, facts, young, old;
};

/* NULL: no memory, or no secret to be had from the kernel. */
struct kd_table *kd_table_new(size_t max_entries, size_t max_octets);
/* Frees the table and its entries; kd_clear and kd_dead come before. */
void kd_table_free(struct kd_table *table);
uint64_t kd_fact(const struct kd_table *table, const uint8_t *fact, size_t size);

/* Turns the query of `size` octets at `packet` into its reply, in place, if that takes at most `room` octets.
 * Returns the octets of the reply, KD_MISS, or KD_EXPIRED. */
long kd_answer(struct kd_table *table, const struct kd_scope *scope, uint8_t *packet, size_t size, size_t room,
               double now);
/* As PacketCache.put; returns 1 when the reply is kept (the owner is the entry's then), 0 when not. */
int kd_put(struct kd_table *table, const struct kd_scope *scope, const uint8_t *packet, size_t size,
           const uint8_t *reply, size_t reply_size, const struct kd_lease *lease, double now);
/* Lets go of what was found to be expired for this question, if it is. */
void kd_expire(struct kd_table *table, const struct kd_scope *scope, const uint8_t *packet, size_t size, double now);
void kd_forget(struct kd_table *table, uint64_t fact);
void kd_clear(struct kd_table *table);
void kd_count(const struct kd_table *table, struct kd_counts *counts);

/* Entries that have left the table wait here for what is owed to be paid: takes the first; NULL: there is none.  They
 * are the caller's then, to be freed with kd_entry_free. */
struct kd_entry *kd_dead(struct kd_table *table);
/* Walks through the entries of the table: NULL gives the first one, and is returned after the last. */
struct kd_entry *kd_next(struct kd_table *table, struct kd_entry *entry);
/* Takes what is owed for an entry, size by size: 0 when nothing is left.  `cursor` begins as 0. */
int kd_due(struct kd_entry *entry, unsigned *cursor, struct kd_due *due);
void *kd_entry_owner(const struct kd_entry *entry);
void kd_entry_free(struct kd_entry *entry);

#endif
