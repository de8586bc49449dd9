"""Told: what sessions did is kept for a moment, and told again."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from core.batch cimport Batch, batch_clear, batch_free, batch_reserve, batch_write
from core.edge cimport shard_link
from core.records cimport CLOSE_TOLD, OPEN_TOLD, REC_CLOSE, REC_OPEN, REC_STATE, STATE_TOLD, RecSession, RecState
from core.shards cimport shard_of


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


cdef void told_keep(Edge *edge, const Record *record) noexcept nogil:
    """A record that the router has been told just now; at the bound the oldest go."""
    if batch_write(&edge.told, record, record.size) < 0:
        _turn_over(edge)
        batch_write(&edge.told, record, record.size)


cdef void told_tick(Edge *edge) noexcept nogil:
    """Forget what routers that are there have stored by now."""
    cdef uint32_t number
    if edge.now_ms - edge.told_ms < TOLD_MS or edge.owed:
        return
    for number in range(edge.link_count):
        if edge.links[number] != NULL and not edge.links[number].up:
            return
    _turn_over(edge)


cdef inline const uint8_t *_session(const Record *record) noexcept nogil:
    if record.kind == REC_STATE:
        return (<const RecState *> record).session
    return (<const RecSession *> record).session


cdef void _say(Edge *edge, const Batch *told, const uint8_t *shards) noexcept nogil:
    cdef uint32_t place = 0
    cdef uint32_t shard
    cdef uint8_t *room
    cdef Record *record
    while place < told.size:
        record = <Record *> (told.data + place)
        place += record.size
        shard = shard_of(_session(record), 16)
        if not shards[shard]:
            continue
        room = batch_reserve(&shard_link(edge, shard).out, record.size)
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


cdef void told_say_all(Edge *edge, const uint8_t *shards) noexcept nogil:
    """To a router that is new to some shards, before the sessions that are open now."""
    _say(edge, &edge.told_before, shards)
    _say(edge, &edge.told, shards)
