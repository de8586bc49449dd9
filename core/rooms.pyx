"""Rooms: sessions come in and go, and their lists and counts stay true."""

from libc.string cimport memcmp, memcpy, memset

from core.hash cimport hash_bytes, index_find, index_free, index_put, index_remove
from core.ledger cimport KIND_MEMBERSHIP, ledger_acquire, ledger_leaks, ledger_release
from core.names cimport name_drop, name_keep, names_free, names_init
from core.sites cimport HERE
from core.slab cimport invariant, slab_acquire, slab_free, slab_init, slab_release

assert sizeof(Member) == 32 and sizeof(Room) == 28 and sizeof(User) == 12 and sizeof(Attender) == 40


cdef void rooms_init(Rooms *rooms, Ledger *ledger, HashKey key) noexcept nogil:
    """No rooms, and nobody in them."""
    slab_init(&rooms.attenders, sizeof(Attender), 10, 0xFFFFFFFE)
    slab_init(&rooms.rooms, sizeof(Room), 10, 0xFFFFFFFE)
    slab_init(&rooms.users, sizeof(User), 10, 0xFFFFFFFE)
    slab_init(&rooms.members, sizeof(Member), 10, 0xFFFFFFFE)
    names_init(&rooms.names)
    rooms.ledger = ledger
    rooms.key = key


cdef void rooms_free(Rooms *rooms) noexcept nogil:
    """The router ends: nobody is in any room by now."""
    slab_free(&rooms.attenders)
    slab_free(&rooms.rooms)
    slab_free(&rooms.users)
    slab_free(&rooms.members)
    names_free(&rooms.names)
    index_free(&rooms.attender_index)
    index_free(&rooms.room_index)
    index_free(&rooms.user_index)
    index_free(&rooms.member_index)


cdef inline uint64_t _name_hash(Rooms *rooms, const char *name, uint32_t size) noexcept nogil:
    return hash_bytes(&rooms.key, <const uint8_t *> name, size)


cdef inline uint64_t _pair_hash(Rooms *rooms, uint32_t room, uint32_t user) noexcept nogil:
    cdef uint32_t pair[2]
    pair[0] = room
    pair[1] = user
    return hash_bytes(&rooms.key, <const uint8_t *> pair, sizeof(pair))


cdef uint32_t room_find(Rooms *rooms, const char *name, uint32_t size) noexcept nogil:
    """The room of a channel, NOBODY when nobody is in it."""
    cdef uint32_t probe = 0
    cdef uint64_t hash = _name_hash(rooms, name, size)
    cdef uint32_t found = index_find(&rooms.room_index, hash, &probe)
    cdef Room *room
    while found:
        room = room_at(rooms, found - 1)
        if room.name_size == size and memcmp(room_name(rooms, room), name, size) == 0:
            return found - 1
        found = index_find(&rooms.room_index, hash, &probe)
    return NOBODY


cdef uint32_t _room_wanted(Rooms *rooms, const char *name, uint32_t size) noexcept nogil:
    """The room of a channel, made if there is none; NOBODY: out of memory."""
    cdef uint32_t index = room_find(rooms, name, size)
    cdef uint32_t text
    cdef Room *room
    if index != NOBODY:
        return index
    text = name_keep(&rooms.names, name, size)
    if text == SLAB_NONE:
        return NOBODY
    index = slab_acquire(&rooms.rooms)
    if index == SLAB_NONE or index_put(&rooms.room_index, _name_hash(rooms, name, size), index) < 0:
        name_drop(&rooms.names, text, size)
        if index != SLAB_NONE:
            slab_release(&rooms.rooms, index)
        return NOBODY
    room = room_at(rooms, index)
    memset(room, 0, sizeof(Room))
    room.name = text
    room.name_size = <uint8_t> size
    room.first = NOBODY
    return index


cdef void room_rest(Rooms *rooms, uint32_t index) noexcept nogil:
    """Give a room up that nobody is in, and nobody may come back to."""
    cdef Room *room = room_at(rooms, index)
    if room.count or room.leaving:
        return
    index_remove(&rooms.room_index, _name_hash(rooms, room_name(rooms, room), room.name_size), index)
    name_drop(&rooms.names, room.name, room.name_size)
    slab_release(&rooms.rooms, index)


cdef uint32_t _user_wanted(Rooms *rooms, const char *name, uint32_t size) noexcept nogil:
    """The user of a name, with one reference more; NOBODY: no name, or out of memory."""
    cdef uint32_t probe = 0
    cdef uint64_t hash = _name_hash(rooms, name, size)
    cdef uint32_t found = index_find(&rooms.user_index, hash, &probe)
    cdef uint32_t index, text
    cdef User *user
    while found:
        user = user_at(rooms, found - 1)
        if user.name_size == size and memcmp(user_name(rooms, user), name, size) == 0:
            user.references += 1
            return found - 1
        found = index_find(&rooms.user_index, hash, &probe)
    text = name_keep(&rooms.names, name, size)
    if text == SLAB_NONE:
        return NOBODY
    index = slab_acquire(&rooms.users)
    if index == SLAB_NONE or index_put(&rooms.user_index, hash, index) < 0:
        name_drop(&rooms.names, text, size)
        if index != SLAB_NONE:
            slab_release(&rooms.users, index)
        return NOBODY
    user = user_at(rooms, index)
    user.name = text
    user.name_size = <uint8_t> size
    user.references = 1
    return index


cdef void user_rest(Rooms *rooms, uint32_t index) noexcept nogil:
    """One reference less; a user without any is forgotten."""
    cdef User *user = user_at(rooms, index)
    user.references -= 1
    if user.references:
        return
    index_remove(&rooms.user_index, _name_hash(rooms, user_name(rooms, user), user.name_size), index)
    name_drop(&rooms.names, user.name, user.name_size)
    slab_release(&rooms.users, index)


cdef uint32_t _first_of(Rooms *rooms, uint32_t room, uint32_t user) noexcept nogil:
    """The first of the user's members in a room, or NOBODY."""
    cdef uint32_t probe = 0
    cdef uint64_t hash = _pair_hash(rooms, room, user)
    cdef uint32_t found = index_find(&rooms.member_index, hash, &probe)
    cdef Member *member
    while found:
        member = member_at(rooms, found - 1)
        if member.room == room and attender_at(rooms, member.owner).user == user:
            return found - 1
        found = index_find(&rooms.member_index, hash, &probe)
    return NOBODY


cdef uint32_t member_find(Rooms *rooms, uint32_t owner, uint32_t room) noexcept nogil:
    """The session's member in a room, or NOBODY: in as many steps as the shorter of the two lists has that it is in."""
    cdef uint32_t own = attender_at(rooms, owner).first
    cdef uint32_t same
    if own == NOBODY:
        return NOBODY
    same = _first_of(rooms, room, attender_at(rooms, owner).user)
    while own != NOBODY and same != NOBODY:
        if member_at(rooms, own).room == room:
            return own
        if member_at(rooms, same).owner == owner:
            return same
        own = member_at(rooms, own).owner_next
        same = member_at(rooms, same).user_next
    return NOBODY


cdef void _link(Rooms *rooms, uint32_t index, Member *member, Attender *attender) noexcept nogil:
    """Into the lists of its room and its session, at the front."""
    cdef Room *room = room_at(rooms, member.room)
    member.previous = member.owner_previous = NOBODY
    member.next = room.first
    member.owner_next = attender.first
    if member.next != NOBODY:
        member_at(rooms, member.next).previous = index
    if member.owner_next != NOBODY:
        member_at(rooms, member.owner_next).owner_previous = index
    room.first = attender.first = index
    room.count += 1


cdef bint _link_user(Rooms *rooms, uint32_t index, Member *member, uint32_t user) noexcept nogil:
    """Into the list of its user in this room: behind the first, which the index knows; False: out of memory."""
    cdef uint32_t first = _first_of(rooms, member.room, user)
    member.user_next = member.user_previous = NOBODY
    if first == NOBODY:
        if index_put(&rooms.member_index, _pair_hash(rooms, member.room, user), index) < 0:
            return False
        room_at(rooms, member.room).users += 1
        return True
    member.user_previous = first
    member.user_next = member_at(rooms, first).user_next
    member_at(rooms, first).user_next = index
    if member.user_next != NOBODY:
        member_at(rooms, member.user_next).user_previous = index
    return True


cdef uint32_t member_enter(Rooms *rooms, uint32_t owner, const char *name, uint32_t size, const char *user,
                           uint32_t user_size, bint *came) noexcept nogil:
    """The session is in a channel: its member there; `came`: it was not before. NOBODY: out of memory."""
    cdef Attender *attender = attender_at(rooms, owner)
    cdef uint32_t room, index
    cdef Member *member
    came[0] = False
    if attender.user == NOBODY:
        attender.user = _user_wanted(rooms, user, user_size)
        if attender.user == NOBODY:
            return NOBODY
    room = _room_wanted(rooms, name, size)
    if room == NOBODY:
        return NOBODY
    index = member_find(rooms, owner, room)
    if index != NOBODY:
        return index
    index = slab_acquire(&rooms.members)
    if index == SLAB_NONE:
        room_rest(rooms, room)
        return NOBODY
    member = member_at(rooms, index)
    member.owner = owner
    member.room = room
    if not _link_user(rooms, index, member, attender.user):
        slab_release(&rooms.members, index)
        room_rest(rooms, room)
        return NOBODY
    _link(rooms, index, member, attender)
    ledger_acquire(rooms.ledger, KIND_MEMBERSHIP, index, HERE)
    came[0] = True
    return index


cdef void _unlink(Rooms *rooms, Member *member) noexcept nogil:
    """Out of the lists of its room and its session."""
    cdef Room *room = room_at(rooms, member.room)
    if member.previous != NOBODY:
        member_at(rooms, member.previous).next = member.next
    else:
        room.first = member.next
    if member.next != NOBODY:
        member_at(rooms, member.next).previous = member.previous
    if member.owner_previous != NOBODY:
        member_at(rooms, member.owner_previous).owner_next = member.owner_next
    else:
        attender_at(rooms, member.owner).first = member.owner_next
    if member.owner_next != NOBODY:
        member_at(rooms, member.owner_next).owner_previous = member.owner_previous
    room.count -= 1


cdef void _unlink_user(Rooms *rooms, uint32_t index, Member *member) noexcept nogil:
    """Out of the list of its user in this room; if it was the first, the index knows the next one from now on."""
    cdef uint64_t hash
    if member.user_next != NOBODY:
        member_at(rooms, member.user_next).user_previous = member.user_previous
    if member.user_previous != NOBODY:
        member_at(rooms, member.user_previous).user_next = member.user_next
        return
    hash = _pair_hash(rooms, member.room, attender_at(rooms, member.owner).user)
    if member.user_next == NOBODY:
        room_at(rooms, member.room).users -= 1
        index_remove(&rooms.member_index, hash, index)
    elif index_put(&rooms.member_index, hash, member.user_next) == 0:
        index_remove(&rooms.member_index, hash, index)
    else:                               # out of memory for a larger index: this one gives room first
        index_remove(&rooms.member_index, hash, index)
        index_put(&rooms.member_index, hash, member.user_next)


cdef void member_leave(Rooms *rooms, uint32_t index) noexcept nogil:
    """A session leaves a room, which may end with that."""
    cdef Member *member = member_at(rooms, index)
    cdef uint32_t room = member.room
    _unlink_user(rooms, index, member)
    _unlink(rooms, member)
    if not ledger_leaks(rooms.ledger, KIND_MEMBERSHIP):
        ledger_release(rooms.ledger, KIND_MEMBERSHIP, index)
        slab_release(&rooms.members, index)
    room_rest(rooms, room)


cdef uint32_t attender_find(Rooms *rooms, const uint8_t *session) noexcept nogil:
    """The session's attender, NOBODY: it is in no room."""
    cdef uint32_t probe = 0
    cdef uint64_t hash = hash_bytes(&rooms.key, session, 16)
    cdef uint32_t found = index_find(&rooms.attender_index, hash, &probe)
    while found:
        if memcmp(attender_at(rooms, found - 1).session, session, 16) == 0:
            return found - 1
        found = index_find(&rooms.attender_index, hash, &probe)
    return NOBODY


cdef uint32_t attender_start(Rooms *rooms, const uint8_t *session, uint8_t worker, uint32_t conn,
                             uint64_t fence) noexcept nogil:
    """A session that is in no room yet, and is about to enter one; NOBODY: out of memory."""
    cdef uint32_t index = slab_acquire(&rooms.attenders)
    cdef Attender *attender
    if index == SLAB_NONE or index_put(&rooms.attender_index, hash_bytes(&rooms.key, session, 16), index) < 0:
        if index != SLAB_NONE:
            slab_release(&rooms.attenders, index)
        return NOBODY
    attender = attender_at(rooms, index)
    memset(attender, 0, sizeof(Attender))
    memcpy(attender.session, session, 16)
    attender.worker = worker
    attender.conn = conn
    attender.fence = fence
    attender.first = NOBODY
    attender.user = NOBODY
    attender.live = 1
    return index


cdef void attender_end(Rooms *rooms, uint32_t owner) noexcept nogil:
    """A session that is in no room any more: let go of its user, and forget it."""
    cdef Attender *attender = attender_at(rooms, owner)
    invariant(attender.first == NOBODY)
    if attender.user != NOBODY:
        user_rest(rooms, attender.user)
    index_remove(&rooms.attender_index, hash_bytes(&rooms.key, attender.session, 16), owner)
    attender.live = 0
    slab_release(&rooms.attenders, owner)
