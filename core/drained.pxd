# Drained: sessions whose clients a draining worker told to come back, until another worker claims them.
#
# A router remembers them, so that the draining worker hears how quickly the others take its clients, on whatever node
# they are. It is a hint for the pace and nothing else: the table is bounded, two sessions that fall on the same slot
# leave only the later one, and what was not claimed in DRAINED_MS is forgotten. Invariant: `memory` is NULL or holds
# DRAINED_SLOTS entries; a free one has the time 0.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    DRAINED_SLOTS = 131072      # 3 MB at a router while anybody drains, and for DRAINED_MS afterwards
    DRAINED_MS = 60000

ctypedef struct DrainedSession:     # 32 bytes
    uint8_t session[16]
    uint64_t told_ms            # 0: free
    uint32_t worker             # index in the router's table of workers
    uint32_t start              # low half of that worker's epoch: a slot of the table may be another's by now

ctypedef struct Drained:
    DrainedSession *memory      # owned; NULL while nobody drains
    uint64_t last_ms            # when the last one was kept

cdef void drained_keep(Drained *drained, uint64_t hash, const uint8_t *session, uint32_t worker, uint64_t epoch,
                       uint64_t now_ms) noexcept nogil
cdef DrainedSession *drained_take(Drained *drained, uint64_t hash, const uint8_t *session,
                                  uint64_t now_ms) noexcept nogil
cdef void drained_tick(Drained *drained, uint64_t now_ms) noexcept nogil
cdef void drained_free(Drained *drained) noexcept nogil
