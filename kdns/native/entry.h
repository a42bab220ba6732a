/* One stored reply, in the pieces from which a hit is put together. */
#ifndef KD_ENTRY_H
#define KD_ENTRY_H

#include "facts.h"
#include "plan.h"
#include "question.h"

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

/* An entry with all its pieces in one block, filled from the plan; NULL: no memory.  Its hash, apex and query_size are
 * the caller's to set, and it stands on no facts yet. */
struct kd_entry *kd_make_entry(const struct question *q, const uint8_t *key, size_t key_size, const uint8_t *reply,
                               size_t reply_size, const struct kd_lease *lease, int general, double now);

#endif
