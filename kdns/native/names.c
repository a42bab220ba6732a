/* A set of names as 64-bit keyed hashes: two names that share one are told apart by nobody, which only sends a question
 * to the chain that need not have gone there. */
#include "names.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/random.h>

enum { FIRST_ROOM = 64, LABELS = 128 };

struct slot {
    uint64_t hash;
    uint64_t times; /* how often it was added; 0: the slot is free */
};

struct kd_names {
    unsigned depth;
    size_t count, room; /* slots in use, slots: a power of two */
    struct slot *slots;
    struct kd_secret secret;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void kd_lock(void)
{
    pthread_mutex_lock(&lock);
}

void kd_unlock(void)
{
    pthread_mutex_unlock(&lock);
}

int kd_draw_secret(struct kd_secret *secret)
{
    return getrandom(secret, sizeof *secret, 0) == sizeof *secret ? 0 : -1;
}

struct kd_names *kd_names_new(unsigned depth)
{
    struct kd_names *names = calloc(1, sizeof *names);

    if (!names)
        return NULL;
    names->depth = depth;
    names->room = FIRST_ROOM;
    names->slots = calloc(FIRST_ROOM, sizeof *names->slots);
    if (!names->slots || kd_draw_secret(&names->secret)) {
        kd_names_free(names);
        return NULL;
    }
    return names;
}

void kd_names_free(struct kd_names *names)
{
    free(names->slots);
    free(names);
}

size_t kd_names_count(const struct kd_names *names)
{
    return names->count;
}

/* Where a hash is, or would be put. */
static size_t place(const struct kd_names *names, uint64_t hash)
{
    size_t at = hash & (names->room - 1);

    while (names->slots[at].times && names->slots[at].hash != hash)
        at = (at + 1) & (names->room - 1);
    return at;
}

static int grow(struct kd_names *names)
{
    struct slot *old = names->slots;
    size_t room = names->room;

    names->slots = calloc(room * 2, sizeof *old);
    if (!names->slots) {
        names->slots = old;
        return -1;
    }
    names->room = room * 2;
    for (size_t at = 0; at < room; at++)
        if (old[at].times)
            names->slots[place(names, old[at].hash)] = old[at];
    free(old);
    return 0;
}

int kd_names_add(struct kd_names *names, const uint8_t *name, size_t size)
{
    uint64_t hash = kd_siphash(&names->secret, name, size);
    size_t at = place(names, hash);

    if (!names->slots[at].times) {
        if (names->count * 2 >= names->room) {
            if (grow(names)) {
                names->depth = 0; /* a name that is not known to exist must not be denied: deny none from now on */
                return -1;
            }
            at = place(names, hash);
        }
        names->slots[at].hash = hash;
        names->count++;
    }
    names->slots[at].times++;
    return 0;
}

void kd_names_discard(struct kd_names *names, const uint8_t *name, size_t size)
{
    size_t mask = names->room - 1, hole = place(names, kd_siphash(&names->secret, name, size));

    if (!names->slots[hole].times || --names->slots[hole].times)
        return;
    names->count--;
    /* Those that had to go further because of this one move up. */
    for (size_t at = (hole + 1) & mask; names->slots[at].times; at = (at + 1) & mask) {
        size_t home = names->slots[at].hash & mask;

        if (((at - home) & mask) >= ((at - hole) & mask)) {
            names->slots[hole] = names->slots[at];
            names->slots[at].times = 0;
            hole = at;
        }
    }
}

int kd_names_has(const struct kd_names *names, const uint8_t *name, size_t size)
{
    return names->slots[place(names, kd_siphash(&names->secret, name, size))].times != 0;
}

void kd_names_clear(struct kd_names *names)
{
    memset(names->slots, 0, names->room * sizeof *names->slots);
    names->count = 0;
}

int kd_names_deny(const struct kd_names *names, const uint8_t *name, size_t size)
{
    size_t starts[LABELS], at = 0;
    unsigned labels = 0;

    while (at < size) {
        if (labels == LABELS || !name[at])
            return 0;
        starts[labels++] = at;
        at += 1 + (size_t)name[at];
    }
    if (at != size)
        return 0;
    for (unsigned depth = 1; depth <= names->depth && depth <= labels; depth++) {
        size_t start = starts[labels - depth];

        if (!kd_names_has(names, name + start, size - start))
            return 1;
    }
    return 0;
}
