# Everybody: the global channels, which every worker hears.
#
# They are few (GLOBALS_MAX, and no more than half a frame has room for), and a worker is told of each (GLOBAL) before
# it hears the first message of it: of all of them when it links, of a new one before its first message. So it knows
# where each stands, holds what comes against that, and says it when it links anew; what came meanwhile it is told then,
# as of a group that it has members in. One that it was never told of, though it was linked before, began while its link
# was lost: it is told that from the start. That start is where it was listed, here and for a session that is older
# (CATCHUP_LISTED): what was said before it was let go is over. Each has a route to each worker that was told, without a
# handle: the frame has the name. Invariant: a stream that ever gave a position to a message since this router's start
# is listed, was refused, or was let go when nothing of it was kept any more. Whoever subscribes to a listed one is told
# GLOBAL before the answer: without it the channel is over.

from libc.stdint cimport uint64_t

from core.records cimport RecChannel
from core.sequencer cimport Sequencer, Worker
from core.stream cimport Stream


cdef bint everybody_add(Sequencer *sequencer, Stream *stream, bint began_before) noexcept nogil
cdef void everybody_link(Sequencer *sequencer, Worker *worker) noexcept nogil
cdef void everybody_say(Sequencer *sequencer, Worker *worker, const Stream *stream, uint64_t offset) noexcept nogil
cdef void everybody_leave(Sequencer *sequencer, Worker *worker) noexcept nogil
