"""SHA-1 over a span (FIPS 180-4 section 6.1)."""

from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from core.sha1 cimport SHA1_BLOCK_SIZE, SHA1_SIZE


cdef inline uint32_t rotate(uint32_t word, int bits) noexcept nogil:
    return (word << bits) | (word >> (32 - bits))


cdef void schedule(const uint8_t* block, uint32_t* words) noexcept nogil:
    cdef int at
    for at in range(16):
        words[at] = (
            (<uint32_t>block[4 * at] << 24) | (<uint32_t>block[4 * at + 1] << 16)
            | (<uint32_t>block[4 * at + 2] << 8) | block[4 * at + 3]
        )
    for at in range(16, 80):
        words[at] = rotate(words[at - 3] ^ words[at - 8] ^ words[at - 14] ^ words[at - 16], 1)


cdef void compress(uint32_t* state, const uint8_t* block) noexcept nogil:
    cdef uint32_t words[80]
    cdef uint32_t a = state[0]
    cdef uint32_t b = state[1]
    cdef uint32_t c = state[2]
    cdef uint32_t d = state[3]
    cdef uint32_t e = state[4]
    cdef uint32_t mixed
    cdef int step
    schedule(block, words)
    for step in range(80):
        if step < 20:
            mixed = ((b & c) | (~b & d)) + <uint32_t>0x5A827999
        elif step < 40:
            mixed = (b ^ c ^ d) + <uint32_t>0x6ED9EBA1
        elif step < 60:
            mixed = ((b & c) | (b & d) | (c & d)) + <uint32_t>0x8F1BBCDC
        else:
            mixed = (b ^ c ^ d) + <uint32_t>0xCA62C1D6
        mixed += rotate(a, 5) + e + words[step]
        e = d
        d = c
        c = rotate(b, 30)
        b = a
        a = mixed
    state[0] += a
    state[1] += b
    state[2] += c
    state[3] += d
    state[4] += e


cdef void sha1(const uint8_t* data, size_t size, uint8_t* digest) noexcept nogil:
    cdef uint32_t[5] state = [
        <uint32_t>0x67452301, <uint32_t>0xEFCDAB89, <uint32_t>0x98BADCFE, <uint32_t>0x10325476, <uint32_t>0xC3D2E1F0
    ]
    cdef uint8_t[2 * SHA1_BLOCK_SIZE] tail
    cdef size_t whole = size - size % SHA1_BLOCK_SIZE
    cdef size_t rest = size - whole
    cdef size_t tail_size = SHA1_BLOCK_SIZE if rest < SHA1_BLOCK_SIZE - 8 else 2 * SHA1_BLOCK_SIZE
    cdef size_t at = 0
    while at < whole:
        compress(state, data + at)
        at += SHA1_BLOCK_SIZE
    memset(tail, 0, sizeof(tail))
    if rest:
        memcpy(tail, data + whole, rest)
    tail[rest] = 0x80
    for at in range(8):
        tail[tail_size - 1 - at] = <uint8_t>((<unsigned long long>size * 8) >> (8 * at))
    compress(state, tail)
    if tail_size > SHA1_BLOCK_SIZE:
        compress(state, tail + SHA1_BLOCK_SIZE)
    for at in range(SHA1_SIZE):
        digest[at] = <uint8_t>(state[at // 4] >> (24 - 8 * (at % 4)))


def digest(data: bytes) -> bytes:
    """The SHA-1 of `data`, for tests."""
    cdef uint8_t out[SHA1_SIZE]
    sha1(<const uint8_t*><const char*>data, len(data), out)
    return (<char*>out)[:SHA1_SIZE]
