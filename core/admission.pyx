"""Admission: OPENs that wait for their claim, and for the end of whom they evict."""

from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from core.batch cimport batch_clear, batch_free, batch_write
from core.codes cimport RESUMED_ELSEWHERE, UNAVAILABLE
from core.hash cimport hash_bytes, index_find, index_free, index_put, index_remove
from core.leading cimport shard_is_said
from core.mailbox cimport NOTE_BEGAN, NOTE_CLAIM, mailbox_put, note_init
from core.owners cimport owner_at, owner_conn
from core.records cimport OPEN_AGAIN, REC_EVICT, REC_OPENED
from core.sequencer cimport (WORKER_LINKING, Owner, owner_of, session_claim, worker_at, worker_index, worker_say)
from core.slab cimport SLAB_NONE, generation_next, slab_acquire, slab_at, slab_free, slab_init, slab_release

assert sizeof(Admission) == 48

ctypedef struct Evicting:       # an entry of the queue of those that wait for somebody's end, the first due first
    uint64_t request
    uint64_t due_ms


cdef void admissions_init(Sequencer *sequencer, bint on) noexcept nogil:
    sequencer.admissions.on = on
    sequencer.admissions.evicting.bytes_max = sequencer.admissions.due.bytes_max = 0x7FFFFFFF
    slab_init(&sequencer.admissions.slab, sizeof(Admission), 10, ADMISSIONS_MAX)


cdef inline Admission *_at(Sequencer *sequencer, uint32_t index) noexcept nogil:
    return <Admission *> slab_at(&sequencer.admissions.slab, index)


cdef inline uint64_t _hash(Sequencer *sequencer, const uint8_t *session) noexcept nogil:
    return hash_bytes(&sequencer.hash_key, session, 16)


cdef inline uint64_t _request(Admission *admission, uint32_t index) noexcept nogil:
    return <uint64_t> admission.generation << 32 | index


cdef void _end(Sequencer *sequencer, uint32_t index) noexcept nogil:
    """An admission is over."""
    cdef Admission *admission = _at(sequencer, index)
    index_remove(&sequencer.admissions.index, _hash(sequencer, admission.record.session), index)
    if admission.evicting:
        index_remove(&sequencer.admissions.formers, _hash(sequencer, admission.former), index)
    free(admission.record)
    admission.record = NULL
    admission.generation = 0
    slab_release(&sequencer.admissions.slab, index)


cdef void admissions_free(Sequencer *sequencer) noexcept nogil:
    """What waits is not answered any more."""
    cdef uint32_t chunk, number
    cdef Admission *admission
    for chunk in range(sequencer.admissions.slab.chunk_count):
        if sequencer.admissions.slab.chunks[chunk].memory == NULL:
            continue
        for number in range(sequencer.admissions.slab.chunks[chunk].fresh):
            admission = _at(sequencer, chunk << sequencer.admissions.slab.chunk_shift | number)
            if admission.generation != 0 and admission.generation != <uint32_t> 0xDDDDDDDD:
                _end(sequencer, chunk << sequencer.admissions.slab.chunk_shift | number)
            if sequencer.admissions.slab.chunks[chunk].memory == NULL:
                break
    slab_free(&sequencer.admissions.slab)
    index_free(&sequencer.admissions.index)
    index_free(&sequencer.admissions.formers)
    batch_free(&sequencer.admissions.evicting)
    batch_free(&sequencer.admissions.due)


cdef uint32_t _find(Sequencer *sequencer, Worker *worker, const RecSession *record) noexcept nogil:
    """Index of a connection's admission, or SLAB_NONE."""
    cdef uint32_t probe = 0
    cdef uint64_t hash = _hash(sequencer, record.session)
    cdef uint32_t found = index_find(&sequencer.admissions.index, hash, &probe)
    cdef Admission *admission
    while found:
        admission = _at(sequencer, found - 1)
        if admission.worker == worker_index(sequencer, worker) and admission.record.conn == record.conn \
                and memcmp(admission.record.session, record.session, 16) == 0 \
                and admission.start == <uint32_t> worker.epoch:
            return found - 1
        found = index_find(&sequencer.admissions.index, hash, &probe)
    return SLAB_NONE


cdef uint32_t _of_request(Sequencer *sequencer, uint64_t request) noexcept nogil:
    """Index of an admission, or SLAB_NONE when its connection has ended."""
    cdef uint32_t index = <uint32_t> request
    cdef uint32_t chunk = index >> sequencer.admissions.slab.chunk_shift
    if chunk >= sequencer.admissions.slab.chunk_count or sequencer.admissions.slab.chunks[chunk].memory == NULL \
            or _at(sequencer, index).generation != request >> 32 or request >> 32 == 0:
        return SLAB_NONE
    return index


cdef bint _say(Sequencer *sequencer, Worker *worker, const RecSession *record, int kind,
               uint64_t request) noexcept nogil:
    """CLAIM; False: the control thread has no room for it."""
    cdef Note note
    note_init(&note, NOTE_CLAIM)
    note.flags = <unsigned short> (kind | worker.number << CLAIM_KIND_BITS)
    note.request = request
    note.conn = record.conn
    note.first = record.fence
    note.second = worker.epoch
    note.text_size = record.body_size if kind == CLAIM_NEW else 0
    note.extra_size = worker.identity_size
    memcpy(note.session, record.session, 16)
    return mailbox_put(&sequencer.to_control, &note, <const uint8_t *> record + sizeof(RecSession),
                       worker.identity) == 0


cdef void _refuse(Worker *worker, const RecSession *record, int code, const uint8_t *why, uint32_t size) noexcept nogil:
    """OPENED without a fence: the session is not this connection's, and why."""
    cdef RecSession *say = <RecSession *> worker_say(worker, REC_OPENED, code, sizeof(RecSession), size)
    if say != NULL:
        say.conn = record.conn
        say.seq = record.seq
        say.body_size = size
        memcpy(say.session, record.session, 16)
        if size:
            memcpy(<uint8_t *> say + sizeof(RecSession), why, size)


cdef uint32_t _begin(Sequencer *sequencer, Worker *worker, const RecSession *record) noexcept nogil:
    """Keep an OPEN; SLAB_NONE: there is no room."""
    cdef uint32_t index = slab_acquire(&sequencer.admissions.slab)
    cdef Admission *admission
    if index == SLAB_NONE:
        return SLAB_NONE
    admission = _at(sequencer, index)
    memset(admission, 0, sizeof(Admission))
    admission.record = <RecSession *> malloc(record.head.size)
    if admission.record == NULL:
        slab_release(&sequencer.admissions.slab, index)
        return SLAB_NONE
    memcpy(admission.record, record, record.head.size)
    admission.worker = <uint8_t> worker_index(sequencer, worker)
    admission.start = <uint32_t> worker.epoch
    admission.generation = generation_next(&sequencer.admissions.generation)
    if index_put(&sequencer.admissions.index, _hash(sequencer, record.session), index) < 0 \
            or not _say(sequencer, worker, record, CLAIM_NEW, _request(admission, index)):
        _end(sequencer, index)
        return SLAB_NONE
    return index


cdef void session_admit(Sequencer *sequencer, Worker *worker, Record *said) noexcept nogil:
    """A connection wants a session, or has it since before this router led the shard (then it is heard at once)."""
    cdef const RecSession *record = <const RecSession *> said
    if sequencer.admissions.on and record.seq and not said.aux & OPEN_AGAIN:
        if _find(sequencer, worker, record) == SLAB_NONE and _begin(sequencer, worker, record) == SLAB_NONE:
            _refuse(worker, record, UNAVAILABLE, NULL, 0)
        return
    session_claim(sequencer, worker, said)
    if sequencer.admissions.on:
        _say(sequencer, worker, record, CLAIM_AGAIN, 0)


cdef void admission_close(Sequencer *sequencer, Worker *worker, const RecSession *record) noexcept nogil:
    """A connection has ended: if its OPEN waits, it waits no more."""
    cdef uint32_t index
    cdef uint64_t request = 0
    if not sequencer.admissions.on:
        return
    index = _find(sequencer, worker, record)
    if index != SLAB_NONE:
        request = _request(_at(sequencer, index), index)
        _end(sequencer, index)
    _say(sequencer, worker, record, CLAIM_BYE, request)


cdef void admission_began(Sequencer *sequencer, const Worker *worker) noexcept nogil:
    """A worker begins, and no earlier start of it runs: what that had is nobody's. Where the control thread has no room
    for it, the keys stay until the next start."""
    cdef Note note
    if not sequencer.admissions.on:
        return
    note_init(&note, NOTE_BEGAN)
    note.flags = <unsigned short> worker.number
    note.first = worker.epoch
    note.text_size = worker.identity_size
    mailbox_put(&sequencer.to_control, &note, worker.identity, NULL)


cdef void admission_ended(Sequencer *sequencer, const uint8_t *session) noexcept nogil:
    """Nobody has this session any more: who waited for that goes on at the end of the turn."""
    cdef uint32_t probe = 0
    cdef uint64_t hash, request
    cdef uint32_t found
    if sequencer.admissions.slab.live == 0:
        return
    hash = _hash(sequencer, session)
    found = index_find(&sequencer.admissions.formers, hash, &probe)
    while found:
        if memcmp(_at(sequencer, found - 1).former, session, 16) == 0:
            request = _request(_at(sequencer, found - 1), found - 1)
            batch_write(&sequencer.admissions.due, &request, sizeof(request))   # no room: it goes on when it is due
        found = index_find(&sequencer.admissions.formers, hash, &probe)


cdef bint _evict(Sequencer *sequencer, const uint8_t *session, uint64_t conn, int code, const uint8_t *why,
                 uint32_t size) noexcept nogil:
    """End the connection that has a session, unless it is another one than `conn` (0: whichever); False: nobody has
    it."""
    cdef uint32_t index = owner_of(sequencer, session)
    cdef RecSession *say
    if index == SLAB_NONE or owner_at(sequencer, index).guest \
            or (conn and owner_conn(owner_at(sequencer, index)) != conn):
        return False
    say = <RecSession *> worker_say(worker_at(sequencer, owner_at(sequencer, index).worker), REC_EVICT, code,
                                    sizeof(RecSession), size)
    if say != NULL:
        say.conn = owner_conn(owner_at(sequencer, index))
        say.body_size = size
        memcpy(say.session, session, 16)
        if size:
            memcpy(<uint8_t *> say + sizeof(RecSession), why, size)
    return True


cdef bint _is_live(Sequencer *sequencer, const Admission *admission) noexcept nogil:
    """Whether its worker is there, and its word about the shard counts: else it asks again, whoever leads it then."""
    return worker_at(sequencer, admission.worker).state >= WORKER_LINKING \
        and <uint32_t> worker_at(sequencer, admission.worker).epoch == admission.start \
        and shard_is_said(worker_at(sequencer, admission.worker), admission.record.head.shard)


cdef void _turn_away(Sequencer *sequencer, uint32_t index, int code, const uint8_t *why, uint32_t size) noexcept nogil:
    """The session is not this connection's, and why."""
    cdef Admission *admission = _at(sequencer, index)
    if _is_live(sequencer, admission):
        _refuse(worker_at(sequencer, admission.worker), admission.record, code, why, size)
    _end(sequencer, index)


cdef uint32_t _evicting(Sequencer *sequencer, const uint8_t *session, uint64_t conn, uint64_t below) noexcept nogil:
    """Index of an OPEN whose claim has won this session and which waits for somebody's end, of a connection (0: any)
    and with a lower fence than this; SLAB_NONE: there is none."""
    cdef uint32_t probe = 0
    cdef uint64_t hash = _hash(sequencer, session)
    cdef uint32_t found = index_find(&sequencer.admissions.index, hash, &probe)
    cdef Admission *admission
    while found:
        admission = _at(sequencer, found - 1)
        if admission.evicting and memcmp(admission.record.session, session, 16) == 0 \
                and (conn == 0 or admission.record.conn == conn) and admission.record.fence < below:
            return found - 1
        found = index_find(&sequencer.admissions.index, hash, &probe)
    return SLAB_NONE


cdef void admission_evict(Sequencer *sequencer, const Note *note) noexcept nogil:
    """NOTE_EVICT: first: code, conn: whose connection, text: the session and why."""
    cdef const uint8_t *text = <const uint8_t *> note + sizeof(Note)
    cdef uint32_t index
    if note.text_size < 16 or _evict(sequencer, text, note.conn, <int> note.first, text + 16, note.text_size - 16):
        return
    index = _evicting(sequencer, text, note.conn, <uint64_t> -1)
    if index != SLAB_NONE:
        _turn_away(sequencer, index, <int> note.first, text + 16, note.text_size - 16)


cdef void _go(Sequencer *sequencer, uint32_t index) noexcept nogil:
    """The session is this connection's from here on."""
    cdef Admission *admission = _at(sequencer, index)
    if _is_live(sequencer, admission):
        sequencer.admissions.taken = admission.taken
        session_claim(sequencer, worker_at(sequencer, admission.worker), &admission.record.head)
        sequencer.admissions.taken = False
    _end(sequencer, index)


cdef bint _waits(Sequencer *sequencer, uint32_t index, const Note *note, const uint8_t *text) noexcept nogil:
    """Evict whoever has the session, or the one that this one excludes; False: nobody is there to be waited for.

    That one may itself wait for the end of a third: it is turned away, and this one waits for the third instead.
    """
    cdef Admission *admission = _at(sequencer, index)
    cdef const uint8_t *former = text
    cdef int code = <int> note.second
    cdef uint32_t found = _evicting(sequencer, former, 0, admission.record.fence)
    cdef bint is_told = found != SLAB_NONE
    cdef uint8_t third[16]
    cdef Evicting entry
    cdef Owner *owner
    if is_told:
        memcpy(third, _at(sequencer, found).former, 16)
        _turn_away(sequencer, found, code, text + 16, note.text_size - 16)
        former = third
    found = owner_of(sequencer, former)
    if found == SLAB_NONE:
        former = admission.record.session       # one of whom the directory knows nothing
        found = owner_of(sequencer, former)
        code = RESUMED_ELSEWHERE
    if found == SLAB_NONE or owner_at(sequencer, found).guest:
        return False
    owner = owner_at(sequencer, found)
    admission.taken = memcmp(former, admission.record.session, 16) == 0
    if admission.taken and owner.worker == admission.worker and owner_conn(owner) == admission.record.conn:
        admission.taken = False
        return False
    if not is_told or former != third:
        _evict(sequencer, former, 0, code, text + 16, note.text_size - 16)
    memcpy(admission.former, former, 16)
    admission.due_ms = sequencer.now_ms + EVICT_WAIT_MS
    entry.request = _request(admission, index)
    entry.due_ms = admission.due_ms
    if index_put(&sequencer.admissions.formers, _hash(sequencer, former), index) < 0:
        return False
    admission.evicting = 1
    return batch_write(&sequencer.admissions.evicting, &entry, sizeof(entry)) == 0


cdef void admission_claimed(Sequencer *sequencer, const Note *note) noexcept nogil:
    """NOTE_CLAIMED: request; first: the fence, 0: refused; second: a code; text: the session whose connection is to end
    before, or zeros, and why it is ended, or this one refused."""
    cdef uint32_t index = _of_request(sequencer, note.request)
    cdef const uint8_t *text = <const uint8_t *> note + sizeof(Note)
    cdef Admission *admission
    if index == SLAB_NONE or note.text_size < 16 or _at(sequencer, index).evicting:
        return
    admission = _at(sequencer, index)
    if note.first == 0:
        _turn_away(sequencer, index, <int> note.second, text + 16, note.text_size - 16)
        return
    admission.record.fence = note.first
    if not _is_live(sequencer, admission) or not _waits(sequencer, index, note, text):
        _go(sequencer, index)


cdef void admissions_serve(Sequencer *sequencer) noexcept nogil:
    """At the end of a turn: go on with those whose former owner is gone, or was waited for long enough."""
    cdef uint32_t place = 0
    cdef uint32_t index
    cdef Evicting *entry
    while place < sequencer.admissions.due.size:
        index = _of_request(sequencer, (<uint64_t *> (sequencer.admissions.due.data + place))[0])
        place += <uint32_t> sizeof(uint64_t)
        if index != SLAB_NONE:
            _go(sequencer, index)
    batch_clear(&sequencer.admissions.due)
    while sequencer.admissions.evicting_place < sequencer.admissions.evicting.size:
        entry = <Evicting *> (sequencer.admissions.evicting.data + sequencer.admissions.evicting_place)
        index = _of_request(sequencer, entry.request)
        if index != SLAB_NONE and entry.due_ms > sequencer.now_ms:
            break
        if index != SLAB_NONE:
            _go(sequencer, index)
        sequencer.admissions.evicting_place += <uint32_t> sizeof(Evicting)
    if sequencer.admissions.evicting_place == sequencer.admissions.evicting.size:
        batch_clear(&sequencer.admissions.evicting)
        sequencer.admissions.evicting_place = 0
