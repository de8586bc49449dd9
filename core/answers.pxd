# Answers: the server's frames, built as MessagePack on the stack and queued in the connection's wire form.
#
# One encoder for all: a frame is written once as MessagePack, and `frame_encode` turns it into the bytes of a wire form
# in that form's arena. Fan-out uses the same function once per message and form.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy, strlen

from core.buffer cimport Shared, arena_commit, arena_reserve
from core.codes cimport code_class, code_name
from core.conn cimport (FLAG_WEBSOCKET, FORM_TCP, FORM_WS_BINARY, FORM_WS_TEXT, STAGE_FRAMES, STATE_CLOSED,
                        STATE_CLOSING, Connection)
from core.edge cimport ANSWER_BYTES, Edge, edge_random
from core.framing_tcp cimport tcp_header_write
from core.framing_ws cimport ws_header_write
from core.ledger cimport (COUNT_PINGS_SENT, COUNT_REFUSED_UNANSWERED, COUNT_REPLIES_SENT, COUNT_TRANSCODED,
                          ledger_count, ledger_error)
from core.mpack cimport (MP_OK, MpReader, MpWriter, mp_read_array, mp_read_uint, mp_write_array, mp_write_map,
                         mp_write_raw, mp_write_str, mp_write_uint)
from core.outbox cimport OUTBOX_SENT, outbox_append, outbox_overfull
from core.transcode cimport mpack_to_json

cdef enum FrameType:
    TYPE_HELLO
    TYPE_WELCOME
    TYPE_REPLY
    TYPE_ERROR
    TYPE_PING
    TYPE_PONG
    TYPE_JOIN
    TYPE_LEAVE
    TYPE_PUBLISH
    TYPE_MESSAGE
    TYPE_ACK
    TYPE_HISTORY
    TYPE_PRESENCE
    TYPE_EVENT
    TYPE_FIN
    TYPE_FIN_ACK
    TYPE_REFRESH
    TYPE_CALL
    TYPE_COUNT

cdef enum:
    WS_HEADER_BYTES_MAX = 10

ctypedef struct WireView:       # a frame in one wire form
    Shared *shared              # borrowed until the arena moves on; whoever keeps it takes a reference
    uint32_t offset
    uint32_t length             # 0: not encoded yet


cdef inline int frame_encode(Edge *edge, int form, const uint8_t *body, uint32_t size, WireView *view) noexcept nogil:
    """Write a MessagePack frame to the form's arena; -1: out of memory, or no JSON can say it."""
    cdef uint8_t *room
    cdef uint32_t header
    cdef size_t written = 0
    if form == FORM_WS_TEXT:
        ledger_count(edge.ledger, COUNT_TRANSCODED, 1)
        if mpack_to_json(body, size, edge.scratch, edge.scratch_bytes, &written) < 0:
            return -1
        body = edge.scratch
        size = <uint32_t> written
    room = arena_reserve(&edge.arenas[form], edge.ledger, size + WS_HEADER_BYTES_MAX)
    if room == NULL:
        return -1
    if form == FORM_TCP:
        header = tcp_header_write(room, size)
    else:
        header = ws_header_write(room, 1 if form == FORM_WS_TEXT else 2, size)
    memcpy(room + header, body, size)
    view.shared = edge.arenas[form].current
    view.length = header + size
    view.offset = arena_commit(&edge.arenas[form], view.length)
    return 0


cdef inline int answer_frame(Edge *edge, Connection *conn, const uint8_t *body, uint32_t size) noexcept nogil:
    """Queue one MessagePack frame for one connection; without room for it the turn ends the connection."""
    cdef WireView view
    if conn.state >= STATE_CLOSING or conn.stage != STAGE_FRAMES:
        return OUTBOX_SENT
    if frame_encode(edge, conn.form, body, size, &view) < 0:
        return outbox_overfull(edge, conn)
    return outbox_append(edge, conn, view.shared, view.offset, view.length)


cdef inline int answer_reply(Edge *edge, Connection *conn, const uint8_t *body, uint32_t size) noexcept nogil:
    """Queue a REPLY or WELCOME."""
    ledger_count(edge.ledger, COUNT_REPLIES_SENT, 1)
    return answer_frame(edge, conn, body, size)


cdef inline int answer_written(Edge *edge, Connection *conn, const uint8_t *body, uint32_t size) noexcept nogil:
    """Queue a REPLY or ERROR that the control thread wrote."""
    cdef MpReader reader
    cdef uint32_t parts
    cdef uint64_t kind = 0
    cdef uint64_t request, code
    reader.p = body
    reader.end = body + size
    if mp_read_array(&reader, &parts) == MP_OK and mp_read_uint(&reader, &kind) == MP_OK and kind == TYPE_ERROR \
            and mp_read_uint(&reader, &request) == MP_OK and mp_read_uint(&reader, &code) == MP_OK:
        ledger_error(edge.ledger, <int> code)
        return answer_frame(edge, conn, body, size)
    return answer_reply(edge, conn, body, size)


cdef inline int answer_raw(Edge *edge, Connection *conn, const uint8_t *data, uint32_t size) noexcept nogil:
    """Queue bytes as they are (HTTP answers, WebSocket control frames)."""
    cdef uint8_t *room = arena_reserve(&edge.arenas[conn.form], edge.ledger, size)
    if room == NULL:
        return outbox_overfull(edge, conn)
    memcpy(room, data, size)
    return outbox_append(edge, conn, edge.arenas[conn.form].current, arena_commit(&edge.arenas[conn.form], size), size)


cdef inline int answer_heartbeat(Edge *edge, Connection *conn, int frame, uint64_t seq, uint64_t time) noexcept nogil:
    """PING or PONG."""
    cdef uint8_t body[32]
    cdef MpWriter writer
    writer.p = body
    writer.end = body + sizeof(body)
    writer.overflow = False
    mp_write_array(&writer, 3)
    mp_write_uint(&writer, frame)
    mp_write_uint(&writer, seq)
    mp_write_uint(&writer, time)
    return answer_frame(edge, conn, body, <uint32_t> (writer.p - body))


cdef inline void write_text(MpWriter *writer, const char *text) noexcept nogil:
    mp_write_str(writer, text, <uint32_t> strlen(text))


cdef inline int answer_error(Edge *edge, Connection *conn, uint64_t request, int code, const char *message,
                             uint32_t retry_after_ms) noexcept nogil:
    """ERROR; nothing when the request asked for no answer (id 0)."""
    cdef uint8_t body[ANSWER_BYTES]
    cdef MpWriter writer
    if request == 0:
        ledger_count(edge.ledger, COUNT_REFUSED_UNANSWERED, 1)
        return OUTBOX_SENT
    writer.p = body
    writer.end = body + sizeof(body)
    writer.overflow = False
    mp_write_array(&writer, 5)
    mp_write_uint(&writer, TYPE_ERROR)
    mp_write_uint(&writer, request)
    mp_write_uint(&writer, code)
    write_text(&writer, message)
    mp_write_map(&writer, 1 if retry_after_ms else 0)
    if retry_after_ms:
        write_text(&writer, b"retry_after")
        mp_write_uint(&writer, retry_after_ms)
    ledger_error(edge.ledger, code)
    return answer_frame(edge, conn, body, <uint32_t> (writer.p - body))


cdef inline uint32_t fin_target(Edge *edge, const Connection *conn, const char **target) noexcept nogil:
    """Where FIN sends a connection of its transport, of at most 255 bytes; 0: nobody said."""
    cdef const char *end = NULL
    cdef uint32_t size = edge.fin_targets_size
    if size:
        end = <const char *> memchr(edge.fin_targets, 0, size)
    if end == NULL:
        return 0
    if conn.flags & FLAG_WEBSOCKET:
        target[0] = edge.fin_targets
        size = <uint32_t> (end - edge.fin_targets)
    else:
        target[0] = end + 1
        size -= <uint32_t> (end + 1 - edge.fin_targets)
    return size if size <= 255 else 0


cdef inline int answer_fin(Edge *edge, Connection *conn, int code, const char *reason, uint32_t reason_size,
                           uint32_t after_ms) noexcept nogil:
    """FIN with its class and, when the client is to come back, how long to wait first and, if that is known, where."""
    cdef uint8_t body[ANSWER_BYTES]
    cdef MpWriter writer
    cdef const char *kind = code_class(code)
    cdef const char *target = NULL
    cdef uint32_t target_size = fin_target(edge, conn, &target)
    cdef bint back = kind[0] != c's'
    writer.p = body
    writer.end = body + sizeof(body)
    writer.overflow = False
    mp_write_array(&writer, 4)
    mp_write_uint(&writer, TYPE_FIN)
    mp_write_uint(&writer, code)
    mp_write_str(&writer, reason, reason_size if reason_size < 512 else 512)
    mp_write_map(&writer, (2 if back else 1) + (target_size != 0))
    write_text(&writer, b"class")
    write_text(&writer, kind)
    if back:
        write_text(&writer, b"after")
        mp_write_uint(&writer, after_ms)
    if target_size:
        write_text(&writer, b"target")
        mp_write_str(&writer, target, target_size)
    return answer_frame(edge, conn, body, <uint32_t> (writer.p - body))


cdef inline int answer_position(Edge *edge, Connection *conn, uint64_t request, uint64_t epoch, uint64_t offset,
                                const char *outcome) noexcept nogil:
    """REPLY {epoch, offset} to PUBLISH, or with an outcome to JOIN."""
    cdef uint8_t body[96]
    cdef MpWriter writer
    if request == 0:
        return OUTBOX_SENT
    writer.p = body
    writer.end = body + sizeof(body)
    writer.overflow = False
    mp_write_array(&writer, 3)
    mp_write_uint(&writer, TYPE_REPLY)
    mp_write_uint(&writer, request)
    mp_write_map(&writer, 3 if outcome != NULL else 2)
    write_text(&writer, b"epoch")
    mp_write_uint(&writer, epoch)
    write_text(&writer, b"offset")
    mp_write_uint(&writer, offset)
    if outcome != NULL:
        write_text(&writer, b"outcome")
        write_text(&writer, outcome)
    return answer_reply(edge, conn, body, <uint32_t> (writer.p - body))


cdef inline int answer_empty(Edge *edge, Connection *conn, uint64_t request) noexcept nogil:
    """REPLY {} to LEAVE."""
    cdef uint8_t body[16]
    cdef MpWriter writer
    if request == 0:
        return OUTBOX_SENT
    writer.p = body
    writer.end = body + sizeof(body)
    writer.overflow = False
    mp_write_array(&writer, 3)
    mp_write_uint(&writer, TYPE_REPLY)
    mp_write_uint(&writer, request)
    mp_write_map(&writer, 0)
    return answer_reply(edge, conn, body, <uint32_t> (writer.p - body))
