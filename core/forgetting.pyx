"""Forgetting: walk the sessions and the streams of shards that were given up."""

from libc.stdint cimport uint64_t

from core.clock cimport clock_ns
from core.leading cimport SHARD_FORGETTING, SHARD_NONE
from core.mailbox cimport NOTE_FORGOTTEN, Note, mailbox_put, note_init
from core.owners cimport FORGET_SLOTS, owner_at, owner_end
from core.presence cimport presence_leave
from core.rooms cimport NOBODY, Room, attender_at, member_at, member_leave, room_at, room_name
from core.sequencer cimport worker_index
from core.shards cimport shard_of_channel, shard_of_session, shards_have
from core.slab cimport Slab
from core.stream cimport (Stream, route_remove, stream_at, stream_end, stream_route, stream_routes_to, stream_shard)


cdef enum ForgetStep:
    STEP_OWNERS
    STEP_STREAMS
    STEP_END


cdef inline bint _is_forgotten(Sequencer *sequencer, uint32_t shard) noexcept nogil:
    return sequencer.shards[shard].state == SHARD_FORGETTING


cdef void _stream(Sequencer *sequencer, uint32_t index) noexcept nogil:
    cdef Stream *stream = stream_at(&sequencer.streams, index)
    if stream.live != 1 or not _is_forgotten(sequencer, stream_shard(&sequencer.streams, stream)):
        return
    if stream.history == NULL or not (stream.history.under_way or stream.history.loading):
        stream_end(&sequencer.streams, stream)
        return
    sequencer.forget_again = True
    stream.epoch = 0                    # should it be led again by then, its position is read anew
    stream.history.filled = False
    sequencer.streams.cold = sequencer.streams.logged
    while stream.route_count:
        if not route_remove(&sequencer.streams, stream, stream_route(stream, 0).worker, 0):
            return


cdef void _rooms(Sequencer *sequencer, uint32_t index) noexcept nogil:
    """A session leaves the rooms of such channels: nobody is told, as their new leader knows that it is there."""
    cdef uint32_t at = attender_at(&sequencer.rooms, index).first
    cdef uint32_t after
    cdef Room *room
    while at != NOBODY:
        after = member_at(&sequencer.rooms, at).owner_next
        room = room_at(&sequencer.rooms, member_at(&sequencer.rooms, at).room)
        if _is_forgotten(sequencer, shard_of_channel(&sequencer.namespaces, room_name(&sequencer.rooms, room),
                                                     room.name_size, sequencer.shard_count)):
            member_leave(&sequencer.rooms, at)
        at = after


cdef void _owner(Sequencer *sequencer, uint32_t index) noexcept nogil:
    """A session of such a shard is a guest at most; a guest is one while it is in a room."""
    if owner_at(sequencer, index).live != 1:
        return
    _rooms(sequencer, index)
    if _is_forgotten(sequencer, shard_of_session(owner_at(sequencer, index).session, sequencer.shard_count)):
        owner_at(sequencer, index).guest = 1
    if owner_at(sequencer, index).guest and attender_at(&sequencer.rooms, index).first == NOBODY:
        owner_end(sequencer, index)


cdef bint _walk(Sequencer *sequencer, Slab *slab) noexcept nogil:
    """Some slots of a table more; True: that was all of it."""
    cdef uint32_t total = slab.chunk_count << slab.chunk_shift
    cdef uint32_t slots = FORGET_SLOTS
    while slots and sequencer.forget_place < total:
        if slab.chunks[sequencer.forget_place >> slab.chunk_shift].memory == NULL:
            sequencer.forget_place = ((sequencer.forget_place >> slab.chunk_shift) + 1) << slab.chunk_shift
            continue
        slots -= 1
        if sequencer.forget_step == STEP_STREAMS:
            _stream(sequencer, sequencer.forget_place)
        else:
            _owner(sequencer, sequencer.forget_place)
        sequencer.forget_place += 1
    return sequencer.forget_place >= total


cdef void _all_forgotten(Sequencer *sequencer) noexcept nogil:
    """The walk found nothing that has to stay: tell so of each of them."""
    cdef uint32_t shard
    cdef Note note
    sequencer.forgets = 0
    for shard in range(sequencer.shard_count):
        if not _is_forgotten(sequencer, shard):
            continue
        note_init(&note, NOTE_FORGOTTEN)
        note.request = shard
        if mailbox_put(&sequencer.to_control, &note, NULL, NULL) < 0:
            sequencer.forgets += 1
        else:
            sequencer.shards[shard].state = SHARD_NONE


cdef bint _portion(Sequencer *sequencer) noexcept nogil:
    """One portion; True: a whole walk ended."""
    cdef bint owners = sequencer.forget_step == STEP_OWNERS
    if not _walk(sequencer, &sequencer.owners if owners else &sequencer.streams.slab):
        return False
    sequencer.forget_place = 0
    sequencer.forget_step += 1
    if sequencer.forget_step != STEP_END:
        return False
    sequencer.forget_step = STEP_OWNERS
    if not sequencer.forget_again:
        _all_forgotten(sequencer)
    sequencer.forget_again = False
    return True


cdef void forgetting_begin(Sequencer *sequencer, uint32_t shard) noexcept nogil:
    """Forget a shard; what a walk has passed already, the next one finds."""
    if sequencer.shards[shard].state != SHARD_FORGETTING:
        sequencer.shards[shard].state = SHARD_FORGETTING
        sequencer.forgets += 1
    sequencer.forget_again = sequencer.forget_place != 0 or sequencer.forget_step != STEP_OWNERS


cdef void forgetting_end(Sequencer *sequencer, uint32_t shard) noexcept nogil:
    """It is going to be led again: forget it now, but for what is on its way to or from the log, which goes on."""
    cdef int walks = 0
    while walks < 2:
        walks += _portion(sequencer)
    if _is_forgotten(sequencer, shard):
        sequencer.shards[shard].state = SHARD_NONE
        sequencer.forgets -= 1


cdef void forgetting_turn(Sequencer *sequencer) noexcept nogil:
    """Once a turn: go on for as long as this turn has left for it, one walk at most."""
    cdef uint64_t began_ns
    cdef uint64_t spent_ns = 0
    cdef bint ended = False
    if sequencer.forgets == 0:
        return
    began_ns = clock_ns()
    while not ended and spent_ns < sequencer.forget_left_ns:
        ended = _portion(sequencer)
        spent_ns = clock_ns() - began_ns
    sequencer.forget_left_ns -= min(spent_ns, sequencer.forget_left_ns)
    sequencer.forget_rests = ended


# ------------------------------------------------------------------------------------------ what a worker says anew


cdef void _owner_unsay(Sequencer *sequencer, uint32_t index, const uint64_t *shards) noexcept nogil:
    """A session of such a shard has no owner until its worker says so, and is in no room of such a channel."""
    cdef uint32_t at = attender_at(&sequencer.rooms, index).first
    cdef uint32_t after
    cdef Room *room
    cdef bint guest = owner_at(sequencer, index).guest
    if not guest and shards_have(shards, shard_of_session(owner_at(sequencer, index).session, sequencer.shard_count)):
        owner_end(sequencer, index)
        return
    while at != NOBODY:
        after = member_at(&sequencer.rooms, at).owner_next
        room = room_at(&sequencer.rooms, member_at(&sequencer.rooms, at).room)
        if shards_have(shards, shard_of_channel(&sequencer.namespaces, room_name(&sequencer.rooms, room),
                                                room.name_size, sequencer.shard_count)):
            presence_leave(sequencer, at)
        at = after
    if guest and attender_at(&sequencer.rooms, index).first == NOBODY:
        owner_end(sequencer, index)


cdef inline bint _is_there(const Slab *slab, uint32_t index) noexcept nogil:
    return slab.chunks[index >> slab.chunk_shift].memory != NULL


cdef void worker_unsay(Sequencer *sequencer, Worker *worker, const uint64_t *shards) noexcept nogil:
    """Forget what a worker said of these shards (bits): it says it all anew, in the very turn. O(sessions + streams),
    after a pause or a hold that was over: what it gave up meanwhile was passed over."""
    cdef uint32_t number = worker_index(sequencer, worker)
    cdef Slab *slab = &sequencer.owners
    cdef uint32_t index
    cdef Stream *stream
    for index in range(slab.chunk_count << slab.chunk_shift):
        if _is_there(slab, index) and owner_at(sequencer, index).live == 1 \
                and owner_at(sequencer, index).worker == number:
            _owner_unsay(sequencer, index, shards)
    slab = &sequencer.streams.slab
    for index in range(slab.chunk_count << slab.chunk_shift):
        if not _is_there(slab, index):
            continue
        stream = stream_at(&sequencer.streams, index)
        if stream.live == 1 and stream_routes_to(stream, number) \
                and shards_have(shards, stream_shard(&sequencer.streams, stream)):
            route_remove(&sequencer.streams, stream, number, 0)
