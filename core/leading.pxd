# Leading: which shards this router leads, and what it does with what belongs to others.
#
# A worker that says something of a shard that is not led here hears MOVED, once. From then on everything that it says
# of the shard is passed over until it says SHARD, behind which it says all of it again: so of what was under way
# nothing is taken after something before it was not. A router that is given a shard hears each worker in the same way
# from SHARD on, if it is said by a map that is as new: what still stands in its socket may be from a time when it led
# the shard before, and be ordered elsewhere by now. A router that leads all shards, as one alone does, looks at no name
# for this.

from libc.stdint cimport uint8_t, uint32_t

from core.mailbox cimport Note
from core.records cimport Record, RecShard
from core.sequencer cimport Sequencer, Worker
from core.shards cimport shard_of


cdef enum Moved:                # of a shard at a worker
    MOVED_NOT
    MOVED_SAID                  # it was told; it says SHARD
    MOVED_DUE                   # it is told if it says anything else first


cdef inline bint leads(Sequencer *sequencer, const void *name, uint32_t size) noexcept nogil:
    """Whether the shard of a channel's name, or of a session's 16 bytes, is led here."""
    return sequencer.leads_all or sequencer.led[shard_of(name, size)]


cdef inline bint leads_looked_at(Sequencer *sequencer, Worker *worker) noexcept nogil:
    """Whether `led_elsewhere` has to be asked about a worker's records."""
    return not sequencer.leads_all or worker.moved_count > 0


cdef bint led_elsewhere(Sequencer *sequencer, Worker *worker, Record *record) noexcept nogil
cdef void shard_said(Sequencer *sequencer, Worker *worker, const RecShard *record) noexcept nogil
cdef object leading_start(Sequencer *sequencer, bytes led)
cdef void leading_set(Sequencer *sequencer, const uint8_t *led) noexcept nogil
cdef void leading_take(Sequencer *sequencer, const Note *note, const uint8_t *text) noexcept nogil
cdef void leading_forget(Sequencer *sequencer, Worker *worker) noexcept nogil
