# Edge: all that one worker's data-plane thread owns, in one struct.
#
# Everything here is touched by that thread alone, but for the two mailboxes. The verbs are in the modules named after
# what they do: outbox (queues and sends), answers (server frames), fanout (channels and members), requests (what waits
# for the router), lifecycle (ends and deadlines), link (the router's records), act (the client's frames), loop.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from core.batch cimport Batch
from core.buffer cimport Arena
from core.bus cimport Bus
from core.conn cimport FORM_COUNT, Connection
from core.hash cimport HashKey, Index
from core.ledger cimport Ledger
from core.mailbox cimport Mailbox
from core.names cimport Names
from core.namespaces cimport GLOBALS_MAX, Namespaces
from core.pace cimport Pace
from core.ring cimport RingPool
from core.shards cimport SHARDS_MAX, SHARD_WORDS, shard_of_channel, shard_of_session
from core.slab cimport Slab
from core.wheel cimport WHEEL_TICK_MS, Wheel

cdef extern from * nogil:
    int first_bit "__builtin_ctzll"(unsigned long long)

cdef enum:
    NAME_BYTES_MAX = 255        # of a channel's name
    KEY_BYTES_MAX = 64          # of an idempotency key
    RECEIVE_BYTES = 262144      # asked of one recv
    ANSWER_BYTES = 1024         # of a small server frame built on the stack
    ENVELOPE_BYTES = 1024       # what MESSAGE may add to the data of a PUBLISH
    REQUESTS_MAX = 65536        # under way to the router
    UNDER_WAY_MAX = 4096        # of one connection, so that none takes all of them
    ASKS_MAX = 32               # of one connection: HISTORY and PRESENCE, whose answers are large
    CONTROL_UNIT_BYTES = 256    # a control frame costs one unit, and one for each so many bytes
    CONTROL_UNIT_MS = 1         # so long a unit uses a connection's rate up: 1,000 a second
    CONTROL_AHEAD_MS = 4096     # used up in advance at most: a client that comes joins all its groups
    RETRY_AFTER_MS = 1000
    RING_MS = 4                 # the control thread is woken once in so long when it is woken all the time,
    RINGS_MAX = 32              # and so many times at once when it was not
    NONE = 0xFFFFFFFF
    LINKS_MAX = 64              # routers at once: a set of them is one word
    LINK_NOWHERE = LINKS_MAX    # place of what stands for a shard that nobody is known to lead: what it is told is void
    OPENING_KEY = 0x100000000   # what the ledger tells openings from pendings by, both KIND_PENDING
    REPLAY_KEY = 0x200000000    # and replays

ctypedef struct EdgeConfig:
    uint32_t ping_ms
    uint32_t misses
    uint32_t hello_timeout_ms
    uint32_t fin_timeout_ms
    uint32_t write_timeout_ms
    uint32_t frame_timeout_ms
    uint32_t request_timeout_ms
    uint32_t max_frame          # bytes of a client's frame
    uint32_t queue_bytes_max    # unsent bytes of one connection
    uint32_t kept_bytes_max     # of what waits for the router's answers, over all connections
    uint32_t channels_max       # a session may join
    uint32_t publish_rate       # a second and session; 0: no limit
    uint32_t publish_burst
    uint32_t worker             # number on its node
    uint64_t epoch              # of this start of the worker
    uint32_t handshakes_max     # connections that have not been welcomed yet
    uint32_t flush_us           # that a turn gives to sending, before it looks for what came meanwhile
    uint32_t expiry_notice_ms   # before the end of a session's credentials, in which it may give new ones
    bint beside                 # an earlier start of the same worker runs on for a while
    bint proxy_protocol
    bint development
    char ws_path[256]

ctypedef struct ChannelMember:  # 8 bytes: the other side of a membership, at the channel
    uint32_t conn               # index in the connection table
    uint32_t slot               # where the connection's memberships hold this channel

ctypedef union ChannelMembers:
    ChannelMember one           # while the capacity is 1
    ChannelMember *many         # owned

cdef enum ChannelFlag:
    CHANNEL_LIVE = 1            # SUBSCRIBED arrived
    CHANNEL_UNASKED = 2         # SUBSCRIBE found no room, here or at the router: it is said again
    CHANNEL_KNOWN = 4           # global, and something was said in it: held until the worker ends
    CHANNEL_RECREATED = 8       # while its members are told that it was
    CHANNEL_NAMED = 16          # while an opening looks which channels it has already

ctypedef struct Channel:        # 56 bytes; most are a user's own channel with one member
    uint32_t index
    uint32_t generation         # never 0 while live
    uint64_t epoch              # of the last position seen
    uint64_t offset
    ChannelMembers members      # read through channel_members
    uint32_t count
    uint32_t capacity
    # With neither members nor holds the channel is freed.
    uint32_t holds              # pendings that point here, and its place among the global ones
    uint32_t waiting            # first pending that waits for SUBSCRIBED, NONE
    uint32_t name               # owned: number in the edge's names; read through channel_name
    uint8_t name_size
    uint8_t domain              # Domain of its namespace
    uint8_t flags               # ChannelFlag
    uint8_t slow                # SlowConsumer of its namespace

ctypedef struct Pending:        # a JOIN, or one channel of a HELLO, that waits for the router
    uint64_t conn               # handle
    uint64_t request            # the client's id
    uint64_t since_epoch
    uint64_t since_offset
    uint64_t stored_epoch       # what the router knew of the session's position, where `stored`
    uint64_t stored_offset
    uint32_t index
    uint32_t seq                # in the ring of requests; 0 when part of an opening
    uint32_t channel            # index; held
    uint32_t opening            # NONE: a JOIN
    uint32_t sibling            # next pending of the same opening
    uint32_t next               # list of the channel's waiting
    uint32_t previous
    uint8_t has_since
    uint8_t waits               # in the channel's list
    uint8_t asked               # the router was asked for the outcome
    uint8_t told                # the outcome below is known
    uint8_t outcome             # Outcome of core/records
    uint8_t stored              # the session's stored state has the channel
    uint8_t fresh               # CatchupFlag: the client holds no position, and starts where the router says
    uint8_t acked               # CatchupFlag: since is not the client's word, but what is stored of its ACKs

cdef enum ReplayState:
    REPLAY_PARKED               # in its connection's list: waits for room there
    REPLAY_WAITING              # in the edge's list: waits for its turn to ask
    REPLAY_ASKED                # CATCHUP is with the router

ctypedef struct ReplayList:     # places are index + 1; 0: none
    uint32_t first
    uint32_t last

ctypedef struct Replay:         # a membership that is being caught up, until it has all that was missed
    uint64_t conn               # handle
    uint64_t epoch              # everything up to here is queued or with the client
    uint64_t offset
    uint32_t index
    uint32_t channel            # index; held
    uint32_t seq                # of the request for the next part; 0: none is under way
    uint32_t next               # of the list it stands in, index + 1
    uint32_t previous
    uint8_t state               # ReplayState
    uint8_t strayed             # parts that ended at another position than the channel's

ctypedef struct Opening:        # a HELLO that waits for the router
    uint64_t conn
    uint64_t request
    uint32_t index
    uint32_t seq
    uint32_t remaining          # answers to come: one a channel, one for the session
    uint32_t first              # list of pendings
    uint32_t count              # pendings
    uint32_t globals            # of them, those of global channels
    uint32_t welcome_size
    uint32_t stored_size
    uint64_t cursor             # last ACK of any of the user's sessions in the user's own channel
    uint64_t router_epoch       # of the router that said what is stored
    uint8_t *welcome            # owned: WELCOME up to its map of channels, then what is to be stored of the session
    uint8_t resumed
    uint8_t whole               # the client named each channel of its session
    uint8_t tells_unread        # WELCOME wants it
    uint8_t cursor_known
    uint8_t claimed             # OPENED came
    uint8_t if_alive            # the resume token is old: the session has to be stored
    uint8_t older               # than the global channels that neither the store nor the client names

cdef enum RequestKind:
    REQUEST_DONE
    REQUEST_PUBLISH
    REQUEST_HISTORY
    REQUEST_PRESENCE
    REQUEST_JOIN
    REQUEST_OPEN
    REQUEST_CATCHUP

ctypedef struct Request:        # 32 bytes: something asked of the router, until answered or overdue
    uint64_t conn
    uint64_t request
    uint64_t sent_ms
    uint32_t index              # of the pending, the opening, or the block where its record is kept
    uint32_t kind

ctypedef struct Requests:       # a ring: seq counts up, its low bits are the place
    Request *ring               # owned
    uint32_t capacity           # a power of two
    uint32_t oldest             # seq of the oldest that may be open
    uint32_t next               # seq of the next; never 0

ctypedef struct Body:           # one frame as MessagePack; borrowed until the call returns
    const uint8_t *data
    uint32_t size

ctypedef struct Lag:            # a member that is behind in a channel (core/slow.pxd)
    Batch held                  # owned: frames that wait, oldest first, from `start` on
    uint32_t start
    uint32_t conn               # index
    uint32_t channel            # index
    uint32_t next               # number of the connection's next lag + 1; 0: none
    uint64_t told               # last offset that the member was queued or told of
    uint64_t seen               # last offset that came
    uint32_t recreations        # times that the channel was recreated of which the member is not told yet
    uint64_t common             # while there are: all epochs since `told` have the messages up to here in common
    uint64_t recreated_epoch    # of the one that is told next, since it is held no more; 0: there is none
    uint64_t recreated_offset   # the channel goes on behind it
    uint64_t recreated_before   # last offset before that
    uint64_t recreated_last     # of any older epoch

ctypedef struct KeptBlock:      # 40 bytes: records of requests, one behind the other (core/kept.pxd)
    uint8_t *data               # owned: `capacity` bytes
    uint32_t capacity
    uint32_t used
    uint32_t waiting            # records whose requests are open
    uint32_t index
    uint32_t next               # list of all blocks, oldest first
    uint32_t previous

ctypedef struct Kept:
    Slab blocks
    uint32_t first              # NONE: there is none
    uint32_t last               # where the next record is kept
    uint32_t bytes              # of all blocks
    uint32_t bytes_max

ctypedef struct Link:
    Bus bus                     # owned
    Batch out                   # what this turn has for the router
    Batch parted                # UNSUBSCRIBE records that found no room there: they are said again
    uint64_t stored_ms          # what it was told before then is stored, by `now_ms`
    uint64_t router_epoch
    uint32_t foreign            # the version of the router's link, if it is not ours; 0: it is, or is not known
    uint64_t heard_ms
    uint64_t sent_ms            # of the last LINK
    uint32_t place              # in the edge's table
    uint32_t led                # shards whose leader it is
    uint32_t fed                # shards whose channels are heard there
    bint near                   # of this worker's region: it may feed shards that it does not lead
    uint64_t news[SHARD_WORDS]  # bits: shards that it said to lead, in the batch that is being taken
    bint asked                  # it wants to know everything
    uint64_t asked_epoch
    bint up                     # the router knows this worker and was heard of lately
    bint fresh                  # its stream is new, and the router was not heard to know of that

ctypedef struct Edge:
    Ledger *ledger              # borrowed from the Stats object
    EdgeConfig config
    Pace pace
    uint64_t now_ms             # monotonic, read once a turn
    uint64_t random             # state of the generator for jitter
    int32_t epoll_fd            # owned, as are the next four
    int32_t tcp_fd
    int32_t ws_fd
    int32_t wake_fd
    int32_t reserve_fd          # given up for a moment to refuse a connection when files run out
    uint32_t handshakes         # connections in ACCEPTED or HANDSHAKING
    Slab connections
    Slab asides                 # of connections
    uint32_t generation         # last one given to a connection or a channel
    Wheel wheel
    RingPool rings
    Slab segments
    Arena arenas[FORM_COUNT]
    Connection *touched         # list: queued something that was not sent yet, first come first
    Connection *touched_last    # borrowed: its end
    Connection *closed          # list: to be freed at the end of the turn
    Slab channels
    Index channel_index
    Names names                 # of channels
    Namespaces namespaces       # filled before the thread starts
    HashKey hash_key
    Slab lags
    Slab pendings
    Slab openings
    Slab replays
    ReplayList replays_waiting  # those whose connection has room, first come first
    uint32_t replays_asked      # parts under way from the router
    uint32_t unasked            # channels whose SUBSCRIBE is to be said again
    uint32_t globals            # global channels that the router told of
    uint32_t everybody[GLOBALS_MAX]     # their indexes
    Requests requests
    Kept kept
    Link links[LINKS_MAX + 1]   # the last one is LINK_NOWHERE
    # Sets of links, by the bits of their places:
    uint64_t links_used         # the control thread opened it, and did not ask for its socket back
    uint64_t links_closing      # it did, and was not told yet that it has it
    uint64_t links_again        # something may be received without another wait
    uint64_t links_touched      # sent to or received from in this turn: libzmq does not say by itself what came since
    uint64_t links_full         # the last batch found no room: it is sent again
    uint32_t links_up
    bint globals_told           # some router told of the global channels that there are
    uint32_t shard_count        # a power of two
    uint8_t shard_links[SHARDS_MAX]     # place of the link to its leader, LINK_NOWHERE
    uint8_t shard_feeds[SHARDS_MAX]     # and where its channels are heard: its leader, or who follows it nearby
    uint64_t shard_epochs[SHARDS_MAX]   # that its leader told; 0: none did
    uint64_t unled_ms[SHARDS_MAX]       # since when nobody is known to lead it; 0: that was not looked at yet
    uint64_t unled_looked_ms            # when HELLOs were last looked for that wait for a leader
    bint fed_news               # some are heard elsewhere since feds_news
    uint64_t fed_left[SHARD_WORDS]      # bits: those that are not heard from their leader any more, who does not know
    Batch told                  # what routers were told of sessions lately (core/told.pxd)
    Batch told_before
    uint64_t told_ms            # when `told` was begun
    uint64_t told_us            # the time of the last record in it: no two have the same
    Mailbox to_control
    Mailbox from_control
    uint64_t ring_ms            # when the credit below last grew
    uint32_t ring_credit        # times that the control thread may be woken
    uint64_t queued_bytes       # over all connections
    uint64_t held_bytes         # over all lags
    uint8_t *input              # owned: where recv puts bytes; RECEIVE_BYTES + what a partial frame may hold
    uint32_t input_bytes
    uint8_t *scratch            # owned: server frames as JSON
    uint32_t scratch_bytes
    uint8_t *unpacked           # owned: a client's JSON frame as MessagePack
    uint32_t unpacked_bytes
    Batch control               # records for the control thread are built here
    bint draining
    bint stopping
    bint inject_stuck           # checked builds alone, for a test: hang as soon as there is a connection
    # Where a FIN that is queued now sends its client: the URL for WebSocket, a NUL, the one for TCP; borrowed from the
    # note that says so, and empty else.
    const char *fin_targets
    uint32_t fin_targets_size
    bint drain_telling          # a step is under way: what ends now ends because of it
    uint32_t drain_next         # index in the table where the walk of the drain goes on
    uint64_t drain_slot_us      # monotonic: no client of an evacuated region is to be back before it
    uint64_t audit              # request of the audit that is due at the end of this turn; 0: none
    void *tls                   # owned by the loop: the TLS context, NULL without TLS


cdef inline uint8_t edge_shard(Edge *edge, const char *name, uint32_t size) noexcept nogil:
    """The shard of a channel."""
    return shard_of_channel(&edge.namespaces, name, size, edge.shard_count)


cdef inline Link *link_of(Edge *edge, uint32_t shard) noexcept nogil:
    """The link to whoever leads a shard; LINK_NOWHERE's, which is never up."""
    return &edge.links[edge.shard_links[shard]]


cdef inline Link *feed_of(Edge *edge, uint32_t shard) noexcept nogil:
    """The link on which a shard's channels are heard."""
    return &edge.links[edge.shard_feeds[shard]]


cdef inline uint64_t link_bit(const Link *link) noexcept nogil:
    """Of a set of links; not for LINK_NOWHERE's, which is in none."""
    return <uint64_t> 1 << link.place


cdef inline Link *links_next(Edge *edge, uint64_t *left) noexcept nogil:
    """Take a link out of a set that is not empty."""
    cdef int place = first_bit(left[0])
    left[0] &= left[0] - 1
    return &edge.links[place]


cdef inline uint8_t conn_shard(Edge *edge, const Connection *conn) noexcept nogil:
    """The shard of its session."""
    return shard_of_session(conn.session, edge.shard_count)


cdef inline uint32_t edge_tick(Edge *edge) noexcept nogil:
    """Now, in ticks of the wheel."""
    return <uint32_t> (edge.now_ms // WHEEL_TICK_MS)


cdef inline uint32_t edge_ticks(uint32_t ms) noexcept nogil:
    """How many ticks from now on last `ms` at least: the present one, of which a part is over, does not count."""
    return (ms + WHEEL_TICK_MS - 1) // WHEEL_TICK_MS + 1


cdef inline uint32_t edge_random(Edge *edge, uint32_t below) noexcept nogil:
    """A number in [0, below) for jitter (xorshift64*, Vigna 2016)."""
    cdef uint64_t x = edge.random
    x ^= x >> 12
    x ^= x << 25
    x ^= x >> 27
    edge.random = x
    return <uint32_t> (((x * <uint64_t> 0x2545F4914F6CDD1DULL) >> 32) % below) if below else 0
