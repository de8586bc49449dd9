# Shard map: which link each shard has, and how links and shards come and go.
#
# The control thread opens links and gives whole maps (NOTE_SHARD_MAP); the data plane takes both between two records. A
# shard that gets another router is said to it anew, as after a router's restart: the sessions, the channels with the
# last position seen of each, where they are, and in order everything that was asked and not answered. What the former
# router still says of the shard's channels is passed over; answers to requests count, whoever gives them. A shard whose
# router cannot be told yet (its link is down, or it says that it does not lead the shard: MOVED) is owed: what is asked
# of it is kept until it was told everything else, so that nothing overtakes. MOVED also means that the router hears
# nothing more of the shard from this worker before SHARD: what was under way already does not overtake either.
#
# Invariant: every shard has a link; `owed` counts the shards that are; a place is used again only when the control
# thread was told that its link is closed.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.edge cimport Edge, Link
from core.mailbox cimport Note
from core.records cimport RecShard

cdef enum:
    OWED_AGAIN_MS = 50          # a router that does not lead a shard yet is told of it once in so long

cdef Link *link_prepare(Edge *edge, uint32_t number, str endpoint, bytes identity) except NULL
cdef object links_open(Edge *edge, endpoints, bytes identity)
cdef void link_free(Link *link) noexcept nogil
cdef int map_take(Edge *edge, uint64_t version, const uint8_t *places, const uint8_t *links,
                  uint32_t links_size) noexcept nogil
cdef void map_changed(Edge *edge, const Note *note, const uint8_t *text, const uint8_t *extra) noexcept nogil
cdef void link_shards(Edge *edge, Link *link, uint8_t *shards) noexcept nogil
cdef uint32_t shards_begin(Edge *edge, Link *link, uint8_t *shards) noexcept nogil
cdef void shards_say(Edge *edge, const uint8_t *shards) noexcept nogil
cdef void channels_unasked_say(Edge *edge, Link *link) noexcept nogil
cdef void shards_ask(Edge *edge, Link *link, const uint8_t *shards) noexcept nogil
cdef void shards_paid(Edge *edge, const uint8_t *shards) noexcept nogil
cdef void shards_pay(Edge *edge, Link *link) noexcept nogil
cdef void shard_moved(Edge *edge, Link *link, const RecShard *record) noexcept nogil
