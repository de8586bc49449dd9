# History: HISTORY of a channel, answered from what is kept of its stream.

from core.records cimport RecHistory
from core.sequencer cimport Sequencer, Worker

cdef void history_answer(Sequencer *sequencer, Worker *worker, RecHistory *record) noexcept nogil
