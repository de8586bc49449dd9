"""Client out: framing, masking, the cork and the backlog."""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove

from core.batch cimport Batch, batch_clear, batch_free, batch_write
from core.client cimport (CLIENT_AWAY, CLIENT_BACKLOG_MAX, CLIENT_BODY_MAX, CLIENT_BYTES_OUT, CLIENT_CORK_BYTES,
                          CLIENT_TCP, CLIENT_WATCHED, channel_drop, client_count, client_handle, client_tick,
                          request_new)
from core.client_life cimport client_fail, client_fail_errno, client_plan
from core.framing cimport FRAME_BINARY
from core.framing_tcp cimport TCP_HEADER_SIZE, tcp_header_write
from core.framing_ws cimport WS_HEADER_SIZE_MAX, ws_header_write_masked, ws_mask_apply
from core.ledger cimport KIND_BUFFER, ledger_open, ledger_close
from core.mpack cimport mp_write_array, mp_write_uint
from core.poller cimport EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, poller_watch
from core.slab cimport invariant_always

cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_send "send"(int, const void *, size_t, int)
    int c_shutdown "shutdown"(int, int)
    enum:
        SHUT_WR
        MSG_NOSIGNAL
        MSG_DONTWAIT

cdef enum:
    BODY_OFFSET = 16            # room for the header in front of the body


cdef inline void _mask(Client *client, uint8_t *mask) noexcept nogil:
    """Four bytes of xorshift32: the mask is against intermediaries that guess, which there are none of in a test."""
    client.mask_state ^= client.mask_state << 13
    client.mask_state ^= client.mask_state >> 17
    client.mask_state ^= client.mask_state << 5
    memcpy(mask, &client.mask_state, 4)


cdef void client_body(Client *client, MpWriter *writer) noexcept nogil:
    writer.p = client.body + BODY_OFFSET
    writer.end = client.body + BODY_OFFSET + CLIENT_BODY_MAX
    writer.overflow = False


cdef void client_frame(Client *client, MpWriter *writer, uint32_t count, int kind) noexcept nogil:
    client_body(client, writer)
    mp_write_array(writer, count)
    mp_write_uint(writer, kind)


cdef ClientRequest *client_ask(Client *client, ClientConn *conn, MpWriter *writer, uint32_t count, int kind,
                               int request_kind, uint32_t channel) noexcept nogil:
    cdef ClientRequest *request = request_new(client, conn, request_kind, channel)
    if request == NULL:
        channel_drop(client, channel)
        client_fail(client, conn, b"out of memory")
        return NULL
    client_frame(client, writer, count, kind)
    mp_write_uint(writer, <uint64_t> request.index + 1)
    if conn.request_first == request.index:
        client_plan(client, conn)
    return request


cdef void client_send_body(Client *client, ClientConn *conn, MpWriter *writer) noexcept nogil:
    """Put the header in front of the body, where there is room for it, and send both."""
    cdef uint8_t header[WS_HEADER_SIZE_MAX]
    cdef uint8_t mask[4]
    cdef uint8_t *body = client.body + BODY_OFFSET
    cdef uint32_t size = <uint32_t> (writer.p - body)
    cdef uint32_t header_size
    invariant_always(not writer.overflow)
    if conn.flags & CLIENT_TCP:
        header_size = tcp_header_write(header, size)
        invariant_always(header_size == TCP_HEADER_SIZE)
    else:
        _mask(client, mask)
        header_size = ws_header_write_masked(header, FRAME_BINARY, size, mask)
        ws_mask_apply(body, size, mask)
    memcpy(body - header_size, header, header_size)
    client_send(client, conn, body - header_size, header_size + size)


cdef void client_send_control(Client *client, ClientConn *conn, uint8_t opcode, const uint8_t *payload,
                              uint32_t size) noexcept nogil:
    cdef uint8_t frame[WS_HEADER_SIZE_MAX + 125]
    cdef uint8_t mask[4]
    cdef uint32_t header_size
    invariant_always(size <= 125)
    _mask(client, mask)
    header_size = ws_header_write_masked(frame, opcode, size, mask)
    memcpy(frame + header_size, payload, size)
    ws_mask_apply(frame + header_size, size, mask)
    client_send(client, conn, frame, header_size + size)


cdef void client_send(Client *client, ClientConn *conn, const uint8_t *data, uint32_t size) noexcept nogil:
    if conn.state == CLIENT_AWAY:
        return
    if client.corked != conn or client.cork.size + size > CLIENT_CORK_BYTES:
        client_uncork(client)
        if conn.state == CLIENT_AWAY:
            return
        client.corked = conn
    conn.last_sent = client_tick(client)
    batch_write(&client.cork, data, size)


cdef void client_watch(Client *client, ClientConn *conn, bint writing) noexcept nogil:
    if writing == ((conn.flags & CLIENT_WATCHED) != 0):
        return
    conn.flags = conn.flags | CLIENT_WATCHED if writing else conn.flags & ~CLIENT_WATCHED
    poller_watch(client.epoll_fd, conn.fd, client_handle(conn), EPOLL_CTL_MOD,
                 EPOLLIN | EPOLLOUT if writing else EPOLLIN)


cdef void _keep(Client *client, ClientConn *conn, const uint8_t *data, uint32_t size) noexcept nogil:
    """What the socket does not take waits."""
    if conn.backlog == NULL:
        conn.backlog = <Batch *> calloc(1, sizeof(Batch))
        if conn.backlog == NULL:
            client_fail(client, conn, b"out of memory")
            return
        conn.backlog.bytes_max = CLIENT_BACKLOG_MAX
        ledger_open(client.ledger, KIND_BUFFER)
    if batch_write(conn.backlog, data, size) < 0:
        client_fail(client, conn, b"the server does not read what is sent to it")
        return
    client_watch(client, conn, True)


cdef void client_uncork(Client *client) noexcept nogil:
    cdef ClientConn *conn = client.corked
    cdef uint32_t size = client.cork.size
    cdef ssize_t sent = 0
    if conn == NULL:
        return
    client.corked = NULL
    client.cork.size = 0
    if conn.state == CLIENT_AWAY:
        return
    if conn.backlog == NULL:
        sent = c_send(conn.fd, client.cork.data, size, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent < 0:
            if errno != EAGAIN and errno != EINTR:
                client_fail_errno(client, conn, b"send", errno)
                return
            sent = 0
    client_count(client, CLIENT_BYTES_OUT, sent)
    if <uint32_t> sent < size:
        _keep(client, conn, client.cork.data + sent, size - <uint32_t> sent)


cdef void client_shut(Client *client, ClientConn *conn) noexcept nogil:
    """On a WebSocket its close frame comes first; and bytes that the socket did not take keep it open, too. Then it is
    the other side, or its deadline, that ends it.
    """
    client_uncork(client)
    if conn.flags & CLIENT_TCP and conn.state != CLIENT_AWAY and conn.backlog == NULL:
        c_shutdown(conn.fd, SHUT_WR)


cdef void client_drain(Client *client, ClientConn *conn) noexcept nogil:
    cdef ssize_t sent
    if conn.backlog == NULL:
        client_watch(client, conn, False)
        return
    sent = c_send(conn.fd, conn.backlog.data, conn.backlog.size, MSG_NOSIGNAL | MSG_DONTWAIT)
    if sent <= 0:               # an error shows at the next read
        return
    client_count(client, CLIENT_BYTES_OUT, sent)
    conn.backlog.size -= <uint32_t> sent
    memmove(conn.backlog.data, conn.backlog.data + sent, conn.backlog.size)
    if conn.backlog.size:
        return
    batch_clear(conn.backlog)
    batch_free(conn.backlog)
    free(conn.backlog)
    conn.backlog = NULL
    ledger_close(client.ledger, KIND_BUFFER)
    client_watch(client, conn, False)
