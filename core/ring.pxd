# Ring buffer: the bytes of a partial frame, between two wake-ups of the connection that leases it.
#
# An idle connection leases none. Rings are 4 KiB from a slab pool; a frame that needs more moves to a larger one from
# malloc. Invariant: read <= written, and written - read <= capacity. A released ring carries nothing over.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from core.ledger cimport KIND_RING, Ledger, ledger_acquire, ledger_leaks, ledger_release
from core.sites cimport HERE
from core.slab cimport SLAB_NONE, Slab, invariant, slab_acquire, slab_at, slab_init, slab_release

cdef enum:
    RING_BYTES = 4096

ctypedef struct Ring:
    uint64_t read               # bytes taken out since the lease
    uint64_t written            # bytes put in since the lease
    uint32_t capacity           # a power of two, bytes
    uint32_t slab_index         # SLAB_NONE: from malloc
    uint8_t data[1]             # capacity bytes

ctypedef struct RingPool:
    Slab slab                   # owned: the 4 KiB rings
    Ledger *ledger              # borrowed for the pool's life


cdef inline uint32_t ring_size(Ring *ring) noexcept nogil:
    return <uint32_t> (ring.written - ring.read)


cdef inline bint ring_check(Ring *ring) noexcept nogil:
    return ring.read <= ring.written and ring.written - ring.read <= ring.capacity


cdef inline uint32_t ring_write(Ring *ring, const uint8_t *source, uint32_t size) noexcept nogil:
    """Put up to `size` bytes in; returns how many found room."""
    cdef uint32_t room = ring.capacity - ring_size(ring)
    cdef uint32_t at = <uint32_t> ring.written & (ring.capacity - 1)
    cdef uint32_t first
    invariant(ring_check(ring))
    if size > room:
        size = room
    first = ring.capacity - at
    if first > size:
        first = size
    memcpy(ring.data + at, source, first)
    memcpy(ring.data, source + first, size - first)
    ring.written += size
    return size


cdef inline uint32_t ring_read(Ring *ring, uint8_t *target, uint32_t size) noexcept nogil:
    """Take up to `size` bytes out into `target`; returns how many."""
    cdef uint32_t held = ring_size(ring)
    cdef uint32_t at = <uint32_t> ring.read & (ring.capacity - 1)
    cdef uint32_t first
    invariant(ring_check(ring))
    if size > held:
        size = held
    first = ring.capacity - at
    if first > size:
        first = size
    memcpy(target, ring.data + at, first)
    memcpy(target + first, ring.data, size - first)
    ring.read += size
    return size


cdef inline Ring *ring_lease(RingPool *pool, uint32_t capacity_min) noexcept nogil:
    """An empty ring of at least `capacity_min` bytes, the caller's; NULL: out of memory or at the bound."""
    cdef uint32_t index = SLAB_NONE
    cdef uint32_t capacity = RING_BYTES
    cdef Ring *ring
    if capacity_min <= RING_BYTES:
        index = slab_acquire(&pool.slab)
        if index == SLAB_NONE:
            return NULL
        ring = <Ring *> slab_at(&pool.slab, index)
    else:
        while capacity < capacity_min:
            capacity *= 2
        ring = <Ring *> malloc(sizeof(Ring) + capacity)
        if ring == NULL:
            return NULL
    ring.read = 0
    ring.written = 0
    ring.capacity = capacity
    ring.slab_index = index
    ledger_acquire(pool.ledger, KIND_RING, <size_t> ring, HERE)
    return ring


cdef inline void ring_release(RingPool *pool, Ring *ring) noexcept nogil:
    """Give the ring back; its bytes are gone."""
    if ledger_leaks(pool.ledger, KIND_RING):
        return
    ledger_release(pool.ledger, KIND_RING, <size_t> ring)
    if ring.slab_index == SLAB_NONE:
        free(ring)
    else:
        slab_release(&pool.slab, ring.slab_index)


cdef inline void ring_pool_init(RingPool *pool, Ledger *ledger, uint32_t rings_max) noexcept nogil:
    slab_init(&pool.slab, sizeof(Ring) + RING_BYTES, 5, rings_max)
    pool.ledger = ledger
