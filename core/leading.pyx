"""Leading: shards are led, paused, drained and given up, as notes say."""

from libc.string cimport memset

from core.clock cimport clock_boot_ms
from core.everybody cimport everybody_leave
from core.forgetting cimport forgetting_begin, forgetting_end, worker_unsay
from core.log_out cimport log_is_there
from core.following cimport following_raise
from core.mailbox cimport (NOTE_DRAINED, NOTE_FOLLOW, NOTE_FORGET, NOTE_HOLD, NOTE_LEAD, NOTE_PAUSE, NOTE_SHARD_DRAIN,
                           mailbox_put, note_init)
from core.records cimport (FENCE_BITS, LEADS_FEEDS, REC_ATTEND, REC_CATCHUP, REC_CLOSE, REC_HISTORY, REC_LEADS,
                           REC_OPEN, REC_PRESENCE, REC_PUBLISH, REC_STATE, REC_SUBSCRIBE, REC_SURVEY, REC_UNSUBSCRIBE,
                           SHARDS_ELSEWHERE, SHARDS_SAID, RecLeads)
from core.sequencer cimport WORKER_ASKED, Shard, worker_at, worker_say
from core.shards cimport SHARD_OF_GLOBALS, SHARD_WORDS, shards_add, shards_have, shards_remove


cdef bint shard_takes(Sequencer *sequencer, const Worker *worker, const Record *record) noexcept nogil:
    """Whether a record counts: it is about no shard, or about one of which this worker has said what it holds; where
    the shard is fed alone, only what is asked of those who hear it."""
    if record.kind == REC_SUBSCRIBE or record.kind == REC_UNSUBSCRIBE or record.kind == REC_CATCHUP \
            or record.kind == REC_HISTORY or record.kind == REC_SURVEY:
        return shard_is_said(worker, record.shard)
    if record.kind == REC_PUBLISH or record.kind == REC_OPEN or record.kind == REC_STATE \
            or record.kind == REC_CLOSE or record.kind == REC_PRESENCE or record.kind == REC_ATTEND:
        return shard_is_said(worker, record.shard) and sequencer.shards[record.shard].state != SHARD_FEEDING
    return True


cdef inline bint _leads(Sequencer *sequencer, uint32_t shard) noexcept nogil:
    return sequencer.shards[shard].state == SHARD_LEADING and not sequencer.hold_over


cdef inline bint _feeds(Sequencer *sequencer, uint32_t shard) noexcept nogil:
    return sequencer.shards[shard].state == SHARD_FEEDING


cdef inline bint _is_heard(Sequencer *sequencer, uint32_t shard) noexcept nogil:
    """Whether workers hear its channels here, and so say what they hold of it."""
    return _leads(sequencer, shard) or _feeds(sequencer, shard)


cdef bint shard_waits(Sequencer *sequencer, uint32_t shard) noexcept nogil:
    """Whether claims in a shard wait: it is led anew, and not all workers have said what they hold of it."""
    cdef uint32_t index
    cdef Worker *worker
    if sequencer.shards[shard].claims_from_ms <= sequencer.now_ms:
        return False
    for index in range(sequencer.worker_count):
        worker = worker_at(sequencer, index)
        if worker.state >= WORKER_ASKED and not shard_is_said(worker, shard):
            return True
    sequencer.shards[shard].claims_from_ms = 0
    return False


cdef void _tell(Sequencer *sequencer, Worker *worker, uint32_t shard, uint64_t epoch) noexcept nogil:
    cdef int flags = LEADS_FEEDS if _feeds(sequencer, shard) else 0
    cdef RecLeads *say = <RecLeads *> worker_say(worker, REC_LEADS, flags, sizeof(RecLeads), 0)
    if say != NULL:
        say.head.shard = <unsigned char> shard
        say.epoch = epoch


cdef void shards_tell(Sequencer *sequencer, Worker *worker) noexcept nogil:
    """A worker is asked for everything: of these shards."""
    cdef uint32_t shard
    for shard in range(sequencer.shard_count):
        if _is_heard(sequencer, shard):
            _tell(sequencer, worker, shard, sequencer.shards[shard].epoch)


cdef void _tell_all(Sequencer *sequencer, uint32_t shard, uint64_t epoch) noexcept nogil:
    cdef uint32_t index
    for index in range(sequencer.worker_count):
        if worker_at(sequencer, index).state >= WORKER_ASKED:
            _tell(sequencer, worker_at(sequencer, index), shard, epoch)


cdef void shards_begin(Worker *worker) noexcept nogil:
    """It says everything anew."""
    memset(worker.synced, 0, sizeof(worker.synced))
    memset(worker.stale, 0, sizeof(worker.stale))
    worker.knows_globals = False


cdef bint shards_said(Sequencer *sequencer, Worker *worker, const RecShards *record) noexcept nogil:
    """SHARDS: from here on what the worker says of these counts, as far as they are led; what it said before is void.
    True: it has said all of the one that global channels are in, and has to be told of the others of these."""
    cdef uint32_t shard
    cdef uint64_t void[SHARD_WORDS]
    cdef uint64_t any_ = 0
    if record.head.aux & SHARDS_SAID:
        if record.head.aux & SHARDS_ELSEWHERE:
            if record.which[0] & 1:
                everybody_leave(sequencer, worker)
            return False
        return (record.which[0] & 1) != 0 and shard_is_said(worker, 0)
    for shard in range(SHARD_WORDS):
        void[shard] = record.which[shard] & worker.stale[shard]
        worker.stale[shard] &= ~void[shard]
        any_ |= void[shard]
    if any_:
        worker_unsay(sequencer, worker, void)
    for shard in range(sequencer.shard_count):
        if shards_have(record.which, shard) and _is_heard(sequencer, shard):
            shards_add(worker.synced, shard)
    return False


cdef void _unsay(Sequencer *sequencer, uint32_t shard) noexcept nogil:
    """Nobody's word about a shard counts any more, and the workers keep what they would say of it for who leads it."""
    cdef uint32_t index
    cdef Worker *worker
    for index in range(sequencer.worker_count):
        worker = worker_at(sequencer, index)
        if shard_is_said(worker, shard):
            shards_add(worker.stale, shard)
        shards_remove(worker.synced, shard)
        if shard == SHARD_OF_GLOBALS:
            worker.knows_globals = False
    _tell_all(sequencer, shard, 0)


cdef void _lead(Sequencer *sequencer, uint32_t shard, uint64_t epoch, uint64_t fence) noexcept nogil:
    cdef Shard *led = &sequencer.shards[shard]
    if led.state == SHARD_FORGETTING:
        forgetting_end(sequencer, shard)
    led.claims_from_ms = sequencer.now_ms + CLAIMS_WAIT_MS if led.state == SHARD_NONE else led.claims_from_ms
    led.state = SHARD_LEADING
    led.unconfirmed = sequencer.bridged
    led.epoch = epoch
    led.fence = max(led.fence, fence)
    led.drain = 0
    sequencer.streams.epochs[shard] = max(sequencer.streams.epochs[shard], epoch)
    if not sequencer.hold_over:
        _tell_all(sequencer, shard, epoch)


cdef void _follow(Sequencer *sequencer, uint32_t shard, uint64_t epoch) noexcept nogil:
    """Another region leads it: workers of this one hear it here, also of the next leader, from then on that it orders
    behind what is there."""
    cdef Shard *fed = &sequencer.shards[shard]
    if fed.state == SHARD_LEADING or fed.state == SHARD_PAUSED:
        return                          # it has to be forgotten first
    if fed.state == SHARD_FORGETTING:
        forgetting_end(sequencer, shard)
    fed.epoch = max(fed.epoch, epoch)
    following_raise(sequencer, shard, fed.epoch)
    if fed.state != SHARD_FEEDING:
        fed.state = SHARD_FEEDING
        _tell_all(sequencer, shard, fed.epoch)


cdef void shards_lead_all(Sequencer *sequencer, uint64_t epoch) noexcept nogil:
    """One router alone, before its start: it leads all shards, for as long as it runs."""
    cdef uint32_t shard
    sequencer.hold_ms = HOLD_FOR_EVER
    for shard in range(sequencer.shard_count):
        sequencer.shards[shard].state = SHARD_LEADING
        sequencer.shards[shard].epoch = epoch
        sequencer.shards[shard].fence = epoch << FENCE_BITS
        sequencer.streams.epochs[shard] = max(sequencer.streams.epochs[shard], epoch)


cdef void _pause(Sequencer *sequencer, uint32_t shard, int state) noexcept nogil:
    if _is_heard(sequencer, shard):
        _unsay(sequencer, shard)
    if sequencer.shards[shard].state == SHARD_LEADING or sequencer.shards[shard].state == SHARD_PAUSED:
        sequencer.shards[shard].state = <unsigned char> state


cdef void shard_note(Sequencer *sequencer, const Note *note) noexcept nogil:
    """LEAD, PAUSE, SHARD_DRAIN, FORGET, FOLLOW or HOLD."""
    cdef uint32_t shard = <uint32_t> note.request
    if note.kind == NOTE_HOLD:
        sequencer.hold_ms = note.first
        shards_turn(sequencer)
    elif shard >= sequencer.shard_count:
        return
    elif note.kind == NOTE_LEAD:
        _lead(sequencer, shard, note.first, note.second)
    elif note.kind == NOTE_PAUSE:
        _pause(sequencer, shard, SHARD_PAUSED)
    elif note.kind == NOTE_SHARD_DRAIN:
        sequencer.drains += sequencer.shards[shard].drain == 0
        sequencer.shards[shard].drain = note.first + 1
        sequencer.shards[shard].drain_chunk = sequencer.log.next
    elif note.kind == NOTE_FORGET:
        _pause(sequencer, shard, SHARD_PAUSED)
        forgetting_begin(sequencer, shard)
    elif note.kind == NOTE_FOLLOW:
        _follow(sequencer, shard, note.first)


cdef void shards_drained(Sequencer *sequencer) noexcept nogil:
    """At the end of a turn: tell of the shards of which nothing is on its way to the log any more, behind all that
    their sessions did."""
    cdef uint32_t shard
    cdef Shard *led
    cdef Note note
    if sequencer.drains == 0 or sequencer.states.size:      # a full mailbox keeps these for the next turn
        return
    sequencer.drains = 0
    for shard in range(sequencer.shard_count):
        led = &sequencer.shards[shard]
        if led.drain == 0:
            continue
        note_init(&note, NOTE_DRAINED)
        note.request = shard
        note.first = led.drain - 1
        if log_is_there(&sequencer.log) and sequencer.log.first < led.drain_chunk \
                or mailbox_put(&sequencer.to_control, &note, NULL, NULL) < 0:
            sequencer.drains += 1
        else:
            led.drain = 0


cdef void shards_turn(Sequencer *sequencer) noexcept nogil:
    """Once a turn, before anything is taken: may this router still lead?"""
    cdef bint over
    cdef uint32_t shard
    over = sequencer.hold_ms != HOLD_FOR_EVER and clock_boot_ms() >= sequencer.hold_ms
    if over == sequencer.hold_over:
        return
    sequencer.hold_over = over
    for shard in range(sequencer.shard_count):
        if sequencer.shards[shard].state != SHARD_LEADING:
            continue
        if over:
            _unsay(sequencer, shard)
        else:
            _tell_all(sequencer, shard, sequencer.shards[shard].epoch)
