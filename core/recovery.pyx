"""Recovery: records of the log into streams and keys, and old records sifted."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from core.batch cimport Batch, batch_free, batch_reserve
from core.keys cimport KeyName, Keys, key_find, key_keep, keys_ms
from core.log_index cimport history_age_ms
from core.log_records cimport (LOG_BEGINS, LOG_LAST, LOG_MESSAGE, LOG_POSITION, LogRecord, log_record_body,
                               log_record_fits, log_record_name)
from core.mailbox cimport MAILBOX_BYTES_MAX, NOTE_LOG_KEPT, mailbox_put, note_init
from core.namespaces cimport DOMAIN_GLOBAL, Namespace, namespace_of
from core.ordering cimport origin_name
from core.shards cimport SHARD_OF_GLOBALS
from core.stream cimport (Stored, Stream, stream_adopt, stream_begins, stream_find, stream_forget, stream_holds,
                          stream_is_silent, stream_kept, stream_last_epoch, stream_list, stream_open, stream_shard,
                          stream_store, stream_stored, stream_use, stream_wanted)


cdef void _key_again(Sequencer *sequencer, Keys *keys, const KeyName *name, const LogRecord *record) noexcept nogil:
    """Know a key for what is left of its window; the first position under it counts.

    A record from the future was made before the clock stepped back: its window begins now, which is no shorter.
    """
    cdef uint64_t age_ms = sequencer.wall_ms - record.time_ms if sequencer.wall_ms > record.time_ms else 0
    if age_ms <= keys.window_ms and key_find(keys, name, keys_ms(sequencer.now_ms)) == NULL:
        key_keep(keys, name, record.epoch, record.offset, keys_ms(sequencer.now_ms) - age_ms)


cdef void _keys_again(Sequencer *sequencer, const LogRecord *record) noexcept nogil:
    cdef KeyName name
    if record.key_high or record.key_low:
        name.high = record.key_high
        name.low = record.key_low
        _key_again(sequencer, &sequencer.keys, &name, record)
    elif record.origin_epoch:
        origin_name(sequencer, record.origin_epoch, record.origin_worker, record.origin_seq, &name)
        _key_again(sequencer, &sequencer.origins, &name, record)


cdef bint _is_of_before(Sequencer *sequencer, Stream *stream, const LogRecord *record) noexcept nogil:
    """Whether a record is of a stream of this name that was swept before this one was made.

    One that is made anew begins at offset 0 of a higher epoch: in one stream neither ever goes down, so where the epoch
    is above and the offset not, what came before is another's. A sift may have written its position into an old
    record's place, so that it comes first.
    """
    cdef uint64_t last = stream_last_epoch(stream)
    cdef uint32_t kept = stream_kept(stream)
    if record.offset > stream.offset:
        return record.epoch < last
    if last and record.epoch > last:
        stream_forget(&sequencer.streams, stream, record.epoch)
        stream_adopt(stream, record.epoch, record.offset)
        stream.history.given = record.offset
    elif kept and stream_stored(stream, kept - 1).offset >= record.offset \
            and stream_stored(stream, kept - 1).epoch < record.epoch:
        stream_forget(&sequencer.streams, stream, record.epoch)
    return False


cdef uint64_t _epoch_above(Sequencer *sequencer, const Stream *stream, const LogRecord *record) noexcept nogil:
    """That of its shard, raised above the record's if need be."""
    cdef uint64_t *epoch = &sequencer.streams.epochs[stream_shard(&sequencer.streams, stream)]
    epoch[0] = max(epoch[0], record.epoch + 1)
    return epoch[0]


cdef bint _stream_again(Sequencer *sequencer, Stream *stream, const LogRecord *record) noexcept nogil:
    """One record of a stream; False: out of memory."""
    cdef Stored head
    if stream.history == NULL and not stream_open(&sequencer.streams, stream):
        return False
    if record.epoch >= stream.epoch:    # a clock that stepped back, or it is cold: what comes must be above what was
        stream.epoch = _epoch_above(sequencer, stream, record)
    if _is_of_before(sequencer, stream, record):
        return True
    if record.offset > stream.offset:
        stream_adopt(stream, record.epoch, record.offset)
    if record.offset == stream.offset:
        stream_use(stream, record.time_ms)
    if record.kind == LOG_MESSAGE:
        head.epoch = record.epoch
        head.offset = record.offset
        head.time_ms = record.time_ms
        head.size = record.body_size
        stream_store(&sequencer.streams, stream, &head, log_record_body(record), sequencer.wall_ms)
    if stream.domain == DOMAIN_GLOBAL and not stream_is_silent(&sequencer.streams, stream, sequencer.wall_ms):
        stream_list(&sequencer.streams, stream)     # beyond the bound: when something is said there
    if record.flags & LOG_BEGINS:
        stream_begins(&sequencer.streams, stream, record.epoch, record.offset - 1)
    return True


cdef int64_t recover_records(Sequencer *sequencer, const uint8_t *data, size_t size, bint complete) noexcept nogil:
    """Take a batch of the log; how many records are of unknown namespaces, -1: no batch."""
    cdef size_t place = 0
    cdef int64_t passed = 0
    cdef const LogRecord *record
    cdef Stream *stream
    while place < size:
        record = <const LogRecord *> (data + place)
        if not log_record_fits(record, size - place):
            return -1
        place += record.size
        _keys_again(sequencer, record)
        if not complete:
            continue
        stream = stream_wanted(&sequencer.streams, log_record_name(record), record.name_size, sequencer.wall_ms)
        if stream == NULL and namespace_of(&sequencer.namespaces, log_record_name(record), record.name_size) == NULL:
            passed += 1
        elif stream == NULL or not _stream_again(sequencer, stream, record):
            sequencer.streams.cold = sequencer.streams.logged   # there is no room for it: it is read when it is wanted
    return passed


cdef bint _global_again(Sequencer *sequencer, const LogRecord *record) noexcept nogil:
    """A global stream stands at this record's position; False: there is no place for it."""
    cdef Stream *stream = stream_wanted(&sequencer.streams, log_record_name(record), record.name_size,
                                        sequencer.wall_ms)
    if stream == NULL or stream.domain != DOMAIN_GLOBAL or stream.history == NULL \
            and not stream_open(&sequencer.streams, stream):
        return False
    if record.epoch >= stream.epoch:
        stream.epoch = _epoch_above(sequencer, stream, record)
    if record.offset > stream.offset:
        stream_adopt(stream, record.epoch, record.offset)
    stream_use(stream, record.time_ms)
    if not stream_is_silent(&sequencer.streams, stream, sequencer.wall_ms):
        stream_list(&sequencer.streams, stream)     # beyond the bound: when something is said there
    return True


cdef int64_t recover_globals(Sequencer *sequencer, const uint8_t *data, size_t size) noexcept nogil:
    """Know of global streams, each by a record of its last position; how many had no place, -1: no batch."""
    cdef size_t place = 0
    cdef int64_t passed = 0
    while place < size:
        if not log_record_fits(<const LogRecord *> (data + place), size - place):
            return -1
        passed += not _global_again(sequencer, <const LogRecord *> (data + place))
        place += (<const LogRecord *> (data + place)).size
    return passed


cdef void recover_shard(Sequencer *sequencer, const Note *note) noexcept nogil:
    """NOTE_LOG_RECOVER: what the log has of a shard that is going to be led: keys, or with `first` global channels,
    under the epoch `second`."""
    cdef const uint8_t *data = <const uint8_t *> note + sizeof(Note)
    if note.first:
        sequencer.streams.epochs[SHARD_OF_GLOBALS] = max(sequencer.streams.epochs[SHARD_OF_GLOBALS], note.second)
        recover_globals(sequencer, data, note.text_size)
    else:
        recover_records(sequencer, data, note.text_size, False)


# --------------------------------------------------------------------------------------------------------- the sift


cdef bint _stays(Batch *kept, const LogRecord *record, bint whole) noexcept nogil:
    """A record stays, whole or as its position alone; False: out of memory."""
    cdef uint32_t used = <uint32_t> sizeof(LogRecord) + record.name_size + (record.body_size if whole else 0)
    cdef uint32_t size = (used + 7) & ~(<uint32_t> 7)
    cdef uint8_t *room = batch_reserve(kept, size)
    if room == NULL:
        return False
    memcpy(room, record, used)
    memset(room + used, 0, size - used)
    (<LogRecord *> room).size = size
    if not whole:
        (<LogRecord *> room).kind = LOG_POSITION
        (<LogRecord *> room).body_size = 0
    return True


cdef bint _position_stays(Batch *kept, Stream *stream, const LogRecord *old) noexcept nogil:
    """The stream's present position, in place of an old record whose message nobody keeps."""
    cdef uint32_t at = kept.size
    cdef LogRecord *record
    if not _stays(kept, old, False):
        return False
    record = <LogRecord *> (kept.data + at)
    record.epoch = stream_last_epoch(stream) or stream.epoch
    record.offset = stream.offset
    record.time_ms = <uint64_t> stream.used_s * 1000
    record.key_high = record.key_low = record.origin_epoch = 0
    record.flags &= ~(<uint32_t> LOG_BEGINS)
    record.origin_worker = record.origin_seq = 0
    return True


cdef bint _key_counts(Sequencer *sequencer, const LogRecord *record) noexcept nogil:
    """Whether the record's key or origin is inside its window."""
    if record.key_high or record.key_low:
        return record.time_ms + sequencer.keys.window_ms >= sequencer.wall_ms
    return record.origin_epoch != 0 and record.time_ms + sequencer.origins.window_ms >= sequencer.wall_ms


cdef bint _last_is_kept(Stream *stream) noexcept nogil:
    """Whether a message tells the position."""
    cdef uint32_t count = stream_kept(stream)
    return stream.offset == 0 or (count != 0 and stream_stored(stream, count - 1).offset == stream.offset)


cdef bint _is_told_here(Stream *stream, const LogRecord *record) noexcept nogil:
    """Whether the position has to stand in this record's place.

    Memory may keep the last message when the log does not: of that one a position is asked about (`places_ask`).
    """
    if record.flags & LOG_LAST and record.kind == LOG_POSITION:
        return True
    return not _last_is_kept(stream) and (stream.history.filled or record.flags & LOG_LAST)


cdef bint _is_kept(Sequencer *sequencer, const Stream *stream, const LogRecord *record) noexcept nogil:
    """Whether an old record is kept that memory cannot tell about: until it has aged."""
    cdef const Namespace *namespace = namespace_of(&sequencer.namespaces, log_record_name(record), record.name_size)
    if namespace == NULL:               # its messages are nobody's now, and there again once it is configured again
        return record.time_ms + history_age_ms(namespace) >= sequencer.wall_ms
    if not sequencer.streams.cold or stream != NULL and stream.history != NULL and stream.history.filled:
        return False
    return namespace.history_messages != 0 and record.time_ms + history_age_ms(namespace) >= sequencer.wall_ms


cdef bint _sift(Sequencer *sequencer, Batch *kept, uint64_t request, const LogRecord *record) noexcept nogil:
    """Keep one old record if anything needs it; False: out of memory."""
    cdef Stream *stream = stream_find(&sequencer.streams, log_record_name(record), record.name_size)
    if _is_kept(sequencer, stream, record):
        if record.kind == LOG_MESSAGE or record.flags & LOG_LAST:
            return _stays(kept, record, record.kind == LOG_MESSAGE)
    if record.kind == LOG_MESSAGE and stream != NULL and stream_holds(stream, record.epoch, record.offset):
        return _stays(kept, record, True)
    if _key_counts(sequencer, record):  # whether or not its stream is still in memory
        return _stays(kept, record, False)
    if stream == NULL or stream.history == NULL:
        return True
    if stream.history.sifted != request and _is_told_here(stream, record):
        stream.history.sifted = request
        return _position_stays(kept, stream, record)
    return True


cdef void sift_records(Sequencer *sequencer, uint64_t request, const uint8_t *data, size_t size) noexcept nogil:
    """Tell the control thread which of some old records have to stay. Without memory they all do."""
    cdef size_t place = 0
    cdef Batch kept
    cdef Note note
    memset(&kept, 0, sizeof(kept))
    kept.bytes_max = <uint32_t> (size + 64) if size < MAILBOX_BYTES_MAX else MAILBOX_BYTES_MAX
    note_init(&note, NOTE_LOG_KEPT)
    note.request = request
    while place < size and log_record_fits(<const LogRecord *> (data + place), size - place):
        if not _sift(sequencer, &kept, request, <const LogRecord *> (data + place)):
            note.text_size = <uint32_t> size
            mailbox_put(&sequencer.to_control, &note, data, data)
            batch_free(&kept)
            return
        place += (<const LogRecord *> (data + place)).size
    note.text_size = kept.size
    mailbox_put(&sequencer.to_control, &note, kept.data, data)
    batch_free(&kept)
