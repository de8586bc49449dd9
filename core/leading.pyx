"""Leading: MOVED, and the shards that come and go."""

from core.edge cimport NONE
from core.ledger cimport COUNT_MOVED_SAID, ledger_count
from core.records cimport (REC_CATCHUP, REC_CLOSE, REC_HISTORY, REC_MOVED, REC_OPEN, REC_PRESENCE, REC_PUBLISH,
                           REC_SUBSCRIBE, REC_SURVEY, RecCatchup, RecChannel, RecHistory, RecPublish, RecSession)
from core.sequencer cimport WORKER_LINKING, worker_at, worker_say
from core.shards cimport SHARDS


cdef uint32_t _shard(const Record *record) noexcept nogil:
    """The shard that a record is for; NONE: it is for the router, or for whoever leads either of two shards."""
    cdef const uint8_t *head = <const uint8_t *> record
    if record.kind == REC_PUBLISH:
        return shard_of(head + sizeof(RecPublish), record.aux)
    if record.kind == REC_SUBSCRIBE:
        return shard_of(head + sizeof(RecChannel), record.aux)
    if record.kind == REC_HISTORY or record.kind == REC_PRESENCE or record.kind == REC_SURVEY:
        return shard_of(head + sizeof(RecHistory), record.aux)
    if record.kind == REC_CATCHUP:
        return shard_of(head + sizeof(RecCatchup), record.aux)
    if record.kind == REC_OPEN or record.kind == REC_CLOSE:
        return shard_of((<const RecSession *> record).session, 16)
    return NONE


cdef void _moved_say(Sequencer *sequencer, Worker *worker, uint32_t shard) noexcept nogil:
    cdef RecShard *say = <RecShard *> worker_say(worker, REC_MOVED, 0, sizeof(RecShard), 0)
    worker.moved_count += worker.moved[shard] == MOVED_NOT
    worker.moved[shard] = MOVED_SAID
    ledger_count(sequencer.ledger, COUNT_MOVED_SAID, 1)
    if say != NULL:
        say.shard = shard
        say.version = sequencer.map_version


cdef bint led_elsewhere(Sequencer *sequencer, Worker *worker, Record *record) noexcept nogil:
    """Whether a record is not for this router, now or before the worker says its shard anew; it is told once."""
    cdef uint32_t shard = _shard(record)
    if shard == NONE or (sequencer.led[shard] and not worker.moved[shard]):
        return False
    if worker.moved[shard] != MOVED_SAID:
        _moved_say(sequencer, worker, shard)
    return True


cdef void shard_said(Sequencer *sequencer, Worker *worker, const RecShard *record) noexcept nogil:
    """SHARD: what follows is all that the worker holds and asks for."""
    if record.shard >= SHARDS:
        return
    worker.moved_count -= worker.moved[record.shard] != MOVED_NOT
    worker.moved[record.shard] = MOVED_NOT
    if not sequencer.led[record.shard] or record.version < sequencer.led_since[record.shard]:
        _moved_say(sequencer, worker, record.shard)


cdef void leading_set(Sequencer *sequencer, const uint8_t *led) noexcept nogil:
    """256 bytes, not 0 at each shard that is led from now on."""
    cdef uint32_t shard
    sequencer.leads_all = True
    for shard in range(SHARDS):
        sequencer.led[shard] = led[shard] != 0
        sequencer.leads_all = sequencer.leads_all and led[shard] != 0


cdef void _begin(Sequencer *sequencer, uint32_t shard) noexcept nogil:
    """A shard is led from now on: every worker says it anew."""
    cdef uint32_t index
    cdef Worker *worker
    for index in range(sequencer.worker_count):
        worker = worker_at(sequencer, index)
        if worker.state >= WORKER_LINKING and worker.moved[shard] == MOVED_NOT:
            worker.moved[shard] = MOVED_DUE
            worker.moved_count += 1


cdef object leading_start(Sequencer *sequencer, bytes led):
    """What a router leads from its start on; empty: every shard.

    Raises:
        ValueError: it is not one byte for each shard.
    """
    if led and len(led) != SHARDS:
        raise ValueError(f"leads is {len(led)} bytes, not one for each of {SHARDS} shards")
    led = led or b"\1" * SHARDS
    leading_set(sequencer, <const uint8_t *> <const char *> led)


cdef void leading_take(Sequencer *sequencer, const Note *note, const uint8_t *text) noexcept nogil:
    """NOTE_LEAD."""
    cdef uint32_t shard
    if note.text_size != SHARDS:
        return
    for shard in range(SHARDS):
        if text[shard] and not sequencer.led[shard]:
            sequencer.led_since[shard] = note.first
            _begin(sequencer, shard)
    sequencer.map_version = note.first
    leading_set(sequencer, text)


cdef void leading_forget(Sequencer *sequencer, Worker *worker) noexcept nogil:
    """The worker is gone, or says everything anew, those shards behind SHARD that were given to this router."""
    cdef uint32_t shard
    worker.moved_count = 0
    for shard in range(SHARDS):
        worker.moved[shard] = MOVED_DUE if sequencer.led_since[shard] else MOVED_NOT
        worker.moved_count += sequencer.led_since[shard] > 0
