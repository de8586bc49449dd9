# Client session: the protocol from HELLO to FIN_ACK as its client, and the check of every delivery.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.client cimport Client, ClientConn, ClientMember

# The transport is ready: say HELLO, one that resumes if there is a session to resume.
cdef void session_hello(Client *client, ClientConn *conn) noexcept nogil
# One frame's body, borrowed until the return; the connection may be away after it.
cdef void session_on_body(Client *client, ClientConn *conn, const uint8_t *body, uint32_t size) noexcept nogil
# FIN, and wait for FIN_ACK; `resume`: the session is to be come back to.
cdef void session_leave(Client *client, ClientConn *conn, bint resume) noexcept nogil
cdef void session_join(Client *client, ClientConn *conn, ClientMember *member) noexcept nogil
cdef void session_part(Client *client, ClientConn *conn, const char *name, uint32_t size) noexcept nogil
# `size` bytes of stamped payload that should have left at `intended_ns`.
cdef void session_publish(Client *client, ClientConn *conn, const char *name, uint32_t name_size, uint32_t size,
                          uint64_t intended_ns) noexcept nogil
# The connection's timer fired.
cdef void session_timer_fired(Client *client, ClientConn *conn) noexcept nogil
