# Client out: what a client's connection sends.
#
# Frames for one connection gather in the cork and leave in one system call, when another connection has something to
# send or at the end of the turn: a client that gets eight answers at once sends its next eight requests at once. What
# the socket does not take waits in the connection's backlog, which has a bound.

from libc.stdint cimport uint8_t, uint32_t

from core.client cimport Client, ClientConn, ClientRequest
from core.mpack cimport MpWriter

# Begin a body in the client's scratch; client_send_body sends what the writer holds then. An overflow is ours.
cdef void client_body(Client *client, MpWriter *writer) noexcept nogil
# The same with a frame's head: `count` parts, the first its type.
cdef void client_frame(Client *client, MpWriter *writer, uint32_t count, int kind) noexcept nogil
# Begin a request's frame, up to its number, and note that an answer is due; takes over a hold on the channel. NULL: out
# of memory, and the connection has failed.
cdef ClientRequest *client_ask(Client *client, ClientConn *conn, MpWriter *writer, uint32_t count, int kind,
                               int request_kind, uint32_t channel) noexcept nogil
cdef void client_send_body(Client *client, ClientConn *conn, MpWriter *writer) noexcept nogil
# A WebSocket control frame: opcode and up to 125 bytes.
cdef void client_send_control(Client *client, ClientConn *conn, uint8_t opcode, const uint8_t *payload,
                              uint32_t size) noexcept nogil
# Bytes as they are. The connection may be away after it.
cdef void client_send(Client *client, ClientConn *conn, const uint8_t *data, uint32_t size) noexcept nogil
# Send what is in the cork.
cdef void client_uncork(Client *client) noexcept nogil
# All was said: let the other side see the end, and receive what it may still send.
cdef void client_shut(Client *client, ClientConn *conn) noexcept nogil
# The socket takes bytes again.
cdef void client_drain(Client *client, ClientConn *conn) noexcept nogil
cdef void client_watch(Client *client, ClientConn *conn, bint writing) noexcept nogil
