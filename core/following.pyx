"""Following: records of another region's leader, and what waits for them."""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memmove

from core.batch cimport batch_clear, batch_write
from core.catchup cimport catchup_epoch, catchup_take
from core.codes cimport UNAVAILABLE
from core.everybody cimport everybody_add
from core.leading cimport SHARD_FEEDING, shard_is_said
from core.log_records cimport LOG_EVENT, LOG_MESSAGE, LogRecord, log_record_body, log_record_fits, log_record_name
from core.namespaces cimport DOMAIN_GLOBAL, domain_in
from core.ordering cimport message_deliver
from core.presence cimport event_route
from core.records cimport REC_CAUGHT, RecCaught
from core.sequencer cimport WORKER_LINKED, worker_at, worker_index, worker_say
from core.stream cimport (Stored, stream_adopt, stream_at, stream_find, stream_forget, stream_open, stream_shard,
                          stream_store, stream_use, stream_wanted)

cdef enum:
    SHARD_EPOCH_BITS = 24       # of an epoch, below its shard's (router/shard_keeper.py)

ctypedef struct Ahead:          # the head of an entry of what waits; a CATCHUP follows
    uint64_t until_ms
    uint32_t worker             # index
    uint32_t start              # low half of its epoch: the index may be another's by then


cdef inline bint _is_older(uint64_t epoch, uint64_t offset, uint64_t than_epoch, uint64_t than_offset) noexcept nogil:
    return epoch < than_epoch or epoch == than_epoch and offset < than_offset


cdef inline void _begin_epoch(Stream *stream, uint64_t epoch) noexcept nogil:
    """The next position is of this epoch, if it is a later one: positions up to here stay those of older ones."""
    if epoch > stream.epoch:
        stream.epoch = epoch
        if stream.history != NULL:
            stream.history.base = stream.offset


cdef void following_raise(Sequencer *sequencer, uint32_t shard, uint64_t epoch) noexcept nogil:
    """The shard's leader gives positions under this epoch from now on: O(streams), once a leader."""
    cdef uint32_t index
    cdef Stream *stream
    if epoch <= sequencer.streams.epochs[shard]:
        return
    sequencer.streams.epochs[shard] = epoch
    for index in range(sequencer.streams.slab.chunk_count << sequencer.streams.slab.chunk_shift):
        if sequencer.streams.slab.chunks[index >> sequencer.streams.slab.chunk_shift].memory == NULL:
            continue
        stream = stream_at(&sequencer.streams, index)
        if stream.live == 1 and stream.epoch and stream_shard(&sequencer.streams, stream) == shard:
            _begin_epoch(stream, epoch)
    sequencer.ahead_due = True


cdef void following_know(Sequencer *sequencer, Stream *stream, uint64_t epoch, uint64_t offset) noexcept nogil:
    """The log's position of a stream that was not known; what came while it was read may be newer."""
    cdef uint32_t shard = stream_shard(&sequencer.streams, stream)
    if stream.history.passed and _is_older(epoch, offset, stream.history.last_epoch, stream.history.given):
        if stream.history.given <= offset:
            stream_forget(&sequencer.streams, stream, stream.history.last_epoch)
        epoch = stream.history.last_epoch
        offset = stream.history.given
    stream.history.passed = False
    stream.epoch = max(sequencer.shards[shard].epoch, epoch)
    if offset:
        stream_adopt(stream, epoch, offset)


cdef bint following_lacks(const Stream *stream, uint64_t epoch, uint64_t offset) noexcept nogil:
    """Whether this position was given behind all that is here."""
    if epoch >> SHARD_EPOCH_BITS != stream.epoch >> SHARD_EPOCH_BITS:
        return epoch > stream.epoch and offset != 0
    return offset > stream.offset and epoch >= stream.epoch


cdef bint _wait(Sequencer *sequencer, Worker *worker, const RecCatchup *record, uint64_t until_ms) noexcept nogil:
    """Keep what asks from beyond; False: there is no room."""
    cdef Ahead ahead
    ahead.until_ms = until_ms
    ahead.worker = worker_index(sequencer, worker)
    ahead.start = <uint32_t> worker.epoch
    if sequencer.ahead.size + sizeof(Ahead) + record.head.size > sequencer.ahead.bytes_max \
            or batch_write(&sequencer.ahead, &ahead, sizeof(Ahead)) < 0:
        return False
    if batch_write(&sequencer.ahead, record, record.head.size) < 0:
        sequencer.ahead.size -= <uint32_t> sizeof(Ahead)
        return False
    return True


cdef bint _is_beyond(Sequencer *sequencer, RecCatchup *record) noexcept nogil:
    """Whether a position is one that what is here does not reach. One that its leader gave under an epoch that is not
    known here yet, though its message is, is told by that."""
    cdef Stream *stream = stream_find(&sequencer.streams, <const char *> record + sizeof(RecCatchup), record.head.aux)
    if stream == NULL or stream.epoch == 0:
        return False
    if following_lacks(stream, record.since_epoch, record.since_offset):
        return True
    if record.since_epoch > stream.epoch:
        record.since_epoch = catchup_epoch(stream, record.since_offset)
    return False


cdef bint following_waits(Sequencer *sequencer, Worker *worker, RecCatchup *record) noexcept nogil:
    """Whether a CATCHUP asks from beyond what is here, and was taken until more is."""
    return sequencer.shards[record.head.shard].state == SHARD_FEEDING and _is_beyond(sequencer, record) \
        and _wait(sequencer, worker, record, sequencer.now_ms + FOLLOWING_WAIT_MS)


cdef void _serve(Sequencer *sequencer, const Ahead *ahead, RecCatchup *record) noexcept nogil:
    """Answer it if it can be now; else it waits on, for so long. What was not there by then may be on its way still:
    who asks is to come again."""
    cdef RecCaught *refusal
    cdef Worker *worker = worker_at(sequencer, ahead.worker)
    if worker.state != WORKER_LINKED or <uint32_t> worker.epoch != ahead.start \
            or not shard_is_said(worker, record.head.shard):
        return                          # it asks again, if it still wants to know
    if sequencer.shards[record.head.shard].state != SHARD_FEEDING or not _is_beyond(sequencer, record):
        catchup_take(sequencer, worker, record)
    elif ahead.until_ms > sequencer.now_ms:
        _wait(sequencer, worker, record, ahead.until_ms)    # the room that it had is there
    else:
        refusal = <RecCaught *> worker_say(worker, REC_CAUGHT, UNAVAILABLE, sizeof(RecCaught), 0)
        if refusal != NULL:
            refusal.channel = record.channel
            refusal.seq = record.seq


cdef void following_turn(Sequencer *sequencer) noexcept nogil:
    """Once a turn: what waits, if something came or the first of it has waited for long."""
    cdef uint32_t end = sequencer.ahead.size
    cdef uint32_t place = 0
    cdef uint32_t size
    cdef uint8_t held[512]
    if end == 0 or not sequencer.ahead_due and (<const Ahead *> sequencer.ahead.data).until_ms > sequencer.now_ms:
        sequencer.ahead_due = False
        return
    sequencer.ahead_due = False
    while place < end:
        size = <uint32_t> sizeof(Ahead) \
            + (<const RecCatchup *> (sequencer.ahead.data + place + sizeof(Ahead))).head.size
        memcpy(held, sequencer.ahead.data + place, size)    # it may move when more is added
        place += size
        _serve(sequencer, <const Ahead *> held, <RecCatchup *> (held + sizeof(Ahead)))
    if sequencer.ahead.size == end:
        batch_clear(&sequencer.ahead)
        return
    sequencer.ahead.size -= end
    memmove(sequencer.ahead.data, sequencer.ahead.data + end, sequencer.ahead.size)


# ------------------------------------------------------------------------------------------------------- the records


cdef Stream *_stream_of(Sequencer *sequencer, const LogRecord *record) noexcept nogil:
    """The stream of a record, if anybody may hear it here; NULL: it is read from the log when it is wanted."""
    cdef Stream *stream = stream_find(&sequencer.streams, log_record_name(record), record.name_size)
    if stream == NULL and domain_in(&sequencer.namespaces, log_record_name(record), record.name_size) == DOMAIN_GLOBAL:
        stream = stream_wanted(&sequencer.streams, log_record_name(record), record.name_size, sequencer.wall_ms)
    if stream == NULL or stream.epoch == 0 and stream.domain != DOMAIN_GLOBAL and stream.history == NULL:
        return NULL
    if stream.history == NULL and not stream_open(&sequencer.streams, stream):
        return NULL
    return stream


cdef void _pass(Sequencer *sequencer, Stream *stream, const Stored *head, const uint8_t *body) noexcept nogil:
    """It came while the stream's position is read, maybe from before it."""
    if not stream.history.passed or not _is_older(head.epoch, head.offset, stream.history.last_epoch,
                                                  stream.history.given):
        stream.history.last_epoch = head.epoch
        stream.history.given = head.offset
        stream.history.passed = True
    stream_store(&sequencer.streams, stream, head, body, sequencer.wall_ms)


cdef void _step(Sequencer *sequencer, Stream *stream, const Stored *head) noexcept nogil:
    """The stream stands right before this message."""
    if stream.epoch == 0 or head.offset != stream.offset + 1:
        if head.offset <= stream.offset:        # it was forgotten, and began anew
            stream_forget(&sequencer.streams, stream, head.epoch)
            stream.history.given = head.offset - 1
        stream_adopt(stream, head.epoch, head.offset - 1)
        stream.history.filled = False
        sequencer.streams.cold = sequencer.streams.logged
    _begin_epoch(stream, head.epoch)


cdef void _event(Sequencer *sequencer, const LogRecord *record) noexcept nogil:
    """It is for who is a member now; nobody else hears of it, and nothing of it is kept."""
    cdef Stream *stream = stream_find(&sequencer.streams, log_record_name(record), record.name_size)
    if stream != NULL:
        event_route(sequencer, stream, log_record_body(record), record.body_size)


cdef void _follow(Sequencer *sequencer, const LogRecord *record) noexcept nogil:
    cdef Stream *stream
    cdef Stored head
    if sequencer.shards[record.shard].state != SHARD_FEEDING:
        return
    if record.kind == LOG_EVENT:
        _event(sequencer, record)
    if record.kind != LOG_MESSAGE:
        return
    stream = _stream_of(sequencer, record)
    if stream == NULL:
        return
    head.epoch = record.epoch
    head.offset = record.offset
    head.time_ms = record.time_ms
    head.size = record.body_size
    if stream.epoch == 0 and stream.history.loading:
        _pass(sequencer, stream, &head, log_record_body(record))
        return
    if record.offset <= stream.offset and record.epoch <= stream.history.last_epoch:
        return                          # it is here already
    _step(sequencer, stream, &head)
    stream_use(stream, record.time_ms)
    if stream.domain == DOMAIN_GLOBAL:
        everybody_add(sequencer, stream, False)
    stream.history.given = max(stream.history.given, record.offset)
    message_deliver(sequencer, stream, &head, log_record_body(record))


cdef void following_records(Sequencer *sequencer, const Note *note) noexcept nogil:
    """NOTE_FOLLOWED: deliver records that this region's log has, and those that are in none."""
    cdef const uint8_t *data = <const uint8_t *> note + sizeof(Note)
    cdef size_t place = 0
    while place < note.text_size and log_record_fits(<const LogRecord *> (data + place), note.text_size - place):
        if (<const LogRecord *> (data + place)).shard < sequencer.shard_count:
            _follow(sequencer, <const LogRecord *> (data + place))
        place += (<const LogRecord *> (data + place)).size
    sequencer.ahead_due = sequencer.ahead.size != 0
