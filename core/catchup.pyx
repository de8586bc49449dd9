"""Catch-up: outcomes, and the parts of a replay."""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy

from core.batch cimport batch_taken, batch_write
from core.codes cimport BAD_REQUEST, OVERLOADED
from core.following cimport following_waits
from core.leading cimport shard_is_said
from core.ledger cimport COUNT_GAPS_RESET, COUNT_MESSAGES_ROUTED, ledger_count
from core.loading cimport loading_takes
from core.records cimport (CATCHUP_CURSOR, CATCHUP_LISTED, CATCHUP_OUTCOME, CATCHUP_START, CATCHUP_STORED, GAP_LOST,
                           GAP_NONE, GAP_TRIMMED, OUTCOME_GAP, OUTCOME_LIVE, OUTCOME_REPLAYED, OUTCOME_RESET,
                           REC_CAUGHT, Caught, RecCaught)
from core.sequencer cimport WORKER_LINKED, worker_say
from core.sessions cimport cursor_ask
from core.stream cimport (Stored, stream_base, stream_find, stream_kept, stream_last_epoch, stream_namespace,
                          stream_since, stream_stored)

cdef enum:
    ENTRY_BYTES_MAX = 512       # a record of 56 bytes, a name of at most 255, and room

ctypedef struct Waiting:        # the head of an entry of the queue; a CATCHUP follows
    uint32_t worker             # index
    uint32_t start              # low half of its epoch: the index may be another's by then


cdef uint32_t _place_after(Stream *stream, uint64_t offset) noexcept nogil:
    """Place of the first kept message beyond an offset; their count: none."""
    cdef uint32_t low = 0
    cdef uint32_t high = stream_kept(stream)
    cdef uint32_t middle
    while low < high:
        middle = (low + high) // 2
        if stream_stored(stream, middle).offset > offset:
            high = middle
        else:
            low = middle + 1
    return low


cdef bint _in_common(Stream *stream, uint32_t next_place, uint64_t epoch, uint64_t offset) noexcept nogil:
    """Whether this position was told by the log that the stream has; `next_place`: of the first message beyond it."""
    cdef uint64_t told = stream.epoch   # an epoch that the position cannot be beyond
    if offset > stream.offset or epoch > stream.epoch:
        return False
    if offset == 0:
        return True
    if epoch < stream.epoch and offset > stream_base(stream):
        return False                    # the position is of an older epoch, and this one began below it
    if next_place < stream_kept(stream) and stream_stored(stream, next_place).offset == offset + 1:
        told = stream_stored(stream, next_place).epoch
    if epoch > told:
        return False
    if next_place and stream_stored(stream, next_place - 1).offset == offset:
        return epoch >= stream_stored(stream, next_place - 1).epoch
    return offset < stream.offset or epoch >= stream_last_epoch(stream)


cdef void catchup_find(Stream *stream, uint64_t oldest_ms, uint64_t epoch, uint64_t offset,
                       Found *found) noexcept nogil:
    """Find the outcome for a client's position. Messages from before `oldest_ms` (wall clock) are not kept any more."""
    cdef uint32_t place = _place_after(stream, offset)
    cdef uint32_t kept = stream_kept(stream)
    cdef uint64_t first
    found.reason = GAP_NONE
    found.gap_from = found.gap_to = 0
    if not _in_common(stream, place, epoch, offset):
        found.outcome = OUTCOME_RESET
        found.place = kept
        return
    found.outcome = OUTCOME_LIVE if offset == stream.offset else OUTCOME_REPLAYED
    found.reason = GAP_LOST if place else GAP_TRIMMED
    while place < kept and stream_stored(stream, place).time_ms < oldest_ms:
        found.reason = GAP_TRIMMED
        place += 1
    found.place = place
    first = stream_stored(stream, place).offset if place < kept else stream.offset + 1
    if first == offset + 1:
        found.reason = GAP_NONE
        return
    found.outcome = OUTCOME_GAP
    found.gap_from = offset + 1
    found.gap_to = first - 1


cdef uint64_t catchup_epoch(Stream *stream, uint64_t offset) noexcept nogil:
    """The epoch of a position that is told by its offset alone, at most the stream's; as near as is known."""
    cdef uint32_t place = _place_after(stream, offset)
    if place and stream_stored(stream, place - 1).offset == offset:
        return stream_stored(stream, place - 1).epoch
    return stream_stored(stream, place).epoch if place < stream_kept(stream) else stream.epoch


cdef void _from_start(Sequencer *sequencer, RecCatchup *record) noexcept nogil:
    """CATCHUP_START: since is before the oldest message that is kept."""
    cdef Stream *stream = stream_find(&sequencer.streams, <const char *> record + sizeof(RecCatchup), record.head.aux)
    record.since_epoch = record.since_offset = 0
    if stream == NULL:
        return
    record.since_epoch = stream.epoch
    record.since_offset = stream.offset
    if stream_kept(stream):
        record.since_epoch = stream_stored(stream, 0).epoch
        record.since_offset = stream_stored(stream, 0).offset - 1


cdef void _from_listing(Sequencer *sequencer, RecCatchup *record) noexcept nogil:
    """CATCHUP_LISTED: since is where workers were told of the channel."""
    cdef Stream *stream = stream_find(&sequencer.streams, <const char *> record + sizeof(RecCatchup), record.head.aux)
    cdef uint64_t since[2]
    record.since_epoch = record.since_offset = 0
    if stream != NULL:
        stream_since(&sequencer.streams, stream, since)
        record.since_epoch = since[0]
        record.since_offset = since[1]


cdef uint32_t _part_size(Stream *stream, uint32_t place, uint32_t bytes_max, uint32_t *count) noexcept nogil:
    """How many messages from a place on, without a hole between them, are in the next part, one at least; its size."""
    cdef uint64_t size = 0
    cdef uint64_t one
    cdef Stored *stored
    count[0] = 0
    while place < stream_kept(stream):
        stored = stream_stored(stream, place)
        one = sizeof(Caught) + ((<uint64_t> stored.size + 7) & ~(<uint64_t> 7))
        if count[0] and (size + one > bytes_max
                         or stored.offset != stream_stored(stream, place - 1).offset + 1):
            break
        size += one
        count[0] += 1
        place += 1
    return <uint32_t> size


cdef void _part_write(Stream *stream, RecCaught *answer, uint32_t place, uint32_t count) noexcept nogil:
    """The messages behind a CAUGHT's head, and where they end."""
    cdef uint8_t *room = <uint8_t *> answer + sizeof(RecCaught)
    cdef Caught *caught
    cdef Stored *stored
    cdef uint32_t number
    for number in range(count):
        stored = stream_stored(stream, place + number)
        caught = <Caught *> room
        caught.offset = stored.offset
        caught.size = stored.size
        caught.reserved = 0
        memcpy(room + sizeof(Caught), stored.body, stored.size)
        room += sizeof(Caught) + ((stored.size + 7) & ~(<uint32_t> 7))
        answer.last_epoch = stored.epoch
        answer.last_offset = stored.offset


cdef void _refuse(Worker *worker, RecCatchup *record, int code) noexcept nogil:
    cdef RecCaught *answer = <RecCaught *> worker_say(worker, REC_CAUGHT, code, sizeof(RecCaught), 0)
    if answer != NULL:
        answer.channel = record.channel
        answer.seq = record.seq


cdef uint32_t catchup_answer(Sequencer *sequencer, Worker *worker, RecCatchup *record) noexcept nogil:
    """CAUGHT, from the stream as it stands now; the bytes of the messages in it."""
    cdef Stream *stream = stream_find(&sequencer.streams, <const char *> record + sizeof(RecCatchup), record.head.aux)
    cdef uint64_t age_ms = 0
    cdef uint64_t oldest_ms
    cdef uint32_t count = 0
    cdef uint32_t size = 0
    cdef Found found
    cdef Stream unknown
    cdef RecCaught *answer
    if stream == NULL:                  # nothing was ever said there, as far as is known
        unknown.epoch = sequencer.streams.epochs[record.head.shard]
        unknown.offset = 0
        unknown.history = NULL
        stream = &unknown
    else:
        age_ms = stream_namespace(&sequencer.streams, stream).history_age_ms
        if record.flags & (CATCHUP_STORED | CATCHUP_CURSOR) and record.since_offset <= stream.offset \
                and record.since_epoch <= stream.epoch:
            # An ACK names an offset, and its worker the epoch that its channel was in by then.
            record.since_epoch = min(record.since_epoch, catchup_epoch(stream, record.since_offset))
    oldest_ms = sequencer.wall_ms - age_ms if sequencer.wall_ms > age_ms else 0
    catchup_find(stream, oldest_ms, record.since_epoch, record.since_offset, &found)
    if found.outcome == OUTCOME_RESET and record.flags & CATCHUP_CURSOR:
        # The cursor is of a stream of this name that aged away: of this one the user heard nothing.
        record.since_epoch = record.since_offset = 0
        catchup_find(stream, oldest_ms, 0, 0, &found)
    if not record.flags & CATCHUP_OUTCOME:
        size = _part_size(stream, found.place, record.bytes_max, &count)
    answer = <RecCaught *> worker_say(worker, REC_CAUGHT, 0, sizeof(RecCaught), size)
    if answer == NULL:
        return 0
    answer.channel = record.channel
    answer.seq = record.seq
    answer.epoch = stream.epoch
    answer.offset = stream.offset
    answer.outcome = <uint8_t> found.outcome
    answer.gap_reason = <uint8_t> found.reason
    answer.cursor = <uint16_t> record.cursor
    answer.gap_from = found.gap_from
    answer.gap_to = found.gap_to
    answer.body_size = size
    answer.count = count
    answer.last_epoch = record.since_epoch
    answer.last_offset = record.since_offset
    if record.flags & CATCHUP_OUTCOME:
        ledger_count(sequencer.ledger, COUNT_GAPS_RESET, found.outcome == OUTCOME_RESET)
        return 0
    if found.gap_from:
        answer.last_epoch = stream.epoch
        answer.last_offset = found.gap_to
    if count:
        _part_write(stream, answer, found.place, count)
        ledger_count(sequencer.ledger, COUNT_MESSAGES_ROUTED, count)
    elif found.outcome == OUTCOME_LIVE:
        answer.last_epoch = stream.epoch
    return size


cdef void catchup_take(Sequencer *sequencer, Worker *worker, RecCatchup *record) noexcept nogil:
    """CATCHUP: the outcome at once, messages when their turn comes."""
    cdef Waiting waiting
    if record.flags & CATCHUP_CURSOR:
        cursor_ask(sequencer, worker, record)
        return
    if record.flags & CATCHUP_START:
        _from_start(sequencer, record)
    elif record.flags & CATCHUP_LISTED:
        _from_listing(sequencer, record)
    elif following_waits(sequencer, worker, record):
        return
    if record.flags & CATCHUP_OUTCOME:
        catchup_answer(sequencer, worker, record)
        return
    if record.head.size + sizeof(Waiting) > ENTRY_BYTES_MAX:
        _refuse(worker, record, BAD_REQUEST)
        return
    waiting.worker = <uint32_t> (worker - &sequencer.workers[0])
    waiting.start = <uint32_t> worker.epoch
    if sequencer.catchups.size + sizeof(Waiting) + record.head.size > sequencer.catchups.bytes_max \
            or batch_write(&sequencer.catchups, &waiting, sizeof(Waiting)) < 0:
        _refuse(worker, record, OVERLOADED)
    elif batch_write(&sequencer.catchups, record, record.head.size) < 0:
        sequencer.catchups.size -= <uint32_t> sizeof(Waiting)
        _refuse(worker, record, OVERLOADED)


cdef void catchups_serve(Sequencer *sequencer, uint32_t *budget) noexcept nogil:
    """Answer what waits, as far as the rest of this turn's budget goes; the router turns again as long as anything is
    left.

    A worker whose batch is half full takes no more now: its turn comes when it took that.
    """
    cdef uint32_t place = sequencer.catchups_place
    cdef uint32_t end = sequencer.catchups.size
    cdef uint32_t size
    cdef Waiting *waiting
    cdef RecCatchup *record
    cdef Worker *worker
    cdef uint8_t held[ENTRY_BYTES_MAX]
    sequencer.catchups_due = budget[0] == 0 and place < end
    while place < end and budget[0]:
        waiting = <Waiting *> (sequencer.catchups.data + place)
        record = <RecCatchup *> (sequencer.catchups.data + place + sizeof(Waiting))
        worker = &sequencer.workers[waiting.worker]
        size = <uint32_t> sizeof(Waiting) + record.head.size
        place += size
        if worker.state != WORKER_LINKED or <uint32_t> worker.epoch != waiting.start \
                or not shard_is_said(worker, record.head.shard):
            continue                    # it asks again, if it still wants to know
        if sequencer.streams.cold and loading_takes(sequencer, worker, &record.head):
            continue                    # it left memory while this waited
        if worker.out.size > worker.out.bytes_max // 2:
            memcpy(held, waiting, size)
            if batch_write(&sequencer.catchups, held, size) < 0:
                _refuse(worker, <RecCatchup *> (held + sizeof(Waiting)), OVERLOADED)
            continue
        size = catchup_answer(sequencer, worker, record)
        budget[0] -= min(budget[0], size + <uint32_t> sizeof(RecCaught))
        sequencer.catchups_due = place < end
    sequencer.catchups_place = batch_taken(&sequencer.catchups, place)
