"""Slab pool: the cold verbs, and a Python face for the tests."""


cdef void slab_init(Slab *slab, uint32_t object_size, uint32_t chunk_shift, uint32_t live_max) noexcept nogil:
    """An empty pool of objects of `object_size` bytes (a multiple of 4), `1 << chunk_shift` of them a chunk."""
    memset(slab, 0, sizeof(Slab))
    invariant_always(object_size >= 4 and object_size % 4 == 0)
    slab.object_size = object_size
    slab.chunk_shift = chunk_shift
    slab.room_head = SLAB_NONE
    slab.live_max = live_max


cdef uint32_t _bare_chunk(Slab *slab) noexcept nogil:
    """A chunk entry without memory, an old one before a new one; SLAB_NONE: out of memory."""
    cdef uint32_t place
    cdef SlabChunk *chunks
    if slab.bare_count > 0:
        for place in range(slab.chunk_count):
            if slab.chunks[place].memory == NULL:
                slab.bare_count -= 1
                return place
    if slab.chunk_count == slab.chunk_capacity:
        chunks = <SlabChunk *> realloc(slab.chunks, sizeof(SlabChunk) * (slab.chunk_capacity * 2 + 8))
        if chunks == NULL:
            return SLAB_NONE
        slab.chunks = chunks
        slab.chunk_capacity = slab.chunk_capacity * 2 + 8
    slab.chunk_count += 1
    slab.chunks[slab.chunk_count - 1].memory = NULL
    return slab.chunk_count - 1


cdef uint32_t slab_add_room(Slab *slab) noexcept nogil:
    """A chunk with room, made if the bound allows; SLAB_NONE otherwise."""
    cdef uint32_t place
    cdef SlabChunk *chunk
    if slab.live >= slab.live_max:
        return SLAB_NONE
    place = _bare_chunk(slab)
    if place == SLAB_NONE:
        return SLAB_NONE
    chunk = &slab.chunks[place]
    chunk.memory = <uint8_t *> pages_take(slab_chunk_bytes(slab))   # zeroed: a stale id finds generation 0
    if chunk.memory == NULL:
        slab.bare_count += 1
        return SLAB_NONE
    chunk.fresh = 0
    chunk.free_head = SLAB_NONE
    chunk.live = 0
    slab_link_room(slab, place)
    return place


cdef void slab_drop_chunk(Slab *slab, uint32_t place) noexcept nogil:
    """Give an empty chunk's memory back, unless it is the only one with room: the next acquire would take it again."""
    cdef SlabChunk *chunk = &slab.chunks[place]
    if slab.room_head == place and chunk.next_room == SLAB_NONE \
            and (slab.live > 0 or slab_chunk_bytes(slab) <= SLAB_KEEP_BYTES):
        return
    slab_unlink_room(slab, place)
    pages_give(chunk.memory, slab_chunk_bytes(slab))
    chunk.memory = NULL
    slab.bare_count += 1
    if slab.live == 0 and slab.room_head != SLAB_NONE:      # the empty one that was kept for the next acquire
        slab_drop_chunk(slab, slab.room_head)


cdef void slab_free(Slab *slab) noexcept nogil:
    """Give everything back; the pool is empty and may be used again. A zeroed struct is an empty pool, too."""
    cdef uint32_t place
    for place in range(slab.chunk_count):
        pages_give(slab.chunks[place].memory, slab_chunk_bytes(slab))
    free(slab.chunks)
    slab.chunks = NULL
    slab.chunk_count = 0
    slab.chunk_capacity = 0
    slab.room_head = SLAB_NONE
    slab.bare_count = 0
    slab.live = 0


cdef bint slab_check(Slab *slab) noexcept nogil:
    """Walk the chunks: the counts agree with what the free lists hold."""
    cdef uint32_t place, number, free_count
    cdef uint32_t live = 0
    for place in range(slab.chunk_count):
        if slab.chunks[place].memory == NULL:
            continue
        free_count = 0
        number = slab.chunks[place].free_head
        while number != SLAB_NONE:
            free_count += 1
            if free_count > (1u << slab.chunk_shift):
                return False
            number = (<uint32_t *> (slab.chunks[place].memory + <size_t> number * slab.object_size))[0]
        if free_count + slab.chunks[place].live != slab.chunks[place].fresh \
                or slab.chunks[place].fresh > 1u << slab.chunk_shift:
            return False
        live += slab.chunks[place].live
    return live == slab.live


cdef class SlabPool:
    """A slab pool for tests."""

    cdef Slab slab

    def __init__(self, int object_size, int chunk_shift=4, unsigned int live_max=0xFFFFFFFE):
        slab_init(&self.slab, object_size, chunk_shift, live_max)

    def __dealloc__(self):
        slab_free(&self.slab)

    def acquire(self):
        """An index, or None at the bound."""
        cdef uint32_t index = slab_acquire(&self.slab)
        return None if index == SLAB_NONE else index

    def release(self, unsigned int index):
        slab_release(&self.slab, index)

    def write(self, unsigned int index, bytes data):
        cdef uint8_t *memory = slab_at(&self.slab, index)
        cdef const uint8_t *source = data
        for place in range(min(len(data), <int> self.slab.object_size)):
            memory[place] = source[place]

    def read(self, unsigned int index):
        return (<char *> slab_at(&self.slab, index))[:self.slab.object_size]

    def check(self):
        return slab_check(&self.slab)

    @property
    def live(self):
        return self.slab.live

    @property
    def chunks_with_memory(self):
        return self.slab.chunk_count - self.slab.bare_count
