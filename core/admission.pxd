# Admission: sessions are claimed elsewhere before they are a connection's.
#
# Where several routers share a directory, or a user may have only so many sessions, it is not this data plane that
# decides whose a session is. An OPEN waits here while its CLAIM goes to the control thread (router/claims_keeper.py),
# and CLAIMED brings the fence, or whose it is. If another connection here has the session, or one that the login policy
# does not let live beside it, that one is evicted first; the OPEN is answered when its worker has said CLOSE, or is
# gone, or after EVICT_WAIT_MS: whoever hears WELCOME knows that the other one does not act any more. Invariant: a
# connection has at most one admission; a request that is not found any more is of a connection that ended.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.mailbox cimport Note
from core.records cimport Record, RecSession
from core.sequencer cimport Sequencer, Worker

cdef enum ClaimKind:            # flags of CLAIM, in the low bits; above them the worker's number
    CLAIM_NEW                   # an OPEN waits: request, session, conn, second: the worker's start; text: its body
    CLAIM_AGAIN                 # a connection has the session since before: first: by which fence
    CLAIM_BYE                   # a connection has ended; request: of its OPEN, 0: that was answered

cdef enum:
    CLAIM_KIND_BITS = 2
    EVICT_WAIT_MS = 2000
    ADMISSIONS_MAX = 1048576    # beyond it OPENs are refused

ctypedef struct Admission:      # 48 bytes: an OPEN that waits
    RecSession *record          # owned; NULL: the slot is free
    uint32_t generation
    uint32_t start              # low half of the worker's epoch: the index may be another's by then
    uint8_t worker              # index
    uint8_t evicting            # it is claimed, and waits for the end of `former`'s connection
    uint8_t taken               # that connection has this very session
    uint8_t former[16]
    uint64_t due_ms             # of `evicting`: then it is waited for no longer

cdef void admissions_init(Sequencer *sequencer, bint on) noexcept nogil
cdef void admissions_free(Sequencer *sequencer) noexcept nogil
cdef void session_admit(Sequencer *sequencer, Worker *worker, Record *said) noexcept nogil
cdef void admission_close(Sequencer *sequencer, Worker *worker, const RecSession *record) noexcept nogil
cdef void admission_began(Sequencer *sequencer, const Worker *worker) noexcept nogil
cdef void admission_ended(Sequencer *sequencer, const uint8_t *session) noexcept nogil
cdef void admission_claimed(Sequencer *sequencer, const Note *note) noexcept nogil
cdef void admission_evict(Sequencer *sequencer, const Note *note) noexcept nogil
cdef void admissions_serve(Sequencer *sequencer) noexcept nogil
