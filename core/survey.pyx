"""Survey: the answer to SURVEY."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from core.codes cimport NO_SUCH_CHANNEL
from core.mpack cimport MpWriter, mp_write_array, mp_write_bool, mp_write_map, mp_write_nil, mp_write_str, mp_write_uint
from core.namespaces cimport Namespace, namespace_of
from core.records cimport REC_REPLY, RecBody
from core.rooms cimport NOBODY, Room, room_at, room_find
from core.sequencer cimport worker_say
from core.slab cimport invariant
from core.stream cimport Stored, Stream, stream_find, stream_kept, stream_namespace, stream_stored

cdef enum:
    ANSWER_BYTES_MAX = 256

ctypedef struct Kept:           # what of a stream is young enough to be given
    uint32_t count
    uint64_t bytes
    Stored *oldest              # borrowed until the call returns; NULL: nothing is


cdef void _kept_find(Sequencer *sequencer, Stream *stream, Kept *kept) noexcept nogil:
    """Messages that have aged stand in the ring until the next one comes, or a sweep."""
    cdef uint64_t age_ms = stream_namespace(&sequencer.streams, stream).history_age_ms
    cdef uint32_t place
    cdef Stored *stored
    for place in range(stream_kept(stream)):
        stored = stream_stored(stream, place)
        if stored.time_ms + age_ms < sequencer.wall_ms:
            continue
        if kept.oldest == NULL:
            kept.oldest = stored
        kept.count += 1
        kept.bytes += stored.size


cdef void _stream_write(Sequencer *sequencer, MpWriter *writer, Stream *stream, uint32_t shard) noexcept nogil:
    """Nine entries: what is known of the stream."""
    cdef Kept kept
    cdef bint cold = sequencer.streams.cold
    kept.count = 0
    kept.bytes = 0
    kept.oldest = NULL
    if stream != NULL:
        _kept_find(sequencer, stream, &kept)
    mp_write_str(writer, b"known", 5)
    mp_write_bool(writer, stream.epoch != 0 if stream != NULL else not cold)
    mp_write_str(writer, b"loaded", 6)
    mp_write_bool(writer, not cold or (stream != NULL and stream.epoch != 0
                                       and (stream.history == NULL or stream.history.filled)))
    mp_write_str(writer, b"epoch", 5)
    mp_write_uint(writer, stream.epoch if stream != NULL else sequencer.streams.epochs[shard])
    mp_write_str(writer, b"offset", 6)
    mp_write_uint(writer, stream.offset if stream != NULL else 0)
    mp_write_str(writer, b"waiting", 7)
    mp_write_uint(writer, stream.history.given - stream.offset if stream != NULL and stream.history != NULL else 0)
    mp_write_str(writer, b"kept", 4)
    mp_write_uint(writer, kept.count)
    mp_write_str(writer, b"bytes", 5)
    mp_write_uint(writer, kept.bytes)
    mp_write_str(writer, b"workers", 7)
    mp_write_uint(writer, stream.route_count if stream != NULL else 0)
    mp_write_str(writer, b"oldest", 6)
    if kept.oldest == NULL:
        mp_write_nil(writer)
        return
    mp_write_array(writer, 3)
    mp_write_uint(writer, kept.oldest.epoch)
    mp_write_uint(writer, kept.oldest.offset)
    mp_write_uint(writer, kept.oldest.time_ms)


cdef void survey_answer(Sequencer *sequencer, Worker *worker, const RecHistory *record) noexcept nogil:
    """REPLY body {known, loaded, epoch, offset, waiting, kept, bytes, workers, oldest, presence}."""
    cdef const char *name = <const char *> record + sizeof(RecHistory)
    cdef uint32_t size = record.head.aux
    cdef const Namespace *namespace = namespace_of(&sequencer.namespaces, name, size)
    cdef uint8_t body[ANSWER_BYTES_MAX]
    cdef uint32_t index
    cdef Room *room
    cdef MpWriter writer
    cdef RecBody *answer
    writer.p = body
    writer.end = body + sizeof(body)
    writer.overflow = False
    mp_write_map(&writer, 10)
    _stream_write(sequencer, &writer, stream_find(&sequencer.streams, name, size), record.head.shard)
    mp_write_str(&writer, b"presence", 8)
    if namespace != NULL and namespace.presence:
        index = room_find(&sequencer.rooms, name, size)
        room = NULL if index == NOBODY else room_at(&sequencer.rooms, index)
        mp_write_array(&writer, 2)
        mp_write_uint(&writer, 0 if room == NULL else room.users)
        mp_write_uint(&writer, 0 if room == NULL else room.count)
    else:
        mp_write_nil(&writer)
    invariant(not writer.overflow)
    size = <uint32_t> (writer.p - body)
    answer = <RecBody *> worker_say(worker, REC_REPLY, 0 if namespace != NULL else NO_SUCH_CHANNEL, sizeof(RecBody),
                                    size)
    if answer != NULL:
        answer.seq = record.seq
        answer.body_size = size
        memcpy(<uint8_t *> answer + sizeof(RecBody), body, size)
