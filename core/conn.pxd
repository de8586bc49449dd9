# Connection: one C struct, the table it lives in, and the one function that changes its state.
#
# A connection's id is its index in the table and a generation that is never given twice, so that a stale id finds
# nothing. It is two cache lines: what fan-out and flush touch, and what heartbeats, input and the session need. What an
# idle connection needs only under some configurations, or not at all, stands in its aside (ADR 20). Invariant: a
# connection in the table has a file descriptor; one that is CLOSED is in the list that the loop frees at the end of the
# turn, or in that of those who are to be flushed first, and holds nothing else.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from core.framing_tcp cimport TcpDecoder
from core.framing_ws cimport WsDecoder
from core.ledger cimport (COUNT_ILLEGAL_STATES, KIND_ASIDE, KIND_CONNECTION, STATE_FIRST, Ledger, ledger_acquire,
                          ledger_count, ledger_leaks, ledger_release)
from core.buffer cimport Segment
from core.ring cimport Ring
from core.slab cimport SLAB_NONE, Slab, invariant, slab_acquire, slab_at, slab_release
from core.wheel cimport Timer, timer_init, timer_set

cdef enum ConnState:
    STATE_ACCEPTED              # a TCP connection, nothing understood yet
    STATE_HANDSHAKING           # transport ready, HELLO not answered yet
    STATE_OPEN                  # WELCOME sent
    STATE_CLOSING               # FIN sent; waits for FIN_ACK, or for the peer to close
    STATE_CLOSED                # nothing held; freed at the end of the turn
    STATE_COUNT

# The legal changes. Time runs one way: a state is never entered twice, none is left for an earlier one, and CLOSED,
# which all reach, is never left. Every connection has a transport before it is asked who it is (ACCEPTED, HANDSHAKING),
# and only one that was let in holds a session (OPEN). FIN is said once: it is what leads to CLOSING, from OPEN or, to
# somebody who is not let in, from HANDSHAKING. Without FIN a connection ends from anywhere when its transport is gone
# or its time is over. The names below are rows: from which state, and a bit for each state that may follow.
cdef enum Change:
    CHANGE_ACCEPTED = 1 << STATE_HANDSHAKING | 1 << STATE_CLOSED
    CHANGE_HANDSHAKING = 1 << STATE_OPEN | 1 << STATE_CLOSING | 1 << STATE_CLOSED
    CHANGE_OPEN = 1 << STATE_CLOSING | 1 << STATE_CLOSED
    CHANGE_CLOSING = 1 << STATE_CLOSED
    CHANGE_CLOSED = 0
    # The table: the rows one after the other, STATE_COUNT bits each.
    CHANGES = (CHANGE_ACCEPTED
               | CHANGE_HANDSHAKING << STATE_COUNT * STATE_HANDSHAKING
               | CHANGE_OPEN << STATE_COUNT * STATE_OPEN
               | CHANGE_CLOSING << STATE_COUNT * STATE_CLOSING
               | CHANGE_CLOSED << STATE_COUNT * STATE_CLOSED)

cdef enum Form:                 # wire form = transport x encoding; also the index of the wire arenas
    FORM_TCP                    # length-prefixed MessagePack
    FORM_WS_BINARY              # WebSocket, MessagePack
    FORM_WS_TEXT                # WebSocket, JSON
    FORM_COUNT

cdef enum Stage:                # what the next bytes are
    STAGE_PROXY
    STAGE_TLS
    STAGE_UPGRADE
    STAGE_FRAMES
    STAGE_DISCARD               # after a broken stream: read and throw away until the peer closes

cdef enum ConnFlag:
    FLAG_TOUCHED = 1            # in the list to be flushed at the end of the turn
    FLAG_BLOCKED = 2            # the socket took less than was offered, and was not writable since
    FLAG_WEBSOCKET = 4
    FLAG_ENCODED = 8            # HELLO was seen: the encoding is settled
    FLAG_HELLO = 16             # HELLO is with the control thread or the router
    FLAG_SESSION = 32           # the router knows the session as this connection's
    FLAG_FINISHED = 64          # nothing more is to be said
    FLAG_SHUT = 128             # shut down for writing
    FLAG_WATCHED = 512          # EPOLLOUT is on
    FLAG_OVERFULL = 256         # something found no room in its queue this turn: nothing more is queued but FIN
    FLAG_ENDING = 1024          # FIN is being queued: it and what ends the transport may pass the queue's bound
    FLAG_TLS = 2048             # the aside has a TLS state
    FLAG_CATCHING = 4096        # some of its memberships are being caught up; its aside says how many
    FLAG_FIRST = 8192           # we close first: shut down for writing once the queue is empty
    FLAG_HALF = 16384           # the peer sends no more; what it asked for is answered, then it is closed
    FLAG_ASKED = 32768          # the control thread may still owe this connection an answer

cdef enum:
    MEMBERSHIPS_INLINE = 2      # the user's own channel and one more need no memory of their own
    ASIDE_NONE = 0
    PLACE_REPLAY = 0x80000000   # in a membership's place: it is being caught up, and the rest is its replay's index

ctypedef struct Membership:     # 8 bytes: one side of a membership, at the connection
    uint32_t channel            # index in the channel table
    uint32_t place              # where the channel's list of members holds this connection, or PLACE_REPLAY

ctypedef union Memberships:
    Membership own[2]           # while the capacity is MEMBERSHIPS_INLINE
    Membership *many            # owned

ctypedef struct Aside:          # what most connections never need; made by conn_aside, freed by conn_aside_rest
    Ring *input                 # owned: bytes of a partial frame, NULL while there are none
    void *tls                   # owned: the TLS state, NULL without TLS
    uint8_t *rights             # owned: channels that its token allows (core/rights.pxd); NULL: no list
    uint32_t rights_size
    uint32_t lags               # owned: number of its first lag + 1 (core/slow.pxd); 0: none
    uint32_t held_bytes         # of all its lags
    uint32_t input_need         # bytes wanted before the next cut makes sense
    uint32_t frame_since        # tick: when the frame that is not complete yet began; 0: there is none
    WsDecoder ws                # of a WebSocket
    TcpDecoder tcp              # of a TCP connection
    uint32_t tokens             # publishes left in the bucket, thousandths
    uint32_t tokens_ms          # when the bucket was last filled; 0: never
    uint8_t address[16]         # the client's as the PROXY header told it, IPv6, or IPv4 mapped
    uint16_t port               # 0: there was no such header, and the socket's own peer is the client
    uint8_t kept                # 1: something here lasts as long as the connection
    uint8_t asking              # its replays that wait for the router, or for their turn to ask it
    uint16_t replays            # all of them; the flag is set as long as there are any
    uint32_t parked_first       # list of those that wait for room in its queue, index + 1
    uint32_t parked_last

ctypedef struct Connection:
    # first cache line: what fan-out and flush touch
    Connection *next_touched    # borrowed: list of the turn; also the list of the closed
    Segment *out_head           # owned: unsent output, oldest first
    Segment *out_tail           # borrowed: the last of them
    uint32_t index
    uint32_t generation         # never 0 while live
    uint32_t queued_bytes       # sum of the segments
    int32_t fd                  # owned; closed by conn_release
    uint8_t state
    uint8_t form
    uint16_t flags
    uint32_t last_sent          # tick of the wheel
    uint32_t last_heard         # tick
    uint32_t blocked_since      # tick of the last write progress while blocked
    uint32_t state_deadline     # tick: end of the handshake, of the wait for FIN_ACK, or for the peer's close
    uint8_t stage
    uint8_t behind              # 1: messages are held aside for it (core/slow.pxd)
    uint16_t reason             # code of the end, once known
    # second: the session, heartbeat, and what is under way
    Memberships memberships     # the first is the user's own channel
    uint8_t session[16]
    Timer timer                 # in the wheel; set from accept to close
    uint32_t aside              # owned: number of its aside + 1, ASIDE_NONE
    uint32_t ping_seq           # of the last PING; before WELCOME: when it was accepted, ms
    uint32_t control_until      # ms: until then the control frames that came so far have used the rate up
    uint16_t membership_count
    uint16_t membership_capacity
    uint16_t under_way          # its requests in the ring
    uint16_t asks               # those of them that are HISTORY or PRESENCE


cdef inline Membership *conn_memberships(Connection *conn) noexcept nogil:
    """Its memberships; the first is the user's own channel. Valid until the next join or leave."""
    return &conn.memberships.own[0] if conn.membership_capacity == MEMBERSHIPS_INLINE else conn.memberships.many


cdef inline Aside *conn_aside_at(Slab *asides, Connection *conn) noexcept nogil:
    """The aside of a connection that has one."""
    invariant(conn.aside != ASIDE_NONE)
    return <Aside *> slab_at(asides, conn.aside - 1)


cdef inline uint32_t conn_timer_place() noexcept nogil:
    """Where the wheel finds a connection's timer, in bytes."""
    return <uint32_t> <size_t> &(<Connection *> NULL).timer


cdef inline uint64_t conn_handle(Connection *conn) noexcept nogil:
    return (<uint64_t> conn.generation << 32) | conn.index


cdef inline Connection *conn_get(Slab *table, uint64_t handle) noexcept nogil:
    """The connection of a handle, or NULL when it is gone."""
    cdef uint32_t index = <uint32_t> handle
    cdef Connection *conn
    if (index >> table.chunk_shift) >= table.chunk_count or table.chunks[index >> table.chunk_shift].memory == NULL:
        return NULL
    conn = <Connection *> slab_at(table, index)
    if conn.generation != <uint32_t> (handle >> 32) or conn.generation == 0 or conn.state == STATE_CLOSED:
        return NULL
    return conn


cdef inline bint conn_live(Connection *conn) noexcept nogil:
    """Whether a slot of the table holds a connection: a free one has generation 0, or is poisoned."""
    return conn.generation != 0 and conn.generation != <uint32_t> 0xDDDDDDDD and conn.state != STATE_CLOSED


cdef inline bint state_legal(int old, int new) noexcept nogil:
    """Whether the table has this change."""
    return (CHANGES >> (STATE_COUNT * old + new)) & 1


cdef inline void conn_set_state(Connection *conn, Ledger *ledger, int state) noexcept nogil:
    """The only place where a connection's state changes."""
    if not state_legal(conn.state, state):
        ledger_count(ledger, COUNT_ILLEGAL_STATES, 1)
        invariant(False)
    conn.state = <uint8_t> state
    ledger.words[STATE_FIRST + state] += 1


cdef Connection *conn_acquire(Slab *table, Ledger *ledger, uint32_t *generation, int fd) noexcept nogil
cdef void conn_release(Slab *table, Ledger *ledger, Connection *conn) noexcept nogil
cdef Aside *conn_aside(Slab *asides, Ledger *ledger, Connection *conn) noexcept nogil
cdef uint32_t conn_aside_slot(Slab *asides, Ledger *ledger, Connection *conn, Slab *slab) noexcept nogil
cdef void conn_aside_rest(Slab *asides, Ledger *ledger, Connection *conn) noexcept nogil
