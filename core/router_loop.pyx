"""Router loop: receive batches, act on each record, send each worker its batch; and the Python face.

The thread that runs it never takes the GIL. A worker whose batch the socket does not take keeps it, and the loop tries
again; past its bound the worker is given up (see sequencer.pxd).
"""

import os

from core.namespace_spec import BUILT_IN as _BUILT_IN
from core.shards import check_count

from libc.errno cimport EAGAIN, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from core.abroad cimport ABROAD_BYTES_MAX, abroad_hand_over
from core.admission cimport (admission_claimed, admission_evict, admissions_free, admissions_init, admissions_serve,
                             session_admit)
from core.audit_router cimport sequencer_audit
from core.bans cimport BANS_BYTES_MAX, bans_take
from core.batch cimport Batch, batch_clear, batch_free
from core.bus cimport (ZMQ_ROUTER, BusBatch, bus_close, bus_done, bus_lost, bus_on_event, bus_open, bus_pending,
                       bus_receive, bus_send, bus_tick)
from core.catchup cimport CATCHUP_TURN_BYTES, CATCHUPS_BYTES_MAX, catchups_serve
from core.claims cimport CLAIMS_BYTES_MAX, claims_serve
from core.clock cimport clock_ms, clock_wall_ms
from core.drained cimport drained_free, drained_tick
from core.hash cimport index_free
from core.keys cimport KEYS_SWEPT, keys_expire, keys_free, keys_ms
from core.forgetting cimport forgetting_turn
from core.leading cimport shard_note, shards_drained, shards_lead_all, shards_turn
from core.ledger cimport (COUNT_BATCHES_IN, COUNT_BATCHES_OUT, COUNT_BUS_FULL, COUNT_WAKEUPS, GAUGE_LOG_AWAY,
                          GAUGE_LOG_BYTES_MAX, GAUGE_ROUTER_EPOCH, Stats, ledger_count, ledger_gauge, ledger_turn)
from core.loading cimport loading_done, loads_ask
from core.log_out cimport LOG_CHUNKS_MAX, log_free, log_init, log_is_there, log_wait_ms
from core.following cimport AHEAD_BYTES_MAX, following_records, following_turn
from core.mailbox cimport (NOTE_AUDIT, NOTE_BANS_SAY, NOTE_CLAIMED, NOTE_CURSOR_READ, NOTE_EVICT, NOTE_FOLLOWED,
                           NOTE_HOLD, NOTE_LEAD, NOTE_LOG_COMMITTED, NOTE_LOG_LOADED, NOTE_LOG_RECOVER, NOTE_LOG_SIFT,
                           NOTE_LOG_STATE, NOTE_REPLICATED, NOTE_SESSION_OPENED, NOTE_SESSIONS_READ,
                           NOTE_SESSIONS_STORED, NOTE_TOLD_END, Note, mailbox_drain, mailbox_free,
                           mailbox_init, mailbox_ring, note_init)
from core.namespaces cimport namespaces_fill
from core.notes cimport notes_put, notes_take
from core.ordering cimport log_committed, log_hand_over
from core.leaving cimport leaving_wait_ms, leavings_free, leavings_init
from core.owners cimport FORGET_NS, workers_forget
from core.pace cimport pace_wait
from core.poller cimport (EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN, POLLER_EVENTS, TAG_BUS, TAG_WAKE, epoll_create1,
                          epoll_event, epoll_wait, poller_watch)
from core.presence cimport presence_due
from core.records cimport Record, record_fits
from core.recovery cimport recover_globals, recover_records, recover_shard, sift_records
from core.rooms cimport rooms_free, rooms_init
from core.replicating cimport REPLICATING_BYTES_MAX, replicating_done
from core.sequencer cimport (ORIGIN_WINDOW_MS, ORIGINS_MAX, SEQUENCER_BATCHES_TURN, SWEEP_PERIOD_MS, SWEEP_SLOTS,
                             WORKER_ASKED, WORKER_LINKING, WORKER_SILENT_MS, Owner, Sequencer, Worker,
                             sequencer_record, sequencer_tell_taken, worker_at, worker_give_up, worker_known, worker_of)
from core.sessions cimport (STATES_BYTES_MAX, cursor_read, session_opened, sessions_alive, sessions_flush,
                            sessions_read, told_end)
from core.slab cimport slab_free, slab_init
from core.stream cimport streams_free, streams_init, streams_sweep
from core.zmtp cimport ZMTP_IDENTITY_BYTES_MAX

cdef extern from * nogil:
    """
    #include <sys/eventfd.h>
    #include <unistd.h>
    """
    int eventfd(unsigned int, int)
    int c_close "close"(int)
    ssize_t write(int, const void *, size_t)
    enum:
        EFD_NONBLOCK
        EFD_CLOEXEC


cdef void _records_take(Sequencer *sequencer, Worker *worker, uint8_t *data, size_t size) noexcept nogil:
    cdef size_t place = 0
    while record_fits(<Record *> (data + place), size - place):
        sequencer_record(sequencer, worker, <Record *> (data + place))
        place += (<Record *> (data + place)).size


cdef void _lost_forget(Sequencer *sequencer) noexcept nogil:
    """Give up the workers whose streams ended: one that comes again is asked for everything."""
    cdef uint8_t identity[ZMTP_IDENTITY_BYTES_MAX]
    cdef uint32_t size
    cdef Worker *worker
    while bus_lost(&sequencer.bus, identity, &size):
        worker = worker_known(sequencer, identity, size)
        if worker != NULL:
            worker_give_up(sequencer, worker)


cdef bint _batch_receive(Sequencer *sequencer) noexcept nogil:
    """Take one batch and act on it; False when there is none."""
    cdef BusBatch batch
    cdef Worker *worker
    if not bus_receive(&sequencer.bus, &batch):
        return False
    _lost_forget(sequencer)             # first: this may be a lost worker's new stream
    worker = worker_of(sequencer, batch.identity, batch.identity_size)
    if worker != NULL:
        worker.heard_ms = sequencer.now_ms
        worker.slot = batch.slot
        _records_take(sequencer, worker, batch.data, batch.size)
    bus_done(&sequencer.bus)
    ledger_count(sequencer.ledger, COUNT_BATCHES_IN, 1)
    return True


cdef void _worker_flush(Sequencer *sequencer, Worker *worker) noexcept nogil:
    """Send one worker its batch; what the socket does not take waits, a peer that is gone is given up."""
    cdef int failed
    if worker.overfull:
        worker_give_up(sequencer, worker)
        return
    if worker.out.size == 0:
        return
    failed = bus_send(&sequencer.bus, worker.identity, worker.identity_size, worker.slot, worker.out.data,
                      worker.out.size)
    if failed == 0:
        batch_clear(&worker.out)
        ledger_count(sequencer.ledger, COUNT_BATCHES_OUT, 1)
    elif failed == EAGAIN:
        ledger_count(sequencer.ledger, COUNT_BUS_FULL, 1)
    else:
        worker_give_up(sequencer, worker)


cdef void _flush(Sequencer *sequencer) noexcept nogil:
    cdef uint32_t index
    for index in range(sequencer.worker_count):
        if sequencer.workers[index].state >= WORKER_ASKED or sequencer.workers[index].out.size:
            _worker_flush(sequencer, &sequencer.workers[index])


cdef void _tick(Sequencer *sequencer) noexcept nogil:
    """Once a second: silent workers, aged streams, old keys."""
    cdef uint32_t index
    cdef Worker *worker
    if sequencer.now_ms - sequencer.swept_ms < SWEEP_PERIOD_MS:
        return
    if sequencer.swept_ms:
        sessions_alive(sequencer, <uint32_t> ((sequencer.now_ms - sequencer.swept_ms) // 1000))
    sequencer.swept_ms = sequencer.now_ms
    bus_tick(&sequencer.bus, sequencer.now_ms)
    for index in range(sequencer.worker_count):
        worker = &sequencer.workers[index]
        if worker.state >= WORKER_ASKED and sequencer.now_ms - worker.heard_ms > WORKER_SILENT_MS:
            worker_give_up(sequencer, worker)
    streams_sweep(&sequencer.streams, sequencer.wall_ms, SWEEP_SLOTS + sequencer.streams.slab.live // 16)
    keys_expire(&sequencer.keys, keys_ms(sequencer.now_ms), KEYS_SWEPT)
    keys_expire(&sequencer.origins, keys_ms(sequencer.now_ms), KEYS_SWEPT)
    drained_tick(&sequencer.drained, sequencer.now_ms)


cdef bint _waiting(Sequencer *sequencer) noexcept nogil:
    cdef uint32_t index
    for index in range(sequencer.worker_count):
        if sequencer.workers[index].out.size:
            return True
    return False


cdef void _notes_take(Sequencer *sequencer, uint32_t *budget) noexcept nogil:
    """What the control thread asks for; `budget`: this turn's for catch-ups."""
    cdef Batch *batch = mailbox_drain(&sequencer.from_control)
    cdef uint32_t place = 0
    cdef Note *note
    while place < batch.size:
        note = <Note *> (batch.data + place)
        if note.kind == NOTE_LOG_COMMITTED:
            log_committed(sequencer, note.request)
        elif note.kind == NOTE_LOG_STATE:
            sequencer.log.available = note.first != 0
            ledger_gauge(sequencer.ledger, GAUGE_LOG_AWAY, note.first == 0)
        elif note.kind == NOTE_LOG_LOADED:
            loading_done(sequencer, note, sequencer_record)
            catchups_serve(sequencer, budget)
        elif note.kind == NOTE_LOG_SIFT:
            sift_records(sequencer, note.request, <uint8_t *> note + sizeof(Note), note.text_size)
        elif note.kind == NOTE_SESSION_OPENED:
            session_opened(sequencer, note)
        elif note.kind == NOTE_CLAIMED:
            admission_claimed(sequencer, note)
        elif note.kind == NOTE_EVICT:
            admission_evict(sequencer, note)
        elif note.kind == NOTE_CURSOR_READ:
            cursor_read(sequencer, note)
        elif note.kind == NOTE_SESSIONS_READ:
            sessions_read(sequencer, note)
        elif note.kind == NOTE_SESSIONS_STORED:
            sequencer.stored_ms = note.first
        elif note.kind == NOTE_TOLD_END:
            told_end(sequencer)
        elif NOTE_LEAD <= note.kind <= NOTE_HOLD:
            shard_note(sequencer, note)
        elif note.kind == NOTE_FOLLOWED:
            following_records(sequencer, note)
        elif note.kind == NOTE_REPLICATED:
            replicating_done(sequencer, note)
        elif note.kind == NOTE_LOG_RECOVER:
            recover_shard(sequencer, note)
        elif note.kind == NOTE_AUDIT:
            sequencer.audit = note.request
        elif note.kind == NOTE_BANS_SAY:
            bans_take(sequencer, note, <uint8_t *> note + sizeof(Note),
                      <uint8_t *> note + sizeof(Note) + note.text_size)
        place += note.size
    batch_clear(batch)


cdef int _wait_ms(Sequencer *sequencer) noexcept nogil:
    """How long the next turn may wait for events."""
    if sequencer.again:
        return 0
    cdef int most = 5
    if not _waiting(sequencer) and not sequencer.claims_held:
        most = <int> leaving_wait_ms(&sequencer.leavings, sequencer.now_ms, SWEEP_PERIOD_MS)
    return log_wait_ms(&sequencer.log, sequencer.now_ms, most) if log_is_there(&sequencer.log) else most


cdef void sequencer_run(Sequencer *sequencer) noexcept nogil:
    """Turn after turn until `stopping`."""
    cdef epoll_event events[POLLER_EVENTS]
    cdef int place, taken
    cdef int count = 0
    cdef uint32_t budget
    sequencer.now_ms = clock_ms()
    sequencer.quiet_until_ms += sequencer.now_ms
    while not sequencer.stopping:
        pace_wait(&sequencer.pace, count)
        count = epoll_wait(sequencer.epoll_fd, events, POLLER_EVENTS, _wait_ms(sequencer))
        count = max(count, 0)
        sequencer.now_ms = clock_ms()
        sequencer.wall_ms = clock_wall_ms()
        ledger_count(sequencer.ledger, COUNT_WAKEUPS, 1)
        ledger_turn(sequencer.ledger, sequencer.now_ms)
        shards_turn(sequencer)
        sequencer.forget_left_ns = FORGET_NS
        budget = CATCHUP_TURN_BYTES
        for place in range(count):
            if events[place].data.u64 >= TAG_BUS:
                bus_on_event(&sequencer.bus, events[place].data.u64, events[place].events)
            else:
                _notes_take(sequencer, &budget)
        if sequencer.streams.unasked:
            loads_ask(sequencer)
        taken = 0
        while taken < SEQUENCER_BATCHES_TURN and _batch_receive(sequencer):
            taken += 1
        _lost_forget(sequencer)
        claims_serve(sequencer, taken < SEQUENCER_BATCHES_TURN, session_admit)
        admissions_serve(sequencer)
        following_turn(sequencer)
        _tick(sequencer)
        workers_forget(sequencer, False)
        forgetting_turn(sequencer)
        presence_due(sequencer)
        sequencer_tell_taken(sequencer)
        if sequencer.abroad.size:
            abroad_hand_over(sequencer)
        log_hand_over(sequencer)            # before the sends: the log is at work meanwhile
        catchups_serve(sequencer, &budget)
        sessions_flush(sequencer)
        shards_drained(sequencer)
        mailbox_ring(&sequencer.to_control)
        _flush(sequencer)
        sequencer.again = bus_pending(&sequencer.bus) or sequencer.catchups_due \
            or sequencer.claims.size != 0 and not sequencer.claims_held or sequencer.endings \
            or sequencer.forgets and not sequencer.forget_rests
        if sequencer.audit:
            sequencer_audit(sequencer, sequencer.audit)
            sequencer.audit = 0
        mailbox_ring(&sequencer.to_control)
    told_end(sequencer)
    sequencer.log.under_way_max = sequencer.log.chunks_max  # the control thread appends what is left
    sequencer.log.pace_ms = 0
    sequencer.log.paced_ms = 0
    log_hand_over(sequencer)
    sessions_flush(sequencer)


cdef class RouterLoop:
    """One router's data plane: `run` is the thread's body and takes no GIL; every other method is for the control
    thread, and `stop` may be called from any. `control_fd` becomes readable when `take` has something."""

    cdef Sequencer *sequencer
    cdef Stats stats
    cdef object __weakref__

    def __cinit__(self, Stats stats, **options):
        self.stats = stats
        self.sequencer = <Sequencer *> calloc(1, sizeof(Sequencer))
        if self.sequencer == NULL:
            raise MemoryError
        self.sequencer.ledger = &stats.ledger
        self.sequencer.streams.ledger = &stats.ledger
        self.sequencer.keys.ledger = &stats.ledger
        self.sequencer.origins.ledger = &stats.ledger
        self.sequencer.epoll_fd = -1
        mailbox_init(&self.sequencer.to_control, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC))
        mailbox_init(&self.sequencer.from_control, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC))

    cdef void _presence(self, uint32_t damping_ms, uint32_t members_max, uint64_t quiet_ms, bint admits) noexcept:
        """Who has which session, and who is in which channel: nobody yet."""
        cdef Sequencer *sequencer = self.sequencer
        sequencer.damping_ms = damping_ms
        sequencer.events_members_max = members_max
        sequencer.quiet_until_ms = quiet_ms
        slab_init(&sequencer.owners, sizeof(Owner), 10, 0xFFFFFFFE)
        admissions_init(sequencer, admits)
        rooms_init(&sequencer.rooms, sequencer.ledger, sequencer.hash_key, &sequencer.owners)
        leavings_init(&sequencer.leavings, &sequencer.rooms, sequencer.hash_key, 0)
        leavings_init(&sequencer.gone, &sequencer.rooms, sequencer.hash_key, <uint64_t> 1 << 32)

    def __init__(self, Stats stats, *, epoch, key_window_s, channels_max, spill_bytes_max, endpoint="",
                 namespaces=_BUILT_IN, keys_max=1 << 20, history_total_bytes=1 << 28, message_bytes_max=1 << 25,
                 log_under_way_max=0, log_pace_ms=0, log_bytes_max=1 << 26, seeds=b"", bint log_complete=True,
                 bint sessions_kept=False, uint32_t presence_damping_ms=3000, uint32_t events_members_max=200,
                 presence_quiet_ms=30000, uint32_t log_chunks_max=LOG_CHUNKS_MAX,
                 uint32_t globals_bytes_max=1 << 15, uint32_t workers=0, uint32_t shards=256,
                 bint leads_all=True, bint admits=False, bint bridged=False):
        """Bind to `endpoint`.

        Args:
            stats: this process's counters.
            endpoint: ZeroMQ endpoint to bind; empty: `bind` will be told.
            epoch: of this start; higher than any before.
            key_window_s: how long an idempotency key is remembered.
            channels_max: most channels at once.
            spill_bytes_max: most bytes that wait for one worker before it is given up.
            namespaces: what the namespaces of channels are, as core.namespace_spec.NamespaceSpec values.
            keys_max: most idempotency keys remembered.
            history_total_bytes: most bytes kept of all channels together.
            message_bytes_max: longest MESSAGE frame; untouched memory costs nothing.
            log_under_way_max: batches that are given on before they are told to be in the log; 0: there is no log.
            log_pace_ms: behind a batch of several messages the next one is given so much later at the soonest.
            log_bytes_max: most bytes that wait for the log.
            log_chunks_max: most batches of them, a power of two.
            log_complete: `recover` is given all that the log keeps, and streams are loaded only when that was more than
                memory has room for; else always.
            seeds: 48 bytes, the keys of the hashes that name idempotency keys; empty: drawn now.
            sessions_kept: the control thread stores sessions and cursors.
            presence_damping_ms: how long a session may be away from a channel before its members are told of it.
            events_members_max: in channels with more members nobody is told who joined and who left.
            globals_bytes_max: what all global channels together may take in a WELCOME.
            shards: how many there are, a power of two.
            leads_all: it is the only router, and leads them all under `epoch`; else notes say what it leads, and the
                first HOLD for how long.
            workers: how many tell what an earlier router may not have stored; 0: TOLD_END says when they have.
            bridged: other regions follow what is ordered here; else `replicated` is as `logged`.
            admits: sessions are claimed of the control thread before they are a connection's (CLAIM, CLAIMED).
            presence_quiet_ms: so long from `run` on, sessions that were in a channel before are not told of.

        Raises:
            OSError: the endpoint cannot be bound.
            ValueError: a namespace is not usable.
        """
        cdef Sequencer *sequencer = self.sequencer
        self._seed(seeds, keys_max, <uint64_t> key_window_s * 1000)
        sequencer.epoch = epoch
        namespaces_fill(&sequencer.namespaces, namespaces)
        self._lead(check_count(shards), leads_all)
        sequencer.streams.history_total_max = history_total_bytes
        sequencer.streams.streams_max = channels_max
        sequencer.streams.globals_bytes_max = globals_bytes_max
        sequencer.streams.cold = not log_complete
        sequencer.recovers = log_complete
        if log_under_way_max:
            self._log(log_bytes_max, log_under_way_max, log_chunks_max, log_pace_ms)
        self._bridge(bridged)
        sequencer.claims.bytes_max = CLAIMS_BYTES_MAX
        sequencer.states.bytes_max = sequencer.told.bytes_max = STATES_BYTES_MAX
        sequencer.sessions_kept = sessions_kept
        sequencer.told_gathers = sessions_kept and leads_all
        sequencer.told_workers = workers
        self._presence(presence_damping_ms, events_members_max, presence_quiet_ms, admits)
        self._rooms_for_bytes(message_bytes_max, spill_bytes_max)
        sequencer.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if poller_watch(sequencer.epoll_fd, sequencer.from_control.event_fd, TAG_WAKE, EPOLL_CTL_ADD, EPOLLIN) < 0:
            raise OSError(errno, "epoll_ctl failed")
        ledger_gauge(sequencer.ledger, GAUGE_ROUTER_EPOCH, epoch)
        if endpoint:
            self.bind(endpoint)

    cdef _lead(self, uint32_t shards, bint all_):
        """So many shards, and whether this router leads all of them from now on."""
        cdef Sequencer *sequencer = self.sequencer
        streams_init(&sequencer.streams, sequencer.ledger, &sequencer.namespaces, sequencer.hash_key, shards)
        sequencer.shard_count = shards
        sequencer.hold_over = not all_
        if all_:
            shards_lead_all(sequencer, sequencer.epoch)

    cdef _bridge(self, bint bridged):
        """Whether there are other regions, and room for what waits for them, and for catch-ups."""
        self.sequencer.bridged = bridged
        self.sequencer.abroad.bytes_max = ABROAD_BYTES_MAX
        self.sequencer.ahead.bytes_max = AHEAD_BYTES_MAX
        self.sequencer.replicating.bytes_max = REPLICATING_BYTES_MAX
        self.sequencer.catchups.bytes_max = CATCHUPS_BYTES_MAX

    cdef _rooms_for_bytes(self, uint32_t message_bytes_max, uint32_t spill_bytes_max):
        """Room for one message, and bounds of what waits for workers."""
        cdef Sequencer *sequencer = self.sequencer
        cdef uint32_t index
        sequencer.scratch_bytes = message_bytes_max
        sequencer.bans.bytes_max = BANS_BYTES_MAX
        sequencer.scratch = <uint8_t *> malloc(message_bytes_max)
        if sequencer.scratch == NULL:
            raise MemoryError
        sequencer.spill_bytes_max = spill_bytes_max
        for index in range(sizeof(sequencer.workers) // sizeof(Worker)):
            sequencer.workers[index].out.bytes_max = spill_bytes_max

    cdef _log(self, uint64_t bytes_max, uint32_t under_way_max, uint32_t chunks_max, uint32_t pace_ms):
        """There is a log: room for what is on its way there."""
        self.sequencer.streams.logged = True
        if log_init(&self.sequencer.log, bytes_max, under_way_max, chunks_max, pace_ms) < 0:
            raise MemoryError
        ledger_gauge(self.sequencer.ledger, GAUGE_LOG_BYTES_MAX, bytes_max)

    cdef _seed(self, bytes seeds, uint32_t keys_max, uint64_t window_ms):
        """The keys of the hashes, and the tables that remember what was published."""
        cdef Sequencer *sequencer = self.sequencer
        cdef uint64_t words[6]
        cdef bytes drawn = seeds or os.urandom(sizeof(words))
        if len(drawn) != sizeof(words):
            raise ValueError(f"seeds are {sizeof(words)} bytes, not {len(drawn)}")
        memcpy(words, <const char *> drawn, sizeof(words))
        sequencer.hash_key.k0 = words[0]
        sequencer.hash_key.k1 = words[1]
        sequencer.keys.first.k0 = words[2]
        sequencer.keys.first.k1 = words[3]
        sequencer.keys.second.k0 = words[4]
        sequencer.keys.second.k1 = words[5]
        sequencer.keys.keys_max = keys_max
        sequencer.keys.window_ms = window_ms
        sequencer.origins.keys_max = ORIGINS_MAX
        sequencer.origins.window_ms = ORIGIN_WINDOW_MS
        sequencer.origins.named = <uint64_t> 1 << 32

    def __dealloc__(self):
        cdef Sequencer *sequencer = self.sequencer
        cdef uint32_t index
        if sequencer == NULL:
            return
        bus_close(&sequencer.bus)
        for index in range(sequencer.worker_count):
            if sequencer.workers[index].state >= WORKER_ASKED:
                worker_give_up(sequencer, &sequencer.workers[index])
        workers_forget(sequencer, True)
        streams_free(&sequencer.streams)
        keys_free(&sequencer.keys)
        keys_free(&sequencer.origins)
        log_free(&sequencer.log)
        drained_free(&sequencer.drained)
        batch_free(&sequencer.catchups)
        batch_free(&sequencer.abroad)
        batch_free(&sequencer.ahead)
        batch_free(&sequencer.replicating)
        batch_free(&sequencer.claims)
        batch_free(&sequencer.states)
        batch_free(&sequencer.told)
        if sequencer.rooms.ledger != NULL:
            leavings_free(&sequencer.leavings)
            leavings_free(&sequencer.gone)
            rooms_free(&sequencer.rooms)
        admissions_free(sequencer)
        slab_free(&sequencer.owners)
        index_free(&sequencer.owner_index)
        for fd in (sequencer.epoll_fd, sequencer.to_control.event_fd, sequencer.from_control.event_fd):
            if fd >= 0:
                c_close(fd)
        batch_free(&sequencer.bans)
        mailbox_free(&sequencer.to_control)
        mailbox_free(&sequencer.from_control)
        free(sequencer.scratch)
        free(sequencer)

    def bind(self, endpoint, *, public_key="", secret_key=""):
        """Bind to a ZeroMQ endpoint, once, before `run`.

        Args:
            endpoint: ipc:// or tcp://.
            public_key: of the cluster's CURVE pair, in Z85: only who has it is let in; empty: everybody is.
            secret_key: the other one of the pair.

        Raises:
            OSError: the endpoint cannot be bound.
            ValueError: a key is none.
        """
        bus_open(&self.sequencer.bus, self.sequencer.ledger, ZMQ_ROUTER, endpoint, b"", self.sequencer.epoll_fd,
                 TAG_BUS, b"", public_key.encode(), secret_key.encode())

    def recover(self, const unsigned char[::1] batch):
        """Take a batch that the log gave back, before `run`; gives how many of its records are of a namespace that
        is not known any more.

        Args:
            batch: log records. Where the log is not complete, their keys alone count. What has no place is read when it
                is wanted, as far as its namespace is known.

        Raises:
            ValueError: these are no log records.
        """
        return self._recover(batch, False)

    @property
    def knows_all(self) -> bool:
        """Whether each channel that the log keeps is in memory, as far as `recover` gave them."""
        return not self.sequencer.streams.cold

    def recover_globals(self, const unsigned char[::1] batch):
        """Take where global channels stand, before `run`, unless this `knows_all`; else as `recover`.

        Args:
            batch: a log record for each of them; of more than workers are told of, the first count.

        Raises:
            ValueError: these are no log records.
        """
        return self._recover(batch, True)

    cdef _recover(self, const unsigned char[::1] batch, bint globals):
        cdef int64_t passed = 0
        self.sequencer.now_ms = clock_ms()
        self.sequencer.wall_ms = clock_wall_ms()
        if batch.shape[0]:
            with nogil:
                passed = recover_globals(self.sequencer, &batch[0], batch.shape[0]) if globals \
                    else recover_records(self.sequencer, &batch[0], batch.shape[0], self.sequencer.recovers)
        if passed < 0:
            raise ValueError("a batch of the log holds something else than log records")
        return passed

    def shard_counts(self):
        """How many messages were ordered so far, by shard; from any thread."""
        return [self.sequencer.shards[shard].sequenced for shard in range(self.sequencer.shard_count)]

    def published(self):
        """How many messages of each linked worker were ordered so far, {identity: [by shard]}; from any thread."""
        cdef Worker *worker
        found = {}
        for index in range(self.sequencer.worker_count):
            worker = worker_at(self.sequencer, index)
            if worker.state >= WORKER_LINKING:
                identity = (<const char *> worker.identity)[:worker.identity_size]
                found[identity] = [worker.published[shard] for shard in range(self.sequencer.shard_count)]
        return found

    def run(self):
        """Serve until `stop`; the calling thread gives the GIL up for the whole time."""
        with nogil:
            sequencer_run(self.sequencer)

    def stop(self):
        """Let `run` return at the end of its turn."""
        cdef uint64_t one = 1
        self.sequencer.stopping = True
        write(self.sequencer.from_control.event_fd, &one, sizeof(one))

    @property
    def control_fd(self):
        """Readable when `take` has notes."""
        return self.sequencer.to_control.event_fd

    def take(self):
        """All notes from the data plane, as `core.notes` gives them."""
        return notes_take(&self.sequencer.to_control)

    def put(self, int kind, *, uint64_t request=0, uint64_t conn=0, uint64_t first=0, uint64_t second=0,
            uint64_t third=0, bytes text=b"", bytes extra=b""):
        """Say one note to the data plane, at once.

        Raises:
            BufferError: the mailbox is full.
        """
        cdef Note note
        note_init(&note, kind)
        note.request = request
        note.conn = conn
        note.first = first
        note.second = second
        note.third = third
        notes_put(&self.sequencer.from_control, &note, text, extra)
        mailbox_ring(&self.sequencer.from_control)
