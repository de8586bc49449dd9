# Loop: one worker's data-plane thread: wait, read, cut, act, fan out, flush, free.
#
# A turn is one epoll_wait and everything that it brought. Answers and deliveries are queued during the turn and leave
# at its end: first the batch to the router, so that it works while we send, then one system call a touched connection,
# as many as a turn may send; the rest is the next turn's, which does not wait for events.
# The GIL is never taken here; the control thread is rung through an eventfd once a batch of control frames.

from libc.stdint cimport uint32_t

from core.edge cimport Edge
from core.ledger cimport Stats

cdef class EdgeLoop:
    cdef Edge *edge             # owned
    cdef Stats stats            # shared: keeps the ledger's memory
    cdef object options         # the keyword arguments, for repr
    cdef str identity
    cdef set links              # places with a socket: opened and closed by the control thread

    cdef _shards_init(self, int count, uint32_t place)
    cdef object __weakref__
