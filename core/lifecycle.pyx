"""Lifecycle: ends and deadlines of connections."""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen

from core.answers cimport (TYPE_FIN_ACK, TYPE_PING, WireView, answer_fin, answer_heartbeat, answer_raw, frame_encode)
from core.codes cimport BYE, HEARTBEAT_LOST, HELLO_TIMEOUT, KICKED, SLOW_CONSUMER, TOKEN_EXPIRED, UNAVAILABLE, code_name
from core.conn cimport (ASIDE_NONE, FLAG_ASKED, FLAG_BLOCKED, FLAG_ENDING, FLAG_FINISHED, FLAG_FIRST, FLAG_HALF,
                        FLAG_HELLO, FLAG_OVERFULL, FLAG_SESSION, FLAG_TLS, FLAG_TOUCHED, FLAG_WATCHED, FLAG_WEBSOCKET,
                        STAGE_DISCARD, STAGE_FRAMES, STATE_ACCEPTED, STATE_CLOSED, STATE_CLOSING, STATE_HANDSHAKING,
                        STATE_OPEN, Aside, conn_aside_at, conn_aside_rest, conn_handle, conn_set_state)
from core.edge cimport RETRY_AFTER_MS, Link, conn_shard, edge_random, edge_tick, edge_ticks, link_of, links_next
from core.expiry cimport expiry_due, expiry_near, expiry_over, expiry_tell
from core.fanout cimport member_remove_all
from core.framing_tcp cimport tcp_decoder_init
from core.framing_ws cimport ws_decoder_init, ws_header_write
from core.ledger cimport (COUNT_FINS_SENT, COUNT_FRAME_TIMEOUTS, COUNT_HEARTBEATS_LOST, COUNT_HELLO_TIMEOUTS,
                          COUNT_PINGS_SENT, COUNT_SLOW_CONSUMERS, KIND_FD, REASON_FIRST, ledger_count, ledger_leaks,
                          ledger_release, reason_place)
from core.mailbox cimport NOTE_SETTLE, Note, mailbox_put
from core.outbox cimport outbox_append, outbox_drop, outbox_send, outbox_touch
from core.poller cimport EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, poller_watch
from core.records cimport CLOSE_COMES_BACK, CLOSE_OVER, REC_CLOSE, RecSession, record_add
from core.ring cimport ring_release
from core.sockets cimport sockets_abort, sockets_unacked
from core.tls cimport tls_conn_free
from core.told cimport told_say, told_take, told_time
from core.vitals cimport vital_of, vital_pinging
from core.wheel cimport WHEEL_TICK_MS, timer_set, wheel_cancel, wheel_set

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int)

cdef enum:
    # After both close frames a browser waits for our end of the transport, and then closes it by itself: Firefox after
    # 1 s, Chromium after 2 s. Libraries that wait longer are not kept waiting.
    WS_CLOSE_MS = 2500


cdef void _guest_leaves(Edge *edge, Connection *conn) noexcept nogil:
    """Other routers that lead channels of a session hear of its end: all that are up, as its memberships are over."""
    cdef uint64_t left = edge.links_used
    cdef Link *link
    cdef RecSession *record
    if edge.links_up < 2:
        return
    while left:
        link = links_next(edge, &left)
        if not link.up or link == link_of(edge, conn_shard(edge, conn)):
            continue
        record = <RecSession *> record_add(&link.out, REC_CLOSE, 0, sizeof(RecSession), 0)
        if record != NULL:
            record.head.shard = conn_shard(edge, conn)
            record.conn = conn_handle(conn)
            memcpy(record.session, conn.session, 16)


cdef void _session_leave(Edge *edge, Connection *conn, bint over) noexcept nogil:
    """Give up what the session holds here and at the router; `over`: its client will not come back to it."""
    cdef uint64_t fence = vital_of(edge, conn).fence
    cdef int flags = (CLOSE_COMES_BACK if edge.drain_telling else 0) | (CLOSE_OVER if over else 0)
    cdef RecSession *record
    member_remove_all(edge, conn)
    if not conn.flags & FLAG_SESSION:
        return
    conn.flags &= ~FLAG_SESSION
    if fence:
        record = <RecSession *> told_take(edge, REC_CLOSE, flags, sizeof(RecSession), 0)
    else:                               # its claim was not answered: the next router hears nothing of that either
        record = <RecSession *> record_add(&link_of(edge, conn_shard(edge, conn)).out, REC_CLOSE, flags,
                                           sizeof(RecSession), 0)
    if record == NULL:
        return
    record.head.shard = conn_shard(edge, conn)
    record.conn = conn_handle(conn)
    memcpy(record.session, conn.session, 16)
    if fence:
        record.fence = fence
        record.time_us = told_time(edge)
        told_say(edge, &record.head)
    _guest_leaves(edge, conn)


cdef void _deadline(Edge *edge, Connection *conn, uint32_t ms) noexcept nogil:
    conn.state_deadline = edge_tick(edge) + edge_ticks(ms)
    edge_timer_plan(edge, conn)


cdef void _enter_closing(Edge *edge, Connection *conn, int code) noexcept nogil:
    if conn.state < STATE_OPEN:
        edge.handshakes -= 1
    if conn.state == STATE_ACCEPTED:
        conn_set_state(conn, edge.ledger, STATE_HANDSHAKING)
    conn_set_state(conn, edge.ledger, STATE_CLOSING)
    if conn.reason == 0:
        conn.reason = <uint16_t> code
    _deadline(edge, conn, edge.config.fin_timeout_ms)


cdef void _make_way(Connection *conn) noexcept nogil:
    """What comes now ends the connection: it finds room behind a full queue, too."""
    conn.flags = (conn.flags | FLAG_ENDING) & ~FLAG_OVERFULL


cdef void edge_fin_sized(Edge *edge, Connection *conn, int code, const char *reason, uint32_t reason_size,
                         uint32_t after_ms) noexcept nogil:
    """Queue FIN, give up the session, and wait for FIN_ACK. Nothing happens to a connection that is ending already."""
    if conn.state >= STATE_CLOSING:
        return
    _session_leave(edge, conn, code == KICKED)
    if conn.stage != STAGE_FRAMES:
        edge_close(edge, conn, code)
        return
    _make_way(conn)
    answer_fin(edge, conn, code, reason, reason_size, after_ms)
    ledger_count(edge.ledger, COUNT_FINS_SENT, 1)
    _enter_closing(edge, conn, code)


cdef void edge_fin(Edge *edge, Connection *conn, int code, const char *reason, uint32_t after_ms) noexcept nogil:
    edge_fin_sized(edge, conn, code, reason, <uint32_t> strlen(reason), after_ms)


cdef void edge_break(Edge *edge, Connection *conn, int code, const char *reason) noexcept nogil:
    """End a connection whose byte stream cannot be followed any more: FIN, close, and throw away what still comes."""
    edge_fin(edge, conn, code, reason, 0)
    edge_discard(edge, conn)


cdef void edge_discard(Edge *edge, Connection *conn) noexcept nogil:
    """After a FIN that nothing can follow: close without waiting for FIN_ACK, and throw away what still comes."""
    if conn.state == STATE_CLOSED:
        return
    edge_finish(edge, conn)
    conn.flags |= FLAG_FIRST
    conn.stage = STAGE_DISCARD
    outbox_touch(edge, conn)
    edge_drop_input(edge, conn)


cdef void edge_drop_input(Edge *edge, Connection *conn) noexcept nogil:
    """Forget a partial frame, and where the cutter stands in it."""
    cdef Aside *aside
    if conn.aside == ASIDE_NONE:
        return
    aside = conn_aside_at(&edge.asides, conn)
    if aside.input != NULL:
        ring_release(&edge.rings, aside.input)
        aside.input = NULL
    aside.frame_since = 0
    ws_decoder_init(&aside.ws, False)
    tcp_decoder_init(&aside.tcp)
    conn_aside_rest(&edge.asides, edge.ledger, conn)


cdef void edge_finish(Edge *edge, Connection *conn) noexcept nogil:
    """All was said, but for the WebSocket close frame (status 4000 + code)."""
    cdef uint8_t frame[64]
    cdef const char *name = code_name(conn.reason)
    cdef uint32_t name_size = <uint32_t> strlen(name)
    cdef uint32_t header
    cdef uint32_t status = 4000 + conn.reason
    if conn.flags & FLAG_FINISHED:
        return
    if conn.flags & FLAG_WEBSOCKET and conn.stage == STAGE_FRAMES:
        header = ws_header_write(frame, 8, 2 + name_size)
        frame[header] = <uint8_t> (status >> 8)
        frame[header + 1] = <uint8_t> status
        memcpy(frame + header + 2, name, name_size)
        answer_raw(edge, conn, frame, header + 2 + name_size)
    conn.flags |= FLAG_FINISHED
    outbox_touch(edge, conn)


cdef void edge_refuse(Edge *edge, Connection *conn, int code) noexcept nogil:
    """End without FIN: an HTTP error or a WebSocket close frame is queued already and says it all."""
    if conn.state < STATE_CLOSING:
        _session_leave(edge, conn, False)
        _enter_closing(edge, conn, code)
    conn.stage = STAGE_DISCARD
    conn.flags |= FLAG_FINISHED | FLAG_FIRST
    outbox_touch(edge, conn)


cdef void _await_close(Edge *edge, Connection *conn) noexcept nogil:
    """Both have said FIN or FIN_ACK: the client closes the transport, or the deadline does."""
    if not conn.flags & FLAG_FINISHED:
        edge_finish(edge, conn)
        _deadline(edge, conn, edge.config.fin_timeout_ms)


cdef void edge_fin_acked(Edge *edge, Connection *conn) noexcept nogil:
    """FIN_ACK came: only the transport is left to close."""
    if conn.state == STATE_CLOSING:
        _await_close(edge, conn)


cdef void edge_peer_fin(Edge *edge, Connection *conn, bint over) noexcept nogil:
    """The client's FIN: answer FIN_ACK, and give up the session, for good if it is `over`. Crossing ours, it also
    acknowledges it."""
    cdef uint8_t body[2]
    cdef WireView view
    if conn.flags & FLAG_FINISHED:
        return
    _make_way(conn)
    body[0] = 0x91
    body[1] = TYPE_FIN_ACK
    if frame_encode(edge, conn.form, body, 2, &view) == 0:
        outbox_append(edge, conn, view.shared, view.offset, view.length)
    if conn.state < STATE_CLOSING:
        _session_leave(edge, conn, over)
        _enter_closing(edge, conn, BYE)
    _await_close(edge, conn)


cdef void edge_peer_closed_ws(Edge *edge, Connection *conn) noexcept nogil:
    """The peer's close frame came after ours: nothing is said any more, and few clients close first from here."""
    conn.stage = STAGE_DISCARD
    if not conn.flags & FLAG_FIRST:
        _deadline(edge, conn, min(edge.config.fin_timeout_ms, <uint32_t> WS_CLOSE_MS))


cdef void edge_watch(Edge *edge, Connection *conn) noexcept nogil:
    """Watch for what can still happen: a peer that closed would be readable for ever."""
    cdef uint32_t events = EPOLLOUT if conn.flags & FLAG_WATCHED else 0
    if not (conn.flags & FLAG_HALF and conn.flags & FLAG_FIRST):
        events |= EPOLLIN
    poller_watch(edge.epoll_fd, conn.fd, conn_handle(conn), EPOLL_CTL_MOD, events)


cdef bint _settle(Edge *edge, Connection *conn) noexcept nogil:
    """Ask the control thread to say when nothing of this connection is left with it; False: its mailbox is full."""
    cdef Note note
    memset(&note, 0, sizeof(note))
    note.kind = NOTE_SETTLE
    note.conn = conn_handle(conn)
    return mailbox_put(&edge.to_control, &note, NULL, NULL) == 0


cdef void _half_open(Edge *edge, Connection *conn) noexcept nogil:
    """The peer of an open session sends no more: what it asked for is answered within the time of a request."""
    edge_drop_input(edge, conn)
    if not conn.flags & FLAG_HALF:
        conn.flags |= FLAG_HALF
        if conn.flags & FLAG_ASKED and not _settle(edge, conn):
            conn.flags &= ~FLAG_ASKED
        _deadline(edge, conn, edge.config.request_timeout_ms + WHEEL_TICK_MS)
    outbox_touch(edge, conn)


cdef void edge_peer_shut(Edge *edge, Connection *conn, bint closed) noexcept nogil:
    """The peer sends no more, without FIN: `closed` by TCP, else by TLS's close_notify, with TCP's end still to come.

    That it closed for writing alone and that it closed whole look the same from here. So what it asked for is answered
    before its transport is closed; a peer that is gone resets the connection at the first of these answers.
    """
    if conn.state < STATE_OPEN:
        if closed:
            edge_close(edge, conn, BYE)
        else:
            edge_refuse(edge, conn, BYE)
        return
    if conn.state == STATE_CLOSED or not (closed or conn.state == STATE_OPEN):
        return
    if closed:
        if conn.out_head == NULL and not conn.flags & FLAG_BLOCKED \
                and (conn.state == STATE_CLOSING or not (conn.under_way or conn.flags & FLAG_ASKED)):
            edge_close(edge, conn, BYE)
            return
        conn.flags |= FLAG_FIRST
    if conn.state == STATE_OPEN:
        _half_open(edge, conn)
    else:
        conn.flags |= FLAG_HALF | FLAG_FINISHED
        outbox_touch(edge, conn)
    edge_watch(edge, conn)


cdef void edge_half_step(Edge *edge, Connection *conn) noexcept nogil:
    """Once everything is answered, nothing holds a connection any more whose peer sends nothing."""
    if conn.state != STATE_OPEN or conn.under_way or conn.flags & FLAG_ASKED:
        return
    _session_leave(edge, conn, False)
    _enter_closing(edge, conn, BYE)
    edge_finish(edge, conn)


cdef void _give_up(Edge *edge, Connection *conn, int reason) noexcept nogil:
    """Close a connection whose peer takes nothing: the kernel is not left to try for minutes what failed already."""
    sockets_abort(conn.fd)
    edge_close(edge, conn, reason)


cdef void edge_close(Edge *edge, Connection *conn, int reason) noexcept nogil:
    """Release everything the connection holds, now. The struct is freed at the end of the turn."""
    if conn.state == STATE_CLOSED:
        return
    _session_leave(edge, conn, False)
    if conn.reason == 0:
        conn.reason = <uint16_t> reason
    wheel_cancel(&edge.wheel, conn.index)
    outbox_drop(edge, conn)
    edge_drop_input(edge, conn)
    if conn.flags & FLAG_TLS:
        tls_conn_free(edge, conn)
    if not ledger_leaks(edge.ledger, KIND_FD):
        ledger_release(edge.ledger, KIND_FD, conn.fd)
        c_close(conn.fd)
    conn.fd = -1
    if conn.state < STATE_OPEN:
        edge.handshakes -= 1
    conn_set_state(conn, edge.ledger, STATE_CLOSED)
    conn_aside_rest(&edge.asides, edge.ledger, conn)
    edge.ledger.words[REASON_FIRST + reason_place(conn.reason)] += 1
    if not conn.flags & FLAG_TOUCHED:       # else the flush finds it closed and moves it over
        conn.next_touched = edge.closed
        edge.closed = conn


cdef inline uint32_t _ping_ticks(Edge *edge, Connection *conn) noexcept nogil:
    """Ticks of our own silence after which a PING is due: the interval, or less by a part that differs from connection
    to connection and from PING to PING. What all hear in one tick would else let all PING in one tick, 30 s later.
    """
    cdef uint32_t ping = edge.config.ping_ms // WHEEL_TICK_MS
    cdef uint32_t spread = ping // (2 if conn.ping_seq == 0 else 8) + 1
    cdef uint32_t phase = conn.index * <uint32_t> 0x9E3779B1 + conn.ping_seq * <uint32_t> 0x85EBCA6B
    return ping - <uint32_t> ((<uint64_t> phase * spread) >> 32)


cdef inline uint32_t _frame_since(Edge *edge, Connection *conn) noexcept nogil:
    """When the frame began that is not complete yet; 0: there is none."""
    return 0 if conn.aside == ASIDE_NONE else conn_aside_at(&edge.asides, conn).frame_since


cdef void edge_timer_plan(Edge *edge, Connection *conn) noexcept nogil:
    """Set the timer to the next thing that can become due. Activity does not move it: it looks again when it fires."""
    cdef uint32_t due = conn.state_deadline
    cdef uint32_t since = _frame_since(edge, conn)
    if conn.state == STATE_OPEN and not conn.flags & FLAG_HALF:
        due = min(conn.last_sent + _ping_ticks(edge, conn),
                  conn.last_heard + edge_ticks(edge.config.ping_ms * edge.config.misses))
        due = expiry_due(edge, conn, due)
        if since:
            due = min(due, since + edge_ticks(edge.config.frame_timeout_ms))
    if conn.flags & FLAG_BLOCKED:
        due = min(due, conn.blocked_since + edge_ticks(edge.config.write_timeout_ms))
    wheel_set(&edge.wheel, conn.index, <uint64_t> due * WHEEL_TICK_MS)


cdef void _silent(Edge *edge, Connection *conn) noexcept nogil:
    """Nothing was heard for ping x misses. Who has not even acknowledged what was sent will not read FIN either."""
    ledger_count(edge.ledger, COUNT_HEARTBEATS_LOST, 1)
    if sockets_unacked(conn.fd):
        _give_up(edge, conn, HEARTBEAT_LOST)
        return
    edge_fin(edge, conn, HEARTBEAT_LOST, b"nothing was heard for too long", edge_random(edge, RETRY_AFTER_MS))
    outbox_send(edge, conn)
    edge_close(edge, conn, HEARTBEAT_LOST)


cdef void _open_fired(Edge *edge, Connection *conn, uint32_t tick) noexcept nogil:
    """Silence for ping x misses ends the connection, as does a frame that does not end, and the end of its credentials;
    silence of ours is a PING."""
    cdef uint32_t since = _frame_since(edge, conn)
    if tick - conn.last_heard >= edge_ticks(edge.config.ping_ms * edge.config.misses):
        _silent(edge, conn)
    elif expiry_over(edge, conn, tick):
        edge_fin(edge, conn, TOKEN_EXPIRED, b"the token's time is over: come back with a new one",
                 edge_random(edge, RETRY_AFTER_MS))
    elif since and tick - since >= edge_ticks(edge.config.frame_timeout_ms):
        ledger_count(edge.ledger, COUNT_FRAME_TIMEOUTS, 1)
        edge_fin(edge, conn, HEARTBEAT_LOST, b"a frame was not complete in time", edge_random(edge, RETRY_AFTER_MS))
        edge_discard(edge, conn)
    elif expiry_near(edge, conn, tick):
        expiry_tell(edge, conn)
    elif tick - conn.last_sent >= _ping_ticks(edge, conn):
        conn.ping_seq += 1
        conn.last_sent = tick
        ledger_count(edge.ledger, COUNT_PINGS_SENT, 1)
        vital_pinging(edge, conn)
        answer_heartbeat(edge, conn, TYPE_PING, conn.ping_seq, edge.now_ms)


cdef void _state_overdue(Edge *edge, Connection *conn) noexcept nogil:
    """The handshake, the answers to a peer that sends no more, or the end took too long."""
    if conn.state >= STATE_OPEN:
        if conn.flags & FLAG_BLOCKED \
                and edge_tick(edge) - conn.blocked_since >= edge_ticks(edge.config.fin_timeout_ms):
            sockets_abort(conn.fd)      # FIN itself still waits behind what the peer does not take
        edge_close(edge, conn, conn.reason)
    elif conn.flags & FLAG_HELLO:
        edge_fin(edge, conn, UNAVAILABLE, b"the router did not answer in time",
                 RETRY_AFTER_MS + edge_random(edge, RETRY_AFTER_MS))
    else:
        ledger_count(edge.ledger, COUNT_HELLO_TIMEOUTS, 1)
        edge_fin(edge, conn, HELLO_TIMEOUT, b"no HELLO arrived in time", edge_random(edge, RETRY_AFTER_MS))
        edge_discard(edge, conn)


cdef void edge_timer_fired(Edge *edge, Connection *conn) noexcept nogil:
    """Look at everything that can be due; plan the next look unless the connection ended."""
    cdef uint32_t tick = edge_tick(edge)
    if conn.flags & FLAG_BLOCKED and tick - conn.blocked_since >= edge_ticks(edge.config.write_timeout_ms):
        ledger_count(edge.ledger, COUNT_SLOW_CONSUMERS, 1)
        _give_up(edge, conn, SLOW_CONSUMER)
        return
    if conn.state == STATE_OPEN and not conn.flags & FLAG_HALF:
        _open_fired(edge, conn, tick)
    elif <int32_t> (tick - conn.state_deadline) >= 0:
        _state_overdue(edge, conn)
    if conn.state != STATE_CLOSED and not timer_set(&conn.timer):
        edge_timer_plan(edge, conn)
