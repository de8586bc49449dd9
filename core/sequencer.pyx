"""Sequencer: what the router does with each record of a worker."""

from libc.string cimport memcmp, memcpy

from core.bans cimport bans_asked, bans_say_all
from core.batch cimport batch_clear, batch_free
from core.catchup cimport catchup_take
from core.codes cimport NO_SUCH_CHANNEL, OVERLOADED
from core.drained cimport DrainedSession, drained_keep, drained_take
from core.hash cimport hash_bytes, index_find, index_put, index_remove
from core.leading cimport leading_forget, leads, leads_looked_at, led_elsewhere, shard_said
from core.loading cimport loading_takes
from core.ledger cimport (COUNT_MESSAGES_ROUTED, COUNT_WORKERS_LOST, GAUGE_LINKED, KIND_SESSION, ledger_acquire,
                          ledger_count, ledger_gauge, ledger_leaks, ledger_release)
from core.mpack cimport MpWriter, mp_write_array, mp_write_map, mp_write_raw, mp_write_str, mp_write_uint
from core.namespaces cimport DOMAIN_GLOBAL, namespace_of
from core.ordering cimport publish_order
from core.presence cimport presence_answer, presence_end_worker, presence_gone, presence_state
from core.records cimport (CLOSE_COMES_BACK, CLOSE_TOLD, OPEN_AGAIN, OPEN_TOLD, REC_BAN, REC_BEGIN, REC_BYE,
                           REC_CATCHUP, REC_CLOSE, REC_END, REC_EVICT, REC_GONE, REC_HISTORY, REC_LINK, REC_LINKED,
                           REC_MESSAGE, REC_OPEN, REC_PRESENCE, REC_PUBLISH, REC_REPLY, REC_SESSIONS, REC_SHARD,
                           REC_STATE, REC_SUBSCRIBE, REC_SURVEY, REC_TAKEN, REC_UNSUBSCRIBE,
                           RECORDS_VERSION, STATE_LEFT, STATE_TOLD, RecBody, RecCatchup, RecChannel,
                           RecHistory, RecLink, RecMessage, RecPublish, RecSession, RecShard, RecState, RecTaken)
from core.sessions cimport (session_close, session_elsewhere, session_open, session_state, session_told,
                            sessions_ask)
from core.sites cimport HERE
from core.slab cimport SLAB_NONE, invariant, slab_acquire, slab_at, slab_release
from core.stream cimport (Stored, Stream, route_remove, route_set, routes_remove_worker, stream_adopt, stream_base,
                          stream_find, stream_kept, stream_namespace, stream_stored, stream_use, stream_wanted)
from core.survey cimport survey_answer

assert sizeof(Owner) == 28 and WORKERS_MAX <= 256


cdef void _linked(Sequencer *sequencer, Worker *worker, bint ask) noexcept nogil:
    """LINKED; with `ask` the worker is to say everything that it holds."""
    cdef RecLink *answer = <RecLink *> worker_say(worker, REC_LINKED, 1 if ask else 0, sizeof(RecLink), 0)
    if ask:
        worker.asked_ms = sequencer.now_ms
    if answer != NULL:
        answer.epoch = sequencer.epoch
        answer.version = RECORDS_VERSION


cdef Worker *worker_known(Sequencer *sequencer, const uint8_t *identity, uint32_t size) noexcept nogil:
    """The worker of a bus identity, or NULL."""
    cdef uint32_t index
    cdef Worker *worker
    for index in range(sequencer.worker_count):
        worker = worker_at(sequencer, index)
        if worker.state != WORKER_FREE and worker.identity_size == size \
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
    if index == WORKERS_MAX:
        return NULL
    if index == sequencer.worker_count:
        sequencer.worker_count += 1
    unused = worker_at(sequencer, index)
    memcpy(unused.identity, identity, size)
    unused.identity_size = size
    unused.heard_ms = sequencer.now_ms
    unused.state = WORKER_ASKED
    _linked(sequencer, unused, True)
    return unused


cdef inline Owner *_owner_at(Sequencer *sequencer, uint32_t index) noexcept nogil:
    return <Owner *> slab_at(&sequencer.owners, index)


cdef inline uint64_t _owner_conn(Owner *owner) noexcept nogil:
    return <uint64_t> owner.conn[1] << 32 | owner.conn[0]


cdef uint32_t _owner_find(Sequencer *sequencer, const uint8_t *session, uint64_t hash) noexcept nogil:
    """Index of a session's owner, SLAB_NONE when nobody has it."""
    cdef uint32_t probe = 0
    cdef uint32_t found = index_find(&sequencer.owner_index, hash, &probe)
    while found:
        if memcmp(_owner_at(sequencer, found - 1).session, session, 16) == 0:
            return found - 1
        found = index_find(&sequencer.owner_index, hash, &probe)
    return SLAB_NONE


cdef void _owner_end(Sequencer *sequencer, uint32_t index) noexcept nogil:
    cdef Owner *owner = _owner_at(sequencer, index)
    presence_gone(sequencer, owner.session, owner.worker, owner.conn[0])
    worker_at(sequencer, owner.worker).sessions -= 1
    index_remove(&sequencer.owner_index, hash_bytes(&sequencer.hash_key, owner.session, 16), index)
    owner.live = 0
    ledger_release(sequencer.ledger, KIND_SESSION, index)
    slab_release(&sequencer.owners, index)


cdef void _owners_end_worker(Sequencer *sequencer, uint32_t worker) noexcept nogil:
    """Forget the sessions of a worker: O(sessions), once a worker's end."""
    cdef uint32_t chunk, number
    cdef Owner *owner
    for chunk in range(sequencer.owners.chunk_count):
        number = 0
        while number < (1u << sequencer.owners.chunk_shift) and sequencer.owners.chunks[chunk].memory != NULL:
            owner = _owner_at(sequencer, (chunk << sequencer.owners.chunk_shift) | number)
            if owner.live == 1 and owner.worker == worker:
                _owner_end(sequencer, (chunk << sequencer.owners.chunk_shift) | number)
            number += 1


cdef void _worker_forget(Sequencer *sequencer, Worker *worker) noexcept nogil:
    """Its members, sessions and what waits for it."""
    if worker.state == WORKER_LINKED:
        sequencer.linked -= 1
        sequencer.draining -= worker.drains
        worker.drains = False
        worker.told = False
        worker.taken = 0
        ledger_gauge(sequencer.ledger, GAUGE_LINKED, sequencer.linked)
    if worker.state >= WORKER_LINKING:
        _owners_end_worker(sequencer, worker_index(sequencer, worker))
        presence_end_worker(sequencer, worker_index(sequencer, worker))
        routes_remove_worker(&sequencer.streams, worker_index(sequencer, worker))
    leading_forget(sequencer, worker)
    batch_clear(&worker.out)
    worker.overfull = False


cdef void worker_give_up(Sequencer *sequencer, Worker *worker) noexcept nogil:
    """A worker that is gone, or took too little: forget it. It is asked for everything if it is heard again."""
    if worker.state == WORKER_LINKED:
        ledger_count(sequencer.ledger, COUNT_WORKERS_LOST, 1)
    _worker_forget(sequencer, worker)
    batch_free(&worker.out)
    worker.state = WORKER_FREE


cdef void _on_link(Sequencer *sequencer, Worker *worker, RecLink *record) noexcept nogil:
    if record.version == RECORDS_VERSION:
        _linked(sequencer, worker, worker.state == WORKER_ASKED
                and sequencer.now_ms - worker.asked_ms > WORKER_ASK_AGAIN_MS)


cdef void _on_begin(Sequencer *sequencer, Worker *worker, RecLink *record) noexcept nogil:
    """A worker says everything: forget what was known of it, and of an earlier start of the same worker, unless that
    runs on beside it."""
    cdef uint32_t index
    cdef Worker *other
    for index in range(sequencer.worker_count):
        other = worker_at(sequencer, index)
        if not record.head.aux and other != worker and other.state >= WORKER_LINKING and other.number == record.worker \
                and other.epoch < record.epoch and _same_node(other, worker):
            worker_give_up(sequencer, other)
    _worker_forget(sequencer, worker)
    worker.state = WORKER_LINKING
    worker.number = record.worker
    worker.epoch = record.epoch


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
        say = <RecMessage *> worker_say(worker, REC_MESSAGE, 0, sizeof(RecMessage), stored.size)
        if say == NULL:
            return
        say.channel = record.channel
        say.epoch = stored.epoch
        say.offset = stored.offset
        say.body_size = stored.size
        memcpy(<uint8_t *> say + sizeof(RecMessage), stored.body, stored.size)
        ledger_count(sequencer.ledger, COUNT_MESSAGES_ROUTED, 1)


cdef void _on_subscribe(Sequencer *sequencer, Worker *worker, RecChannel *record) noexcept nogil:
    """A worker has members; a position of an older epoch that it saw is not given again."""
    cdef const char *name = <const char *> record + sizeof(RecChannel)
    cdef Stream *stream = stream_wanted(&sequencer.streams, name, record.head.aux, sequencer.wall_ms)
    if stream == NULL or route_set(&sequencer.streams, stream, worker_index(sequencer, worker), record.channel) < 0:
        worker_subscribed(worker, record.channel, _why_none(sequencer, name, record.head.aux), 0, 0)
        return
    stream_use(stream, sequencer.wall_ms)
    if record.offset and record.epoch < stream.epoch and record.offset >= stream.offset \
            and (stream.history == NULL or stream.history.given == stream.history.base):
        stream_adopt(stream, record.epoch, record.offset)
    elif stream.domain != DOMAIN_GLOBAL:
        _said_since(sequencer, worker, stream, record)
    worker_subscribed(worker, record.channel, 0, stream.epoch, stream.offset)


cdef int _why_none(Sequencer *sequencer, const char *name, uint32_t size) noexcept nogil:
    """Why a channel has no stream, or no route, here."""
    return OVERLOADED if namespace_of(&sequencer.namespaces, name, size) != NULL else NO_SUCH_CHANNEL


cdef void _on_unsubscribe(Sequencer *sequencer, Worker *worker, RecChannel *record) noexcept nogil:
    cdef Stream *stream = stream_find(&sequencer.streams, <const char *> record + sizeof(RecChannel), record.head.aux)
    if stream != NULL:
        stream_use(stream, sequencer.wall_ms)
        route_remove(&sequencer.streams, stream, worker_index(sequencer, worker), record.channel)


cdef void _evict(Worker *worker, uint64_t conn, const uint8_t *session) noexcept nogil:
    """Tell a worker that its connection does not have the session any more."""
    cdef RecSession *say = <RecSession *> worker_say(worker, REC_EVICT, 0, sizeof(RecSession), 0)
    if say != NULL:
        say.conn = conn
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


cdef bint _told_counts(Sequencer *sequencer, Worker *worker, uint32_t index) noexcept nogil:
    """Whether what a worker told an earlier router of a session is the last word on it; `index`: its owner, if any.

    Of one that another worker has it is not, unless that claimed it of this router just now, and waits for this.
    """
    cdef Owner *owner
    if index == SLAB_NONE:
        return True
    owner = _owner_at(sequencer, index)
    return owner.worker == worker_index(sequencer, worker) \
        or (not owner.again and sequencer.now_ms < sequencer.told_until_ms)


cdef void _on_open(Sequencer *sequencer, Worker *worker, RecSession *record) noexcept nogil:
    """A connection claims a session: whoever had it hears of it before the claim is answered."""
    cdef uint64_t hash = hash_bytes(&sequencer.hash_key, record.session, 16)
    cdef uint32_t index = _owner_find(sequencer, record.session, hash)
    cdef uint32_t claimant = worker_index(sequencer, worker)
    cdef bint evicted = False
    cdef Owner *owner
    if record.head.aux & OPEN_TOLD:
        if _told_counts(sequencer, worker, index):
            session_told(sequencer, record)
        return
    _drained_claimed(sequencer, hash, record.session)
    sequencer.fence = max(sequencer.fence, record.fence)
    if index != SLAB_NONE:
        owner = _owner_at(sequencer, index)
        evicted = owner.worker != claimant or _owner_conn(owner) != record.conn
        if evicted and record.seq == 0:     # said again after a lost link: the claim that is known is the newer one
            _evict(worker, record.conn, record.session)
            return
        if evicted:
            _evict(worker_at(sequencer, owner.worker), _owner_conn(owner), record.session)
        _owner_end(sequencer, index)
    index = slab_acquire(&sequencer.owners)
    if index == SLAB_NONE or index_put(&sequencer.owner_index, hash, index) < 0:
        return
    owner = _owner_at(sequencer, index)
    memcpy(owner.session, record.session, 16)
    owner.conn[0] = <uint32_t> record.conn
    owner.conn[1] = <uint32_t> (record.conn >> 32)
    owner.worker = <uint8_t> claimant
    owner.live = 1
    owner.again = 1 if record.head.aux & OPEN_AGAIN else 0
    worker.sessions += 1
    ledger_acquire(sequencer.ledger, KIND_SESSION, index, HERE)
    session_open(sequencer, worker, record, evicted)


cdef void _on_close(Sequencer *sequencer, Worker *worker, RecSession *record) noexcept nogil:
    """A connection ended; its session may be another's by now."""
    cdef uint64_t hash = hash_bytes(&sequencer.hash_key, record.session, 16)
    cdef uint32_t index = _owner_find(sequencer, record.session, hash)
    cdef Owner *owner
    if record.head.aux & CLOSE_TOLD:
        if _told_counts(sequencer, worker, index):
            session_close(sequencer, record)
        return
    if record.head.aux & CLOSE_COMES_BACK:
        _drained_given_up(sequencer, worker, hash, record.session)
    if index == SLAB_NONE or ledger_leaks(sequencer.ledger, KIND_SESSION):
        return
    owner = _owner_at(sequencer, index)
    if _owner_conn(owner) == record.conn and owner.worker == worker_index(sequencer, worker):
        session_close(sequencer, record)
        _owner_end(sequencer, index)


cdef void _on_state(Sequencer *sequencer, Worker *worker, RecState *record) noexcept nogil:
    """What a session did counts as long as this worker has it: who has a session knows the router of its shard alone.
    The session is stored by that one; who is where, and the user's cursor, is with the channel's."""
    cdef bint own = leads(sequencer, record.session, 16)
    cdef bint here = leads(sequencer, <uint8_t *> record + sizeof(RecState), record.head.aux)
    cdef uint32_t index = SLAB_NONE
    cdef Owner *owner
    cdef bint told = record.what & STATE_TOLD != 0
    if own:
        index = _owner_find(sequencer, record.session, hash_bytes(&sequencer.hash_key, record.session, 16))
    if told:                            # stored, if it is the last word; who is where is said behind it
        record.what &= ~<uint16_t> STATE_TOLD
        if own and _told_counts(sequencer, worker, index):
            session_state(sequencer, record)
        return
    if own:
        if index == SLAB_NONE or _owner_at(sequencer, index).worker != worker_index(sequencer, worker):
            return
        owner = _owner_at(sequencer, index)
        session_state(sequencer, record)
        here = here and owner.conn[0] == record.conn
    elif here:
        session_elsewhere(sequencer, worker, record)
    if here and record.what <= STATE_LEFT:
        presence_state(sequencer, worker_index(sequencer, worker), record)


cdef bint _wanted(Sequencer *sequencer, Stream *stream, Stored *stored, RecHistory *record) noexcept nogil:
    """Whether a kept message belongs into the answer: young enough, and beyond `since` in the direction asked."""
    if stored.time_ms + stream_namespace(&sequencer.streams, stream).history_age_ms < sequencer.wall_ms:
        return False
    if not record.has_since:
        return True
    return stored.offset < record.since_offset if record.reverse else stored.offset > record.since_offset


cdef uint32_t _history_pick(Sequencer *sequencer, Stream *stream, RecHistory *record, uint32_t *picked) noexcept nogil:
    """Places of the messages of the answer, in its order, as many as fit; `picked` has room for `limit`.

    One is given however long it is: without it nobody could page beyond it.
    """
    cdef uint32_t count = 0
    cdef uint32_t bytes_left = record.bytes_max
    cdef uint32_t at = 0
    cdef uint32_t place
    cdef Stored *stored
    while stream != NULL and at < stream_kept(stream) and count < record.limit:
        place = stream_kept(stream) - 1 - at if record.reverse else at
        at += 1
        stored = stream_stored(stream, place)
        if not _wanted(sequencer, stream, stored, record):
            continue
        if stored.size > bytes_left and count:
            break
        bytes_left -= min(bytes_left, stored.size)
        picked[count] = place
        count += 1
    return count


cdef void _on_history(Sequencer *sequencer, Worker *worker, RecHistory *record) noexcept nogil:
    """REPLY body {messages, epoch, offset}: as many whole MESSAGE frames as were asked for and fit."""
    cdef Stream *stream = stream_find(&sequencer.streams, <const char *> record + sizeof(RecHistory), record.head.aux)
    cdef uint32_t picked[1024]
    cdef uint32_t count, place
    cdef MpWriter writer
    cdef RecBody *answer
    if record.limit > 1024:
        record.limit = 1024
    if record.bytes_max > sequencer.scratch_bytes - 256:
        record.bytes_max = sequencer.scratch_bytes - 256
    record.bytes_max = record.bytes_max - 64 if record.bytes_max > 64 else 0    # a peer's number: it must not wrap
    count = _history_pick(sequencer, stream, record, picked)
    writer.p = sequencer.scratch
    writer.end = sequencer.scratch + sequencer.scratch_bytes
    writer.overflow = False
    mp_write_map(&writer, 3)
    mp_write_str(&writer, b"messages", 8)
    mp_write_array(&writer, count)
    for place in range(count):
        mp_write_raw(&writer, stream_stored(stream, picked[place]).body, stream_stored(stream, picked[place]).size)
    mp_write_str(&writer, b"epoch", 5)
    mp_write_uint(&writer, sequencer.streams.epoch if stream == NULL else stream.epoch)
    mp_write_str(&writer, b"offset", 6)
    mp_write_uint(&writer, 0 if stream == NULL else stream.offset)
    invariant(not writer.overflow)
    if not bulk_fits(worker, record.seq, <uint32_t> (writer.p - sequencer.scratch)):
        return
    answer = <RecBody *> worker_say(worker, REC_REPLY, 0, sizeof(RecBody), <uint32_t> (writer.p - sequencer.scratch))
    if answer != NULL:
        answer.seq = record.seq
        answer.body_size = <uint32_t> (writer.p - sequencer.scratch)
        memcpy(<uint8_t *> answer + sizeof(RecBody), sequencer.scratch, answer.body_size)


cdef void sequencer_record(Sequencer *sequencer, Worker *worker, Record *record) noexcept nogil:
    """One record of a worker, the hot one first."""
    if leads_looked_at(sequencer, worker) and worker.state >= WORKER_LINKING \
            and led_elsewhere(sequencer, worker, record):
        return
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
    elif record.kind == REC_BEGIN and worker.state != WORKER_FREE:
        _on_begin(sequencer, worker, <RecLink *> record)
    elif record.kind == REC_END and worker.state == WORKER_LINKING:
        worker.state = WORKER_LINKED
        bans_say_all(sequencer, worker)
        sequencer.linked += 1
        ledger_gauge(sequencer.ledger, GAUGE_LINKED, sequencer.linked)
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
        _on_history(sequencer, worker, <RecHistory *> record)
    elif record.kind == REC_PRESENCE:
        presence_answer(sequencer, worker, <RecHistory *> record)
    elif record.kind == REC_GONE:
        presence_gone(sequencer, (<RecSession *> record).session, worker_index(sequencer, worker),
                      <uint32_t> (<RecSession *> record).conn)
    elif record.kind == REC_SHARD:
        shard_said(sequencer, worker, <RecShard *> record)
    elif record.kind == REC_BAN:
        bans_asked(sequencer, <RecBody *> record)
    elif record.kind == REC_SURVEY:
        survey_answer(sequencer, worker, <RecHistory *> record)
    elif record.kind == REC_SESSIONS:
        sessions_ask(sequencer, worker, <RecBody *> record)
