"""Keyed hashing and the index table: cold verbs, and a Python face for the tests."""


# The home slot comes from the hash's low half, which a slot does not hold; it is kept in a parallel array behind the
# slots so that growing and shifting need not ask the user for the hash again.
cdef inline uint32_t *_homes(Index *index) noexcept nogil:
    return <uint32_t *> (index.slots + index.capacity)


cdef int _index_grow(Index *index) noexcept nogil:
    cdef Index larger
    cdef uint32_t place, at
    larger.capacity = 16 if index.capacity == 0 else index.capacity * 2
    larger.count = index.count
    larger.slots = <IndexSlot *> calloc(larger.capacity, sizeof(IndexSlot) + sizeof(uint32_t))
    if larger.slots == NULL:
        return -1
    for place in range(index.capacity):
        if index.slots[place].value == 0:
            continue
        at = _homes(index)[place] & (larger.capacity - 1)
        while larger.slots[at].value != 0:
            at = (at + 1) & (larger.capacity - 1)
        larger.slots[at] = index.slots[place]
        _homes(&larger)[at] = _homes(index)[place]
    free(index.slots)
    index[0] = larger
    return 0


cdef int index_put(Index *index, uint64_t hash, uint32_t value) noexcept nogil:
    """Add a pair; the same pair twice is two entries. -1: out of memory."""
    cdef uint32_t place
    if (index.count + 1) * 4 > index.capacity * 3 and _index_grow(index) < 0:
        return -1
    place = <uint32_t> hash & (index.capacity - 1)
    while index.slots[place].value != 0:
        place = (place + 1) & (index.capacity - 1)
    index.slots[place].hash = <uint32_t> (hash >> 32)
    index.slots[place].value = value + 1
    _homes(index)[place] = <uint32_t> hash
    index.count += 1
    return 0


cdef void index_remove(Index *index, uint64_t hash, uint32_t value) noexcept nogil:
    """Take out the pair, which must be there."""
    cdef uint32_t mask = index.capacity - 1
    cdef uint32_t place = <uint32_t> hash & mask
    cdef uint32_t hole, home
    while index.slots[place].value != value + 1:
        invariant_always(index.slots[place].value != 0)
        place = (place + 1) & mask
    hole = place
    while True:
        place = (place + 1) & mask
        if index.slots[place].value == 0:
            break
        home = _homes(index)[place] & mask
        if ((place - home) & mask) >= ((place - hole) & mask):
            index.slots[hole] = index.slots[place]
            _homes(index)[hole] = _homes(index)[place]
            hole = place
    index.slots[hole].value = 0
    index.count -= 1
    if index.count == 0:
        index_free(index)


cdef void index_free(Index *index) noexcept nogil:
    free(index.slots)
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
