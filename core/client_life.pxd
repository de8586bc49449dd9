# Client life: the states of a client's connection, its ends and its deadlines.
#
# One function changes the state. Every connection with a socket has exactly one timer, from connect() to close. An end
# that was not asked for is told to Python once, with its reason; the connection then is away, and Python lets it come
# back or forgets it.

from libc.stdint cimport uint32_t, uint64_t

from core.client cimport (CLIENT_AWAY, CLIENT_DIALLING, CLIENT_HELLO, CLIENT_LEAVING, CLIENT_OPEN, CLIENT_UPGRADING,
                          Client, ClientConn)
from core.edge cimport edge_ticks


cdef inline bint client_state_legal(int old, int new) noexcept nogil:
    """The table of legal changes."""
    if new == CLIENT_AWAY:
        return old != CLIENT_AWAY
    if old == CLIENT_AWAY:
        return new == CLIENT_DIALLING
    if old == CLIENT_DIALLING:
        return new == CLIENT_UPGRADING or new == CLIENT_HELLO
    if old == CLIENT_UPGRADING:
        return new == CLIENT_HELLO
    if old == CLIENT_HELLO:
        return new == CLIENT_OPEN or new == CLIENT_LEAVING
    return old == CLIENT_OPEN and new == CLIENT_LEAVING


cdef inline uint32_t client_silence(const Client *client) noexcept nogil:
    """Ticks of a server's silence after which it is gone."""
    return edge_ticks(client.ping_ms * client.misses)


cdef inline bint client_handshaking(const ClientConn *conn) noexcept nogil:
    return CLIENT_DIALLING <= conn.state <= CLIENT_HELLO


cdef void client_set_state(Client *client, ClientConn *conn, int state) noexcept nogil

# Tell Python: one note about a connection. The text is borrowed until the return.
cdef void client_tell(Client *client, ClientConn *conn, int kind, uint64_t first, uint64_t second, uint64_t third,
                      const char *text, uint32_t size) noexcept nogil

# To be dialled when its turn comes; one that is leaving, once it has left.
cdef void client_queue(Client *client, ClientConn *conn) noexcept nogil
# Close the socket and give back all that goes with it. What Python is told is the caller's affair.
cdef void client_end(Client *client, ClientConn *conn) noexcept nogil
# Tell the reason of an end that was not asked for; the socket stays.
cdef void client_fault(Client *client, ClientConn *conn, uint64_t code, uint64_t after_ms, const char *reason,
                       uint32_t size) noexcept nogil
# Both.
cdef void client_fail(Client *client, ClientConn *conn, const char *reason) noexcept nogil
cdef void client_fail_errno(Client *client, ClientConn *conn, const char *call, int error) noexcept nogil
# What was to end has ended: the handle goes at the end of the turn, or waits to come back.
cdef void client_ended(Client *client, ClientConn *conn) noexcept nogil
# The end of the turn: nobody points to the closed connections any more.
cdef void client_free_closed(Client *client) noexcept nogil

# Set the timer to the next thing that is due.
cdef void client_plan(Client *client, ClientConn *conn) noexcept nogil
