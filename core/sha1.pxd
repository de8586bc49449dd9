# SHA-1 (FIPS 180-4), for the key of WebSocket's opening handshake alone: it proves nothing to anybody.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

cdef enum:
    SHA1_SIZE = 20
    SHA1_BLOCK_SIZE = 64


# Digest of `data`; `digest` has room for SHA1_SIZE bytes.
cdef void sha1(const uint8_t* data, size_t size, uint8_t* digest) noexcept nogil
