"""Flush: connections that have something queued are sent it, as long as a turn has time for that."""

from libc.stdint cimport uint32_t, uint64_t

from core.clock cimport clock_ns
from core.codes cimport BYE, SLOW_CONSUMER
from core.conn cimport (FLAG_BLOCKED, FLAG_CATCHING, FLAG_FINISHED, FLAG_FIRST, FLAG_HALF, FLAG_OVERFULL, FLAG_SHUT,
                        FLAG_TOUCHED, FLAG_WATCHED, STATE_CLOSED, Connection)
from core.edge cimport RETRY_AFTER_MS, edge_random, edge_tick
from core.ledger cimport COUNT_SLOW_CONSUMERS, ledger_count
from core.lifecycle cimport edge_close, edge_fin, edge_half_step, edge_timer_plan, edge_watch
from core.outbox cimport OUTBOX_BLOCKED, OUTBOX_BROKEN, OUTBOX_SENT, outbox_send, outbox_settle
from core.replay cimport replays_pump
from core.slow cimport slow_release

cdef extern from "<sys/socket.h>" nogil:
    int shutdown(int, int)
    enum:
        SHUT_WR

cdef enum:
    FLUSH_LOOK = 32             # connections between two looks at the clock


cdef void _watch_writing(Edge *edge, Connection *conn, bint writing) noexcept nogil:
    conn.flags = conn.flags | FLAG_WATCHED if writing else conn.flags & ~FLAG_WATCHED
    edge_watch(edge, conn)


cdef void _drained(Edge *edge, Connection *conn) noexcept nogil:
    """The last bytes are with the kernel, and it is not left to the peer to close first."""
    if conn.flags & FLAG_HALF:
        edge_close(edge, conn, BYE)
    elif not conn.flags & FLAG_SHUT:
        conn.flags |= FLAG_SHUT
        shutdown(conn.fd, SHUT_WR)


cdef void _flush_one(Edge *edge, Connection *conn) noexcept nogil:
    """Send what this turn queued for one connection, and see to what comes of it."""
    cdef int status = OUTBOX_BLOCKED
    if conn.flags & FLAG_HALF:
        edge_half_step(edge, conn)
    if not conn.flags & FLAG_BLOCKED:
        status = outbox_send(edge, conn)
    while status == OUTBOX_SENT and conn.behind and not conn.flags & FLAG_OVERFULL:
        slow_release(edge, conn)
        status = outbox_send(edge, conn)
    if status == OUTBOX_BROKEN:
        edge_close(edge, conn, BYE)
        return
    if conn.flags & FLAG_OVERFULL:
        conn.flags &= ~FLAG_OVERFULL
        ledger_count(edge.ledger, COUNT_SLOW_CONSUMERS, 1)
        edge_fin(edge, conn, SLOW_CONSUMER, b"more was queued than the bound of this connection",
                 edge_random(edge, RETRY_AFTER_MS))
    if status == OUTBOX_BLOCKED:
        outbox_settle(edge, conn)
        conn.flags |= FLAG_BLOCKED
        if conn.flags & FLAG_CATCHING:
            replays_pump(edge, conn)
        if not conn.flags & FLAG_WATCHED:
            conn.blocked_since = edge_tick(edge)
            _watch_writing(edge, conn, True)
            edge_timer_plan(edge, conn)
        return
    if conn.flags & FLAG_WATCHED:
        _watch_writing(edge, conn, False)
    if conn.flags & FLAG_CATCHING:
        replays_pump(edge, conn)
    if conn.flags & FLAG_FINISHED and conn.flags & FLAG_FIRST and conn.out_head == NULL:
        _drained(edge, conn)


cdef void _flush_some(Edge *edge) noexcept nogil:
    """One system call for each of the next FLUSH_LOOK connections that were touched."""
    cdef uint32_t left = FLUSH_LOOK
    cdef Connection *conn
    while edge.touched != NULL and left:
        left -= 1
        conn = edge.touched
        edge.touched = conn.next_touched
        if edge.touched == NULL:
            edge.touched_last = NULL
        conn.flags &= ~FLAG_TOUCHED
        if conn.state == STATE_CLOSED:
            conn.next_touched = edge.closed
            edge.closed = conn
        else:
            _flush_one(edge, conn)


cdef void flush_touched(Edge *edge, bint whole) noexcept nogil:
    """Send what is queued, for as long as a turn may; `whole`: all of it.

    A message to ten thousand members is a tenth of a second of system calls. Who is left has its turn in the next one,
    before anybody who is touched later.
    """
    cdef uint64_t until_ns = 0
    _flush_some(edge)
    while edge.touched != NULL:
        if until_ns == 0:
            until_ns = clock_ns() + <uint64_t> edge.config.flush_us * 1000
        elif not whole and clock_ns() >= until_ns:
            return
        _flush_some(edge)
