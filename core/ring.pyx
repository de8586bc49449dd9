"""Ring buffer: a Python face for the tests."""

from core.ledger cimport Stats
from core.slab cimport slab_free
from libc.stdlib cimport free, malloc


cdef class RingBuffer:
    """One leased ring; `release` gives it back."""

    cdef RingPool pool
    cdef Ring *ring
    cdef Stats stats

    def __init__(self, Stats stats, unsigned int capacity_min=RING_BYTES):
        self.stats = stats
        ring_pool_init(&self.pool, &stats.ledger, 16)
        self.ring = ring_lease(&self.pool, capacity_min)
        if self.ring == NULL:
            raise MemoryError

    def __dealloc__(self):
        if self.ring != NULL:
            ring_release(&self.pool, self.ring)
        slab_free(&self.pool.slab)

    def __len__(self):
        return ring_size(self.ring)

    @property
    def capacity(self):
        return self.ring.capacity

    def write(self, bytes data):
        """How many bytes found room."""
        return ring_write(self.ring, <const uint8_t *> <const char *> data, len(data))

    def read(self, unsigned int size):
        cdef char *target = <char *> malloc(size + 1)
        try:
            return target[:ring_read(self.ring, <uint8_t *> target, size)]
        finally:
            free(target)

    def release(self):
        ring_release(&self.pool, self.ring)
        self.ring = NULL
