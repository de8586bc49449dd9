# Vitals: what the registry shows of a connection and no delivery needs: its age, its round trip, its lost heartbeats,
# the class of its device, when its credentials end, and the number of its session's claim.
#
# They stand beside the connections in the table's chunks and not in the struct: no delivery touches them, 256 of them
# are one page and a half, and a connection stays two cache lines (ADR 50). They are written by accept, HELLO, REFRESH,
# PING and PONG only, and read where a session joins or leaves a channel.
#
# A round trip is measured from the one PING that waits for its PONG. A PONG is believed when it has that PING's number
# and clock; what else comes as an echo changes nothing. A PING still unanswered when the next one is due is lost, and
# so are the numbers that the peer's PINGs leave out.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from core.conn cimport Connection
from core.edge cimport Edge, edge_tick
from core.ledger cimport (COUNT_HEARTBEATS_STRANGE, COUNT_PINGS_LOST, COUNT_ROUND_TRIP_MS, COUNT_ROUND_TRIPS,
                          ledger_count)
from core.slab cimport Slab, slab_beside

cdef enum:
    RTT_UNKNOWN = 0xFFFF
    LOST_MAX = 0xFFFF           # counted no further
    GAP_MAX = 1000              # a peer's number that jumps by more, or back, says nothing about what was lost

ctypedef struct Vital:          # 32 bytes
    uint32_t created            # tick of the accept
    uint32_t ping_ms            # low half of the clock in the PING that waits for its PONG; 0: none waits
    uint32_t next_seq           # low half of the number that the peer's next PING has to have; 0: none was heard yet
    uint16_t rtt_ms             # the last round trip, RTT_UNKNOWN before the first
    uint16_t lost               # heartbeats, both directions
    uint32_t expires            # tick when the session's credentials end, 0: never (core/expiry)
    uint8_t warned              # the client was told that it will come
    uint8_t device              # class of its device, as the control thread numbers them; 0: not told
    uint16_t reserved
    uint64_t fence              # of the claim that made the session this connection's; 0: it was not answered yet


cdef inline Vital *vital_of(Edge *edge, const Connection *conn) noexcept nogil:
    return <Vital *> slab_beside(&edge.connections, conn.index)


cdef inline void vital_begin(Edge *edge, const Connection *conn) noexcept nogil:
    """A new connection: nothing of its slot's former one stays."""
    cdef Vital *vital = vital_of(edge, conn)
    vital.created = edge_tick(edge)
    vital.ping_ms = 0
    vital.next_seq = 0
    vital.rtt_ms = RTT_UNKNOWN
    vital.lost = 0
    vital.expires = 0
    vital.warned = 0
    vital.device = 0
    vital.fence = 0


cdef inline void vital_lost(Edge *edge, Vital *vital, uint32_t count) noexcept nogil:
    ledger_count(edge.ledger, COUNT_PINGS_LOST, count)
    vital.lost = <uint16_t> min(<uint32_t> LOST_MAX, vital.lost + count)


cdef inline void vital_pinging(Edge *edge, const Connection *conn) noexcept nogil:
    """A PING with the number conn.ping_seq and the clock edge.now_ms is about to leave."""
    cdef Vital *vital = vital_of(edge, conn)
    if vital.ping_ms:
        vital_lost(edge, vital, 1)
    vital.ping_ms = <uint32_t> edge.now_ms


cdef inline void vital_ponged(Edge *edge, const Connection *conn, uint64_t seq, uint64_t time) noexcept nogil:
    """A PONG: the round trip, if it is the echo of the PING that waits."""
    cdef Vital *vital = vital_of(edge, conn)
    cdef uint32_t elapsed_ms = <uint32_t> edge.now_ms - vital.ping_ms
    if 0 < seq < conn.ping_seq:             # late: it counts as lost already
        return
    if seq != conn.ping_seq or vital.ping_ms == 0 or time != edge.now_ms - elapsed_ms:
        ledger_count(edge.ledger, COUNT_HEARTBEATS_STRANGE, 1)
        return
    vital.ping_ms = 0
    vital.rtt_ms = <uint16_t> min(elapsed_ms, <uint32_t> RTT_UNKNOWN - 1)
    ledger_count(edge.ledger, COUNT_ROUND_TRIPS, 1)
    ledger_count(edge.ledger, COUNT_ROUND_TRIP_MS, elapsed_ms)


cdef inline void vital_pinged(Edge *edge, const Connection *conn, uint64_t seq) noexcept nogil:
    """The peer's PING; numbers left out since its last one are lost PINGs."""
    cdef Vital *vital = vital_of(edge, conn)
    cdef uint32_t gap = <uint32_t> seq - vital.next_seq
    if vital.next_seq and gap:
        if gap <= GAP_MAX:
            vital_lost(edge, vital, gap)
        else:
            ledger_count(edge.ledger, COUNT_HEARTBEATS_STRANGE, 1)
    vital.next_seq = <uint32_t> seq + 1


cdef void vitals_init(Slab *connections) noexcept nogil
