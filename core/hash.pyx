"""Keyed hashing and the index table: cold verbs, and a Python face for the tests."""

from core.pages cimport pages_give, pages_take


cdef inline uint32_t _next(Index *index, uint32_t place) noexcept nogil:
    return place + 1 if place + 1 < index.capacity else 0


cdef inline uint32_t _distance(Index *index, uint32_t start, uint32_t place) noexcept nogil:
    """How many slots `place` is behind `start`, around the table's end."""
    return place - start if place >= start else place + index.capacity - start


cdef inline void _place(Index *index, IndexSlot slot) noexcept nogil:
    """Into the first empty slot from its home on; there is one."""
    cdef uint32_t place = index_home(index, slot.hash)
    while index.slots[place].value != 0:
        place = _next(index, place)
    index.slots[place] = slot


cdef int _index_grow(Index *index) noexcept nogil:
    """By a quarter: a table is three quarters full on average, and its pairs were moved four times each."""
    cdef Index larger
    cdef uint32_t place
    larger.capacity = 16 if index.capacity == 0 else index.capacity + index.capacity // 4
    larger.count = index.count
    larger.slots = <IndexSlot *> pages_take(<size_t> larger.capacity * sizeof(IndexSlot))
    if larger.slots == NULL:
        return -1
    for place in range(index.capacity):
        if index.slots[place].value != 0:
            _place(&larger, index.slots[place])
    pages_give(index.slots, <size_t> index.capacity * sizeof(IndexSlot))
    index[0] = larger
    return 0


cdef int index_put(Index *index, uint64_t hash, uint32_t value) noexcept nogil:
    """Add a pair; the same pair twice is two entries. -1: out of memory."""
    cdef IndexSlot slot
    if (index.count + 1) * <uint64_t> 6 > index.capacity * <uint64_t> 5 and _index_grow(index) < 0:
        return -1
    slot.hash = <uint32_t> (hash >> 32)
    slot.value = value + 1
    _place(index, slot)
    index.count += 1
    return 0


cdef void index_remove(Index *index, uint64_t hash, uint32_t value) noexcept nogil:
    """Take out the pair, which must be there."""
    cdef uint32_t place = index_home(index, <uint32_t> (hash >> 32))
    cdef uint32_t hole
    while index.slots[place].value != value + 1:
        invariant_always(index.slots[place].value != 0)
        place = _next(index, place)
    hole = place
    while True:
        place = _next(index, place)
        if index.slots[place].value == 0:
            break
        if _distance(index, index_home(index, index.slots[place].hash), place) >= _distance(index, hole, place):
            index.slots[hole] = index.slots[place]
            hole = place
    index.slots[hole].value = 0
    index.count -= 1
    if index.count == 0:
        index_free(index)


cdef void index_free(Index *index) noexcept nogil:
    pages_give(index.slots, <size_t> index.capacity * sizeof(IndexSlot))
    index.slots = NULL
    index.capacity = 0
    index.count = 0


def siphash13(bytes data, unsigned long long k0=0, unsigned long long k1=0):
    """SipHash-1-3 of `data` under the key (k0, k1)."""
    cdef HashKey key
    key.k0 = k0
    key.k1 = k1
    return hash_bytes(&key, <const uint8_t *> <const char *> data, len(data))


cdef class HashIndex:
    """The index table for tests: a multimap from 64-bit hashes to numbers below 2**32 - 1."""

    cdef Index index

    def __dealloc__(self):
        index_free(&self.index)

    def __len__(self):
        return self.index.count

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
