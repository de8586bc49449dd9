# Slab pool: objects of one size, named by a 32-bit index, in chunks that are given back when they are empty.
#
# Addresses stay valid while an object is live. An object that was never acquired is not touched and reads as zeros, so
# a chunk costs the pages that were used of it. A pool may keep a few bytes beside each object, behind all objects of
# the chunk: what is seldom looked at stays out of the objects' cache lines, and lives and goes with them. Invariant: a
# chunk is in the list of chunks with room exactly when it has memory and a free object; `live` of the pool is the sum
# over its chunks.

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from core.pages cimport pages_give, pages_take

cdef extern from "invariant.h":
    void invariant(bint) nogil
    void invariant_always(bint) nogil
    enum:
        HOLDFAST_CHECKS

cdef enum:
    SLAB_NONE = 0xFFFFFFFF
    SLAB_POISON = 0xDD
    SLAB_KEEP_BYTES = 20480     # an empty chunk up to this size is kept for the next turn instead of given back

ctypedef struct SlabChunk:
    uint8_t *memory             # owned; NULL: given back
    uint32_t live
    uint32_t fresh              # objects from this number on were never acquired
    uint32_t free_head          # number of a released object, SLAB_NONE: none
    uint32_t next_room          # list of chunks with room
    uint32_t previous_room

ctypedef struct Slab:
    SlabChunk *chunks           # owned
    uint32_t object_size        # bytes; at least 4, which hold the free list while an object is free
    uint32_t beside_size        # bytes kept beside each object; of undefined content once it was released
    uint32_t chunk_shift        # log2 of the objects a chunk
    uint32_t chunk_count
    uint32_t chunk_capacity
    uint32_t room_head          # first chunk with room, SLAB_NONE: none
    uint32_t bare_count         # chunks without memory, to be used again before new ones
    uint32_t live
    uint32_t live_max           # acquire fails beyond it


cdef inline uint8_t *slab_at(Slab *slab, uint32_t index) noexcept nogil:
    """The object's address; the index must be live."""
    return slab.chunks[index >> slab.chunk_shift].memory \
        + <size_t> (index & ((1u << slab.chunk_shift) - 1)) * slab.object_size


cdef inline uint8_t *slab_beside(Slab *slab, uint32_t index) noexcept nogil:
    """What is kept beside an object; the index must be live."""
    return slab.chunks[index >> slab.chunk_shift].memory + (<size_t> slab.object_size << slab.chunk_shift) \
        + <size_t> (index & ((1u << slab.chunk_shift) - 1)) * slab.beside_size


cdef inline size_t slab_chunk_bytes(Slab *slab) noexcept nogil:
    return <size_t> (slab.object_size + slab.beside_size) << slab.chunk_shift


cdef inline uint32_t generation_next(uint32_t *last) noexcept nogil:
    """The generation after the last one given; never 0 nor the poison, which both mark a slot without an object."""
    last[0] += 1
    if last[0] == 0 or last[0] == <uint32_t> 0xDDDDDDDD:
        last[0] += 1
    return last[0]


cdef inline uint32_t slab_acquire(Slab *slab) noexcept nogil:
    """The index of an object whose contents are undefined; SLAB_NONE when the bound or memory is reached."""
    cdef uint32_t place = slab.room_head
    cdef SlabChunk *chunk
    cdef uint32_t number
    if place == SLAB_NONE or slab.live >= slab.live_max:
        place = slab_add_room(slab)
        if place == SLAB_NONE:
            return SLAB_NONE
    chunk = &slab.chunks[place]
    number = chunk.free_head
    if number == SLAB_NONE:
        number = chunk.fresh
        chunk.fresh += 1
    else:
        chunk.free_head = (<uint32_t *> (chunk.memory + <size_t> number * slab.object_size))[0]
    chunk.live += 1
    slab.live += 1
    if chunk.live == 1u << slab.chunk_shift:
        slab_unlink_room(slab, place)
    return (place << slab.chunk_shift) | number


cdef inline void slab_release(Slab *slab, uint32_t index) noexcept nogil:
    """Give an object back; poisoned in checked builds."""
    cdef uint32_t place = index >> slab.chunk_shift
    cdef uint32_t number = index & ((1u << slab.chunk_shift) - 1)
    cdef SlabChunk *chunk = &slab.chunks[place]
    cdef uint8_t *memory = chunk.memory + <size_t> number * slab.object_size
    invariant(place < slab.chunk_count and chunk.memory != NULL and chunk.live > 0)
    if HOLDFAST_CHECKS:
        memset(memory, SLAB_POISON, slab.object_size)
        memset(slab_beside(slab, index), SLAB_POISON, slab.beside_size)
    if chunk.live == 1u << slab.chunk_shift:
        slab_link_room(slab, place)
    (<uint32_t *> memory)[0] = chunk.free_head
    chunk.free_head = number
    chunk.live -= 1
    slab.live -= 1
    if chunk.live == 0:
        slab_drop_chunk(slab, place)


cdef inline void slab_unlink_room(Slab *slab, uint32_t place) noexcept nogil:
    cdef SlabChunk *chunk = &slab.chunks[place]
    if chunk.previous_room != SLAB_NONE:
        slab.chunks[chunk.previous_room].next_room = chunk.next_room
    else:
        slab.room_head = chunk.next_room
    if chunk.next_room != SLAB_NONE:
        slab.chunks[chunk.next_room].previous_room = chunk.previous_room
    chunk.next_room = SLAB_NONE
    chunk.previous_room = SLAB_NONE


cdef inline void slab_link_room(Slab *slab, uint32_t place) noexcept nogil:
    cdef SlabChunk *chunk = &slab.chunks[place]
    chunk.previous_room = SLAB_NONE
    chunk.next_room = slab.room_head
    if slab.room_head != SLAB_NONE:
        slab.chunks[slab.room_head].previous_room = place
    slab.room_head = place


cdef void slab_init(Slab *slab, uint32_t object_size, uint32_t chunk_shift, uint32_t live_max) noexcept nogil
cdef uint32_t slab_add_room(Slab *slab) noexcept nogil
cdef void slab_drop_chunk(Slab *slab, uint32_t place) noexcept nogil
cdef void slab_free(Slab *slab) noexcept nogil
cdef bint slab_check(Slab *slab) noexcept nogil
