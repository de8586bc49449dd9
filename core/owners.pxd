# Owners: which connection has which session, and how what a worker had is forgotten when it is gone.
#
# A worker that is gone may have had tens of thousands of sessions, each in many rooms, and routes in as many streams.
# To end all of them in one turn kept everybody waiting for tens of milliseconds. So the worker's place stays taken
# (WORKER_ENDING) while they end, for FORGET_NS a turn: nobody is found by its identity any more, it hears nothing, and
# a start of it that comes meanwhile has another place. Invariant: nobody can tell what is not forgotten yet from what
# is: `owner_find` ends an owner of such a worker before it could be found. Only counts (of PRESENCE and SURVEY) have
# it until its turn comes.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.sequencer cimport Owner, Sequencer, Worker
from core.slab cimport slab_at

cdef enum:
    FORGET_NS = 500000          # a turn gives to workers that are gone
    FORGET_SLOTS = 256          # looked at between two looks at the clock
    OWNER_SLOTS = 32            # that the end of an owner costs as much as


cdef inline Owner *owner_at(Sequencer *sequencer, uint32_t index) noexcept nogil:
    return <Owner *> slab_at(&sequencer.owners, index)


cdef inline uint64_t owner_conn(Owner *owner) noexcept nogil:
    return <uint64_t> owner.conn[1] << 32 | owner.conn[0]


cdef inline uint64_t owner_fence(Owner *owner) noexcept nogil:
    return <uint64_t> owner.fence[1] << 32 | owner.fence[0]


cdef uint32_t owner_find(Sequencer *sequencer, const uint8_t *session, uint64_t hash) noexcept nogil
cdef void owner_end(Sequencer *sequencer, uint32_t index) noexcept nogil
cdef void worker_end(Sequencer *sequencer, Worker *worker) noexcept nogil
cdef void worker_empty(Sequencer *sequencer, Worker *worker) noexcept nogil
cdef void workers_forget(Sequencer *sequencer, bint whole) noexcept nogil
