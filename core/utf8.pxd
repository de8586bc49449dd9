# UTF-8 validity as RFC 3629 has it: no surrogates, no overlong forms, nothing above U+10FFFF.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    UTF8_WORD = 8  # bytes looked at together while the text is ASCII


cdef inline size_t utf8_sequence(const uint8_t* text, size_t size) noexcept nogil:
    """Length of the well-formed sequence of 2 to 4 bytes at the start of `text`, or 0 (Unicode 15, table 3-7)."""
    cdef uint8_t lead = text[0]
    cdef uint8_t low = 0x80
    cdef uint8_t high = 0xBF
    cdef size_t length
    if 0xC2 <= lead <= 0xDF:
        length = 2
    elif 0xE0 <= lead <= 0xEF:
        length = 3
        if lead == 0xE0:
            low = 0xA0
        elif lead == 0xED:
            high = 0x9F
    elif 0xF0 <= lead <= 0xF4:
        length = 4
        if lead == 0xF0:
            low = 0x90
        elif lead == 0xF4:
            high = 0x8F
    else:
        return 0
    if size < length or text[1] < low or text[1] > high:
        return 0
    if length > 2 and (text[2] & 0xC0) != 0x80:
        return 0
    if length > 3 and (text[3] & 0xC0) != 0x80:
        return 0
    return length


cdef inline bint utf8_valid(const uint8_t* text, size_t size) noexcept nogil:
    """Whether all `size` bytes of `text` are well-formed UTF-8; an empty text is."""
    cdef size_t at = 0
    cdef size_t step
    cdef uint64_t word
    while at < size:
        if size - at >= UTF8_WORD:
            memcpy(&word, text + at, UTF8_WORD)
            if not word & <uint64_t>0x8080808080808080:
                at += UTF8_WORD
                continue
        if text[at] < 0x80:
            at += 1
            continue
        step = utf8_sequence(text + at, size - at)
        if step == 0:
            return False
        at += step
    return True
