# Slow consumers: what happens with a channel's messages for a member whose socket takes nothing.
#
# In most namespaces they are queued until the connection's bound ends it (`disconnect`). In the others a member whose
# socket is blocked, or whose queue is full, falls behind: from then on this channel's messages are held aside for it,
# not queued, and so can still be left out. `drop_oldest` leaves out the oldest when the bound is reached, `conflate`
# all but the newest. As soon as the socket has taken the whole queue, what is held is queued, and before a message that
# follows others which were left out EVENT `gap` tells exactly these. What stands in the queue already is never touched,
# so no frame is cut. A member that is not behind costs one comparison of bytes in its connection.
#
# What is held is the frame as MessagePack: those left out are never translated to JSON. Bound: `queue_bytes_max` for
# all channels of a connection together, beside its queue. Invariant: a lag belongs to a membership, and ends with it;
# while there is one, no message of its channel is queued but from it; told <= first of the held <= seen, as long as
# the channel was not recreated meanwhile.
#
# That a channel was recreated is never left out: without it the member could not tell why offsets repeat. What is held
# of it is no frame but what it says. When it would be left out it is kept in the lag, together with what was so before,
# and told before whatever comes next: several become one that goes on behind the lowest of their offsets.

from libc.stdint cimport uint32_t, uint64_t

from core.conn cimport Connection
from core.edge cimport Body, Channel, Edge, Lag

cdef enum:
    SLOW_PORTION_BYTES = 65536  # queued at once of what is held; then the socket is asked again

ctypedef struct Held:           # 24 bytes before each frame that is held
    uint64_t first              # the offsets that it tells of: a message its own, EVENT gap a range, others 0
    uint64_t last
    uint32_t size               # bytes of the frame; 0: recreated: an epoch, and the offsets that it lost
    uint32_t whole              # bytes with this head, a multiple of 8


cdef uint64_t slow_told(Edge *edge, Connection *conn, Channel *channel) noexcept nogil
cdef bint slow_lags(Edge *edge, Connection *conn, Channel *channel) noexcept nogil
cdef void slow_hold(Edge *edge, Connection *conn, Channel *channel, const Body *bodies, uint32_t count,
                    uint64_t first, uint64_t last) noexcept nogil
cdef void slow_release(Edge *edge, Connection *conn) noexcept nogil
cdef void slow_end(Edge *edge, Connection *conn, uint32_t channel) noexcept nogil
