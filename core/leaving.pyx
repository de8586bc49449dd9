"""Leaving: keep who left, and forget them again."""

from libc.string cimport memcmp, memcpy

from core.hash cimport hash_bytes, index_find, index_free, index_put, index_remove
from core.ledger cimport KIND_TIMER, ledger_acquire, ledger_leaks, ledger_release
from core.rooms cimport room_at, room_rest, user_at, user_rest
from core.sites cimport HERE
from core.slab cimport SLAB_NONE, slab_acquire, slab_free, slab_init, slab_release

assert sizeof(Leaving) == 40


cdef void leavings_init(Leavings *leavings, Rooms *rooms, HashKey key, uint64_t named) noexcept nogil:
    slab_init(&leavings.slab, sizeof(Leaving), 10, 0xFFFFFFFE)
    leavings.rooms = rooms
    leavings.key = key
    leavings.named = named
    leavings.oldest = leavings.newest = NOBODY


cdef void leavings_free(Leavings *leavings) noexcept nogil:
    """The router ends: nobody is told any more. To be called before the rooms are freed."""
    while leavings.oldest != NOBODY:
        leaving_end(leavings, leavings.oldest)
    slab_free(&leavings.slab)
    index_free(&leavings.index)


cdef inline uint64_t _hash(Leavings *leavings, const uint8_t *session, uint32_t room) noexcept nogil:
    cdef uint8_t text[20]
    memcpy(text, session, 16)
    memcpy(text + 16, &room, 4)
    return hash_bytes(&leavings.key, text, sizeof(text))


cdef bint leaving_keep(Leavings *leavings, const uint8_t *session, uint32_t room, uint32_t user,
                       uint64_t due_ms) noexcept nogil:
    """A session left a room; `due_ms` is not before that of any other. False: out of memory."""
    cdef uint32_t index = slab_acquire(&leavings.slab)
    cdef Leaving *leaving
    if index == SLAB_NONE or index_put(&leavings.index, _hash(leavings, session, room), index) < 0:
        if index != SLAB_NONE:
            slab_release(&leavings.slab, index)
        return False
    leaving = leaving_at(leavings, index)
    memcpy(leaving.session, session, 16)
    leaving.due_ms = due_ms
    leaving.room = room
    leaving.user = user
    leaving.next = NOBODY
    leaving.previous = leavings.newest
    if leavings.newest != NOBODY:
        leaving_at(leavings, leavings.newest).next = index
    else:
        leavings.oldest = index
    leavings.newest = index
    room_at(leavings.rooms, room).leaving += 1
    user_at(leavings.rooms, user).references += 1
    ledger_acquire(leavings.rooms.ledger, KIND_TIMER, leavings.named + index, HERE)
    return True


cdef bint leaving_back(Leavings *leavings, const uint8_t *session, uint32_t room) noexcept nogil:
    """A session is in a room again: whether it had only just left, of which nobody is told then."""
    cdef uint64_t hash
    cdef uint32_t probe = 0
    cdef uint32_t found
    cdef Leaving *leaving
    if leavings.oldest == NOBODY:
        return False
    hash = _hash(leavings, session, room)
    found = index_find(&leavings.index, hash, &probe)
    while found:
        leaving = leaving_at(leavings, found - 1)
        if leaving.room == room and memcmp(leaving.session, session, 16) == 0:
            leaving_end(leavings, found - 1)
            return True
        found = index_find(&leavings.index, hash, &probe)
    return False


cdef void leaving_end(Leavings *leavings, uint32_t index) noexcept nogil:
    """It came back, or its members were told: let go of its room and its user."""
    cdef Leaving *leaving = leaving_at(leavings, index)
    cdef uint32_t room = leaving.room
    cdef uint32_t user = leaving.user
    index_remove(&leavings.index, _hash(leavings, leaving.session, room), index)
    if leaving.previous != NOBODY:
        leaving_at(leavings, leaving.previous).next = leaving.next
    else:
        leavings.oldest = leaving.next
    if leaving.next != NOBODY:
        leaving_at(leavings, leaving.next).previous = leaving.previous
    else:
        leavings.newest = leaving.previous
    if not ledger_leaks(leavings.rooms.ledger, KIND_TIMER):
        ledger_release(leavings.rooms.ledger, KIND_TIMER, leavings.named + index)
        slab_release(&leavings.slab, index)
    room_at(leavings.rooms, room).leaving -= 1
    room_rest(leavings.rooms, room)
    user_rest(leavings.rooms, user)
