"""Told: what sessions did is kept for a moment, and told again."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.batch cimport Batch, batch_clear, batch_free, batch_write
from core.clock cimport clock_ns
from core.ledger cimport COUNT_STATES_LOST, ledger_count
from core.records cimport (CLOSE_TOLD, OPEN_TOLD, REC_CLOSE, REC_OPEN, REC_STATE, STATE_LISTS, STATE_TOLD, RecState,
                           record_add)


cdef void told_init(Edge *edge) noexcept nogil:
    edge.link.told.bytes_max = TOLD_BYTES_MAX
    edge.link.told_before.bytes_max = TOLD_BYTES_MAX


cdef void told_free(Edge *edge) noexcept nogil:
    batch_free(&edge.link.told)
    batch_free(&edge.link.told_before)


cdef void _turn_over(Edge *edge) noexcept nogil:
    """The younger batch becomes the older one, which goes."""
    cdef Batch older = edge.link.told_before
    edge.link.told_before = edge.link.told
    edge.link.told = older
    batch_clear(&edge.link.told)
    edge.link.told_ms = edge.now_ms


cdef uint32_t _records(const Batch *told, uint32_t place) noexcept nogil:
    """How many records stand in a batch from there on."""
    cdef uint32_t count = 0
    while place < told.size:
        count += 1
        place += (<const Record *> (told.data + place)).size
    return count


cdef uint64_t told_time(Edge *edge) noexcept nogil:
    """Now, microseconds of this machine's monotonic clock; each time later than the last."""
    edge.link.told_us = max(clock_ns() // 1000, edge.link.told_us + 1)
    return edge.link.told_us


cdef Record *told_take(Edge *edge, int kind, int aux, uint32_t fixed, uint32_t variable) noexcept nogil:
    """A record to be completed and then told (`told_say`) or kept (`told_keep`), where it is kept; at the bound the
    oldest go. NULL: out of memory, which is counted."""
    cdef uint8_t *room = record_add(&edge.link.told, kind, aux, fixed, variable)
    if room == NULL:
        if not edge.link.up:            # no router has them; one that is there has them, and it would have to die now
            ledger_count(edge.ledger, COUNT_STATES_LOST, _records(&edge.link.told_before, 0))
        _turn_over(edge)
        room = record_add(&edge.link.told, kind, aux, fixed, variable)
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
    if batch_write(&edge.link.out, record, record.size) < 0:
        ledger_count(edge.ledger, COUNT_STATES_LOST, 1)
    told_keep(record)


cdef void told_tick(Edge *edge) noexcept nogil:
    """Forget what a router that is there has stored."""
    if edge.link.up and edge.link.stored_ms >= edge.link.told_ms + TOLD_MS:
        _turn_over(edge)


cdef inline bint _is_needed(Edge *edge, const Record *record) noexcept nogil:
    """Whether the next router has to hear it: a list of channels only where they may not all be stored."""
    return record.kind != REC_STATE or (<const RecState *> record).what != (STATE_LISTS | STATE_TOLD) \
        or (<const RecState *> record).time_us // 1000 >= edge.link.stored_ms


cdef void _say(Edge *edge, const Batch *told) noexcept nogil:
    """All that fits."""
    cdef uint32_t place = 0
    cdef const Record *record
    while place < told.size:
        record = <const Record *> (told.data + place)
        if _is_needed(edge, record) and batch_write(&edge.link.out, told.data + place, record.size) < 0:
            ledger_count(edge.ledger, COUNT_STATES_LOST, _records(told, place))
            return
        place += record.size


cdef void told_say_all(Edge *edge) noexcept nogil:
    """To a router that knows nothing of this worker, before the sessions that are open now."""
    _say(edge, &edge.link.told_before)
    _say(edge, &edge.link.told)
