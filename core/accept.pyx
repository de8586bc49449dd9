"""Accept: new connections."""

from libc.errno cimport EMFILE, ENFILE, errno
from libc.stdint cimport uint32_t

from core.codes cimport OVERLOADED
from core.conn cimport (FLAG_WEBSOCKET, FORM_TCP, FORM_WS_BINARY, STAGE_FRAMES, STAGE_PROXY, STAGE_TLS, STAGE_UPGRADE,
                        Connection, conn_acquire, conn_handle)
from core.edge cimport edge_tick, edge_ticks
from core.ledger cimport COUNT_CONNECTIONS_REFUSED, ledger_count
from core.lifecycle cimport edge_close, edge_timer_plan
from core.poller cimport EPOLL_CTL_ADD, EPOLLIN, poller_watch
from core.vitals cimport vital_begin

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <sys/socket.h>
    #include <unistd.h>
    static inline int holdfast_accept(int listener) {
        return accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    }
    static inline int holdfast_reserve(void) { return open("/dev/null", O_RDONLY | O_CLOEXEC); }
    static inline void holdfast_user_timeout(int listener, unsigned int ms) {
        setsockopt(listener, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof ms);
    }
    """
    int holdfast_accept(int)
    int holdfast_reserve()
    void holdfast_user_timeout(int, unsigned int)
    int c_close "close"(int)


cdef void accept_prepare(Edge *edge, int listener) noexcept nogil:
    """Set what accepted sockets inherit: unacknowledged bytes end a connection, in the kernel as well, when the
    heartbeat would. Without it the kernel tries for a quarter of an hour (tcp_retries2), also after our close.
    """
    holdfast_user_timeout(listener, edge.config.ping_ms * edge.config.misses)


cdef void accept_reserve(Edge *edge) noexcept nogil:
    """Take the descriptor that is kept for the day when there are no more."""
    if edge.reserve_fd < 0:
        edge.reserve_fd = holdfast_reserve()


cdef void _refuse_without_files(Edge *edge, int listener) noexcept nogil:
    """No file descriptor is left: use the reserved one to take a newcomer and close it."""
    cdef int fd
    if edge.reserve_fd < 0:
        accept_reserve(edge)
        return
    c_close(edge.reserve_fd)
    fd = holdfast_accept(listener)
    if fd >= 0:
        ledger_count(edge.ledger, COUNT_CONNECTIONS_REFUSED, 1)
        c_close(fd)
    edge.reserve_fd = holdfast_reserve()


cdef void _begin(Edge *edge, Connection *conn, bint websocket) noexcept nogil:
    """Set up what the first bytes of a new connection are, its deadline, and watch it."""
    conn.form = FORM_WS_BINARY if websocket else FORM_TCP
    if websocket:
        conn.flags = FLAG_WEBSOCKET
    conn.stage = STAGE_UPGRADE if websocket else STAGE_FRAMES
    if edge.tls != NULL:
        conn.stage = STAGE_TLS
    if edge.config.proxy_protocol:
        conn.stage = STAGE_PROXY
    conn.last_heard = edge_tick(edge)
    conn.last_sent = conn.last_heard
    vital_begin(edge, conn)
    conn.ping_seq = <uint32_t> edge.now_ms
    conn.state_deadline = conn.last_heard + edge_ticks(edge.config.hello_timeout_ms)
    edge_timer_plan(edge, conn)
    if poller_watch(edge.epoll_fd, conn.fd, conn_handle(conn), EPOLL_CTL_ADD, EPOLLIN) < 0:
        edge_close(edge, conn, OVERLOADED)


cdef uint32_t accept_all(Edge *edge, int listener, bint websocket) noexcept nogil:
    """Take what waits at a listener; beyond the table's bound it is accepted and closed at once. How many these were:
    after ACCEPT_TURN of them more may wait."""
    cdef uint32_t taken = 0
    cdef Connection *conn
    cdef int fd
    while taken < ACCEPT_TURN:
        taken += 1
        fd = holdfast_accept(listener)
        if fd < 0:
            if errno == EMFILE or errno == ENFILE:
                _refuse_without_files(edge, listener)
            return taken - 1
        conn = NULL
        if edge.handshakes < edge.config.handshakes_max:
            conn = conn_acquire(&edge.connections, edge.ledger, &edge.generation, fd)
        if conn == NULL:
            ledger_count(edge.ledger, COUNT_CONNECTIONS_REFUSED, 1)     # whoever sees the end finds it counted
            c_close(fd)
            continue
        edge.handshakes += 1
        _begin(edge, conn, websocket)
    return taken
