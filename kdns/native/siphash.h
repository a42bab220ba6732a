/*
 * SipHash-1-3 (Aumasson and Bernstein, 2012): a hash under a secret key, so that nobody who asks can choose questions
 * that all fall into one bucket.
 */
#ifndef KD_SIPHASH_H
#define KD_SIPHASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct kd_secret {
    uint64_t low, high;
};

#define KD_ROTATE(x, bits) (((x) << (bits)) | ((x) >> (64 - (bits))))
#define KD_ROUND(a, b, c, d) \
    do { \
        a += b, b = KD_ROTATE(b, 13), b ^= a, a = KD_ROTATE(a, 32); \
        c += d, d = KD_ROTATE(d, 16), d ^= c; \
        a += d, d = KD_ROTATE(d, 21), d ^= a; \
        c += b, b = KD_ROTATE(b, 17), b ^= c, c = KD_ROTATE(c, 32); \
    } while (0)

/* The hash of `size` octets.  It differs between little- and big-endian machines: it never leaves the process. */
static inline uint64_t kd_siphash(const struct kd_secret *secret, const uint8_t *data, size_t size)
{
    uint64_t a = secret->low ^ 0x736f6d6570736575, b = secret->high ^ 0x646f72616e646f6d;
    uint64_t c = secret->low ^ 0x6c7967656e657261, d = secret->high ^ 0x7465646279746573;
    uint64_t last = (uint64_t)size << 56, word;
    const uint8_t *end = data + (size & ~(size_t)7);

    for (; data < end; data += 8) {
        memcpy(&word, data, 8);
        d ^= word;
        KD_ROUND(a, b, c, d);
        a ^= word;
    }
    word = 0;
    if (size & 7)
        memcpy(&word, data, size & 7);
    last |= word;
    d ^= last;
    KD_ROUND(a, b, c, d);
    a ^= last;
    c ^= 0xff;
    KD_ROUND(a, b, c, d);
    KD_ROUND(a, b, c, d);
    KD_ROUND(a, b, c, d);
    return a ^ b ^ c ^ d;
}

#endif
