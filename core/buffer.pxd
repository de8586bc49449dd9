# Shared buffers: a message is encoded once per wire form, and every connection's queue points into the same bytes.
#
# A buffer counts its references: one for each segment that points into it, and one for the arena that still writes to
# it. The last release frees it. Bytes in [0, used) never change once written, but for a private buffer's owner who may
# append. Invariant: used <= capacity, refs >= 1 while anybody can reach it.

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from core.ledger cimport KIND_BUFFER, KIND_SEGMENT, Ledger, ledger_acquire, ledger_leaks, ledger_release
from core.sites cimport HERE
from core.slab cimport HOLDFAST_CHECKS, SLAB_NONE, SLAB_POISON, Slab, invariant, slab_acquire, slab_at, slab_release

cdef enum:
    ARENA_BYTES = 65536         # of a fresh arena buffer; a larger message gets one of its own size
    PRIVATE_BYTES = 4096        # of the buffer that holds a blocked connection's small rest

ctypedef struct Shared:
    uint32_t refs
    uint32_t capacity           # bytes
    uint32_t used               # bytes
    uint32_t private            # 1: only one connection's queue points here, and it may append
    uint8_t data[8]             # capacity bytes

ctypedef struct Segment:        # 32 bytes: one piece of a connection's unsent output
    Segment *next
    Shared *shared              # shared: counted in `refs`
    uint32_t offset             # of the first unsent byte
    uint32_t length             # bytes
    uint32_t index              # of this segment in its slab
    uint32_t settled            # 1: may wait for long (private, or large enough to be worth a reference)

ctypedef struct Arena:
    Shared *current             # shared: the buffer being written to, NULL before the first


cdef inline Shared *shared_create(Ledger *ledger, uint32_t capacity) noexcept nogil:
    """A buffer with one reference, the caller's; NULL: out of memory."""
    cdef Shared *shared = <Shared *> malloc(sizeof(Shared) + capacity)
    if shared == NULL:
        return NULL
    shared.refs = 1
    shared.capacity = capacity
    shared.used = 0
    shared.private = 0
    ledger_acquire(ledger, KIND_BUFFER, <size_t> shared, HERE)
    return shared


cdef inline void shared_release(Ledger *ledger, Shared *shared) noexcept nogil:
    invariant(shared.refs > 0 and shared.used <= shared.capacity)
    if ledger_leaks(ledger, KIND_BUFFER):
        return
    shared.refs -= 1
    if shared.refs == 0:
        if HOLDFAST_CHECKS:
            memset(shared.data, SLAB_POISON, shared.capacity)
        ledger_release(ledger, KIND_BUFFER, <size_t> shared)
        free(shared)


cdef inline uint8_t *arena_reserve(Arena *arena, Ledger *ledger, uint32_t size) noexcept nogil:
    """Room for `size` bytes at the end of the current buffer; `arena_commit` says how many were written.

    NULL: out of memory. The room ends with the next reserve.
    """
    cdef uint32_t capacity = ARENA_BYTES
    if arena.current == NULL or arena.current.capacity - arena.current.used < size:
        if arena.current != NULL:
            shared_release(ledger, arena.current)
        if size > capacity:
            capacity = size
        arena.current = shared_create(ledger, capacity)
        if arena.current == NULL:
            return NULL
    return arena.current.data + arena.current.used


cdef inline uint32_t arena_commit(Arena *arena, uint32_t size) noexcept nogil:
    """Keep `size` bytes of the room; returns their offset in the current buffer."""
    cdef uint32_t offset = arena.current.used
    arena.current.used += size
    return offset


cdef inline void arena_rest(Arena *arena, Ledger *ledger, bint keep) noexcept nogil:
    """End of the turn: write from the front again if nobody points here; let go of it otherwise, or if not `keep`."""
    if arena.current == NULL:
        return
    if keep and arena.current.refs == 1 and arena.current.capacity == ARENA_BYTES:
        arena.current.used = 0
        return
    shared_release(ledger, arena.current)
    arena.current = NULL


cdef inline Segment *segment_acquire(Slab *slab, Ledger *ledger, Shared *shared, uint32_t offset,
                                     uint32_t length) noexcept nogil:
    """A segment that holds a reference to `shared`; NULL: at the bound or out of memory."""
    cdef uint32_t index = slab_acquire(slab)
    cdef Segment *segment
    if index == SLAB_NONE:
        return NULL
    segment = <Segment *> slab_at(slab, index)
    segment.next = NULL
    segment.shared = shared
    segment.offset = offset
    segment.length = length
    segment.index = index
    segment.settled = 0
    shared.refs += 1
    ledger_acquire(ledger, KIND_SEGMENT, <size_t> segment, HERE)
    return segment


cdef inline void segment_release(Slab *slab, Ledger *ledger, Segment *segment) noexcept nogil:
    shared_release(ledger, segment.shared)
    if ledger_leaks(ledger, KIND_SEGMENT):
        return
    ledger_release(ledger, KIND_SEGMENT, <size_t> segment)
    slab_release(slab, segment.index)
