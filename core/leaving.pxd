# Leaving: sessions that left a room a moment ago, of which its members are not told yet.
#
# Whoever comes back in time, on whatever worker, is taken out again, and nobody hears of either. All wait equally long,
# so the one that waits longest is always the next to be told of: a list in the order of time, no timer for each; and an
# index by session and room. One that leaves costs 40 bytes and 11 of the index while it waits. Invariant: every entry
# holds its room and its user (core/rooms.pxd), and is in the list and in the index.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.hash cimport HashKey, Index
from core.rooms cimport NOBODY, Rooms
from core.slab cimport Slab, slab_at

ctypedef struct Leaving:        # 40 bytes
    uint8_t session[16]
    uint64_t due_ms             # monotonic: when the members are told
    uint32_t room
    uint32_t user
    uint32_t next               # that left later
    uint32_t previous

ctypedef struct Leavings:
    Rooms *rooms                # borrowed
    Slab slab
    Index index                 # by session and room
    HashKey key
    uint64_t named              # added to an entry's number in the ledger: tells two lists of one ledger apart
    uint32_t oldest             # NOBODY: none
    uint32_t newest


cdef inline Leaving *leaving_at(Leavings *leavings, uint32_t index) noexcept nogil:
    return <Leaving *> slab_at(&leavings.slab, index)


cdef inline uint64_t leaving_wait_ms(Leavings *leavings, uint64_t now_ms, uint64_t most_ms) noexcept nogil:
    """How long until the oldest is due, `most_ms` at most."""
    cdef uint64_t due
    if leavings.oldest == NOBODY:
        return most_ms
    due = leaving_at(leavings, leavings.oldest).due_ms
    return 0 if due <= now_ms else min(due - now_ms, most_ms)


cdef void leavings_init(Leavings *leavings, Rooms *rooms, HashKey key, uint64_t named) noexcept nogil
cdef void leavings_free(Leavings *leavings) noexcept nogil
cdef bint leaving_keep(Leavings *leavings, const uint8_t *session, uint32_t room, uint32_t user,
                       uint64_t due_ms) noexcept nogil
cdef bint leaving_back(Leavings *leavings, const uint8_t *session, uint32_t room) noexcept nogil
cdef void leaving_end(Leavings *leavings, uint32_t index) noexcept nogil
