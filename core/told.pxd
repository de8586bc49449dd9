# Told: what this worker told of its sessions lately, kept to be told to the next router again.
#
# A router stores what sessions did a moment after it heard it (core/sessions.pxd), and what is told while it is away
# reaches nobody; a client was answered all the same. So claims, joins, leaves and ends are dated and kept until the
# router has stored what was told up to TOLD_MS later (LINKED says so), also while the link is down, and a router that
# asks for everything hears them first, in their order (OPEN_TOLD, STATE_TOLD, CLOSE_TOLD). A date is the number of the
# claim by which the connection has its session (its fence: the router gives each a higher one), and the time by this
# worker's clock, which is compared with no other's: by these dates the router puts in order what several workers tell,
# and passes over what is no newer than what is stored (router/told.py). Acknowledgements are not kept: without the last
# of them a client that names no position hears something again. Nor is a claim before it is answered: it is made again
# then, and its client was told nothing.
#
# A record is built where it is kept (told_take), and from there told (told_say): one that finds no room in the batch to
# the router is counted, since a router that lives hears nothing of it, and kept for the next one all the same. A claim
# is kept when it is answered (told_keep).
#
# Two batches: the older one goes when all of it is stored, or the younger one is full.

from libc.stdint cimport uint32_t, uint64_t

from core.edge cimport Edge, Link
from core.records cimport Record

cdef enum:
    TOLD_MS = 3000              # a record is on its way to the router for less than that
    TOLD_BYTES_MAX = 8388608    # of each of the two

cdef void told_init(Edge *edge) noexcept nogil
cdef void told_free(Edge *edge) noexcept nogil
cdef uint64_t told_time(Edge *edge) noexcept nogil
cdef Record *told_take(Edge *edge, int kind, int aux, uint32_t fixed, uint32_t variable) noexcept nogil
cdef void told_keep(Record *record) noexcept nogil
cdef void told_say(Edge *edge, Record *record) noexcept nogil
cdef void told_tick(Edge *edge) noexcept nogil
cdef void told_say_all(Edge *edge, Link *link, const uint64_t *shards) noexcept nogil
