# Drain: how a worker that stops, or leaves its place to a successor, sends its clients away.
#
# It accepts nothing more, then walks the table of connections, in steps that the control thread asks for: a bounded
# number of FINs, each with the time until that client's own slot, so that those who come back do so one after another.
# Who was in the middle of its TLS or WebSocket handshake is told at a further walk. Invariant: every connection before
# `drain_next` in the table is closing or in such a handshake; none comes anew, as the listeners are gone. A worker of a
# region that is evacuated sends its clients away likewise, to another one, and goes on accepting: who comes is told so
# by the control thread.

from libc.stdint cimport uint8_t

from core.edge cimport Edge
from core.mailbox cimport Note

cdef enum:
    DRAIN_STEP_MAX = 4096       # FINs of one step, all in one turn
    DRAIN_ACCEPT_TURNS = 512    # times ACCEPT_TURN connections: the longest queue that can be configured

cdef void drain_begin(Edge *edge, bint leaves) noexcept nogil
cdef void drain_step(Edge *edge, const Note *step, const uint8_t *targets) noexcept nogil
cdef void drain_cut(Edge *edge) noexcept nogil
cdef void drain_listeners_close(Edge *edge) noexcept nogil
