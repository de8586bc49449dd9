# Requests: what a worker asked of the router and has no answer to yet, in a ring ordered by time.
#
# seq counts up and its low bits are the place in the ring, so an answer finds its request without a search, and the
# overdue ones are at the old end. Everything that waits for the router has an entry and with it a deadline.
# Invariant: every open request has oldest <= seq < next (modulo 2**32), and next - oldest <= capacity.

from libc.stdint cimport uint32_t, uint64_t

from core.conn cimport Connection, conn_get
from core.edge cimport REQUEST_HISTORY, REQUEST_PRESENCE, REQUEST_PUBLISH, NONE, REQUEST_DONE, Edge, Request
from core.kept cimport kept_end
from core.ledger cimport KIND_REQUEST, TIME_PUBLISH, ledger_acquire, ledger_leaks, ledger_release, ledger_time
from core.sites cimport HERE


cdef inline Request *request_peek(Edge *edge, uint32_t seq) noexcept nogil:
    """The open request of a seq, or NULL when it is answered, overdue or was never there."""
    cdef Request *request
    if edge.requests.capacity == 0 or seq - edge.requests.oldest >= edge.requests.next - edge.requests.oldest:
        return NULL
    request = &edge.requests.ring[seq & (edge.requests.capacity - 1)]
    return request if request.kind != REQUEST_DONE else NULL


cdef inline bint request_kept(const Request *request) noexcept nogil:
    """Whether its record is kept, to be said again to the next router; JOIN and HELLO are made anew instead."""
    return request.index != NONE and (request.kind == REQUEST_PUBLISH or request.kind == REQUEST_HISTORY
                                      or request.kind == REQUEST_PRESENCE)


cdef inline void request_charge(Edge *edge, Request *request, int by) noexcept nogil:
    """Count a request at its connection, if that is still there."""
    cdef Connection *conn = conn_get(&edge.connections, request.conn)
    if conn != NULL:
        conn.under_way += by
        if request.kind == REQUEST_HISTORY or request.kind == REQUEST_PRESENCE:
            conn.asks += by


cdef inline void request_done(Edge *edge, uint32_t seq) noexcept nogil:
    """Close an open request."""
    cdef uint32_t mask = edge.requests.capacity - 1
    cdef Request *request = &edge.requests.ring[seq & mask]
    if not ledger_leaks(edge.ledger, KIND_REQUEST):
        request_charge(edge, request, -1)
        ledger_release(edge.ledger, KIND_REQUEST, seq)
    if request.kind == REQUEST_PUBLISH:     # answered or overdue: a router that hangs shows in the times, too
        ledger_time(edge.ledger, TIME_PUBLISH, edge.now_ms - request.sent_ms)
    if request_kept(request):
        kept_end(edge, request.index)
    request.kind = REQUEST_DONE
    while edge.requests.oldest != edge.requests.next \
            and edge.requests.ring[edge.requests.oldest & mask].kind == REQUEST_DONE:
        edge.requests.oldest += 1


cdef inline bint request_take(Edge *edge, uint32_t seq, Request *taken) noexcept nogil:
    """Copy out and close an open request; False when there is none."""
    cdef Request *request = request_peek(edge, seq)
    if request == NULL:
        return False
    taken[0] = request[0]
    request_done(edge, seq)
    return True


cdef inline uint32_t request_open(Edge *edge, int kind, uint64_t conn, uint64_t id, uint32_t index) noexcept nogil:
    """A new request; its seq, or 0 when too many are under way."""
    cdef uint32_t seq
    cdef Request *request
    if edge.requests.next - edge.requests.oldest >= edge.requests.capacity and requests_grow(edge) < 0:
        return 0
    if edge.requests.next == 0:         # wrapped: 0 means "no answer wanted" on the bus
        edge.requests.ring[0].kind = REQUEST_DONE
        edge.requests.next = 1
        if edge.requests.oldest == 0:   # else the overdue would wait behind a place that nobody will ever answer
            edge.requests.oldest = 1
        return request_open(edge, kind, conn, id, index)
    seq = edge.requests.next
    request = &edge.requests.ring[seq & (edge.requests.capacity - 1)]
    request.conn = conn
    request.request = id
    request.sent_ms = edge.now_ms
    request.index = index
    request.kind = kind
    edge.requests.next += 1
    request_charge(edge, request, 1)
    ledger_acquire(edge.ledger, KIND_REQUEST, seq, HERE)
    return seq


cdef int requests_grow(Edge *edge) noexcept nogil
cdef void requests_free(Edge *edge) noexcept nogil
