"""JSON to MessagePack without recursion: a stack of levels, one token after the other.

An object with the one key "$bin" or "$ext" is first read like any other and folded when it closes, so that escapes in
it need no second reader; what does not fit the pattern exactly stays the map that it is.
"""

from libc.math cimport isfinite
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from core.base64 cimport base64_decode
from core.json_form cimport (
    JSON_READ_DEPTH_MAX, TRANSCODE_DEPTH, TRANSCODE_MALFORMED, TRANSCODE_OVERFLOW, json_plain_run
)
from core.mpack cimport (
    MP_OK, MpReader, MpWriter, mp_bin_head_size, mp_ext_head_size, mp_read_array, mp_read_int, mp_read_str, mp_room,
    mp_write_array, mp_write_bin_head, mp_write_bool, mp_write_double, mp_write_ext_head, mp_write_int, mp_write_map,
    mp_write_nil, mp_write_str, mp_write_str_head, mp_write_uint
)
from core.number cimport double_read
from core.utf8 cimport utf8_valid

cdef extern from "invariant.h":
    void invariant(bint) nogil

# What a step leaves behind.
cdef enum:
    VALUE_DONE = 0     # a value is complete
    VALUE_AWAITED = 1  # a bracket, a comma or a key was read: a value must follow

ctypedef struct JsonLevel:  # an array or object that is being read
    uint8_t* start   # where its header is to stand in the output: one byte is kept free
    uint32_t count   # elements or pairs so far
    bint is_object

ctypedef struct JsonReader:
    const uint8_t* p    # next character; borrowed
    const uint8_t* end
    MpWriter out
    int depth           # levels open
    JsonLevel[JSON_READ_DEPTH_MAX] levels


# ---- strings -------------------------------------------------------------------------------------------------------

cdef inline int hex_value(uint8_t char) noexcept nogil:
    if c"0" <= char <= c"9":
        return char - c"0"
    char |= 0x20
    return char - c"a" + 10 if c"a" <= char <= c"f" else -1


cdef int64_t hex4_read(const uint8_t* text, const uint8_t* end) noexcept nogil:
    """The code unit of \\uXXXX at `text`, or -1."""
    cdef int64_t unit = 0
    cdef int digit
    cdef int at
    if end - text < 6 or text[0] != c"\\" or text[1] != c"u":
        return -1
    for at in range(2, 6):
        digit = hex_value(text[at])
        if digit < 0:
            return -1
        unit = unit << 4 | digit
    return unit


cdef uint32_t utf8_encode(uint32_t code, uint8_t* dst) noexcept nogil:
    """Write the UTF-8 of a code point (no surrogate); returns its size, 1 to 4."""
    if code < 0x80:
        dst[0] = <uint8_t>code
        return 1
    if code < 0x800:
        dst[0] = 0xC0 | <uint8_t>(code >> 6)
        dst[1] = 0x80 | <uint8_t>(code & 0x3F)
        return 2
    if code < 0x10000:
        dst[0] = 0xE0 | <uint8_t>(code >> 12)
        dst[1] = 0x80 | <uint8_t>((code >> 6) & 0x3F)
        dst[2] = 0x80 | <uint8_t>(code & 0x3F)
        return 3
    dst[0] = 0xF0 | <uint8_t>(code >> 18)
    dst[1] = 0x80 | <uint8_t>((code >> 12) & 0x3F)
    dst[2] = 0x80 | <uint8_t>((code >> 6) & 0x3F)
    dst[3] = 0x80 | <uint8_t>(code & 0x3F)
    return 4


cdef uint32_t unicode_escape_read(
    const uint8_t* text, const uint8_t* end, uint8_t* dst, uint32_t* dst_size
) noexcept nogil:
    """escape_read for \\uXXXX, alone or as a pair of surrogates."""
    cdef int64_t code = hex4_read(text, end)
    cdef int64_t low
    if code < 0 or 0xDC00 <= code <= 0xDFFF:
        return 0
    if code < 0xD800 or code > 0xDFFF:
        dst_size[0] = utf8_encode(<uint32_t>code, dst)
        return 6
    low = hex4_read(text + 6, end)
    if not 0xDC00 <= low <= 0xDFFF:
        return 0
    dst_size[0] = utf8_encode(<uint32_t>(0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00)), dst)
    return 12


cdef uint32_t escape_read(const uint8_t* text, const uint8_t* end, uint8_t* dst, uint32_t* dst_size) noexcept nogil:
    """Read the escape at `text`: its size, and its UTF-8 in `dst` (4 bytes); 0 if it is malformed."""
    cdef uint8_t char
    if end - text < 2:
        return 0
    char = text[1]
    if char == c"u":
        return unicode_escape_read(text, end, dst, dst_size)
    if char == c"n":
        char = c"\n"
    elif char == c"t":
        char = c"\t"
    elif char == c"r":
        char = c"\r"
    elif char == c"b":
        char = 0x08
    elif char == c"f":
        char = 0x0C
    elif char != c'"' and char != c"\\" and char != c"/":
        return 0
    dst[0] = char
    dst_size[0] = 1
    return 2


cdef int64_t string_walk(const uint8_t** text, const uint8_t* end, uint8_t* dst) noexcept nogil:
    """Go from behind a string's opening quote to behind its closing one; returns the decoded size, or -1.

    The decoded string is written to `dst`, unless that is NULL: the size is needed before the room is known.
    """
    cdef uint8_t escaped[4]
    cdef uint32_t escaped_size = 0
    cdef int64_t size = 0
    cdef size_t step
    while True:
        step = json_plain_run(text[0], end)
        if dst != NULL:
            memcpy(dst + size, text[0], step)
        size += step
        text[0] += step
        if text[0] == end:
            return -1
        if text[0][0] == c'"':
            text[0] += 1
            return size
        step = escape_read(text[0], end, escaped, &escaped_size) if text[0][0] == c"\\" else 0
        if step == 0:
            return -1
        if dst != NULL:
            memcpy(dst + size, escaped, escaped_size)
        size += escaped_size
        text[0] += step


cdef int string_read(JsonReader* reader) noexcept nogil:
    """Read the string at the cursor, a quote."""
    cdef const uint8_t* start = reader.p + 1
    cdef size_t run = json_plain_run(start, reader.end)
    cdef int64_t size
    reader.p = start
    if start + run < reader.end and start[run] == c'"':
        mp_write_str(&reader.out, <const char*>start, <uint32_t>run)
        reader.p += run + 1
        return VALUE_DONE
    size = string_walk(&reader.p, reader.end, NULL)
    if size < 0:
        return TRANSCODE_MALFORMED
    mp_write_str_head(&reader.out, <uint32_t>size)
    if not reader.out.overflow:
        string_walk(&start, reader.end, reader.out.p)
        reader.out.p += size
    return VALUE_DONE


# ---- numbers and literals ------------------------------------------------------------------------------------------

cdef inline const uint8_t* digits_skip(const uint8_t* text, const uint8_t* end) noexcept nogil:
    while text < end and c"0" <= text[0] <= c"9":
        text += 1
    return text


cdef const uint8_t* number_end(const uint8_t* text, const uint8_t* end, bint* integer) noexcept nogil:
    """Where the number at `text` (sign passed) ends by RFC 8259 section 6; NULL if it is none."""
    cdef const uint8_t* at = digits_skip(text, end)
    cdef const uint8_t* digits
    if at == text or (text[0] == c"0" and at - text > 1):
        return NULL
    integer[0] = True
    if at < end and at[0] == c".":
        integer[0] = False
        digits = at + 1
        at = digits_skip(digits, end)
        if at == digits:
            return NULL
    if at < end and (at[0] | 0x20) == c"e":
        integer[0] = False
        digits = at + 1
        if digits < end and (digits[0] == c"+" or digits[0] == c"-"):
            digits += 1
        at = digits_skip(digits, end)
        if at == digits:
            return NULL
    return at


cdef bint integer_read(const uint8_t* text, size_t size, uint64_t* value) noexcept nogil:
    """Whether `size` digits (no leading zero) are below 2 ** 64; then `value`."""
    cdef size_t at
    cdef uint64_t digit
    if size > 20:
        return False
    value[0] = 0
    for at in range(size):
        digit = text[at] - c"0"
        # 2 ** 64 - 1 = 10 * 1844674407370955161 + 5
        if value[0] > <uint64_t>1844674407370955161 or (value[0] == <uint64_t>1844674407370955161 and digit > 5):
            return False
        value[0] = value[0] * 10 + digit
    return True


cdef int number_read(JsonReader* reader) noexcept nogil:
    """Read the number at the cursor: an int where it is one within 64 bits, else a double."""
    cdef bint negative = reader.p[0] == c"-"
    cdef const uint8_t* start = reader.p + negative
    cdef bint integer = False
    cdef uint64_t whole = 0
    cdef double value
    cdef const uint8_t* at = number_end(start, reader.end, &integer)
    if at == NULL:
        return TRANSCODE_MALFORMED
    reader.p = at
    if integer and integer_read(start, at - start, &whole):
        if not negative:
            mp_write_uint(&reader.out, whole)
            return VALUE_DONE
        if 0 < whole <= <uint64_t>1 << 63:
            mp_write_int(&reader.out, <int64_t>(0 - whole))
            return VALUE_DONE
    value = double_read(start, at - start)
    if not isfinite(value):
        # It could never be given back: infinity has no JSON.
        return TRANSCODE_MALFORMED
    mp_write_double(&reader.out, -value if negative else value)
    return VALUE_DONE


cdef bint literal_skip(JsonReader* reader, const char* literal, size_t size) noexcept nogil:
    if <size_t>(reader.end - reader.p) < size or memcmp(reader.p, literal, size) != 0:
        return False
    reader.p += size
    return True


cdef int literal_read(JsonReader* reader) noexcept nogil:
    if literal_skip(reader, b"true", 4):
        mp_write_bool(&reader.out, True)
    elif literal_skip(reader, b"false", 5):
        mp_write_bool(&reader.out, False)
    elif literal_skip(reader, b"null", 4):
        mp_write_nil(&reader.out)
    else:
        return TRANSCODE_MALFORMED
    return VALUE_DONE


# ---- reading arrays and objects ------------------------------------------------------------------------------------

cdef void bin_fold(MpWriter* out, uint8_t* start) noexcept nogil:
    """Make {"$bin": "<base64>"}, which stands at `start` as a map, a bin; anything else stays."""
    cdef MpReader value
    cdef const char* text = NULL
    cdef uint32_t text_size = 0
    cdef int64_t size
    value.p = start + 6
    value.end = out.p
    if mp_read_str(&value, &text, &text_size) != MP_OK:
        return
    size = base64_decode(<const uint8_t*>text, text_size, NULL)
    if size < 0:
        return
    # The header of the bin is at most 5 bytes, so that decoding never overtakes the text it reads.
    base64_decode(<const uint8_t*>text, text_size, start + mp_bin_head_size(<uint32_t>size))
    out.p = start
    mp_write_bin_head(out, <uint32_t>size)
    out.p += size


cdef void ext_fold(MpWriter* out, uint8_t* start) noexcept nogil:
    """Make {"$ext": [type, "<base64>"]}, which stands at `start` as a map, an ext; anything else stays."""
    cdef MpReader value
    cdef const char* text = NULL
    cdef uint32_t text_size = 0
    cdef uint32_t count = 0
    cdef int64_t ext_type = 0
    cdef int64_t size
    value.p = start + 6
    value.end = out.p
    if mp_read_array(&value, &count) != MP_OK or count != 2 or mp_read_int(&value, &ext_type) != MP_OK:
        return
    if not -128 <= ext_type <= 127 or mp_read_str(&value, &text, &text_size) != MP_OK:
        return
    size = base64_decode(<const uint8_t*>text, text_size, NULL)
    if size < 0:
        return
    base64_decode(<const uint8_t*>text, text_size, start + mp_ext_head_size(<uint32_t>size))
    out.p = start
    mp_write_ext_head(out, <int8_t>ext_type, <uint32_t>size)
    out.p += size


cdef int level_open(JsonReader* reader, bint is_object) noexcept nogil:
    cdef JsonLevel* level
    if reader.depth == JSON_READ_DEPTH_MAX:
        return TRANSCODE_DEPTH
    level = &reader.levels[reader.depth]
    level.start = reader.out.p
    level.count = 0
    level.is_object = is_object
    reader.depth += 1
    reader.p += 1
    mp_write_nil(&reader.out)  # keeps the byte free in which the shortest header fits
    return VALUE_AWAITED


cdef int level_close(JsonReader* reader) noexcept nogil:
    """Put the header of the innermost level in front of its elements, moving them if it takes more than a byte."""
    cdef JsonLevel* level = &reader.levels[reader.depth - 1]
    cdef MpWriter* out = &reader.out
    cdef uint32_t extra = 0 if level.count <= 15 else 2 if level.count <= 0xFFFF else 4
    cdef uint8_t* end
    reader.depth -= 1
    reader.p += 1
    if not mp_room(out, extra):
        return TRANSCODE_OVERFLOW
    memmove(level.start + 1 + extra, level.start + 1, out.p - level.start - 1)
    end = out.p + extra
    out.p = level.start
    if level.is_object:
        mp_write_map(out, level.count)
    else:
        mp_write_array(out, level.count)
    invariant(out.p == level.start + 1 + extra and not out.overflow)
    out.p = end
    if level.is_object and level.count == 1 and end - level.start > 6:
        if memcmp(level.start + 1, b"\xa4$bin", 5) == 0:
            bin_fold(out, level.start)
        elif memcmp(level.start + 1, b"\xa4$ext", 5) == 0:
            ext_fold(out, level.start)
    return VALUE_DONE


cdef inline uint8_t token_next(JsonReader* reader) noexcept nogil:
    """The first character of the next token, 0 at the end: no token starts with NUL."""
    while reader.p < reader.end:
        if reader.p[0] != c" " and reader.p[0] != c"\n" and reader.p[0] != c"\r" and reader.p[0] != c"\t":
            return reader.p[0]
        reader.p += 1
    return 0


cdef int key_read(JsonReader* reader) noexcept nogil:
    """Read an object's key and the colon."""
    if token_next(reader) != c'"' or string_read(reader) < 0 or token_next(reader) != c":":
        return TRANSCODE_MALFORMED
    reader.p += 1
    return VALUE_AWAITED


cdef int container_read(JsonReader* reader, bint is_object) noexcept nogil:
    """Enter an array or object as far as its first value, or pass it if it is empty."""
    cdef int got = level_open(reader, is_object)
    if got < 0:
        return got
    if token_next(reader) == (c"}" if is_object else c"]"):
        return level_close(reader)
    return key_read(reader) if is_object else VALUE_AWAITED


cdef int value_read(JsonReader* reader) noexcept nogil:
    """Read a value, of an array or object only the beginning."""
    cdef uint8_t char = token_next(reader)
    if char == c'"':
        return string_read(reader)
    if char == c"{":
        return container_read(reader, True)
    if char == c"[":
        return container_read(reader, False)
    if char == c"-" or c"0" <= char <= c"9":
        return number_read(reader)
    return literal_read(reader)


cdef int level_next(JsonReader* reader) noexcept nogil:
    """Go on behind a value: to the next one of its array or object, or close that."""
    cdef JsonLevel* level = &reader.levels[reader.depth - 1]
    cdef uint8_t char = token_next(reader)
    level.count += 1
    if char == c",":
        reader.p += 1
        return key_read(reader) if level.is_object else VALUE_AWAITED
    if char == (c"}" if level.is_object else c"]"):
        return level_close(reader)
    return TRANSCODE_MALFORMED


cdef int json_read(JsonReader* reader) noexcept nogil:
    """Read one value with all that is in it."""
    cdef int got = VALUE_AWAITED
    while got == VALUE_AWAITED or reader.depth:
        got = value_read(reader) if got == VALUE_AWAITED else level_next(reader)
        if got < 0:
            return got
        if reader.out.overflow:
            return TRANSCODE_OVERFLOW
    return 0


cdef int json_to_mpack(const uint8_t* src, size_t size, uint8_t* dst, size_t cap, size_t* written) noexcept nogil:
    cdef JsonReader reader
    cdef int got
    if not utf8_valid(src, size):
        return TRANSCODE_MALFORMED
    reader.p = src
    reader.end = src + size
    reader.out.p = dst
    reader.out.end = dst + cap
    reader.out.overflow = False
    reader.depth = 0
    got = json_read(&reader)
    if got < 0:
        return got
    token_next(&reader)
    if reader.p != reader.end:
        return TRANSCODE_MALFORMED
    written[0] = reader.out.p - dst
    return 0
