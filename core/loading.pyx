"""Loading: what waits for a stream that is read from the log, and what comes when it was."""

from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from core.codes cimport OVERLOADED
from core.following cimport following_know
from core.leading cimport SHARD_FEEDING
from core.log_records cimport LOG_BEGINS, LOG_MESSAGE, LogRecord, log_record_body, log_record_fits
from core.mailbox cimport NOTE_LOG_LOAD, mailbox_put, note_init
from core.records cimport (CATCHUP_CURSOR, CATCHUP_LISTED, CATCHUP_START, REC_CATCHUP, REC_CAUGHT, REC_HISTORY,
                           REC_PUBLISH, REC_REPLY, REC_SUBSCRIBE, REC_SURVEY, REC_UNSUBSCRIBE, SURVEY_AS_IS,
                           SURVEY_MESSAGES, RecBody, RecCatchup, RecCaught, RecChannel, RecHistory, RecPublish)
from core.sequencer cimport (WORKER_LINKING, worker_at, worker_index, worker_published, worker_say,
                             worker_subscribed)
from core.slab cimport invariant
from core.stream cimport (Stored, Stream, StreamWaiting, stream_adopt, stream_at, stream_begins, stream_last_epoch,
                          stream_name, stream_open, stream_shard, stream_shut, stream_store, stream_wanted)


cdef inline uint32_t _surveyed(const Record *record) noexcept nogil:
    return (<const RecHistory *> record).limit


cdef inline bint _reads(const Record *record) noexcept nogil:
    """Whether it is about messages of the channel, wherever its position is."""
    return record.kind == REC_HISTORY or record.kind == REC_SURVEY and _surveyed(record) == SURVEY_MESSAGES


cdef const char *_name_of(const Record *record, uint32_t *size) noexcept nogil:
    """The channel that a record is about, or NULL when it is about none."""
    size[0] = record.aux
    if record.kind == REC_PUBLISH:
        return <const char *> record + sizeof(RecPublish)
    if record.kind == REC_SUBSCRIBE or record.kind == REC_UNSUBSCRIBE:
        return <const char *> record + sizeof(RecChannel)
    if record.kind == REC_CATCHUP:
        return <const char *> record + sizeof(RecCatchup)
    if record.kind == REC_HISTORY or record.kind == REC_SURVEY and _surveyed(record) != SURVEY_AS_IS:
        return <const char *> record + sizeof(RecHistory)
    return NULL


cdef int _needs(const Stream *stream, const Record *record) noexcept nogil:
    """What of the stream has to be read before this can be done."""
    cdef const RecCatchup *catchup = <const RecCatchup *> record
    if stream.epoch == 0:
        return LOADING_MESSAGES if _reads(record) or record.kind == REC_CATCHUP else LOADING_POSITION
    if stream.history == NULL or stream.history.filled:
        return LOADING_NOT
    if _reads(record):
        return LOADING_MESSAGES
    if record.kind == REC_CATCHUP:
        # At the very end nothing is to be read, unless the answer would be `reset`: there the message itself decides.
        return LOADING_NOT if catchup.since_offset == stream.offset \
            and catchup.since_epoch >= stream_last_epoch(stream) \
            and not catchup.flags & (CATCHUP_CURSOR | CATCHUP_START | CATCHUP_LISTED) else LOADING_MESSAGES
    if record.kind == REC_SUBSCRIBE and (<const RecChannel *> record).epoch \
            and (<const RecChannel *> record).offset < stream.offset:
        return LOADING_MESSAGES
    return LOADING_NOT


cdef inline bint _is_refused(const Record *record) noexcept nogil:
    """Whether it may be refused for a log that is away, or for want of room: a worker says once where it has members,
    and where it has none, and so its routes wait."""
    return record.kind != REC_SUBSCRIBE and record.kind != REC_UNSUBSCRIBE


cdef void _refuse(Worker *worker, const Record *record, int code) noexcept nogil:
    """Answer what will not be done."""
    cdef RecBody *reply
    cdef RecCaught *caught
    if record.kind == REC_PUBLISH:
        worker_published(worker, (<const RecPublish *> record).seq, code, 0, 0)
    elif record.kind == REC_HISTORY or record.kind == REC_SURVEY:
        reply = <RecBody *> worker_say(worker, REC_REPLY, code, sizeof(RecBody), 0)
        if reply != NULL:
            reply.seq = (<const RecHistory *> record).seq
    elif record.kind == REC_SUBSCRIBE:
        worker_subscribed(worker, (<const RecChannel *> record).channel, code, 0, 0)
    elif record.kind == REC_CATCHUP:
        caught = <RecCaught *> worker_say(worker, REC_CAUGHT, code, sizeof(RecCaught), 0)
        if caught != NULL:
            caught.channel = (<const RecCatchup *> record).channel
            caught.seq = (<const RecCatchup *> record).seq


cdef void _append(Stream *stream, StreamWaiting *waiting) noexcept nogil:
    waiting.next = NULL
    if stream.history.waiting_last == NULL:
        stream.history.waiting = waiting
    else:
        stream.history.waiting_last.next = waiting
    stream.history.waiting_last = waiting


cdef void _wait(Sequencer *sequencer, Stream *stream, Worker *worker, const Record *record) noexcept nogil:
    """Keep a copy of the record until the load is done."""
    cdef StreamWaiting *waiting = NULL
    if sequencer.streams.waiting_bytes + record.size <= LOADING_BYTES_MAX or not _is_refused(record):
        waiting = <StreamWaiting *> malloc(sizeof(StreamWaiting) + record.size)
    if waiting == NULL:
        _refuse(worker, record, OVERLOADED)
        return
    waiting.worker = worker_index(sequencer, worker)
    waiting.worker_start = <uint32_t> worker.epoch
    waiting.size = record.size
    memcpy(<uint8_t *> waiting + sizeof(StreamWaiting), record, record.size)
    sequencer.streams.waiting_bytes += record.size
    _append(stream, waiting)


cdef bint _ask(Sequencer *sequencer, Stream *stream, int what) noexcept nogil:
    """Let the control thread load; False: its mailbox has no room, and `loads_ask` asks later."""
    cdef const uint8_t *name = <const uint8_t *> stream_name(&sequencer.streams, stream)
    cdef Note note
    note_init(&note, NOTE_LOG_LOAD)
    note.request = stream.history.slot
    note.first = what == LOADING_MESSAGES
    note.text_size = stream.name_size
    stream.history.loading = <uint8_t> what
    if mailbox_put(&sequencer.to_control, &note, name, name) < 0:
        stream.history.loading = <uint8_t> (what | LOADING_UNASKED)
        sequencer.streams.unasked += 1
        return False
    return True


cdef void loads_ask(Sequencer *sequencer) noexcept nogil:
    """Ask for what there was no room to ask for: O(streams), and only after a mailbox was full."""
    cdef uint32_t chunk, number
    cdef Stream *stream
    for chunk in range(sequencer.streams.slab.chunk_count):
        number = 0
        while number < (1u << sequencer.streams.slab.chunk_shift) and sequencer.streams.unasked \
                and sequencer.streams.slab.chunks[chunk].memory != NULL:
            stream = stream_at(&sequencer.streams, (chunk << sequencer.streams.slab.chunk_shift) | number)
            number += 1
            if stream.live != 1 or stream.history == NULL or not stream.history.loading & LOADING_UNASKED:
                continue
            sequencer.streams.unasked -= 1
            if not _ask(sequencer, stream, stream.history.loading & ~LOADING_UNASKED):
                return


cdef bint loading_takes(Sequencer *sequencer, Worker *worker, Record *record) noexcept nogil:
    """Whether a record has to wait for its stream, and was taken for that; else it is to be done now."""
    cdef uint32_t size
    cdef const char *name = _name_of(record, &size)
    cdef Stream *stream = NULL
    cdef int what
    if name != NULL and size:
        stream = stream_wanted(&sequencer.streams, name, size, sequencer.wall_ms)
    if stream == NULL:
        return False                    # refused by whoever does it
    if stream.history != NULL and stream.history.loading:
        _wait(sequencer, stream, worker, record)
        return True
    if record.kind == REC_UNSUBSCRIBE:
        return False
    what = _needs(stream, record)
    if what == LOADING_NOT:
        return False
    if stream.history == NULL and not stream_open(&sequencer.streams, stream):
        _refuse(worker, record, OVERLOADED)
        return True
    _ask(sequencer, stream, what)
    _wait(sequencer, stream, worker, record)
    return True


cdef void _know_position(Sequencer *sequencer, Stream *stream, const Note *note) noexcept nogil:
    """The log's answer: the position of a cold stream."""
    cdef uint32_t shard
    if stream.epoch:
        return
    shard = stream_shard(&sequencer.streams, stream)
    if sequencer.shards[shard].state == SHARD_FEEDING:
        following_know(sequencer, stream, note.first, note.second)
        return
    sequencer.streams.epochs[shard] = max(sequencer.streams.epochs[shard], note.first + 1)
    stream.epoch = sequencer.streams.epochs[shard]
    if note.second:
        stream_adopt(stream, note.first, note.second)


cdef void _know(Sequencer *sequencer, Stream *stream, const Note *note) noexcept nogil:
    """Likewise, and messages that are in its past."""
    cdef const uint8_t *data = <const uint8_t *> note + sizeof(Note)
    cdef size_t place = 0
    cdef const LogRecord *record
    cdef Stored head
    _know_position(sequencer, stream, note)
    while place < note.text_size and log_record_fits(<const LogRecord *> (data + place), note.text_size - place):
        record = <const LogRecord *> (data + place)
        place += record.size
        if record.kind == LOG_MESSAGE and record.offset <= stream.offset:   # beyond it: its commit is still to be told
            head.epoch = record.epoch
            head.offset = record.offset
            head.time_ms = record.time_ms
            head.size = record.body_size
            stream_store(&sequencer.streams, stream, &head, log_record_body(record), sequencer.wall_ms)
            if record.flags & LOG_BEGINS:
                stream_begins(&sequencer.streams, stream, head.epoch, head.offset - 1)


cdef void _run(Sequencer *sequencer, Stream *stream, StreamWaiting *waiting, int code, RunRecord run) noexcept nogil:
    """Do, or refuse, what waited, in its order. What has to wait again does so behind each other."""
    cdef StreamWaiting *next
    cdef Worker *worker
    cdef Record *record
    while waiting != NULL:
        next = waiting.next
        worker = worker_at(sequencer, waiting.worker)
        record = <Record *> (<uint8_t *> waiting + sizeof(StreamWaiting))
        sequencer.streams.waiting_bytes -= waiting.size
        if worker.state >= WORKER_LINKING and <uint32_t> worker.epoch == waiting.worker_start:
            if code == 0:
                run(sequencer, worker, record)
            elif _is_refused(record):
                _refuse(worker, record, code)
            elif not loading_takes(sequencer, worker, record):
                run(sequencer, worker, record)
        free(waiting)
        waiting = next


cdef void loading_done(Sequencer *sequencer, const Note *note, RunRecord run) noexcept nogil:
    """The control thread read a stream, or could not (`third`: code); `run` does a record of a worker."""
    cdef Stream *stream = stream_at(&sequencer.streams, <uint32_t> note.request)
    cdef StreamWaiting *waiting
    cdef bint with_messages
    invariant(stream.live == 1 and stream.history != NULL and stream.history.loading
              and not stream.history.loading & LOADING_UNASKED)
    if note.third == 0:
        _know(sequencer, stream, note)
    if note.conn:
        return                          # the next part of its messages comes behind this one
    waiting = stream.history.waiting
    with_messages = stream.history.loading == LOADING_MESSAGES
    stream.history.waiting = stream.history.waiting_last = NULL
    stream.history.loading = LOADING_NOT
    if note.third == 0:
        stream.history.filled = with_messages or stream.offset == 0
    if stream.history.given == 0 and not stream.history.listed:
        stream_shut(stream)             # nothing was ever said there, as far as is known
    _run(sequencer, stream, waiting, <int> note.third, run)
