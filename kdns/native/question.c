#include "question.h"

#include <string.h>

enum {
    OPT_KEPT = 9, /* of an OPT record, what options do not change: all but the length of its data */
    LONGEST_LABEL = 63,
    OPTION_COOKIE = 10, OPTION_PADDING = 12
};

/* Whether the OPT record ends the packet and holds nothing but a cookie and padding. */
static int options_ignored(const uint8_t *opt, size_t size)
{
    size_t at = OPT_SIZE;

    if (opt[0] || get16(opt + 1) != TYPE_OPT || get16(opt + OPT_KEPT) != size - OPT_SIZE)
        return 0;
    for (int option = 0; option < 2; option++) {
        unsigned code;

        if (size - at < 4)
            return 0;
        code = get16(opt + at);
        if (code != OPTION_COOKIE && code != OPTION_PADDING)
            return 0;
        at += 4 + (size_t)get16(opt + at + 2);
        if (at >= size)
            return at == size;
    }
    return 0;
}

/* What follows the root octet, type and class: how much of it belongs to the key; -1: nothing for us. */
static int tail_kept(const uint8_t *packet, size_t size, size_t at, int *options)
{
    const uint8_t *opt = packet + at;
    size_t rest = size - at;

    *options = 0;
    if (!packet[11])
        return rest ? -1 : 0;
    if (rest == OPT_SIZE)
        return opt[0] || get16(opt + 1) != TYPE_OPT || get16(opt + OPT_KEPT) ? -1 : OPT_SIZE;
    if (rest < OPT_SIZE || !options_ignored(opt, rest))
        return -1;
    *options = 1;
    return OPT_KEPT;
}

static size_t finish_key(const struct question *q, uint8_t *key, size_t at, const uint8_t *packet, size_t size)
{
    memcpy(key + at, packet + q->end, q->kept);
    at += q->kept;
    if (q->options) {
        put16(key + at, (unsigned)(size - q->name_size));
        at += 2;
    }
    return at;
}

int kd_read_question(struct question *q, const struct kd_scope *scope, const uint8_t *packet, size_t size)
{
    static const uint8_t counts[7] = {0, 1, 0, 0, 0, 0, 0};
    size_t at = HEADER, start;
    uint8_t *key = q->key;
    int kept;

    if (size < HEADER + ROOT_TYPE_CLASS || size > 65535 || packet[2] > 1 || packet[3] & ~0x30 || packet[11] > 1 ||
        memcmp(packet + 4, counts, sizeof counts))
        return 0;
    while (packet[at]) {
        if (packet[at] > LONGEST_LABEL)
            return 0;
        at += 1 + (size_t)packet[at];
        if (at >= size || at - HEADER >= LONGEST_NAME)
            return 0;
    }
    if (size - at < ROOT_TYPE_CLASS)
        return 0;
    kept = tail_kept(packet, size, at + ROOT_TYPE_CLASS, &q->options);
    if (kept < 0)
        return 0;
    q->end = at;
    q->kept = ROOT_TYPE_CLASS + (size_t)kept;
    q->name_size = at - HEADER;
    *key++ = (uint8_t)q->options;
    memcpy(key, scope->octets, scope->size);
    key += scope->size;
    *key++ = packet[2];
    *key++ = packet[3];
    *key++ = packet[11];
    q->name = key;
    for (start = HEADER; start < at; start++)
        *key++ = (uint8_t)(packet[start] + (((uint8_t)(packet[start] - 'A') < 26) << 5));
    q->key_size = finish_key(q, q->key, (size_t)(key - q->key), packet, size);
    return 1;
}

size_t kd_general_key(const struct question *q, uint8_t *key, const uint8_t *apex, size_t apex_size, const uint8_t *packet,
                   size_t size)
{
    size_t at = (size_t)(q->name - q->key);

    memcpy(key, q->key, at);
    key[0] |= 2;
    memcpy(key + at, apex, apex_size);
    return finish_key(q, key, at + apex_size, packet, size);
}
