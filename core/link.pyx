"""Link: what a worker says to its routers and hears from them."""

from libc.string cimport memcmp, memcpy, memset

from core.shards cimport SHARD_OF_GLOBALS, SHARD_WORDS
from core.answers cimport TYPE_REPLY, answer_error, answer_position, answer_reply
from core.batch cimport batch_clear, batch_free, batch_reserve
from core.bus cimport BusBatch, bus_done, bus_lost, bus_pending, bus_receive, bus_send, bus_tick
from core.codes cimport NOT_JOINED, OVERLOADED, RATE_LIMITED, RESUMED_ELSEWHERE, TOO_MANY_CHANNELS, UNAVAILABLE
from core.conn cimport FLAG_SESSION, STATE_OPEN, conn_get, conn_live
from core.edge cimport (ASKS_MAX, CHANNEL_LIVE, CHANNEL_UNASKED, LINK_NOWHERE, REQUEST_CATCHUP, REQUEST_HISTORY,
                        REQUEST_JOIN, REQUEST_OPEN, REQUEST_PRESENCE, RETRY_AFTER_MS, UNDER_WAY_MAX, Channel, Link,
                        edge_shard, feed_of, link_bit, link_of, links_next)
from core.fanout cimport (RUN_MAX, Body, channel_find, channel_get, channel_handle, channel_shard, fanout_all,
                          fanout_event_gap, fanout_event_recreated, fanout_run, member_joined, message_channel,
                          parted_say)
from core.joins cimport channel_refused, channel_subscribed, global_known, global_told, join_overdue, outcome_told
from core.kept cimport kept_end, kept_say, kept_seq, kept_take
from core.led cimport (fed_map, feds_news, fed_shards, led_kept, led_map, led_news, led_overdue, led_subscribe,
                       led_told, link_down, link_hello, link_up)
from core.ledger cimport COUNT_BATCHES_IN, COUNT_BATCHES_OUT, COUNT_BUS_FULL, COUNT_DELIVERED, ledger_count
from core.lifecycle cimport edge_fin, edge_fin_sized
from core.mailbox cimport NOTE_BANS, NOTE_FOREIGN, NOTE_LINK_CLOSED, NOTE_TAKEN, mailbox_put, note_init
from core.mpack cimport MpWriter, mp_write_array, mp_write_raw, mp_write_uint
from core.namespaces cimport DOMAIN_GROUP, domain_in
from core.opening cimport open_claimed, open_overdue
from core.records cimport (GAP_ROUTER_LOST, MESSAGE_EVENT, MESSAGE_GLOBAL, RECORDS_VERSION, REC_BANS, REC_BYE,
                           REC_CAUGHT, REC_EVICT, REC_GLOBAL, REC_HISTORY, REC_LEADS, REC_LINK, REC_LINKED,
                           REC_MESSAGE, REC_OPENED, REC_PRESENCE, REC_PUBLISHED, REC_REPLY, REC_SUBSCRIBED, REC_TAKEN,
                           RecBody, RecCaught, RecChannel, RecHistory, RecLeads, RecLink, RecMessage, RecPublished,
                           RecSession, RecTaken, Record, record_fits, record_init, record_size)
from core.replay cimport replay_caught, replay_overdue
from core.requests cimport request_open, request_peek, request_take
from core.slab cimport Slab, slab_at
from core.told cimport told_tick
from core.vitals cimport vital_of
from core.zmtp cimport ZMTP_IDENTITY_BYTES_MAX

cdef enum:
    RUN_BYTES_MAX = 32768       # of messages fanned out together: they fit in an arena

ctypedef struct Run:            # messages of one channel that follow each other, not fanned out yet
    uint64_t channel            # the worker's handle
    uint32_t count
    uint32_t size               # bytes of the bodies
    uint64_t first              # offset of the first; the others follow it without a gap
    Body bodies[RUN_MAX]        # borrowed from the batch


cdef void link_bye(Edge *edge) noexcept nogil:
    """This worker ends: every router is told."""
    cdef uint64_t left = edge.links_used
    while left:
        link_hello(edge, links_next(edge, &left), REC_BYE)


cdef void link_flush(Edge *edge) noexcept nogil:
    """Send this turn's records, one batch a link. A full socket keeps them; the next turn tries again."""
    cdef uint64_t left = edge.links_used
    cdef Link *link
    edge.links_full = 0
    while left:
        link = links_next(edge, &left)
        if link.out.size == 0:
            continue
        edge.links_touched |= link_bit(link)
        if bus_send(&link.bus, NULL, 0, 0, link.out.data, link.out.size) != 0:
            ledger_count(edge.ledger, COUNT_BUS_FULL, 1)
            edge.links_full |= link_bit(link)
            continue
        ledger_count(edge.ledger, COUNT_BATCHES_OUT, 1)
        batch_clear(&link.out)
    if edge.links[LINK_NOWHERE].out.size:
        batch_clear(&edge.links[LINK_NOWHERE].out)
        batch_clear(&edge.links[LINK_NOWHERE].parted)


cdef void link_again(Edge *edge) noexcept nogil:
    """After the last send of a turn: find out where something may be received without another wait."""
    cdef uint64_t left = edge.links_touched & ~edge.links_again
    cdef Link *link
    while left:
        link = links_next(edge, &left)
        if bus_pending(&link.bus):
            edge.links_again |= link_bit(link)
    edge.links_touched = 0


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


cdef void _on_foreign(Edge *edge, Link *link, uint32_t version) noexcept nogil:
    """The router speaks another version: it can be told nothing. The control thread hears so once."""
    cdef Note note
    link_down(edge, link)
    if link.foreign != version:
        link.foreign = version
        note_init(&note, NOTE_FOREIGN)
        note.request = link.place
        note.first = version
        mailbox_put(&edge.to_control, &note, NULL, NULL)


cdef void _on_linked(Edge *edge, Link *link, RecLink *record) noexcept nogil:
    """The router answered; aux 1: it does not know this worker and wants everything."""
    if record.version != RECORDS_VERSION:
        _on_foreign(edge, link, record.version)
        return
    link.foreign = 0
    link.heard_ms = edge.now_ms
    link.stored_ms = max(link.stored_ms, record.stored_ms)     # a new router stores on
    if record.head.aux:
        link.fresh = False
        link.asked = True               # what it leads stands behind this
        link.asked_epoch = record.epoch
    elif not link.up and link.router_epoch == record.epoch:
        link_up(edge, link)
        led_kept(edge, link, False)


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


cdef void _on_message(Edge *edge, const Link *link, Run *run, RecMessage *record) noexcept nogil:
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
        if (record.epoch < channel.epoch or record.offset != channel.offset + 1) \
                and feed_of(edge, channel_shard(edge, channel)) != link:
            return                      # of a leader that was deposed, or of one that another router follows for us
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


cdef Connection *_former(Edge *edge, const RecSession *record) noexcept nogil:
    """The connection that is evicted: by its handle, which the session's leader knows, or as a channel's leader names
    it, by its place, the session, and a later claim than its own. NULL: it is gone.
    """
    cdef Slab *table = &edge.connections
    cdef uint32_t index = <uint32_t> record.conn
    cdef Connection *conn
    if record.conn >> 32:
        return conn_get(table, record.conn)
    if (index >> table.chunk_shift) >= table.chunk_count or table.chunks[index >> table.chunk_shift].memory == NULL:
        return NULL
    conn = <Connection *> slab_at(table, index)
    if not conn_live(conn) or memcmp(conn.session, record.session, 16) != 0:
        return NULL
    return conn if 0 < vital_of(edge, conn).fence < record.fence else NULL


cdef void _on_evict(Edge *edge, const RecSession *record) noexcept nogil:
    """A connection has lost its session."""
    cdef Connection *conn = _former(edge, record)
    if conn == NULL or not conn.flags & FLAG_SESSION:
        return
    if record.head.aux == 0:
        edge_fin(edge, conn, RESUMED_ELSEWHERE, b"the session was resumed on another connection", 0)
    else:
        edge_fin_sized(edge, conn, record.head.aux, <const char *> record + sizeof(RecSession), record.body_size, 0)


cdef void _on_subscribed(Edge *edge, const Link *link, RecChannel *record) noexcept nogil:
    """SUBSCRIBED; a late one of a router that leads the shard no more would set the channel back."""
    cdef Channel *channel = channel_get(edge, record.channel)
    if channel == NULL or feed_of(edge, channel_shard(edge, channel)) != link:
        return
    if record.head.aux:
        channel_refused(edge, channel, record.head.aux)
    else:
        channel_subscribed(edge, channel, record.epoch, record.offset)


cdef void _on_record(Edge *edge, Link *link, Run *run, Record *record) noexcept nogil:
    """One record from the router. Whatever may change who is a member comes behind the messages before it."""
    if link.fresh and record.kind != REC_LINKED:
        return
    if record.kind == REC_MESSAGE:
        _on_message(edge, link, run, <RecMessage *> record)
        return
    if record.kind == REC_PUBLISHED:
        _on_published(edge, <RecPublished *> record)
        return
    _run_deliver(edge, run)
    if record.kind == REC_SUBSCRIBED:
        _on_subscribed(edge, link, <RecChannel *> record)
    elif record.kind == REC_GLOBAL:
        if feed_of(edge, SHARD_OF_GLOBALS) == link:
            global_told(edge, <RecChannel *> record)
    elif record.kind == REC_OPENED:
        open_claimed(edge, link, <RecSession *> record)
    elif record.kind == REC_CAUGHT:
        _on_caught(edge, <RecCaught *> record)
    elif record.kind == REC_EVICT:
        _on_evict(edge, <RecSession *> record)
    elif record.kind == REC_REPLY:
        _on_reply(edge, <RecBody *> record)
    elif record.kind == REC_TAKEN:
        _on_taken(edge, <RecTaken *> record)
    elif record.kind == REC_BANS:
        _on_bans(edge, <RecBody *> record)
    elif record.kind == REC_LINKED:
        _on_linked(edge, link, <RecLink *> record)
    elif record.kind == REC_LEADS:
        led_told(edge, link, <RecLeads *> record)


cdef void _receive(Edge *edge, Link *link) noexcept nogil:
    """Take up to LINK_BATCHES_TURN batches from a router and act on each record."""
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
        led_news(edge, link)
        ledger_count(edge.ledger, COUNT_BATCHES_IN, 1)
        taken += 1
    if taken:
        link.heard_ms = edge.now_ms
    if taken == LINK_BATCHES_TURN:
        edge.links_again |= link_bit(link)


cdef void link_receive(Edge *edge) noexcept nogil:
    """Take what routers have sent."""
    cdef uint64_t left = edge.links_again
    edge.links_again = 0
    edge.links_touched |= left
    while left:
        _receive(edge, links_next(edge, &left))
    feds_news(edge)


cdef void _stream_begin(Edge *edge, Link *link) noexcept nogil:
    """A new stream: the first word is that it is one, and until it is answered nothing counts. The router may know
    this worker still, and say things behind others that were lost with the stream before."""
    batch_clear(&link.out)
    link.fresh = True
    link_hello(edge, link, REC_LINK)
    link.sent_ms = edge.now_ms


cdef void _tick(Edge *edge, Link *link) noexcept nogil:
    """Heartbeat of a link, and its connection."""
    cdef uint8_t identity[ZMTP_IDENTITY_BYTES_MAX]
    cdef uint32_t identity_size
    cdef uint64_t shards[SHARD_WORDS]
    if bus_lost(&link.bus, identity, &identity_size):
        link_down(edge, link)
    if bus_tick(&link.bus, edge.now_ms):
        _stream_begin(edge, link)
    if edge.now_ms - link.sent_ms >= LINK_PERIOD_MS or link.sent_ms == 0:
        if link.out.size < LINK_PUBLISH_BYTES_MAX:
            link_hello(edge, link, REC_LINK)
        if edge.unasked and link.up:    # O(channels), as long as one of them finds no room
            fed_shards(edge, link, shards)
            led_subscribe(edge, shards, CHANNEL_UNASKED)
        if link.up:
            parted_say(link)
        link.sent_ms = edge.now_ms
    if link.up and edge.now_ms - link.heard_ms > LINK_SILENT_MS:
        link_down(edge, link)


cdef void link_tick(Edge *edge) noexcept nogil:
    """Heartbeats of the links, and the requests that are overdue."""
    cdef uint64_t left = edge.links_used
    while left:
        _tick(edge, links_next(edge, &left))
    left = edge.links_closing
    while left:
        _closed_tell(edge, links_next(edge, &left))
    told_tick(edge)
    led_overdue(edge)
    _requests_overdue(edge)


cdef void link_opened(Edge *edge, uint32_t place) noexcept nogil:
    """The control thread opened a link's socket: from now on it is this thread's."""
    cdef Link *link = &edge.links[place]
    link.router_epoch = 0
    link.heard_ms = link.sent_ms = link.stored_ms = 0
    link.foreign = 0
    link.asked = False
    # Over tcp a link that was closed may have been known to this same router: it connects again by itself when the
    # router is started anew, and is closed and opened once the directory says so.
    link.fresh = not link.bus.native
    memset(link.news, 0, sizeof(link.news))
    edge.links_closing &= ~link_bit(link)
    edge.links_used |= link_bit(link)
    edge.links_again |= link_bit(link)


cdef void link_closed(Edge *edge, uint32_t place) noexcept nogil:
    """The control thread wants its socket back: what it leads, nobody is known to lead."""
    cdef Link *link = &edge.links[place]
    cdef uint32_t shard
    if not edge.links_used & link_bit(link):
        return
    link_down(edge, link)
    edge.links_used &= ~link_bit(link)
    edge.links_again &= ~link_bit(link)
    edge.links_touched &= ~link_bit(link)
    edge.links_full &= ~link_bit(link)
    batch_free(&link.out)
    batch_free(&link.parted)
    for shard in range(edge.shard_count):
        if edge.shard_feeds[shard] == place:
            fed_map(edge, shard, edge.shard_links[shard])
        if edge.shard_links[shard] == place:
            led_map(edge, shard, LINK_NOWHERE)
    feds_news(edge)
    _closed_tell(edge, link)


cdef void _closed_tell(Edge *edge, Link *link) noexcept nogil:
    cdef Note note
    note_init(&note, NOTE_LINK_CLOSED)
    note.request = link.place
    edge.links_closing &= ~link_bit(link)
    if mailbox_put(&edge.to_control, &note, NULL, NULL) < 0:
        edge.links_closing |= link_bit(link)


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
    (<Record *> room).shard = edge_shard(edge, name, note.text_size)
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
        if link_of(edge, record.head.shard).up:
            kept_say(edge, <uint8_t *> record)


cdef void link_presence(Edge *edge, Connection *conn, const Note *note, const char *name) noexcept nogil:
    """PRESENCE, checked by the control thread."""
    cdef RecHistory *record = _ask(edge, conn, note, name, REC_PRESENCE, REQUEST_PRESENCE)
    if record != NULL and link_of(edge, record.head.shard).up:
        kept_say(edge, <uint8_t *> record)
