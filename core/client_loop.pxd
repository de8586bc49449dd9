# Client loop: one client thread: wait, take commands, dial, read, cut, act, flush, tell.
#
# Everything runs in `run`, which enters `with nogil:` once; Python puts commands into a mailbox and takes what happened
# out of another, both in batches. A message makes no note: it is checked, counted and added to a histogram.

from libc.stdint cimport uint64_t

from core.client cimport Client
from core.ledger cimport Stats

cdef class ClientLoop:
    cdef Client *client         # owned
    cdef Stats stats            # shared: keeps the ledger's memory
    cdef list free_numbers      # numbers whose handle is gone
    cdef list generations       # by number, of the newest handle

    cdef _put(self, int kind, uint64_t handle, int flags=*, uint64_t first=*, uint64_t second=*, bytes text=*)
