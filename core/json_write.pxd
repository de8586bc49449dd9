# One MessagePack value to JSON without insignificant whitespace; transcode.pxd says how the values correspond.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

cdef int mpack_to_json(const uint8_t* src, size_t size, uint8_t* dst, size_t cap, size_t* written) noexcept nogil
