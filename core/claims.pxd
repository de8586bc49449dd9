# Claims: sessions that are claimed while another worker has them wait for one turn of the router.
#
# A worker says what a session did before it answers the client (core/loop.pyx), so whatever a client was told is on its
# worker's link, if that takes anything, when it comes back through another one. But two links have no order: the claim
# may be read first, and what the session did before it would be of one that its worker does not have any more. So such
# a claim waits until all that was there when it was read has been taken, and is done at the end of the next turn.
# Invariant: claims of one session are done in the order in which they were read, and one of a connection that ended
# before its end is.

from libc.stdint cimport uint64_t

from core.records cimport RecSession
from core.sequencer cimport RunRecord, Sequencer, Worker

cdef enum:
    CLAIMS_BYTES_MAX = 1048576  # of those that wait; what finds no room is done at once
    CLAIMS_TURNS_MAX = 8        # turns that took as many batches as a turn may: then it waits no longer

cdef bint claim_waits(Sequencer *sequencer, Worker *worker, const RecSession *record, bint elsewhere) noexcept nogil
cdef void claims_settle(Sequencer *sequencer, Worker *worker, uint64_t conn, RunRecord run) noexcept nogil
cdef void claims_serve(Sequencer *sequencer, bint all_taken, RunRecord run) noexcept nogil
