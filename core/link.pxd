# Link: this worker and its routers, record by record.
#
# There is a link to each router that the control thread opened; which of them leads a shard, routers say (LEADS), and
# of two the one with the higher epoch. Whatever is about a channel or a session goes to the leader of its shard. A
# router that begins to lead some is told, between two SHARDS, all that is held of them, and what was asked and not
# answered is asked again. LINK goes out every second and is answered by LINKED; after silence for LINK_SILENT_MS the
# router is away, and what is asked of it is kept (core/kept.pxd) until it is heard again. A router that does not know
# this worker (it is new, or gave the worker up) asks for everything: BEGIN, the sessions, the channels with the last
# position seen of each, END. Behind it everything that was asked and not answered is asked again, in order and before
# anything new. Requests keep their deadlines meanwhile.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.conn cimport Connection
from core.edge cimport Edge, Request
from core.mailbox cimport Note

cdef enum:
    LINK_PERIOD_MS = 1000
    LINK_SILENT_MS = 4000
    LINK_BATCHES_TURN = 64      # batches taken from the socket in one turn
    LINK_OUT_BYTES_MAX = 67108864
    LINK_PUBLISH_BYTES_MAX = 50331648   # beyond it publishes are refused, so that sessions and channels find room

cdef void link_receive(Edge *edge) noexcept nogil
cdef void link_flush(Edge *edge) noexcept nogil
cdef void link_tick(Edge *edge) noexcept nogil
cdef void link_bye(Edge *edge) noexcept nogil
cdef void link_opened(Edge *edge, uint32_t place) noexcept nogil
cdef void link_closed(Edge *edge, uint32_t place) noexcept nogil
cdef void link_again(Edge *edge) noexcept nogil
cdef void link_history(Edge *edge, Connection *conn, const Note *note, const char *name) noexcept nogil
cdef void link_presence(Edge *edge, Connection *conn, const Note *note, const char *name) noexcept nogil
