# Keyed hashing and the index table that uses it.
#
# Names come from clients, so the hash is SipHash-1-3 under a key drawn at start (Aumasson & Bernstein 2012): nobody can
# choose names that collide. The index is open addressing with linear probing and backward-shift deletion; it holds
# (hash, value) pairs and leaves the comparison of names to its user. A slot keeps the high half of the hash, which is
# both its home (scaled to the capacity, so that this need not double to grow) and its tag: 8 bytes a slot, about 11 a
# pair. To move a million pairs at once would hold a turn up for some 20 ms, so a table that grew is the old one beside
# the new one for a while, and each put moves INDEX_STEP slots. Invariant: count <= capacity * 5/6, there is no empty
# slot between a pair and its home slot in either, and of the old one only what is at `moved` and behind it counts.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef extern from "invariant.h":
    void invariant(bint) nogil
    void invariant_always(bint) nogil

ctypedef struct HashKey:
    uint64_t k0
    uint64_t k1

cdef enum:
    INDEX_STEP = 32             # a table grows by a quarter, so 5 would do; the old one is to go soon

ctypedef struct IndexSlot:
    uint32_t hash               # high half of the 64-bit hash
    uint32_t value              # the user's number + 1; 0: empty

ctypedef struct Index:
    IndexSlot *slots            # owned; capacity entries
    IndexSlot *old              # owned; old_capacity entries that are on their way to `slots`; NULL: none are
    uint32_t capacity           # 0 before the first put
    uint32_t count              # of both
    uint32_t old_capacity
    uint32_t moved              # slots of the old table; what stood there stays, so that probes go on over it


cdef inline uint64_t _rotl(uint64_t x, int b) noexcept nogil:
    return (x << b) | (x >> (64 - b))


cdef inline void _sip_round(uint64_t *v) noexcept nogil:
    v[0] += v[1]
    v[1] = _rotl(v[1], 13) ^ v[0]
    v[0] = _rotl(v[0], 32)
    v[2] += v[3]
    v[3] = _rotl(v[3], 16) ^ v[2]
    v[0] += v[3]
    v[3] = _rotl(v[3], 21) ^ v[0]
    v[2] += v[1]
    v[1] = _rotl(v[1], 17) ^ v[2]
    v[2] = _rotl(v[2], 32)


cdef inline uint64_t hash_bytes(HashKey *key, const uint8_t *data, size_t size) noexcept nogil:
    """SipHash-1-3 of `size` bytes."""
    cdef uint64_t v[4]
    cdef uint64_t word = 0
    cdef size_t place = 0
    v[0] = key.k0 ^ <uint64_t> 0x736f6d6570736575ULL
    v[1] = key.k1 ^ <uint64_t> 0x646f72616e646f6dULL
    v[2] = key.k0 ^ <uint64_t> 0x6c7967656e657261ULL
    v[3] = key.k1 ^ <uint64_t> 0x7465646279746573ULL
    while place + 8 <= size:
        memcpy(&word, data + place, 8)
        v[3] ^= word
        _sip_round(v)
        v[0] ^= word
        place += 8
    word = 0
    memcpy(&word, data + place, size - place)
    word |= (<uint64_t> size) << 56
    v[3] ^= word
    _sip_round(v)
    v[0] ^= word
    v[2] ^= 0xff
    _sip_round(v)
    _sip_round(v)
    _sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


cdef inline uint32_t index_home(Index *index, uint32_t tag) noexcept nogil:
    """Where a pair would like to stand."""
    return <uint32_t> ((<uint64_t> tag * index.capacity) >> 32)


cdef inline uint32_t index_find(Index *index, uint64_t hash, uint32_t *probe) noexcept nogil:
    """The next value + 1 stored under `hash`, or 0 when there is no more.

    `probe` starts at 0 and is kept by the caller between calls; the caller compares the names.
    """
    cdef uint32_t tag = <uint32_t> (hash >> 32)
    cdef uint32_t place = index_home(index, tag) + probe[0]
    if place >= index.capacity:
        place -= index.capacity
    while probe[0] < index.capacity:
        probe[0] += 1
        if index.slots[place].value == 0:
            probe[0] = index.capacity
            break
        if index.slots[place].hash == tag:
            return index.slots[place].value
        place += 1
        if place == index.capacity:
            place = 0
    return 0 if index.old == NULL else index_find_old(index, tag, probe)


cdef uint32_t index_find_old(Index *index, uint32_t tag, uint32_t *probe) noexcept nogil
cdef int index_put(Index *index, uint64_t hash, uint32_t value) noexcept nogil
cdef void index_remove(Index *index, uint64_t hash, uint32_t value) noexcept nogil
cdef void index_free(Index *index) noexcept nogil
