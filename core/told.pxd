# Told: what this worker told of its sessions lately, kept to be told to the next router again.
#
# A router stores what sessions did a moment after it heard it (core/sessions.pxd), and what is told while it is away
# reaches nobody; a client was answered all the same. So claims, joins, leaves and ends are kept until the router has
# stored what it heard up to TOLD_MS later (LINKED says so), also while the link is down, and a router that asks for
# everything hears them first, in their order (OPEN_TOLD, STATE_TOLD, CLOSE_TOLD), each behind the time at which it was
# told first (TOLD): the router puts what several workers tell in order (router/told.py). What it had stored already,
# that changes nothing. Acknowledgements are not kept: without the last of them a client that names no position hears
# something again.
#
# Two batches: the older one goes when all of it is stored, or the younger one is full.

from libc.stdint cimport uint32_t

from core.edge cimport Edge
from core.records cimport Record

cdef enum:
    TOLD_MS = 3000              # a record is on its way to the router for less than that
    TOLD_BYTES_MAX = 8388608    # of each of the two

cdef void told_init(Edge *edge) noexcept nogil
cdef void told_free(Edge *edge) noexcept nogil
cdef void told_keep(Edge *edge, const Record *record) noexcept nogil
cdef void told_tick(Edge *edge) noexcept nogil
cdef void told_say_all(Edge *edge) noexcept nogil
