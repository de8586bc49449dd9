"""Base64 over spans."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t

from core.base64 cimport BASE64_BAD, base64_size, base64_value

cdef extern from *:
    """
    static const char ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    """
    const char* ALPHABET


cdef size_t base64_encode(const uint8_t* src, size_t size, uint8_t* dst) noexcept nogil:
    cdef uint32_t group
    cdef size_t left
    cdef size_t at = 0
    cdef size_t out = 0
    while at < size:
        left = size - at
        group = <uint32_t>src[at] << 16
        if left > 1:
            group |= <uint32_t>src[at + 1] << 8
        if left > 2:
            group |= src[at + 2]
        dst[out] = ALPHABET[group >> 18]
        dst[out + 1] = ALPHABET[(group >> 12) & 63]
        dst[out + 2] = ALPHABET[(group >> 6) & 63] if left > 1 else c"="
        dst[out + 3] = ALPHABET[group & 63] if left > 2 else c"="
        at += 3
        out += 4
    return out


cdef int64_t group_decode(const uint8_t* src, int chars, uint32_t* group) noexcept nogil:
    """Put the bits of `chars` characters (2 to 4) into `group`, from bit 23 down; BASE64_BAD as in base64_decode."""
    cdef int value
    cdef int at
    group[0] = 0
    for at in range(chars):
        value = base64_value(src[at])
        if value < 0:
            return BASE64_BAD
        group[0] |= <uint32_t>value << (18 - 6 * at)
    if chars < 4 and group[0] & (0xFFFF if chars == 2 else 0xFF):
        return BASE64_BAD
    return 0


cdef int64_t base64_decode(const uint8_t* src, size_t size, uint8_t* dst) noexcept nogil:
    cdef uint32_t group = 0
    cdef int64_t out = 0
    cdef size_t at
    cdef int chars
    cdef int byte
    if size % 4:
        return BASE64_BAD
    for at in range(0, size, 4):
        chars = 4
        if at + 4 == size and src[at + 3] == c"=":
            chars = 2 if src[at + 2] == c"=" else 3
        if group_decode(src + at, chars, &group) < 0:
            return BASE64_BAD
        for byte in range(chars - 1):
            if dst != NULL:
                dst[out] = <uint8_t>(group >> (16 - 8 * byte))
            out += 1
    return out


def encode(data: bytes) -> bytes:
    """`data` in base64, for tests."""
    cdef bytearray text = bytearray(base64_size(len(data)))
    base64_encode(<const uint8_t*><const char*>data, len(data), <uint8_t*><char*>text)
    return bytes(text)


def decode(text: bytes) -> bytes | None:
    """The bytes behind canonical base64, or None; decodes in place, as the transcoder does."""
    cdef bytearray work = bytearray(text)
    cdef uint8_t* start = <uint8_t*><char*>work
    cdef int64_t size
    if base64_decode(start, len(work), NULL) < 0:
        return None
    size = base64_decode(start, len(work), start)
    return bytes(work[:size])
