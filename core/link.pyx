"""Link: what a worker says to its router and hears from it."""

from libc.string cimport memcpy, memset

from core.answers cimport TYPE_REPLY, answer_error, answer_position, answer_reply
from core.batch cimport batch_clear, batch_reserve
from core.bus cimport BusBatch, bus_done, bus_lost, bus_receive, bus_send, bus_tick
from core.codes cimport NOT_JOINED, OVERLOADED, RATE_LIMITED, RESUMED_ELSEWHERE, TOO_MANY_CHANNELS, UNAVAILABLE
from core.conn cimport FLAG_SESSION, STATE_OPEN, conn_get, conn_live
from core.edge cimport (ASKS_MAX, CHANNEL_LIVE, CHANNEL_UNASKED, REQUEST_CATCHUP, REQUEST_HISTORY, REQUEST_JOIN,
                        REQUEST_OPEN, REQUEST_PRESENCE, RETRY_AFTER_MS, UNDER_WAY_MAX, Channel)
from core.fanout cimport (RUN_MAX, Body, channel_at, channel_find, channel_get, channel_handle, channel_subscribe,
                          fanout_all, fanout_event_gap, fanout_event_recreated, fanout_run, member_joined,
                          message_channel, parted_say)
from core.joins cimport (channel_refused, channel_subscribed, global_known, global_told, join_overdue, joins_again,
                         outcome_told)
from core.kept cimport kept_end, kept_say, kept_say_all, kept_seq, kept_take
from core.ledger cimport (COUNT_BATCHES_IN, COUNT_BATCHES_OUT, COUNT_BUS_FULL, COUNT_DELIVERED, COUNT_ROUTER_LINKS,
                          GAUGE_LINKED, GAUGE_ROUTER_EPOCH, ledger_count, ledger_gauge)
from core.lifecycle cimport edge_fin
from core.mailbox cimport NOTE_BANS, NOTE_FOREIGN, NOTE_LINKED, NOTE_TAKEN, mailbox_put, note_init
from core.mpack cimport MpWriter, mp_write_array, mp_write_raw, mp_write_uint
from core.namespaces cimport DOMAIN_GROUP, domain_in
from core.opening cimport open_again, open_claimed, open_overdue, opening_again
from core.records cimport (BEGIN_BEFORE, BEGIN_BESIDE, BEGIN_EVERYBODY, GAP_ROUTER_LOST, LINK_FRESH, MESSAGE_EVENT,
                           MESSAGE_GLOBAL, REC_BANS, REC_BEGIN, REC_CAUGHT, REC_END, REC_EVICT, REC_GLOBAL, REC_HISTORY,
                           REC_LINK, REC_LINKED, REC_MESSAGE, REC_OPENED, REC_PRESENCE, REC_PUBLISHED, REC_REPLY,
                           REC_SUBSCRIBED, REC_TAKEN, RECORDS_VERSION, RecBody, RecCaught, RecChannel, RecHistory,
                           RecLink, RecMessage, RecPublished, RecSession, RecTaken, Record, record_add, record_fits,
                           record_init, record_size)
from core.replay cimport replay_caught, replay_overdue, replays_again
from core.requests cimport request_open, request_peek, request_take
from core.slab cimport slab_at
from core.told cimport told_say_all, told_tick
from core.zmtp cimport ZMTP_IDENTITY_BYTES_MAX

cdef enum:
    RUN_BYTES_MAX = 32768       # of messages fanned out together: they fit in an arena

ctypedef struct Run:            # messages of one channel that follow each other, not fanned out yet
    uint64_t channel            # the worker's handle
    uint32_t count
    uint32_t size               # bytes of the bodies
    uint64_t first              # offset of the first; the others follow it without a gap
    Body bodies[RUN_MAX]        # borrowed from the batch


cdef void link_hello(Edge *edge, int kind) noexcept nogil:
    """LINK, BEGIN, END or BYE."""
    cdef int flags = 0
    cdef RecLink *record
    if kind == REC_LINK and edge.link.fresh:
        flags = LINK_FRESH
    elif kind == REC_BEGIN:
        flags = BEGIN_EVERYBODY | (BEGIN_BESIDE if edge.config.beside else 0) \
            | (BEGIN_BEFORE if edge.link.router_epoch else 0)
    record = <RecLink *> record_add(&edge.link.out, kind, flags, sizeof(RecLink), 0)
    if record != NULL:
        record.epoch = edge.config.epoch
        record.version = RECORDS_VERSION
        record.worker = edge.config.worker
        record.stored_ms = edge.now_ms


cdef void link_flush(Edge *edge) noexcept nogil:
    """Send this turn's records in one batch. A full socket keeps them; the next turn tries again."""
    if edge.link.out.size == 0:
        return
    if bus_send(&edge.link.bus, NULL, 0, 0, edge.link.out.data, edge.link.out.size) != 0:
        ledger_count(edge.ledger, COUNT_BUS_FULL, 1)
        return
    ledger_count(edge.ledger, COUNT_BATCHES_OUT, 1)
    batch_clear(&edge.link.out)


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


cdef void _again_sessions(Edge *edge) noexcept nogil:
    cdef uint32_t chunk, number
    cdef uint32_t seq = edge.requests.oldest
    cdef uint32_t per_chunk = 1u << edge.connections.chunk_shift
    cdef Connection *conn
    cdef Request *request
    for chunk in range(edge.connections.chunk_count):
        if edge.connections.chunks[chunk].memory == NULL:
            continue
        for number in range(per_chunk):
            conn = <Connection *> slab_at(&edge.connections, (chunk << edge.connections.chunk_shift) | number)
            if conn_live(conn) and conn.flags & FLAG_SESSION and conn.state == STATE_OPEN:
                open_again(edge, conn)
    while seq != edge.requests.next:
        request = request_peek(edge, seq)
        if request != NULL and request.kind == REQUEST_OPEN:
            opening_again(edge, request, seq)
        seq += 1


cdef void _channels_subscribe(Edge *edge, int flags) noexcept nogil:
    """Say SUBSCRIBE for the channels that have any of these flags; 0: for all."""
    cdef uint32_t chunk, number
    cdef uint32_t per_chunk = 1u << edge.channels.chunk_shift
    cdef Channel *channel
    for chunk in range(edge.channels.chunk_count):
        if edge.channels.chunks[chunk].memory == NULL:
            continue
        for number in range(per_chunk):
            channel = channel_at(edge, (chunk << edge.channels.chunk_shift) | number)
            if channel.generation != 0 and channel.generation != <uint32_t> 0xDDDDDDDD \
                    and (flags == 0 or channel.flags & flags):
                channel_subscribe(edge, channel)


cdef void _on_foreign(Edge *edge, uint32_t version) noexcept nogil:
    """The router speaks another version: it can be told nothing. The control thread hears so once."""
    cdef Note note
    if edge.link.up:
        _link_down(edge)
    if edge.link.foreign != version:
        edge.link.foreign = version
        note_init(&note, NOTE_FOREIGN)
        note.first = version
        mailbox_put(&edge.to_control, &note, NULL, NULL)


cdef void _on_linked(Edge *edge, RecLink *record) noexcept nogil:
    """The router answered; aux 1: it does not know this worker and wants everything."""
    cdef Note note
    if record.version != RECORDS_VERSION:
        _on_foreign(edge, record.version)
        return
    edge.link.foreign = 0
    edge.link.heard_ms = edge.now_ms
    edge.link.stored_ms = max(edge.link.stored_ms, record.stored_ms)   # a new router stores on
    if not record.head.aux:
        if not edge.link.up and edge.link.router_epoch == record.epoch:
            edge.link.up = True
            kept_say_all(edge, False)
            ledger_gauge(edge.ledger, GAUGE_LINKED, 1)
        return
    edge.link.fresh = False
    batch_clear(&edge.link.out)         # whatever stands there this router would pass over; all of it is said again
    batch_clear(&edge.link.parted)      # and it has no routes to take away
    link_hello(edge, REC_BEGIN)
    told_say_all(edge)
    _again_sessions(edge)
    _channels_subscribe(edge, 0)
    link_hello(edge, REC_END)
    kept_say_all(edge, True)            # before anything new: of one channel nothing overtakes
    joins_again(edge)
    replays_again(edge)
    edge.link.up = True
    edge.link.router_epoch = record.epoch
    ledger_count(edge.ledger, COUNT_ROUTER_LINKS, 1)
    ledger_gauge(edge.ledger, GAUGE_LINKED, 1)
    ledger_gauge(edge.ledger, GAUGE_ROUTER_EPOCH, record.epoch)
    memset(&note, 0, sizeof(note))
    note.kind = NOTE_LINKED
    note.first = record.epoch
    mailbox_put(&edge.to_control, &note, NULL, NULL)


cdef void _run_deliver(Edge *edge, Run *run) noexcept nogil:
    """Fan the gathered messages out, all of them at once."""
    cdef Channel *channel
    cdef uint64_t delivered = 0
    if run.count == 0:
        return
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


cdef Channel *_global_of(Edge *edge, RecMessage *record, const Body *body) noexcept nogil:
    """The channel of a global message, which the router told of before; NULL: there was no memory or no room for it."""
    cdef uint32_t size = 0
    cdef const char *name = message_channel(body, &size)
    cdef Channel *channel = NULL if name == NULL else global_known(edge, name, size)
    if channel != NULL and not channel.flags & CHANNEL_LIVE:
        channel_subscribed(edge, channel, record.epoch, record.offset - 1)
    return channel


cdef void _on_event(Edge *edge, Run *run, RecMessage *record) noexcept nogil:
    """An EVENT that the router wrote, for the members: it has no position, and so is not held against the last one."""
    cdef Body body
    cdef Channel *channel = channel_get(edge, record.channel)
    if channel == NULL:
        return
    _run_deliver(edge, run)
    body.data = <const uint8_t *> record + sizeof(RecMessage)
    body.size = record.body_size
    ledger_count(edge.ledger, COUNT_DELIVERED, fanout_run(edge, channel, &body, 1, 0, 0))


cdef void _on_message(Edge *edge, Run *run, RecMessage *record) noexcept nogil:
    """MESSAGE: gather for fan-out; a jump in the offsets is told to the members before the message."""
    cdef Channel *channel
    cdef Body body
    if record.head.aux & MESSAGE_EVENT:
        _on_event(edge, run, record)
        return
    if record.head.aux & MESSAGE_GLOBAL:
        body.data = <const uint8_t *> record + sizeof(RecMessage)
        body.size = record.body_size
        channel = _global_of(edge, record, &body)
        if channel == NULL:
            _run_deliver(edge, run)
            ledger_count(edge.ledger, COUNT_DELIVERED, fanout_all(edge, &body, 1, NULL))
            return
        record.channel = channel_handle(channel)
    else:
        channel = channel_get(edge, record.channel)
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
    cdef const char *refused = b"the router refused the message"
    cdef Request request
    cdef Connection *conn
    if record.head.aux == TOO_MANY_CHANNELS:
        refused = b"there is no room for one more global channel: at most 128, which take at most half of max_frame" \
            b" in WELCOME. Publish in one that there is, use a group, or wait until all that was said in one of them" \
            b" is older than its history"
    conn = _answered(edge, record.seq, record.head.aux, refused, &request)
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


cdef void _on_taken(Edge *edge, RecTaken *record) noexcept nogil:
    """Clients that this draining worker sent away are back elsewhere: the control thread keeps the pace."""
    cdef Note note
    memset(&note, 0, sizeof(note))
    note.kind = NOTE_TAKEN
    note.first = record.count
    note.second = record.others
    mailbox_put(&edge.to_control, &note, NULL, NULL)


cdef void _on_caught(Edge *edge, RecCaught *record) noexcept nogil:
    """CAUGHT: a part of a replay, or the outcome that a JOIN or a HELLO waits for."""
    cdef Request *request = request_peek(edge, record.seq)
    if request == NULL:
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


cdef void _on_record(Edge *edge, Run *run, Record *record) noexcept nogil:
    """One record from the router. Whatever may change who is a member comes behind the messages before it."""
    cdef Channel *channel
    cdef Connection *conn
    if edge.link.fresh and record.kind != REC_LINKED:
        return
    if record.kind == REC_MESSAGE:
        _on_message(edge, run, <RecMessage *> record)
        return
    if record.kind == REC_PUBLISHED:
        _on_published(edge, <RecPublished *> record)
        return
    _run_deliver(edge, run)
    if record.kind == REC_SUBSCRIBED:
        channel = channel_get(edge, (<RecChannel *> record).channel)
        if channel != NULL and record.aux:
            channel_refused(edge, channel, record.aux)
        elif channel != NULL:
            channel_subscribed(edge, channel, (<RecChannel *> record).epoch, (<RecChannel *> record).offset)
    elif record.kind == REC_GLOBAL:
        global_told(edge, <RecChannel *> record)
    elif record.kind == REC_OPENED:
        open_claimed(edge, <RecSession *> record)
    elif record.kind == REC_CAUGHT:
        _on_caught(edge, <RecCaught *> record)
    elif record.kind == REC_EVICT:
        conn = conn_get(&edge.connections, (<RecSession *> record).conn)
        if conn != NULL and conn.flags & FLAG_SESSION:
            edge_fin(edge, conn, RESUMED_ELSEWHERE, b"the session was resumed on another connection", 0)
    elif record.kind == REC_REPLY:
        _on_reply(edge, <RecBody *> record)
    elif record.kind == REC_TAKEN:
        _on_taken(edge, <RecTaken *> record)
    elif record.kind == REC_BANS:
        _on_bans(edge, <RecBody *> record)
    elif record.kind == REC_LINKED:
        _on_linked(edge, <RecLink *> record)


cdef int link_receive(Edge *edge) noexcept nogil:
    """Take up to LINK_BATCHES_TURN batches from the router and act on each record; how many were taken."""
    cdef BusBatch batch
    cdef Run run
    cdef size_t place
    cdef int taken = 0
    run.count = 0
    run.size = 0
    run.channel = 0
    while taken < LINK_BATCHES_TURN and bus_receive(&edge.link.bus, &batch):
        place = 0
        while record_fits(<Record *> (batch.data + place), batch.size - place):
            _on_record(edge, &run, <Record *> (batch.data + place))
            place += (<Record *> (batch.data + place)).size
        _run_deliver(edge, &run)
        bus_done(&edge.link.bus)
        ledger_count(edge.ledger, COUNT_BATCHES_IN, 1)
        taken += 1
    if taken:
        edge.link.heard_ms = edge.now_ms
    edge.link.again = taken == LINK_BATCHES_TURN
    return taken


cdef void _link_down(Edge *edge) noexcept nogil:
    edge.link.up = False
    ledger_gauge(edge.ledger, GAUGE_LINKED, 0)


cdef void _stream_begin(Edge *edge) noexcept nogil:
    """A new stream: the first word is that it is one, and until it is answered nothing counts. The router may know
    this worker still, and say things behind others that were lost with the stream before."""
    batch_clear(&edge.link.out)
    edge.link.fresh = True
    link_hello(edge, REC_LINK)
    edge.link.sent_ms = edge.now_ms


cdef void link_tick(Edge *edge) noexcept nogil:
    """Heartbeat of the link, its connection, and the requests that are overdue."""
    cdef uint8_t identity[ZMTP_IDENTITY_BYTES_MAX]
    cdef uint32_t identity_size
    if bus_lost(&edge.link.bus, identity, &identity_size):
        _link_down(edge)
    if bus_tick(&edge.link.bus, edge.now_ms):
        _stream_begin(edge)
    if edge.now_ms - edge.link.sent_ms >= LINK_PERIOD_MS or edge.link.sent_ms == 0:
        if edge.link.out.size < LINK_PUBLISH_BYTES_MAX:
            link_hello(edge, REC_LINK)
        if edge.unasked and edge.link.up:   # O(channels), as long as one of them finds no room
            _channels_subscribe(edge, CHANNEL_UNASKED)
        if edge.link.up:
            parted_say(edge)
        edge.link.sent_ms = edge.now_ms
    if edge.link.up and edge.now_ms - edge.link.heard_ms > LINK_SILENT_MS:
        _link_down(edge)
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
        if edge.link.up:
            kept_say(edge, <uint8_t *> record)


cdef void link_presence(Edge *edge, Connection *conn, const Note *note, const char *name) noexcept nogil:
    """PRESENCE, checked by the control thread."""
    cdef RecHistory *record = _ask(edge, conn, note, name, REC_PRESENCE, REQUEST_PRESENCE)
    if record != NULL and edge.link.up:
        kept_say(edge, <uint8_t *> record)
