"""Told: what sessions did is kept for a moment, and told again."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.batch cimport Batch, batch_clear, batch_free, batch_write
from core.clock cimport clock_ns
from core.edge cimport LINK_NOWHERE, link_of, links_next
from core.ledger cimport COUNT_STATES_LOST, ledger_count
from core.records cimport (CLOSE_TOLD, OPEN_TOLD, REC_CLOSE, REC_OPEN, REC_STATE, STATE_LISTS, STATE_TOLD, RecState,
                           record_add)
from core.shards cimport shards_have


cdef void told_init(Edge *edge) noexcept nogil:
    edge.told.bytes_max = TOLD_BYTES_MAX
    edge.told_before.bytes_max = TOLD_BYTES_MAX


cdef void told_free(Edge *edge) noexcept nogil:
    batch_free(&edge.told)
    batch_free(&edge.told_before)


cdef void _turn_over(Edge *edge) noexcept nogil:
    """The younger batch becomes the older one, which goes."""
    cdef Batch older = edge.told_before
    edge.told_before = edge.told
    edge.told = older
    batch_clear(&edge.told)
    edge.told_ms = edge.now_ms


cdef uint32_t _records(const Batch *told, uint32_t place) noexcept nogil:
    """How many records stand in a batch from there on."""
    cdef uint32_t count = 0
    while place < told.size:
        count += 1
        place += (<const Record *> (told.data + place)).size
    return count


cdef uint64_t told_time(Edge *edge) noexcept nogil:
    """Now, microseconds of this machine's monotonic clock; each time later than the last."""
    edge.told_us = max(clock_ns() // 1000, edge.told_us + 1)
    return edge.told_us


cdef Record *told_take(Edge *edge, int kind, int aux, uint32_t fixed, uint32_t variable) noexcept nogil:
    """A record to be completed and then told (`told_say`) or kept (`told_keep`), where it is kept; at the bound the
    oldest go. NULL: out of memory, which is counted."""
    cdef uint8_t *room = record_add(&edge.told, kind, aux, fixed, variable)
    if room == NULL:
        if not edge.links_up:           # no router has them; one that is there has them, and it would have to die now
            ledger_count(edge.ledger, COUNT_STATES_LOST, _records(&edge.told_before, 0))
        _turn_over(edge)
        room = record_add(&edge.told, kind, aux, fixed, variable)
    if room == NULL:
        ledger_count(edge.ledger, COUNT_STATES_LOST, 1)
    return <Record *> room


cdef void told_keep(Record *record) noexcept nogil:
    """What is kept gets the flag of what was told."""
    if record.kind == REC_OPEN:
        record.aux |= OPEN_TOLD
    elif record.kind == REC_CLOSE:
        record.aux |= CLOSE_TOLD
    else:
        (<RecState *> record).what |= STATE_TOLD


cdef void told_say(Edge *edge, Record *record) noexcept nogil:
    """Tell the router, and keep it."""
    if batch_write(&link_of(edge, record.shard).out, record, record.size) < 0:
        ledger_count(edge.ledger, COUNT_STATES_LOST, 1)
    told_keep(record)


cdef uint64_t _stored_ms(Edge *edge) noexcept nogil:
    """What was told before then is stored, whichever router it was told to; 0: one is away, or there is none, or
    a shard has no leader, and who led it may have passed over what it was told last."""
    cdef uint64_t least = 0
    cdef uint64_t left = edge.links_used
    cdef Link *link
    if edge.links[LINK_NOWHERE].led:
        return 0
    while left:
        link = links_next(edge, &left)
        if link.led and not link.up:
            return 0
        if link.led:
            least = link.stored_ms if least == 0 else min(least, link.stored_ms)
    return least


cdef void told_tick(Edge *edge) noexcept nogil:
    """Forget what the routers that lead anything have stored."""
    if _stored_ms(edge) >= edge.told_ms + TOLD_MS:
        _turn_over(edge)


cdef inline bint _is_needed(Link *link, const Record *record, const uint64_t *shards) noexcept nogil:
    """Whether a router has to hear it, of these shards: a list of channels only where they may not all be stored."""
    if not shards_have(shards, record.shard):
        return False
    return record.kind != REC_STATE or (<const RecState *> record).what != (STATE_LISTS | STATE_TOLD) \
        or (<const RecState *> record).time_us // 1000 >= link.stored_ms


cdef void _say(Edge *edge, Link *link, const Batch *told, const uint64_t *shards) noexcept nogil:
    """All that fits."""
    cdef uint32_t place = 0
    cdef const Record *record
    while place < told.size:
        record = <const Record *> (told.data + place)
        if _is_needed(link, record, shards) and batch_write(&link.out, told.data + place, record.size) < 0:
            ledger_count(edge.ledger, COUNT_STATES_LOST, _records(told, place))
            return
        place += record.size


cdef void told_say_all(Edge *edge, Link *link, const uint64_t *shards) noexcept nogil:
    """To a router that knows nothing of what this worker has in these shards (bits), before what is open now."""
    _say(edge, link, &edge.told_before, shards)
    _say(edge, link, &edge.told, shards)
