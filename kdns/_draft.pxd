"""A message that is being written, and the names in it, for `kdns._wire`."""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from kdns._octets cimport MAX_NAME, folded_alike, kdns_fold, write16

cdef enum:
    HEADER = 12
    HIGHEST_POINTER = 0x3FFF
    MAX_LABELS = 128
    MESSAGE = 4096
    SLOTS = 64


cdef struct Slot:
    # A name, or the end of one, that the message holds; it belongs to a record or to the question.
    const uint8_t *name
    uint32_t hash
    uint16_t offset
    uint16_t size


cdef struct Draft:
    # The message as far as it is written, and the names in it: an open hash table, empty while `used` is -1.  What is
    # small lives in the struct itself, the rest on the heap.
    uint64_t seed
    uint8_t *octets
    Py_ssize_t room
    Slot *slots
    long places
    long used
    uint8_t first_octets[MESSAGE]
    Slot first_slots[SLOTS]


cdef inline void begin(Draft *draft, uint64_t seed) noexcept nogil:
    """``seed``: whoever sends names cannot know it, nor which of them meet in the table."""
    draft.seed = seed
    draft.octets = draft.first_octets
    draft.room = MESSAGE
    draft.slots = draft.first_slots
    draft.places = SLOTS
    draft.used = -1


cdef inline void end(Draft *draft) noexcept:
    if draft.octets != draft.first_octets:
        PyMem_Free(draft.octets)
    if draft.slots != draft.first_slots:
        PyMem_Free(draft.slots)


cdef inline int reserve(Draft *draft, Py_ssize_t size) except -1:
    """Make room for so many octets in all."""
    return 0 if size <= draft.room else enlarge(draft, size)


cdef inline int enlarge(Draft *draft, Py_ssize_t size) except -1:
    cdef Py_ssize_t room = 2 * size
    cdef uint8_t *octets = <uint8_t *> PyMem_Malloc(room)
    if octets == NULL:
        raise MemoryError
    memcpy(octets, draft.octets, draft.room)
    if draft.octets != draft.first_octets:
        PyMem_Free(draft.octets)
    draft.octets = octets
    draft.room = room
    return 0


# --- names that the message holds ------------------------------------------------------------------------------------


cdef inline int remember_question(Draft *draft, const uint8_t *question, Py_ssize_t size) except -1:
    memset(draft.slots, 0, SLOTS * sizeof(Slot))
    draft.used = 0
    cdef uint8_t unused[MAX_NAME]
    put_name(draft, question, size, unused, HEADER)
    return 0


cdef inline Py_ssize_t put_name(
    Draft *draft, const uint8_t *name, Py_ssize_t size, uint8_t *octets, Py_ssize_t at
) except -1:
    """Write a well-formed name to ``octets``, which is ``at`` in the message, and remember its parts; how many octets
    it became."""
    cdef uint8_t starts[MAX_LABELS]
    cdef uint32_t hashes[MAX_LABELS]
    cdef int count = 0, index
    cdef Py_ssize_t done = 0
    cdef Slot *slot
    while name[done]:
        starts[count] = <uint8_t> done
        count += 1
        done += 1 + name[done]
    hash_parts(draft.seed, name, size, starts, hashes, count)
    for index in range(count):
        done = starts[index]
        slot = find(draft, name + done, size - done, hashes[index])
        if slot.name != NULL:
            memcpy(octets, name, done)
            write16(octets + done, 0xC000 | slot.offset)
            return done + 2
        if at + done <= HIGHEST_POINTER:
            slot.name = name + done
            slot.hash = hashes[index]
            slot.offset = <uint16_t> (at + done)
            slot.size = <uint16_t> (size - done)
            draft.used += 1
            if 2 * draft.used > draft.places:
                more_places(draft)
    memcpy(octets, name, size)
    return size


cdef inline void hash_parts(
    uint64_t seed, const uint8_t *name, Py_ssize_t size, const uint8_t *starts, uint32_t *hashes, int count
) noexcept nogil:
    """The hash of the name from each label on: FNV-1a from its end, so that one pass does for all."""
    cdef uint64_t state = seed
    cdef Py_ssize_t at = size
    while count:
        count -= 1
        while at > starts[count]:
            at -= 1
            state = (state ^ kdns_fold[name[at]]) * 0x100000001B3ULL
        hashes[count] = <uint32_t> (state >> 32 ^ state)


cdef inline Slot *find(Draft *draft, const uint8_t *name, Py_ssize_t size, uint32_t hash) noexcept nogil:
    """The slot of a name, or the empty one that it may have."""
    cdef uint32_t mask = <uint32_t> draft.places - 1
    cdef uint32_t place = hash & mask
    cdef Slot *slot
    while True:
        slot = draft.slots + place
        if slot.name == NULL or (slot.hash == hash and slot.size == size and folded_alike(slot.name, name, size)):
            return slot
        place = (place + 1) & mask


cdef inline int more_places(Draft *draft) except -1:
    """Enlarge the table; names whose offset a pointer can hold are at most 8192, so this ends."""
    cdef Slot *old = draft.slots
    cdef long places = draft.places, index
    cdef uint32_t place, mask = <uint32_t> places * 4 - 1
    cdef Slot *slots = <Slot *> PyMem_Malloc(4 * places * sizeof(Slot))
    if slots == NULL:
        raise MemoryError
    memset(slots, 0, 4 * places * sizeof(Slot))
    for index in range(places):
        if old[index].name != NULL:
            place = old[index].hash & mask
            while slots[place].name != NULL:
                place = (place + 1) & mask
            slots[place] = old[index]
    if old != draft.first_slots:
        PyMem_Free(old)
    draft.slots = slots
    draft.places = 4 * places
    return 0
