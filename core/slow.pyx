"""Slow consumers: members fall behind, are held to the bound, and catch up with what is left."""

from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memmove, memset

from core.answers cimport answer_frame
from core.batch cimport batch_free, batch_reserve
from core.conn cimport STATE_OPEN, Aside, conn_aside_at, conn_aside_rest, conn_aside_slot
from core.edge cimport ANSWER_BYTES, CHANNEL_RECREATED
from core.fanout cimport channel_at, event_gap_write, event_recreated_write
from core.ledger cimport (COUNT_DELIVERED, COUNT_PASSED_OVER, GAUGE_HELD_BYTES, KIND_LAG, ledger_acquire,
                          ledger_count, ledger_gauge, ledger_leaks, ledger_release)
from core.namespaces cimport SLOW_CONFLATE
from core.outbox cimport OUTBOX_SENT, outbox_overfull
from core.records cimport GAP_SLOW_CONSUMER
from core.sites cimport HERE
from core.slab cimport SLAB_NONE, invariant, slab_at, slab_release

assert sizeof(Held) == 24


cdef inline Lag *_lag_at(Edge *edge, uint32_t number) noexcept nogil:
    return <Lag *> slab_at(&edge.lags, number - 1)


cdef Lag *_lag_of(Edge *edge, Connection *conn, uint32_t channel) noexcept nogil:
    """The lag of a membership, or NULL; O(channels in which this connection is behind)."""
    cdef uint32_t number
    if not conn.behind:
        return NULL
    number = conn_aside_at(&edge.asides, conn).lags
    while number and _lag_at(edge, number).channel != channel:
        number = _lag_at(edge, number).next
    return NULL if number == 0 else _lag_at(edge, number)


cdef bint slow_lags(Edge *edge, Connection *conn, Channel *channel) noexcept nogil:
    """Whether this member is behind already, so that a message of the channel must not be queued past the held ones."""
    return _lag_of(edge, conn, channel.index) != NULL


cdef uint64_t slow_told(Edge *edge, Connection *conn, Channel *channel) noexcept nogil:
    """The last offset that this member was queued or told of: the channel's, unless it is behind there. Of an older
    epoch only what the present one has, too, counts."""
    cdef Lag *lag = _lag_of(edge, conn, channel.index)
    if lag == NULL:
        return channel.offset
    return min(lag.told, lag.common) if lag.recreations else lag.told


cdef Lag *_lag_begin(Edge *edge, Connection *conn, uint32_t channel, uint64_t told) noexcept nogil:
    """A member falls behind: `told` is the last offset that it was queued or told of. NULL: out of memory."""
    cdef uint32_t index = conn_aside_slot(&edge.asides, edge.ledger, conn, &edge.lags)
    cdef Aside *aside
    cdef Lag *lag
    if index == SLAB_NONE:
        return NULL
    aside = conn_aside_at(&edge.asides, conn)
    lag = <Lag *> slab_at(&edge.lags, index)
    memset(lag, 0, sizeof(Lag))
    lag.held.bytes_max = 0x7FFFFFFF     # the bound is the connection's, below
    lag.conn = conn.index
    lag.channel = channel
    lag.told = told
    lag.seen = told
    lag.next = aside.lags
    aside.lags = index + 1
    conn.behind = 1
    ledger_acquire(edge.ledger, KIND_LAG, index, HERE)
    return lag


cdef void _held_bytes(Edge *edge, Aside *aside, int32_t by) noexcept nogil:
    aside.held_bytes += <uint32_t> by
    edge.held_bytes += <uint64_t> <int64_t> by
    ledger_gauge(edge.ledger, GAUGE_HELD_BYTES, edge.held_bytes)


cdef void _lag_end(Edge *edge, Connection *conn, Lag *lag) noexcept nogil:
    cdef Aside *aside = conn_aside_at(&edge.asides, conn)
    cdef uint32_t number = <uint32_t> aside.lags
    cdef Lag *before = NULL
    _held_bytes(edge, aside, -<int32_t> (lag.held.size - lag.start))
    while _lag_at(edge, number) != lag:
        before = _lag_at(edge, number)
        number = before.next
    if before == NULL:
        aside.lags = lag.next
    else:
        before.next = lag.next
    conn.behind = aside.lags != 0
    batch_free(&lag.held)
    if not ledger_leaks(edge.ledger, KIND_LAG):
        ledger_release(edge.ledger, KIND_LAG, number - 1)
        slab_release(&edge.lags, number - 1)
    conn_aside_rest(&edge.asides, edge.ledger, conn)


cdef void slow_end(Edge *edge, Connection *conn, uint32_t channel) noexcept nogil:
    """A membership ends: what was held for it is not wanted any more."""
    cdef Lag *lag = _lag_of(edge, conn, channel)
    if lag != NULL:
        _lag_end(edge, conn, lag)


cdef inline Held *_oldest(Lag *lag) noexcept nogil:
    """The oldest frame that is held, or NULL; valid until the lag changes."""
    return NULL if lag.start == lag.held.size else <Held *> (lag.held.data + lag.start)


cdef void _oldest_end(Edge *edge, Aside *aside, Lag *lag) noexcept nogil:
    """Let go of the oldest frame."""
    cdef uint32_t whole = _oldest(lag).whole
    lag.start += whole
    _held_bytes(edge, aside, -<int32_t> whole)
    if lag.start == lag.held.size:
        lag.start = 0
        lag.held.size = 0


cdef void _recreation_left(Lag *lag, uint64_t epoch, uint64_t offset, uint64_t last) noexcept nogil:
    """A recreation that is held no more is to be told of next, in one with those before it."""
    if lag.recreated_epoch == 0:
        lag.recreated_offset = offset
        lag.recreated_before = last
        lag.recreated_last = last
    lag.recreated_epoch = epoch
    lag.recreated_offset = min(lag.recreated_offset, offset)
    lag.recreated_last = max(lag.recreated_last, last)


cdef void _oldest_recreation(Edge *edge, Aside *aside, Lag *lag) noexcept nogil:
    """The oldest is a recreation: from being held to being told next."""
    cdef Held *held = _oldest(lag)
    _recreation_left(lag, (<uint64_t *> (held + 1))[0], held.first - 1, held.last)
    _oldest_end(edge, aside, lag)


cdef void _leave_out(Edge *edge, Aside *aside, Lag *lag) noexcept nogil:
    """Leave out the oldest frame; the gap before the next one tells of it."""
    if _oldest(lag).size == 0:
        _oldest_recreation(edge, aside, lag)
        return
    ledger_count(edge.ledger, COUNT_PASSED_OVER, 1)
    _oldest_end(edge, aside, lag)


cdef uint8_t *_room(Lag *lag, uint32_t whole) noexcept nogil:
    """Room behind the newest frame; the front is moved up when at least half of the buffer was let go of."""
    if lag.start and lag.start >= lag.held.size // 2 and lag.held.size + whole > lag.held.capacity:
        memmove(lag.held.data, lag.held.data + lag.start, lag.held.size - lag.start)
        lag.held.size -= lag.start
        lag.start = 0
    return batch_reserve(&lag.held, whole)


cdef Held *_hold_room(Edge *edge, Connection *conn, Lag *lag, uint32_t size, uint64_t first, int policy) noexcept nogil:
    """Room for `size` bytes, for which the policy and the bound leave something out; NULL: all that is not enough."""
    cdef Aside *aside = conn_aside_at(&edge.asides, conn)
    cdef uint32_t whole = (size + <uint32_t> sizeof(Held) + 7) & ~(<uint32_t> 7)
    cdef Held *held = NULL
    while _oldest(lag) != NULL and ((policy == SLOW_CONFLATE and first)
                                    or aside.held_bytes + whole > edge.config.queue_bytes_max):
        _leave_out(edge, aside, lag)
    if aside.held_bytes + whole <= edge.config.queue_bytes_max:
        held = <Held *> _room(lag, whole)
    if held != NULL:
        held.whole = whole
        _held_bytes(edge, aside, <int32_t> whole)
    return held


cdef void _hold(Edge *edge, Connection *conn, Lag *lag, const Body *body, uint64_t first, uint64_t last,
                int policy) noexcept nogil:
    """Hold one frame; if leaving out others is not enough for it, it is left out itself."""
    cdef Held *held
    if last:
        lag.seen = last
    held = _hold_room(edge, conn, lag, body.size, first, policy)
    if held == NULL:
        ledger_count(edge.ledger, COUNT_PASSED_OVER, 1)
        return
    held.first = first
    held.last = last
    held.size = body.size
    memcpy(held + 1, body.data, body.size)


cdef void _hold_recreation(Edge *edge, Connection *conn, Lag *lag, Channel *channel, uint64_t offset,
                           uint64_t last) noexcept nogil:
    """The channel goes on behind `offset`, and what came up to `last` is of an older epoch."""
    cdef Held *held = _hold_room(edge, conn, lag, sizeof(uint64_t), offset + 1, channel.slow)
    lag.seen = offset
    lag.common = min(lag.common, offset) if lag.recreations else offset
    lag.recreations += 1
    if held == NULL:
        while _oldest(lag) != NULL:     # nothing may be told before it that came later
            _leave_out(edge, conn_aside_at(&edge.asides, conn), lag)
        _recreation_left(lag, channel.epoch, offset, last)
        return
    held.first = offset + 1
    held.last = last
    held.size = 0
    (<uint64_t *> (held + 1))[0] = channel.epoch


cdef void slow_hold(Edge *edge, Connection *conn, Channel *channel, const Body *bodies, uint32_t count,
                    uint64_t first, uint64_t last) noexcept nogil:
    """Hold frames for a member that is behind, or falls behind now.

    first: offset of the first of `count` messages that follow each other; with `last`, the range that one frame tells
    of; 0: frames without a position.
    """
    cdef Lag *lag = _lag_of(edge, conn, channel.index)
    cdef bint recreated = channel.flags & CHANNEL_RECREATED != 0
    cdef uint32_t at
    if lag == NULL:
        lag = _lag_begin(edge, conn, channel.index, first - 1 if first and not recreated else channel.offset)
    if lag == NULL:
        outbox_overfull(edge, conn)
        return
    if recreated:
        _hold_recreation(edge, conn, lag, channel, first - 1, last)
        return
    for at in range(count):
        if first == 0 or last:
            _hold(edge, conn, lag, &bodies[at], first, last, channel.slow)
        else:
            _hold(edge, conn, lag, &bodies[at], first + at, first + at, channel.slow)


cdef bint _tell_gap(Edge *edge, Connection *conn, Lag *lag, uint64_t last) noexcept nogil:
    """Tell what was left out before the next frame; False: the connection ends."""
    cdef uint8_t body[ANSWER_BYTES]
    cdef uint32_t size
    if lag.told >= last:
        return True
    size = event_gap_write(edge, channel_at(edge, lag.channel), lag.told + 1, last, GAP_SLOW_CONSUMER, body)
    lag.told = last
    return answer_frame(edge, conn, body, size) == OUTBOX_SENT


cdef bint _tell_recreated(Edge *edge, Connection *conn, Lag *lag) noexcept nogil:
    """Tell that the channel was recreated, if that is next, behind the gap before it; False: the connection ends."""
    cdef uint8_t body[ANSWER_BYTES]
    cdef uint32_t size
    cdef Held *held
    cdef uint32_t place = lag.start
    if lag.recreated_epoch == 0:
        return True
    if not _tell_gap(edge, conn, lag, lag.recreated_before):
        return False
    size = event_recreated_write(edge, channel_at(edge, lag.channel), lag.recreated_epoch, lag.recreated_offset,
                                 lag.recreated_last, body)
    lag.told = lag.recreated_offset
    lag.recreated_epoch = 0
    lag.recreations = 0
    while place < lag.held.size:
        held = <Held *> (lag.held.data + place)
        if held.size == 0:
            lag.common = min(lag.common, held.first - 1) if lag.recreations else held.first - 1
            lag.recreations += 1
        place += held.whole
    return answer_frame(edge, conn, body, size) == OUTBOX_SENT


cdef bint _release_one(Edge *edge, Connection *conn, Aside *aside, Lag *lag) noexcept nogil:
    """Queue the oldest frame that is held, behind the gap before it; False: the connection ends."""
    cdef Held *held = _oldest(lag)
    cdef bint sent
    if held.size == 0:
        _oldest_recreation(edge, aside, lag)
        return _tell_recreated(edge, conn, lag)
    if held.first and not _tell_gap(edge, conn, lag, held.first - 1):
        return False
    sent = answer_frame(edge, conn, <uint8_t *> held + sizeof(Held), held.size) == OUTBOX_SENT
    if held.last:
        lag.told = held.last
    if sent and held.first and held.first == held.last:
        ledger_count(edge.ledger, COUNT_DELIVERED, 1)
    _oldest_end(edge, aside, lag)
    return sent


cdef void slow_release(Edge *edge, Connection *conn) noexcept nogil:
    """The socket took the whole queue: queue a portion of what is held in one channel, and the gaps in it."""
    cdef Aside *aside = conn_aside_at(&edge.asides, conn)
    cdef Lag *lag = _lag_at(edge, aside.lags)
    cdef uint32_t portion = min(<uint32_t> SLOW_PORTION_BYTES, edge.config.queue_bytes_max // 4)
    invariant(conn.behind and conn.state == STATE_OPEN)
    if not _tell_recreated(edge, conn, lag):
        return
    while _oldest(lag) != NULL:
        if conn.queued_bytes >= portion:
            return
        if not _release_one(edge, conn, aside, lag):
            return
    if _tell_gap(edge, conn, lag, lag.seen):
        _lag_end(edge, conn, lag)
