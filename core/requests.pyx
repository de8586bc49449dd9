"""Requests: the ring grows."""

from core.edge cimport REQUESTS_MAX
from core.pages cimport pages_give, pages_take


cdef int requests_grow(Edge *edge) noexcept nogil:
    """Double the ring; -1 at the bound or out of memory. Entries keep their seq."""
    cdef uint32_t capacity = edge.requests.capacity * 2 if edge.requests.capacity else 64
    cdef uint32_t seq = edge.requests.oldest
    cdef Request *ring
    if capacity > REQUESTS_MAX:
        return -1
    ring = <Request *> pages_take(capacity * sizeof(Request))
    if ring == NULL:
        return -1
    while seq != edge.requests.next:
        ring[seq & (capacity - 1)] = edge.requests.ring[seq & (edge.requests.capacity - 1)]
        seq += 1
    pages_give(edge.requests.ring, edge.requests.capacity * sizeof(Request))
    edge.requests.ring = ring
    edge.requests.capacity = capacity
    return 0


cdef void requests_free(Edge *edge) noexcept nogil:
    """Give the ring back; nothing may be open."""
    pages_give(edge.requests.ring, edge.requests.capacity * sizeof(Request))
    edge.requests.ring = NULL
    edge.requests.capacity = 0
