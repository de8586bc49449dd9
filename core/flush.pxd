# Flush: the end of a turn, when each connection that was touched gets one system call with all that it has queued.
#
# Sending to many takes long, and what comes meanwhile waits: so a turn gives it `flush_us`, and who is left is first in
# the next one. One that cannot take all is watched until it can.

from core.edge cimport Edge

cdef enum:
    FLUSH_US = 8000             # a turn gives to sending at most, and what one more connection takes

cdef void flush_touched(Edge *edge, bint whole) noexcept nogil
