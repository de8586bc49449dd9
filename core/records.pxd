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
    RECORDS_VERSION = 1

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
    REC_PRESENCE_EXPECT         # r->w: so many parts will come
    REC_PRESENCE_ASK            # r->w: list your members of this channel
    REC_PRESENCE_PART           # w->r->w
    REC_MESSAGE                 # r->w
    REC_TAKEN                   # r->w: sessions that this draining worker gave up were claimed elsewhere
    REC_KIND_COUNT

ctypedef struct Record:         # 8 bytes: the head of every record
    uint32_t size               # the whole record, a multiple of 8
    uint16_t kind
    uint16_t aux                # by kind: size of the name, code, or flags

ctypedef struct RecLink:        # LINK, LINKED, BEGIN, END, BYE
    Record head                 # LINKED: aux 1 = resynchronise; BEGIN: aux 1 = an earlier start runs on beside this
    uint64_t epoch              # of the sender: the worker's start, the router's epoch
    uint32_t version            # RECORDS_VERSION
    uint32_t worker             # the worker's number on its node

ctypedef struct RecChannel:     # SUBSCRIBE, SUBSCRIBED, UNSUBSCRIBE; name follows but in SUBSCRIBED
    Record head                 # aux: size of the name
    uint64_t channel            # the worker's handle
    uint64_t epoch              # SUBSCRIBE: the last position seen; SUBSCRIBED: the position now
    uint64_t offset

ctypedef struct RecSession:     # OPEN, OPENED, CLOSE, EVICT
    Record head                 # OPENED: aux 1 = another connection held the session; CLOSE: aux 1 = told to come back
    uint64_t conn               # the worker's handle
    uint8_t session[16]
    uint32_t seq                # of the worker's request; OPEN and OPENED
    uint32_t reserved

ctypedef struct RecPublish:     # name, key, sender and data (MessagePack) follow
    Record head                 # aux: size of the name
    uint32_t seq
    uint32_t data_size
    uint16_t key_size
    uint16_t sender_size
    uint32_t reserved

ctypedef struct RecPublished:
    Record head                 # aux: 0, or the code of the refusal
    uint32_t seq
    uint32_t reserved
    uint64_t epoch
    uint64_t offset

ctypedef struct RecHistory:     # HISTORY, PRESENCE; name follows
    Record head                 # aux: size of the name
    uint32_t seq
    uint32_t limit
    uint16_t reverse
    uint16_t has_since
    uint32_t bytes_max          # the reply's bound
    uint64_t since_epoch
    uint64_t since_offset

ctypedef struct RecBody:        # REPLY, PRESENCE_EXPECT, PRESENCE_ASK, PRESENCE_PART; body follows
    Record head                 # REPLY: aux = code of a refusal
    uint32_t seq
    uint32_t body_size
    uint64_t channel            # PRESENCE_ASK: the asked worker's handle
    uint32_t origin             # PRESENCE_ASK, PRESENCE_PART: the worker that asked, as the router numbers it
    uint32_t count              # PRESENCE_EXPECT: parts; PRESENCE_PART: members

ctypedef struct RecMessage:     # the MESSAGE frame as MessagePack follows
    Record head                 # aux 1: for every session (global)
    uint64_t channel            # the worker's handle; 0 when global
    uint64_t epoch
    uint64_t offset
    uint32_t body_size
    uint32_t reserved

ctypedef struct RecTaken:
    Record head
    uint32_t count              # since the last one
    uint32_t others             # linked workers that do not drain


cdef inline uint8_t *record_add(Batch *batch, int kind, int aux, uint32_t fixed, uint32_t variable) noexcept nogil:
    """Append a record of `fixed` + `variable` bytes, the fixed ones and the padding zeroed; NULL at the bound."""
    cdef uint32_t size = (fixed + variable + 7) & ~(<uint32_t> 7)
    cdef Record *head = <Record *> batch_reserve(batch, size)
    if head == NULL:
        return NULL
    memset(<uint8_t *> head + size - 8, 0, 8)
    memset(head, 0, fixed)
    head.size = size
    head.kind = <uint16_t> kind
    head.aux = <uint16_t> aux
    return <uint8_t *> head


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
    elif head.kind <= REC_PRESENCE_PART:
        fixed = sizeof(RecBody)
        if head.size >= fixed:
            variable = (<RecBody *> head).body_size
    elif head.kind == REC_MESSAGE:
        fixed = sizeof(RecMessage)
        if head.size >= fixed:
            variable = (<RecMessage *> head).body_size
    elif head.kind == REC_TAKEN:
        fixed = sizeof(RecTaken)
    else:
        return False
    return head.kind != 0 and head.size >= fixed + variable
