# Mailbox: notes between the data-plane thread and the control thread of one process, without the GIL.
#
# Two of them make a pair, one a direction. A note is a fixed head and two byte strings. The writer appends under the
# mutex and rings the eventfd once a batch; the reader swaps the whole batch out under the mutex and walks it alone.
# Invariant: `filled` holds whole notes; `drained` belongs to the reader.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from core.batch cimport Batch, batch_clear, batch_free, batch_reserve

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)
    int pthread_mutex_destroy(pthread_mutex_t *)

cdef extern from "<unistd.h>" nogil:
    ssize_t write(int, const void *, size_t)
    ssize_t read(int, void *, size_t)

cdef enum:
    MAILBOX_BYTES_MAX = 67108864

cdef enum NoteKind:
    # data plane -> control
    NOTE_FRAME = 1              # a control frame; text: the frame, second: the user ("" before HELLO)
    NOTE_LINKED                 # the router knows this worker; first: its epoch
    NOTE_STOPPED                # every connection is gone
    # LISTED: request, first: slot to go on with, LIST_END: that was all; second: records, in text; conn: members of the
    # channel that was asked for
    NOTE_LISTED
    NOTE_DRAIN_SENT             # answer to a step; first: FINs queued, second: 1: all were told, request: live ones
    NOTE_TAKEN                  # first: drained sessions that were taken over elsewhere, second: workers to go to
    NOTE_SETTLE                 # to be answered by SETTLED behind everything that this connection asked for before
    NOTE_AUDITED                # request; text: an Audit, extra: what else its walk found (core/audit.pxd)
    NOTE_LOG_BATCH              # router; request: number of the batch; text: log records (core/log_records.pxd)
    NOTE_LOG_LOAD               # router; request, first: 1: with messages, 0: the position alone; text: channel
    NOTE_LOG_KEPT               # router; answer to LOG_SIFT; text: those of its records that have to stay
    NOTE_SESSION_OPEN           # router; request, flags: OpenFlag, first: fence, session; text: what is stored of it
    NOTE_SESSION_STATE          # router; text: STATE and CLOSE records of a turn, and what came late, behind TOLD
    NOTE_SESSION_TOLD           # router; text: what workers told an earlier router: a TOLD before each record
    NOTE_CURSOR                 # router; request; text: channel whose user's last ACK is asked for
    NOTE_SESSIONS               # router; request; text: ids of sessions whose stored channels are asked for
    NOTE_BAN                    # router; text: what is asked for (core/ban_list.py)
    NOTE_BANS                   # flags: 0 or BANS_ALL; text: a change of the bans (core/ban_list.py)
    NOTE_FOREIGN                # the other end speaks version `first` of the link; text: the worker, at the router
    NOTE_DRAINED                # router; request: shard, first: ticket: the log has all that was under way of it
    NOTE_FORGOTTEN              # router; request: shard: nothing of it is left
    NOTE_CLAIM                  # router; a session is claimed (core/admission.pxd)
    NOTE_BEGAN                  # router; flags: number of a worker, first: its start, beside which no earlier one runs
    NOTE_LINK_CLOSED            # request: place of the link: the data plane does not touch it any more
    NOTE_ABROAD                 # router; request: shard; text: records that are in no log, for other regions
    # control -> data plane
    # OPEN: text: WELCOME up to its map of channels; flags: OpenNote, and from OPEN_DEVICE on the number of the device's
    # class, 0: none; extra: the channels with their positions, behind them `first` bytes of rights (core/rights.pxd),
    # and behind those `second` bytes that are stored of the session; third: ms until the credentials end, 0: never
    NOTE_OPEN
    NOTE_SEND                   # text: a frame
    NOTE_FIN                    # first: code, second number: after ms; text: reason; extra: targets (core/edge.pxd)
    NOTE_HISTORY                # text: channel, first: limit, flags 1 reverse, 2 since; second number, third number
    NOTE_PRESENCE               # text: channel
    NOTE_DRAIN                  # accept nothing more; flags 1: leave what waits to be accepted to the successor
    NOTE_STOP
    NOTE_LIST                   # request; text: ListQuery, user and channel; see core/listing.pxd
    NOTE_RECLAIM                # the same, and first: code, second: after ms; extra: reason
    # first: FINs at most, request: us to the first return, second: to the next, third: pace; text: targets; flags 1: as
    # the region is evacuated, where connections are accepted still
    NOTE_DRAIN_STEP
    NOTE_SETTLED                # conn: nothing of it is left with the control thread
    NOTE_AUDIT                  # request; walk the tables at the end of this turn
    NOTE_LOG_COMMITTED          # router; request: number of the batch that is in the log, and all before it
    NOTE_LOG_STATE              # router; first: 1: the log takes batches, 0: it is away
    NOTE_LOG_LOADED             # router; request, conn: 1: more comes, first: epoch, second: offset, third: code; text
    NOTE_LOG_SIFT               # router; request; text: old log records; which of them have to stay?
    NOTE_SESSION_OPENED         # router; request, first: code, second: fence; text: [[name, epoch, offset], ...]
    NOTE_CURSOR_READ            # router; request, first: CursorState, second: epoch, third: offset
    NOTE_SESSIONS_READ          # router; request, first: code; text: body of the REPLY
    NOTE_REFRESH                # text: REPLY; extra: rights; device and third as in OPEN
    NOTE_BANS_SAY               # router; text: a change of the bans, extra: all of them
    NOTE_SESSIONS_STORED        # router; first: what was handed over of sessions before this time (ms) is stored
    NOTE_TOLD_END               # router; nothing is waited for any more: hand over what workers told an earlier router
    NOTE_LEAD                   # router; request: shard, first: epoch of new channels, second: fence, below its claims'
    NOTE_PAUSE                  # router; request: shard: take nothing of it for now; LEAD with the same epoch ends that
    NOTE_SHARD_DRAIN            # router; request: shard, first: ticket: answer DRAINED when the log has all of it
    NOTE_FORGET                 # router; request: shard: it is another's; answer FORGOTTEN
    # router; request: shard, first: epoch of its channels: what another region's leader ordered before it is in the log
    # here; FORGET ends that
    NOTE_FOLLOW
    NOTE_HOLD                   # router; first: ms of CLOCK_BOOTTIME until which it may lead; without it, for ever
    # router; text: records of shards that are followed, in their order, and what their leaders had ABROAD
    NOTE_FOLLOWED
    # router; request: number of the LOG_BATCH that another region has, as all before it, first: 1: some other confirms
    # batches, 0: none does; with second 1, request: shard: all that it had when it was led here is in another region
    NOTE_REPLICATED
    NOTE_LOG_RECOVER            # router; text: log records of a shard that is going to be led
    NOTE_CLAIMED                # router; answer to CLAIM (core/admission.pxd)
    NOTE_EVICT                  # router; session, first: code, text: why: its connection lost it
    NOTE_LINK_OPEN              # request: place of the link that the control thread opened
    NOTE_LINK_CLOSE             # request: place of the link: stop using it, and answer LINK_CLOSED

cdef enum OpenNote:             # flags of OPEN
    OPEN_RESUMES = 1            # the session's stored state is wanted
    OPEN_TELLS_UNREAD = 2       # WELCOME has room for one entry more: `unread`
    OPEN_WHOLE = 4              # with OPEN_RESUMES: the client named each channel of its session
    OPEN_IF_ALIVE = 8           # with OPEN_RESUMES: its token is old: only if the session is stored and has not expired
    OPEN_DEVICE = 256           # times the number of the device's class

ctypedef struct Note:           # 72 bytes
    uint32_t size               # the whole note, a multiple of 8
    uint16_t kind
    uint16_t flags
    uint64_t conn
    uint64_t request
    uint64_t first
    uint64_t second
    uint64_t third
    uint8_t session[16]
    uint32_t text_size
    uint32_t extra_size

ctypedef struct Mailbox:
    pthread_mutex_t mutex
    Batch filled                # guarded by the mutex
    Batch drained               # the reader's
    int event_fd                # owned by whoever made the pair; read by the reader, rung by the writer
    int rung                    # guarded: the reader was told and has not drained yet


cdef inline void note_init(Note *note, int kind) noexcept nogil:
    """A note that says nothing but its kind so far."""
    memset(note, 0, sizeof(Note))
    note.kind = <uint16_t> kind


cdef inline int mailbox_put(Mailbox *box, const Note *head, const uint8_t *text, const uint8_t *extra) noexcept nogil:
    """Append one note, text and extra of the sizes in its head; -1 when the box is full."""
    cdef uint32_t size = (<uint32_t> sizeof(Note) + head.text_size + head.extra_size + 7) & ~(<uint32_t> 7)
    cdef uint8_t *room
    pthread_mutex_lock(&box.mutex)
    room = batch_reserve(&box.filled, size)
    if room != NULL:
        memcpy(room, head, sizeof(Note))
        (<Note *> room).size = size
        if head.text_size:
            memcpy(room + sizeof(Note), text, head.text_size)
        if head.extra_size:
            memcpy(room + sizeof(Note) + head.text_size, extra, head.extra_size)
    pthread_mutex_unlock(&box.mutex)
    return 0 if room != NULL else -1


cdef inline bint mailbox_ring(Mailbox *box) noexcept nogil:
    """Tell the reader, if there is something that it was not told of; True when it was told now."""
    cdef bint ring
    cdef uint64_t one = 1
    pthread_mutex_lock(&box.mutex)
    ring = box.filled.size > 0 and not box.rung
    if ring:
        box.rung = 1
    pthread_mutex_unlock(&box.mutex)
    if ring:
        write(box.event_fd, &one, sizeof(one))
    return ring


cdef inline Batch *mailbox_drain(Mailbox *box) noexcept nogil:
    """All notes so far, the reader's until the next call; it clears the batch when it is done with them."""
    cdef Batch swap
    cdef uint64_t count
    read(box.event_fd, &count, sizeof(count))
    batch_clear(&box.drained)
    pthread_mutex_lock(&box.mutex)
    swap = box.drained
    box.drained = box.filled
    box.filled = swap
    box.rung = 0
    pthread_mutex_unlock(&box.mutex)
    return &box.drained


cdef inline void mailbox_init(Mailbox *box, int event_fd) noexcept nogil:
    pthread_mutex_init(&box.mutex, NULL)
    box.filled.bytes_max = MAILBOX_BYTES_MAX
    box.drained.bytes_max = MAILBOX_BYTES_MAX
    box.event_fd = event_fd
    box.rung = 0


cdef inline void mailbox_free(Mailbox *box) noexcept nogil:
    batch_free(&box.filled)
    batch_free(&box.drained)
    pthread_mutex_destroy(&box.mutex)
