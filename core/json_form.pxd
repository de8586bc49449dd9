# What JSON's reader and writer share: their codes, their limits, and the search for characters that need a look.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    TRANSCODE_MALFORMED = -1  # not exactly one well-formed value, or one that the other encoding cannot say
    TRANSCODE_OVERFLOW = -2   # `cap` is too small; with json_bound or mpack_bound bytes this cannot happen
    TRANSCODE_DEPTH = -3      # arrays and maps too deep inside one another

cdef enum:
    # Levels accepted from outside (an array or map at the top is the first), as in mpack.pxd. A "$bin" or "$ext"
    # object counts as the map that it is until it closes.
    JSON_READ_DEPTH_MAX = 64
    # Going out, a value that came in with 64 levels stands inside frames: one deeper in a MESSAGE, four in a HISTORY
    # reply. The objects that its bins and exts become are not counted.
    JSON_WRITE_DEPTH_MAX = 72


cdef inline bint json_plain_word(uint64_t word) noexcept nogil:
    """Whether none of 8 characters is a quote, a backslash or a control (Mycroft's zero-byte test, three times)."""
    cdef uint64_t ones = <uint64_t>0x0101010101010101
    cdef uint64_t quote = word ^ (ones * 0x22)
    cdef uint64_t backslash = word ^ (ones * 0x5C)
    cdef uint64_t found = ((quote - ones) & ~quote) | ((backslash - ones) & ~backslash) | ((word - ones * 0x20) & ~word)
    return found & (ones * 0x80) == 0


cdef inline size_t json_plain_run(const uint8_t* text, const uint8_t* end) noexcept nogil:
    """Characters up to the first quote, backslash or control, or up to `end`."""
    cdef const uint8_t* at = text
    cdef uint64_t word
    while end - at >= 8:
        memcpy(&word, at, 8)
        if not json_plain_word(word):
            break
        at += 8
    while at < end and at[0] != c'"' and at[0] != c"\\" and at[0] >= 0x20:
        at += 1
    return at - text
