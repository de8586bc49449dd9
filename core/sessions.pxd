# Sessions: what the router's data plane passes between workers and whoever stores sessions.
#
# The control thread stores what a session is (router/sessions.py). Here the claims that want stored state wait for it
# as notes that carry all that the answer needs, so nothing is kept meanwhile; what sessions did (STATE, CLOSE) is
# gathered over a turn and handed over in one note. A position that a client acknowledged gets the epoch of its message
# here, where the messages are. Without a store every claim is answered at once, and nothing is gathered.

from libc.stdint cimport uint32_t

from core.mailbox cimport Note
from core.records cimport RecBody, RecCatchup, Record, RecSession, RecState
from core.sequencer cimport Sequencer, Worker

cdef enum:
    # Gathered while the control thread takes nothing, and as much of what was told; beyond it they are lost, counted.
    STATES_BYTES_MAX = 33554432
    ALIVE_PERIOD_S = 21600          # each open session is told of once in so long: its state is not to expire

cdef void session_open(Sequencer *sequencer, Worker *worker, RecSession *record, bint evicted) noexcept nogil
cdef void session_told(Sequencer *sequencer, Worker *worker, const Record *record) noexcept nogil
cdef void told_linked(Sequencer *sequencer) noexcept nogil
cdef void told_end(Sequencer *sequencer) noexcept nogil
cdef void session_opened(Sequencer *sequencer, Note *note) noexcept nogil
cdef void session_close(Sequencer *sequencer, RecSession *record) noexcept nogil
cdef void session_state(Sequencer *sequencer, RecState *record) noexcept nogil
cdef void sessions_alive(Sequencer *sequencer, uint32_t seconds) noexcept nogil
cdef void sessions_flush(Sequencer *sequencer) noexcept nogil
cdef void cursor_ask(Sequencer *sequencer, Worker *worker, RecCatchup *record) noexcept nogil
cdef void cursor_read(Sequencer *sequencer, Note *note) noexcept nogil
cdef void sessions_ask(Sequencer *sequencer, Worker *worker, const RecBody *record) noexcept nogil
cdef void sessions_read(Sequencer *sequencer, const Note *note) noexcept nogil
