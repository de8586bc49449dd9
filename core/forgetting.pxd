# Forgetting: a shard that is another router's now leaves nothing here.
#
# Its streams with their routes and history, the rooms of its channels, and the sessions in it are let go of, for
# FORGET_NS a turn and all shards together, so that nobody else's messages wait. A session that is in rooms of channels
# that are still led here stays as a guest (core/owners.pxd). What is on its way to or from the log names its stream by
# its slot: such a stream stays until that is over, and the walk begins again. Keys are remembered by hash alone, and
# stay until their window is over: a position that was given once is right for ever.

from libc.stdint cimport uint32_t, uint64_t

from core.sequencer cimport Sequencer, Worker

cdef void forgetting_begin(Sequencer *sequencer, uint32_t shard) noexcept nogil
cdef void forgetting_end(Sequencer *sequencer, uint32_t shard) noexcept nogil
cdef void forgetting_turn(Sequencer *sequencer) noexcept nogil
cdef void worker_unsay(Sequencer *sequencer, Worker *worker, const uint64_t *shards) noexcept nogil
