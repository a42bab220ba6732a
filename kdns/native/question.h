/* A packet as a question: under which key its reply is kept.  What is one question: kdns/questions.py. */
#ifndef KD_QUESTION_H
#define KD_QUESTION_H

#include "table.h"

enum {
    HEADER = 12,
    ROOT_TYPE_CLASS = 5, /* what ends a question: the root octet, type and class */
    OPT_SIZE = 11,       /* an OPT record without options */
    LONGEST_NAME = 255,
    TYPE_A = 1, TYPE_SOA = 6, TYPE_AAAA = 28, TYPE_OPT = 41,
    KEY = 1 + KD_SCOPE + 3 + LONGEST_NAME + ROOT_TYPE_CLASS + OPT_SIZE + 2
};

struct question {
    const uint8_t *name;   /* folded, without the root octet, within the key */
    size_t name_size;
    size_t end;            /* in the packet: the root octet */
    size_t kept;           /* of the packet from there on, so much belongs to the key */
    int options;           /* so the length of the packet does, too */
    size_t key_size;
    uint8_t key[KEY];
};

static inline unsigned get16(const uint8_t *at)
{
    return (unsigned)at[0] << 8 | at[1];
}

static inline void put16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

/* Reads a packet; 0: it is nothing that is ever stored. */
int kd_read_question(struct question *q, const struct kd_scope *scope, const uint8_t *packet, size_t size);
/* The key of general entries: as the question's, with the apex (without the root octet) in place of its name.  Returns
 * its size; `key` has KEY octets. */
size_t kd_general_key(const struct question *q, uint8_t *key, const uint8_t *apex, size_t apex_size, const uint8_t *packet,
                   size_t size);

#endif
