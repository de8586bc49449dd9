# Expiry: when the credentials of a session end, and what its client hears of it.
#
# The time stands with the vitals (core/vitals), and the connection's one timer looks at it: `expiry_notice_ms` before
# the end EVENT `expired` goes to the client, once, and at the end FIN token_expired, unless REFRESH has moved it.

from libc.stdint cimport int32_t, uint32_t, uint64_t

from core.clock cimport clock_ms
from core.conn cimport Connection
from core.edge cimport Edge, edge_tick, edge_ticks
from core.vitals cimport Vital, vital_of
from core.wheel cimport WHEEL_TICK_MS

cdef enum:
    EXPIRY_TICKS_MAX = 0x60000000   # five years, for what lasts longer: ticks have 32 bits and are compared signed


cdef inline void expiry_set(Edge *edge, const Connection *conn, uint64_t ms) noexcept nogil:
    """The credentials end in so many ms; 0: never. Whoever calls plans the timer."""
    cdef Vital *vital = vital_of(edge, conn)
    vital.expires = 0
    vital.warned = 0
    if ms:
        # Never early: not by what is over of this tick and millisecond, nor by what the turn has taken since its clock.
        ms = min(ms, <uint64_t> EXPIRY_TICKS_MAX * WHEEL_TICK_MS)
        vital.expires = <uint32_t> ((clock_ms() + 1 + ms) // WHEEL_TICK_MS) + 1
        vital.expires += vital.expires == 0


cdef inline uint32_t expiry_due(Edge *edge, const Connection *conn, uint32_t otherwise) noexcept nogil:
    """The tick of what comes first: the notice, or the end when it was given, or `otherwise`."""
    cdef Vital *vital = vital_of(edge, conn)
    cdef uint32_t due = vital.expires
    if due == 0:
        return otherwise
    if not vital.warned:
        due -= edge_ticks(edge.config.expiry_notice_ms)
    return due if <int32_t> (due - otherwise) < 0 else otherwise


cdef inline bint expiry_over(Edge *edge, const Connection *conn, uint32_t tick) noexcept nogil:
    """Whether the credentials have ended."""
    cdef Vital *vital = vital_of(edge, conn)
    return vital.expires != 0 and <int32_t> (tick - vital.expires) >= 0


cdef inline bint expiry_near(Edge *edge, const Connection *conn, uint32_t tick) noexcept nogil:
    """Whether the notice is due."""
    cdef Vital *vital = vital_of(edge, conn)
    return vital.expires != 0 and not vital.warned \
        and <int32_t> (tick + edge_ticks(edge.config.expiry_notice_ms) - vital.expires) >= 0

cdef void expiry_tell(Edge *edge, Connection *conn) noexcept nogil
