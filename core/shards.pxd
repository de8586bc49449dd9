# Shards: which of them a name or a session belongs to.
#
# Whoever publishes, routes, or stores has to agree on it, in every process and release, so the hash has no key: FNV-1a
# of 64 bits (Fowler, Noll, Vo; http://www.isthe.com/chongo/tech/comp/fnv/), folded to its lowest byte. A cluster has 1
# to 256 shards, a power of two: the byte's low bits say which. All channels of domain global are in shard 0, so that
# one router keeps the count of them and of what they take in WELCOME. A session is in the shard of its user's own
# channel: the first byte of its id says so.
#
# In a set of shards number n is bit n % 64 of word n // 64.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.namespaces cimport DOMAIN_GLOBAL, Namespaces, domain_in

cdef enum:
    SHARDS_MAX = 256
    SHARD_WORDS = 4             # of a set of shards, 64 bits each
    SHARD_OF_GLOBALS = 0


cdef inline uint8_t shard_byte(const char *name, uint32_t size) noexcept nogil:
    """The byte whose low bits are a name's shard."""
    cdef uint64_t hash = <uint64_t> 0xCBF29CE484222325
    cdef uint32_t place
    for place in range(size):
        hash = (hash ^ <uint8_t> name[place]) * <uint64_t> 0x100000001B3
    hash ^= hash >> 32
    return <uint8_t> (hash ^ hash >> 16 ^ hash >> 8)


cdef inline uint8_t shard_of_name(int domain, const char *name, uint32_t size, uint32_t count) noexcept nogil:
    """The shard of a channel whose domain is known, where there are `count`."""
    if domain == DOMAIN_GLOBAL:
        return SHARD_OF_GLOBALS
    return shard_byte(name, size) & <uint8_t> (count - 1)


cdef inline uint8_t shard_of_channel(const Namespaces *table, const char *name, uint32_t size,
                                     uint32_t count) noexcept nogil:
    """The shard of a channel where there are `count`."""
    return shard_of_name(domain_in(table, name, size), name, size, count)


cdef inline uint8_t shard_of_session(const uint8_t *session, uint32_t count) noexcept nogil:
    return session[0] & <uint8_t> (count - 1)


cdef inline bint shards_have(const uint64_t *shards, uint32_t shard) noexcept nogil:
    return shards[shard >> 6] >> (shard & 63) & 1


cdef inline void shards_add(uint64_t *shards, uint32_t shard) noexcept nogil:
    shards[shard >> 6] |= <uint64_t> 1 << (shard & 63)


cdef inline void shards_remove(uint64_t *shards, uint32_t shard) noexcept nogil:
    shards[shard >> 6] &= ~(<uint64_t> 1 << (shard & 63))
