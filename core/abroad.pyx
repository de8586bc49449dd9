"""Abroad: what is in no log, gathered for the routers that follow from other regions."""

from libc.stdint cimport uint16_t, uint64_t
from libc.string cimport memcpy, memset

from core.batch cimport batch_clear, batch_reserve
from core.leading cimport SHARD_LEADING
from core.ledger cimport COUNT_ABROAD_LOST, ledger_count_shared
from core.log_records cimport LOG_EVENT, LOG_MESSAGE, LogRecord
from core.mailbox cimport NOTE_ABROAD, Note, mailbox_put, note_init
from core.shards cimport shard_of_channel
from core.stream cimport stream_name


cdef void _add(Sequencer *sequencer, int kind, const char *name, uint32_t name_size, const Stored *head,
               const uint8_t *body) noexcept nogil:
    """One record more, unless the shard is another's by now: whoever leads it tells of it."""
    cdef uint32_t size = (<uint32_t> sizeof(LogRecord) + name_size + head.size + 7) & ~(<uint32_t> 7)
    cdef uint8_t shard = shard_of_channel(&sequencer.namespaces, name, name_size, sequencer.shard_count)
    cdef uint8_t *room
    cdef LogRecord *record
    if sequencer.shards[shard].state != SHARD_LEADING:
        return
    room = batch_reserve(&sequencer.abroad, size)
    if room == NULL:
        ledger_count_shared(sequencer.ledger, COUNT_ABROAD_LOST, 1)
        return
    memset(room + size - 8, 0, 8)
    memset(room, 0, sizeof(LogRecord))
    record = <LogRecord *> room
    record.size = size
    record.kind = <uint16_t> kind
    record.name_size = <uint8_t> name_size
    record.shard = shard
    record.epoch = head.epoch
    record.offset = head.offset
    record.time_ms = head.time_ms
    record.body_size = head.size
    memcpy(room + sizeof(LogRecord), name, name_size)
    memcpy(room + sizeof(LogRecord) + name_size, body, head.size)


cdef void abroad_event(Sequencer *sequencer, const char *name, uint32_t name_size, const uint8_t *frame,
                       uint32_t size) noexcept nogil:
    """An EVENT frame for the members of a channel."""
    cdef Stored head
    if not sequencer.bridged:
        return
    memset(&head, 0, sizeof(Stored))
    head.size = size
    _add(sequencer, LOG_EVENT, name, name_size, &head, frame)


cdef void abroad_message(Sequencer *sequencer, const Stream *stream, const Stored *head,
                         const uint8_t *body) noexcept nogil:
    """A message that is not logged."""
    if sequencer.bridged:
        _add(sequencer, LOG_MESSAGE, stream_name(&sequencer.streams, stream), stream.name_size, head, body)


cdef uint32_t _run_end(Sequencer *sequencer, uint32_t place, uint64_t *count) noexcept nogil:
    """Where those end that are of one shard from here on, and how many they are."""
    cdef uint8_t shard = (<const LogRecord *> (sequencer.abroad.data + place)).shard
    count[0] = 0
    while place < sequencer.abroad.size and (<const LogRecord *> (sequencer.abroad.data + place)).shard == shard:
        count[0] += 1
        place += (<const LogRecord *> (sequencer.abroad.data + place)).size
    return place


cdef void abroad_hand_over(Sequencer *sequencer) noexcept nogil:
    """At a turn's end: a note for what is of one shard in a row. What its mailbox does not take is lost."""
    cdef uint32_t place = 0
    cdef uint32_t end
    cdef uint64_t count
    cdef Note note
    while place < sequencer.abroad.size:
        end = _run_end(sequencer, place, &count)
        note_init(&note, NOTE_ABROAD)
        note.request = (<const LogRecord *> (sequencer.abroad.data + place)).shard
        note.text_size = end - place
        if mailbox_put(&sequencer.to_control, &note, sequencer.abroad.data + place, NULL) < 0:
            ledger_count_shared(sequencer.ledger, COUNT_ABROAD_LOST, count)
        place = end
    batch_clear(&sequencer.abroad)
