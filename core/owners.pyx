"""Owners: find and end them, those of a worker that is gone a portion a turn."""

from libc.string cimport memcmp

from core.admission cimport admission_ended
from core.clock cimport clock_ns
from core.hash cimport hash_bytes, index_find, index_remove
from core.ledger cimport KIND_SESSION, ledger_release
from core.presence cimport presence_end
from core.sequencer cimport WORKER_ENDING, WORKER_FREE, worker_at, worker_index
from core.slab cimport SLAB_NONE, invariant, slab_release
from core.stream cimport routes_forget


cdef uint32_t owner_find(Sequencer *sequencer, const uint8_t *session, uint64_t hash) noexcept nogil:
    """Index of a session's owner, SLAB_NONE when nobody has it; one whose worker is gone ends here."""
    cdef uint32_t probe = 0
    cdef uint32_t found = index_find(&sequencer.owner_index, hash, &probe)
    cdef Owner *owner
    while found:
        owner = owner_at(sequencer, found - 1)
        if memcmp(owner.session, session, 16) == 0:
            if worker_at(sequencer, owner.worker).state != WORKER_ENDING:
                return found - 1
            owner_end(sequencer, found - 1)
            return SLAB_NONE
        found = index_find(&sequencer.owner_index, hash, &probe)
    return SLAB_NONE


cdef void owner_end(Sequencer *sequencer, uint32_t index) noexcept nogil:
    """Nobody has the session any more, and it is in no room."""
    cdef Owner *owner = owner_at(sequencer, index)
    presence_end(sequencer, index)
    worker_at(sequencer, owner.worker).sessions -= 1
    index_remove(&sequencer.owner_index, hash_bytes(&sequencer.hash_key, owner.session, 16), index)
    owner.live = 0
    admission_ended(sequencer, owner.session)
    ledger_release(sequencer.ledger, KIND_SESSION, index)
    slab_release(&sequencer.owners, index)


cdef bint _owners_forget(Sequencer *sequencer, uint32_t worker, uint32_t *place, uint32_t slots) noexcept nogil:
    """End a worker's owners among some slots more, from `place` on; True: all have ended."""
    cdef uint32_t total = sequencer.owners.chunk_count << sequencer.owners.chunk_shift
    cdef uint32_t used = 0
    cdef Owner *owner
    while worker_at(sequencer, worker).sessions and used < slots:
        invariant(place[0] < total)
        used += 1
        if sequencer.owners.chunks[place[0] >> sequencer.owners.chunk_shift].memory == NULL:
            place[0] = ((place[0] >> sequencer.owners.chunk_shift) + 1) << sequencer.owners.chunk_shift
            continue
        owner = owner_at(sequencer, place[0])
        if owner.live == 1 and owner.worker == worker:
            owner_end(sequencer, place[0])
            used += OWNER_SLOTS
        place[0] += 1
    return worker_at(sequencer, worker).sessions == 0


cdef void worker_empty(Sequencer *sequencer, Worker *worker) noexcept nogil:
    """Forget all that a worker has which goes on at its place: it is asked twice at most, and says everything again in
    the very turn."""
    cdef uint32_t place = 0
    cdef uint32_t most = SLAB_NONE
    _owners_forget(sequencer, worker_index(sequencer, worker), &place, most)
    place = 0
    routes_forget(&sequencer.streams, worker_index(sequencer, worker), &place, most)


cdef void worker_end(Sequencer *sequencer, Worker *worker) noexcept nogil:
    """A worker is gone: from here on it is forgotten, at once if this turn has the time for it."""
    worker.state = WORKER_ENDING
    worker.out.bytes_max = 0            # its routes are there for a while, and nothing is said to it
    sequencer.endings += 1
    workers_forget(sequencer, False)


cdef void _forget_some(Sequencer *sequencer) noexcept nogil:
    """One portion: of a worker's sessions, then of its routes; then its place is free."""
    cdef Worker *worker = worker_at(sequencer, sequencer.ending)
    while worker.state != WORKER_ENDING:
        sequencer.ending = (sequencer.ending + 1) % sequencer.worker_count
        worker = worker_at(sequencer, sequencer.ending)
    if not sequencer.ending_routes:
        if _owners_forget(sequencer, sequencer.ending, &sequencer.ending_place, FORGET_SLOTS):
            sequencer.ending_routes = True
            sequencer.ending_place = 0
    elif routes_forget(&sequencer.streams, sequencer.ending, &sequencer.ending_place, FORGET_SLOTS):
        sequencer.ending_routes = False
        sequencer.ending_place = 0
        sequencer.endings -= 1
        worker.out.bytes_max = sequencer.spill_bytes_max
        worker.overfull = False
        worker.state = WORKER_FREE


cdef void workers_forget(Sequencer *sequencer, bint whole) noexcept nogil:
    """Go on with those who are gone for as long as this turn has left for it; `whole`: to the end."""
    cdef uint64_t began_ns
    cdef uint64_t spent_ns = 0
    if sequencer.endings == 0:
        return
    began_ns = clock_ns()
    while sequencer.endings and (whole or spent_ns < sequencer.forget_left_ns):
        _forget_some(sequencer)
        spent_ns = clock_ns() - began_ns
    sequencer.forget_left_ns -= min(spent_ns, sequencer.forget_left_ns)
