"""Told: what sessions did is kept for a moment, and told again."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from core.batch cimport Batch, batch_clear, batch_free, batch_reserve, batch_write
from core.records cimport (CLOSE_TOLD, OPEN_TOLD, REC_CLOSE, REC_OPEN, STATE_TOLD, RecState)


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


cdef void told_keep(Edge *edge, const Record *record) noexcept nogil:
    """A record that the router has been told just now; at the bound the oldest go."""
    if batch_write(&edge.link.told, record, record.size) < 0:
        _turn_over(edge)
        batch_write(&edge.link.told, record, record.size)


cdef void told_tick(Edge *edge) noexcept nogil:
    """Forget what a router that is there has stored by now."""
    if edge.link.up and edge.now_ms - edge.link.told_ms >= TOLD_MS:
        _turn_over(edge)


cdef void _say(Edge *edge, const Batch *told) noexcept nogil:
    cdef uint32_t place = 0
    cdef uint8_t *room
    cdef Record *record
    while place < told.size:
        record = <Record *> (told.data + place)
        place += record.size
        room = batch_reserve(&edge.link.out, record.size)
        if room == NULL:
            return
        memcpy(room, record, record.size)
        record = <Record *> room
        if record.kind == REC_OPEN:
            record.aux |= OPEN_TOLD
        elif record.kind == REC_CLOSE:
            record.aux |= CLOSE_TOLD
        else:
            (<RecState *> record).what |= STATE_TOLD


cdef void told_say_all(Edge *edge) noexcept nogil:
    """To a router that knows nothing of this worker, before the sessions that are open now."""
    _say(edge, &edge.link.told_before)
    _say(edge, &edge.link.told)
