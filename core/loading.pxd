# Loading: streams whose position, or whose messages, have to be read from the log first.
#
# A router whose log gives back everything at the start (`Opened.complete`) loads nothing until something of it has no
# room in memory; of another log it always does (`Streams.cold`). From then on a stream is cold when it is made: its
# epoch is 0, and nothing may be given or told. What a worker says about it starts a load; that and
# all that is said of the stream meanwhile waits, copied, in its order, and is done as if it came now when the load is
# done. A stream whose position is known is loaded once more, with its messages, when somebody reads what may not be in
# its ring. What waits is bounded, and refused beyond that; a load that fails refuses it as well. Where workers have
# members, and where they have none any more, is never refused: no worker would say it again.
# Invariant: a stream with `loading` set has a load under way at the control thread, or, with LOADING_UNASKED, has to be
# asked for as soon as that has room; it is never dropped.

from core.mailbox cimport Note
from core.records cimport Record
from core.sequencer cimport RunRecord, Sequencer, Worker

cdef enum:
    LOADING_BYTES_MAX = 67108864

cdef enum Loading:
    LOADING_NOT
    LOADING_POSITION
    LOADING_MESSAGES
    LOADING_UNASKED = 4         # beside one of the two

cdef bint loading_takes(Sequencer *sequencer, Worker *worker, Record *record) noexcept nogil
cdef void loading_done(Sequencer *sequencer, const Note *note, RunRecord run) noexcept nogil
cdef void loads_ask(Sequencer *sequencer) noexcept nogil
