# One JSON value (RFC 8259, strict) to MessagePack; transcode.pxd says how the values correspond.
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

cdef int json_to_mpack(const uint8_t* src, size_t size, uint8_t* dst, size_t cap, size_t* written) noexcept nogil
