# Replicating: answers to publishes that are given when another region has the message.
#
# A message is delivered when the log has it, whatever its namespace waits for: who is near is not slowed by who is far.
# Its publisher is answered when the control thread says that another region confirmed its batch (REPLICATED). Entries
# are in the order of the batches; one that repeats an earlier publish stands behind it, and is answered no sooner than
# what it repeats. What was logged under an earlier leader counts as replicated once all that the shard had when it was
# led here is confirmed; until then who repeats it is told to come again.
# What still waits when its shard is not led here any more is not answered: its worker asks the next leader, who alone
# learns whether any region has it.

from libc.stdint cimport uint32_t, uint64_t

from core.mailbox cimport Note
from core.sequencer cimport Sequencer, Worker
from core.stream cimport Stream

cdef enum:
    REPLICATING_BYTES_MAX = 33554432

ctypedef struct Replicating:    # 48 bytes
    uint64_t number             # of the batch
    uint64_t epoch
    uint64_t offset
    uint32_t stream             # slot
    uint32_t worker             # as in LogRecord
    uint32_t worker_start
    uint32_t seq
    uint32_t shard
    uint32_t reserved

cdef enum Known:                # of a position that was given before
    KNOWN_REPLICATED
    KNOWN_WAITS                 # the answer is given later
    KNOWN_UNCERTAIN

cdef bint replicating_takes(const Sequencer *sequencer) noexcept nogil
cdef bint replicating_add(Sequencer *sequencer, const Replicating *entry) noexcept nogil
cdef int replicating_again(Sequencer *sequencer, const Stream *stream, uint32_t shard,
                           const Replicating *entry) noexcept nogil
cdef void replicating_done(Sequencer *sequencer, const Note *note) noexcept nogil
