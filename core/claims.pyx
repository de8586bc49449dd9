"""Claims: those that wait a turn, and when they are done."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcmp, memcpy, memmove

from core.batch cimport batch_clear, batch_reserve
from core.leading cimport shard_is_said, shard_waits
from core.records cimport OPEN_AGAIN, OPEN_RESUME, Record
from core.sequencer cimport WORKER_LINKING, worker_at, worker_index

cdef enum:
    DONE = 0xFFFFFFFF           # in place of a worker's index

ctypedef struct Claim:          # the head of one that waits; the record follows
    uint32_t worker             # index
    uint32_t start              # low half of its epoch: the index may be another's by then
    uint32_t size               # of head and record, a multiple of 8
    uint32_t reserved


cdef inline Claim *_claim_at(Sequencer *sequencer, uint32_t place) noexcept nogil:
    return <Claim *> (sequencer.claims.data + place)


cdef inline RecSession *_record_of(Claim *claim) noexcept nogil:
    return <RecSession *> (<uint8_t *> claim + sizeof(Claim))


cdef bint _is_waited_for(Sequencer *sequencer, const uint8_t *session) noexcept nogil:
    """Whether a claim of this session waits: O(claims), which only a resume looks for, and only while some wait."""
    cdef uint32_t place = 0
    cdef Claim *claim
    while place < sequencer.claims.size:
        claim = _claim_at(sequencer, place)
        if claim.worker != DONE and memcmp(_record_of(claim).session, session, 16) == 0:
            return True
        place += claim.size
    return False


cdef bint claim_waits(Sequencer *sequencer, Worker *worker, const RecSession *record, bint elsewhere) noexcept nogil:
    """Whether a claim has to wait, and was kept for that; `elsewhere`: another worker has the session."""
    cdef uint32_t size = (<uint32_t> sizeof(Claim) + record.head.size + 7) & ~(<uint32_t> 7)
    cdef Claim *claim
    if record.seq == 0 or record.head.aux & OPEN_AGAIN:
        return False                    # said again after a lost link: no answer is waited for
    if not elsewhere and not shard_waits(sequencer, record.head.shard) \
            and not (record.head.aux & OPEN_RESUME and _is_waited_for(sequencer, record.session)):
        return False
    claim = <Claim *> batch_reserve(&sequencer.claims, size)
    if claim == NULL:
        return False
    claim.worker = worker_index(sequencer, worker)
    claim.start = <uint32_t> worker.epoch
    claim.size = size
    memcpy(_record_of(claim), record, record.head.size)
    return True


cdef void _do(Sequencer *sequencer, Claim *claim, RunRecord run) noexcept nogil:
    """Do one, unless that was done, or its worker is gone."""
    cdef uint32_t index = claim.worker
    claim.worker = DONE
    if index != DONE and worker_at(sequencer, index).state >= WORKER_LINKING \
            and <uint32_t> worker_at(sequencer, index).epoch == claim.start \
            and shard_is_said(worker_at(sequencer, index), _record_of(claim).head.shard):
        run(sequencer, worker_at(sequencer, index), <Record *> _record_of(claim))


cdef void claims_settle(Sequencer *sequencer, Worker *worker, uint64_t conn, RunRecord run) noexcept nogil:
    """A connection ends: what it claimed is done before that."""
    cdef uint32_t place = 0
    cdef Claim *claim
    while place < sequencer.claims.size:
        claim = _claim_at(sequencer, place)
        place += claim.size
        if claim.worker == worker_index(sequencer, worker) and _record_of(claim).conn == conn:
            _do(sequencer, claim, run)


cdef void claims_serve(Sequencer *sequencer, bint all_taken, RunRecord run) noexcept nogil:
    """At the end of a turn: do those that were there before it, if it took all that had come; the others wait on."""
    cdef uint32_t place = 0
    cdef uint32_t put_off = 0
    cdef uint32_t size
    cdef Claim *claim
    sequencer.claims_held = False
    if sequencer.claims.size == 0:
        return
    sequencer.claims_turns += 1
    if sequencer.claims_place and not all_taken and sequencer.claims_turns < CLAIMS_TURNS_MAX:
        return
    sequencer.claims_turns = 0
    while place < sequencer.claims_place:
        claim = _claim_at(sequencer, place)
        size = claim.size
        place += size
        if claim.worker != DONE and shard_waits(sequencer, _record_of(claim).head.shard):
            memmove(sequencer.claims.data + put_off, claim, size)   # ahead of all that came behind it
            put_off += size
        else:
            _do(sequencer, claim, run)
    size = sequencer.claims.size - place
    sequencer.claims_held = size == 0 and put_off != 0
    sequencer.claims_place = put_off + size
    if sequencer.claims_place:
        memmove(sequencer.claims.data + put_off, sequencer.claims.data + place, size)
        sequencer.claims.size = sequencer.claims_place
    else:
        batch_clear(&sequencer.claims)
