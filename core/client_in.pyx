"""Client in: dialling, the upgrade, cutting frames."""

from libc.errno cimport EAGAIN, EINPROGRESS, EINTR, errno
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

from core.base64 cimport base64_encode
from core.client cimport (CLIENT_AWAY, CLIENT_BYTES_IN, CLIENT_DIALLING, CLIENT_FORGET, CLIENT_FRAME_MAX,
                          CLIENT_HANDSHAKES_MAX, CLIENT_LEAVING, CLIENT_LEFT, CLIENT_QUEUED, CLIENT_TCP, CLIENT_TOLD,
                          CLIENT_UNACKED, CLIENT_UPGRADING, CLIENT_WATCHED, ClientEndpoint, client_count,
                          client_handle, client_tick)
from core.clock cimport clock_wall_ns
from core.client_life cimport client_ended, client_fail, client_fail_errno, client_plan, client_set_state
from core.client_out cimport client_drain, client_send, client_send_control, client_watch
from core.client_session cimport session_hello, session_on_body
from core.framing cimport FRAME_CLOSE, FRAME_PING, FRAME_PONG, FRAME_TEXT, Cursor, FrameView
from core.framing_tcp cimport tcp_decoder_init, tcp_next
from core.framing_ws cimport ws_decoder_init, ws_next
from core.hash cimport hash_bytes
from core.ledger cimport KIND_FD, ledger_open
from core.poller cimport EPOLL_CTL_ADD, EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, poller_watch
from core.ring cimport Ring, ring_lease, ring_read, ring_release, ring_size, ring_write
from core.sha1 cimport SHA1_SIZE, sha1
from core.wheel cimport WHEEL_TICK_MS

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <string.h>
    #include <sys/socket.h>
    #include <time.h>
    void *memmem(const void *, size_t, const void *, size_t);
    static int client_socket(const void *address, unsigned size, const void *source, unsigned source_size) {
        int one = 1, fd = socket(((const struct sockaddr *)address)->sa_family,
                                 SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0) return -1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (source_size) {
            /* The port is chosen at connect(), per destination: bind() alone would take one from all of them. */
            setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
            if (bind(fd, (const struct sockaddr *)source, source_size)) return -fd - 2;
        }
        (void)size;
        return fd;
    }
    static int client_connect(int fd, const void *address, unsigned size) {
        return connect(fd, (const struct sockaddr *)address, size);
    }
    static int client_socket_error(int fd) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
        return error;
    }
    """
    void *memmem(const void *, size_t, const void *, size_t)
    int client_socket(const void *, unsigned int, const void *, unsigned int)
    int client_connect(int, const void *, unsigned int)
    int client_socket_error(int)
    ssize_t recv(int, void *, size_t, int)
    int snprintf(char *, size_t, const char *, ...)

cdef enum:
    RECEIVE_BYTES = 262144
    UPGRADE_BYTES_MAX = 8192    # of the server's answer
    KEY_BYTES = 24
    ACCEPT_BYTES = 28
    PACE_BURST_MS = 20          # so much of the pace may be made up for at once


# ---- dialling

cdef ClientConn *_next_to_dial(Client *client) noexcept nogil:
    cdef ClientConn *conn = client.dial_first
    client.dial_first = conn.next
    if conn.next == NULL:
        client.dial_last = NULL
    conn.next = NULL
    conn.flags &= ~CLIENT_QUEUED
    return conn


cdef void _dial(Client *client, ClientConn *conn) noexcept nogil:
    cdef ClientEndpoint *endpoint = &client.config.endpoints[conn.endpoint]
    cdef int fd = client_socket(endpoint.address, endpoint.address_size, client.config.source,
                                client.config.source_size)
    cdef int error = errno
    conn.flags &= ~(CLIENT_TOLD | CLIENT_UNACKED)
    conn.started_ns = client.now_ns
    conn.input_need = 0
    conn.last_heard = client_tick(client)
    conn.state_deadline = conn.last_heard + client.config.handshake_timeout_ms // WHEEL_TICK_MS + 1
    conn.fd = -fd - 2 if fd < -1 else fd
    client_set_state(client, conn, CLIENT_DIALLING)
    if conn.fd >= 0:
        ledger_open(client.ledger, KIND_FD)
    if fd < 0:
        client_fail_errno(client, conn, b"socket" if fd == -1 else b"bind", error)
        return
    client_plan(client, conn)
    if client_connect(fd, endpoint.address, endpoint.address_size) < 0 and errno != EINPROGRESS:
        client_fail_errno(client, conn, b"connect", errno)
    elif poller_watch(client.epoll_fd, fd, client_handle(conn), EPOLL_CTL_ADD, EPOLLIN | EPOLLOUT) < 0:
        client_fail_errno(client, conn, b"epoll_ctl", errno)
    else:
        conn.flags |= CLIENT_WATCHED


cdef void client_dial_due(Client *client) noexcept nogil:
    cdef uint64_t rate = client.config.connect_rate
    cdef uint64_t most = rate * PACE_BURST_MS if rate * PACE_BURST_MS > 1000 else 1000
    cdef ClientConn *conn
    client.dial_credit += (client.now_ms - client.dial_ms) * rate
    client.dial_ms = client.now_ms
    if client.dial_credit > most:
        client.dial_credit = most
    while client.dial_first != NULL and client.handshakes < CLIENT_HANDSHAKES_MAX:
        if rate and client.dial_credit < 1000:
            return
        conn = _next_to_dial(client)
        if conn.flags & CLIENT_FORGET:
            client_ended(client, conn)
            continue
        client.dial_credit -= 1000 if rate else 0
        _dial(client, conn)


cdef int client_dial_wait(Client *client) noexcept nogil:
    cdef uint64_t rate = client.config.connect_rate
    if client.dial_first == NULL or client.handshakes >= CLIENT_HANDSHAKES_MAX:
        return -1
    if rate == 0 or client.dial_credit >= 1000:
        return 0
    return <int> ((1000 - client.dial_credit + rate - 1) // rate)


# ---- the upgrade

cdef void _key(Client *client, ClientConn *conn, uint8_t *key) noexcept nogil:
    """24 characters that differ between connections: the answer must be to this one, not a stored line."""
    cdef uint8_t raw[16]
    cdef uint64_t word = client_handle(conn)
    word = hash_bytes(&client.hash_key, <const uint8_t *> &word, 8)
    memcpy(raw, &word, 8)
    word = hash_bytes(&client.hash_key, raw, 8)
    memcpy(raw + 8, &word, 8)
    base64_encode(raw, 16, key)


cdef void _send_upgrade(Client *client, ClientConn *conn) noexcept nogil:
    cdef char request[1024]
    cdef uint8_t key[KEY_BYTES]
    cdef int size
    _key(client, conn, key)
    size = snprintf(request, sizeof(request),
                    b"GET %s HTTP/1.1\r\nHost: %s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Key: %.24s\r\nSec-WebSocket-Version: 13\r\n\r\n",
                    client.config.path, client.config.endpoints[conn.endpoint].host, <const char *> key)
    client_set_state(client, conn, CLIENT_UPGRADING)
    client_send(client, conn, <const uint8_t *> request, <uint32_t> size)


cdef void _accept(Client *client, ClientConn *conn, uint8_t *accept) noexcept nogil:
    cdef uint8_t text[KEY_BYTES + 36]
    cdef uint8_t digest[SHA1_SIZE]
    _key(client, conn, text)
    memcpy(text + KEY_BYTES, b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36)
    sha1(text, sizeof(text), digest)
    base64_encode(digest, SHA1_SIZE, accept)


cdef bint _upgraded(Client *client, ClientConn *conn, Cursor *cursor) noexcept nogil:
    """Read the answer to the upgrade; False: more is to come, or the connection has failed."""
    cdef uint8_t accept[ACCEPT_BYTES]
    cdef char why[80]
    cdef uint8_t *data = cursor.base + cursor.pos
    cdef uint32_t size = cursor.end - cursor.pos
    cdef uint8_t *end = <uint8_t *> memmem(data, size, b"\r\n\r\n", 4)
    if end == NULL:
        conn.input_need = size + 1
        if size > UPGRADE_BYTES_MAX:
            client_fail(client, conn, b"the answer to the upgrade is too long")
        return False
    _accept(client, conn, accept)
    if size < 12 or memcmp(data, b"HTTP/1.1 101", 12) != 0:
        snprintf(why, sizeof(why), b"upgrade refused: %.12s", <const char *> data)
        client_fail(client, conn, why)
        return False
    if memmem(data, end - data, accept, ACCEPT_BYTES) == NULL:
        client_fail(client, conn, b"upgrade: wrong Sec-WebSocket-Accept")
        return False
    cursor.pos += <uint32_t> (end - data) + 4
    ws_decoder_init(&conn.ws, True)
    session_hello(client, conn)
    return conn.state != CLIENT_AWAY


# ---- receiving

cdef void _closed(Client *client, ClientConn *conn, const char *why) noexcept nogil:
    """The peer closed: in order after FIN, else a fault."""
    if conn.state != CLIENT_LEAVING:
        client_fail(client, conn, why)
        return
    # Crossing FINs: the server's close stands for its FIN_ACK.
    client_count(client, CLIENT_LEFT, not conn.flags & CLIENT_TOLD)
    client_ended(client, conn)


cdef void _on_control(Client *client, ClientConn *conn, FrameView *view) noexcept nogil:
    cdef char why[80]
    cdef uint32_t status = 1005
    if view.opcode == FRAME_PING:
        client_send_control(client, conn, FRAME_PONG, view.data, view.size)
    if view.opcode != FRAME_CLOSE:
        return
    if view.size >= 2:
        status = (<uint32_t> view.data[0] << 8) | view.data[1]
    snprintf(why, sizeof(why), b"closed by the server: %u %.*s", status, <int> (view.size - 2 if view.size > 2 else 0),
             <const char *> view.data + 2)
    _closed(client, conn, why)


cdef void _cut(Client *client, ClientConn *conn, Cursor *cursor) noexcept nogil:
    """Cut and act on every whole frame."""
    cdef FrameView view
    cdef int got
    while conn.state != CLIENT_AWAY:
        if conn.flags & CLIENT_TCP:
            got = tcp_next(&conn.tcp, cursor, CLIENT_FRAME_MAX, &view, &conn.input_need)
        else:
            got = ws_next(&conn.ws, cursor, CLIENT_FRAME_MAX, &view, &conn.input_need)
        if got == 0:
            return
        if got < 0:
            client_fail(client, conn, b"the server's bytes break the framing of the transport")
        elif view.opcode >= FRAME_CLOSE:
            _on_control(client, conn, &view)
        elif view.opcode == FRAME_TEXT:
            client_fail(client, conn, b"the server answered MessagePack with text")
        else:
            session_on_body(client, conn, view.data, view.size)


cdef void _keep(Client *client, ClientConn *conn, const uint8_t *rest, uint32_t size) noexcept nogil:
    """Put what is left over into the connection's ring, or a larger one; nothing left gives the ring back."""
    cdef Ring *larger
    cdef uint32_t held = 0 if conn.input == NULL else ring_size(conn.input)
    if size == 0 and held == 0:
        if conn.input != NULL:
            ring_release(&client.rings, conn.input)
            conn.input = NULL
        return
    if conn.input == NULL or conn.input.capacity - held < size:
        larger = ring_lease(&client.rings, held + size)
        if larger == NULL:
            client_fail(client, conn, b"out of memory")
            return
        if conn.input != NULL:
            ring_read(conn.input, larger.data, held)
            larger.written = held
            ring_release(&client.rings, conn.input)
        conn.input = larger
    ring_write(conn.input, rest, size)


cdef void _read(Client *client, ClientConn *conn) noexcept nogil:
    """One recv, and all that can be done with it."""
    cdef uint32_t held = 0 if conn.input == NULL else ring_size(conn.input)
    cdef ssize_t got = recv(conn.fd, client.input + held, RECEIVE_BYTES, 0)
    cdef Cursor cursor
    if got <= 0:
        if got == 0:
            _closed(client, conn, b"closed by the server without a word")
        elif errno != EAGAIN and errno != EINTR:
            client_fail_errno(client, conn, b"recv", errno)
        return
    client_count(client, CLIENT_BYTES_IN, got)
    client.now_ns = clock_wall_ns()
    conn.last_heard = client_tick(client)
    if held and held + <uint32_t> got < conn.input_need:
        _keep(client, conn, client.input + held, <uint32_t> got)
        return
    if held:
        ring_read(conn.input, client.input, held)
    cursor.base = client.input
    cursor.pos = 0
    cursor.end = held + <uint32_t> got
    if conn.state != CLIENT_UPGRADING or _upgraded(client, conn, &cursor):
        _cut(client, conn, &cursor)
    if conn.state != CLIENT_AWAY:
        _keep(client, conn, cursor.base + cursor.pos, cursor.end - cursor.pos)


cdef void client_on_socket(Client *client, ClientConn *conn, uint32_t events) noexcept nogil:
    cdef int error
    if conn.state == CLIENT_DIALLING:
        error = client_socket_error(conn.fd)
        if error:
            client_fail_errno(client, conn, b"connect", error)
            return
        if not events & EPOLLOUT:
            return
        client_watch(client, conn, False)
        if conn.flags & CLIENT_TCP:
            tcp_decoder_init(&conn.tcp)
            session_hello(client, conn)
        else:
            _send_upgrade(client, conn)
        return
    if events & EPOLLOUT:
        client_drain(client, conn)
    if conn.state != CLIENT_AWAY and events & (EPOLLIN | EPOLLERR | EPOLLHUP):
        _read(client, conn)
