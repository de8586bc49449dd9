"""Drain: clients are told to go and when to come back, a step at a time."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from core.accept cimport ACCEPT_TURN, accept_all
from core.clock cimport clock_ns
from core.codes cimport DRAINING, MOVED
from core.conn cimport STAGE_FRAMES, STATE_CLOSED, STATE_CLOSING, Connection, conn_live
from core.edge cimport RETRY_AFTER_MS, edge_random
from core.ledger cimport COUNT_DRAIN_CUT, GAUGE_DRAIN_PACE, KIND_FD, ledger_count, ledger_gauge, ledger_release
from core.lifecycle cimport edge_close, edge_fin
from core.mailbox cimport NOTE_DRAIN_SENT, Note, mailbox_put
from core.outbox cimport outbox_send
from core.poller cimport EPOLL_CTL_DEL, poller_watch
from core.slab cimport slab_at

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int)


cdef void _listener_close(Edge *edge, int fd) noexcept nogil:
    """Stop watching it as well: others may hold the same socket, and then closing alone does not end the watch."""
    if fd >= 0:
        poller_watch(edge.epoll_fd, fd, 0, EPOLL_CTL_DEL, 0)
        ledger_release(edge.ledger, KIND_FD, <uint64_t> fd)
        c_close(fd)


cdef void drain_listeners_close(Edge *edge) noexcept nogil:
    """Accept nothing more."""
    _listener_close(edge, edge.tcp_fd)
    _listener_close(edge, edge.ws_fd)
    edge.tcp_fd = -1
    edge.ws_fd = -1


cdef void _queue_take(Edge *edge, int fd, bint websocket) noexcept nogil:
    """Accept what waits; a queue that fills as quickly as it is emptied is left at some point."""
    cdef int turns = 0
    while accept_all(edge, fd, websocket) == ACCEPT_TURN and turns < DRAIN_ACCEPT_TURNS:
        turns += 1


cdef void drain_begin(Edge *edge, bint leaves) noexcept nogil:
    """Accept nothing more. What waits in a queue that nobody else will empty is taken first, as it would be reset;
    with `leaves` a successor has the same queue."""
    edge.draining = True
    if not leaves:
        _queue_take(edge, edge.tcp_fd, False)
        _queue_take(edge, edge.ws_fd, True)
    drain_listeners_close(edge)


cdef Connection *_next(Edge *edge) noexcept nogil:
    """The next connection that can be told and was not, NULL at the end of the table. Who is not through the
    transport's handshake could only be cut off, as if the gateway refused it: it is met again at the next walk."""
    cdef uint32_t shift = edge.connections.chunk_shift
    cdef Connection *conn
    while (edge.drain_next >> shift) < edge.connections.chunk_count:
        if edge.connections.chunks[edge.drain_next >> shift].memory == NULL:
            edge.drain_next = ((edge.drain_next >> shift) + 1) << shift
            continue
        conn = <Connection *> slab_at(&edge.connections, edge.drain_next)
        edge.drain_next += 1
        if conn_live(conn) and conn.state < STATE_CLOSING and conn.stage == STAGE_FRAMES:
            return conn
    return NULL


cdef void drain_step(Edge *edge, const Note *step, const uint8_t *targets) noexcept nogil:
    """FIN to the next connections: how many, when the first and each after it is to come back, and where, is said in
    the note; says how many it was. The pace that it names is shown as a gauge: how many are to come back a second.

    Of an evacuation the pace is kept here: steps that are late, or come together because this thread stood still, have
    their slots behind those that were given already.
    """
    cdef int code = MOVED if step.flags & 1 else DRAINING
    cdef const char *why = b"this region is evacuated" if step.flags & 1 else b"this gateway is about to stop"
    cdef Note note
    cdef uint64_t sent = 0
    cdef uint64_t most = min(step.first, <uint64_t> DRAIN_STEP_MAX)
    cdef Connection *conn = NULL
    cdef bint told = False
    cdef uint64_t now_us = clock_ns() // 1000
    cdef uint64_t slot_us = now_us + step.request
    if code == MOVED and step.second:
        slot_us = max(slot_us, edge.drain_slot_us)
    edge.drain_telling = True
    edge.fin_targets = <const char *> targets
    edge.fin_targets_size = step.text_size
    while sent < most:
        conn = _next(edge)
        if conn == NULL:
            break
        edge_fin(edge, conn, code, why, <uint32_t> ((slot_us - now_us) // 1000))
        slot_us += step.second
        sent += 1
    edge.drain_slot_us = slot_us
    edge.drain_telling = False
    edge.fin_targets_size = 0
    if most and conn == NULL:
        told = edge.handshakes == 0     # all others are closing
        edge.drain_next = 0
    ledger_gauge(edge.ledger, GAUGE_DRAIN_PACE, step.third)
    memset(&note, 0, sizeof(note))
    note.kind = NOTE_DRAIN_SENT
    note.request = edge.connections.live
    note.first = sent
    note.second = told
    mailbox_put(&edge.to_control, &note, NULL, NULL)


cdef void drain_cut(Edge *edge) noexcept nogil:
    """The time is over: FIN to all that were not told yet, with a random time to come back, and close everybody."""
    cdef uint32_t chunk, number
    cdef Connection *conn
    for chunk in range(edge.connections.chunk_count):
        if edge.connections.chunks[chunk].memory == NULL:
            continue
        for number in range(1u << edge.connections.chunk_shift):
            conn = <Connection *> slab_at(&edge.connections, (chunk << edge.connections.chunk_shift) | number)
            if not conn_live(conn):
                continue
            if conn.state < STATE_CLOSING:
                ledger_count(edge.ledger, COUNT_DRAIN_CUT, 1)
                edge_fin(edge, conn, DRAINING, b"this gateway stops now", edge_random(edge, RETRY_AFTER_MS))
                if conn.state != STATE_CLOSED:
                    outbox_send(edge, conn)
            edge_close(edge, conn, DRAINING)
