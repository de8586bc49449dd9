"""Link: what a worker says to its router and hears from it."""

from libc.string cimport memcpy, memset

from core.answers cimport TYPE_REPLY, answer_error, answer_position, answer_reply
from core.batch cimport batch_clear, batch_reserve
from core.bus cimport BusBatch, bus_done, bus_lost, bus_pending, bus_receive, bus_send, bus_tick
from core.codes cimport NOT_JOINED, OVERLOADED, RATE_LIMITED, RESUMED_ELSEWHERE, UNAVAILABLE
from core.conn cimport FLAG_SESSION, STATE_OPEN, conn_get
from core.edge cimport (ASKS_MAX, CHANNEL_LIVE, NONE, REQUEST_CATCHUP, REQUEST_HISTORY, REQUEST_JOIN, REQUEST_OPEN,
                        REQUEST_PRESENCE, RETRY_AFTER_MS, UNDER_WAY_MAX, Channel, channel_link, name_shard, shard_link,
                        shard_ready)
from core.fanout cimport (RUN_MAX, Body, channel_find, channel_get, channel_of_message, fanout_all, fanout_event_gap,
                          fanout_event_recreated, fanout_run, member_joined)
from core.joins cimport channel_refused, channel_subscribed, join_overdue, outcome_told, state_acked
from core.kept cimport kept_end, kept_say, kept_say_all, kept_seq, kept_take
from core.ledger cimport (COUNT_BATCHES_IN, COUNT_BATCHES_OUT, COUNT_BUS_FULL, COUNT_DELIVERED, COUNT_ROUTER_LINKS,
                          GAUGE_LINKED, GAUGE_ROUTER_EPOCH, ledger_count, ledger_gauge)
from core.lifecycle cimport edge_fin
from core.mailbox cimport NOTE_BANS, NOTE_LINKED, NOTE_TAKEN, mailbox_put, note_init
from core.mpack cimport MpWriter, mp_write_array, mp_write_raw, mp_write_uint
from core.namespaces cimport DOMAIN_GROUP, domain_in
from core.opening cimport open_claimed, open_overdue
from core.records cimport (GAP_ROUTER_LOST, MESSAGE_EVENT, REC_ACKED, REC_BANS, REC_BEGIN, REC_CAUGHT, REC_END,
                           REC_EVICT, REC_HISTORY, REC_LINK, REC_LINKED, REC_MESSAGE, REC_MOVED, REC_OPENED,
                           REC_PRESENCE, REC_PUBLISHED, REC_REPLY, REC_SUBSCRIBED, REC_TAKEN, RECORDS_VERSION, RecBody,
                           RecCaught, RecChannel, RecHistory, RecLink, RecMessage, RecPublished, RecSession, RecShard,
                           RecState, RecTaken, Record, record_add, record_fits, record_init, record_size)
from core.replay cimport replay_caught, replay_overdue
from core.requests cimport request_open, request_peek, request_take
from core.shard_map cimport (channels_unasked_say, link_shards, shard_moved, shards_ask, shards_begin, shards_paid,
                             shards_pay, shards_say)
from core.shards cimport SHARDS
from core.told cimport told_tick
from core.zmtp cimport ZMTP_IDENTITY_BYTES_MAX

cdef enum:
    RUN_BYTES_MAX = 32768       # of messages fanned out together: they fit in an arena

ctypedef struct Run:            # messages of one channel that follow each other, not fanned out yet
    uint64_t channel            # the worker's handle; 0: global
    uint32_t count
    uint32_t size               # bytes of the bodies
    uint64_t first              # offset of the first; the others follow it without a gap
    Body bodies[RUN_MAX]        # borrowed from the batch


cdef void link_hello(Edge *edge, Link *link, int kind) noexcept nogil:
    """LINK, BEGIN, END or BYE."""
    cdef int beside = 1 if kind == REC_BEGIN and edge.config.beside else 0
    cdef RecLink *record = <RecLink *> record_add(&link.out, kind, beside, sizeof(RecLink), 0)
    if record != NULL:
        record.epoch = edge.config.epoch
        record.version = RECORDS_VERSION
        record.worker = edge.config.worker


cdef void links_flush(Edge *edge) noexcept nogil:
    """Send this turn's records in one batch a router. A full socket keeps them; the next turn tries again."""
    cdef uint32_t number
    cdef Link *link
    for number in range(edge.link_count):
        link = edge.links[number]
        if link == NULL or link.out.size == 0:
            continue
        if bus_send(&link.bus, NULL, 0, 0, link.out.data, link.out.size) != 0:
            ledger_count(edge.ledger, COUNT_BUS_FULL, 1)
            continue
        ledger_count(edge.ledger, COUNT_BATCHES_OUT, 1)
        batch_clear(&link.out)


cdef void _request_fail(Edge *edge, Request *request, const char *why) noexcept nogil:
    """Answer a request that the router will not answer."""
    cdef Connection *conn
    if request.kind == REQUEST_JOIN:
        join_overdue(edge, request)
    elif request.kind == REQUEST_OPEN:
        open_overdue(edge, request)
    elif request.kind == REQUEST_CATCHUP:
        replay_overdue(edge, request)
    else:
        conn = conn_get(&edge.connections, request.conn)
        if conn != NULL:
            answer_error(edge, conn, request.request, UNAVAILABLE, why, RETRY_AFTER_MS)


cdef void _requests_overdue(Edge *edge) noexcept nogil:
    cdef Request request
    while edge.requests.oldest != edge.requests.next:
        request = edge.requests.ring[edge.requests.oldest & (edge.requests.capacity - 1)]
        if request.sent_ms + edge.config.request_timeout_ms > edge.now_ms:
            return
        if not request_take(edge, edge.requests.oldest, &request):
            return
        _request_fail(edge, &request, b"the router did not answer in time")


cdef void _gauges(Edge *edge) noexcept nogil:
    """Whether all routers know this worker, and the highest of their epochs."""
    cdef uint32_t number
    cdef bint up = True
    cdef uint64_t epoch = 0
    for number in range(edge.link_count):
        if edge.links[number] != NULL:
            up = up and edge.links[number].up
            epoch = max(epoch, edge.links[number].router_epoch)
    ledger_gauge(edge.ledger, GAUGE_LINKED, up)
    ledger_gauge(edge.ledger, GAUGE_ROUTER_EPOCH, epoch)


cdef void _on_linked(Edge *edge, Link *link, RecLink *record) noexcept nogil:
    """The router answered; aux 1: it does not know this worker and wants everything."""
    cdef uint8_t shards[SHARDS]
    cdef Note note
    link.heard_ms = edge.now_ms
    link_shards(edge, link, shards)
    if not record.head.aux:
        if not link.up and link.router_epoch == record.epoch:
            link.up = True
            if edge.owed:
                shards_pay(edge, link)
            kept_say_all(edge, link, shards, False)
            _gauges(edge)
        return
    batch_clear(&link.out)              # whatever stands there this router would pass over; all of it is said again
    link_hello(edge, link, REC_BEGIN)
    if edge.map_version > 1:            # a shard may have been given to this router, which hears of it from SHARD on
        shards_begin(edge, link, shards)
    shards_say(edge, shards)
    link_hello(edge, link, REC_END)
    shards_ask(edge, link, shards)
    shards_paid(edge, shards)
    link.up = True
    link.router_epoch = record.epoch
    ledger_count(edge.ledger, COUNT_ROUTER_LINKS, 1)
    _gauges(edge)
    memset(&note, 0, sizeof(note))
    note.kind = NOTE_LINKED
    note.first = record.epoch
    note.second = link.number
    mailbox_put(&edge.to_control, &note, NULL, NULL)


cdef void _run_deliver(Edge *edge, Run *run) noexcept nogil:
    """Fan the gathered messages out, all of them at once."""
    cdef Channel *channel
    cdef uint64_t delivered = 0
    if run.count == 0:
        return
    if run.channel == 0:
        delivered = fanout_all(edge, run.bodies, run.count, NULL)
    else:
        channel = channel_get(edge, run.channel)
        if channel != NULL:
            delivered = fanout_run(edge, channel, run.bodies, run.count, run.first, 0)
    ledger_count(edge.ledger, COUNT_DELIVERED, delivered)
    run.count = 0
    run.size = 0


cdef void _run_add(Edge *edge, Run *run, RecMessage *record) noexcept nogil:
    """Gather a message; those of another channel, or too many, leave first."""
    if run.channel != record.channel or run.count == RUN_MAX \
            or run.size + record.body_size > min(<uint32_t> RUN_BYTES_MAX, edge.config.queue_bytes_max // 4):
        _run_deliver(edge, run)
    if run.count == 0:
        run.channel = record.channel
        run.first = record.offset
    run.bodies[run.count].data = <const uint8_t *> record + sizeof(RecMessage)
    run.bodies[run.count].size = record.body_size
    run.size += record.body_size
    run.count += 1


cdef void _on_global(Edge *edge, Link *link, Run *run, RecMessage *record) noexcept nogil:
    """A global message while some of the global channels have a position here: theirs moves, and who is being caught up
    on it gets it by that alone."""
    cdef Body body
    cdef Channel *channel
    body.data = <const uint8_t *> record + sizeof(RecMessage)
    body.size = record.body_size
    channel = channel_of_message(edge, &body)
    if channel != NULL and channel.flags & CHANNEL_LIVE:
        if channel_link(edge, channel) != link or (record.offset <= channel.offset and record.epoch <= channel.epoch):
            return
        channel.epoch = record.epoch
        channel.offset = record.offset
    _run_deliver(edge, run)
    ledger_count(edge.ledger, COUNT_DELIVERED, fanout_all(edge, &body, 1, channel))


cdef inline Channel *_channel_of(Edge *edge, Link *link, uint64_t handle) noexcept nogil:
    """The channel of a handle, if the router that names it is the channel's; another's words count no more."""
    cdef Channel *channel = channel_get(edge, handle)
    return channel if channel != NULL and channel_link(edge, channel) == link else NULL


cdef void _on_event(Edge *edge, Link *link, Run *run, RecMessage *record) noexcept nogil:
    """An EVENT that the router wrote, for the members: it has no position, and so is not held against the last one."""
    cdef Body body
    cdef Channel *channel = _channel_of(edge, link, record.channel)
    if channel == NULL:
        return
    _run_deliver(edge, run)
    body.data = <const uint8_t *> record + sizeof(RecMessage)
    body.size = record.body_size
    ledger_count(edge.ledger, COUNT_DELIVERED, fanout_run(edge, channel, &body, 1, 0, 0))


cdef void _on_message(Edge *edge, Link *link, Run *run, RecMessage *record) noexcept nogil:
    """MESSAGE: gather for fan-out; a jump in the offsets is told to the members before the message."""
    cdef Channel *channel
    if record.head.aux & MESSAGE_EVENT:
        _on_event(edge, link, run, record)
        return
    if record.head.aux:
        record.channel = 0
        if edge.globals:
            _on_global(edge, link, run, record)
        else:
            _run_add(edge, run, record)
        return
    channel = _channel_of(edge, link, record.channel)
    if channel == NULL:
        return
    if channel.flags & CHANNEL_LIVE:
        if record.offset <= channel.offset:
            if record.epoch <= channel.epoch:
                return
            _run_deliver(edge, run)
            fanout_event_recreated(edge, channel, record.epoch, record.offset - 1)
        if record.offset > channel.offset + 1:
            _run_deliver(edge, run)
            fanout_event_gap(edge, channel, channel.offset + 1, record.offset - 1, GAP_ROUTER_LOST)
    channel.epoch = record.epoch
    channel.offset = record.offset
    _run_add(edge, run, record)


cdef uint32_t _retry_after(int code) noexcept nogil:
    """Only what may be different later says when (protocol, "Codes")."""
    return RETRY_AFTER_MS if code == OVERLOADED or code == UNAVAILABLE else 0


cdef Connection *_answered(Edge *edge, uint32_t seq, int code, const char *refused, Request *request) noexcept nogil:
    """Close a request that the router answered; who is to hear of it, NULL: nobody, or it was told of the refusal."""
    cdef Connection *conn = NULL
    if request_take(edge, seq, request):
        conn = conn_get(&edge.connections, request.conn)
    if conn != NULL and code:
        answer_error(edge, conn, request.request, code, refused, _retry_after(code))
        return NULL
    return conn


cdef void _on_published(Edge *edge, RecPublished *record) noexcept nogil:
    cdef Request request
    cdef Connection *conn = _answered(edge, record.seq, record.head.aux, b"the router refused the message", &request)
    if conn != NULL:
        answer_position(edge, conn, request.request, record.epoch, record.offset, NULL)


cdef void _on_reply(Edge *edge, RecBody *record) noexcept nogil:
    """REPLY: the router's body under the client's request number."""
    cdef Request request
    cdef Connection *conn = _answered(edge, record.seq, record.head.aux, b"the router refused the request", &request)
    cdef MpWriter writer
    cdef uint8_t *body
    if conn == NULL or request.request == 0:    # no answer was asked for
        return
    batch_clear(&edge.control)
    body = batch_reserve(&edge.control, record.body_size + 32)
    if body == NULL:
        answer_error(edge, conn, request.request, OVERLOADED, b"out of memory", RETRY_AFTER_MS)
        return
    writer.p = body
    writer.end = body + record.body_size + 32
    writer.overflow = False
    mp_write_array(&writer, 3)
    mp_write_uint(&writer, TYPE_REPLY)
    mp_write_uint(&writer, request.request)
    mp_write_raw(&writer, <uint8_t *> record + sizeof(RecBody), record.body_size)
    answer_reply(edge, conn, body, <uint32_t> (writer.p - body))


cdef void _on_taken(Edge *edge, Link *link, RecTaken *record) noexcept nogil:
    """Clients that this draining worker sent away are back elsewhere: the control thread keeps the pace. A router
    counts as draining only who gave up sessions of its shards, so the lowest count of others is the true one."""
    cdef uint32_t others = NONE
    cdef uint32_t number
    cdef Note note
    link.others = record.others
    for number in range(edge.link_count):
        if edge.links[number] != NULL:
            others = min(others, edge.links[number].others)
    memset(&note, 0, sizeof(note))
    note.kind = NOTE_TAKEN
    note.first = record.count
    note.second = others
    mailbox_put(&edge.to_control, &note, NULL, NULL)


cdef void _on_caught(Edge *edge, Link *link, RecCaught *record) noexcept nogil:
    """CAUGHT: a part of a replay, or the outcome that a JOIN or a HELLO waits for."""
    cdef Request *request = request_peek(edge, record.seq)
    if request == NULL or _channel_of(edge, link, record.channel) == NULL:
        return
    if request.kind == REQUEST_CATCHUP:
        replay_caught(edge, request, record)
    elif request.kind == REQUEST_JOIN or request.kind == REQUEST_OPEN:
        outcome_told(edge, request, record)


cdef void _on_bans(Edge *edge, RecBody *record) noexcept nogil:
    """The control thread keeps them, and ends the sessions of who was banned just now."""
    cdef Note note
    note_init(&note, NOTE_BANS)
    note.flags = record.head.aux
    note.text_size = record.body_size
    mailbox_put(&edge.to_control, &note, <uint8_t *> record + sizeof(RecBody), NULL)


cdef void _on_record(Edge *edge, Link *link, Run *run, Record *record) noexcept nogil:
    """One record from a router. Whatever may change who is a member comes behind the messages before it."""
    cdef Channel *channel
    cdef Connection *conn
    if record.kind == REC_MESSAGE:
        _on_message(edge, link, run, <RecMessage *> record)
        return
    if record.kind == REC_PUBLISHED:
        _on_published(edge, <RecPublished *> record)
        return
    _run_deliver(edge, run)
    if record.kind == REC_SUBSCRIBED:
        channel = _channel_of(edge, link, (<RecChannel *> record).channel)
        if channel != NULL and record.aux:
            channel_refused(edge, channel, record.aux)
        elif channel != NULL:
            channel_subscribed(edge, channel, (<RecChannel *> record).epoch, (<RecChannel *> record).offset)
    elif record.kind == REC_OPENED:
        open_claimed(edge, link, <RecSession *> record)
    elif record.kind == REC_CAUGHT:
        _on_caught(edge, link, <RecCaught *> record)
    elif record.kind == REC_ACKED:
        state_acked(edge, <RecState *> record)
    elif record.kind == REC_EVICT:
        conn = conn_get(&edge.connections, (<RecSession *> record).conn)
        if conn != NULL and conn.flags & FLAG_SESSION:
            edge_fin(edge, conn, RESUMED_ELSEWHERE, b"the session was resumed on another connection", 0)
    elif record.kind == REC_REPLY:
        _on_reply(edge, <RecBody *> record)
    elif record.kind == REC_TAKEN:
        _on_taken(edge, link, <RecTaken *> record)
    elif record.kind == REC_BANS:
        _on_bans(edge, <RecBody *> record)
    elif record.kind == REC_MOVED:
        shard_moved(edge, link, <RecShard *> record)
    elif record.kind == REC_LINKED:
        _on_linked(edge, link, <RecLink *> record)


cdef void _receive(Edge *edge, Link *link) noexcept nogil:
    """Take up to LINK_BATCHES_TURN batches from one router and act on each record."""
    cdef BusBatch batch
    cdef Run run
    cdef size_t place
    cdef int taken = 0
    run.count = 0
    run.size = 0
    run.channel = 0
    while taken < LINK_BATCHES_TURN and bus_receive(&link.bus, &batch):
        place = 0
        while record_fits(<Record *> (batch.data + place), batch.size - place):
            _on_record(edge, link, &run, <Record *> (batch.data + place))
            place += (<Record *> (batch.data + place)).size
        _run_deliver(edge, &run)
        bus_done(&link.bus)
        ledger_count(edge.ledger, COUNT_BATCHES_IN, 1)
        taken += 1
    if taken:
        link.heard_ms = edge.now_ms
    link.again = taken == LINK_BATCHES_TURN


cdef void links_receive(Edge *edge) noexcept nogil:
    """Take what the routers sent, as far as one turn takes it."""
    cdef uint32_t number
    for number in range(edge.link_count):
        if edge.links[number] != NULL and edge.links[number].again:
            _receive(edge, edge.links[number])


cdef void links_look(Edge *edge) noexcept nogil:
    """After the last send of a turn: see which links have something to be received without another wait."""
    cdef uint32_t number
    for number in range(edge.link_count):
        if edge.links[number] != NULL and bus_pending(&edge.links[number].bus):
            edge.links[number].again = True


cdef void _link_down(Edge *edge, Link *link) noexcept nogil:
    link.up = False
    _gauges(edge)


cdef void _tick(Edge *edge, Link *link) noexcept nogil:
    """Heartbeat of one link, and its connection."""
    cdef uint8_t identity[ZMTP_IDENTITY_BYTES_MAX]
    cdef uint32_t identity_size
    if bus_lost(&link.bus, identity, &identity_size):
        _link_down(edge, link)
    if bus_tick(&link.bus, edge.now_ms):
        link.sent_ms = 0                # a new stream: the first word at once
    if edge.now_ms - link.sent_ms >= LINK_PERIOD_MS or link.sent_ms == 0:
        if link.out.size < LINK_PUBLISH_BYTES_MAX:
            link_hello(edge, link, REC_LINK)
        if edge.unasked and link.up:    # O(channels), as long as one of them finds no room
            channels_unasked_say(edge, link)
        link.sent_ms = edge.now_ms
    if link.up and edge.now_ms - link.heard_ms > LINK_SILENT_MS:
        _link_down(edge, link)
    if link.owed_ms and link.up and edge.now_ms >= link.owed_ms:
        shards_pay(edge, link)


cdef void links_tick(Edge *edge) noexcept nogil:
    """Heartbeats, and the requests that are overdue."""
    cdef uint32_t number
    for number in range(edge.link_count):
        if edge.links[number] != NULL:
            _tick(edge, edge.links[number])
    told_tick(edge)
    _requests_overdue(edge)


cdef RecHistory *_ask(Edge *edge, Connection *conn, const Note *note, const char *name, int record_kind,
                      int request_kind) noexcept nogil:
    """Open a request and keep its record, to be completed and said; NULL after an answer was given."""
    cdef uint32_t seq = 0
    cdef uint32_t block = 0
    cdef uint8_t *room
    cdef Channel *channel
    if conn.state != STATE_OPEN:
        return NULL
    if domain_in(&edge.namespaces, name, note.text_size) == DOMAIN_GROUP:
        channel = channel_find(edge, name, note.text_size)
        if channel == NULL or not member_joined(conn, channel):
            answer_error(edge, conn, note.request, NOT_JOINED, b"join the group first", 0)
            return NULL
    if conn.asks >= ASKS_MAX or conn.under_way >= UNDER_WAY_MAX:
        answer_error(edge, conn, note.request, RATE_LIMITED, b"too many requests of this session wait",
                     RETRY_AFTER_MS)
        return NULL
    room = kept_take(edge, record_size(sizeof(RecHistory), note.text_size), &block)
    if room != NULL:
        record_init(room, record_kind, note.text_size, sizeof(RecHistory), note.text_size)
        seq = request_open(edge, request_kind, note.conn, note.request, block)
        kept_seq(room, seq)
        if seq == 0:
            kept_end(edge, block)
    if seq == 0:
        answer_error(edge, conn, note.request, OVERLOADED, b"too much waits for the router", RETRY_AFTER_MS)
        return NULL
    (<RecHistory *> room).seq = seq
    memcpy(room + sizeof(RecHistory), name, note.text_size)
    return <RecHistory *> room


cdef void _ask_now(Edge *edge, uint8_t *record, const char *name, uint32_t size) noexcept nogil:
    """Say a kept record to its channel's router, unless that is to be told something else first."""
    cdef uint32_t shard = name_shard(edge, name, size)
    if shard_ready(edge, shard):
        kept_say(shard_link(edge, shard), record)


cdef void link_history(Edge *edge, Connection *conn, const Note *note, const char *name) noexcept nogil:
    """HISTORY, checked by the control thread."""
    cdef RecHistory *record = _ask(edge, conn, note, name, REC_HISTORY, REQUEST_HISTORY)
    if record != NULL:
        record.limit = <uint32_t> note.first
        record.reverse = 1 if note.flags & 1 else 0
        record.has_since = 1 if note.flags & 2 else 0
        record.since_epoch = note.second
        record.since_offset = note.third
        record.bytes_max = edge.config.max_frame - 64
        _ask_now(edge, <uint8_t *> record, name, note.text_size)


cdef void link_presence(Edge *edge, Connection *conn, const Note *note, const char *name) noexcept nogil:
    """PRESENCE, checked by the control thread."""
    cdef RecHistory *record = _ask(edge, conn, note, name, REC_PRESENCE, REQUEST_PRESENCE)
    if record != NULL:
        _ask_now(edge, <uint8_t *> record, name, note.text_size)
