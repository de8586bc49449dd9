"""MessagePack to JSON without recursion: a stack of levels, one value after the other."""

from libc.math cimport isfinite
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from core.base64 cimport base64_encode, base64_size
from core.json_form cimport (
    JSON_WRITE_DEPTH_MAX, TRANSCODE_DEPTH, TRANSCODE_MALFORMED, TRANSCODE_OVERFLOW, json_plain_run
)
from core.mpack cimport (
    MP_ARRAY, MP_BIN, MP_BOOL, MP_FLOAT, MP_INT, MP_MAP, MP_NIL, MP_STR, MpHead, MpReader, MpWriter, mp_head, mp_put,
    mp_room, mp_write_raw
)
from core.number cimport NUMBER_TEXT_SIZE_MAX, double_write, integer_write
from core.utf8 cimport utf8_valid

ctypedef struct MpackLevel:  # an array or map that is being written
    uint64_t left    # values still to come; a pair is two, so that in a map an even number means a key
    bint is_map
    bint begun       # something was written: a comma goes before the next


# ---- writing JSON --------------------------------------------------------------------------------------------------

cdef inline void char_put(MpWriter* out, uint8_t char) noexcept nogil:
    if mp_room(out, 1):
        mp_put(out, char, 0, 0)


cdef void escape_put(MpWriter* out, uint8_t char) noexcept nogil:
    """Write a character that must be escaped, in the short form if it has one."""
    cdef const char* hex_digits = b"0123456789abcdef"
    cdef uint8_t[6] text = [c"\\", c"u", c"0", c"0", c"0", c"0"]
    cdef uint8_t short_form = (
        char if char == c'"' or char == c"\\" else c"n" if char == c"\n" else c"t" if char == c"\t" else
        c"r" if char == c"\r" else c"b" if char == 0x08 else c"f" if char == 0x0C else 0
    )
    if short_form:
        text[1] = short_form
        mp_write_raw(out, text, 2)
    else:
        text[4] = hex_digits[char >> 4]
        text[5] = hex_digits[char & 15]
        mp_write_raw(out, text, 6)


cdef int string_put(MpWriter* out, const uint8_t* text, uint32_t size) noexcept nogil:
    cdef const uint8_t* end = text + size
    cdef size_t run
    if not utf8_valid(text, size):
        return TRANSCODE_MALFORMED
    char_put(out, c'"')
    while True:
        run = json_plain_run(text, end)
        mp_write_raw(out, text, <uint32_t>run)
        text += run
        if text == end:
            break
        escape_put(out, text[0])
        text += 1
    char_put(out, c'"')
    return 0


cdef void integer_put(MpWriter* out, const MpHead* head) noexcept nogil:
    cdef uint8_t text[NUMBER_TEXT_SIZE_MAX]
    cdef size_t size = integer_write(head.negative, 0 - head.bits if head.negative else head.bits, text)
    mp_write_raw(out, text, <uint32_t>size)


cdef void double_put(MpWriter* out, const MpHead* head) noexcept nogil:
    cdef uint8_t text[NUMBER_TEXT_SIZE_MAX]
    cdef double value
    memcpy(&value, &head.bits, 8)
    if isfinite(value):
        mp_write_raw(out, text, <uint32_t>double_write(value, text))
    else:
        mp_write_raw(out, b"null", 4)


cdef void base64_put(MpWriter* out, const uint8_t* data, uint32_t size) noexcept nogil:
    """Write `data` in base64 between quotes."""
    char_put(out, c'"')
    if mp_room(out, base64_size(size)):
        out.p += base64_encode(data, size, out.p)
    char_put(out, c'"')


cdef int scalar_put(MpWriter* out, const uint8_t* payload, const MpHead* head) noexcept nogil:
    """Write a value that is no array and no map."""
    cdef MpHead ext_type
    if head.kind == MP_STR:
        return string_put(out, payload, head.size)
    if head.kind == MP_INT:
        integer_put(out, head)
    elif head.kind == MP_FLOAT:
        double_put(out, head)
    elif head.kind == MP_NIL:
        mp_write_raw(out, b"null", 4)
    elif head.kind == MP_BOOL:
        mp_write_raw(out, b"true" if head.bits else b"false", 4 if head.bits else 5)
    elif head.kind == MP_BIN:
        mp_write_raw(out, b'{"$bin":', 8)
        base64_put(out, payload, head.size)
        char_put(out, c"}")
    else:
        mp_write_raw(out, b'{"$ext":[', 9)
        ext_type.bits = <uint64_t><int64_t>head.ext_type
        ext_type.negative = head.ext_type < 0
        integer_put(out, &ext_type)
        char_put(out, c",")
        base64_put(out, payload, head.size)
        mp_write_raw(out, b"]}", 2)
    return 0


cdef int key_put(MpWriter* out, const uint8_t* payload, const MpHead* head) noexcept nogil:
    """Write a map's key and the colon; an integer becomes a string, as JSON knows no other keys."""
    if head.kind == MP_STR:
        if string_put(out, payload, head.size) < 0:
            return TRANSCODE_MALFORMED
    elif head.kind == MP_INT:
        char_put(out, c'"')
        integer_put(out, head)
        char_put(out, c'"')
    else:
        return TRANSCODE_MALFORMED
    char_put(out, c":")
    return 0


cdef int item_put(MpReader* reader, MpWriter* out, MpackLevel* level, MpHead* head) noexcept nogil:
    """Write the next item of `level`: a scalar, a key, or the bracket that opens what `head` then announces."""
    cdef bint is_key = level.is_map and not level.left & 1
    cdef int got = 0
    if mp_head(reader, head) < 0:
        return TRANSCODE_MALFORMED
    if level.begun and (is_key or not level.is_map):
        char_put(out, c",")
    level.begun = True
    level.left -= 1
    if is_key:
        got = key_put(out, reader.p, head)
    elif head.kind == MP_ARRAY or head.kind == MP_MAP:
        char_put(out, c"{" if head.kind == MP_MAP else c"[")
        return 0
    else:
        got = scalar_put(out, reader.p, head)
    reader.p += head.size
    return got


cdef int json_write(MpReader* reader, MpWriter* out, MpackLevel* levels) noexcept nogil:
    """Write one value with all that is in it; levels[0] holds that value alone."""
    cdef MpHead head
    cdef int depth = 0
    cdef int got
    levels[0] = MpackLevel(left=1, is_map=False, begun=False)
    while True:
        while levels[depth].left == 0:
            if depth == 0:
                return TRANSCODE_OVERFLOW if out.overflow else 0
            char_put(out, c"}" if levels[depth].is_map else c"]")
            depth -= 1
        got = item_put(reader, out, &levels[depth], &head)
        if got < 0:
            return got
        if out.overflow:
            return TRANSCODE_OVERFLOW
        if head.kind == MP_ARRAY or head.kind == MP_MAP:
            if depth == JSON_WRITE_DEPTH_MAX:
                return TRANSCODE_DEPTH
            depth += 1
            levels[depth] = MpackLevel(
                left=<uint64_t>head.size << (head.kind == MP_MAP), is_map=head.kind == MP_MAP, begun=False
            )


cdef int mpack_to_json(const uint8_t* src, size_t size, uint8_t* dst, size_t cap, size_t* written) noexcept nogil:
    cdef MpackLevel[JSON_WRITE_DEPTH_MAX + 1] levels
    cdef MpReader reader
    cdef MpWriter out
    cdef int got
    reader.p = src
    reader.end = src + size
    out.p = dst
    out.end = dst + cap
    out.overflow = False
    got = json_write(&reader, &out, levels)
    if got < 0:
        return got
    if reader.p != reader.end:
        return TRANSCODE_MALFORMED
    written[0] = out.p - dst
    return 0
