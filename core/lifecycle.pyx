"""Lifecycle: ends and deadlines of connections."""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen

from core.answers cimport (TYPE_FIN_ACK, TYPE_PING, WireView, answer_fin, answer_heartbeat, answer_raw, frame_encode)
from core.codes cimport BYE, HEARTBEAT_LOST, HELLO_TIMEOUT, SLOW_CONSUMER, UNAVAILABLE, code_name
from core.conn cimport (ASIDE_NONE, FLAG_BLOCKED, FLAG_ENDING, FLAG_FINISHED, FLAG_HELLO, FLAG_OVERFULL, FLAG_SESSION,
                        FLAG_TLS, FLAG_TOUCHED, FLAG_WEBSOCKET, STAGE_DISCARD, STAGE_FRAMES, STATE_ACCEPTED,
                        STATE_CLOSED, STATE_CLOSING, STATE_HANDSHAKING, STATE_OPEN, Aside, conn_aside_at,
                        conn_aside_rest, conn_handle, conn_set_state)
from core.edge cimport RETRY_AFTER_MS, edge_random, edge_tick
from core.fanout cimport member_remove_all
from core.framing_tcp cimport tcp_decoder_init
from core.framing_ws cimport ws_decoder_init, ws_header_write
from core.ledger cimport (COUNT_FINS_SENT, COUNT_HEARTBEATS_LOST, COUNT_HELLO_TIMEOUTS, COUNT_PINGS_SENT,
                          COUNT_SLOW_CONSUMERS, KIND_FD, REASON_FIRST, ledger_count, ledger_leaks,
                          ledger_release, reason_place)
from core.outbox cimport outbox_append, outbox_drop, outbox_send, outbox_touch
from core.records cimport REC_CLOSE, RecSession, record_add
from core.ring cimport ring_release
from core.tls cimport tls_conn_free
from core.vitals cimport vital_pinging
from core.wheel cimport WHEEL_TICK_MS, timer_set, wheel_cancel, wheel_set

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int)


cdef void _session_leave(Edge *edge, Connection *conn) noexcept nogil:
    """Give up what the session holds here and at the router."""
    cdef RecSession *record
    member_remove_all(edge, conn)
    if conn.flags & FLAG_SESSION:
        conn.flags &= ~FLAG_SESSION
        record = <RecSession *> record_add(&edge.link.out, REC_CLOSE, edge.drain_telling, sizeof(RecSession), 0)
        if record != NULL:
            record.conn = conn_handle(conn)
            memcpy(record.session, conn.session, 16)


cdef void _enter_closing(Edge *edge, Connection *conn, int code) noexcept nogil:
    if conn.state < STATE_OPEN:
        edge.handshakes -= 1
    if conn.state == STATE_ACCEPTED:
        conn_set_state(conn, edge.ledger, STATE_HANDSHAKING)
    conn_set_state(conn, edge.ledger, STATE_CLOSING)
    if conn.reason == 0:
        conn.reason = <uint16_t> code
    conn.state_deadline = edge_tick(edge) + edge.config.fin_timeout_ms // WHEEL_TICK_MS + 1
    edge_timer_plan(edge, conn)


cdef void _make_way(Connection *conn) noexcept nogil:
    """What comes now ends the connection: it finds room behind a full queue, too."""
    conn.flags = (conn.flags | FLAG_ENDING) & ~FLAG_OVERFULL


cdef void edge_fin_sized(Edge *edge, Connection *conn, int code, const char *reason, uint32_t reason_size,
                         uint32_t after_ms) noexcept nogil:
    """Queue FIN, give up the session, and wait for FIN_ACK. Nothing happens to a connection that is ending already."""
    if conn.state >= STATE_CLOSING:
        return
    _session_leave(edge, conn)
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
    conn.stage = STAGE_DISCARD
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
    ws_decoder_init(&aside.ws, False)
    tcp_decoder_init(&aside.tcp)
    conn_aside_rest(&edge.asides, edge.ledger, conn)


cdef void edge_finish(Edge *edge, Connection *conn) noexcept nogil:
    """All was said: the WebSocket close frame (status 4000 + code), then shutdown for writing once the queue is out."""
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
        _session_leave(edge, conn)
        _enter_closing(edge, conn, code)
    conn.stage = STAGE_DISCARD
    conn.flags |= FLAG_FINISHED
    outbox_touch(edge, conn)


cdef void edge_fin_acked(Edge *edge, Connection *conn) noexcept nogil:
    """FIN_ACK came: only the transport is left to close."""
    if conn.state == STATE_CLOSING:
        edge_finish(edge, conn)


cdef void edge_peer_fin(Edge *edge, Connection *conn) noexcept nogil:
    """The client's FIN: answer FIN_ACK, and give up the session. Crossing ours, it also acknowledges it."""
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
        _session_leave(edge, conn)
        _enter_closing(edge, conn, BYE)
    edge_finish(edge, conn)


cdef void edge_close(Edge *edge, Connection *conn, int reason) noexcept nogil:
    """Release everything the connection holds, now. The struct is freed at the end of the turn."""
    if conn.state == STATE_CLOSED:
        return
    _session_leave(edge, conn)
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
    if not conn.flags & FLAG_TOUCHED:       # else the flush of this turn finds it closed and moves it over
        conn.next_touched = edge.closed
        edge.closed = conn


cdef void edge_timer_plan(Edge *edge, Connection *conn) noexcept nogil:
    """Set the timer to the next thing that can become due. Activity does not move it: it looks again when it fires."""
    cdef uint32_t ping = edge.config.ping_ms // WHEEL_TICK_MS
    cdef uint32_t due = conn.state_deadline
    if conn.state == STATE_OPEN:
        due = conn.last_sent + ping
        if conn.last_heard + ping * edge.config.misses < due:
            due = conn.last_heard + ping * edge.config.misses
    if conn.flags & FLAG_BLOCKED and conn.blocked_since + edge.config.write_timeout_ms // WHEEL_TICK_MS < due:
        due = conn.blocked_since + edge.config.write_timeout_ms // WHEEL_TICK_MS
    wheel_set(&edge.wheel, conn.index, <uint64_t> due * WHEEL_TICK_MS)


cdef void _heartbeat(Edge *edge, Connection *conn, uint32_t tick) noexcept nogil:
    """Silence for ping x misses ends the connection; silence of ours for ping sends a PING."""
    cdef uint32_t ping = edge.config.ping_ms // WHEEL_TICK_MS
    if tick - conn.last_heard >= ping * edge.config.misses:
        ledger_count(edge.ledger, COUNT_HEARTBEATS_LOST, 1)
        edge_fin(edge, conn, HEARTBEAT_LOST, b"nothing was heard for too long", edge_random(edge, RETRY_AFTER_MS))
        outbox_send(edge, conn)
        edge_close(edge, conn, HEARTBEAT_LOST)
        return
    if tick - conn.last_sent >= ping:
        conn.ping_seq += 1
        conn.last_sent = tick
        ledger_count(edge.ledger, COUNT_PINGS_SENT, 1)
        vital_pinging(edge, conn)
        answer_heartbeat(edge, conn, TYPE_PING, conn.ping_seq, edge.now_ms)


cdef void edge_timer_fired(Edge *edge, Connection *conn) noexcept nogil:
    """Look at everything that can be due; plan the next look unless the connection ended."""
    cdef uint32_t tick = edge_tick(edge)
    if conn.flags & FLAG_BLOCKED and tick - conn.blocked_since >= edge.config.write_timeout_ms // WHEEL_TICK_MS:
        ledger_count(edge.ledger, COUNT_SLOW_CONSUMERS, 1)
        edge_close(edge, conn, SLOW_CONSUMER)
        return
    if conn.state == STATE_OPEN:
        _heartbeat(edge, conn, tick)
    elif <int32_t> (tick - conn.state_deadline) >= 0:
        if conn.state == STATE_CLOSING:
            edge_close(edge, conn, conn.reason)
        elif conn.flags & FLAG_HELLO:
            edge_fin(edge, conn, UNAVAILABLE, b"the router did not answer in time",
                     RETRY_AFTER_MS + edge_random(edge, RETRY_AFTER_MS))
        else:
            ledger_count(edge.ledger, COUNT_HELLO_TIMEOUTS, 1)
            edge_fin(edge, conn, HELLO_TIMEOUT, b"no HELLO arrived in time", edge_random(edge, RETRY_AFTER_MS))
            edge_discard(edge, conn)
    if conn.state < STATE_CLOSING or (conn.state == STATE_CLOSING and not timer_set(&conn.timer)):
        edge_timer_plan(edge, conn)
