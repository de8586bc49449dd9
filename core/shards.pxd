# Shards: what is spread over routers. A channel belongs to a shard by its name, a session by its 16 bytes; each shard
# is led by one router at a time, and a map tells which (core/shard_map.pxd).
#
# The hash is CRC-32 as zlib has it, so that every program knows it. The log in Redis has sixteen lanes, and 256 is a
# multiple of sixteen: all channels of a shard are in one lane (core/redis_batch.pxd).

from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    SHARDS = 256

cdef uint32_t crc32(const uint8_t *data, uint32_t size) noexcept nogil


cdef inline uint32_t shard_of(const void *name, uint32_t size) noexcept nogil:
    """The shard of a channel's name, or of a session's 16 bytes."""
    return crc32(<const uint8_t *> name, size) % <uint32_t> SHARDS
