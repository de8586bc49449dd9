# Opening: HELLO from the control thread's decision to WELCOME, across the router's OPENED and SUBSCRIBED.
#
# The session is claimed, and each of its channels is a pending (core/joins.pxd): those that the client names, and
# those that the store has, which come with OPENED. When the last answer is there, positions are taken and WELCOME is
# written in the same turn in which the memberships start, as live ones or as such that are caught up first
# (core/replay.pxd), so that nothing falls between. Invariant: an opening has a request, whose deadline ends it, and
# holds its pendings.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.conn cimport Connection
from core.edge cimport Edge, Link, Opening, Request
from core.mailbox cimport Note
from core.records cimport RecSession

cdef void open_start(Edge *edge, Connection *conn, const Note *note, const uint8_t *welcome,
                     const uint8_t *extra) noexcept nogil
cdef void open_claimed(Edge *edge, const Link *by, RecSession *record) noexcept nogil
cdef void open_overdue(Edge *edge, Request *request) noexcept nogil
cdef void open_again(Edge *edge, Connection *conn) noexcept nogil
cdef void attends_again(Edge *edge, Link *link, Connection *conn, const uint64_t *shards) noexcept nogil
cdef void opening_again(Edge *edge, Request *request, uint32_t seq) noexcept nogil
cdef void opening_answered(Edge *edge, Opening *opening) noexcept nogil
cdef void opening_refused(Edge *edge, Opening *opening, int code, const char *why) noexcept nogil
cdef void opening_end(Edge *edge, Opening *opening) noexcept nogil
