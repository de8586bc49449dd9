# Audit of a router's data plane: every table of the sequencer.

from libc.stdint cimport uint64_t

from core.sequencer cimport Sequencer


cdef void sequencer_audit(Sequencer *sequencer, uint64_t request) noexcept nogil
