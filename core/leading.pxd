# Leading: which shards this router leads, and which workers have said what they hold of them.
#
# Who leads a shard is decided elsewhere (router/shards/leadership.py) and told in notes: LEAD, PAUSE, FORGET, and
# HOLD, the time up to which the router may lead at all, which is compared with this machine's own clock in every turn,
# also when the control thread hangs. A worker is told of each shard that is led (LEADS) and answers with all that it
# holds of it, between two SHARDS, which what it said of it before is void from. Until then, and from a pause on,
# whatever it says about the shard is passed over: it is told that the shard is led no more (LEADS with epoch 0), keeps
# what was not answered or stored, and says it again behind the next LEADS, in order. Invariant: a bit of `synced` is
# set only while its shard is led and the hold is not over, or fed.

from libc.stdint cimport uint32_t, uint64_t

from core.mailbox cimport Note
from core.records cimport Record, RecShards
from core.sequencer cimport Sequencer, Worker
from core.shards cimport shards_have

cdef enum:
    CLAIMS_WAIT_MS = 500        # for what all workers hold of a shard led anew: a claim may be of what they have
    HOLD_FOR_EVER = 0xFFFFFFFFFFFFFFFF

cdef enum ShardState:
    SHARD_NONE                  # another's, or nobody's
    SHARD_LEADING
    SHARD_PAUSED                # still ours: what is on its way to the log gets there
    SHARD_FORGETTING            # another's, and not all of it is forgotten yet (core/forgetting.pxd)
    SHARD_FEEDING               # another region's: what it orders there is heard here (core/following.pxd)


cdef inline bint shard_is_said(const Worker *worker, uint32_t shard) noexcept nogil:
    """Whether what the worker says about a shard counts."""
    return shards_have(worker.synced, shard)


cdef bint shard_takes(Sequencer *sequencer, const Worker *worker, const Record *record) noexcept nogil
cdef bint shard_waits(Sequencer *sequencer, uint32_t shard) noexcept nogil
cdef void shards_tell(Sequencer *sequencer, Worker *worker) noexcept nogil
cdef void shards_begin(Worker *worker) noexcept nogil
cdef bint shards_said(Sequencer *sequencer, Worker *worker, const RecShards *record) noexcept nogil
cdef void shards_lead_all(Sequencer *sequencer, uint64_t epoch) noexcept nogil
cdef void shard_note(Sequencer *sequencer, const Note *note) noexcept nogil
cdef void shards_turn(Sequencer *sequencer) noexcept nogil
cdef void shards_drained(Sequencer *sequencer) noexcept nogil
