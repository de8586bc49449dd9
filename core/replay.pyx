"""Replay: memberships that are being caught up."""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from core.answers cimport answer_frame
from core.codes cimport INTERNAL, UNAVAILABLE
from core.conn cimport (FLAG_CATCHING, FLAG_HALF, FLAG_OVERFULL, STATE_OPEN, Aside, conn_aside_at, conn_aside_rest,
                        conn_aside_slot, conn_get, conn_handle)
from core.edge cimport (CHANNEL_LIVE, REPLAY_ASKED, REPLAY_KEY, REPLAY_PARKED, REPLAY_WAITING, REQUEST_CATCHUP,
                        RETRY_AFTER_MS, edge_random, feed_of)
from core.fanout cimport (channel_at, channel_handle, channel_name, channel_rest, channel_shard, event_gap_told,
                          member_caught)
from core.ledger cimport (COUNT_DELIVERED, COUNT_REPLAYED, KIND_PENDING, ledger_acquire, ledger_count,
                          ledger_leaks, ledger_release)
from core.lifecycle cimport edge_fin
from core.outbox cimport outbox_touch
from core.records cimport (GAP_LOST, GAP_TRIMMED, OUTCOME_RESET, REC_CATCHUP, Caught, RecCatchup, record_add)
from core.requests cimport request_done, request_open, request_peek
from core.shards cimport shards_have
from core.sites cimport HERE
from core.slab cimport SLAB_NONE, invariant, slab_at, slab_release


cdef inline Replay *_replay_at(Edge *edge, uint32_t index) noexcept nogil:
    return <Replay *> slab_at(&edge.replays, index)


cdef void _list_add(Edge *edge, uint32_t *first, uint32_t *last, Replay *replay) noexcept nogil:
    """To the end of a list; its ends and links are index + 1."""
    replay.next = 0
    replay.previous = last[0]
    if last[0]:
        _replay_at(edge, last[0] - 1).next = replay.index + 1
    else:
        first[0] = replay.index + 1
    last[0] = replay.index + 1


cdef void _list_remove(Edge *edge, uint32_t *first, uint32_t *last, Replay *replay) noexcept nogil:
    if replay.previous:
        _replay_at(edge, replay.previous - 1).next = replay.next
    else:
        first[0] = replay.next
    if replay.next:
        _replay_at(edge, replay.next - 1).previous = replay.previous
    else:
        last[0] = replay.previous


cdef void _park(Edge *edge, Aside *aside, Replay *replay) noexcept nogil:
    replay.state = REPLAY_PARKED
    _list_add(edge, &aside.parked_first, &aside.parked_last, replay)


cdef void _wait(Edge *edge, Replay *replay) noexcept nogil:
    replay.state = REPLAY_WAITING
    _list_add(edge, &edge.replays_waiting.first, &edge.replays_waiting.last, replay)


cdef uint32_t replay_start(Edge *edge, Connection *conn, Channel *channel, uint64_t epoch,
                           uint64_t offset) noexcept nogil:
    """Catch a connection up on what came after a position of the channel; the index, SLAB_NONE: out of memory.

    The caller has it named by the connection's membership.
    """
    cdef uint32_t index = conn_aside_slot(&edge.asides, edge.ledger, conn, &edge.replays)
    cdef Aside *aside
    cdef Replay *replay
    if index == SLAB_NONE:
        return SLAB_NONE
    aside = conn_aside_at(&edge.asides, conn)
    replay = _replay_at(edge, index)
    memset(replay, 0, sizeof(Replay))
    replay.index = index
    replay.conn = conn_handle(conn)
    replay.channel = channel.index
    replay.epoch = epoch
    replay.offset = offset
    channel.holds += 1
    aside.replays += 1
    conn.flags |= FLAG_CATCHING
    _park(edge, aside, replay)
    ledger_acquire(edge.ledger, KIND_PENDING, REPLAY_KEY | index, HERE)
    outbox_touch(edge, conn)            # the flush of this turn pumps it
    return index


cdef void replay_end(Edge *edge, Connection *conn, uint32_t index) noexcept nogil:
    """Free a replay that is finished, or not wanted any more, and let go of its channel."""
    cdef Replay *replay = _replay_at(edge, index)
    cdef Channel *channel = channel_at(edge, replay.channel)
    cdef Aside *aside = conn_aside_at(&edge.asides, conn)
    if replay.state == REPLAY_PARKED:
        _list_remove(edge, &aside.parked_first, &aside.parked_last, replay)
    else:
        aside.asking -= 1
        if replay.state == REPLAY_WAITING:
            _list_remove(edge, &edge.replays_waiting.first, &edge.replays_waiting.last, replay)
        else:
            edge.replays_asked -= 1
            if replay.seq:
                request_done(edge, replay.seq)
    aside.replays -= 1
    if aside.replays == 0:
        conn.flags &= ~FLAG_CATCHING
        conn_aside_rest(&edge.asides, edge.ledger, conn)
    if ledger_leaks(edge.ledger, KIND_PENDING):
        return
    ledger_release(edge.ledger, KIND_PENDING, REPLAY_KEY | index)
    slab_release(&edge.replays, index)
    channel.holds -= 1
    channel_rest(edge, channel)


cdef void replay_position(Edge *edge, uint32_t index, uint64_t *position) noexcept nogil:
    """The position (epoch, offset) up to which the connection was given everything."""
    position[0] = _replay_at(edge, index).epoch
    position[1] = _replay_at(edge, index).offset


cdef inline uint32_t _room(Edge *edge) noexcept nogil:
    """Bytes that may wait for a connection while more is asked for: the parts and the live traffic find room above."""
    return edge.config.queue_bytes_max // 4


cdef void replays_pump(Edge *edge, Connection *conn) noexcept nogil:
    """A connection was flushed: as far as its queue has room, its replays go on."""
    cdef Aside *aside
    cdef Replay *replay
    if conn.state != STATE_OPEN or conn.flags & (FLAG_HALF | FLAG_OVERFULL) or not conn.flags & FLAG_CATCHING:
        return
    aside = conn_aside_at(&edge.asides, conn)
    while aside.parked_first and aside.asking < REPLAYS_ASKED_CONN and conn.queued_bytes <= _room(edge):
        replay = _replay_at(edge, aside.parked_first - 1)
        _list_remove(edge, &aside.parked_first, &aside.parked_last, replay)
        aside.asking += 1
        _wait(edge, replay)


cdef void catchup_ask(Edge *edge, Channel *channel, uint32_t seq, uint64_t epoch, uint64_t offset,
                      uint32_t flags) noexcept nogil:
    """CATCHUP; without room for it the request becomes overdue."""
    cdef uint8_t shard = channel_shard(edge, channel)
    cdef RecCatchup *record = <RecCatchup *> record_add(&feed_of(edge, shard).out, REC_CATCHUP, channel.name_size,
                                                        sizeof(RecCatchup), channel.name_size)
    if record == NULL:
        return
    record.head.shard = shard
    record.channel = channel_handle(channel)
    record.since_epoch = epoch
    record.since_offset = offset
    record.seq = seq
    record.flags = flags
    record.bytes_max = min(<uint32_t> REPLAY_PART_BYTES, edge.config.queue_bytes_max // 16)
    memcpy(<uint8_t *> record + sizeof(RecCatchup), channel_name(edge, channel), channel.name_size)


cdef void replays_ask(Edge *edge) noexcept nogil:
    """Ask the router for the next parts, as many as may be under way."""
    cdef Replay *replay
    while edge.replays_waiting.first and edge.replays_asked < REPLAYS_ASKED_MAX and edge.links_up:
        replay = _replay_at(edge, edge.replays_waiting.first - 1)
        replay.seq = request_open(edge, REQUEST_CATCHUP, replay.conn, 0, replay.index)
        if replay.seq == 0:
            return                      # too many requests: some of them are answered or overdue soon
        _list_remove(edge, &edge.replays_waiting.first, &edge.replays_waiting.last, replay)
        replay.state = REPLAY_ASKED
        edge.replays_asked += 1
        catchup_ask(edge, channel_at(edge, replay.channel), replay.seq, replay.epoch, replay.offset, 0)


cdef void replays_again(Edge *edge, const uint64_t *shards) noexcept nogil:
    """A router does not know what this worker asked of these shards (bits): it is asked again."""
    cdef uint32_t seq = edge.requests.oldest
    cdef Request *request
    cdef Replay *replay
    cdef uint32_t shard
    while seq != edge.requests.next:
        request = request_peek(edge, seq)
        if request != NULL and request.kind == REQUEST_CATCHUP:
            replay = _replay_at(edge, request.index)
            shard = channel_shard(edge, channel_at(edge, replay.channel))
            if shards_have(shards, shard):
                catchup_ask(edge, channel_at(edge, replay.channel), seq, replay.epoch, replay.offset, 0)
        seq += 1


cdef void replay_overdue(Edge *edge, Request *request) noexcept nogil:
    """The router did not answer in time; the caller has closed the request. It is asked again, the connection waits."""
    cdef Replay *replay = _replay_at(edge, request.index)
    replay.seq = 0
    edge.replays_asked -= 1
    _wait(edge, replay)


cdef bint _messages_queue(Edge *edge, Connection *conn, RecCaught *record) noexcept nogil:
    """Queue the messages of a part; False: the part is malformed."""
    cdef const uint8_t *place = <const uint8_t *> record + sizeof(RecCaught)
    cdef const uint8_t *end = place + record.body_size
    cdef const Caught *caught
    cdef uint32_t _number
    for _number in range(record.count):
        caught = <const Caught *> place
        if <size_t> (end - place) < sizeof(Caught) or <size_t> (end - place) - sizeof(Caught) < caught.size:
            return False
        answer_frame(edge, conn, place + sizeof(Caught), caught.size)
        place += sizeof(Caught) + ((caught.size + 7) & ~(<uint32_t> 7))
    ledger_count(edge.ledger, COUNT_REPLAYED, record.count)
    ledger_count(edge.ledger, COUNT_DELIVERED, record.count)
    return True


cdef void _part_queue(Edge *edge, Connection *conn, Replay *replay, RecCaught *record) noexcept nogil:
    """Queue one part, and make the connection a live member if that was all."""
    cdef Channel *channel = channel_at(edge, replay.channel)
    if record.gap_from:
        event_gap_told(edge, conn, channel, record.gap_from, record.gap_to,
                       GAP_LOST if record.gap_reason == GAP_LOST else GAP_TRIMMED)
    if not _messages_queue(edge, conn, record):
        edge_fin(edge, conn, INTERNAL, b"a fault of the gateway's own", edge_random(edge, RETRY_AFTER_MS))
        return
    replay.epoch = record.last_epoch
    replay.offset = record.last_offset
    if record.last_offset != record.offset:
        replay.strayed = 0
    elif channel.flags & CHANNEL_LIVE and channel.offset == record.offset:
        member_caught(edge, conn, channel)
    elif channel.flags & CHANNEL_LIVE:
        replay.strayed += 1             # never on one link: what was routed before this part arrived before it
        if replay.strayed > REPLAY_STRAYS_MAX:
            edge_fin(edge, conn, UNAVAILABLE, b"the channel moved under its replay: resume",
                     edge_random(edge, RETRY_AFTER_MS))


cdef void replay_caught(Edge *edge, Request *request, RecCaught *record) noexcept nogil:
    """CAUGHT for a replay. A refusal is asked again when the request is overdue, and no sooner."""
    cdef Replay *replay = _replay_at(edge, request.index)
    cdef Connection *conn = conn_get(&edge.connections, replay.conn)
    cdef Aside *aside
    invariant(conn != NULL and replay.state == REPLAY_ASKED)
    if record.head.aux:
        return
    request_done(edge, replay.seq)
    replay.seq = 0
    edge.replays_asked -= 1
    aside = conn_aside_at(&edge.asides, conn)
    aside.asking -= 1
    _park(edge, aside, replay)
    outbox_touch(edge, conn)
    if record.outcome == OUTCOME_RESET:
        edge_fin(edge, conn, UNAVAILABLE, b"the channel's history was lost while it was replayed: resume",
                 edge_random(edge, RETRY_AFTER_MS))
    else:
        _part_queue(edge, conn, replay, record)
