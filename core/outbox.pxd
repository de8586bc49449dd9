# Outbox: what a connection has to send, as segments of shared buffers, and the one system call that sends it.
#
# During a turn segments are only queued; each touched connection is flushed once at its end, so that everything one
# wake-up brought leaves in one sendmsg. Consecutive messages stand behind each other in the wire arena, so a queue of
# many messages is often one segment. What the socket does not take is settled: small rests are copied into a private
# buffer of 4 KiB so that no arena is pinned by a slow reader. Invariant: queued_bytes is the sum of the segments.

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from core.buffer cimport (PRIVATE_BYTES, Segment, Shared, segment_acquire, segment_release, shared_create,
                          shared_release)
from core.conn cimport FLAG_BLOCKED, FLAG_ENDING, FLAG_OVERFULL, FLAG_TLS, FLAG_TOUCHED, STATE_CLOSED, Connection
from core.edge cimport Edge, edge_tick
from core.ledger cimport COUNT_BYTES_OUT, COUNT_SENDS, ledger_count
from core.slab cimport invariant
from core.sockets cimport MSG_DONTWAIT, MSG_NOSIGNAL, iovec, msghdr, send, sendmsg

cdef enum:
    OUTBOX_VECTORS = 64         # segments a sendmsg
    SETTLE_BYTES = 8192         # a longer rest keeps its reference: it pins at most 8 times its size (an arena)
    ENDING_BYTES = 4096         # by which FIN and what ends the transport may pass the queue's bound

cdef enum OutboxStatus:
    OUTBOX_SENT = 0
    OUTBOX_BLOCKED = 1
    OUTBOX_BROKEN = -1
    OUTBOX_OVERFULL = -2


cdef inline void outbox_touch(Edge *edge, Connection *conn) noexcept nogil:
    """Let the connection be flushed at the end of the turn."""
    if not conn.flags & FLAG_TOUCHED:
        conn.flags |= FLAG_TOUCHED
        conn.next_touched = NULL
        if edge.touched == NULL:
            edge.touched = conn
        else:
            edge.touched_last.next_touched = conn
        edge.touched_last = conn


cdef inline int outbox_overfull(Edge *edge, Connection *conn) noexcept nogil:
    """Something cannot be queued: from here on nothing is, and the turn's end says FIN."""
    conn.flags |= FLAG_OVERFULL
    outbox_touch(edge, conn)
    return OUTBOX_OVERFULL


cdef inline int outbox_append(Edge *edge, Connection *conn, Shared *shared, uint32_t offset,
                              uint32_t length) noexcept nogil:
    """Queue bytes of a shared buffer; OUTBOX_OVERFULL: the queue's bound is reached and nothing was queued."""
    cdef Segment *tail
    cdef Segment *segment
    cdef uint32_t bound = edge.config.queue_bytes_max + (ENDING_BYTES if conn.flags & FLAG_ENDING else 0)
    if conn.flags & FLAG_OVERFULL:
        return OUTBOX_OVERFULL
    if conn.queued_bytes + length > bound and not outbox_make_room(edge, conn, length):
        return outbox_overfull(edge, conn)
    outbox_touch(edge, conn)
    tail = conn.out_tail
    if tail != NULL and tail.shared == shared and tail.offset + tail.length == offset:
        tail.length += length
    else:
        segment = segment_acquire(&edge.segments, edge.ledger, shared, offset, length)
        if segment == NULL:
            return outbox_overfull(edge, conn)
        if tail == NULL:
            conn.out_head = segment
        else:
            tail.next = segment
        conn.out_tail = segment
    conn.queued_bytes += length
    edge.queued_bytes += length
    return OUTBOX_SENT


cdef inline void outbox_consume(Edge *edge, Connection *conn, uint32_t size) noexcept nogil:
    """Drop `size` bytes that were sent from the front of the queue."""
    cdef Segment *segment
    invariant(size <= conn.queued_bytes)
    conn.queued_bytes -= size
    edge.queued_bytes -= size
    while size > 0:
        segment = conn.out_head
        if size < segment.length:
            segment.offset += size
            segment.length -= size
            return
        size -= segment.length
        conn.out_head = segment.next
        if conn.out_head == NULL:
            conn.out_tail = NULL
        segment_release(&edge.segments, edge.ledger, segment)


cdef inline ssize_t outbox_write(Connection *conn, uint32_t *offered) noexcept nogil:
    """One system call with as much of the queue as fits; `offered` says how much that was."""
    cdef iovec vectors[OUTBOX_VECTORS]
    cdef msghdr message
    cdef Segment *segment = conn.out_head
    cdef size_t count = 0
    if segment.next == NULL:
        offered[0] = segment.length
        return send(conn.fd, segment.shared.data + segment.offset, segment.length, MSG_NOSIGNAL | MSG_DONTWAIT)
    offered[0] = 0
    while segment != NULL and count < OUTBOX_VECTORS:
        vectors[count].iov_base = segment.shared.data + segment.offset
        vectors[count].iov_len = segment.length
        offered[0] += segment.length
        count += 1
        segment = segment.next
    memset(&message, 0, sizeof(message))
    message.msg_iov = vectors
    message.msg_iovlen = count
    return sendmsg(conn.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)


cdef inline int outbox_send(Edge *edge, Connection *conn) noexcept nogil:
    """Send what is queued until it is gone or the socket takes no more.

    Returns OUTBOX_SENT, OUTBOX_BLOCKED (the rest stays queued) or OUTBOX_BROKEN (the peer is gone).
    """
    cdef uint32_t offered
    cdef ssize_t sent
    if conn.flags & FLAG_TLS:
        return outbox_send_tls(edge, conn)
    while conn.out_head != NULL:
        ledger_count(edge.ledger, COUNT_SENDS, 1)       # before: whoever has the bytes finds them counted
        sent = outbox_write(conn, &offered)
        if sent < 0:
            if errno == EINTR:
                continue
            return OUTBOX_BLOCKED if errno == EAGAIN else OUTBOX_BROKEN
        ledger_count(edge.ledger, COUNT_BYTES_OUT, sent)
        conn.last_sent = edge_tick(edge)
        conn.blocked_since = conn.last_sent
        outbox_consume(edge, conn, <uint32_t> sent)
        if <uint32_t> sent < offered:
            return OUTBOX_BLOCKED
    return OUTBOX_SENT


cdef bint outbox_make_room(Edge *edge, Connection *conn, uint32_t length) noexcept nogil
cdef int outbox_send_tls(Edge *edge, Connection *conn) noexcept nogil
cdef void outbox_settle(Edge *edge, Connection *conn) noexcept nogil
cdef void outbox_drop(Edge *edge, Connection *conn) noexcept nogil
