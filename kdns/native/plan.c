#include "plan.h"

#include <string.h>

#include "question.h"

struct plan kd_plan;

struct record {
    size_t start, type_at, data; /* where its owner, its fixed part and its data begin */
    size_t end;
    unsigned type;
};

/* Skips a name, noting the pointer in which it ends if `note`; 0: it leads out of the tail. */
static size_t skip_name(const uint8_t *tail, size_t size, size_t at, int note)
{
    while (at < size && tail[at] && tail[at] < POINTER)
        at += 1 + (size_t)tail[at];
    if (at >= size)
        return 0;
    if (!tail[at])
        return at + 1;
    if (size - at < 2)
        return 0;
    if (note)
        kd_plan.pointers[kd_plan.pointer_count++] = (uint32_t)at;
    return at + 2;
}

static int read_record(struct record *record, const uint8_t *tail, size_t size, size_t at, int note)
{
    record->start = at;
    at = skip_name(tail, size, at, note);
    if (!at || size - at < RECORD)
        return -1;
    record->type_at = at;
    record->type = get16(tail + at);
    record->data = at + RECORD;
    record->end = record->data + get16(tail + at + 8);
    return record->end > size ? -1 : 0;
}

/* Whether all names in a record's data are where pointers can be moved: in a SOA's two names, or there are none. */
static int note_data(const struct record *record, const uint8_t *tail)
{
    size_t at = record->data;

    if (record->type == TYPE_OPT)
        return 0;
    if (record->type != TYPE_SOA)
        return -1;
    for (int name = 0; name < 2; name++) {
        at = skip_name(tail, record->end, at, 1);
        if (!at)
            return -1;
    }
    return 0;
}

/* Note an address; whether it stands together with those before it, under one name to which it points. */
static int note_turn(const struct record *record, const uint8_t *tail)
{
    const uint8_t *owner = tail + record->start;
    unsigned count = kd_plan.turn_count;
    /* A pointer before the run stays true wherever the record moves; a name written out would be moved away under the
     * pointers of the others. */
    int together = owner[0] >= POINTER &&
                   (!count || (record->start == kd_plan.turns_end && !memcmp(owner, tail + kd_plan.turns[0], 2)));

    kd_plan.turns[kd_plan.turn_count++] = (uint32_t)record->start;
    kd_plan.turns_end = record->end;
    return together;
}

int kd_make_plan(const uint8_t *reply, const uint8_t *tail, size_t size, int rotate, int general)
{
    unsigned answers = get16(reply + 6), records = answers + get16(reply + 8) + get16(reply + 10);
    int together = 1;
    size_t at = 0;

    kd_plan.ttl_count = kd_plan.turn_count = kd_plan.pointer_count = 0;
    for (unsigned number = 0; number < records; number++) {
        struct record record;

        if (read_record(&record, tail, size, at, general) || (general && note_data(&record, tail)))
            return -1;
        if (record.type != TYPE_OPT) {
            const uint8_t *ttl = tail + record.type_at + 4;

            kd_plan.ttls[kd_plan.ttl_count].at = (uint32_t)(record.type_at + 4);
            kd_plan.ttls[kd_plan.ttl_count++].seconds = (uint32_t)get16(ttl) << 16 | get16(ttl + 2);
        }
        if (rotate && number < answers && (record.type == TYPE_A || record.type == TYPE_AAAA))
            together &= note_turn(&record, tail);
        at = record.end;
    }
    if (at != size)
        return -1;
    if (kd_plan.turn_count < 2)
        kd_plan.turn_count = 0;
    return kd_plan.turn_count && !together ? -1 : 0;
}
