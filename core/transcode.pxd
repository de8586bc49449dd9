# JSON to MessagePack and back, whole values at a time. cimport everything from here; the reader is json_read.pyx, the
# writer json_write.pyx.
#
#     json_to_mpack(src, size, dst, cap, &written), mpack_to_json(src, size, dst, cap, &written)
#
# return 0 and `written`, or a TRANSCODE_ code; they need neither the GIL nor the heap, and do not depend on the locale.
# dst and src must not overlap. The correspondence:
#
#     JSON                                MessagePack
#     integer within -2^63 … 2^64 - 1     int, shortest form
#     any other number                    float 64; read back with the fewest digits that give the same double
#     (refused: beyond a double's range)  NaN and the infinities are written as null
#     {"$bin":"<base64>"}                 bin; exactly this key and canonical base64, else it is an ordinary map
#     {"$ext":[type,"<base64>"]}          ext, likewise; type is -128 … 127
#     object                              map; integer keys are written as strings, other keys are malformed
from libc.stddef cimport size_t

from core.json_form cimport (
    JSON_READ_DEPTH_MAX, JSON_WRITE_DEPTH_MAX, TRANSCODE_DEPTH, TRANSCODE_MALFORMED, TRANSCODE_OVERFLOW
)
from core.json_read cimport json_to_mpack
from core.json_write cimport mpack_to_json


cdef inline size_t mpack_bound(size_t json_size) noexcept nogil:
    """Most bytes of MessagePack that JSON of `json_size` bytes can become (the worst: "-0,", a double of 9 bytes)."""
    return 3 * json_size + 16


cdef inline size_t json_bound(size_t mpack_size) noexcept nogil:
    """Most bytes of JSON that MessagePack can become (the worst: a fixext 1, 3 bytes, as {"$ext":[-128,"AA=="]},)."""
    return 8 * mpack_size + 16
