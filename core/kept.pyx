"""Kept: blocks come and go, and what is kept is said to the router."""

from libc.string cimport memcpy

from core.batch cimport batch_reserve
from core.edge cimport Request, link_of
from core.ledger cimport COUNT_ASKED_AGAIN, ledger_count
from core.records cimport PUBLISH_AGAIN, REC_PUBLISH, RecPublish
from core.requests cimport request_kept, request_peek
from core.shards cimport shards_have
from core.slab cimport slab_init

assert sizeof(KeptHead) == 8


cdef void kept_init(Kept *kept, uint32_t bytes_max) noexcept nogil:
    """Nothing is kept yet; `bytes_max`: of all blocks together."""
    slab_init(&kept.blocks, sizeof(KeptBlock), 6, 0xFFFFFFFE)
    kept.first = NONE
    kept.last = NONE
    kept.bytes = 0
    kept.bytes_max = bytes_max


cdef uint32_t kept_block_add(Edge *edge, uint32_t whole) noexcept nogil:
    """A new last block with room for `whole` bytes; its index, NONE at the bound or out of memory."""
    cdef Kept *kept = &edge.kept
    cdef uint32_t capacity = max(<uint32_t> KEPT_BLOCK_BYTES, whole)
    cdef uint32_t index
    cdef KeptBlock *block
    if capacity > kept.bytes_max - kept.bytes:
        return NONE
    index = slab_acquire(&kept.blocks)
    if index == SLAB_NONE:
        return NONE
    block = kept_at(edge, index)
    block.data = <uint8_t *> malloc(capacity)
    if block.data == NULL:
        slab_release(&kept.blocks, index)
        return NONE
    block.index = index
    block.capacity = capacity
    block.used = 0
    block.waiting = 0
    block.next = NONE
    block.previous = kept.last
    if kept.last == NONE:
        kept.first = index
    else:
        kept_at(edge, kept.last).next = index
    kept.last = index
    kept.bytes += capacity
    ledger_acquire(edge.ledger, KIND_KEPT, index, HERE)
    ledger_gauge(edge.ledger, GAUGE_KEPT_BYTES, kept.bytes)
    return index


cdef void kept_block_end(Edge *edge, KeptBlock *block) noexcept nogil:
    """The last record that waited in a block is answered."""
    cdef Kept *kept = &edge.kept
    if block.previous == NONE:
        kept.first = block.next
    else:
        kept_at(edge, block.previous).next = block.next
    if block.next == NONE:
        kept.last = block.previous
    else:
        kept_at(edge, block.next).previous = block.previous
    kept.bytes -= block.capacity
    ledger_gauge(edge.ledger, GAUGE_KEPT_BYTES, kept.bytes)
    if ledger_leaks(edge.ledger, KIND_KEPT):
        return
    ledger_release(edge.ledger, KIND_KEPT, block.index)
    free(block.data)
    slab_release(&kept.blocks, block.index)


cdef bint kept_say(Edge *edge, uint8_t *record) noexcept nogil:
    """Add a kept record to the router's batch; False: there is no room, and it stays unsaid."""
    cdef uint32_t size = (<Record *> record).size
    cdef KeptHead *head = <KeptHead *> (record - sizeof(KeptHead))
    cdef uint8_t *room = batch_reserve(&link_of(edge, (<Record *> record).shard).out, size)
    if room == NULL:
        return False
    memcpy(room, record, size)
    if head.said and (<Record *> room).kind == REC_PUBLISH:
        (<RecPublish *> room).flags |= PUBLISH_AGAIN
    head.said = 1
    return True


cdef inline bint _waits(Edge *edge, const KeptBlock *block, const KeptHead *head) noexcept nogil:
    """Whether nobody answered it yet, and its deadline is not over."""
    cdef Request *request = request_peek(edge, head.seq)
    return request != NULL and request.index == block.index and request_kept(request)


cdef uint32_t kept_say_all(Edge *edge, const uint64_t *shards, bint again) noexcept nogil:
    """Say what waits of these shards (bits), in order: with `again` all of it, else only what no router was told; how
    many records."""
    cdef uint32_t index = edge.kept.first
    cdef uint32_t said = 0
    cdef uint32_t repeated = 0
    cdef uint32_t place, shard
    cdef KeptBlock *block
    cdef KeptHead *head
    cdef bint before
    while index != NONE:
        block = kept_at(edge, index)
        place = 0
        while place < block.used:
            head = <KeptHead *> (block.data + place)
            place += <uint32_t> sizeof(KeptHead)
            shard = (<Record *> (block.data + place)).shard
            if (again or not head.said) and shards_have(shards, shard) and _waits(edge, block, head):
                before = head.said
                if not kept_say(edge, block.data + place):
                    return said
                said += 1
                repeated += before
            place += (<Record *> (block.data + place)).size
        index = block.next
    ledger_count(edge.ledger, COUNT_ASKED_AGAIN, repeated)
    return said
