# Abroad: what members in other regions are to hear that is in no log.
#
# What is in the log reaches other regions with it. What is in none (EVENT `joined` and `left`, messages of global
# channels of which nothing is kept) is gathered for a turn and given to the control thread (NOTE_ABROAD), which
# publishes it once for all who follow its shard: it is kept nowhere, nobody waits for it, and a region that is away
# just then misses it. It travels as log records do, an event as one without a position (LOG_EVENT), and comes to who
# follows among those of the log (core/following.pxd). Invariant: without other regions nothing is gathered.

from libc.stdint cimport uint8_t, uint32_t

from core.sequencer cimport Sequencer
from core.stream cimport Stored, Stream

cdef enum:
    ABROAD_BYTES_MAX = 4194304      # of one turn; beyond it other regions miss what is counted

cdef void abroad_event(Sequencer *sequencer, const char *name, uint32_t name_size, const uint8_t *frame,
                       uint32_t size) noexcept nogil
cdef void abroad_message(Sequencer *sequencer, const Stream *stream, const Stored *head,
                         const uint8_t *body) noexcept nogil
cdef void abroad_hand_over(Sequencer *sequencer) noexcept nogil
