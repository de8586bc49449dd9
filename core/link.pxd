# Link: this worker and one of its routers, record by record.
#
# A worker has a link to each router that leads a shard (core/shard_map.pxd), and says to each what belongs to its own
# shards; one that is lost concerns nobody else.
#
# LINK goes out every second and is answered by LINKED; after silence for LINK_SILENT_MS the router is away, and what is
# asked of it is kept (core/kept.pxd) until it is heard again. A router that does not know this worker (it is new, or
# gave the worker up) asks for everything: BEGIN, the sessions, the channels with the last position seen of each, END.
# Behind it everything that was asked and not answered is asked again, in order and before anything new. Requests keep
# their deadlines meanwhile.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.conn cimport Connection
from core.edge cimport Edge, Link, Request
from core.mailbox cimport Note

cdef enum:
    LINK_PERIOD_MS = 1000
    LINK_SILENT_MS = 4000
    LINK_BATCHES_TURN = 64      # batches taken from the socket in one turn
    LINK_OUT_BYTES_MAX = 67108864
    LINK_PUBLISH_BYTES_MAX = 50331648   # beyond it publishes are refused, so that sessions and channels find room

cdef void links_receive(Edge *edge) noexcept nogil
cdef void links_flush(Edge *edge) noexcept nogil
cdef void links_tick(Edge *edge) noexcept nogil
cdef void links_look(Edge *edge) noexcept nogil
cdef void link_hello(Edge *edge, Link *link, int kind) noexcept nogil
cdef void link_history(Edge *edge, Connection *conn, const Note *note, const char *name) noexcept nogil
cdef void link_presence(Edge *edge, Connection *conn, const Note *note, const char *name) noexcept nogil
