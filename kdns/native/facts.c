#include "facts.h"

#include <stdlib.h>

#include "entry.h"

int kd_facts_begin(struct facts *facts)
{
    facts->count = 0;
    facts->bucket_count = KD_FIRST_BUCKETS;
    facts->buckets = calloc(KD_FIRST_BUCKETS, sizeof *facts->buckets);
    return facts->buckets ? 0 : -1;
}

void kd_facts_end(struct facts *facts)
{
    free(facts->buckets);
}

static struct fact **find(const struct facts *facts, uint64_t hash)
{
    struct fact **at = &facts->buckets[hash & (facts->bucket_count - 1)];

    while (*at && (*at)->hash != hash)
        at = &(*at)->next;
    return at;
}

static void grow(struct facts *facts)
{
    size_t old = facts->bucket_count;
    struct fact **buckets = facts->buckets, **larger = calloc(old * 2, sizeof *larger);

    if (!larger)
        return; /* longer chains */
    facts->buckets = larger;
    facts->bucket_count = old * 2;
    for (size_t i = 0; i < old; i++)
        for (struct fact *fact = buckets[i], *next; fact; fact = next) {
            struct fact **at = &larger[fact->hash & (facts->bucket_count - 1)];

            next = fact->next;
            fact->next = *at;
            *at = fact;
        }
    free(buckets);
}

static int stand(struct facts *facts, struct kd_entry *entry, struct link *link, uint64_t hash)
{
    struct fact **at = find(facts, hash), *fact = *at;

    if (!fact) {
        fact = calloc(1, sizeof *fact);
        if (!fact)
            return -1;
        fact->hash = hash;
        *at = fact;
        if (++facts->count > facts->bucket_count)
            grow(facts);
    }
    link->entry = entry;
    link->fact = fact;
    link->before = NULL;
    link->next = fact->first;
    if (fact->first)
        fact->first->before = link;
    fact->first = link;
    return 0;
}

static void leave(struct facts *facts, struct link *link)
{
    struct fact *fact = link->fact;

    if (link->next)
        link->next->before = link->before;
    if (link->before)
        link->before->next = link->next;
    else
        fact->first = link->next;
    if (!fact->first) {
        *find(facts, fact->hash) = fact->next;
        facts->count--;
        free(fact);
    }
}

int kd_stand(struct facts *facts, struct kd_entry *entry, const uint64_t *hashes, size_t count)
{
    while (entry->link_count < count) {
        if (stand(facts, entry, &entry->links[entry->link_count], hashes[entry->link_count])) {
            kd_leave(facts, entry);
            return -1;
        }
        entry->link_count++;
    }
    return 0;
}

void kd_leave(struct facts *facts, struct kd_entry *entry)
{
    while (entry->link_count)
        leave(facts, &entry->links[--entry->link_count]);
}

struct kd_entry *kd_standing(const struct facts *facts, uint64_t hash)
{
    struct fact *fact = *find(facts, hash);

    return fact ? fact->first->entry : NULL;
}
