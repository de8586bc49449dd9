"""Client life: states, ends and deadlines."""

from libc.string cimport memset, strerror, strlen
from libc.stdlib cimport free

from core.batch cimport batch_free
from core.client cimport (CLIENT_AWAY, CLIENT_FAILED, CLIENT_FORGET, CLIENT_LEAVING, CLIENT_NONE, CLIENT_NOTE_CLOSED,
                          CLIENT_NOTE_FAILED, CLIENT_NOTE_PAUSED, CLIENT_OPEN, CLIENT_QUEUED, CLIENT_RETURNS,
                          CLIENT_TOLD, CLIENT_WATCHED, client_count, client_handle, client_request, client_tick,
                          conn_free, requests_drop)
from core.ledger cimport COUNT_ILLEGAL_STATES, KIND_BUFFER, KIND_FD, ledger_close, ledger_count
from core.mailbox cimport Note, mailbox_put
from core.ring cimport ring_release
from core.slab cimport invariant
from core.wheel cimport WHEEL_TICK_MS, wheel_cancel, wheel_set

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int)

cdef extern from "<stdio.h>" nogil:
    int snprintf(char *, size_t, const char *, ...)

cdef enum:
    REASON_BYTES = 256


cdef void client_set_state(Client *client, ClientConn *conn, int state) noexcept nogil:
    """The only place where a client connection's state changes."""
    if not client_state_legal(conn.state, state):
        ledger_count(client.ledger, COUNT_ILLEGAL_STATES, 1)
        invariant(False)
    if client_handshaking(conn):
        client.handshakes -= 1
    client.open_count -= conn.state == CLIENT_OPEN
    conn.state = <unsigned char> state
    if client_handshaking(conn):
        client.handshakes += 1
    client.open_count += state == CLIENT_OPEN


cdef void client_tell(Client *client, ClientConn *conn, int kind, uint64_t first, uint64_t second, uint64_t third,
                      const char *text, uint32_t size) noexcept nogil:
    cdef Note note
    memset(&note, 0, sizeof(note))
    note.kind = <unsigned short> kind
    note.conn = client_handle(conn) if conn != NULL else 0
    note.first = first
    note.second = second
    note.third = third
    note.text_size = size
    # A full box means that Python has not looked for very long; what happened still counts in the totals.
    mailbox_put(&client.to_python, &note, <const unsigned char *> text, NULL)


cdef void client_queue(Client *client, ClientConn *conn) noexcept nogil:
    if conn.flags & CLIENT_QUEUED:
        return
    if conn.state != CLIENT_AWAY:
        conn.flags |= CLIENT_RETURNS if conn.state == CLIENT_LEAVING else 0
        return
    conn.flags |= CLIENT_QUEUED
    conn.next = NULL
    if client.dial_last == NULL:
        client.dial_first = conn
    else:
        client.dial_last.next = conn
    client.dial_last = conn


cdef void client_end(Client *client, ClientConn *conn) noexcept nogil:
    cdef bint returns
    if conn.state == CLIENT_AWAY:
        return
    requests_drop(client, conn)
    wheel_cancel(&client.wheel, conn.slot)
    if client.corked == conn:
        client.corked = NULL
        client.cork.size = 0
    if conn.input != NULL:
        ring_release(&client.rings, conn.input)
        conn.input = NULL
    if conn.backlog != NULL:
        batch_free(conn.backlog)
        free(conn.backlog)
        conn.backlog = NULL
        ledger_close(client.ledger, KIND_BUFFER)
    c_close(conn.fd)
    ledger_close(client.ledger, KIND_FD)
    conn.fd = -1
    returns = conn.flags & CLIENT_RETURNS and not conn.flags & CLIENT_FORGET
    conn.flags &= ~(CLIENT_WATCHED | CLIENT_RETURNS)
    client_set_state(client, conn, CLIENT_AWAY)
    if returns:
        client_queue(client, conn)


cdef void client_fault(Client *client, ClientConn *conn, uint64_t code, uint64_t after_ms, const char *reason,
                       uint32_t size) noexcept nogil:
    if conn.flags & CLIENT_TOLD:
        return
    conn.flags |= CLIENT_TOLD
    client_count(client, CLIENT_FAILED, 1)
    client_tell(client, conn, CLIENT_NOTE_FAILED, code, after_ms, 0, reason, size)


cdef void client_fail(Client *client, ClientConn *conn, const char *reason) noexcept nogil:
    if conn.state == CLIENT_AWAY:
        return
    client_fault(client, conn, 0, 0, reason, <uint32_t> strlen(reason))
    client_end(client, conn)
    if conn.flags & CLIENT_FORGET:
        client_ended(client, conn)


cdef void client_fail_errno(Client *client, ClientConn *conn, const char *call, int error) noexcept nogil:
    cdef char text[REASON_BYTES]
    snprintf(text, sizeof(text), b"%s: %s", call, strerror(error))
    client_fail(client, conn, text)


cdef void client_ended(Client *client, ClientConn *conn) noexcept nogil:
    client_end(client, conn)
    if conn.flags & CLIENT_FORGET:
        conn.next = client.closed
        client.closed = conn
    elif not conn.flags & CLIENT_TOLD:
        client_tell(client, conn, CLIENT_NOTE_PAUSED, 0, 0, 0, NULL, 0)


cdef void client_free_closed(Client *client) noexcept nogil:
    cdef ClientConn *conn
    while client.closed != NULL:
        conn = client.closed
        client.closed = conn.next
        client_tell(client, conn, CLIENT_NOTE_CLOSED, 0, 0, 0, NULL, 0)
        conn_free(client, conn)


cdef void client_plan(Client *client, ClientConn *conn) noexcept nogil:
    cdef uint32_t due = conn.state_deadline
    cdef uint32_t other
    if conn.state == CLIENT_OPEN:
        due = conn.last_sent + client.ping_ms // WHEEL_TICK_MS
        other = conn.last_heard + client_silence(client)
        if other < due:
            due = other
        if conn.request_first != CLIENT_NONE:
            other = client_request(client, conn.request_first).deadline
            if other < due:
                due = other
    if due <= client_tick(client):
        due = client_tick(client) + 1
    wheel_set(&client.wheel, conn.slot, <uint64_t> due * WHEEL_TICK_MS)
