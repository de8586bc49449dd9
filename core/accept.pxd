# Accept: new connections into the table, and the refusals when there is no room.
#
# One file descriptor is kept in reserve: when a process has no more, it is given up for a moment to accept and close
# the newcomer, who would otherwise stay in the backlog and wake the loop for ever.

from libc.stdint cimport uint32_t

from core.edge cimport Edge

cdef enum:
    ACCEPT_TURN = 128           # connections taken from a listener in one turn

cdef void accept_prepare(Edge *edge, int listener) noexcept nogil
cdef void accept_reserve(Edge *edge) noexcept nogil
cdef uint32_t accept_all(Edge *edge, int listener, bint websocket) noexcept nogil
