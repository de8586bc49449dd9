# MessagePack over spans: a reader and a writer that neither allocate nor copy what they read.
#
# Readers return MP_OK, MP_TRUNCATED (the span ends too early) or MP_INVALID (malformed, or a value of another type),
# and move only on MP_OK. Strings and bins come as views into the span. Writers choose the shortest form; where a value
# does not fit they set `overflow` and write nothing of it, and nothing after it either.
#
# Invariant: p <= end. Source: the MessagePack specification, github.com/msgpack/msgpack/blob/master/spec.md.
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from core.utf8 cimport utf8_valid

cdef extern from "invariant.h":
    void invariant(bint) nogil

cdef enum:
    MP_OK = 0
    MP_TRUNCATED = -1
    MP_INVALID = -2

# The type classes, as mp_peek and MpHead.kind tell them; the two codes above stand beside them.
cdef enum:
    MP_NIL = 0
    MP_BOOL = 1
    MP_INT = 2
    MP_FLOAT = 3
    MP_STR = 4
    MP_BIN = 5
    MP_ARRAY = 6
    MP_MAP = 7
    MP_EXT = 8

cdef enum:
    MP_DEPTH_MAX = 64  # arrays and maps inside one another that a value from outside may have, itself included

ctypedef struct MpReader:
    const uint8_t* p    # next byte to read; borrowed for as long as the reader and its views are used
    const uint8_t* end  # one past the last byte

ctypedef struct MpWriter:
    uint8_t* p      # next byte to write; borrowed
    uint8_t* end    # one past the last byte that may be written
    bint overflow   # something did not fit: what was written is not a whole value

ctypedef struct MpHead:
    uint64_t bits      # MP_INT: the value in two's complement; MP_FLOAT: the double's bits; MP_BOOL: 0 or 1
    uint32_t size      # MP_STR, MP_BIN, MP_EXT: payload bytes; MP_ARRAY: elements; MP_MAP: pairs
    int8_t ext_type    # MP_EXT
    uint8_t kind       # MP_NIL … MP_EXT
    uint8_t negative   # MP_INT: the value is below zero


cdef extern from *:
    """
    #include <endian.h>
    #define mp_swap16(x) be16toh(x)
    #define mp_swap32(x) be32toh(x)
    #define mp_swap64(x) be64toh(x)
    """
    uint16_t mp_swap16(uint16_t) nogil
    uint32_t mp_swap32(uint32_t) nogil
    uint64_t mp_swap64(uint64_t) nogil


cdef inline uint64_t mp_load(const uint8_t* src, uint32_t size) noexcept nogil:
    """A big-endian integer of 1, 2, 4 or 8 bytes."""
    cdef uint16_t two
    cdef uint32_t four
    cdef uint64_t eight
    if size == 1:
        return src[0]
    if size == 2:
        memcpy(&two, src, 2)
        return mp_swap16(two)
    if size == 4:
        memcpy(&four, src, 4)
        return mp_swap32(four)
    memcpy(&eight, src, 8)
    return mp_swap64(eight)


# ---- reading -------------------------------------------------------------------------------------------------------

cdef inline int mp_kind(uint8_t lead) noexcept nogil:
    """The type class that a value's first byte announces, or MP_INVALID for 0xc1."""
    if lead <= 0x7F or lead >= 0xE0 or 0xCC <= lead <= 0xD3:
        return MP_INT
    if lead <= 0x8F or lead >= 0xDE:
        return MP_MAP
    if lead <= 0x9F or lead >= 0xDC:
        return MP_ARRAY
    if lead <= 0xBF or lead >= 0xD9:
        return MP_STR
    if lead <= 0xC3:
        return MP_NIL if lead == 0xC0 else MP_INVALID if lead == 0xC1 else MP_BOOL
    if lead <= 0xC6:
        return MP_BIN
    return MP_FLOAT if lead == 0xCA or lead == 0xCB else MP_EXT


cdef inline int mp_peek(const MpReader* reader) noexcept nogil:
    """Type class of the next value, MP_TRUNCATED at the end of the span, MP_INVALID at 0xc1."""
    if reader.p >= reader.end:
        return MP_TRUNCATED
    return mp_kind(reader.p[0])


cdef inline uint32_t mp_head_extra(uint8_t lead) noexcept nogil:
    """Bytes of value or length that follow the first byte of a form from 0xc0 to 0xdf; ext's type byte not counted."""
    if lead <= 0xC3 or 0xD4 <= lead <= 0xD8:
        return 0
    if lead == 0xCA or lead == 0xCB:
        return 4 if lead == 0xCA else 8
    if 0xCC <= lead <= 0xD3:
        return 1 << (lead & 3)
    if lead >= 0xDC:
        return 2 if lead == 0xDC or lead == 0xDE else 4
    # bin 0xc4-6, ext 0xc7-9, str 0xd9-b
    return 1 << ((lead - 0xC4) % 3 if lead < 0xD9 else lead - 0xD9)


cdef inline uint64_t mp_float_widen(uint64_t bits) noexcept nogil:
    cdef uint32_t narrow_bits = <uint32_t>bits
    cdef float narrow
    cdef double wide
    memcpy(&narrow, &narrow_bits, 4)
    wide = narrow
    memcpy(&bits, &wide, 8)
    return bits


cdef inline void mp_head_int(MpHead* head, uint8_t lead, uint64_t value) noexcept nogil:
    """Widen the integer behind 0xcc to 0xd3."""
    if lead == 0xD0:
        value = <uint64_t><int64_t><int8_t>value
    elif lead == 0xD1:
        value = <uint64_t><int64_t><int16_t>value
    elif lead == 0xD2:
        value = <uint64_t><int64_t><int32_t>value
    head.bits = value
    head.negative = lead >= 0xD0 and <int64_t>value < 0


cdef inline int mp_head_long(MpReader* reader, MpHead* head) noexcept nogil:
    """mp_head for the forms from 0xc0 to 0xdf."""
    cdef uint8_t lead = reader.p[0]
    cdef uint32_t extra = mp_head_extra(lead)
    cdef uint32_t size = 1 + extra + (head.kind == MP_EXT)
    cdef uint64_t value = 0
    if reader.end - reader.p < size:
        return MP_TRUNCATED
    if extra:
        value = mp_load(reader.p + 1, extra)
    if head.kind == MP_INT:
        mp_head_int(head, lead, value)
    elif head.kind == MP_FLOAT:
        head.bits = value if extra == 8 else mp_float_widen(value)
    elif head.kind == MP_BOOL:
        head.bits = lead & 1
    else:
        head.size = <uint32_t>value
        if head.kind == MP_EXT:
            head.ext_type = <int8_t>reader.p[1 + extra]
            if not extra:
                head.size = 1 << (lead - 0xD4)
    reader.p += size
    return MP_OK


cdef inline int mp_head(MpReader* reader, MpHead* head) noexcept nogil:
    """Read what stands before a value's payload or elements; the payload of a str, bin or ext is sure to be there."""
    cdef uint8_t lead
    cdef const uint8_t* start = reader.p
    if reader.p >= reader.end:
        return MP_TRUNCATED
    lead = reader.p[0]
    if lead == 0xC1:
        return MP_INVALID
    head.kind = <uint8_t>mp_kind(lead)
    head.bits = 0
    head.size = 0
    head.ext_type = 0
    head.negative = False
    if 0xC0 <= lead <= 0xDF:
        if mp_head_long(reader, head) < 0:
            return MP_TRUNCATED
    else:
        reader.p += 1
        if head.kind == MP_INT:
            head.bits = <uint64_t><int64_t><int8_t>lead
            head.negative = lead >> 7
        else:
            head.size = lead & (0x1F if head.kind == MP_STR else 0x0F)
    if MP_STR <= head.kind <= MP_EXT and head.kind != MP_ARRAY and head.kind != MP_MAP:
        if <uint64_t>(reader.end - reader.p) < head.size:
            reader.p = start
            return MP_TRUNCATED
    return MP_OK


cdef inline int mp_head_of(MpReader* reader, int kind, MpHead* head) noexcept nogil:
    """mp_head, refusing any other kind."""
    cdef int got = mp_peek(reader)
    if got != kind:
        return got if got < 0 else MP_INVALID
    return mp_head(reader, head)


cdef inline int mp_read_array(MpReader* reader, uint32_t* count) noexcept nogil:
    """Enter an array of `count` elements."""
    cdef MpHead head
    cdef int got
    if reader.p < reader.end and (reader.p[0] & 0xF0) == 0x90:
        count[0] = reader.p[0] & 0x0F
        reader.p += 1
        return MP_OK
    got = mp_head_of(reader, MP_ARRAY, &head)
    if got == MP_OK:
        count[0] = head.size
    return got


cdef inline int mp_read_map(MpReader* reader, uint32_t* count) noexcept nogil:
    """Enter a map of `count` pairs."""
    cdef MpHead head
    cdef int got
    if reader.p < reader.end and (reader.p[0] & 0xF0) == 0x80:
        count[0] = reader.p[0] & 0x0F
        reader.p += 1
        return MP_OK
    got = mp_head_of(reader, MP_MAP, &head)
    if got == MP_OK:
        count[0] = head.size
    return got


cdef inline int mp_read_uint(MpReader* reader, uint64_t* value) noexcept nogil:
    """Read an integer that is not negative, in whatever form it was written."""
    cdef MpHead head
    cdef const uint8_t* start = reader.p
    cdef int got
    if reader.p < reader.end and reader.p[0] <= 0x7F:
        value[0] = reader.p[0]
        reader.p += 1
        return MP_OK
    got = mp_head_of(reader, MP_INT, &head)
    if got == MP_OK and head.negative:
        reader.p = start
        return MP_INVALID
    if got == MP_OK:
        value[0] = head.bits
    return got


cdef inline int mp_read_int(MpReader* reader, int64_t* value) noexcept nogil:
    """Read an integer; one of 2^63 or more is MP_INVALID."""
    cdef MpHead head
    cdef const uint8_t* start = reader.p
    cdef int got = mp_head_of(reader, MP_INT, &head)
    if got == MP_OK and not head.negative and head.bits >> 63:
        reader.p = start
        return MP_INVALID
    if got == MP_OK:
        value[0] = <int64_t>head.bits
    return got


cdef inline int mp_read_double(MpReader* reader, double* value) noexcept nogil:
    """Read a number, integers included: JSON senders do not tell 1 from 1.0."""
    cdef MpHead head
    cdef int got = mp_peek(reader)
    if got != MP_INT and got != MP_FLOAT:
        return got if got < 0 else MP_INVALID
    got = mp_head(reader, &head)
    if got < 0:
        return got
    if head.kind == MP_FLOAT:
        memcpy(value, &head.bits, 8)
    else:
        value[0] = <double><int64_t>head.bits if head.negative else <double>head.bits
    return MP_OK


cdef inline int mp_read_span(MpReader* reader, int kind, const char** data, uint32_t* size) noexcept nogil:
    cdef MpHead head
    cdef int got = mp_head_of(reader, kind, &head)
    if got == MP_OK:
        data[0] = <const char*>reader.p
        size[0] = head.size
        reader.p += head.size
    return got


cdef inline int mp_read_str(MpReader* reader, const char** data, uint32_t* size) noexcept nogil:
    """Read a string: a view into the span, not ended by a NUL, its UTF-8 not checked (mp_skip does that)."""
    return mp_read_span(reader, MP_STR, data, size)


cdef inline int mp_read_bin(MpReader* reader, const char** data, uint32_t* size) noexcept nogil:
    """Read a bin: a view into the span."""
    return mp_read_span(reader, MP_BIN, data, size)


cdef inline int mp_read_nil(MpReader* reader) noexcept nogil:
    cdef MpHead head
    return mp_head_of(reader, MP_NIL, &head)


cdef inline int mp_read_bool(MpReader* reader, bint* value) noexcept nogil:
    cdef MpHead head
    cdef int got = mp_head_of(reader, MP_BOOL, &head)
    if got == MP_OK:
        value[0] = head.bits != 0
    return got


cdef inline int mp_skip_payload(MpReader* reader, const MpHead* head) noexcept nogil:
    """Pass over the payload of a value that is no array and no map; strings must be UTF-8."""
    if head.kind == MP_STR and not utf8_valid(reader.p, head.size):
        return MP_INVALID
    reader.p += head.size
    return MP_OK


cdef inline int mp_skip_values(MpReader* reader, uint64_t* left, uint8_t* in_map) noexcept nogil:
    """mp_skip with its stack: left[level] values are still to come there, and in a map an even number means a key."""
    cdef MpHead head
    cdef int depth = 0
    cdef int got
    left[0] = 1
    in_map[0] = False
    while True:
        while left[depth] == 0:
            if depth == 0:
                return MP_OK
            depth -= 1
        got = mp_head(reader, &head)
        if got < 0:
            return got
        if in_map[depth] and not left[depth] & 1 and head.kind != MP_STR and head.kind != MP_INT:
            return MP_INVALID
        left[depth] -= 1
        if head.kind == MP_ARRAY or head.kind == MP_MAP:
            if depth == MP_DEPTH_MAX:
                return MP_INVALID
            depth += 1
            in_map[depth] = head.kind == MP_MAP
            left[depth] = <uint64_t>head.size << in_map[depth]
        elif mp_skip_payload(reader, &head) < 0:
            return MP_INVALID


cdef inline int mp_skip(MpReader* reader) noexcept nogil:
    """Pass over exactly one value that every kind of session can receive.

    MP_INVALID: 0xc1, a string that is not UTF-8, a map key other than str or int (JSON knows no other), or arrays and
    maps more than MP_DEPTH_MAX deep. What is left to read bounds the work, not the counts that headers announce.
    """
    cdef uint64_t left[MP_DEPTH_MAX + 1]
    cdef uint8_t in_map[MP_DEPTH_MAX + 1]
    cdef const uint8_t* start = reader.p
    cdef int got = mp_skip_values(reader, left, in_map)
    if got < 0:
        reader.p = start
    return got


# ---- writing -------------------------------------------------------------------------------------------------------

cdef inline bint mp_room(MpWriter* writer, uint64_t size) noexcept nogil:
    """Whether `size` more bytes fit; if not, the writer overflows here and stays so."""
    if writer.overflow or <uint64_t>(writer.end - writer.p) < size:
        writer.overflow = True
        return False
    return True


cdef inline void mp_put(MpWriter* writer, uint8_t lead, uint64_t value, uint32_t size) noexcept nogil:
    """Append `lead` and the lower `size` bytes (0, 1, 2, 4, 8) of `value`, big-endian; the room has been checked."""
    cdef uint64_t shifted
    writer.p[0] = lead
    if size:
        shifted = mp_swap64(value << (64 - 8 * size))
        memcpy(writer.p + 1, &shifted, size)
    writer.p += 1 + size


cdef inline uint32_t mp_length_size(uint32_t value) noexcept nogil:
    """Bytes of the shortest length field, where 1 is allowed."""
    return 1 if value <= 0xFF else 2 if value <= 0xFFFF else 4


cdef inline void mp_write_array(MpWriter* writer, uint32_t count) noexcept nogil:
    cdef uint32_t extra = 0 if count <= 15 else 2 if count <= 0xFFFF else 4
    if mp_room(writer, 1 + extra):
        mp_put(writer, 0x90 | <uint8_t>count if extra == 0 else 0xDC if extra == 2 else 0xDD, count, extra)


cdef inline void mp_write_map(MpWriter* writer, uint32_t count) noexcept nogil:
    """`count` pairs."""
    cdef uint32_t extra = 0 if count <= 15 else 2 if count <= 0xFFFF else 4
    if mp_room(writer, 1 + extra):
        mp_put(writer, 0x80 | <uint8_t>count if extra == 0 else 0xDE if extra == 2 else 0xDF, count, extra)


cdef inline void mp_write_uint(MpWriter* writer, uint64_t value) noexcept nogil:
    cdef uint32_t extra
    if value <= 0x7F:
        if mp_room(writer, 1):
            mp_put(writer, <uint8_t>value, 0, 0)
        return
    extra = 1 if value <= 0xFF else 2 if value <= 0xFFFF else 4 if value <= <uint64_t>0xFFFFFFFF else 8
    if mp_room(writer, 1 + extra):
        mp_put(writer, 0xCC if extra == 1 else 0xCD if extra == 2 else 0xCE if extra == 4 else 0xCF, value, extra)


cdef inline void mp_write_int(MpWriter* writer, int64_t value) noexcept nogil:
    cdef uint32_t extra
    if value >= 0:
        mp_write_uint(writer, <uint64_t>value)
        return
    if value >= -32:
        if mp_room(writer, 1):
            mp_put(writer, <uint8_t>value, 0, 0)
        return
    extra = 1 if value >= -0x80 else 2 if value >= -0x8000 else 4 if value >= -<int64_t>0x80000000 else 8
    if mp_room(writer, 1 + extra):
        mp_put(
            writer, 0xD0 if extra == 1 else 0xD1 if extra == 2 else 0xD2 if extra == 4 else 0xD3, <uint64_t>value, extra
        )


cdef inline void mp_write_raw(MpWriter* writer, const void* data, uint32_t size) noexcept nogil:
    """Append bytes that are MessagePack already."""
    if mp_room(writer, size) and size:
        memcpy(writer.p, data, size)
        writer.p += size


cdef inline uint32_t mp_bin_head_size(uint32_t size) noexcept nogil:
    """Bytes in front of a bin's payload."""
    return 1 + mp_length_size(size)


cdef inline uint32_t mp_ext_head_size(uint32_t size) noexcept nogil:
    """Bytes in front of an ext's payload; 1, 2, 4, 8 and 16 have forms of their own (fixext)."""
    return 2 if size <= 16 and size and not size & (size - 1) else 2 + mp_length_size(size)


cdef inline void mp_write_str_head(MpWriter* writer, uint32_t size) noexcept nogil:
    """The header of a string, if the string fits as a whole: exactly `size` bytes of UTF-8 must follow."""
    cdef uint32_t extra = 0 if size <= 31 else mp_length_size(size)
    if mp_room(writer, <uint64_t>1 + extra + size):
        mp_put(
            writer, 0xA0 | <uint8_t>size if extra == 0 else 0xD9 if extra == 1 else 0xDA if extra == 2 else 0xDB,
            size, extra
        )


cdef inline void mp_write_bin_head(MpWriter* writer, uint32_t size) noexcept nogil:
    """The header of a bin, if it fits as a whole: exactly `size` bytes must follow."""
    cdef uint32_t extra = mp_length_size(size)
    if mp_room(writer, <uint64_t>1 + extra + size):
        mp_put(writer, 0xC4 if extra == 1 else 0xC5 if extra == 2 else 0xC6, size, extra)


cdef inline void mp_write_ext_head(MpWriter* writer, int8_t ext_type, uint32_t size) noexcept nogil:
    """The header of an ext, if it fits as a whole: exactly `size` bytes must follow."""
    cdef uint32_t extra = mp_ext_head_size(size) - 2
    cdef uint8_t lead = 0xC7 if extra == 1 else 0xC8 if extra == 2 else 0xC9
    if extra == 0:
        lead = 0xD4 if size == 1 else 0xD5 if size == 2 else 0xD6 if size == 4 else 0xD7 if size == 8 else 0xD8
    if mp_room(writer, <uint64_t>2 + extra + size):
        mp_put(writer, lead, size, extra)
        mp_put(writer, <uint8_t>ext_type, 0, 0)


cdef inline void mp_write_str(MpWriter* writer, const char* text, uint32_t size) noexcept nogil:
    """`text` must be UTF-8 (not checked here)."""
    mp_write_str_head(writer, size)
    mp_write_raw(writer, text, size)


cdef inline void mp_write_bin(MpWriter* writer, const void* data, uint32_t size) noexcept nogil:
    mp_write_bin_head(writer, size)
    mp_write_raw(writer, data, size)


cdef inline void mp_write_ext(MpWriter* writer, int8_t ext_type, const void* data, uint32_t size) noexcept nogil:
    mp_write_ext_head(writer, ext_type, size)
    mp_write_raw(writer, data, size)


cdef inline void mp_write_nil(MpWriter* writer) noexcept nogil:
    if mp_room(writer, 1):
        mp_put(writer, 0xC0, 0, 0)


cdef inline void mp_write_bool(MpWriter* writer, bint value) noexcept nogil:
    if mp_room(writer, 1):
        mp_put(writer, 0xC3 if value else 0xC2, 0, 0)


cdef inline void mp_write_double(MpWriter* writer, double value) noexcept nogil:
    """Always 9 bytes: a float of 4 would have to be told apart by value, and receivers gain nothing."""
    cdef uint64_t bits
    memcpy(&bits, &value, 8)
    if mp_room(writer, 9):
        mp_put(writer, 0xCB, bits, 8)
