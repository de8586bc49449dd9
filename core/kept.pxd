# Kept: what a worker asked of the router and has no answer to, as the very records, to be said to the next one again.
#
# A record is kept from when it is made until its request is closed: by the answer or at its deadline, no later. Records
# stand behind each other in blocks, in the order of their seqs; the request's `index` names the block. A block counts
# the records that still wait and goes with the last of them; which ones these are, the ring of requests knows.
# Invariant: `waiting` over all blocks = open requests of the kinds that are kept; `bytes` = sum of the capacities, at
# most `bytes_max`.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from core.edge cimport NONE, Edge, Kept, KeptBlock
from core.ledger cimport GAUGE_KEPT_BYTES, KIND_KEPT, ledger_acquire, ledger_gauge, ledger_leaks, ledger_release
from core.records cimport Record
from core.sites cimport HERE
from core.slab cimport SLAB_NONE, invariant, slab_acquire, slab_at, slab_release

cdef enum:
    KEPT_BLOCK_BYTES = 32768    # of a block; a longer record gets one of its own size

ctypedef struct KeptHead:       # 8 bytes before each record
    uint32_t said               # 1: it went to a router; said again, it may have been ordered already
    uint32_t seq                # of its request


cdef inline KeptBlock *kept_at(Edge *edge, uint32_t index) noexcept nogil:
    return <KeptBlock *> slab_at(&edge.kept.blocks, index)


cdef inline uint8_t *kept_take(Edge *edge, uint32_t size, uint32_t *block_index) noexcept nogil:
    """Room for a record of `size` bytes, a multiple of 8, and the block that is to be its request's index.

    The content is undefined, and the room stays until `kept_end`. NULL: at the bound or out of memory.
    """
    cdef uint32_t whole = size + <uint32_t> sizeof(KeptHead)
    cdef uint32_t index = edge.kept.last
    cdef KeptBlock *block = NULL if edge.kept.blocks.live == 0 else kept_at(edge, index)
    if block == NULL or block.capacity - block.used < whole:
        index = kept_block_add(edge, whole)
        if index == NONE:
            return NULL
        block = kept_at(edge, index)
    block_index[0] = index
    block.used += whole
    block.waiting += 1
    return block.data + block.used - size


cdef inline void kept_seq(uint8_t *record, uint32_t seq) noexcept nogil:
    """Tell the record in its room from others by its request; not said to any router yet."""
    cdef KeptHead *head = <KeptHead *> (record - sizeof(KeptHead))
    head.said = 0
    head.seq = seq


cdef inline void kept_end(Edge *edge, uint32_t index) noexcept nogil:
    """A request that has this block is closed."""
    cdef KeptBlock *block = kept_at(edge, index)
    invariant(block.waiting > 0)
    block.waiting -= 1
    if block.waiting == 0:
        kept_block_end(edge, block)


cdef uint32_t kept_block_add(Edge *edge, uint32_t whole) noexcept nogil
cdef void kept_block_end(Edge *edge, KeptBlock *block) noexcept nogil
cdef bint kept_say(Edge *edge, uint8_t *record) noexcept nogil
cdef uint32_t kept_say_all(Edge *edge, const uint64_t *shards, bint again) noexcept nogil
cdef void kept_init(Kept *kept, uint32_t bytes_max) noexcept nogil
