"""The Python face of mpack.pxd, for tests: one value or one header at a time."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from core.mpack cimport (
    MP_ARRAY, MP_BIN, MP_BOOL, MP_EXT, MP_FLOAT, MP_INT, MP_INVALID, MP_MAP, MP_NIL, MP_OK, MP_STR, MP_TRUNCATED,
    MpReader, MpWriter, mp_peek, mp_read_array, mp_read_bin, mp_read_bool, mp_read_double, mp_read_int, mp_read_map,
    mp_read_nil, mp_read_str, mp_read_uint, mp_skip, mp_write_array, mp_write_bin, mp_write_bool, mp_write_double,
    mp_write_ext, mp_write_int, mp_write_map, mp_write_nil, mp_write_raw, mp_write_str, mp_write_uint
)

TRUNCATED = MP_TRUNCATED
INVALID = MP_INVALID
NIL, BOOL, INT, FLOAT, STR = MP_NIL, MP_BOOL, MP_INT, MP_FLOAT, MP_STR
BIN, ARRAY, MAP, EXT = MP_BIN, MP_ARRAY, MP_MAP, MP_EXT


cdef int scalar_read(MpReader* reader, str what, list found) except? -9:
    cdef uint64_t natural = 0
    cdef int64_t integer = 0
    cdef double number = 0
    cdef bint truth = False
    cdef int got
    if what == "uint":
        got = mp_read_uint(reader, &natural)
        found.append(natural)
    elif what == "int":
        got = mp_read_int(reader, &integer)
        found.append(integer)
    elif what == "double":
        got = mp_read_double(reader, &number)
        found.append(number)
    elif what == "bool":
        got = mp_read_bool(reader, &truth)
        found.append(bool(truth))
    elif what == "nil":
        got = mp_read_nil(reader)
        found.append(None)
    else:
        raise ValueError(what)
    return got


cdef int sized_read(MpReader* reader, str what, list found) except? -9:
    cdef const char* data = NULL
    cdef uint32_t size = 0
    cdef int got
    if what == "array":
        got = mp_read_array(reader, &size)
        found.append(size)
        return got
    if what == "map":
        got = mp_read_map(reader, &size)
        found.append(size)
        return got
    got = mp_read_str(reader, &data, &size) if what == "str" else mp_read_bin(reader, &data, &size)
    found.append(data[:size] if got == MP_OK else None)
    return got


def read(what: str, data: bytes) -> tuple[int, object, int]:
    """Read one `what` (uint, int, double, bool, nil, array, map, str, bin): (code, value, bytes consumed)."""
    cdef MpReader reader
    cdef const uint8_t* start = <const uint8_t*><const char*>data
    cdef list found = []
    cdef int got
    reader.p = start
    reader.end = start + len(data)
    if what in ("array", "map", "str", "bin"):
        got = sized_read(&reader, what, found)
    else:
        got = scalar_read(&reader, what, found)
    return got, found[0] if got == MP_OK else None, reader.p - start


def peek(data: bytes) -> int:
    """Type class of the value at the start of `data`, or a code."""
    cdef MpReader reader
    reader.p = <const uint8_t*><const char*>data
    reader.end = reader.p + len(data)
    return mp_peek(&reader)


def skip(data: bytes) -> int:
    """Size of the one well-formed value at the start of `data`, or a code."""
    cdef MpReader reader
    cdef const uint8_t* start = <const uint8_t*><const char*>data
    cdef int got
    reader.p = start
    reader.end = start + len(data)
    with nogil:
        got = mp_skip(&reader)
    return got if got < 0 else reader.p - start


cdef int value_write(MpWriter* writer, str what, object value) except -1:
    if what == "uint":
        mp_write_uint(writer, <uint64_t>value)
    elif what == "int":
        mp_write_int(writer, <int64_t>value)
    elif what == "double":
        mp_write_double(writer, value)
    elif what == "bool":
        mp_write_bool(writer, value)
    elif what == "nil":
        mp_write_nil(writer)
    elif what == "array":
        mp_write_array(writer, value)
    elif what == "map":
        mp_write_map(writer, value)
    elif what == "str":
        mp_write_str(writer, <const char*>value, <uint32_t>len(value))
    elif what == "bin":
        mp_write_bin(writer, <const char*>value, <uint32_t>len(value))
    elif what == "raw":
        mp_write_raw(writer, <const char*>value, <uint32_t>len(value))
    elif what == "ext":
        mp_write_ext(writer, value[0], <const char*>value[1], <uint32_t>len(value[1]))
    else:
        raise ValueError(what)
    return 0


def write(items: list[tuple[str, object]], capacity: int) -> tuple[bytes, bool]:
    """Write (what, value) items into `capacity` bytes: (what was written, whether it overflowed)."""
    cdef bytearray buffer = bytearray(capacity)
    cdef uint8_t* start = <uint8_t*><char*>buffer
    cdef MpWriter writer
    writer.p = start
    writer.end = start + <size_t>capacity
    writer.overflow = False
    for what, value in items:
        value_write(&writer, what, value)
    return bytes(buffer[:writer.p - start]), bool(writer.overflow)
