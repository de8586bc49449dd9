"""Sequencer: what the router does with each record of a worker."""

from libc.string cimport memcmp, memcpy, memset

from core.history cimport history_answer
from core.admission cimport admission_began, admission_close, session_admit
from core.bans cimport bans_asked, bans_say_all
from core.batch cimport batch_clear, batch_free
from core.catchup cimport catchup_take
from core.claims cimport claim_waits, claims_settle
from core.codes cimport NO_SUCH_CHANNEL, OVERLOADED
from core.drained cimport DrainedSession, drained_keep, drained_take
from core.everybody cimport everybody_add, everybody_link, everybody_say
from core.hash cimport hash_bytes, index_put
from core.loading cimport loading_takes
from core.following cimport following_lacks
from core.leading cimport SHARD_FEEDING, shard_is_said, shard_takes, shards_begin, shards_said, shards_tell
from core.ledger cimport (COUNT_MESSAGES_ROUTED, COUNT_WORKERS_LOST, GAUGE_LINKED, KIND_SESSION, ledger_acquire,
                          ledger_count, ledger_gauge, ledger_leaks)
from core.mailbox cimport NOTE_FOREIGN, Note, mailbox_put, note_init
from core.namespaces cimport DOMAIN_GLOBAL, namespace_of
from core.ordering cimport publish_order
from core.owners cimport (owner_at, owner_conn, owner_end, owner_fence, owner_find, worker_empty, worker_end,
                          workers_forget)
from core.presence cimport presence_answer, presence_state
from core.records cimport (BEGIN_BEFORE, BEGIN_BESIDE, BEGIN_EVERYBODY, CLOSE_COMES_BACK, CLOSE_TOLD, LINK_FRESH,
                           MESSAGE_GLOBAL, OPEN_AGAIN, OPEN_TOLD, RECORDS_VERSION, REC_ATTEND, REC_BAN, REC_BEGIN,
                           REC_BYE, REC_CATCHUP, REC_CLOSE, REC_END, REC_EVICT, REC_HISTORY, REC_LINK, REC_LINKED,
                           REC_MESSAGE, REC_OPEN, REC_PRESENCE, REC_PUBLISH, REC_REPLY, REC_SESSIONS, REC_SHARDS,
                           REC_STATE, REC_SUBSCRIBE, REC_SURVEY, REC_TAKEN, REC_UNSUBSCRIBE, SHARDS_BEFORE,
                           STATE_ACKED, STATE_HEARS, STATE_LEFT, STATE_LISTS, STATE_TOLD, RecBody, RecCatchup,
                           RecChannel, RecHistory, RecLink, RecMessage, RecPublish, RecSession, RecShards, RecState,
                           RecTaken)
from core.rooms cimport NOBODY, attender_at, attender_start
from core.sessions cimport session_close, session_open, session_state, session_told, sessions_ask, told_linked
from core.shards cimport shard_of_channel
from core.sites cimport HERE
from core.slab cimport SLAB_NONE, slab_acquire
from core.stream cimport (Stored, Stream, route_remove, route_set, stream_adopt, stream_base, stream_find,
                          stream_is_kept, stream_listed, stream_routes_to, stream_since, stream_stored, stream_use,
                          stream_wanted)
from core.survey cimport survey_answer

assert sizeof(Owner) == 36 and WORKERS_MAX <= 256


cdef void _linked(Sequencer *sequencer, Worker *worker, bint ask) noexcept nogil:
    """LINKED; with `ask` the worker is to say everything that it holds."""
    cdef RecLink *answer = <RecLink *> worker_say(worker, REC_LINKED, 1 if ask else 0, sizeof(RecLink), 0)
    if ask:
        worker.asked_ms = sequencer.now_ms
    if answer != NULL:
        answer.epoch = sequencer.epoch
        answer.version = RECORDS_VERSION
        answer.stored_ms = worker.stored_ms
    if ask:
        shards_begin(worker)
        shards_tell(sequencer, worker)


cdef Worker *worker_known(Sequencer *sequencer, const uint8_t *identity, uint32_t size) noexcept nogil:
    """The worker of a bus identity, or NULL."""
    cdef uint32_t index
    cdef Worker *worker
    for index in range(sequencer.worker_count):
        worker = worker_at(sequencer, index)
        if worker.state >= WORKER_ASKED and worker.identity_size == size \
                and memcmp(worker.identity, identity, size) == 0:
            return worker
    return NULL


cdef Worker *worker_of(Sequencer *sequencer, const uint8_t *identity, uint32_t size) noexcept nogil:
    """The worker of a bus identity, a new one that is asked for everything if it is not known; NULL: too many."""
    cdef uint32_t index = 0
    cdef Worker *unused = worker_known(sequencer, identity, size)
    if unused != NULL:
        return unused
    if size == 0 or size > IDENTITY_BYTES_MAX:
        return NULL
    while index < sequencer.worker_count and worker_at(sequencer, index).state != WORKER_FREE:
        index += 1
    if index == WORKERS_MAX and sequencer.endings:
        workers_forget(sequencer, True)
        return worker_of(sequencer, identity, size)
    if index == WORKERS_MAX:
        return NULL
    if index == sequencer.worker_count:
        sequencer.worker_count += 1
    unused = worker_at(sequencer, index)
    memcpy(unused.identity, identity, size)
    unused.identity_size = size
    unused.heard_ms = sequencer.now_ms
    unused.marked_ms = unused.stored_ms = 0
    unused.foreign = 0
    memset(unused.published, 0, sizeof(unused.published))
    unused.state = WORKER_ASKED
    _linked(sequencer, unused, True)
    return unused


cdef uint32_t owner_of(Sequencer *sequencer, const uint8_t *session) noexcept nogil:
    """Slot of the owner that has a session, SLAB_NONE when nobody has it."""
    return owner_find(sequencer, session, hash_bytes(&sequencer.hash_key, session, 16))


cdef void _worker_unlink(Sequencer *sequencer, Worker *worker) noexcept nogil:
    """It is linked no more, and what waits for it is not wanted."""
    if worker.state == WORKER_LINKED:
        sequencer.linked -= 1
        sequencer.draining -= worker.drains
        worker.drains = False
        worker.told = False
        worker.taken = 0
        ledger_gauge(sequencer.ledger, GAUGE_LINKED, sequencer.linked)
    batch_clear(&worker.out)
    worker.overfull = False


cdef void worker_give_up(Sequencer *sequencer, Worker *worker) noexcept nogil:
    """A worker that is gone, or took too little: forget it. It is asked for everything if it is heard again."""
    cdef bint known = worker.state >= WORKER_LINKING
    if worker.state == WORKER_LINKED:
        ledger_count(sequencer.ledger, COUNT_WORKERS_LOST, 1)
    _worker_unlink(sequencer, worker)
    batch_free(&worker.out)
    worker.state = WORKER_FREE
    if known:
        worker_end(sequencer, worker)


cdef void _mark(Sequencer *sequencer, Worker *worker, uint64_t its_ms) noexcept nogil:
    """A worker says its time: what it said before then is stored once all is that was heard up to now.

    Its clock is compared with none of ours: another machine's began at another time.
    """
    if not sequencer.sessions_kept:
        worker.stored_ms = its_ms       # there is nothing to wait for
    elif worker.marked_ms == 0 or sequencer.stored_ms > worker.marked_ms:
        if worker.marked_ms:
            worker.stored_ms = worker.mark_ms
        worker.marked_ms = sequencer.now_ms
        worker.mark_ms = its_ms


cdef bint _is_ours(Sequencer *sequencer, Worker *worker, RecLink *record) noexcept nogil:
    """Whether it speaks this version of the link. Who does not is passed over, which is said once."""
    cdef Note note
    if record.version == RECORDS_VERSION:
        worker.foreign = 0
        return True
    if worker.foreign != record.version:
        worker.foreign = record.version
        note_init(&note, NOTE_FOREIGN)
        note.first = record.version
        note.text_size = worker.identity_size
        mailbox_put(&sequencer.to_control, &note, worker.identity, NULL)
    return False


cdef void _on_link(Sequencer *sequencer, Worker *worker, RecLink *record) noexcept nogil:
    cdef uint8_t identity[IDENTITY_BYTES_MAX]
    cdef Worker *again
    if not _is_ours(sequencer, worker, record):
        return
    if record.head.aux & LINK_FRESH and worker.state >= WORKER_LINKING:
        # Its last stream ended, which nobody else told: what was said by it, either way, may not have come.
        memcpy(identity, worker.identity, worker.identity_size)
        worker_give_up(sequencer, worker)
        again = worker_of(sequencer, identity, worker.identity_size)
        if again != NULL:
            again.slot = worker.slot
    else:
        _mark(sequencer, worker, record.stored_ms)
        _linked(sequencer, worker, worker.state == WORKER_ASKED
                and sequencer.now_ms - worker.asked_ms > WORKER_ASK_AGAIN_MS)


cdef void _on_begin(Sequencer *sequencer, Worker *worker, RecLink *record) noexcept nogil:
    """A worker says everything: forget what was known of it, and of an earlier start of the same worker, unless that
    runs on beside it."""
    cdef uint32_t index
    cdef Worker *other
    if not _is_ours(sequencer, worker, record):
        return
    for index in range(sequencer.worker_count):
        other = worker_at(sequencer, index)
        if not record.head.aux & BEGIN_BESIDE and other != worker and other.state >= WORKER_LINKING \
                and other.number == record.worker and other.epoch < record.epoch and _same_node(other, worker):
            worker_give_up(sequencer, other)
    if worker.state >= WORKER_LINKING:
        worker_empty(sequencer, worker)
    _worker_unlink(sequencer, worker)
    worker.state = WORKER_LINKING
    worker.number = record.worker
    worker.epoch = record.epoch
    worker.marked_ms = worker.stored_ms = 0
    worker.everybody = record.head.aux & BEGIN_EVERYBODY != 0
    worker.before = record.head.aux & BEGIN_BEFORE != 0
    shards_begin(worker)
    if not record.head.aux & BEGIN_BESIDE:
        admission_began(sequencer, worker)


cdef void _on_shards(Sequencer *sequencer, Worker *worker, RecShards *record) noexcept nogil:
    """What a worker holds of some shards follows, or that was all; then it is told of the global channels that it did
    not name, from where it stands if it was told of some before."""
    if shards_said(sequencer, worker, record):
        worker.before = record.head.aux & SHARDS_BEFORE != 0
        worker.knows_globals = True
        everybody_link(sequencer, worker)


cdef bint _same_node(Worker *one, Worker *other) noexcept nogil:
    """Identities are node/number/epoch: the same up to the first slash."""
    cdef uint32_t place = 0
    while place < one.identity_size and place < other.identity_size and one.identity[place] == other.identity[place]:
        if one.identity[place] == c'/':
            return True
        place += 1
    return False


cdef void _said_since(Sequencer *sequencer, Worker *worker, Stream *stream, RecChannel *record) noexcept nogil:
    """Send a worker that had members before its link was lost what was said meanwhile, as far as it is kept.

    A position of an older epoch beyond the offset that this one began with has no history in common with ours: the log
    lost what others had been told, and positions were given before this worker came. It gets all that is of this epoch,
    whose first message tells its members that the channel was recreated. Whatever is missing, the jump in the offsets
    tells the worker.
    """
    cdef uint64_t after = record.offset
    cdef bint everybody = stream.domain == DOMAIN_GLOBAL
    cdef uint32_t place
    cdef Stored *stored
    cdef RecMessage *say
    if record.epoch == 0:
        return
    if record.epoch < stream.epoch and record.offset > stream_base(stream):
        after = stream_base(stream)
    if stream.history == NULL or worker.out.size + stream.history.bytes > worker.out.bytes_max // 2:
        return
    for place in range(stream.history.count):
        stored = stream_stored(stream, place)
        if stored.offset <= after:
            continue
        say = <RecMessage *> worker_say(worker, REC_MESSAGE, MESSAGE_GLOBAL if everybody else 0, sizeof(RecMessage),
                                        stored.size)
        if say == NULL:
            return
        say.channel = 0 if everybody else record.channel
        say.epoch = stored.epoch
        say.offset = stored.offset
        say.body_size = stored.size
        memcpy(<uint8_t *> say + sizeof(RecMessage), stored.body, stored.size)
        ledger_count(sequencer.ledger, COUNT_MESSAGES_ROUTED, 1)


cdef void _on_subscribe(Sequencer *sequencer, Worker *worker, RecChannel *record) noexcept nogil:
    """A worker has members; a position of an older epoch that it saw is not given again.

    It names the epoch in which it was told its position, which may be above that of the message there: where the log
    has the position too, the log's epoch counts, or who holds that message would have no history in common with it.
    """
    cdef const char *name = <const char *> record + sizeof(RecChannel)
    cdef Stream *stream = stream_wanted(&sequencer.streams, name, record.head.aux, sequencer.wall_ms)
    cdef bint everybody = stream != NULL and stream.domain == DOMAIN_GLOBAL
    cdef uint64_t since[2]
    if everybody and record.channel == 0:
        if stream_routes_to(stream, worker_index(sequencer, worker)) or not stream_listed(stream):
            return                      # it named the channel itself, or it is over
        stream_since(&sequencer.streams, stream, since)
        record.epoch = since[0]
        record.offset = since[1]
        everybody_say(sequencer, worker, stream, record.offset)
    if stream == NULL or route_set(&sequencer.streams, stream, worker_index(sequencer, worker),
                                   0 if everybody else record.channel) < 0:
        worker_subscribed(worker, record.channel, _why_none(sequencer, name, record.head.aux), 0, 0)
        return
    stream_use(stream, sequencer.wall_ms)
    if sequencer.shards[record.head.shard].state == SHARD_FEEDING and following_lacks(stream, record.epoch,
                                                                                      record.offset):
        # What it heard of the leader, or of another who follows it, is still on its way here.
        worker_subscribed(worker, record.channel, 0, record.epoch, record.offset)
        return
    if record.offset and record.epoch < stream.epoch and record.offset >= stream.offset \
            and (stream.history == NULL or stream.history.given == stream.history.base):
        if record.offset > stream.offset:
            stream_adopt(stream, record.epoch, record.offset)
    else:
        _said_since(sequencer, worker, stream, record)
    if everybody and stream.offset \
            and (record.offset or stream_is_kept(&sequencer.streams, stream, sequencer.wall_ms)):
        everybody_add(sequencer, stream, True)
    if everybody and (record.channel == 0 or worker.everybody and stream_listed(stream)):
        everybody_say(sequencer, worker, stream, stream.offset)
    if record.channel or not everybody:
        worker_subscribed(worker, record.channel, 0, stream.epoch, stream.offset)


cdef int _why_none(Sequencer *sequencer, const char *name, uint32_t size) noexcept nogil:
    """Why a channel has no stream, or no route, here."""
    return OVERLOADED if namespace_of(&sequencer.namespaces, name, size) != NULL else NO_SUCH_CHANNEL


cdef void _on_unsubscribe(Sequencer *sequencer, Worker *worker, RecChannel *record) noexcept nogil:
    cdef Stream *stream = stream_find(&sequencer.streams, <const char *> record + sizeof(RecChannel), record.head.aux)
    if stream == NULL:
        return
    stream_use(stream, sequencer.wall_ms)
    if stream.domain != DOMAIN_GLOBAL:
        route_remove(&sequencer.streams, stream, worker_index(sequencer, worker), record.channel)
    elif not stream_listed(stream):     # else its worker hears it for all its sessions
        route_remove(&sequencer.streams, stream, worker_index(sequencer, worker), 0)


cdef void _evict(Worker *worker, uint64_t conn, const uint8_t *session, uint64_t fence) noexcept nogil:
    """Tell a worker that its connection does not have the session any more; of half a handle, with the later claim."""
    cdef RecSession *say = <RecSession *> worker_say(worker, REC_EVICT, 0, sizeof(RecSession), 0)
    if say != NULL:
        say.conn = conn
        say.fence = fence
        memcpy(say.session, session, 16)


cdef bint bulk_fits(Worker *worker, uint32_t seq, uint32_t size) noexcept nogil:
    """Whether a large answer may be added to a worker's batch: beyond half of its bound it is refused, so that answers
    never make the router give a worker up."""
    cdef RecBody *refusal
    if worker.out.size + size <= worker.out.bytes_max // 2:
        return True
    refusal = <RecBody *> worker_say(worker, REC_REPLY, OVERLOADED, sizeof(RecBody), 0)
    if refusal != NULL:
        refusal.seq = seq
    return False


cdef void _drained_claimed(Sequencer *sequencer, uint64_t hash, const uint8_t *session) noexcept nogil:
    """A session is claimed: if a draining worker gave it up, that worker is told at the end of the turn."""
    cdef DrainedSession *entry = drained_take(&sequencer.drained, hash, session, sequencer.now_ms)
    cdef Worker *worker
    if entry == NULL:
        return
    worker = worker_at(sequencer, entry.worker)
    if worker.drains and <uint32_t> worker.epoch == entry.start:
        worker.taken += 1
        worker.told = True


cdef void _drained_given_up(Sequencer *sequencer, Worker *worker, uint64_t hash, const uint8_t *session) noexcept nogil:
    """A draining worker told a client to come back."""
    if worker.state != WORKER_LINKED:
        return
    if not worker.drains:
        worker.drains = True
        sequencer.draining += 1
    worker.told = True
    drained_keep(&sequencer.drained, hash, session, worker_index(sequencer, worker), worker.epoch, sequencer.now_ms)


cdef void sequencer_tell_taken(Sequencer *sequencer) noexcept nogil:
    """Tell the draining workers, once a turn, how many of their sessions were claimed."""
    cdef uint32_t index
    cdef Worker *worker
    cdef RecTaken *say
    if sequencer.draining == 0:
        return
    for index in range(sequencer.worker_count):
        worker = worker_at(sequencer, index)
        if worker.state != WORKER_LINKED or not worker.told:
            continue
        say = <RecTaken *> worker_say(worker, REC_TAKEN, 0, sizeof(RecTaken), 0)
        if say != NULL:
            say.count = worker.taken
            say.others = sequencer.linked - sequencer.draining
        worker.taken = 0
        worker.told = False


cdef void _on_open(Sequencer *sequencer, Worker *worker, RecSession *record) noexcept nogil:
    """A connection claims a session, or claimed it of an earlier router."""
    cdef uint32_t index = owner_find(sequencer, record.session, hash_bytes(&sequencer.hash_key, record.session, 16))
    cdef bint elsewhere = index != SLAB_NONE and owner_at(sequencer, index).worker != worker_index(sequencer, worker)
    if record.head.aux & OPEN_TOLD:
        session_told(sequencer, worker, &record.head)
    elif not claim_waits(sequencer, worker, record, elsewhere):
        session_admit(sequencer, worker, &record.head)


cdef void _fence_give(Sequencer *sequencer, RecSession *record) noexcept nogil:
    """A claim gets its number; what was claimed of an earlier router has one."""
    cdef uint64_t *fence = &sequencer.shards[record.head.shard].fence
    if record.seq == 0 or record.head.aux & OPEN_AGAIN or sequencer.admissions.on:
        fence[0] = max(fence[0], record.fence)
    else:
        fence[0] += 1
        record.fence = fence[0]


cdef Owner *_owner_start(Sequencer *sequencer, Worker *worker, const uint8_t *session, uint64_t hash) noexcept nogil:
    """An owner at this worker that is in no room yet; NULL: out of memory."""
    cdef uint32_t index = slab_acquire(&sequencer.owners)
    cdef Owner *owner
    if index == SLAB_NONE or index_put(&sequencer.owner_index, hash, index) < 0:
        return NULL
    owner = owner_at(sequencer, index)
    memcpy(owner.session, session, 16)
    owner.worker = <uint8_t> worker_index(sequencer, worker)
    owner.live = 1
    attender_start(&sequencer.rooms, index)
    worker.sessions += 1
    ledger_acquire(sequencer.ledger, KIND_SESSION, index, HERE)
    return owner


cdef void _own(Worker *worker, Owner *owner, const RecSession *record) noexcept nogil:
    """The session is this connection's, by this claim."""
    owner.conn[0] = <uint32_t> record.conn
    owner.conn[1] = <uint32_t> (record.conn >> 32)
    owner.fence[0] = <uint32_t> record.fence
    owner.fence[1] = <uint32_t> (record.fence >> 32)
    owner.again = 1 if record.head.aux & OPEN_AGAIN else 0
    owner.guest = 0


cdef bint _owns(Sequencer *sequencer, uint32_t index, const Worker *worker, uint64_t conn) noexcept nogil:
    """Whether the owner at `index`, if any, is this connection of this worker."""
    return index != SLAB_NONE and owner_at(sequencer, index).conn[0] == <uint32_t> conn \
        and (owner_at(sequencer, index).guest or owner_conn(owner_at(sequencer, index)) == conn) \
        and worker_at(sequencer, owner_at(sequencer, index).worker) == worker


cdef void session_claim(Sequencer *sequencer, Worker *worker, Record *said) noexcept nogil:
    """A connection gets a session: whoever had it hears of it before the claim (OPEN) is answered."""
    cdef RecSession *record = <RecSession *> said
    cdef uint64_t hash = hash_bytes(&sequencer.hash_key, record.session, 16)
    cdef uint32_t index = owner_find(sequencer, record.session, hash)
    cdef uint32_t claimant = worker_index(sequencer, worker)
    cdef bint evicted = sequencer.admissions.taken
    cdef Owner *owner
    _fence_give(sequencer, record)
    _drained_claimed(sequencer, hash, record.session)
    if index != SLAB_NONE:
        owner = owner_at(sequencer, index)
        if _owns(sequencer, index, worker, record.conn) and owner.guest:
            _own(worker, owner, record)             # it stays in its rooms
            session_open(sequencer, worker, record, False)
            return
        evicted = not owner.guest and (owner.worker != claimant or owner_conn(owner) != record.conn)
        if evicted and record.fence < owner_fence(owner):   # said again after a lost link, and of before the other's
            _evict(worker, record.conn, record.session, 0)
            return
        if evicted:
            _evict(worker_at(sequencer, owner.worker), owner_conn(owner), record.session, 0)
        owner_end(sequencer, index)
    owner = _owner_start(sequencer, worker, record.session, hash)
    if owner != NULL:
        _own(worker, owner, record)
        session_open(sequencer, worker, record, evicted)


cdef void _on_close(Sequencer *sequencer, Worker *worker, RecSession *record) noexcept nogil:
    """A connection ended; its session may be another's by now."""
    cdef uint64_t hash = hash_bytes(&sequencer.hash_key, record.session, 16)
    cdef uint32_t index = owner_find(sequencer, record.session, hash)
    if record.head.aux & CLOSE_TOLD:
        session_told(sequencer, worker, &record.head)
        return
    if record.head.aux & CLOSE_COMES_BACK:
        _drained_given_up(sequencer, worker, hash, record.session)
    if sequencer.claims.size and shard_is_said(worker, record.head.shard) \
            and not (_owns(sequencer, index, worker, record.conn) and not owner_at(sequencer, index).guest):
        claims_settle(sequencer, worker, record.conn, session_admit)
        index = owner_find(sequencer, record.session, hash)
    if shard_is_said(worker, record.head.shard):
        admission_close(sequencer, worker, record)
    if not _owns(sequencer, index, worker, record.conn) or ledger_leaks(sequencer.ledger, KIND_SESSION):
        return
    if not owner_at(sequencer, index).guest:
        if not shard_is_said(worker, record.head.shard):
            return                      # it is ended when the worker has said what it holds
        session_close(sequencer, record)
    owner_end(sequencer, index)


cdef void _on_state(Sequencer *sequencer, Worker *worker, RecState *record) noexcept nogil:
    """What a session did counts as long as this connection has it: one of the same worker may have claimed it since,
    and been told what was stored then."""
    cdef uint32_t index = owner_find(sequencer, record.session,
                                     hash_bytes(&sequencer.hash_key, record.session, 16))
    cdef uint32_t shard
    cdef Owner *owner
    if record.what & STATE_TOLD:
        session_told(sequencer, worker, &record.head)
        return
    if index == SLAB_NONE:
        return
    owner = owner_at(sequencer, index)
    if owner.guest or owner.worker != worker_index(sequencer, worker) or owner.conn[0] != record.conn:
        return
    session_state(sequencer, record)
    if record.what == STATE_ACKED or record.what == STATE_HEARS or record.what == STATE_LISTS:
        return
    shard = shard_of_channel(&sequencer.namespaces, <const char *> record + sizeof(RecState), record.head.aux,
                             sequencer.shard_count)
    if shard_is_said(worker, shard) and sequencer.shards[shard].state != SHARD_FEEDING:
        presence_state(sequencer, index, record)


cdef void _on_attend(Sequencer *sequencer, Worker *worker, RecState *record) noexcept nogil:
    """What a session did in a channel that is led here: whoever has it at another router is a guest in its rooms."""
    cdef uint64_t hash = hash_bytes(&sequencer.hash_key, record.session, 16)
    cdef uint32_t index = owner_find(sequencer, record.session, hash)
    cdef Owner *owner = NULL if index == SLAB_NONE else owner_at(sequencer, index)
    if owner != NULL and (owner.worker != worker_index(sequencer, worker) or owner.conn[0] != record.conn):
        if not owner.guest or record.fence and record.fence < owner_fence(owner):
            return                      # the claim decides, or has decided
        if record.fence > owner_fence(owner):   # the session's leader says so as well, if it reaches that worker
            _evict(worker_at(sequencer, owner.worker), owner.conn[0], record.session, record.fence)
        owner_end(sequencer, index)
        owner = NULL
    if owner == NULL:
        if record.what == STATE_LEFT:
            return
        owner = _owner_start(sequencer, worker, record.session, hash)
        if owner == NULL:
            return
        owner.conn[0] = record.conn
        owner.conn[1] = 0
        owner.fence[0] = <uint32_t> record.fence
        owner.fence[1] = <uint32_t> (record.fence >> 32)
        owner.again = 0
        owner.guest = 1
        index = owner_find(sequencer, record.session, hash)
    presence_state(sequencer, index, record)
    if owner.guest and attender_at(&sequencer.rooms, index).first == NOBODY:
        owner_end(sequencer, index)


cdef void sequencer_record(Sequencer *sequencer, Worker *worker, Record *record) noexcept nogil:
    """One record of a worker, the hot one first."""
    if not shard_takes(sequencer, worker, record) and record.kind != REC_CLOSE:
        return                          # it says it again to whoever leads the shard
    if sequencer.streams.cold and worker.state >= WORKER_LINKING \
            and (record.kind != REC_PUBLISH or worker.state == WORKER_LINKED) \
            and loading_takes(sequencer, worker, record):
        return
    if record.kind == REC_PUBLISH and worker.state == WORKER_LINKED:
        publish_order(sequencer, worker, <RecPublish *> record)
    elif record.kind == REC_LINK:
        _on_link(sequencer, worker, <RecLink *> record)
    elif record.kind == REC_BYE:
        worker_give_up(sequencer, worker)
    elif record.kind == REC_BEGIN and worker.state >= WORKER_ASKED:
        _on_begin(sequencer, worker, <RecLink *> record)
    elif record.kind == REC_END and worker.state == WORKER_LINKING:
        worker.state = WORKER_LINKED
        bans_say_all(sequencer, worker)
        sequencer.linked += 1
        ledger_gauge(sequencer.ledger, GAUGE_LINKED, sequencer.linked)
        told_linked(sequencer)
    elif worker.state < WORKER_LINKING or record.kind == REC_PUBLISH:
        return                          # it was asked for everything, and asks for all this again behind its END
    elif record.kind == REC_SUBSCRIBE:
        _on_subscribe(sequencer, worker, <RecChannel *> record)
    elif record.kind == REC_UNSUBSCRIBE:
        _on_unsubscribe(sequencer, worker, <RecChannel *> record)
    elif record.kind == REC_OPEN:
        _on_open(sequencer, worker, <RecSession *> record)
    elif record.kind == REC_CLOSE:
        _on_close(sequencer, worker, <RecSession *> record)
    elif record.kind == REC_STATE:
        _on_state(sequencer, worker, <RecState *> record)
    elif record.kind == REC_CATCHUP:
        catchup_take(sequencer, worker, <RecCatchup *> record)
    elif record.kind == REC_HISTORY:
        history_answer(sequencer, worker, <RecHistory *> record)
    elif record.kind == REC_PRESENCE:
        presence_answer(sequencer, worker, <RecHistory *> record)
    elif record.kind == REC_SHARDS:
        _on_shards(sequencer, worker, <RecShards *> record)
    elif record.kind == REC_ATTEND:
        _on_attend(sequencer, worker, <RecState *> record)
    elif record.kind == REC_BAN:
        bans_asked(sequencer, <RecBody *> record)
    elif record.kind == REC_SURVEY:
        survey_answer(sequencer, worker, <RecHistory *> record)
    elif record.kind == REC_SESSIONS:
        sessions_ask(sequencer, worker, <RecBody *> record)
