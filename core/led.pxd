# Led: which router leads which shard, and what it is told when it begins.
#
# Routers say what they lead (LEADS); of two that say it of one shard the one with the higher epoch leads it. Behind the
# batch in which a router said so, it is told all that this worker holds of its shards, between two SHARDS, and what was
# asked and not answered is asked again, in order and before anything new. Bits say which shards: number n is bit n % 64
# of word n // 64. A shard's channels are heard from its leader or, where that is in another region, from a router
# nearby that follows it and says so (LEADS_FEEDS). Invariant: `led` of a link is how many shards have its place in
# `shard_links`, and `fed` how many in `shard_feeds`. A HELLO waits for a leader of its session for a while, and not at
# all once there was none for as long: its client is better told to come back than left without an answer.

from libc.stdint cimport uint32_t, uint64_t

from core.edge cimport Edge, Link
from core.records cimport RecLeads

cdef enum:
    UNLED_WAIT_MS = 2500        # more than a shard that moves is paused for
    UNLED_LOOK_MS = 100

cdef void link_hello(Edge *edge, Link *link, int kind) noexcept nogil
cdef void link_up(Edge *edge, Link *link) noexcept nogil
cdef void link_down(Edge *edge, Link *link) noexcept nogil
cdef void led_map(Edge *edge, uint32_t shard, uint32_t place) noexcept nogil
cdef void led_overdue(Edge *edge) noexcept nogil
cdef void led_told(Edge *edge, Link *link, const RecLeads *record) noexcept nogil
cdef void fed_map(Edge *edge, uint32_t shard, uint32_t place) noexcept nogil
cdef void fed_shards(Edge *edge, const Link *link, uint64_t *shards) noexcept nogil
cdef void feds_news(Edge *edge) noexcept nogil
cdef void led_shards(Edge *edge, const Link *link, uint64_t *shards) noexcept nogil
cdef void led_kept(Edge *edge, Link *link, bint again) noexcept nogil
cdef void led_news(Edge *edge, Link *link) noexcept nogil
cdef void led_subscribe(Edge *edge, const uint64_t *shards, int flags) noexcept nogil
