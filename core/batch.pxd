# Batch: a growing buffer of bytes with one owner, reused from batch to batch.
#
# Invariant: size <= capacity, and capacity never passes `bytes_max`.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memmove

from core.pages cimport pages_give, pages_resize

cdef enum:
    BATCH_KEPT_BYTES = 32768    # a larger one is given back once it is empty

ctypedef struct Batch:
    uint8_t *data               # owned
    uint32_t size               # bytes written
    uint32_t capacity
    uint32_t bytes_max


cdef inline uint8_t *batch_reserve(Batch *batch, uint32_t size) noexcept nogil:
    """Room for `size` more bytes, appended, of undefined content; NULL at the bound or out of memory.

    The pointer ends with the next call.
    """
    cdef uint32_t capacity = batch.capacity
    cdef uint8_t *data
    if size > batch.bytes_max - batch.size:
        return NULL
    if batch.size + size > capacity:
        capacity = 4096 if capacity == 0 else capacity
        while capacity < batch.size + size:
            capacity = capacity * 2 if capacity < batch.bytes_max // 2 else batch.bytes_max
        data = <uint8_t *> pages_resize(batch.data, batch.capacity, capacity)
        if data == NULL:
            return NULL
        batch.data = data
        batch.capacity = capacity
    data = batch.data + batch.size
    batch.size += size
    return data


cdef inline int batch_write(Batch *batch, const void *source, uint32_t size) noexcept nogil:
    """Append bytes; -1 at the bound."""
    cdef uint8_t *target = batch_reserve(batch, size)
    if target == NULL:
        return -1
    memcpy(target, source, size)
    return 0


cdef inline void batch_clear(Batch *batch) noexcept nogil:
    batch.size = 0
    if batch.capacity > BATCH_KEPT_BYTES:
        batch_free(batch)


cdef inline uint32_t batch_taken(Batch *batch, uint32_t place) noexcept nogil:
    """Of a queue what stands before `place` is done with, and goes once it is more than the rest: where that begins."""
    if place == batch.size:
        batch_clear(batch)
        return 0
    if place <= batch.size // 2:
        return place
    batch.size -= place
    memmove(batch.data, batch.data + place, batch.size)
    return 0


cdef inline void batch_free(Batch *batch) noexcept nogil:
    pages_give(batch.data, batch.capacity)
    batch.data = NULL
    batch.size = 0
    batch.capacity = 0
