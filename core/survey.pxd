# Survey: what a router tells an operator of one channel: where it stands, what is kept of it, how many are there.
#
# A stream whose log gives back what is wanted may be known in part only (core/loading.pxd). Who asks says what has to
# be read before: nothing, so that the answer shows what the router holds at this moment; the position; or the messages,
# so that what is kept is told whole.

from core.records cimport RecHistory
from core.sequencer cimport Sequencer, Worker

cdef void survey_answer(Sequencer *sequencer, Worker *worker, const RecHistory *record) noexcept nogil
