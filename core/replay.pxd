# Replay: a member that missed messages gets them from the router, part by part, and then joins the live traffic.
#
# While it is caught up a membership stands with its connection alone: fan-out does not know it. CATCHUP asks for what
# came after the last message that the connection has; the CAUGHT that ends at the channel's position stands in the
# router's stream behind the message of that position and before the next one, so its messages are queued and the
# member is added to the channel in the same step: no gap, nothing twice, nothing buffered here. The next part is asked
# for when the connection's queue has room, so that a slow reader waits in its replay; of each connection and of all of
# them only so many parts are under way. Invariant: each replay is named by one membership of its connection and holds
# its channel; it stands in exactly the list of its state, or has a request.

from libc.stdint cimport uint32_t, uint64_t

from core.conn cimport Connection
from core.edge cimport Channel, Edge, Replay, Request
from core.records cimport RecCaught

cdef enum:
    REPLAY_PART_BYTES = 32768   # of messages in one CAUGHT
    REPLAYS_ASKED_CONN = 4      # parts under way of one connection
    REPLAYS_ASKED_MAX = 512     # of all: 16 MiB at most are under way
    REPLAY_STRAYS_MAX = 3       # parts in a row that end elsewhere than the channel stands

cdef uint32_t replay_start(Edge *edge, Connection *conn, Channel *channel, uint64_t epoch,
                           uint64_t offset) noexcept nogil
cdef void replay_end(Edge *edge, Connection *conn, uint32_t index) noexcept nogil
cdef void replay_position(Edge *edge, uint32_t index, uint64_t *position) noexcept nogil
cdef void replays_pump(Edge *edge, Connection *conn) noexcept nogil
cdef void replays_ask(Edge *edge) noexcept nogil
cdef void replays_again(Edge *edge, const uint64_t *shards) noexcept nogil
cdef void replay_caught(Edge *edge, Request *request, RecCaught *record) noexcept nogil
cdef void replay_overdue(Edge *edge, Request *request) noexcept nogil
cdef void catchup_ask(Edge *edge, Channel *channel, uint32_t seq, uint64_t epoch, uint64_t offset,
                      uint32_t flags) noexcept nogil
