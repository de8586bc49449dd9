"""Everybody: which global channels there are, and who was told of them."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from core.records cimport GLOBAL_GONE, REC_GLOBAL, REC_SUBSCRIBE, record_init
from core.sequencer cimport WORKER_LINKING, sequencer_record, worker_at, worker_index, worker_say
from core.stream cimport (route_remove, route_set, stream_at, stream_begins, stream_is_kept, stream_is_silent,
                          stream_list, stream_name, stream_routes_to, stream_since, stream_unlist)

cdef union SubscribeRoom:
    RecChannel record
    uint8_t bytes[320]          # the struct, and a name of at most 255


cdef RecChannel *_global(Sequencer *sequencer, Worker *worker, const Stream *stream) noexcept nogil:
    """Room for a GLOBAL with its name; NULL: the worker is given up."""
    cdef RecChannel *say = <RecChannel *> worker_say(worker, REC_GLOBAL, stream.name_size, sizeof(RecChannel),
                                                     stream.name_size)
    if say != NULL:
        say.epoch = stream.epoch
        memcpy(<uint8_t *> say + sizeof(RecChannel), stream_name(&sequencer.streams, stream), stream.name_size)
    return say


cdef void everybody_say(Sequencer *sequencer, Worker *worker, const Stream *stream, uint64_t offset) noexcept nogil:
    """GLOBAL: what is said to the worker from now on follows this offset."""
    cdef RecChannel *say = _global(sequencer, worker, stream)
    if say != NULL:
        say.offset = offset


cdef void _tell(Sequencer *sequencer, Worker *worker, Stream *stream, bint whole) noexcept nogil:
    """Tell a worker of a stream, unless it knows; with `whole` it gets what came since workers were told of it.

    That waits its turn: the worker's own SUBSCRIBE may wait for the same stream to be loaded.
    """
    cdef SubscribeRoom room
    cdef uint64_t since[2]
    if stream_routes_to(stream, worker_index(sequencer, worker)):
        return
    stream_since(&sequencer.streams, stream, since)
    if whole and stream.offset > since[1]:
        record_init(room.bytes, REC_SUBSCRIBE, stream.name_size, sizeof(RecChannel), stream.name_size)
        room.record.epoch = stream.epoch
        memcpy(room.bytes + sizeof(RecChannel), stream_name(&sequencer.streams, stream), stream.name_size)
        sequencer_record(sequencer, worker, &room.record.head)
    elif route_set(&sequencer.streams, stream, worker_index(sequencer, worker), 0) < 0:
        worker.overfull = True          # out of memory: it is given up, and comes back
    else:
        everybody_say(sequencer, worker, stream, stream.offset)


cdef Stream *_oldest_aged(Sequencer *sequencer) noexcept nogil:
    """Of the streams of which nothing is kept any more, the one that has been silent for longest; NULL: none."""
    cdef Stream *oldest = NULL
    cdef Stream *stream
    cdef uint32_t place
    for place in range(sequencer.streams.globals):
        stream = stream_at(&sequencer.streams, sequencer.streams.everybody[place].slot)
        if stream.history.under_way or stream.history.loading \
                or not stream_is_silent(&sequencer.streams, stream, sequencer.wall_ms):
            continue
        if oldest == NULL or stream.used_s < oldest.used_s:
            oldest = stream
    return oldest


cdef bint _room_made(Sequencer *sequencer) noexcept nogil:
    """Let go of a global channel whose history has aged away; False: there is none."""
    cdef Stream *stream = _oldest_aged(sequencer)
    cdef RecChannel *say
    cdef uint32_t index
    if stream == NULL:
        return False
    stream_unlist(&sequencer.streams, stream)
    stream.history.let_go = 1
    for index in range(sequencer.worker_count):
        if not stream_routes_to(stream, index):
            continue
        say = _global(sequencer, worker_at(sequencer, index), stream)
        if say != NULL:
            say.channel = GLOBAL_GONE
        route_remove(&sequencer.streams, stream, index, 0)
    return True


cdef bint everybody_add(Sequencer *sequencer, Stream *stream, bint began_before) noexcept nogil:
    """A global stream has a position, or gets one now: tell all workers, if that is new. False: there is no room.

    With `began_before`, who was linked before and does not know of it missed its beginning. Else it begins here, unless
    something of it is kept: an earlier router had room for it. So does one that was let go.
    """
    cdef uint32_t index
    cdef Worker *worker
    if stream.history != NULL and stream.history.listed:
        return True
    while not stream_list(&sequencer.streams, stream):
        if not _room_made(sequencer):
            return False
    if stream.history.let_go or not (began_before or stream_is_kept(&sequencer.streams, stream, sequencer.wall_ms)):
        stream_begins(&sequencer.streams, stream, stream.epoch, stream.offset)
    stream.history.let_go = 0
    for index in range(sequencer.worker_count):
        worker = worker_at(sequencer, index)
        if worker.everybody and worker.knows_globals and worker.state >= WORKER_LINKING:
            _tell(sequencer, worker, stream, began_before and worker.before)
    return True


cdef void everybody_link(Sequencer *sequencer, Worker *worker) noexcept nogil:
    """A worker links: tell it of all global channels that it did not name."""
    cdef uint32_t place
    if not worker.everybody:
        return
    for place in range(sequencer.streams.globals):
        _tell(sequencer, worker, stream_at(&sequencer.streams, sequencer.streams.everybody[place].slot), worker.before)


cdef void everybody_leave(Sequencer *sequencer, Worker *worker) noexcept nogil:
    """A worker hears of global channels elsewhere from now on."""
    cdef uint32_t place
    worker.knows_globals = False
    for place in range(sequencer.streams.globals):
        route_remove(&sequencer.streams, stream_at(&sequencer.streams, sequencer.streams.everybody[place].slot),
                     worker_index(sequencer, worker), 0)
