"""Ordering: positions, repeated publishes, routes, and what happens at the commit of a batch."""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from core.abroad cimport abroad_message
from core.codes cimport BAD_REQUEST, NO_SUCH_CHANNEL, OVERLOADED, TOO_MANY_CHANNELS, UNAVAILABLE
from core.everybody cimport everybody_add
from core.hash cimport hash_bytes
from core.keys cimport Key, KeyName, key_find, key_keep, key_name, keys_ms
from core.ledger cimport (COUNT_LOG_BATCHES, COUNT_LOG_RECORDS, COUNT_MESSAGES_ROUTED, COUNT_MESSAGES_SEQUENCED,
                          COUNT_NOT_LOGGED, COUNT_REPEATED_KEYS, GAUGE_LOG_BYTES, ledger_count, ledger_gauge)
from core.log_out cimport (LateAnswer, LogChunk, log_done, log_due, log_has_room, log_is_there, log_late,
                           log_reserve, log_sent, log_shrink, log_under_way)
from core.log_records cimport LOG_BEGINS, LOG_MESSAGE, LOG_REPLICATED, LOG_WAITS, log_record_body
from core.mailbox cimport NOTE_LOG_BATCH, Note, mailbox_put, note_init
from core.mpack cimport MpWriter, mp_write_array, mp_write_map, mp_write_raw, mp_write_str, mp_write_uint
from core.namespaces cimport ACK_REPLICATED, ACK_SEQUENCED, DOMAIN_GLOBAL, Namespace, namespace_of
from core.records cimport PUBLISH_AGAIN, REC_MESSAGE, RecMessage
from core.replicating cimport (KNOWN_REPLICATED, KNOWN_UNCERTAIN, Replicating, replicating_add, replicating_again,
                               replicating_takes)
from core.sequencer cimport (MESSAGE_ENVELOPE_BYTES, WORKER_LINKING, worker_at, worker_index,
                             worker_published, worker_say)
from core.slab cimport invariant
from core.stream cimport (Route, stream_advance, stream_at, stream_began_at, stream_find, stream_name, stream_reach,
                          stream_route, stream_store, stream_take_back, stream_use, stream_waits, stream_wanted)

ctypedef struct Publish:        # a PUBLISH, taken apart
    RecPublish *record          # borrowed, with all below, until the batch that brought it is done with
    const uint8_t *name
    const uint8_t *key
    const uint8_t *sender
    const uint8_t *data
    KeyName keyed               # of its key or, without one, of its origin; both 0: neither


cdef inline uint32_t _start(const Worker *worker) noexcept nogil:
    """What tells a worker's start from another's at the same index."""
    return <uint32_t> worker.epoch


cdef void origin_name(Sequencer *sequencer, uint64_t start, uint32_t number, uint32_t seq,
                      KeyName *name) noexcept nogil:
    """What stands for a worker's request in the table of origins."""
    cdef uint64_t text[2]
    text[0] = start
    text[1] = <uint64_t> number << 32 | seq
    name.high = hash_bytes(&sequencer.keys.first, <uint8_t *> text, sizeof(text))
    name.low = text[1]


cdef bint _publish_read(Sequencer *sequencer, Worker *worker, RecPublish *record, Publish *publish) noexcept nogil:
    """Take a record apart; False: a part is longer than the protocol allows."""
    publish.record = record
    publish.name = <const uint8_t *> record + sizeof(RecPublish)
    publish.key = publish.name + record.head.aux
    publish.sender = publish.key + record.key_size
    publish.data = publish.sender + record.sender_size
    publish.keyed.high = publish.keyed.low = 0
    if record.sender_size > 255 or record.head.aux > 255 \
            or record.data_size > sequencer.scratch_bytes - MESSAGE_ENVELOPE_BYTES:
        return False
    if record.key_size:
        return key_name(&sequencer.keys, publish.name, record.head.aux, publish.sender, record.sender_size,
                        publish.key, record.key_size, &publish.keyed) == 0
    if record.seq:
        origin_name(sequencer, worker.epoch, worker.number, record.seq, &publish.keyed)
    return True


cdef Key *_first_of(Sequencer *sequencer, Publish *publish) noexcept nogil:
    """What an earlier publish of the same got, or NULL. Without a key only what is said to be sent again can repeat."""
    if publish.record.key_size:
        return key_find(&sequencer.keys, &publish.keyed, keys_ms(sequencer.now_ms))
    if publish.record.seq and publish.record.flags & PUBLISH_AGAIN:
        return key_find(&sequencer.origins, &publish.keyed, keys_ms(sequencer.now_ms))
    return NULL


cdef inline bint _is_replicated(Sequencer *sequencer, const Publish *publish) noexcept nogil:
    """Whether another region is to have it before it is answered."""
    cdef const Namespace *namespace
    if not sequencer.bridged:
        return False
    namespace = namespace_of(&sequencer.namespaces, <const char *> publish.name, publish.record.head.aux)
    return namespace != NULL and namespace.ack == ACK_REPLICATED


cdef void _answer_known(Sequencer *sequencer, Worker *worker, const Publish *publish, const Stream *stream,
                        const Key *first) noexcept nogil:
    """A repeated publish whose first one is in the log."""
    cdef Replicating entry
    cdef int known = KNOWN_REPLICATED
    if _is_replicated(sequencer, publish):
        entry.epoch = first.epoch
        entry.offset = first.offset
        entry.worker = worker_index(sequencer, worker)
        entry.worker_start = _start(worker)
        entry.seq = publish.record.seq
        known = replicating_again(sequencer, stream, publish.record.head.shard, &entry)
    if known == KNOWN_UNCERTAIN:
        worker_published(worker, publish.record.seq, UNAVAILABLE, 0, 0)
    elif known == KNOWN_REPLICATED:
        worker_published(worker, publish.record.seq, 0, first.epoch, first.offset)


cdef void _answer_again(Sequencer *sequencer, Worker *worker, Publish *publish, const Key *first) noexcept nogil:
    """A repeated publish: answered with the first position, at its commit if it still waits for the log."""
    cdef Stream *stream = stream_find(&sequencer.streams, <const char *> publish.name, publish.record.head.aux)
    cdef LateAnswer *late
    ledger_count(sequencer.ledger, COUNT_REPEATED_KEYS, 1)
    if publish.record.seq == 0:
        return
    if stream == NULL or not stream_waits(stream, first.epoch, first.offset):
        _answer_known(sequencer, worker, publish, stream, first)
        return
    late = log_late(&sequencer.log)
    if late == NULL:
        worker_published(worker, publish.record.seq, UNAVAILABLE, 0, 0)
        return
    late.epoch = first.epoch
    late.offset = first.offset
    late.worker = worker_index(sequencer, worker)
    late.worker_start = _start(worker)
    late.seq = publish.record.seq
    late.stream = stream.history.slot + 1 if _is_replicated(sequencer, publish) else 0
    late.shard = publish.record.head.shard
    late.reserved = 0


cdef uint32_t _message_encode(Sequencer *sequencer, Stream *stream, const Publish *publish, uint8_t *room,
                              uint32_t room_size) noexcept nogil:
    """[9, channel, offset, data, {from, time, epoch}]; its size. The room is enough for what `_publish_read` let in."""
    cdef MpWriter writer
    writer.p = room
    writer.end = room + room_size
    writer.overflow = False
    mp_write_array(&writer, 5)
    mp_write_uint(&writer, 9)
    mp_write_str(&writer, stream_name(&sequencer.streams, stream), stream.name_size)
    mp_write_uint(&writer, stream.history.given)
    mp_write_raw(&writer, publish.data, publish.record.data_size)
    mp_write_map(&writer, 3)
    mp_write_str(&writer, b"from", 4)
    mp_write_str(&writer, <const char *> publish.sender, publish.record.sender_size)
    mp_write_str(&writer, b"time", 4)
    mp_write_uint(&writer, sequencer.wall_ms)
    mp_write_str(&writer, b"epoch", 5)
    mp_write_uint(&writer, stream.epoch)
    invariant(not writer.overflow)
    return <uint32_t> (writer.p - room)


cdef inline void _message_say(Sequencer *sequencer, Worker *worker, uint64_t channel, const Stored *head,
                              const uint8_t *body) noexcept nogil:
    """Add an encoded message to one worker's batch."""
    cdef RecMessage *record = <RecMessage *> worker_say(worker, REC_MESSAGE, 0 if channel else 1, sizeof(RecMessage),
                                                        head.size)
    if record == NULL:
        return
    record.channel = channel
    record.epoch = head.epoch
    record.offset = head.offset
    record.body_size = head.size
    memcpy(<uint8_t *> record + sizeof(RecMessage), body, head.size)
    ledger_count(sequencer.ledger, COUNT_MESSAGES_ROUTED, 1)


cdef void _message_route(Sequencer *sequencer, Stream *stream, const Stored *head, const uint8_t *body) noexcept nogil:
    """Once to each worker with members; a global message to each worker that was told of its channel."""
    cdef uint32_t place
    cdef Route route
    for place in range(stream.route_count):
        route = stream_route(stream, place)
        _message_say(sequencer, worker_at(sequencer, route.worker), route.channel, head, body)


cdef void message_deliver(Sequencer *sequencer, Stream *stream, const Stored *head, const uint8_t *body) noexcept nogil:
    """Members are told of the message, and it is kept for those who come later."""
    stream_reach(stream, head.epoch, head.offset)
    _message_route(sequencer, stream, head, body)
    stream_store(&sequencer.streams, stream, head, body, sequencer.wall_ms)


cdef LogRecord *_log_write(Sequencer *sequencer, Worker *worker, Stream *stream, const Publish *publish,
                           uint32_t flags) noexcept nogil:
    """The message as a record of the batch that fills; NULL: out of memory."""
    cdef uint32_t most = <uint32_t> sizeof(LogRecord) + stream.name_size + publish.record.data_size \
        + MESSAGE_ENVELOPE_BYTES + 8
    cdef LogRecord *record = <LogRecord *> log_reserve(&sequencer.log, most)
    cdef uint8_t *body
    cdef uint32_t used
    if record == NULL:
        return NULL
    memset(record, 0, sizeof(LogRecord))
    record.kind = LOG_MESSAGE
    record.name_size = stream.name_size
    record.shard = publish.record.head.shard
    record.epoch = stream.epoch
    record.offset = stream.history.given
    record.time_ms = sequencer.wall_ms
    if publish.record.key_size:
        record.key_high = publish.keyed.high
        record.key_low = publish.keyed.low
    elif publish.record.seq:
        record.origin_epoch = worker.epoch
        record.origin_worker = worker.number
        record.origin_seq = publish.record.seq
    record.flags = flags | (LOG_BEGINS if stream_began_at(&sequencer.streams, stream, record.offset) else 0)
    record.stream = stream.history.slot
    record.worker = worker_index(sequencer, worker)
    record.worker_start = _start(worker)
    record.seq = publish.record.seq
    body = <uint8_t *> record + sizeof(LogRecord) + stream.name_size
    memcpy(<uint8_t *> record + sizeof(LogRecord), publish.name, stream.name_size)
    record.body_size = _message_encode(sequencer, stream, publish, body, publish.record.data_size
                                       + MESSAGE_ENVELOPE_BYTES)
    used = <uint32_t> sizeof(LogRecord) + stream.name_size + record.body_size
    memset(<uint8_t *> record + used, 0, 8)
    record.size = (used + 7) & ~(<uint32_t> 7)
    log_shrink(&sequencer.log, most - record.size)
    stream.history.under_way += 1
    return record


cdef inline uint32_t _log_size(const Publish *publish) noexcept nogil:
    """The most that a publish adds to the log."""
    return <uint32_t> sizeof(LogRecord) + 256 + publish.record.data_size + MESSAGE_ENVELOPE_BYTES


cdef int _log_refuses(Sequencer *sequencer, const Publish *publish, const Namespace *namespace) noexcept nogil:
    """Why the log cannot take a message that has to wait for it, as a code; 0: it can, or needs not."""
    if not log_is_there(&sequencer.log) or namespace.ack == ACK_SEQUENCED or namespace.history_messages == 0:
        return 0
    if not sequencer.log.available or sequencer.bridged and namespace.ack == ACK_REPLICATED \
            and not replicating_takes(sequencer):
        return UNAVAILABLE
    return 0 if log_has_room(&sequencer.log, _log_size(publish)) else OVERLOADED


cdef bint _order(Sequencer *sequencer, Worker *worker, const Publish *publish, Stream *stream,
                 const Namespace *namespace) noexcept nogil:
    """The message has the position `given`: log it, or deliver and answer it, or both. False: it has to be in the log,
    which has no memory for it; nothing was done."""
    cdef bint waits = namespace.ack != ACK_SEQUENCED and namespace.history_messages and log_is_there(&sequencer.log)
    cdef uint32_t flags = LOG_REPLICATED | LOG_WAITS if sequencer.bridged and namespace.ack == ACK_REPLICATED \
        else LOG_WAITS
    cdef LogRecord *record = NULL
    cdef const uint8_t *body = sequencer.scratch
    cdef Stored head
    if log_is_there(&sequencer.log) and namespace.history_messages \
            and log_has_room(&sequencer.log, _log_size(publish)):
        record = _log_write(sequencer, worker, stream, publish, flags if waits else 0)
    if waits:
        return record != NULL                   # `log_committed` goes on with it
    head.epoch = stream.epoch
    head.offset = stream.history.given
    head.time_ms = sequencer.wall_ms
    if record != NULL:
        body = log_record_body(record)
        head.size = record.body_size
    else:
        if log_is_there(&sequencer.log) and namespace.history_messages:     # a hole: the log is away for too long
            ledger_count(sequencer.ledger, COUNT_NOT_LOGGED, 1)
        head.size = _message_encode(sequencer, stream, publish, sequencer.scratch, sequencer.scratch_bytes)
        if namespace.history_messages == 0:
            abroad_message(sequencer, stream, &head, body)
    message_deliver(sequencer, stream, &head, body)
    worker_published(worker, publish.record.seq, 0, head.epoch, head.offset)
    return True


cdef void publish_order(Sequencer *sequencer, Worker *worker, RecPublish *record) noexcept nogil:
    """Order one message: repeated?, next position, encode once, log; and route and answer unless it waits."""
    cdef Publish publish
    cdef Stream *stream
    cdef const Namespace *namespace
    cdef const Key *first
    cdef int refusal
    if not _publish_read(sequencer, worker, record, &publish):
        worker_published(worker, record.seq, BAD_REQUEST, 0, 0)
        return
    first = _first_of(sequencer, &publish)
    if first != NULL:
        _answer_again(sequencer, worker, &publish, first)
        return
    namespace = namespace_of(&sequencer.namespaces, <const char *> publish.name, record.head.aux)
    if namespace == NULL:
        worker_published(worker, record.seq, NO_SUCH_CHANNEL, 0, 0)
        return
    refusal = _log_refuses(sequencer, &publish, namespace)
    if refusal:
        worker_published(worker, record.seq, refusal, 0, 0)
        return
    stream = stream_wanted(&sequencer.streams, <const char *> publish.name, record.head.aux, sequencer.wall_ms)
    if stream != NULL and stream.domain == DOMAIN_GLOBAL and not everybody_add(sequencer, stream, False):
        worker_published(worker, record.seq, TOO_MANY_CHANNELS, 0, 0)
        return
    if stream == NULL or not stream_advance(&sequencer.streams, stream):
        worker_published(worker, record.seq, OVERLOADED, 0, 0)
        return
    stream_use(stream, sequencer.wall_ms)
    if not _order(sequencer, worker, &publish, stream, namespace):
        stream_take_back(stream)
        worker_published(worker, record.seq, UNAVAILABLE, 0, 0)
        return
    if record.key_size:
        key_keep(&sequencer.keys, &publish.keyed, stream.epoch, stream.history.given, keys_ms(sequencer.now_ms))
    elif record.seq:
        key_keep(&sequencer.origins, &publish.keyed, stream.epoch, stream.history.given,
                 keys_ms(sequencer.now_ms))
    ledger_count(sequencer.ledger, COUNT_MESSAGES_SEQUENCED, 1)
    sequencer.shards[record.head.shard].sequenced += 1
    worker.published[record.head.shard] += 1


# ------------------------------------------------------------------------------------------------------- the commit


cdef void log_hand_over(Sequencer *sequencer) noexcept nogil:
    """At a turn's end: give the control thread the batches that it may have. What its mailbox does not take waits."""
    cdef LogChunk *chunk
    cdef Note note
    if not log_is_there(&sequencer.log):
        return
    ledger_gauge(sequencer.ledger, GAUGE_LOG_BYTES, sequencer.log.bytes)
    chunk = log_due(&sequencer.log, sequencer.now_ms)
    while chunk != NULL:
        note_init(&note, NOTE_LOG_BATCH)
        note.request = sequencer.log.sent
        note.text_size = chunk.records.size
        if mailbox_put(&sequencer.to_control, &note, chunk.records.data, chunk.records.data) < 0:
            return
        log_sent(&sequencer.log, sequencer.now_ms)
        chunk = log_due(&sequencer.log, sequencer.now_ms)


cdef inline void _answer_late(Sequencer *sequencer, uint32_t index, uint32_t start, uint32_t seq, uint64_t epoch,
                              uint64_t offset, uint32_t replicated, uint32_t shard) noexcept nogil:
    """Answer a publish that waited, unless its worker is another's place by now; one that is `replicated` (slot of its
    stream + 1) waits on, for another region."""
    cdef Worker *worker = worker_at(sequencer, index)
    cdef Replicating entry
    if replicated:
        entry.number = sequencer.log.first
        entry.epoch = epoch
        entry.offset = offset
        entry.stream = replicated - 1
        entry.worker = index
        entry.worker_start = start
        entry.seq = seq
        entry.shard = shard
        entry.reserved = 0
        replicating_add(sequencer, &entry)
        return
    if seq and worker.state >= WORKER_LINKING and _start(worker) == start:
        worker_published(worker, seq, 0, epoch, offset)


cdef void _record_committed(Sequencer *sequencer, const LogRecord *record) noexcept nogil:
    cdef Stream *stream
    cdef Stored head
    stream = stream_at(&sequencer.streams, record.stream)
    invariant(stream.live == 1 and stream.history.under_way > 0)
    stream.history.under_way -= 1
    if not record.flags & LOG_WAITS:
        return
    head.epoch = record.epoch
    head.offset = record.offset
    head.time_ms = record.time_ms
    head.size = record.body_size
    message_deliver(sequencer, stream, &head, log_record_body(record))
    _answer_late(sequencer, record.worker, record.worker_start, record.seq, record.epoch, record.offset,
                 record.stream + 1 if record.flags & LOG_REPLICATED else 0, record.shard)


cdef void _chunk_committed(Sequencer *sequencer, LogChunk *chunk) noexcept nogil:
    """Deliver and answer what waited for this batch, in its order."""
    cdef uint32_t place = 0
    cdef const LateAnswer *late
    cdef uint64_t records = 0
    while place < chunk.records.size:
        records += 1
        _record_committed(sequencer, <const LogRecord *> (chunk.records.data + place))
        place += (<const LogRecord *> (chunk.records.data + place)).size
    ledger_count(sequencer.ledger, COUNT_LOG_RECORDS, records)
    ledger_count(sequencer.ledger, COUNT_LOG_BATCHES, 1)
    place = 0
    while place < chunk.late.size:
        late = <const LateAnswer *> (chunk.late.data + place)
        _answer_late(sequencer, late.worker, late.worker_start, late.seq, late.epoch, late.offset,
                     late.stream, late.shard)
        place += <uint32_t> sizeof(LateAnswer)


cdef void log_committed(Sequencer *sequencer, uint64_t number) noexcept nogil:
    """The log has the batch `number` and all before it."""
    cdef LogChunk *chunk
    if not log_is_there(&sequencer.log):
        return
    chunk = log_under_way(&sequencer.log, number)
    while chunk != NULL:
        _chunk_committed(sequencer, chunk)
        log_done(&sequencer.log)
        chunk = log_under_way(&sequencer.log, number)
