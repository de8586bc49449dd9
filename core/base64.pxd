# Base64 (RFC 4648 section 4): padded, and canonical when read, so that reading and writing are each other's inverse.
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t

cdef enum:
    BASE64_BAD = -1


cdef inline size_t base64_size(size_t size) noexcept nogil:
    """Bytes that `size` bytes take when encoded."""
    return (size + 2) // 3 * 4


cdef inline int base64_value(uint8_t char) noexcept nogil:
    """The 6 bits behind a character of the alphabet, or BASE64_BAD."""
    if c"A" <= char <= c"Z":
        return char - c"A"
    if c"a" <= char <= c"z":
        return char - c"a" + 26
    if c"0" <= char <= c"9":
        return char - c"0" + 52
    return 62 if char == c"+" else 63 if char == c"/" else BASE64_BAD


# Write base64_size(size) bytes to `dst`, which must not overlap `src`; returns their number.
cdef size_t base64_encode(const uint8_t* src, size_t size, uint8_t* dst) noexcept nogil

# Write the bytes behind `src` to `dst` (at or before `src`, or elsewhere, with room for size // 4 * 3) and return their
# number; BASE64_BAD for a foreign character, wrong padding, or bits left over that are not zero. `dst` is overwritten
# as far as reading came, so check first (dst = NULL only checks) where `src` must survive a refusal.
cdef int64_t base64_decode(const uint8_t* src, size_t size, uint8_t* dst) noexcept nogil
