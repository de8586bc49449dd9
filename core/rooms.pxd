# Rooms: who is in which channel, as a router knows it of the channels whose presence is kept.
#
# A room is a channel with somebody in it, or somebody who may come back in a moment. A member is a session in a room:
# it stands in the room's list, in its session's, and in that of its user in this room, of which the first is found by
# the hash of both. So the members of an ended session are found through it alone, a room knows how many users it has
# without counting, and whether a session is in a room is found along whichever of its own list and its user's is
# shorter. A channel whose presence is not kept costs nothing here; a membership costs 32 bytes and 11 of the index, a
# room 28 and a user 12, with their names.
#
# A router knows by this who is in its channels, not who has which session: that is known where the session's shard is
# led (core/sequencer.pxd). An attender is a session that is in any room here.
#
# Invariant: a room has members or somebody leaving it, a user sessions or somebody leaving; `users` of a room is how
# many of its members are the first of their user's.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from core.hash cimport HashKey, Index
from core.ledger cimport Ledger
from core.names cimport Names, name_text
from core.slab cimport SLAB_NONE, Slab, slab_at

cdef enum:
    NOBODY = SLAB_NONE          # ends every list

ctypedef struct Attender:       # 40 bytes: a session that is in a room, as the worker says that has it
    uint8_t session[16]
    uint64_t fence              # of its claim: who says otherwise with a lower one does not have it any more
    uint32_t first              # its members, NOBODY: it is in no room yet
    uint32_t user               # NOBODY: not told yet
    uint32_t conn               # low half of the worker's handle
    uint8_t worker              # index in the table of workers
    uint8_t live
    uint16_t reserved

ctypedef struct Member:         # 32 bytes
    uint32_t owner              # the attender's slot
    uint32_t room
    uint32_t next               # of the room
    uint32_t previous
    uint32_t owner_next         # of the session
    uint32_t owner_previous
    uint32_t user_next          # of the same user in this room
    uint32_t user_previous

ctypedef struct Room:           # 28 bytes
    uint32_t name               # owned: number in the names
    uint32_t first              # its members, the latest first
    uint32_t count              # of them
    uint32_t users              # different ones among them
    uint32_t leaving            # who left it, and may come back before anybody is told (core/presence.pxd)
    uint8_t name_size
    uint8_t events              # members are told who comes and goes
    uint8_t reserved[6]

ctypedef struct User:           # 12 bytes
    uint32_t name               # owned
    uint32_t references         # sessions, and sessions that are leaving
    uint8_t name_size
    uint8_t reserved[3]

ctypedef struct Rooms:
    Ledger *ledger              # borrowed
    Slab attenders
    Slab rooms
    Slab users
    Slab members
    Names names                 # of rooms and users
    Index attender_index        # by session
    Index room_index            # by name
    Index user_index            # by name
    Index member_index          # by room and user: the first of them
    HashKey key


cdef inline Room *room_at(Rooms *rooms, uint32_t index) noexcept nogil:
    return <Room *> slab_at(&rooms.rooms, index)


cdef inline User *user_at(Rooms *rooms, uint32_t index) noexcept nogil:
    return <User *> slab_at(&rooms.users, index)


cdef inline Member *member_at(Rooms *rooms, uint32_t index) noexcept nogil:
    return <Member *> slab_at(&rooms.members, index)


cdef inline Attender *attender_at(Rooms *rooms, uint32_t owner) noexcept nogil:
    return <Attender *> slab_at(&rooms.attenders, owner)


cdef inline const char *room_name(Rooms *rooms, const Room *room) noexcept nogil:
    """Its channel's name, not terminated, `name_size` bytes."""
    return name_text(&rooms.names, room.name, room.name_size)


cdef inline const char *user_name(Rooms *rooms, const User *user) noexcept nogil:
    return name_text(&rooms.names, user.name, user.name_size)


cdef void rooms_init(Rooms *rooms, Ledger *ledger, HashKey key) noexcept nogil
cdef void rooms_free(Rooms *rooms) noexcept nogil
cdef uint32_t room_find(Rooms *rooms, const char *name, uint32_t size) noexcept nogil
cdef void room_rest(Rooms *rooms, uint32_t index) noexcept nogil
cdef void user_rest(Rooms *rooms, uint32_t index) noexcept nogil
cdef uint32_t member_find(Rooms *rooms, uint32_t owner, uint32_t room) noexcept nogil
cdef uint32_t member_enter(Rooms *rooms, uint32_t owner, const char *name, uint32_t size, const char *user,
                           uint32_t user_size, bint *came) noexcept nogil
cdef void member_leave(Rooms *rooms, uint32_t index) noexcept nogil
cdef uint32_t attender_find(Rooms *rooms, const uint8_t *session) noexcept nogil
cdef uint32_t attender_start(Rooms *rooms, const uint8_t *session, uint8_t worker, uint32_t conn,
                             uint64_t fence) noexcept nogil
cdef void attender_end(Rooms *rooms, uint32_t owner) noexcept nogil
