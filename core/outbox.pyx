"""Outbox: the rare cases of a connection's queue."""

from core.tls cimport tls_send


cdef bint outbox_make_room(Edge *edge, Connection *conn, uint32_t length) noexcept nogil:
    """The queue is at its bound before the turn's end: send now if the socket takes it. True: there is room."""
    if conn.flags & FLAG_BLOCKED or conn.out_head == NULL:
        return False
    if outbox_send(edge, conn) != OUTBOX_SENT:
        return False
    return length <= edge.config.queue_bytes_max


cdef int outbox_send_tls(Edge *edge, Connection *conn) noexcept nogil:
    return tls_send(edge, conn)


cdef inline bint _settle_copy(Edge *edge, Connection *conn, Segment *segment, Segment *tail) noexcept nogil:
    """Append a small segment's bytes to the private buffer that `tail` ends; True when they fit."""
    cdef Shared *shared
    if tail == NULL or not tail.shared.private:
        return False
    shared = tail.shared
    if tail.offset + tail.length != shared.used or shared.capacity - shared.used < segment.length:
        return False
    memcpy(shared.data + shared.used, segment.shared.data + segment.offset, segment.length)
    shared.used += segment.length
    tail.length += segment.length
    return True


cdef inline bint _settle_own(Edge *edge, Segment *segment) noexcept nogil:
    """Move a small segment's bytes into a private buffer of its own; False: out of memory, the reference stays."""
    cdef Shared *own = shared_create(edge.ledger, max(<uint32_t> PRIVATE_BYTES, segment.length))
    if own == NULL:
        return False
    memcpy(own.data, segment.shared.data + segment.offset, segment.length)
    own.used = segment.length
    own.private = 1
    shared_release(edge.ledger, segment.shared)
    segment.shared = own
    segment.offset = 0
    return True


cdef void outbox_settle(Edge *edge, Connection *conn) noexcept nogil:
    """Make the queue of a blocked connection fit to wait: small pieces are copied together, long ones stay."""
    cdef Segment *tail = NULL
    cdef Segment *segment = conn.out_head
    cdef Segment *following
    while segment != NULL:
        following = segment.next
        if not segment.settled and segment.length < SETTLE_BYTES:
            if _settle_copy(edge, conn, segment, tail):
                tail.next = following
                segment_release(&edge.segments, edge.ledger, segment)
                segment = following
                continue
            _settle_own(edge, segment)
        segment.settled = 1
        tail = segment
        segment = following
    conn.out_tail = tail


cdef void outbox_drop(Edge *edge, Connection *conn) noexcept nogil:
    """Let go of everything that is queued."""
    cdef Segment *segment = conn.out_head
    cdef Segment *following
    edge.queued_bytes -= conn.queued_bytes
    while segment != NULL:
        following = segment.next
        segment_release(&edge.segments, edge.ledger, segment)
        segment = following
    conn.out_head = NULL
    conn.out_tail = NULL
    conn.queued_bytes = 0
