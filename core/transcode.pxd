# JSON to MessagePack and back, whole values at a time, with the mapping of the protocol page.
#
# json_to_mpack (json_read.pyx) and mpack_to_json (json_write.pyx) return 0 and `written`, or a TRANSCODE_ code; they
# need neither the GIL nor the heap, and do not depend on the locale.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

cdef enum:
    TRANSCODE_MALFORMED = -1  # not exactly one well-formed value, or one that the other encoding cannot say
    TRANSCODE_OVERFLOW = -2   # `cap` is too small; with json_bound or mpack_bound bytes this cannot happen
    TRANSCODE_DEPTH = -3      # arrays and maps too deep inside one another

cdef enum:
    # Levels accepted from outside (an array or map at the top is the first), as in mpack.pxd. A "$bin" or "$ext"
    # object counts as the map it is.
    JSON_READ_DEPTH_MAX = 64
    # Going out, a value that came in with 64 levels stands inside frames: one deeper in a MESSAGE, four in a HISTORY
    # reply; and its bins and exts become objects of up to two levels, which the writer does not count.
    JSON_WRITE_DEPTH_MAX = 72


cdef inline size_t mpack_bound(size_t json_size) noexcept nogil:
    """Most bytes of MessagePack that JSON of `json_size` bytes can become (the worst: "-0,", a double of 9 bytes)."""
    return 3 * json_size + 16


cdef inline size_t json_bound(size_t mpack_size) noexcept nogil:
    """Most bytes of JSON that MessagePack can become (the worst: a fixext 1, 3 bytes, as {"$ext":[-128,"AA=="]},)."""
    return 8 * mpack_size + 16


cdef int json_to_mpack(const uint8_t* src, size_t size, uint8_t* dst, size_t cap, size_t* written) noexcept nogil

cdef int mpack_to_json(const uint8_t* src, size_t size, uint8_t* dst, size_t cap, size_t* written) noexcept nogil
