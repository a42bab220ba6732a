#include "entry.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MALLOC = 16 /* what the allocator takes beside each block */ };

static size_t room_for(size_t size)
{
    return (size + 7) & ~(size_t)7;
}

static void *carve(uint8_t **at, size_t size)
{
    void *piece = *at;

    *at += room_for(size);
    return piece;
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

struct kd_entry *kd_make_entry(const struct question *q, const uint8_t *key, size_t key_size, const uint8_t *reply,
                               size_t reply_size, const struct kd_lease *lease, int general, double now)
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
    entry->reply_size = (uint32_t)reply_size;
    entry->octets = size + MALLOC + lease->fact_count * (sizeof(struct fact) + MALLOC);
    entry->owner = lease->owner;
    entry->names = lease->names;
    set_time(entry, lease, now);
    return entry;
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
