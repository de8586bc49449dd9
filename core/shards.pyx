"""Shards: the hash that spreads channels and sessions."""

SHARD_COUNT = SHARDS

cdef uint32_t _crc[256]


cdef void _crc_fill() noexcept nogil:
    """The reflected polynomial of IEEE 802.3, as zlib has it."""
    cdef uint32_t byte, value
    cdef int _bit
    for byte in range(256):
        value = byte
        for _bit in range(8):
            value = (value >> 1) ^ (<uint32_t> 0xEDB88320 if value & 1 else 0)
        _crc[byte] = value


_crc_fill()


cdef uint32_t crc32(const uint8_t *data, uint32_t size) noexcept nogil:
    """CRC-32 as zlib.crc32 has it."""
    cdef uint32_t value = <uint32_t> 0xFFFFFFFF
    cdef uint32_t at
    for at in range(size):
        value = (value >> 8) ^ _crc[(value ^ data[at]) & 0xFF]
    return value ^ <uint32_t> 0xFFFFFFFF


def shard(bytes name):
    """The shard of a channel's name, or of a session's 16 bytes."""
    return shard_of(<const char *> name, <uint32_t> len(name))


def led_by(int router, int routers):
    """256 bytes, 1 at each shard that router number `router` of so many leads, where nobody moves them: each the
    `routers`th."""
    return bytes(number % routers == router for number in range(SHARDS))
