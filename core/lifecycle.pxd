# Lifecycle: how a connection ends, and the one timer that watches over it.
#
# A wanted end is FIN, then FIN_ACK or the deadline, then the peer's close or the deadline: whoever closes first keeps
# the address pair for a minute (TIME_WAIT), so that is left to the client (ADR 55). A broken stream is FIN, a WebSocket
# close frame, shutdown for writing, and what still comes is thrown away. A peer that sends no more, without FIN, gets
# the answers to what it asked for and is closed. Whatever a session held (memberships, its claim at the router) is
# given up when FIN is queued, so that nothing follows FIN. edge_close frees everything but the struct itself, which the
# loop frees at the end of the turn.

from libc.stdint cimport uint32_t, uint64_t

from core.conn cimport Connection
from core.edge cimport Edge

cdef void edge_fin(Edge *edge, Connection *conn, int code, const char *reason, uint32_t after_ms) noexcept nogil
cdef void edge_fin_sized(Edge *edge, Connection *conn, int code, const char *reason, uint32_t reason_size,
                         uint32_t after_ms) noexcept nogil
cdef void edge_break(Edge *edge, Connection *conn, int code, const char *reason) noexcept nogil
cdef void edge_discard(Edge *edge, Connection *conn) noexcept nogil
cdef void edge_fin_acked(Edge *edge, Connection *conn) noexcept nogil
cdef void edge_peer_fin(Edge *edge, Connection *conn, bint over) noexcept nogil
cdef void edge_peer_shut(Edge *edge, Connection *conn, bint closed) noexcept nogil
cdef void edge_peer_closed_ws(Edge *edge, Connection *conn) noexcept nogil
cdef void edge_half_step(Edge *edge, Connection *conn) noexcept nogil
cdef void edge_watch(Edge *edge, Connection *conn) noexcept nogil
cdef void edge_drop_input(Edge *edge, Connection *conn) noexcept nogil
cdef void edge_finish(Edge *edge, Connection *conn) noexcept nogil
cdef void edge_refuse(Edge *edge, Connection *conn, int code) noexcept nogil
cdef void edge_close(Edge *edge, Connection *conn, int reason) noexcept nogil
cdef void edge_timer_plan(Edge *edge, Connection *conn) noexcept nogil
cdef void edge_timer_fired(Edge *edge, Connection *conn) noexcept nogil
