# Catch-up: what the router answers to a worker whose client missed messages.
#
# The outcome is found by holding the client's position against the stream's and against the messages that are kept.
# The answer names where to go on; the worker asks again until an answer ends at the stream's position. It goes into
# the worker's batch, in which the messages themselves are: whatever is routed after it follows it. Messages are served
# from a queue, a budget of bytes a turn, so that live traffic is not held up by those who come back; outcomes alone
# are answered at once. What was read from the log for this is served as soon as it is there, since what is read next
# may take its place in memory.
#
# A position (e, n) was told by this log if message n has an epoch <= e and message n + 1, or the stream as it stands
# when there is none, one >= e: a stream's position also carries the epoch of a router that has given no offset yet.

from libc.stdint cimport uint32_t, uint64_t

from core.records cimport RecCatchup
from core.sequencer cimport Sequencer, Worker
from core.stream cimport Stream

cdef enum:
    CATCHUP_TURN_BYTES = 1048576    # of messages served in one turn, over all workers
    CATCHUPS_BYTES_MAX = 33554432   # of the queue: a worker has at most REPLAYS_ASKED_MAX in it

ctypedef struct Found:          # where a client stands
    int outcome                 # Outcome
    int reason                  # GapReason
    uint64_t gap_from           # 0: the next message is there, or there is none
    uint64_t gap_to
    uint32_t place              # of the first message to be replayed; the count of those kept: none

cdef void catchup_find(Stream *stream, uint64_t oldest_ms, uint64_t epoch, uint64_t offset,
                       Found *found) noexcept nogil
cdef uint64_t catchup_epoch(Stream *stream, uint64_t offset) noexcept nogil
cdef uint32_t catchup_answer(Sequencer *sequencer, Worker *worker, RecCatchup *record) noexcept nogil
cdef void catchup_take(Sequencer *sequencer, Worker *worker, RecCatchup *record) noexcept nogil
cdef void catchups_serve(Sequencer *sequencer, uint32_t *budget) noexcept nogil
