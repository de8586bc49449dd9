"""Sessions: claims, what sessions did, and cursors, between workers and the control thread."""

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy, memset

from core.batch cimport Batch, batch_clear, batch_free, batch_reserve, batch_write
from core.catchup cimport catchup_answer, catchup_epoch
from core.codes cimport NOT_ALLOWED, SESSION_EXPIRED, UNAVAILABLE
from core.leading cimport SHARD_LEADING, shard_is_said
from core.ledger cimport COUNT_STATES_LOST, ledger_count_shared
from core.loading cimport loading_takes
from core.mailbox cimport (NOTE_CURSOR, NOTE_SESSION_OPEN, NOTE_SESSION_STATE, NOTE_SESSION_TOLD, NOTE_SESSIONS,
                           mailbox_put, note_init)
from core.owners cimport owner_at, owner_fence
from core.records cimport (CATCHUP_CURSOR, CATCHUP_OUTCOME, CURSOR_AWAY, CURSOR_NOT_KEPT, CURSOR_READ, OPEN_AGAIN,
                           OPEN_ALIVE, OPEN_RESUME, OPENED_TAKEN, REC_CATCHUP, REC_OPENED, REC_REPLY, REC_STATE,
                           REC_TOLD, STATE_ACKED, STATE_HERE, Record, RecTold, record_add, record_init)
from core.sequencer cimport (WORKER_LINKED, WORKER_LINKING, Owner, bulk_fits, owner_of, worker_index, worker_say)
from core.shards cimport shard_of_channel
from core.slab cimport SLAB_NONE, slab_at
from core.stream cimport Stream, stream_find

cdef enum:
    START_BITS = 0x7FFFFF       # of a worker's epoch in the number of a question: its index may be another's by then
    NAME_BYTES_MAX = 255

cdef union CatchupRoom:
    RecCatchup record
    uint8_t bytes[320]


cdef inline uint64_t _question(Sequencer *sequencer, Worker *worker, uint32_t seq, bint taken) noexcept nogil:
    """The number of a question to the control thread: whom the answer goes to, and whether a claim took it over."""
    return <uint64_t> (worker - &sequencer.workers[0]) << 56 | <uint64_t> taken << 55 \
        | (worker.epoch & START_BITS) << 32 | seq


cdef inline Worker *_asker(Sequencer *sequencer, uint64_t question, int state) noexcept nogil:
    """The worker that asked, or NULL when it is gone, or not so far any more."""
    cdef Worker *worker = &sequencer.workers[question >> 56]
    if worker.state < state or (worker.epoch & START_BITS) != (question >> 32 & START_BITS):
        return NULL
    return worker


cdef void _opened(Worker *worker, uint64_t conn, uint32_t seq, uint64_t fence, int how, const uint8_t *body,
                  uint32_t size) noexcept nogil:
    """OPENED; `how`: 0, OPENED_TAKEN, or a code: what is stored could not be read."""
    cdef RecSession *say = <RecSession *> worker_say(worker, REC_OPENED, how, sizeof(RecSession), size)
    if say != NULL:
        say.conn = conn
        say.seq = seq
        say.fence = fence
        say.body_size = size
        if size:
            memcpy(<uint8_t *> say + sizeof(RecSession), body, size)


cdef bint _store(Sequencer *sequencer, RecSession *record, uint64_t question, int flags) noexcept nogil:
    """Hand a claim over, behind what the session did before it; False: there is no room."""
    cdef Note note
    sessions_flush(sequencer)
    note_init(&note, NOTE_SESSION_OPEN)
    note.request = question
    note.flags = <uint16_t> flags
    note.conn = record.conn
    note.first = record.fence
    note.text_size = record.body_size
    memcpy(note.session, record.session, 16)
    return mailbox_put(&sequencer.to_control, &note, <uint8_t *> record + sizeof(RecSession), NULL) == 0


cdef bint _told_claim(Sequencer *sequencer, RecTold *told) noexcept nogil:
    """Whether a TOLD and its record may count: no connection has the session by a later claim. `claim` is set to that
    of one that has had it since before this router started."""
    cdef const Record *record = <const Record *> (<uint8_t *> told + sizeof(RecTold))
    cdef uint32_t index = owner_of(sequencer, _session_of(record))
    cdef Owner *owner = NULL if index == SLAB_NONE else owner_at(sequencer, index)
    if owner != NULL and owner.guest:
        owner = NULL
    told.claim = owner_fence(owner) if owner != NULL and owner.again else 0
    return owner == NULL or owner_fence(owner) <= _fence_of(record)


cdef const uint8_t *_session_of(const Record *record) noexcept nogil:
    if record.kind == REC_STATE:
        return (<const RecState *> record).session
    return (<const RecSession *> record).session


cdef uint64_t _fence_of(const Record *record) noexcept nogil:
    if record.kind == REC_STATE:
        return (<const RecState *> record).fence
    return (<const RecSession *> record).fence


cdef void session_told(Sequencer *sequencer, Worker *worker, const Record *record) noexcept nogil:
    """A record that an earlier router may not have stored, by its claim and its time.

    What workers tell a router that was just started waits for the others' (`told_end`). Later it counts at once, unless
    a connection has the session by a later claim; the control thread knows what is stored, and of when.
    """
    cdef Batch *batch = &sequencer.told if sequencer.told_gathers else &sequencer.states
    cdef uint8_t *room
    if not sequencer.sessions_kept:
        return
    room = batch_reserve(batch, <uint32_t> sizeof(RecTold) + record.size)
    if room == NULL:
        ledger_count_shared(sequencer.ledger, COUNT_STATES_LOST, 1)
        return
    sequencer.shards[record.shard].fence = max(sequencer.shards[record.shard].fence, _fence_of(record))
    record_init(room, REC_TOLD, <int> worker_index(sequencer, worker), sizeof(RecTold), 0)
    memcpy(room + sizeof(RecTold), record, record.size)
    if not sequencer.told_gathers and not _told_claim(sequencer, <RecTold *> room):
        batch.size -= <uint32_t> sizeof(RecTold) + record.size


cdef bint _is_first(Sequencer *sequencer, uint32_t index) noexcept nogil:
    """Whether a worker has told of its sessions, and none of the same number before it in the table."""
    cdef uint32_t other
    for other in range(index + 1):
        if sequencer.workers[other].state == WORKER_LINKED and sequencer.workers[other].everybody \
                and sequencer.workers[other].number == sequencer.workers[index].number:
            return other == index
    return False


cdef void told_linked(Sequencer *sequencer) noexcept nogil:
    """A worker has linked: behind the last one's END, nothing more is waited for.

    Workers are told apart by their numbers: an earlier start of one may run on beside it (a rolling reload), and what
    links without sessions (the admin server) is none.
    """
    cdef uint32_t index
    cdef uint32_t count = 0
    if not sequencer.told_gathers or sequencer.told_workers == 0:
        return
    for index in range(sequencer.worker_count):
        count += _is_first(sequencer, index)
    sequencer.told_due = sequencer.told_due or count >= sequencer.told_workers


cdef void told_end(Sequencer *sequencer) noexcept nogil:
    """NOTE_TOLD_END, or all have told: hand over all that was told, with the claim by which each session is had now.

    A full mailbox keeps it.
    """
    cdef uint32_t place = 0
    cdef Note note
    cdef RecTold *told
    if not sequencer.told_gathers:
        return
    while place < sequencer.told.size:
        told = <RecTold *> (sequencer.told.data + place)
        _told_claim(sequencer, told)
        place += <uint32_t> sizeof(RecTold) + (<Record *> (sequencer.told.data + place + sizeof(RecTold))).size
    sessions_flush(sequencer)
    note_init(&note, NOTE_SESSION_TOLD)
    note.text_size = sequencer.told.size
    if mailbox_put(&sequencer.to_control, &note, sequencer.told.data, NULL) < 0:
        sequencer.told_due = True
        return
    sequencer.told_due = sequencer.told_gathers = False
    batch_free(&sequencer.told)


cdef void session_open(Sequencer *sequencer, Worker *worker, RecSession *record, bint evicted) noexcept nogil:
    """A session was claimed: have it stored, and answer, behind what is stored of it if that is wanted."""
    cdef bint resumes = record.head.aux & OPEN_RESUME != 0
    cdef bint told = False
    if record.seq == 0 or record.head.aux & OPEN_AGAIN:
        return
    if sequencer.sessions_kept:
        told = _store(sequencer, record, _question(sequencer, worker, record.seq, evicted), record.head.aux)
    if record.head.aux & OPEN_ALIVE and not sequencer.sessions_kept and not evicted:
        _opened(worker, record.conn, record.seq, record.fence, SESSION_EXPIRED, NULL, 0)
    elif not resumes or not sequencer.sessions_kept:
        _opened(worker, record.conn, record.seq, record.fence, OPENED_TAKEN if evicted else 0, NULL, 0)
    elif not told:                      # it goes on with the client's own positions, if it has any
        _opened(worker, record.conn, record.seq, record.fence, UNAVAILABLE, NULL, 0)


cdef void session_opened(Sequencer *sequencer, Note *note) noexcept nogil:
    """NOTE_SESSION_OPENED: what is stored of a session."""
    cdef Worker *worker = _asker(sequencer, note.request, WORKER_LINKING)
    if worker != NULL:
        _opened(worker, note.conn, <uint32_t> note.request, note.second,
                <int> (note.first or note.request >> 55 & 1), <uint8_t *> note + sizeof(Note), note.text_size)


cdef void _gather(Sequencer *sequencer, const Record *record) noexcept nogil:
    if sequencer.sessions_kept and batch_write(&sequencer.states, record, record.size) < 0:
        ledger_count_shared(sequencer.ledger, COUNT_STATES_LOST, 1)


cdef void session_close(Sequencer *sequencer, RecSession *record) noexcept nogil:
    """The connection that had a session ended."""
    _gather(sequencer, &record.head)


cdef inline uint32_t _shard_of(Sequencer *sequencer, const RecState *record) noexcept nogil:
    return shard_of_channel(&sequencer.namespaces, <const char *> record + sizeof(RecState), record.head.aux,
                            sequencer.shard_count)


cdef void session_state(Sequencer *sequencer, RecState *record) noexcept nogil:
    """What a session did, told by the worker that has it."""
    cdef Stream *stream
    if record.what == STATE_HERE:
        return
    if record.what == STATE_ACKED:
        stream = stream_find(&sequencer.streams, <const char *> record + sizeof(RecState), record.head.aux)
        if sequencer.shards[_shard_of(sequencer, record)].state == SHARD_LEADING:
            if stream == NULL or stream.offset == 0:
                return                  # there is nothing to acknowledge
            record.offset = min(record.offset, stream.offset)
            record.epoch = catchup_epoch(stream, record.offset)
        elif record.offset == 0:
            return                      # as its worker knows, who heard it of the channel's leader
    _gather(sequencer, &record.head)


cdef void sessions_alive(Sequencer *sequencer, uint32_t seconds) noexcept nogil:
    """So many seconds passed: tell of the next sessions that are open, all of them once a period."""
    cdef uint32_t total = sequencer.owners.chunk_count << sequencer.owners.chunk_shift
    cdef uint32_t count
    cdef uint64_t due
    cdef Owner *owner
    cdef RecState *say
    if not sequencer.sessions_kept or total == 0:
        return
    sequencer.alive_due += <uint64_t> total * seconds
    due = sequencer.alive_due // <uint64_t> ALIVE_PERIOD_S
    sequencer.alive_due -= due * <uint64_t> ALIVE_PERIOD_S
    count = <uint32_t> min(due, <uint64_t> total)
    while count:
        count -= 1
        sequencer.alive_next = sequencer.alive_next + 1 if sequencer.alive_next + 1 < total else 0
        if sequencer.owners.chunks[sequencer.alive_next >> sequencer.owners.chunk_shift].memory == NULL:
            continue
        owner = <Owner *> slab_at(&sequencer.owners, sequencer.alive_next)
        if owner.live != 1 or owner.guest:
            continue
        say = <RecState *> record_add(&sequencer.states, REC_STATE, 0, sizeof(RecState), 0)
        if say != NULL:
            say.what = STATE_HERE
            memcpy(say.session, owner.session, 16)


cdef void sessions_flush(Sequencer *sequencer) noexcept nogil:
    """Hand this turn's over; a full mailbox keeps them for the next one."""
    cdef Note note
    if sequencer.told_due:
        sequencer.told_due = False
        told_end(sequencer)
    if sequencer.states.size == 0:
        return
    note_init(&note, NOTE_SESSION_STATE)
    note.text_size = sequencer.states.size
    if mailbox_put(&sequencer.to_control, &note, sequencer.states.data, NULL) == 0:
        batch_clear(&sequencer.states)


cdef void cursor_ask(Sequencer *sequencer, Worker *worker, RecCatchup *record) noexcept nogil:
    """CATCHUP from the last ACK of the channel's user: asked for only where there is anything to catch up on."""
    cdef Stream *stream = stream_find(&sequencer.streams, <const char *> record + sizeof(RecCatchup), record.head.aux)
    cdef Note note
    record.since_epoch = record.since_offset = 0
    record.cursor = CURSOR_READ
    if stream != NULL and stream.offset and sequencer.sessions_kept:
        note_init(&note, NOTE_CURSOR)
        note.request = _question(sequencer, worker, record.seq, False)
        note.conn = record.channel
        note.text_size = record.head.aux
        if mailbox_put(&sequencer.to_control, &note, <uint8_t *> record + sizeof(RecCatchup), NULL) == 0:
            return
        record.cursor = CURSOR_AWAY
    elif not sequencer.sessions_kept:
        record.cursor = CURSOR_NOT_KEPT
    if stream != NULL:                  # there is no cursor: it starts live
        record.since_epoch = stream.epoch
        record.since_offset = stream.offset
    catchup_answer(sequencer, worker, record)


cdef void cursor_read(Sequencer *sequencer, Note *note) noexcept nogil:
    """NOTE_CURSOR_READ: the outcome for a new device that starts at its user's cursor."""
    cdef Worker *worker = _asker(sequencer, note.request, WORKER_LINKED)
    cdef CatchupRoom room
    if worker == NULL or note.text_size > NAME_BYTES_MAX:
        return
    memset(&room, 0, sizeof(room))
    room.record.head.kind = REC_CATCHUP
    room.record.head.shard = shard_of_channel(&sequencer.namespaces, <const char *> note + sizeof(Note), note.text_size,
                                              sequencer.shard_count)
    if not shard_is_said(worker, room.record.head.shard):
        return                          # it is asked again of the next leader
    room.record.head.aux = <unsigned short> note.text_size
    room.record.channel = note.conn
    room.record.seq = <uint32_t> note.request
    room.record.flags = CATCHUP_OUTCOME | CATCHUP_CURSOR
    room.record.cursor = <uint32_t> note.first
    room.record.since_epoch = note.second
    room.record.since_offset = note.third
    memcpy(room.bytes + sizeof(RecCatchup), <uint8_t *> note + sizeof(Note), note.text_size)
    room.record.head.size = <uint32_t> ((sizeof(RecCatchup) + note.text_size + 7) & ~(<size_t> 7))
    if sequencer.streams.cold and loading_takes(sequencer, worker, &room.record.head):
        return                          # it left memory meanwhile, and is asked for anew when it is back
    catchup_answer(sequencer, worker, &room.record)


# ------------------------------------------------------------------------------------------ what operators ask for


cdef void _reply(Worker *worker, uint32_t seq, int code, const uint8_t *body, uint32_t size) noexcept nogil:
    cdef RecBody *answer = <RecBody *> worker_say(worker, REC_REPLY, code, sizeof(RecBody), size)
    if answer != NULL:
        answer.seq = seq
        answer.body_size = size
        if size:
            memcpy(<uint8_t *> answer + sizeof(RecBody), body, size)


cdef void sessions_ask(Sequencer *sequencer, Worker *worker, const RecBody *record) noexcept nogil:
    """SESSIONS: what is stored of sessions, which the control thread reads."""
    cdef Note note
    sessions_flush(sequencer)           # what they did before this was asked counts
    note_init(&note, NOTE_SESSIONS)
    note.request = _question(sequencer, worker, record.seq, False)
    note.text_size = record.body_size
    if not sequencer.sessions_kept:
        _reply(worker, record.seq, NOT_ALLOWED, NULL, 0)
    elif mailbox_put(&sequencer.to_control, &note, <const uint8_t *> record + sizeof(RecBody), NULL) < 0:
        _reply(worker, record.seq, UNAVAILABLE, NULL, 0)


cdef void sessions_read(Sequencer *sequencer, const Note *note) noexcept nogil:
    """NOTE_SESSIONS_READ: the answer."""
    cdef Worker *worker = _asker(sequencer, note.request, WORKER_LINKED)
    if worker != NULL and bulk_fits(worker, <uint32_t> note.request, note.text_size):
        _reply(worker, <uint32_t> note.request, <int> note.first, <const uint8_t *> note + sizeof(Note), note.text_size)
