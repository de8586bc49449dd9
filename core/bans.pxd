# Bans: the router's data plane passes them on: what is asked for to its control thread, and what that decides to all
# workers that are linked, at once, and to any that links later. What a body says is in core/ban_list.py; here it is
# bytes. Invariant: a linked worker was told all that `bans` of the sequencer holds, or is about to be by its batch.

from libc.stdint cimport uint8_t

from core.mailbox cimport Note
from core.records cimport RecBody
from core.sequencer cimport Sequencer, Worker

cdef enum:
    BANS_BYTES_MAX = 33554432   # of all bans; the control thread keeps far below it

cdef void bans_asked(Sequencer *sequencer, RecBody *record) noexcept nogil
cdef void bans_say_all(Sequencer *sequencer, Worker *worker) noexcept nogil
cdef void bans_take(Sequencer *sequencer, Note *note, const uint8_t *change, const uint8_t *all_) noexcept nogil
