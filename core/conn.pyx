"""Connection table: the cold verbs, and what the tests see of the table of states."""

from core.slab cimport generation_next, slab_free, slab_init
from libc.stdlib cimport free
from libc.string cimport memset

from core.ledger cimport KIND_FD, Stats
from core.sites cimport HERE

STATES = ("accepted", "handshaking", "open", "closing", "closed")
CONNECTION_BYTES = sizeof(Connection)
assert len(STATES) == STATE_COUNT
# Two cache lines hold all that one idle connection costs in the table.
assert sizeof(Connection) == 128 and sizeof(Membership) == 8 and sizeof(Memberships) == 16
assert <size_t> &(<Connection *> NULL).memberships == 64


cdef Connection *conn_acquire(Slab *table, Ledger *ledger, uint32_t *generation, int fd) noexcept nogil:
    """A connection in state ACCEPTED that owns `fd`; NULL: the table is full, and `fd` stays the caller's."""
    cdef uint32_t index = slab_acquire(table)
    cdef Connection *conn
    if index == SLAB_NONE:
        return NULL
    conn = <Connection *> slab_at(table, index)
    memset(conn, 0, sizeof(Connection))
    conn.index = index
    conn.generation = generation_next(generation)
    conn.fd = fd
    conn.state = STATE_ACCEPTED
    conn.membership_capacity = MEMBERSHIPS_INLINE
    timer_init(&conn.timer)
    ledger_acquire(ledger, KIND_CONNECTION, conn.index, HERE)
    ledger_acquire(ledger, KIND_FD, fd, HERE)
    ledger.words[STATE_FIRST + STATE_ACCEPTED] += 1
    return conn


cdef void conn_release(Slab *table, Ledger *ledger, Connection *conn) noexcept nogil:
    """Free a closed connection; it must hold nothing any more."""
    invariant(conn.state == STATE_CLOSED and conn.fd == -1 and conn.aside == ASIDE_NONE and conn.out_head == NULL)
    invariant(conn.membership_count == 0 and conn.membership_capacity == MEMBERSHIPS_INLINE)
    invariant(not timer_set(&conn.timer))
    if ledger_leaks(ledger, KIND_CONNECTION):
        return
    ledger_release(ledger, KIND_CONNECTION, conn.index)
    conn.generation = 0
    slab_release(table, conn.index)


cdef Aside *conn_aside(Slab *asides, Ledger *ledger, Connection *conn) noexcept nogil:
    """The connection's aside, made empty if it has none; NULL: out of memory."""
    cdef uint32_t index
    if conn.aside == ASIDE_NONE:
        index = slab_acquire(asides)
        if index == SLAB_NONE:
            return NULL
        memset(slab_at(asides, index), 0, sizeof(Aside))
        conn.aside = index + 1
        ledger_acquire(ledger, KIND_ASIDE, index, HERE)
    return conn_aside_at(asides, conn)


cdef uint32_t conn_aside_slot(Slab *asides, Ledger *ledger, Connection *conn, Slab *slab) noexcept nogil:
    """A slot of `slab` for the connection's aside, which is there then, to name; SLAB_NONE: out of memory."""
    cdef uint32_t index
    if conn_aside(asides, ledger, conn) == NULL:
        return SLAB_NONE
    index = slab_acquire(slab)
    if index == SLAB_NONE:
        conn_aside_rest(asides, ledger, conn)
    return index


cdef void conn_aside_rest(Slab *asides, Ledger *ledger, Connection *conn) noexcept nogil:
    """Free the aside if nothing in it says anything any more; at the end of a connection whatever it says."""
    cdef Aside *aside
    if conn.aside == ASIDE_NONE:
        return
    aside = conn_aside_at(asides, conn)
    if conn.state != STATE_CLOSED and (aside.kept or aside.replays or aside.lags or aside.input != NULL
                                       or aside.ws.opcode or aside.tcp.body_size):
        return
    invariant(aside.input == NULL and aside.tls == NULL and aside.replays == 0 and aside.lags == 0)
    if not ledger_leaks(ledger, KIND_ASIDE):
        free(aside.rights)
        ledger_release(ledger, KIND_ASIDE, conn.aside - 1)
        slab_release(asides, conn.aside - 1)
    conn.aside = ASIDE_NONE


def legal_changes():
    """The table of states: every (old, new) pair that is allowed, by name."""
    return {(STATES[old], STATES[new]) for old in range(STATE_COUNT) for new in range(STATE_COUNT)
            if state_legal(old, new)}


cdef class ConnectionTable:
    """The table of connections for tests; a connection here owns no real socket."""

    cdef Slab table
    cdef uint32_t generation
    cdef Stats stats

    def __init__(self, Stats stats, unsigned int live_max=1024, unsigned int generation=0):
        self.stats = stats
        self.generation = generation
        slab_init(&self.table, sizeof(Connection), 4, live_max)

    def __dealloc__(self):
        slab_free(&self.table)

    def acquire(self):
        """A new connection's handle, or None when the table is full."""
        cdef Connection *conn = conn_acquire(&self.table, &self.stats.ledger, &self.generation, -1)
        return None if conn == NULL else conn_handle(conn)

    def state(self, unsigned long long handle):
        """The state's name, or None for a stale handle."""
        cdef Connection *conn = conn_get(&self.table, handle)
        return None if conn == NULL else STATES[conn.state]

    def release(self, unsigned long long handle):
        """Close and free; False for a stale handle."""
        cdef Connection *conn = conn_get(&self.table, handle)
        if conn == NULL:
            return False
        conn_set_state(conn, &self.stats.ledger, STATE_CLOSED)
        ledger_release(&self.stats.ledger, KIND_FD, conn.fd)
        conn_release(&self.table, &self.stats.ledger, conn)
        return True
