# Intake: bytes of a connection, from recv to whole frames.
#
# recv goes into one large buffer of the loop, behind what was left of the connection's last read, so that frames are
# cut from linear memory and an idle connection holds none. What is left over waits in a leased ring. `input_need` says
# how much is wanted before the next cut makes sense, so that a slow sender costs one copy of what it sent.

from core.conn cimport Connection
from core.edge cimport Edge

cdef void intake_read(Edge *edge, Connection *conn) noexcept nogil
