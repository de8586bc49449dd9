"""History: which kept messages an answer has."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from core.sequencer cimport bulk_fits, worker_say
from core.mpack cimport MpWriter, mp_write_array, mp_write_map, mp_write_raw, mp_write_str, mp_write_uint
from core.records cimport REC_REPLY, RecBody, RecHistory
from core.slab cimport invariant
from core.stream cimport Stored, Stream, stream_find, stream_kept, stream_namespace, stream_stored


cdef bint _wanted(Sequencer *sequencer, Stream *stream, Stored *stored, RecHistory *record) noexcept nogil:
    """Whether a kept message belongs into the answer: young enough, and beyond `since` in the direction asked."""
    if stored.time_ms + stream_namespace(&sequencer.streams, stream).history_age_ms < sequencer.wall_ms:
        return False
    if not record.has_since:
        return True
    return stored.offset < record.since_offset if record.reverse else stored.offset > record.since_offset


cdef uint32_t _history_pick(Sequencer *sequencer, Stream *stream, RecHistory *record, uint32_t *picked) noexcept nogil:
    """Places of the messages of the answer, in its order, as many as fit; `picked` has room for `limit`.

    One is given however long it is: without it nobody could page beyond it.
    """
    cdef uint32_t count = 0
    cdef uint32_t bytes_left = record.bytes_max
    cdef uint32_t at = 0
    cdef uint32_t place
    cdef Stored *stored
    while stream != NULL and at < stream_kept(stream) and count < record.limit:
        place = stream_kept(stream) - 1 - at if record.reverse else at
        at += 1
        stored = stream_stored(stream, place)
        if not _wanted(sequencer, stream, stored, record):
            continue
        if stored.size > bytes_left and count:
            break
        bytes_left -= min(bytes_left, stored.size)
        picked[count] = place
        count += 1
    return count


cdef void history_answer(Sequencer *sequencer, Worker *worker, RecHistory *record) noexcept nogil:
    """REPLY body {messages, epoch, offset}: as many whole MESSAGE frames as were asked for and fit."""
    cdef Stream *stream = stream_find(&sequencer.streams, <const char *> record + sizeof(RecHistory), record.head.aux)
    cdef uint32_t picked[1024]
    cdef uint32_t count, place
    cdef MpWriter writer
    cdef RecBody *answer
    if record.limit > 1024:
        record.limit = 1024
    if record.bytes_max > sequencer.scratch_bytes - 256:
        record.bytes_max = sequencer.scratch_bytes - 256
    record.bytes_max = record.bytes_max - 64 if record.bytes_max > 64 else 0    # a peer's number: it must not wrap
    count = _history_pick(sequencer, stream, record, picked)
    writer.p = sequencer.scratch
    writer.end = sequencer.scratch + sequencer.scratch_bytes
    writer.overflow = False
    mp_write_map(&writer, 3)
    mp_write_str(&writer, b"messages", 8)
    mp_write_array(&writer, count)
    for place in range(count):
        mp_write_raw(&writer, stream_stored(stream, picked[place]).body, stream_stored(stream, picked[place]).size)
    mp_write_str(&writer, b"epoch", 5)
    mp_write_uint(&writer, sequencer.streams.epochs[record.head.shard] if stream == NULL else stream.epoch)
    mp_write_str(&writer, b"offset", 6)
    mp_write_uint(&writer, 0 if stream == NULL else stream.offset)
    invariant(not writer.overflow)
    if not bulk_fits(worker, record.seq, <uint32_t> (writer.p - sequencer.scratch)):
        return
    answer = <RecBody *> worker_say(worker, REC_REPLY, 0, sizeof(RecBody), <uint32_t> (writer.p - sequencer.scratch))
    if answer != NULL:
        answer.seq = record.seq
        answer.body_size = <uint32_t> (writer.p - sequencer.scratch)
        memcpy(<uint8_t *> answer + sizeof(RecBody), sequencer.scratch, answer.body_size)
