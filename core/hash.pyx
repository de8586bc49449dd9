"""Keyed hashing and the index table: cold verbs, and a Python face for the tests."""

from core.pages cimport pages_give, pages_take


cdef enum:
    GONE = 0xFFFFFFFF           # in place of a value: removed from the old table


cdef inline uint32_t _next(uint32_t place, uint32_t capacity) noexcept nogil:
    return place + 1 if place + 1 < capacity else 0


cdef inline uint32_t _home(uint32_t tag, uint32_t capacity) noexcept nogil:
    """Where a pair would like to stand in a table of so many slots."""
    return <uint32_t> ((<uint64_t> tag * capacity) >> 32)


cdef inline uint32_t _distance(Index *index, uint32_t start, uint32_t place) noexcept nogil:
    """How many slots `place` is behind `start`, around the table's end."""
    return place - start if place >= start else place + index.capacity - start


cdef inline void _place(Index *index, IndexSlot slot) noexcept nogil:
    """Into the first empty slot from its home on; there is one."""
    cdef uint32_t place = index_home(index, slot.hash)
    while index.slots[place].value != 0:
        place = _next(place, index.capacity)
    index.slots[place] = slot


cdef void _move(Index *index, uint32_t step) noexcept nogil:
    """So many slots of the old table; homes ascend in both, so this reads and writes one stretch of memory each."""
    cdef uint32_t end = index.moved + min(step, index.old_capacity - index.moved)
    while index.moved < end:
        if index.old[index.moved].value != 0 and index.old[index.moved].value != <uint32_t> GONE:
            _place(index, index.old[index.moved])
        index.moved += 1
    if index.moved == index.old_capacity:
        pages_give(index.old, <size_t> index.old_capacity * sizeof(IndexSlot))
        index.old = NULL
        index.old_capacity = index.moved = 0


cdef int _grow(Index *index) noexcept nogil:
    """By a quarter: a table is three quarters full on average, and its pairs were moved four times each."""
    cdef uint32_t capacity = 16 if index.capacity == 0 else index.capacity + index.capacity // 4
    cdef IndexSlot *slots = <IndexSlot *> pages_take(<size_t> capacity * sizeof(IndexSlot))
    if slots == NULL:
        return -1
    invariant_always(index.old == NULL)     # INDEX_STEP: it was moved long ago
    index.old = index.slots
    index.old_capacity = index.capacity
    index.slots = slots
    index.capacity = capacity
    return 0


cdef int index_put(Index *index, uint64_t hash, uint32_t value) noexcept nogil:
    """Add a pair; the same pair twice is two entries. -1: out of memory."""
    cdef IndexSlot slot
    invariant(value < <uint32_t> GONE - 1)
    if (index.count + 1) * <uint64_t> 6 > index.capacity * <uint64_t> 5 and _grow(index) < 0:
        return -1
    if index.old != NULL:
        _move(index, INDEX_STEP)
    slot.hash = <uint32_t> (hash >> 32)
    slot.value = value + 1
    _place(index, slot)
    index.count += 1
    return 0


cdef uint32_t index_find_old(Index *index, uint32_t tag, uint32_t *probe) noexcept nogil:
    """The rest of `index_find`, where the table that it grew from is not gone yet."""
    cdef uint32_t probed = probe[0] - index.capacity
    cdef uint32_t place = _home(tag, index.old_capacity) + probed
    cdef uint32_t value
    if place >= index.old_capacity:
        place -= index.old_capacity
    while probed < index.old_capacity:
        probed += 1
        value = index.old[place].value
        if value == 0:
            return 0
        if place >= index.moved and index.old[place].hash == tag and value != <uint32_t> GONE:
            probe[0] = index.capacity + probed
            return value
        place = _next(place, index.old_capacity)
    return 0


cdef void _remove_old(Index *index, uint32_t tag, uint32_t value) noexcept nogil:
    """Out of the table that it grew from, where its place stays taken: what was moved stands there, too."""
    cdef uint32_t place
    invariant_always(index.old != NULL)
    place = _home(tag, index.old_capacity)
    while place < index.moved or index.old[place].value != value + 1:
        invariant_always(index.old[place].value != 0)
        place = _next(place, index.old_capacity)
    index.old[place].value = <uint32_t> GONE


cdef void _remove(Index *index, uint32_t hole) noexcept nogil:
    """What stands there; what stands behind it moves up."""
    cdef uint32_t place = hole
    while True:
        place = _next(place, index.capacity)
        if index.slots[place].value == 0:
            break
        if _distance(index, index_home(index, index.slots[place].hash), place) >= _distance(index, hole, place):
            index.slots[hole] = index.slots[place]
            hole = place
    index.slots[hole].value = 0


cdef void index_remove(Index *index, uint64_t hash, uint32_t value) noexcept nogil:
    """Take out the pair, which must be there."""
    cdef uint32_t tag = <uint32_t> (hash >> 32)
    cdef uint32_t place = index_home(index, tag)
    while index.slots[place].value != value + 1 and index.slots[place].value != 0:
        place = _next(place, index.capacity)
    if index.slots[place].value != 0:
        _remove(index, place)
    else:
        _remove_old(index, tag, value)
    index.count -= 1
    if index.count == 0:
        index_free(index)


cdef void index_free(Index *index) noexcept nogil:
    pages_give(index.slots, <size_t> index.capacity * sizeof(IndexSlot))
    pages_give(index.old, <size_t> index.old_capacity * sizeof(IndexSlot))
    index.slots = index.old = NULL
    index.capacity = index.old_capacity = index.moved = 0
    index.count = 0


def siphash13(bytes data, unsigned long long k0=0, unsigned long long k1=0):
    """SipHash-1-3 of `data` under the key (k0, k1)."""
    cdef HashKey key
    key.k0 = k0
    key.k1 = k1
    return hash_bytes(&key, <const uint8_t *> <const char *> data, len(data))


cdef class HashIndex:
    """The index table for tests: a multimap from 64-bit hashes to numbers below 2**32 - 2."""

    cdef Index index

    def __dealloc__(self):
        index_free(&self.index)

    def __len__(self):
        return self.index.count

    @property
    def moving(self):
        """Slots of the table that it grew from which were not moved yet."""
        return self.index.old_capacity - self.index.moved

    def put(self, unsigned long long hash, unsigned int value):
        if index_put(&self.index, hash, value) < 0:
            raise MemoryError

    def remove(self, unsigned long long hash, unsigned int value):
        if value not in self.find(hash):
            raise KeyError((hash, value))
        index_remove(&self.index, hash, value)

    def find(self, unsigned long long hash):
        """Every value under a hash with the same high half that a probe for `hash` meets."""
        cdef uint32_t probe = 0
        cdef uint32_t value = index_find(&self.index, hash, &probe)
        found = []
        while value:
            found.append(value - 1)
            value = index_find(&self.index, hash, &probe)
        return found
