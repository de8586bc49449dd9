# Joins: JOIN and HELLO from the decision to the answer, across the router's SUBSCRIBED and OPENED.
#
# A join of a channel that is live here needs no router: its position is the last one seen, and membership starts with
# the next message. Otherwise a pending waits in the channel's list. A client that holds another position than the
# channel's has its outcome told by the router (CATCHUP with CATCHUP_OUTCOME). A HELLO is an opening: one pending for
# each of its channels, and the claim of the session; positions are taken when the last answer is there, in the same turn
# in which the memberships start, as live ones or as such that are caught up first (core/replay.pxd), so that nothing
# falls between. Invariant: each pending holds its channel.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.conn cimport Connection
from core.edge cimport Channel, Edge, Request
from core.mailbox cimport Note
from core.records cimport RecCaught, RecSession

cdef void join_start(Edge *edge, Connection *conn, uint64_t request, const char *name, uint32_t name_size,
                     const uint64_t *since) noexcept nogil
cdef void join_leave(Edge *edge, Connection *conn, uint64_t request, const char *name,
                     uint32_t name_size) noexcept nogil
cdef void open_start(Edge *edge, Connection *conn, const Note *note, const uint8_t *welcome,
                     const uint8_t *extra) noexcept nogil
cdef void open_claimed(Edge *edge, RecSession *record) noexcept nogil
cdef void outcome_told(Edge *edge, Request *request, RecCaught *record) noexcept nogil
cdef void joins_again(Edge *edge) noexcept nogil
cdef void channel_subscribed(Edge *edge, Channel *channel, uint64_t epoch, uint64_t offset) noexcept nogil
cdef void join_overdue(Edge *edge, Request *request) noexcept nogil
cdef void open_overdue(Edge *edge, Request *request) noexcept nogil
cdef void open_record(Edge *edge, Connection *conn, uint32_t seq) noexcept nogil
cdef void joins_end(Edge *edge) noexcept nogil
