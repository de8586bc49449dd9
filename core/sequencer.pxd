# Sequencer: the router's data plane: the workers it knows, the streams it orders, the sessions it knows the owner of.
#
# Each message gets the next offset of its stream, is encoded once as the MESSAGE frame that clients see, and is added
# to the batch of each worker that has members, and of no other (core/ordering.pyx): at once, or when the log has it. A
# worker is unknown until its END: what it sends before is passed over, and it is asked to say everything (LINKED,
# aux 1). A worker whose batch passes its bound is
# given up: it will be asked for everything when it is heard again, and finds the gap by itself; nothing is dropped in
# silence. Invariant: every route and every session names a worker that is linking, linked
# or ending.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from core.batch cimport Batch
from core.bus cimport Bus
from core.drained cimport Drained
from core.hash cimport HashKey, Index
from core.keys cimport Keys
from core.leaving cimport Leavings
from core.ledger cimport Ledger
from core.log_out cimport LogOut
from core.mailbox cimport Mailbox, Note
from core.namespaces cimport Namespaces
from core.pace cimport Pace
from core.records cimport REC_PUBLISHED, REC_SUBSCRIBED, RecChannel, Record, RecPublished, record_add
from core.rooms cimport Rooms
from core.shards cimport SHARDS_MAX, SHARD_WORDS
from core.slab cimport Slab
from core.stream cimport Streams

cdef enum:
    IDENTITY_BYTES_MAX = 96
    WORKERS_MAX = 256
    SEQUENCER_BATCHES_TURN = 128
    WORKER_ASK_AGAIN_MS = 3000  # an asked worker that only says LINK is asked again: the question may have been lost
    WORKER_SILENT_MS = 15000    # a worker that says nothing for so long is given up
    SWEEP_PERIOD_MS = 1000
    SWEEP_SLOTS = 4096
    MESSAGE_ENVELOPE_BYTES = 640    # channel, sender, positions and keys around the data
    ORIGIN_WINDOW_MS = 60000        # a publish that is sent again after that is taken for a new one
    ORIGINS_MAX = 524288

cdef enum WorkerState:
    WORKER_FREE
    WORKER_ENDING               # gone: what it had is being forgotten (core/owners.pxd)
    WORKER_ASKED                # LINKED aux 1 is on its way
    WORKER_LINKING              # between its BEGIN and END
    WORKER_LINKED

ctypedef struct Worker:
    uint8_t identity[IDENTITY_BYTES_MAX]
    uint32_t identity_size
    uint32_t slot               # where the bus saw it last
    uint32_t state
    uint64_t epoch              # of the worker's start
    uint32_t number             # on its node
    uint32_t foreign            # the version of its link, if it is not ours; 0: it is
    uint32_t sessions           # open there
    uint64_t heard_ms
    uint64_t asked_ms           # when it was last asked for everything
    Batch out
    bint overfull               # a record found no room
    bint everybody              # it is told of global channels
    bint before                 # it was linked before its BEGIN, to this router or another
    bint drains                 # it sends its clients away
    bint told                   # it gave sessions up, or some were taken over, since the last TAKEN
    uint32_t taken              # how many
    uint64_t marked_ms          # when a LINK was heard of which it is to be told when all before it is stored; 0: none
    uint64_t mark_ms            # what that said: the worker's clock
    uint64_t stored_ms          # what it said before then is stored, by the worker's clock
    uint64_t synced[SHARD_WORDS]   # bits: shards of which it said what it holds (core/leading.pxd)
    uint64_t stale[SHARD_WORDS]    # bits: shards of which it said what it holds, and will say it anew
    uint32_t published[SHARDS_MAX]  # messages of it that were ordered, by shard: only ever grow
    bint knows_globals          # it was told of all global channels, and is told of each new one

ctypedef struct Owner:          # 36 bytes: which connection has a session
    uint8_t session[16]
    uint32_t conn[2]            # the worker's handle, low half first; whole it would cost 4 bytes of alignment
    uint32_t fence[2]           # the number of its claim, likewise
    uint8_t worker              # index in the table of workers
    uint8_t live
    uint8_t again               # it had the session before this router started, and said so
    uint8_t guest               # another router gave it the session: it is only in rooms here

ctypedef struct Shard:
    uint64_t epoch              # that LEADS tells, and new streams begin with
    uint64_t fence              # number of the last claim in it; begins with the epoch: later leaders give higher ones
    uint64_t sequenced          # messages; only ever grows, and is read by the control thread
    uint64_t claims_from_ms     # before that they wait for what workers hold of it
    uint64_t drain              # ticket + 1 of the SHARD_DRAIN that is not answered; 0: none
    uint64_t drain_chunk        # of the log: when all before it are there
    uint8_t state               # ShardState of core/leading
    uint8_t unconfirmed         # what it had when it was led here may be in no other region yet

ctypedef struct Admissions:     # OPENs whose claim is not answered (core/admission.pxd)
    bint on                     # sessions are claimed of the control thread
    bint taken                  # the one that goes on now evicted another connection of its session
    Slab slab
    Index index                 # by session
    Index formers               # those that wait for the end of a connection, by its session
    uint32_t generation         # last one given
    Batch evicting              # the same, by the time at which they wait no longer
    uint32_t evicting_place     # what stands before it is over
    Batch due                   # those that wait no longer

ctypedef struct Sequencer:
    Ledger *ledger              # borrowed
    Bus bus                     # owned
    Worker workers[WORKERS_MAX]
    uint32_t worker_count       # slots ever used
    uint32_t endings            # workers that are gone, and not forgotten yet (core/owners.pxd)
    uint32_t ending             # index of the one of them that is being forgotten
    uint32_t ending_place       # slot of its owners, then of its routes, up to which it is
    bint ending_routes          # its owners all are
    uint64_t forget_left_ns     # for that in this turn
    uint32_t spill_bytes_max    # of what waits for one worker
    Namespaces namespaces       # filled before the thread starts
    Streams streams
    LogOut log
    Keys keys
    Keys origins                # un-keyed publishes, by worker and request: those that are sent again are known by it
    Drained drained
    Batch catchups              # CATCHUPs that wait for their turn (core/catchup.pxd)
    uint32_t catchups_place     # what stands before it is answered
    bint catchups_due           # some can be answered in the next turn
    Batch ahead                 # CATCHUPs from beyond what is here of a shard that is followed (core/following.pxd)
    bint ahead_due              # something came since they were looked at
    bint bridged                # other regions follow what is ordered here
    bint confirmed              # some other region confirms what it has
    Batch abroad                # records of this turn that are in no log, for other regions (core/abroad.pxd)
    uint64_t replicated         # number of the LOG_BATCH that another region has, as all before it
    Batch replicating           # publishes that are answered when another region has them (core/replicating.pxd)
    uint32_t replicating_place  # what stands before it is answered
    Batch claims                # of sessions that another worker has: they wait a turn (core/claims.pxd)
    uint32_t claims_place       # what stands before it came before this turn
    uint32_t claims_turns       # since it last was moved
    Admissions admissions
    Batch states                # what sessions did in this turn (core/sessions.pxd)
    bint sessions_kept          # there is a store for them
    uint64_t stored_ms          # what was heard before then is there, by `now_ms`
    Shard shards[SHARDS_MAX]
    uint32_t shard_count        # a power of two
    uint32_t drains             # shards with a SHARD_DRAIN that is not answered
    uint64_t hold_ms            # of CLOCK_BOOTTIME, up to which this router may lead; HOLD_FOR_EVER
    bint hold_over              # that was so in this turn
    uint32_t forgets            # shards that are being forgotten (core/forgetting.pxd)
    uint32_t forget_place       # slot up to which they are
    int forget_step
    bint forget_again           # something has to stay for now
    bint forget_rests           # until the next turn
    bint claims_held            # all claims that wait are in shards of which not all workers have said what they hold
    Batch told                  # what workers told an earlier router, until the control thread wants it
    uint32_t told_workers       # so many workers are waited for; 0: the control thread says when
    bint told_gathers           # some are still
    bint told_due               # none is: it is handed over as soon as there is room
    bint recovers               # the log gave all it keeps back at the start
    uint32_t alive_next         # slot of the owner that was last told of as alive
    uint64_t alive_due          # slots times seconds that passed since
    Slab owners                 # an Attender beside each
    Index owner_index
    Rooms rooms                 # who is where (core/presence.pxd)
    Leavings leavings           # who is told of as left unless they are back in time
    Leavings gone               # who was told of as left, while `quiet_until_ms` is to come
    uint32_t damping_ms         # how long a session may be away from a room before its members are told
    uint32_t events_members_max     # in larger rooms nobody is told
    uint64_t quiet_until_ms     # before that, who is somewhere already is taken for known
    HashKey hash_key
    uint64_t epoch
    Pace pace
    uint64_t now_ms             # monotonic
    uint64_t wall_ms
    uint64_t swept_ms
    uint8_t *scratch            # owned: one MESSAGE, or the body of one REPLY
    uint32_t scratch_bytes
    uint32_t linked             # workers in state LINKED
    uint32_t draining           # of these, those that drain
    int32_t epoll_fd            # owned
    Mailbox to_control
    Mailbox from_control        # its descriptor also says that `stopping` was set
    Batch bans                  # owned: all of them, as the control thread said last (core/bans)
    uint64_t audit              # request of the audit that is due at the end of this turn; 0: none
    bint again
    bint stopping

ctypedef void (*RunRecord)(Sequencer *, Worker *, Record *) noexcept nogil


cdef inline Worker *worker_at(Sequencer *sequencer, uint32_t index) noexcept nogil:
    return &sequencer.workers[index]


cdef inline uint32_t worker_index(Sequencer *sequencer, Worker *worker) noexcept nogil:
    return <uint32_t> (worker - &sequencer.workers[0])


cdef inline uint8_t *worker_say(Worker *worker, int kind, int aux, uint32_t fixed, uint32_t variable) noexcept nogil:
    """Room for a record to a worker; NULL: it is given up at the end of the turn."""
    cdef uint8_t *record = record_add(&worker.out, kind, aux, fixed, variable)
    if record == NULL:
        worker.overfull = True
    return record


cdef inline void worker_published(Worker *worker, uint32_t seq, int code, uint64_t epoch,
                                  uint64_t offset) noexcept nogil:
    """Answer a PUBLISH that wants an answer."""
    cdef RecPublished *answer
    if seq == 0:
        return
    answer = <RecPublished *> worker_say(worker, REC_PUBLISHED, code, sizeof(RecPublished), 0)
    if answer != NULL:
        answer.seq = seq
        answer.epoch = epoch
        answer.offset = offset


cdef inline void worker_subscribed(Worker *worker, uint64_t channel, int code, uint64_t epoch,
                                   uint64_t offset) noexcept nogil:
    """Answer a SUBSCRIBE; `code`: there is no room for it."""
    cdef RecChannel *answer = <RecChannel *> worker_say(worker, REC_SUBSCRIBED, code, sizeof(RecChannel), 0)
    if answer != NULL:
        answer.channel = channel
        answer.epoch = epoch
        answer.offset = offset


cdef Worker *worker_known(Sequencer *sequencer, const uint8_t *identity, uint32_t size) noexcept nogil
cdef Worker *worker_of(Sequencer *sequencer, const uint8_t *identity, uint32_t size) noexcept nogil
cdef void sequencer_tell_taken(Sequencer *sequencer) noexcept nogil
cdef void worker_give_up(Sequencer *sequencer, Worker *worker) noexcept nogil
cdef uint32_t owner_of(Sequencer *sequencer, const uint8_t *session) noexcept nogil
cdef bint bulk_fits(Worker *worker, uint32_t seq, uint32_t size) noexcept nogil
cdef void session_claim(Sequencer *sequencer, Worker *worker, Record *said) noexcept nogil
cdef void sequencer_record(Sequencer *sequencer, Worker *worker, Record *record) noexcept nogil
