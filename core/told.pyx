"""Told: what sessions did is kept for a moment, and told again."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from core.batch cimport Batch, batch_clear, batch_free, batch_reserve
from core.clock cimport clock_ns
from core.ledger cimport COUNT_STATES_LOST, ledger_count
from core.records cimport (CLOSE_TOLD, OPEN_TOLD, REC_CLOSE, REC_OPEN, REC_TOLD, STATE_TOLD, RecState, RecTold,
                           record_init, record_size)


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


cdef int _keep(Edge *edge, const Record *record) noexcept nogil:
    """A TOLD and the record with the flag of what was told; -1: there is no room."""
    cdef uint8_t *room = batch_reserve(&edge.link.told, record_size(sizeof(RecTold), record.size))
    cdef Record *kept
    if room == NULL:
        return -1
    record_init(room, REC_TOLD, 0, sizeof(RecTold), 0)
    (<RecTold *> room).time_us = clock_ns() // 1000     # not the turn's: another worker's record may be of the same one
    kept = <Record *> (room + sizeof(RecTold))
    memcpy(kept, record, record.size)
    if kept.kind == REC_OPEN:
        kept.aux |= OPEN_TOLD
    elif kept.kind == REC_CLOSE:
        kept.aux |= CLOSE_TOLD
    else:
        (<RecState *> kept).what |= STATE_TOLD
    return 0


cdef uint32_t _records(const Batch *told, uint32_t place) noexcept nogil:
    """How many records stand in a batch from there on, TOLDs not counted."""
    cdef uint32_t count = 0
    while place < told.size:
        count += (<const Record *> (told.data + place)).kind != REC_TOLD
        place += (<const Record *> (told.data + place)).size
    return count


cdef void told_keep(Edge *edge, const Record *record) noexcept nogil:
    """A record that the router has been told just now; at the bound the oldest go."""
    if _keep(edge, record) == 0:
        return
    if not edge.link.up:                # no router has them; one that is there has them, and it would have to die now
        ledger_count(edge.ledger, COUNT_STATES_LOST, _records(&edge.link.told_before, 0))
    _turn_over(edge)
    if _keep(edge, record) < 0:
        ledger_count(edge.ledger, COUNT_STATES_LOST, 1)


cdef void told_tick(Edge *edge) noexcept nogil:
    """Forget what a router that is there has stored."""
    if edge.link.up and edge.link.stored_ms >= edge.link.told_ms + TOLD_MS:
        _turn_over(edge)


cdef void _say(Edge *edge, const Batch *told) noexcept nogil:
    """All that fits, each TOLD with its record."""
    cdef uint32_t place = 0
    cdef uint32_t size
    cdef uint8_t *room
    while place < told.size:
        size = <uint32_t> sizeof(RecTold) + (<const Record *> (told.data + place + sizeof(RecTold))).size
        room = batch_reserve(&edge.link.out, size)
        if room == NULL:
            ledger_count(edge.ledger, COUNT_STATES_LOST, _records(told, place))
            return
        memcpy(room, told.data + place, size)
        place += size


cdef void told_say_all(Edge *edge) noexcept nogil:
    """To a router that knows nothing of this worker, before the sessions that are open now."""
    _say(edge, &edge.link.told_before)
    _say(edge, &edge.link.told)
