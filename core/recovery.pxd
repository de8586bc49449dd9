# Recovery: what the log gives back before a router serves, and which of its old records have to stay.
#
# A log that is complete gives every record that is kept: streams get their positions, their messages and their keys. Of
# one that is not, only the keys and origins count, and streams are read when they are wanted; but global channels,
# which nobody wants before being told of them, are given by their last positions alone. Records may come twice; a
# position never goes back.

from libc.stdint cimport int64_t, uint8_t, uint64_t

from core.mailbox cimport Note
from core.sequencer cimport Sequencer

cdef int64_t recover_records(Sequencer *sequencer, const uint8_t *data, size_t size, bint complete) noexcept nogil
cdef int64_t recover_globals(Sequencer *sequencer, const uint8_t *data, size_t size) noexcept nogil
cdef void sift_records(Sequencer *sequencer, uint64_t request, const uint8_t *data, size_t size) noexcept nogil
cdef void recover_shard(Sequencer *sequencer, const Note *note) noexcept nogil
