# Following: shards that another region leads, as the workers of this region hear them.
#
# The control thread repeats what their leader appended on the log of this region (router/log/bridge.py), and then gives
# the records here: each is kept and sent to the workers with members, with the position that it has everywhere. What is
# in no log (core/abroad.pxd) comes among them, when it is published: before what the log has to take first. Who is
# asked to follow (FOLLOW) tells the workers so (LEADS with LEADS_FEEDS): they say SUBSCRIBE and ask for replays here,
# and everything else of the leader. A client, or a worker, may come from where more was heard already: what it asks
# waits until that is here too, for FOLLOWING_WAIT_MS at most, and is to come again then; its positions are never set
# back.
# A stream that is followed has the epoch under which its leader gives positions: its shard's, or that of its last
# message if that is higher. Invariant: it gives no position of its own.

from libc.stdint cimport uint32_t, uint64_t

from core.mailbox cimport Note
from core.records cimport RecCatchup
from core.sequencer cimport Sequencer, Worker
from core.stream cimport Stream

cdef enum:
    FOLLOWING_WAIT_MS = 2000    # a round trip between regions, and a Redis that stutters
    AHEAD_BYTES_MAX = 16777216

cdef void following_raise(Sequencer *sequencer, uint32_t shard, uint64_t epoch) noexcept nogil
cdef void following_know(Sequencer *sequencer, Stream *stream, uint64_t epoch, uint64_t offset) noexcept nogil
cdef bint following_lacks(const Stream *stream, uint64_t epoch, uint64_t offset) noexcept nogil
cdef bint following_waits(Sequencer *sequencer, Worker *worker, RecCatchup *record) noexcept nogil
cdef void following_records(Sequencer *sequencer, const Note *note) noexcept nogil
cdef void following_turn(Sequencer *sequencer) noexcept nogil
