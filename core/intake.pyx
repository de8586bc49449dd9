"""Intake: read, cut, act."""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from core.act cimport act_frame
from core.answers cimport answer_raw
from core.codes cimport BAD_FRAME, BYE, FRAME_TOO_LARGE, OVERLOADED
from core.conn cimport (ASIDE_NONE, FLAG_FINISHED, FLAG_WEBSOCKET, STAGE_DISCARD, STAGE_FRAMES, STAGE_PROXY,
                        STAGE_TLS, STAGE_UPGRADE, STATE_ACCEPTED, STATE_CLOSED, STATE_CLOSING, STATE_HANDSHAKING,
                        Aside, conn_aside, conn_aside_at, conn_set_state)
from core.edge cimport RECEIVE_BYTES, edge_tick, edge_ticks
from core.framing cimport FRAME_CLOSE, FRAME_PING, FRAMING_TOO_LARGE, Cursor, FrameView
from core.framing_tcp cimport TcpDecoder, tcp_decoder_init, tcp_next
from core.framing_ws cimport WsDecoder, ws_decoder_init, ws_header_write, ws_next
from core.http_upgrade cimport HTTP_RESPONSE_SIZE_MAX, HttpUpgrade, http_response_write, http_upgrade_parse
from core.ledger cimport COUNT_BAD_FRAMES, COUNT_BYTES_IN, ledger_count
from core.lifecycle cimport (edge_break, edge_close, edge_drop_input, edge_peer_closed_ws, edge_peer_shut, edge_refuse,
                             edge_timer_plan)
from core.proxy cimport PROXY_IPV6, ProxyHeader, proxy_parse
from core.ring cimport Ring, ring_lease, ring_read, ring_release, ring_size, ring_write
from core.tls cimport TLS_ENDED, TLS_INPUT_BYTES, TlsContext, tls_ended, tls_read
from core.wheel cimport timer_set

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int, void *, size_t, int)


ctypedef struct Cut:            # where the cutter stands; between two reads it waits in the aside, if anywhere
    WsDecoder ws
    TcpDecoder tcp
    uint32_t need
    uint32_t since              # tick when the frame began that is not complete; 0: with this read


cdef inline Ring *_input(Edge *edge, Connection *conn) noexcept nogil:
    """The ring with the bytes of a partial frame, or NULL."""
    return NULL if conn.aside == ASIDE_NONE else conn_aside_at(&edge.asides, conn).input


cdef inline void _cut_begin(Edge *edge, Connection *conn, Cut *cut) noexcept nogil:
    cdef Aside *aside
    ws_decoder_init(&cut.ws, False)
    tcp_decoder_init(&cut.tcp)
    cut.need = 0
    cut.since = 0
    if conn.aside != ASIDE_NONE:
        aside = conn_aside_at(&edge.asides, conn)
        cut.ws = aside.ws
        cut.tcp = aside.tcp
        cut.since = aside.frame_since


cdef bint _append(Edge *edge, Aside *aside, const uint8_t *rest, uint32_t size) noexcept nogil:
    """Put bytes into the ring, a larger one if need be; False: out of memory."""
    cdef uint32_t held = 0 if aside.input == NULL else ring_size(aside.input)
    cdef Ring *larger
    if aside.input == NULL or aside.input.capacity - held < size:
        larger = ring_lease(&edge.rings, held + size)
        if larger == NULL:
            return False
        if aside.input != NULL:
            ring_read(aside.input, larger.data, held)
            larger.written = held
            ring_release(&edge.rings, aside.input)
        aside.input = larger
    ring_write(aside.input, rest, size)
    return True


cdef void _frame_begun(Edge *edge, Connection *conn, Aside *aside, uint32_t since) noexcept nogil:
    """Note since when a frame is not complete; its deadline moves the timer only if it is the first to come."""
    aside.frame_since = since if since else max(edge_tick(edge), <uint32_t> 1)
    if not since and timer_set(&conn.timer) \
            and <int32_t> (conn.timer.deadline - aside.frame_since - edge_ticks(edge.config.frame_timeout_ms)) > 0:
        edge_timer_plan(edge, conn)


cdef void _keep(Edge *edge, Connection *conn, Cut *cut, const uint8_t *rest, uint32_t size) noexcept nogil:
    """Keep what is left over and where the cutter stands in it; nothing is the usual case, and costs nothing."""
    cdef Ring *input = _input(edge, conn)
    cdef Aside *aside
    if size == 0 and (input == NULL or ring_size(input) == 0):
        edge_drop_input(edge, conn)     # the ring is not needed; the cutter may still be inside a frame
        if cut.ws.opcode == 0 and cut.tcp.body_size == 0:
            return
    aside = conn_aside(&edge.asides, edge.ledger, conn)
    if aside == NULL:
        edge_close(edge, conn, OVERLOADED)
        return
    aside.ws = cut.ws
    aside.tcp = cut.tcp
    aside.input_need = cut.need
    _frame_begun(edge, conn, aside, cut.since)
    if size and not _append(edge, aside, rest, size):
        edge_close(edge, conn, OVERLOADED)


cdef void _bad(Edge *edge, Connection *conn, int code, const char *why) noexcept nogil:
    ledger_count(edge.ledger, COUNT_BAD_FRAMES, 1)
    edge_break(edge, conn, code, why)


cdef void _ws_control(Edge *edge, Connection *conn, FrameView *view) noexcept nogil:
    """WebSocket's own control frames: PING is echoed, CLOSE is answered and ends the session."""
    cdef uint8_t frame[130]
    cdef uint32_t header
    if view.opcode != FRAME_PING and view.opcode != FRAME_CLOSE:
        return
    if conn.flags & FLAG_FINISHED:
        if view.opcode == FRAME_CLOSE:
            edge_peer_closed_ws(edge, conn)
        return
    header = ws_header_write(frame, FRAME_CLOSE if view.opcode == FRAME_CLOSE else 10, view.size)
    memcpy(frame + header, view.data, view.size)
    answer_raw(edge, conn, frame, header + view.size)
    if view.opcode == FRAME_CLOSE:
        edge_refuse(edge, conn, BYE)


cdef int _cut(Edge *edge, Connection *conn, Cursor *cursor, Cut *cut) noexcept nogil:
    """Cut and act on every whole frame; -1 when nothing more is to be read as frames."""
    cdef FrameView view
    cdef const char *why
    cdef int got
    cdef bint inside
    while True:
        inside = cut.ws.opcode != 0
        if conn.flags & FLAG_WEBSOCKET:
            got = ws_next(&cut.ws, cursor, edge.config.max_frame, &view, &cut.need)
        else:
            got = tcp_next(&cut.tcp, cursor, edge.config.max_frame, &view, &cut.need)
        if got == 0:
            return 0
        if got == FRAMING_TOO_LARGE:
            _bad(edge, conn, FRAME_TOO_LARGE, b"a frame is longer than max_frame")
            return -1
        if got < 0:
            _bad(edge, conn, BAD_FRAME, b"the bytes break the framing of the transport")
            return -1
        if view.opcode < FRAME_CLOSE or not inside:     # a control frame inside a message does not begin it anew
            cut.since = 0
        if view.opcode >= FRAME_CLOSE:
            _ws_control(edge, conn, &view)
        else:
            why = act_frame(edge, conn, &view)
            if why != NULL:
                _bad(edge, conn, BAD_FRAME, why)
        if conn.state == STATE_CLOSED or conn.stage != STAGE_FRAMES:
            return -1


cdef int _upgrade(Edge *edge, Connection *conn, Cursor *cursor, Cut *cut) noexcept nogil:
    """The HTTP request that opens a WebSocket: 1 upgraded, 0 more bytes wanted, -1 refused."""
    cdef HttpUpgrade upgrade
    cdef uint8_t answer[HTTP_RESPONSE_SIZE_MAX]
    cdef size_t size
    cdef int got = http_upgrade_parse(cursor.base + cursor.pos, cursor.end - cursor.pos, edge.config.ws_path, &upgrade)
    if got == 0:
        cut.need = cursor.end - cursor.pos + 1
        return 0
    size = http_response_write(101 if got > 0 else -got, &upgrade, answer, sizeof(answer))
    answer_raw(edge, conn, answer, <uint32_t> size)
    if got < 0:
        ledger_count(edge.ledger, COUNT_BAD_FRAMES, 1)
        edge_refuse(edge, conn, BAD_FRAME)
        return -1
    cursor.pos += got
    cut.since = 0
    conn.stage = STAGE_FRAMES
    return 1


cdef bint _client_told(Edge *edge, Connection *conn, ProxyHeader *header) noexcept nogil:
    """Note whose connection the proxy passes on; False: out of memory, and it is closed."""
    cdef Aside *aside = conn_aside(&edge.asides, edge.ledger, conn)
    if aside == NULL:
        edge_close(edge, conn, OVERLOADED)
        return False
    aside.kept = 1
    aside.port = header.port
    if header.family == PROXY_IPV6:
        memcpy(aside.address, header.source, 16)
    else:
        memset(aside.address, 0, 10)
        memset(aside.address + 10, 0xff, 2)
        memcpy(aside.address + 12, header.source, 4)
    return True


cdef int _proxy(Edge *edge, Connection *conn, Cursor *cursor, Cut *cut) noexcept nogil:
    """The PROXY header in front of everything: 1 read, 0 more bytes wanted, -1 closed."""
    cdef ProxyHeader header
    cdef int got = proxy_parse(cursor.base + cursor.pos, cursor.end - cursor.pos, &header)
    if got == 0:
        cut.need = cursor.end - cursor.pos + 1
        return 0
    if got < 0:
        ledger_count(edge.ledger, COUNT_BAD_FRAMES, 1)
        edge_close(edge, conn, BAD_FRAME)
        return -1
    if header.family and not _client_told(edge, conn, &header):
        return -1
    cursor.pos += got
    conn.stage = STAGE_TLS if edge.tls != NULL else (
        STAGE_UPGRADE if conn.flags & FLAG_WEBSOCKET else STAGE_FRAMES)
    return 1


cdef int _go_through(Edge *edge, Connection *conn, Cursor *cursor, Cut *cut) noexcept nogil:
    """Go through the stages with the bytes at hand; -1 when the connection ended or only discards."""
    if conn.state == STATE_ACCEPTED:
        conn_set_state(conn, edge.ledger, STATE_HANDSHAKING)
    if conn.stage == STAGE_UPGRADE and _upgrade(edge, conn, cursor, cut) <= 0:
        return -1 if conn.stage != STAGE_UPGRADE or conn.state >= STATE_CLOSING else 0
    return _cut(edge, conn, cursor, cut)


cdef int _decrypt(Edge *edge, Connection *conn, const uint8_t *source, uint32_t size, uint32_t held) noexcept nogil:
    """Ciphertext to plaintext behind the `held` bytes of edge.input; 0: none yet; -1: only discards from here on."""
    cdef int got = tls_read(edge, conn, source, size, edge.input + held, edge.input_bytes - held)
    if got == TLS_ENDED:
        edge_peer_shut(edge, conn, False)
        return -1
    if got < 0:
        edge_refuse(edge, conn, BAD_FRAME)
        return -1
    return got


cdef int _receive(Edge *edge, Connection *conn, uint32_t held) noexcept nogil:
    """recv, and TLS if there is any: bytes behind the `held` ones of edge.input; 0 or less: nothing to cut."""
    cdef bint secure = edge.tls != NULL and conn.stage != STAGE_PROXY
    cdef uint8_t *target = (<TlsContext *> edge.tls).received if secure else edge.input + held
    cdef ssize_t got = recv(conn.fd, target, TLS_INPUT_BYTES if secure else RECEIVE_BYTES, 0)
    if got <= 0:
        if got == 0:
            edge_peer_shut(edge, conn, True)
        elif errno != EAGAIN and errno != EINTR:
            edge_close(edge, conn, BYE)
        return -1
    ledger_count(edge.ledger, COUNT_BYTES_IN, got)
    if secure and conn.stage != STAGE_DISCARD:
        got = _decrypt(edge, conn, target, <uint32_t> got, held)
        if got <= 0:                    # a part of a record is no life, however steadily it trickles
            return <int> got
    conn.last_heard = edge_tick(edge)
    return 0 if conn.stage == STAGE_DISCARD else <int> got


cdef int _proxied_tls(Edge *edge, Connection *conn, Cursor *cursor) noexcept nogil:
    """What came behind a PROXY header is the beginning of TLS: put the plaintext in its place, if there is any yet."""
    cdef uint8_t *received = (<TlsContext *> edge.tls).received
    cdef uint32_t size = cursor.end - cursor.pos
    cdef int got = 0
    if size > 0:
        memcpy(received, cursor.base + cursor.pos, size)
        got = _decrypt(edge, conn, received, size, 0)
    cursor.pos = 0
    cursor.end = 0 if got < 0 else <uint32_t> got
    return got


cdef void intake_read(Edge *edge, Connection *conn) noexcept nogil:
    """One recv, and all that can be done with it."""
    cdef Ring *input = _input(edge, conn)
    cdef uint32_t held = 0 if input == NULL else ring_size(input)
    cdef int got = _receive(edge, conn, held)
    cdef Cursor cursor
    cdef Cut cut
    cdef int status = 1
    if got <= 0:
        if conn.stage == STAGE_DISCARD:
            edge_drop_input(edge, conn)
        return
    if held and held + <uint32_t> got < conn_aside_at(&edge.asides, conn).input_need:
        if not _append(edge, conn_aside_at(&edge.asides, conn), edge.input + held, <uint32_t> got):
            edge_close(edge, conn, OVERLOADED)
    else:
        if held:
            ring_read(input, edge.input, held)
        cursor.base = edge.input
        cursor.pos = 0
        cursor.end = held + <uint32_t> got
        _cut_begin(edge, conn, &cut)
        if conn.stage == STAGE_PROXY:
            status = _proxy(edge, conn, &cursor, &cut)
            if status > 0 and conn.stage == STAGE_TLS:
                status = _proxied_tls(edge, conn, &cursor)
        if status > 0:
            status = _go_through(edge, conn, &cursor, &cut)
        if status < 0 or conn.state == STATE_CLOSED:
            edge_drop_input(edge, conn)
        else:
            _keep(edge, conn, &cut, cursor.base + cursor.pos, cursor.end - cursor.pos)
    if tls_ended(edge, conn) and conn.stage != STAGE_DISCARD:   # the last plaintext came together with close_notify
        edge_peer_shut(edge, conn, False)
        edge_drop_input(edge, conn)
