/* Where the changing parts of a packed reply are: ages, addresses, pointers.  See kdns/patches.py. */
#ifndef KD_PLAN_H
#define KD_PLAN_H

#include <stddef.h>
#include <stdint.h>

enum { POINTER = 0xc0, RECORD = 10 /* type, class, TTL and length of a record */ };

struct ttl {
    uint32_t at, seconds; /* where in the tail, and what it was when stored */
};

/* All of one reply; what does not fit is more than any packet can hold. */
struct plan {
    unsigned ttl_count, turn_count, pointer_count;
    size_t turns_end; /* where the last address ends */
    struct ttl ttls[65536 / (1 + RECORD) + 1];
    uint32_t turns[65536 / (1 + RECORD) + 2]; /* where the addresses begin that are to rotate */
    uint32_t pointers[65536 / 2];             /* in names, when the reply is to be general */
};

/* The one that kd_make_plan fills; guarded by the lock. */
extern struct plan kd_plan;

/* Find what changes in the tail of a reply (what follows the question); -1: it cannot be kept like this.  `rotate`: its
 * addresses are to take turns.  `general`: it is to be moved under other names, so all pointers must be known. */
int kd_make_plan(const uint8_t *reply, const uint8_t *tail, size_t size, int rotate, int general);

#endif
