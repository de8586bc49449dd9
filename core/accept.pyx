"""Accept: new connections."""

from libc.errno cimport EMFILE, ENFILE, errno
from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy, memset

from core.codes cimport OVERLOADED
from core.conn cimport (FLAG_WEBSOCKET, FORM_TCP, FORM_WS_BINARY, STAGE_FRAMES, STAGE_PROXY, STAGE_TLS, STAGE_UPGRADE,
                        Connection, conn_acquire, conn_handle)
from core.edge cimport edge_tick
from core.framing_tcp cimport tcp_decoder_init
from core.framing_ws cimport ws_decoder_init
from core.ledger cimport COUNT_CONNECTIONS_REFUSED, ledger_count
from core.lifecycle cimport edge_close, edge_timer_plan
from core.poller cimport EPOLL_CTL_ADD, EPOLLIN, poller_watch
from core.wheel cimport WHEEL_TICK_MS

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #include <netinet/in.h>
    #include <sys/socket.h>
    #include <unistd.h>
    /* The peer's address as IPv6, an IPv4 one mapped; returns the port, 0 for another family. */
    static inline unsigned short holdfast_accept_address(const struct sockaddr_storage *peer, unsigned char *address) {
        if (peer->ss_family == AF_INET6) {
            memcpy(address, &((const struct sockaddr_in6 *)peer)->sin6_addr, 16);
            return ntohs(((const struct sockaddr_in6 *)peer)->sin6_port);
        }
        if (peer->ss_family != AF_INET) return 0;
        memset(address, 0, 10);
        address[10] = address[11] = 0xff;
        memcpy(address + 12, &((const struct sockaddr_in *)peer)->sin_addr, 4);
        return ntohs(((const struct sockaddr_in *)peer)->sin_port);
    }
    static inline int holdfast_accept(int listener, unsigned char *address, unsigned short *port) {
        struct sockaddr_storage peer;
        socklen_t size = sizeof(peer);
        int fd = accept4(listener, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) *port = holdfast_accept_address(&peer, address);
        return fd;
    }
    static inline int holdfast_reserve(void) { return open("/dev/null", O_RDONLY | O_CLOEXEC); }
    """
    int holdfast_accept(int, unsigned char *, unsigned short *)
    int holdfast_reserve()
    int c_close "close"(int)


cdef void accept_reserve(Edge *edge) noexcept nogil:
    """Take the descriptor that is kept for the day when there are no more."""
    if edge.reserve_fd < 0:
        edge.reserve_fd = holdfast_reserve()


cdef void _refuse_without_files(Edge *edge, int listener) noexcept nogil:
    """No file descriptor is left: use the reserved one to take a newcomer and close it."""
    cdef uint8_t address[16]
    cdef uint16_t port
    cdef int fd
    if edge.reserve_fd < 0:
        accept_reserve(edge)
        return
    c_close(edge.reserve_fd)
    fd = holdfast_accept(listener, address, &port)
    if fd >= 0:
        ledger_count(edge.ledger, COUNT_CONNECTIONS_REFUSED, 1)
        c_close(fd)
    edge.reserve_fd = holdfast_reserve()


cdef void _begin(Edge *edge, Connection *conn, bint websocket) noexcept nogil:
    """Set up what the first bytes of a new connection are, its deadline, and watch it."""
    conn.form = FORM_WS_BINARY if websocket else FORM_TCP
    if websocket:
        conn.flags = FLAG_WEBSOCKET
        ws_decoder_init(&conn.ws, False)
    else:
        tcp_decoder_init(&conn.tcp)
    conn.stage = STAGE_UPGRADE if websocket else STAGE_FRAMES
    if edge.tls != NULL:
        conn.stage = STAGE_TLS
    if edge.config.proxy_protocol:
        conn.stage = STAGE_PROXY
    conn.last_heard = edge_tick(edge)
    conn.last_sent = conn.last_heard
    conn.state_deadline = conn.last_heard + edge.config.hello_timeout_ms // WHEEL_TICK_MS
    edge_timer_plan(edge, conn)
    if poller_watch(edge.epoll_fd, conn.fd, conn_handle(conn), EPOLL_CTL_ADD, EPOLLIN) < 0:
        edge_close(edge, conn, OVERLOADED)


cdef void accept_all(Edge *edge, int listener, bint websocket) noexcept nogil:
    """Take what waits at a listener; beyond the table's bound it is accepted and closed at once."""
    cdef uint8_t address[16]
    cdef uint16_t port = 0
    cdef uint32_t taken = 0
    cdef Connection *conn
    cdef int fd
    memset(address, 0, 16)
    while taken < ACCEPT_TURN:
        taken += 1
        fd = holdfast_accept(listener, address, &port)
        if fd < 0:
            if errno == EMFILE or errno == ENFILE:
                _refuse_without_files(edge, listener)
            return
        conn = NULL
        if edge.handshakes < edge.config.handshakes_max:
            conn = conn_acquire(&edge.connections, edge.ledger, &edge.generation, fd)
        if conn == NULL:
            ledger_count(edge.ledger, COUNT_CONNECTIONS_REFUSED, 1)     # whoever sees the end finds it counted
            c_close(fd)
            continue
        memcpy(conn.address, address, 16)
        conn.port = port
        edge.handshakes += 1
        _begin(edge, conn, websocket)
