"""Presence: rooms as workers tell of them, PRESENCE, and the events of who comes and goes."""

from libc.string cimport memcpy

from core.abroad cimport abroad_event
from core.clock cimport clock_ns
from core.codes cimport NOT_ALLOWED
from core.leaving cimport Leaving, leaving_at, leaving_back, leaving_end, leaving_keep
from core.ledger cimport COUNT_STATES_LOST, ledger_count
from core.mpack cimport MpWriter, mp_write_array, mp_write_map, mp_write_str, mp_write_uint
from core.namespaces cimport Namespace, namespace_of
from core.records cimport (MESSAGE_EVENT, PRESENCE_WORKERS, REC_MESSAGE, REC_REPLY, STATE_HERE, STATE_LEFT, RecBody,
                           RecMessage)
from core.rooms cimport (NOBODY, Member, Room, User, attender_at, attender_end, member_at, member_enter, member_find,
                         member_leave, room_at, room_find, room_name, user_at, user_name)
from core.sequencer cimport Owner, bulk_fits, worker_at, worker_say
from core.slab cimport invariant, slab_at
from core.stream cimport Route, stream_find, stream_route

cdef enum:
    ENTRY_BYTES = 56            # of a session in the answer, but for its user's name
    DUE_NS = 500000             # a turn gives to those who left; they are many when a worker died
    DUE_LOOK = 16               # are told of between two looks at the clock

cdef extern from *:
    """
    static const char HOLDFAST_HEX[] = "0123456789abcdef";
    """
    const char *HEX "HOLDFAST_HEX"


cdef inline const uint8_t *_session(Sequencer *sequencer, uint32_t owner) noexcept nogil:
    return (<Owner *> slab_at(&sequencer.owners, owner)).session


cdef void _entry_write(MpWriter *writer, const uint8_t *session, const char *user, uint32_t user_size) noexcept nogil:
    """{session, user}"""
    cdef char digits[32]
    cdef int place
    for place in range(16):
        digits[2 * place] = HEX[session[place] >> 4]
        digits[2 * place + 1] = HEX[session[place] & 15]
    mp_write_map(writer, 2)
    mp_write_str(writer, b"session", 7)
    mp_write_str(writer, digits, 32)
    mp_write_str(writer, b"user", 4)
    mp_write_str(writer, user, user_size)


# ------------------------------------------------------------------------------------------------------- the events


cdef void event_route(Sequencer *sequencer, const Stream *stream, const uint8_t *frame, uint32_t size) noexcept nogil:
    """An EVENT frame, once to each worker with members."""
    cdef RecMessage *record
    cdef uint32_t place
    cdef Route route
    for place in range(stream.route_count):
        route = stream_route(stream, place)
        record = <RecMessage *> worker_say(worker_at(sequencer, route.worker), REC_MESSAGE, MESSAGE_EVENT,
                                           sizeof(RecMessage), size)
        if record != NULL:
            record.channel = route.channel
            record.body_size = size
            memcpy(<uint8_t *> record + sizeof(RecMessage), frame, size)


cdef void _tell(Sequencer *sequencer, uint32_t index, uint32_t user_index, const uint8_t *session, const char *kind,
                uint32_t kind_size) noexcept nogil:
    """EVENT [13, channel, kind, {session, user}] to the members, unless there are too many."""
    cdef Room *room = room_at(&sequencer.rooms, index)
    cdef User *user = user_at(&sequencer.rooms, user_index)
    cdef const char *name = room_name(&sequencer.rooms, room)
    cdef Stream *stream
    cdef MpWriter writer
    cdef uint32_t size
    if room.count == 0 or room.count > sequencer.events_members_max:
        return
    stream = stream_find(&sequencer.streams, name, room.name_size)
    if stream == NULL and not sequencer.bridged:
        return
    writer.p = sequencer.scratch
    writer.end = sequencer.scratch + sequencer.scratch_bytes
    writer.overflow = False
    mp_write_array(&writer, 4)
    mp_write_uint(&writer, 13)
    mp_write_str(&writer, name, room.name_size)
    mp_write_str(&writer, kind, kind_size)
    _entry_write(&writer, session, user_name(&sequencer.rooms, user), user.name_size)
    invariant(not writer.overflow)
    size = <uint32_t> (writer.p - sequencer.scratch)
    if stream != NULL:
        event_route(sequencer, stream, sequencer.scratch, size)
    abroad_event(sequencer, name, room.name_size, sequencer.scratch, size)


cdef void _left_tell(Sequencer *sequencer, uint32_t index) noexcept nogil:
    """It did not come back."""
    cdef Leaving *leaving = leaving_at(&sequencer.leavings, index)
    _tell(sequencer, leaving.room, leaving.user, leaving.session, b"left", 4)
    if sequencer.now_ms < sequencer.quiet_until_ms and sequencer.gone.slab.live < LEAVINGS_MAX:
        leaving_keep(&sequencer.gone, leaving.session, leaving.room, leaving.user, sequencer.quiet_until_ms)
    leaving_end(&sequencer.leavings, index)


cdef bint _due_one(Sequencer *sequencer) noexcept nogil:
    """See to the next one that has been gone for long enough; False: there is none."""
    if sequencer.leavings.oldest != NOBODY \
            and leaving_at(&sequencer.leavings, sequencer.leavings.oldest).due_ms <= sequencer.now_ms:
        _left_tell(sequencer, sequencer.leavings.oldest)
    elif sequencer.gone.oldest != NOBODY and sequencer.now_ms >= sequencer.quiet_until_ms:
        leaving_end(&sequencer.gone, sequencer.gone.oldest)
    else:
        return False
    return True


cdef void presence_due(Sequencer *sequencer) noexcept nogil:
    """Once a turn: tell of those who have been gone for long enough; what DUE_NS is not enough for waits for the next
    turn, which comes at once."""
    cdef uint64_t until_ns = 0
    cdef uint32_t count = 0
    while _due_one(sequencer):
        count += 1
        if count % DUE_LOOK == 0:
            if until_ns == 0:
                until_ns = clock_ns() + <uint64_t> DUE_NS
            elif clock_ns() >= until_ns:
                return


cdef void presence_leave(Sequencer *sequencer, uint32_t index) noexcept nogil:
    """A session leaves a room, whose members are told of it later, or now if nothing can be kept for later."""
    cdef Member *member = member_at(&sequencer.rooms, index)
    cdef uint32_t user
    if room_at(&sequencer.rooms, member.room).events:
        user = attender_at(&sequencer.rooms, member.owner).user
        if sequencer.leavings.slab.live >= LEAVINGS_MAX:
            _left_tell(sequencer, sequencer.leavings.oldest)
        if not leaving_keep(&sequencer.leavings, _session(sequencer, member.owner), member.room, user,
                            sequencer.now_ms + sequencer.damping_ms):
            _tell(sequencer, member.room, user, _session(sequencer, member.owner), b"left", 4)
    member_leave(&sequencer.rooms, index)


cdef void _came(Sequencer *sequencer, uint32_t index, bint here) noexcept nogil:
    """A session is in a room in which it was not before."""
    cdef Member *member = member_at(&sequencer.rooms, index)
    cdef const uint8_t *session = _session(sequencer, member.owner)
    cdef bint known = here and sequencer.now_ms < sequencer.quiet_until_ms
    room_at(&sequencer.rooms, member.room).events = 1
    if leaving_back(&sequencer.gone, session, member.room):
        known = False
    if leaving_back(&sequencer.leavings, session, member.room) or known:
        return
    _tell(sequencer, member.room, attender_at(&sequencer.rooms, member.owner).user, session, b"joined", 6)


# -------------------------------------------------------------------------------------------------------- the rooms


cdef void presence_state(Sequencer *sequencer, uint32_t owner, const RecState *record) noexcept nogil:
    """JOINED, HERE or LEFT of a session that this owner has."""
    cdef const char *name = <const char *> record + sizeof(RecState)
    cdef const Namespace *namespace = namespace_of(&sequencer.namespaces, name, record.head.aux)
    cdef uint32_t index
    cdef bint came
    if namespace == NULL or not namespace.presence:
        return
    if record.what == STATE_LEFT:
        index = room_find(&sequencer.rooms, name, record.head.aux)
        if index != NOBODY:
            index = member_find(&sequencer.rooms, owner, index)
        if index != NOBODY:
            presence_leave(sequencer, index)
        return
    index = member_enter(&sequencer.rooms, owner, name, record.head.aux, name + record.head.aux, record.user_size,
                         &came)
    if index == NOBODY:
        ledger_count(sequencer.ledger, COUNT_STATES_LOST, 1)
    elif came and namespace.events:
        _came(sequencer, index, record.what == STATE_HERE)


cdef void presence_end(Sequencer *sequencer, uint32_t owner) noexcept nogil:
    """A session has no owner any more, or another one: it is in no room until that one says so."""
    while attender_at(&sequencer.rooms, owner).first != NOBODY:
        presence_leave(sequencer, attender_at(&sequencer.rooms, owner).first)
    attender_end(&sequencer.rooms, owner)


# ------------------------------------------------------------------------------------------------------- the answer


cdef inline uint32_t _user_size(Sequencer *sequencer, const Member *member) noexcept nogil:
    return user_at(&sequencer.rooms, attender_at(&sequencer.rooms, member.owner).user).name_size


cdef uint32_t _fitting(Sequencer *sequencer, const Room *room) noexcept nogil:
    """How many of a room's sessions an answer has room for, the latest first."""
    cdef uint32_t at = NOBODY if room == NULL else room.first
    cdef uint32_t count = 0
    cdef uint32_t bytes = 0
    while at != NOBODY and count < PRESENCE_SESSIONS_MAX:
        bytes += ENTRY_BYTES + _user_size(sequencer, member_at(&sequencer.rooms, at))
        if bytes > PRESENCE_BYTES_MAX:
            break
        count += 1
        at = member_at(&sequencer.rooms, at).next
    return count


cdef void _answer_write(Sequencer *sequencer, MpWriter *writer, const Room *room) noexcept nogil:
    """The three entries {sessions, users, count}"""
    cdef uint32_t left = _fitting(sequencer, room)
    cdef uint32_t at = NOBODY if room == NULL else room.first
    cdef Member *member
    cdef User *user
    mp_write_str(writer, b"sessions", 8)
    mp_write_array(writer, left)
    while left:
        left -= 1
        member = member_at(&sequencer.rooms, at)
        user = user_at(&sequencer.rooms, attender_at(&sequencer.rooms, member.owner).user)
        _entry_write(writer, _session(sequencer, member.owner), user_name(&sequencer.rooms, user), user.name_size)
        at = member.next
    mp_write_str(writer, b"users", 5)
    mp_write_uint(writer, 0 if room == NULL else room.users)
    mp_write_str(writer, b"count", 5)
    mp_write_uint(writer, 0 if room == NULL else room.count)


cdef void presence_answer(Sequencer *sequencer, Worker *worker, const RecHistory *record) noexcept nogil:
    """REPLY body {sessions, users, count}, with `workers` for whoever asks for that."""
    cdef const char *name = <const char *> record + sizeof(RecHistory)
    cdef const Namespace *namespace = namespace_of(&sequencer.namespaces, name, record.head.aux)
    cdef bint kept = namespace != NULL and namespace.presence
    cdef bint workers = record.limit == PRESENCE_WORKERS
    cdef Stream *stream
    cdef uint32_t index
    cdef MpWriter writer
    cdef RecBody *answer
    writer.p = sequencer.scratch
    writer.end = sequencer.scratch + sequencer.scratch_bytes
    writer.overflow = False
    if kept:
        index = room_find(&sequencer.rooms, name, record.head.aux)
        mp_write_map(&writer, 4 if workers else 3)
        _answer_write(sequencer, &writer, NULL if index == NOBODY else room_at(&sequencer.rooms, index))
    if kept and workers:
        stream = stream_find(&sequencer.streams, name, record.head.aux)
        mp_write_str(&writer, b"workers", 7)
        mp_write_uint(&writer, 0 if stream == NULL else stream.route_count)
    invariant(not writer.overflow)
    if not bulk_fits(worker, record.seq, <uint32_t> (writer.p - sequencer.scratch)):
        return
    answer = <RecBody *> worker_say(worker, REC_REPLY, 0 if kept else NOT_ALLOWED, sizeof(RecBody),
                                    <uint32_t> (writer.p - sequencer.scratch))
    if answer != NULL:
        answer.seq = record.seq
        answer.body_size = <uint32_t> (writer.p - sequencer.scratch)
        memcpy(<uint8_t *> answer + sizeof(RecBody), sequencer.scratch, answer.body_size)
