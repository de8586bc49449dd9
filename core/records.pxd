# Records: what a batch between a worker and a router holds.
#
# Same machine architecture on both ends (the version in LINK says so); every record is a multiple of 8 bytes and starts
# with its head, so that a batch is walked without copying. Names, keys and bodies follow the fixed part, packed, in
# the order of their sizes. A channel handle is the worker's own: the router keeps it for the worker and gives it back
# with each MESSAGE, so that the worker finds the channel without hashing.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from libc.string cimport memset

from core.batch cimport Batch, batch_reserve

cdef enum:
    RECORDS_VERSION = 10

cdef enum RecordKind:
    REC_LINK = 1                # w->r: heartbeat, and the first word
    REC_LINKED                  # r->w: answer; aux 1: say again all that you hold
    REC_BEGIN                   # w->r: all that I hold follows; forget what you knew
    REC_END                     # w->r: that was all; from here on I am linked
    REC_BYE                     # w->r: this worker ends
    REC_SUBSCRIBE               # w->r
    REC_SUBSCRIBED              # r->w
    REC_UNSUBSCRIBE             # w->r
    REC_OPEN                    # w->r: a session is claimed by this connection
    REC_OPENED                  # r->w
    REC_CLOSE                   # w->r: the session's connection ended
    REC_EVICT                   # r->w: another connection claimed this session
    REC_PUBLISH                 # w->r
    REC_PUBLISHED               # r->w
    REC_HISTORY                 # w->r
    REC_PRESENCE                # w->r
    REC_REPLY                   # r->w: the body of a REPLY
    REC_MESSAGE                 # r->w
    REC_TAKEN                   # r->w: sessions that this draining worker gave up were claimed elsewhere
    REC_STATE                   # w->r: a session joined, left, or acknowledged
    REC_CATCHUP                 # w->r: what came after this position?
    REC_CAUGHT                  # r->w: the next part of it
    REC_BAN                     # w->r: ban a user, or end a ban (core/ban_list.py)
    REC_BANS                    # r->w: the bans, or what has changed
    REC_SESSIONS                # w->r: which channels have these sessions?
    REC_SURVEY                  # w->r: how does this channel stand? (core/survey.pxd)
    REC_TOLD                    # the router's own: who told what stands behind this, and whose the session is
    REC_GLOBAL                  # r->w: a global channel stands here; what is said in it from now on follows this
    REC_LEADS                   # r->w: I lead or feed this shard under this epoch: say what you hold of it
    REC_SHARDS                  # w->r: all that I hold of these shards follows; what you heard of them before is void
    REC_ATTEND                  # w->r: what a session did in a channel, to the channel's leader when that is another
    REC_KIND_COUNT

ctypedef struct Record:         # 8 bytes: the head of every record
    uint32_t size               # the whole record, a multiple of 8
    uint8_t kind
    uint8_t shard               # of what the record is about (core/shards.pxd); of LEADS, the shard itself
    uint16_t aux                # by kind: size of the name, code, or flags

cdef enum BeginFlag:            # aux of BEGIN
    BEGIN_BESIDE = 1            # an earlier start runs on beside this
    BEGIN_EVERYBODY = 2         # it has sessions: it wants to know of all global channels
    BEGIN_BEFORE = 4            # it was linked before: of a global channel that it does not name it was never told

cdef enum:
    LINK_FRESH = 1              # the first word of a new stream: of what went by the one before, all may be lost

ctypedef struct RecLink:        # LINK, LINKED, BEGIN, END, BYE; the same in all versions, so that each can tell
    Record head                 # LINKED: aux 1 = resynchronise; LINK: 0 or LINK_FRESH; BEGIN: BeginFlag
    uint64_t epoch              # of the sender: the worker's start, the router's epoch
    uint32_t version            # RECORDS_VERSION
    uint32_t worker             # the worker's number on its node
    # By the worker's monotonic clock. LINK: now; LINKED: what it said of sessions before then is stored.
    uint64_t stored_ms

cdef enum:
    GLOBAL_GONE = 1             # `channel` of GLOBAL: nothing is kept of it any more, and it makes room for another

ctypedef struct RecChannel:     # SUBSCRIBE, SUBSCRIBED, UNSUBSCRIBE, GLOBAL; name follows but in SUBSCRIBED
    Record head                 # aux: size of the name; SUBSCRIBED: 0, or the code of a refusal
    uint64_t channel            # the worker's handle; GLOBAL: 0 or GLOBAL_GONE
    uint64_t epoch              # SUBSCRIBE: the last position seen; SUBSCRIBED, GLOBAL: the position now
    uint64_t offset

cdef enum LeadsFlag:            # aux of LEADS
    LEADS_FEEDS = 1             # another region has its leader: workers of this router's region hear its channels here

ctypedef struct RecLeads:
    Record head                 # aux: 0 or LEADS_FEEDS
    # That new channels of the shard begin with: of two leaders the one with the higher leads; 0: I lead it no more.
    uint64_t epoch

cdef enum ShardsFlag:           # aux of SHARDS
    SHARDS_SAID = 1             # that was all of these shards: it stands behind what SHARDS without it stood before
    SHARDS_ELSEWHERE = 4        # with SHARDS_SAID: global channels are heard of another router, which follows this one
    SHARDS_BEFORE = 2           # with SHARDS_SAID: some router told of the global channels before, and they were named

ctypedef struct RecShards:
    Record head                 # aux: ShardsFlag
    uint64_t which[4]           # bit n % 64 of word n // 64: shard n

cdef enum OpenFlag:             # aux of OPEN
    OPEN_RESUME = 1             # the session's stored state is wanted
    OPEN_AGAIN = 2              # said again after a lost link: nothing is answered or stored
    OPEN_TOLD = 4               # told to an earlier router: it is stored, and nothing else
    OPEN_ALIVE = 8              # with OPEN_RESUME: its token is old: where nothing is stored, only if it is taken over

cdef enum CloseFlag:            # aux of CLOSE
    CLOSE_COMES_BACK = 1        # it was told to
    CLOSE_OVER = 2              # the client said `bye`, or an operator `kicked`: the session is over, its state goes
    CLOSE_TOLD = 4              # told to an earlier router

cdef enum:
    OPENED_TAKEN = 1            # aux of OPENED: another connection held the session; above it: code of a refusal

cdef enum:
    FENCE_BITS = 20             # of a claim's number, behind its router's epoch: a count; more go on in the next one's

ctypedef struct RecSession:     # OPEN, OPENED, CLOSE, EVICT; body follows OPEN, OPENED and EVICT
    Record head                 # aux: OpenFlag, 0 or OPENED_TAKEN or a code, CloseFlag, 0 or a code
    uint64_t conn               # the worker's handle
    uint8_t session[16]
    uint32_t seq                # of the worker's request; OPEN and OPENED
    # OPEN: what is stored of it; OPENED: its channels, [[name, epoch, offset], ...]; EVICT: why, as text
    uint32_t body_size
    uint64_t time_us            # CLOSE: when the worker said it first, by its own clock (core/told.pxd)
    uint64_t fence              # number of the claim, higher than any before; 0: the router has not answered it

ctypedef struct RecPublish:     # name, key, sender and data (MessagePack) follow
    Record head                 # aux: size of the name
    uint32_t seq
    uint32_t data_size
    uint16_t key_size
    uint16_t sender_size
    uint32_t flags              # PublishFlag

cdef enum PublishFlag:
    PUBLISH_AGAIN = 1           # sent before over a link that was lost: it may have been ordered already

ctypedef struct RecPublished:
    Record head                 # aux: 0, or the code of the refusal
    uint32_t seq
    uint32_t reserved
    uint64_t epoch
    uint64_t offset

cdef enum:
    PRESENCE_WORKERS = 1        # limit of PRESENCE: the answer also tells how many workers have members

cdef enum Survey:               # limit of SURVEY: what of the stream has to be read before it is answered
    SURVEY_AS_IS                # nothing: what the router knows now
    SURVEY_POSITION
    SURVEY_MESSAGES

ctypedef struct RecHistory:     # HISTORY, PRESENCE, SURVEY; name follows
    Record head                 # aux: size of the name
    uint32_t seq
    uint32_t limit              # PRESENCE: 0 or PRESENCE_WORKERS; SURVEY: Survey
    uint16_t reverse
    uint16_t has_since
    uint32_t bytes_max          # the reply's bound
    uint64_t since_epoch
    uint64_t since_offset

cdef enum:
    BANS_ALL = 1                # aux of BANS: these are all, forget any other

ctypedef struct RecBody:        # REPLY, BAN, BANS, SESSIONS; body follows
    Record head                 # REPLY: aux = code of a refusal; BANS: 0 or BANS_ALL
    uint32_t seq
    uint32_t body_size

cdef enum MessageFlag:          # aux of MESSAGE
    MESSAGE_GLOBAL = 1          # for every session
    MESSAGE_EVENT = 2           # an EVENT frame: it has no position

ctypedef struct RecMessage:     # the MESSAGE frame as MessagePack follows
    Record head                 # MessageFlag
    uint64_t channel            # the worker's handle; 0 when global: the frame has its name
    uint64_t epoch
    uint64_t offset
    uint32_t body_size
    uint32_t reserved

ctypedef struct RecTaken:
    Record head
    uint32_t count              # since the last one
    uint32_t others             # linked workers that do not drain

cdef enum StateKind:
    STATE_JOINED = 1            # at this position; it is stored
    STATE_HERE                  # joined before: after a resume or a lost link; nothing is stored
    STATE_LEFT                  # the session left the channel; what is stored goes
    STATE_ACKED                 # everything up to this position was received
    STATE_HEARS                 # HELLO: in global channels from these positions on, {name: [epoch, offset]} for a name
    STATE_LISTS                 # WELCOME of a resume: in these alone, global ones apart; for the next router, as HEARS
    STATE_TOLD = 16             # added to one of these: told to an earlier router

ctypedef struct RecState:       # STATE, ATTEND; name and, but with ACKED, the user follow
    Record head                 # aux: size of the name
    uint8_t session[16]
    uint64_t epoch
    uint64_t offset
    uint16_t what               # StateKind
    uint16_t user_size
    uint32_t conn               # low half of the worker's handle: a session that was taken over is another's
    uint64_t time_us            # of JOINED, LEFT, HEARS and LISTS as in RecSession; else 0
    uint64_t fence              # of these, and of HERE, the number of the session's claim; else 0

ctypedef struct RecTold:        # OPEN, CLOSE or STATE with its flag of what was told follows as a record of its own
    Record head                 # aux: the worker's index
    uint64_t claim              # of a connection that has had the session since before this router; 0: none

cdef enum CatchupFlag:
    CATCHUP_OUTCOME = 1         # the outcome alone, no messages
    CATCHUP_CURSOR = 2          # since is unknown: the last ACK of the channel's user counts
    CATCHUP_START = 4           # since is unknown: from the oldest that is kept
    CATCHUP_LISTED = 8          # since is unknown: from where workers were told of the global channel
    CATCHUP_STORED = 16         # since is what was acknowledged: its epoch is one that the offset is not beyond

ctypedef struct RecCatchup:     # name follows
    Record head                 # aux: size of the name
    uint64_t channel            # the worker's handle
    uint64_t since_epoch
    uint64_t since_offset
    uint32_t seq
    uint32_t bytes_max          # of the messages in the answer; one is always given if there is any
    uint32_t flags              # CatchupFlag
    uint32_t cursor             # the router's own: CursorState

cdef enum CursorState:          # what `since` of a CATCHUP_CURSOR is
    CURSOR_READ                 # the user's cursor; 0: nothing was ever acknowledged
    CURSOR_NOT_KEPT             # this router keeps none: the channel's position
    CURSOR_AWAY                 # it could not be read in time

cdef enum Outcome:              # protocol, "Resuming"
    OUTCOME_LIVE
    OUTCOME_REPLAYED
    OUTCOME_GAP
    OUTCOME_RESET

cdef enum GapReason:
    GAP_NONE
    GAP_TRIMMED                 # older than the channel's history
    GAP_LOST                    # never reached the log
    GAP_ROUTER_LOST             # a worker's own: the router was lost, or gave the worker up
    GAP_SLOW_CONSUMER           # a worker's own: the member takes too little

ctypedef struct RecCaught:      # `count` times a Caught and its MESSAGE frame, padded to 8
    Record head                 # aux: code of a refusal, or 0
    uint64_t channel
    uint64_t epoch              # the channel's position now
    uint64_t offset
    uint64_t last_epoch         # go on from here: of the last message of this part, or where the gap ends
    uint64_t last_offset        # equal to `offset`: this was all, and what is routed next on this link follows it
    uint64_t gap_from           # these offsets will not come; 0: there is no gap before this part
    uint64_t gap_to
    uint32_t seq
    uint32_t body_size
    uint32_t count
    uint8_t outcome             # with CATCHUP_OUTCOME
    uint8_t gap_reason
    uint16_t cursor             # CursorState, with CATCHUP_CURSOR

ctypedef struct Caught:         # 16 bytes: the head of a message in a CAUGHT
    uint64_t offset
    uint32_t size
    uint32_t reserved


cdef inline uint32_t record_size(uint32_t fixed, uint32_t variable) noexcept nogil:
    """The bytes of a whole record."""
    return (fixed + variable + 7) & ~(<uint32_t> 7)


cdef inline void record_init(uint8_t *room, int kind, int aux, uint32_t fixed, uint32_t variable) noexcept nogil:
    """Begin a record in its room: the fixed bytes and the padding zeroed."""
    cdef Record *head = <Record *> room
    cdef uint32_t size = record_size(fixed, variable)
    memset(room + size - 8, 0, 8)
    memset(room, 0, fixed)
    head.size = size
    head.kind = <uint8_t> kind
    head.aux = <uint16_t> aux


cdef inline uint8_t *record_add(Batch *batch, int kind, int aux, uint32_t fixed, uint32_t variable) noexcept nogil:
    """Append a record of `fixed` + `variable` bytes, the fixed ones and the padding zeroed; NULL at the bound."""
    cdef uint8_t *room = batch_reserve(batch, record_size(fixed, variable))
    if room != NULL:
        record_init(room, kind, aux, fixed, variable)
    return room


cdef inline bint record_fits(const Record *head, size_t left) noexcept nogil:
    """Whether a whole record stands at `head` with `left` bytes of the batch to go: a peer's bytes are not trusted."""
    cdef size_t fixed
    cdef size_t variable = 0
    if left < sizeof(Record) or head.size < sizeof(Record) or head.size > left or head.size % 8:
        return False
    if head.kind <= REC_BYE:
        fixed = sizeof(RecLink)
    elif head.kind <= REC_UNSUBSCRIBE:
        fixed = sizeof(RecChannel)
        if head.kind != REC_SUBSCRIBED:
            variable = head.aux
    elif head.kind <= REC_EVICT:
        fixed = sizeof(RecSession)
        if head.size >= fixed:
            variable = (<RecSession *> head).body_size
    elif head.kind == REC_PUBLISH:
        fixed = sizeof(RecPublish)
        if head.size >= fixed:
            variable = <size_t> head.aux + (<RecPublish *> head).key_size + (<RecPublish *> head).sender_size \
                + (<RecPublish *> head).data_size
    elif head.kind == REC_PUBLISHED:
        fixed = sizeof(RecPublished)
    elif head.kind <= REC_PRESENCE:
        fixed = sizeof(RecHistory)
        variable = head.aux
    elif head.kind == REC_REPLY:
        fixed = sizeof(RecBody)
        if head.size >= fixed:
            variable = (<RecBody *> head).body_size
    elif head.kind == REC_MESSAGE:
        fixed = sizeof(RecMessage)
        if head.size >= fixed:
            variable = (<RecMessage *> head).body_size
    elif head.kind == REC_TAKEN:
        fixed = sizeof(RecTaken)
    elif head.kind == REC_STATE or head.kind == REC_ATTEND:
        fixed = sizeof(RecState)
        if head.size >= fixed:
            variable = <size_t> head.aux + (<RecState *> head).user_size
    elif head.kind == REC_CATCHUP:
        fixed = sizeof(RecCatchup)
        variable = head.aux
    elif head.kind == REC_CAUGHT:
        fixed = sizeof(RecCaught)
        if head.size >= fixed:
            variable = (<RecCaught *> head).body_size
    elif head.kind <= REC_SESSIONS:
        fixed = sizeof(RecBody)
        if head.size >= fixed:
            variable = (<RecBody *> head).body_size
    elif head.kind == REC_SURVEY:
        fixed = sizeof(RecHistory)
        variable = head.aux
    elif head.kind == REC_TOLD:
        fixed = sizeof(RecTold)
    elif head.kind == REC_GLOBAL:
        fixed = sizeof(RecChannel)
        variable = head.aux
    elif head.kind == REC_LEADS:
        fixed = sizeof(RecLeads)
    elif head.kind == REC_SHARDS:
        fixed = sizeof(RecShards)
    else:
        return False
    return head.kind != 0 and head.size >= fixed + variable
