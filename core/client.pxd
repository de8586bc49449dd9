# Client: all that one client thread owns, in one struct: the core in client mode.
#
# A thread holds many connections of our own protocol as their client, for load tests. It makes no Python object for a
# message: it checks each delivery and counts, and tells Python of what happened to connections, in batches. Verbs are
# in the modules named after what they do: client (tables), client_life (states, ends, deadlines), client_out (what is
# sent), client_session (the protocol), client_in (what is received), client_loop.
#
# A handle is the connection's number, which Python gives, and a generation that is never given twice. Invariant: each
# message of a joined channel is, at each member, delivered once or counted as lost; repeated, late and corrupt ones are
# counted beside.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from core.batch cimport Batch
from core.framing_tcp cimport TcpDecoder
from core.framing_ws cimport WsDecoder
from core.hash cimport HashKey, Index
from core.histogram cimport Histogram, histogram_add
from core.ledger cimport Ledger
from core.mailbox cimport Mailbox
from core.position cimport Position
from core.ring cimport Ring, RingPool
from core.slab cimport Slab, slab_at
from core.wheel cimport Timer, Wheel

cdef enum:
    CLIENT_FRAME_MAX = 4194304      # bytes of a server's frame; the answer to HISTORY is the longest
    CLIENT_BODY_MAX = 65536         # of a frame of ours
    CLIENT_BACKLOG_MAX = 16777216   # bytes that a server may leave unread before the connection is given up
    CLIENT_CORK_BYTES = 262144      # gathered for one connection before they leave
    CLIENT_HANDSHAKES_MAX = 512     # connections between connect() and WELCOME at once
    CLIENT_ENDPOINTS_MAX = 16
    CLIENT_MEMBERS_MAX = 200        # channels that one connection joins: their names fit in one HELLO
    CLIENT_NAME_MAX = 255           # bytes of a channel's name
    CLIENT_NONE = 0xFFFFFFFF

cdef enum ClientState:
    CLIENT_AWAY                 # no socket: not dialled yet, ended, or waits to come back
    CLIENT_DIALLING             # connect() under way
    CLIENT_UPGRADING            # the HTTP request was sent
    CLIENT_HELLO                # HELLO was sent
    CLIENT_OPEN                 # WELCOME came
    CLIENT_LEAVING              # FIN was sent, or FIN_ACK in answer to one: waits for the end
    CLIENT_STATE_COUNT

cdef enum ClientFlag:
    CLIENT_QUEUED = 1           # in the list of those to be dialled
    CLIENT_WATCHED = 2          # EPOLLOUT is on
    CLIENT_RESUMABLE = 4        # keeps what it needs to resume its session
    CLIENT_RESUMING = 8         # its HELLO was one that resumes
    CLIENT_TCP = 16
    CLIENT_UNACKED = 32         # something was delivered since the last ACK
    CLIENT_FORGET = 64          # freed once its socket is closed
    CLIENT_TOLD = 128           # the reason of its end was told already
    CLIENT_RETURNS = 256        # is to be dialled as soon as its socket is closed

cdef enum ClientMemberState:
    MEMBER_WANTED               # JOIN is to be sent, or was
    MEMBER_JOINED

cdef enum ClientRequestKind:
    CLIENT_REQUEST_HELLO
    CLIENT_REQUEST_JOIN
    CLIENT_REQUEST_LEAVE
    CLIENT_REQUEST_PUBLISH
    CLIENT_REQUEST_HISTORY
    CLIENT_REQUEST_CATCH_UP     # HISTORY of what was missed while away

cdef enum ClientTime:           # histograms
    TIME_CONNECT                # connect() to WELCOME
    TIME_JOIN                   # JOIN to its answer
    TIME_PUBLISH                # intended time to the answer
    TIME_DELIVERY               # intended time to delivery, at each member
    TIME_HISTORY
    TIME_COUNT

cdef enum ClientCount:          # in the order of COUNTS in client_loop.pyx
    CLIENT_CONNECTED
    CLIENT_RESUMED
    CLIENT_FAILED               # ends that were not asked for, and connections that did not come about
    CLIENT_LEFT                 # ends by FIN and FIN_ACK
    CLIENT_JOINED
    CLIENT_PUBLISHED
    CLIENT_HELD_BACK            # PUBLISH that was not sent: no session, or a membership not there yet
    CLIENT_ACCEPTED             # answered with a position
    CLIENT_REFUSED              # answered by ERROR, whatever the request
    CLIENT_PUBLISH_REFUSED      # of these, PUBLISH
    CLIENT_UNANSWERED           # requests whose connection ended first; of those that left by themselves only PUBLISH
    CLIENT_OVERDUE              # requests without an answer in time
    CLIENT_DELIVERED            # every MESSAGE, those of channels never joined as well
    CLIENT_UNCHECKED            # of these, those of channels not joined: their order is not known
    CLIENT_LOST
    CLIENT_REPEATED
    CLIENT_LATE
    CLIENT_CORRUPT
    CLIENT_TOLD_GAPS            # messages that the server said would not come
    CLIENT_MISSED_AWAY          # messages of a joined channel while the connection was away and could not resume
    CLIENT_CAUGHT_UP            # of these, those that HISTORY gave afterwards
    CLIENT_EVENTS
    CLIENT_PINGS                # answered
    CLIENT_PONGS
    CLIENT_ACKS
    CLIENT_HISTORIES
    CLIENT_BYTES_IN
    CLIENT_BYTES_OUT
    CLIENT_COUNT_COUNT

cdef enum ClientNote:
    # Python -> thread
    CLIENT_NOTE_OPEN            # conn; flags: ClientFlag; first: endpoint; text: 'u' and user, or 't' and token
    CLIENT_NOTE_JOIN            # conn; text: channel
    CLIENT_NOTE_LEAVE
    CLIENT_NOTE_PUBLISH         # conn; first: payload bytes, second: intended ns; text: channel
    CLIENT_NOTE_HISTORY         # conn; first: limit; text: channel
    CLIENT_NOTE_PAUSE           # FIN, and stay
    CLIENT_NOTE_RECONNECT
    CLIENT_NOTE_CLOSE           # FIN, and forget
    CLIENT_NOTE_AUDIT           # flags 1: what is missing is lost
    CLIENT_NOTE_STOP
    # thread -> Python; first and second by kind
    CLIENT_NOTE_CONNECTED       # first: duration ns, second: 1 resumed
    CLIENT_NOTE_JOINED          # first: offset, second: duration ns; text: channel
    CLIENT_NOTE_PUBLISHED       # first: offset, second: duration ns; text: channel
    CLIENT_NOTE_REFUSED         # first: code, second: request kind, third: retry after ms; text: message
    CLIENT_NOTE_PAUSED
    CLIENT_NOTE_FAILED          # first: code of a FIN or 0, second: ms to wait before coming back; text: reason
    CLIENT_NOTE_CLOSED          # the handle is gone
    CLIENT_NOTE_AUDITED         # first: missing messages, second: requests under way, third: open connections

ctypedef struct ClientChannel:  # 40 bytes
    char *name                  # owned, not terminated
    uint32_t name_size
    uint32_t holds              # memberships and requests that point here; freed with the last
    uint64_t hash
    uint64_t epoch              # of the last position told
    uint64_t high               # the highest offset told by an answer or a message, whoever of us got it

ctypedef struct ClientMember:   # 24 bytes
    uint32_t channel            # index
    uint32_t state              # ClientMemberState
    Position position

ctypedef struct ClientRequest:  # 56 bytes; its id on the wire is its index + 1
    uint64_t started_ns         # the intended time
    uint32_t conn               # number of the connection
    uint32_t channel            # index, held; CLIENT_NONE
    uint32_t next               # of the same connection, newer
    uint32_t previous
    uint32_t deadline           # tick
    uint32_t kind
    uint32_t index
    uint32_t live               # 1 while under way
    uint64_t since              # CLIENT_REQUEST_CATCH_UP: what is missing begins after this offset
    uint64_t until              # and ends with this one

ctypedef struct ClientConn:     # 136 bytes
    # first cache line: what a delivery touches
    uint32_t number
    uint32_t generation
    int32_t fd                  # owned; -1 while away
    uint8_t state
    uint8_t endpoint
    uint16_t flags
    Ring *input                 # owned: bytes of a partial frame, NULL while there are none
    uint32_t input_need         # bytes wanted before the next cut makes sense
    uint32_t last_heard         # tick
    uint32_t last_sent          # tick
    uint16_t member_count
    uint16_t member_capacity
    ClientMember *members       # owned
    WsDecoder ws
    TcpDecoder tcp
    uint32_t slot               # in the slab
    # second
    ClientConn *next            # borrowed: list of those to be dialled, or of the closed
    Timer timer                 # set while there is a socket
    uint32_t state_deadline     # tick: end of the handshake, or of the wait for FIN_ACK
    uint64_t started_ns         # of connect()
    Batch *backlog              # owned: what the socket would not take; NULL while nothing
    char *identity              # owned: user or token, NUL-ended, its first byte 'u' or 't'
    char *resume                # owned: session and resume token, each NUL-ended; NULL: HELLO afresh
    uint32_t ping_seq
    uint32_t sequence           # of stamps
    uint32_t request_first      # oldest request under way
    uint32_t request_last

ctypedef struct ClientEndpoint:
    uint8_t address[28]         # a sockaddr_in or sockaddr_in6
    uint32_t address_size
    char host[256]              # for the Host header

ctypedef struct ClientConfig:
    uint32_t connect_rate       # a second; 0: no limit
    uint32_t handshake_timeout_ms
    uint32_t request_timeout_ms
    uint32_t fin_timeout_ms
    bint tell_requests          # CLIENT_NOTE_JOINED and CLIENT_NOTE_PUBLISHED too
    bint catch_up               # what was missed while away is asked of HISTORY, and lost if it has it no more
    uint32_t endpoint_count
    ClientEndpoint endpoints[CLIENT_ENDPOINTS_MAX]
    uint8_t source[28]          # where connections come from; source_size 0: the kernel chooses
    uint32_t source_size
    char path[256]

ctypedef struct Client:
    int epoll_fd                # owned
    ClientConn **conns          # owned: by number, NULL when none
    uint32_t conns_max
    Slab slots                  # owned: ClientConn
    Slab channels
    Slab requests
    Index channel_index
    HashKey hash_key
    Wheel wheel
    RingPool rings
    Ledger *ledger              # borrowed from the Stats object
    Mailbox to_python
    Mailbox from_python
    uint64_t now_ns             # wall clock, as stamps are
    uint64_t now_ms             # monotonic
    ClientConn *dial_first      # those to be dialled, in order
    ClientConn *dial_last
    ClientConn *closed          # freed at the end of the turn
    uint32_t handshakes         # under way
    uint64_t dial_credit        # thousandths of a connection
    uint64_t dial_ms            # when the credit was last filled
    uint32_t ping_ms            # as told in WELCOME
    uint32_t misses
    uint32_t requests_under_way
    uint32_t open_count
    ClientConn *corked          # borrowed: whose frames are in the cork
    Batch cork
    uint8_t *input              # owned: the one receive buffer
    uint8_t *body               # owned: a frame being written, with room for its header in front
    uint32_t mask_state
    bint stopping
    uint64_t counts[CLIENT_COUNT_COUNT]
    Histogram times[TIME_COUNT]
    ClientConfig config


cdef inline void client_count(Client *client, int count, uint64_t by) noexcept nogil:
    client.counts[count] += by


cdef inline void client_time(Client *client, int which, uint64_t value_ns) noexcept nogil:
    histogram_add(&client.times[which], value_ns)


cdef inline uint64_t client_handle(ClientConn *conn) noexcept nogil:
    return (<uint64_t> conn.generation << 32) | conn.number


cdef inline ClientConn *client_get(Client *client, uint64_t handle) noexcept nogil:
    """The connection of a handle, or NULL when it is gone."""
    cdef uint32_t number = <uint32_t> handle
    cdef ClientConn *conn = NULL
    if number < client.conns_max:
        conn = client.conns[number]
    return conn if conn != NULL and conn.generation == <uint32_t> (handle >> 32) else NULL


cdef inline ClientChannel *client_channel(Client *client, uint32_t index) noexcept nogil:
    return <ClientChannel *> slab_at(&client.channels, index)


cdef inline ClientRequest *client_request(Client *client, uint32_t index) noexcept nogil:
    return <ClientRequest *> slab_at(&client.requests, index)


cdef inline uint32_t client_tick(Client *client) noexcept nogil:
    return <uint32_t> (client.now_ms // 100)


# Each of these takes or gives back one thing that the ledger counts; NULL: out of memory.
cdef ClientConn *conn_new(Client *client, uint64_t handle) noexcept nogil
cdef void conn_free(Client *client, ClientConn *conn) noexcept nogil
cdef ClientMember *member_new(Client *client, ClientConn *conn, const char *name, uint32_t size) noexcept nogil
cdef ClientMember *member_find(Client *client, ClientConn *conn, const char *name, uint32_t size) noexcept nogil
cdef ClientMember *member_of(ClientConn *conn, uint32_t channel) noexcept nogil
cdef void member_free(Client *client, ClientConn *conn, ClientMember *member) noexcept nogil
# The channel of a name, held once more for whoever asks; CLIENT_NONE: out of memory.
cdef uint32_t channel_hold(Client *client, const char *name, uint32_t size) noexcept nogil
cdef void channel_drop(Client *client, uint32_t index) noexcept nogil
# Takes over a hold on the channel.
cdef ClientRequest *request_new(Client *client, ClientConn *conn, int kind, uint32_t channel) noexcept nogil
cdef ClientRequest *request_find(Client *client, ClientConn *conn, uint64_t wire_id) noexcept nogil
cdef void request_free(Client *client, ClientRequest *request) noexcept nogil
cdef void requests_drop(Client *client, ClientConn *conn) noexcept nogil

# What has not come: offsets that some answer or message told of, at members that are open.
cdef uint64_t client_missing(Client *client, bint lost) noexcept nogil
cdef int client_init(Client *client, uint32_t connections_max) noexcept nogil
cdef void client_free(Client *client) noexcept nogil
