"""Loop: the main path of a worker, top to bottom, and its Python face."""

import os

from core.shards cimport SHARDS_MAX
from core.flush cimport FLUSH_US, flush_touched
from core.namespace_spec import BUILT_IN as _BUILT_IN
from core.shards import check_count

cimport cython
from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from core.accept cimport accept_all, accept_prepare, accept_reserve
from core.answers cimport answer_written
from core.audit_edge cimport edge_audit
from core.batch cimport Batch, batch_clear, batch_free
from core.buffer cimport Segment, arena_rest
from core.bus cimport ZMQ_DEALER, Bus, bus_close, bus_on_event, bus_open
from core.clock cimport clock_ms
from core.codes cimport BAD_FRAME, BYE, OVERLOADED
from core.conn cimport (FLAG_ASKED, FLAG_BLOCKED, STATE_OPEN, Aside, Connection, conn_get, conn_release,
                        conn_timer_place)
from core.drain cimport drain_begin, drain_cut, drain_listeners_close, drain_step
from core.edge cimport (FORM_COUNT, LINKS_MAX, LINK_NOWHERE, RECEIVE_BYTES, RETRY_AFTER_MS, RINGS_MAX, RING_MS,
                        Channel, Lag, Link, Opening, Pending, Replay, link_bit)
from core.expiry cimport expiry_set
from core.hash cimport index_free
from core.intake cimport intake_read
from core.joins cimport joins_end
from core.kept cimport kept_init
from core.ledger cimport (COUNT_GIL_TAKES, COUNT_WAKEUPS, GAUGE_HANDSHAKES, GAUGE_OPEN_CONNECTIONS,
                          GAUGE_QUEUED_BYTES, KIND_FD, ledger_acquire, ledger_count, ledger_gauge, ledger_turn)
from core.lifecycle cimport edge_close, edge_discard, edge_fin, edge_fin_sized, edge_timer_fired, edge_timer_plan
from core.link cimport (LINK_OUT_BYTES_MAX, link_again, link_bye, link_closed, link_flush, link_history,
                        link_opened, link_presence, link_receive, link_tick)
from core.listing cimport listing_turn
from core.mailbox cimport (NOTE_AUDIT, NOTE_DRAIN, NOTE_DRAIN_STEP, NOTE_FIN, NOTE_HISTORY, NOTE_LINK_CLOSE,
                           NOTE_LINK_OPEN, NOTE_LIST, NOTE_OPEN, NOTE_PRESENCE, NOTE_RECLAIM, NOTE_REFRESH, NOTE_SEND,
                           NOTE_SETTLED, NOTE_STOP, NOTE_STOPPED, OPEN_DEVICE, Note, mailbox_drain, mailbox_free,
                           mailbox_init, mailbox_put, mailbox_ring, note_init)
from core.names cimport names_free, names_init
from core.namespaces cimport namespaces_fill
from core.notes cimport notes_put, notes_take
from core.opening cimport open_start
from core.outbox cimport outbox_touch
from core.pace cimport pace_wait
from core.poller cimport (EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLL_CLOEXEC, EPOLL_CTL_ADD, POLLER_EVENTS,
                          TAG_LINKS, TAG_LINKS_LAST, TAG_TCP, TAG_WAKE, TAG_WS, epoll_create1, epoll_event,
                          epoll_wait, poller_watch)
from core.replay cimport replays_ask
from core.requests cimport requests_free
from core.rights cimport rights_set
from core.ring cimport ring_pool_init
from core.sites cimport HERE
from core.slab cimport slab_at, slab_free, slab_init
from core.tls cimport TlsContext, tls_context_free, tls_context_open
from core.told cimport told_free, told_init
from core.transcode cimport json_bound, mpack_bound
from core.vitals cimport vital_of, vitals_init
from core.wheel cimport TIMER_NONE, WHEEL_TICK_MS, wheel_expire, wheel_init

cdef extern from "invariant.h":
    enum:
        HOLDFAST_CHECKS

cdef extern from * nogil:
    """
    #include <sys/eventfd.h>
    #include <unistd.h>
    """
    int eventfd(unsigned int, int)
    int usleep(unsigned int)
    int c_close "close"(int)
    enum:
        EFD_NONBLOCK
        EFD_CLOEXEC


cdef void _on_send(Edge *edge, Connection *conn, Note *note, const uint8_t *text) noexcept nogil:
    """A frame from the control thread."""
    if conn != NULL and note.text_size:
        answer_written(edge, conn, text, note.text_size)


cdef void _on_refresh(Edge *edge, Connection *conn, Note *note, const uint8_t *text) noexcept nogil:
    """REFRESH, checked by the control thread: the session goes on under new credentials."""
    if conn.state != STATE_OPEN:
        return
    if rights_set(edge, conn, text + note.text_size, note.extra_size) < 0:
        edge_fin(edge, conn, OVERLOADED, b"out of memory", RETRY_AFTER_MS)
        return
    expiry_set(edge, conn, note.third)
    vital_of(edge, conn).device = <uint8_t> (note.flags // OPEN_DEVICE)
    edge_timer_plan(edge, conn)
    if note.text_size:                  # nothing is sent to a request that asked for no answer
        answer_written(edge, conn, text, note.text_size)


cdef void _on_note(Edge *edge, Note *note) noexcept nogil:
    """One note from the control thread. A connection that is gone by now is passed over."""
    cdef Connection *conn = conn_get(&edge.connections, note.conn)
    cdef const uint8_t *text = <const uint8_t *> note + sizeof(Note)
    cdef const uint8_t *extra = text + note.text_size
    cdef bint refused
    if note.kind == NOTE_SEND:
        _on_send(edge, conn, note, text)
    elif note.kind == NOTE_DRAIN:
        drain_begin(edge, note.flags & 1)
    elif note.kind == NOTE_DRAIN_STEP:
        drain_step(edge, note, text)
    elif note.kind == NOTE_STOP:
        edge.stopping = True
    elif note.kind == NOTE_LIST or note.kind == NOTE_RECLAIM:
        listing_turn(edge, note, text, extra)
    elif note.kind == NOTE_LINK_OPEN:
        link_opened(edge, <uint32_t> note.request)
    elif note.kind == NOTE_LINK_CLOSE:
        link_closed(edge, <uint32_t> note.request)
    elif note.kind == NOTE_AUDIT:
        edge.audit = note.request
    elif conn == NULL:
        return
    elif note.kind == NOTE_OPEN:
        open_start(edge, conn, note, text, extra)
    elif note.kind == NOTE_HISTORY:
        link_history(edge, conn, note, <const char *> text)
    elif note.kind == NOTE_PRESENCE:
        link_presence(edge, conn, note, <const char *> text)
    elif note.kind == NOTE_FIN:
        # No session that ends in order: there was none yet, or what it said is none of the protocol.
        refused = conn.state < STATE_OPEN or note.first == BAD_FRAME
        edge.fin_targets = <const char *> extra
        edge.fin_targets_size = note.extra_size
        edge_fin_sized(edge, conn, <int> note.first, <const char *> text, note.text_size, <uint32_t> note.second)
        edge.fin_targets_size = 0
        if refused:
            edge_discard(edge, conn)
    elif note.kind == NOTE_REFRESH:
        _on_refresh(edge, conn, note, text)
    elif note.kind == NOTE_SETTLED:
        conn.flags &= ~FLAG_ASKED
        outbox_touch(edge, conn)


cdef void _notes_take(Edge *edge) noexcept nogil:
    cdef Batch *batch = mailbox_drain(&edge.from_control)
    cdef uint32_t place = 0
    while place < batch.size:
        _on_note(edge, <Note *> (batch.data + place))
        place += (<Note *> (batch.data + place)).size
    batch_clear(batch)                  # a storm's notes are not to wait for the next note to be given back


cdef void _on_link_event(Edge *edge, uint64_t tag, uint32_t events) noexcept nogil:
    """Of a link that is not used yet, nothing is lost: `link_opened` looks at it anyway."""
    cdef Link *link = &edge.links[(tag - TAG_LINKS) >> 1]
    if edge.links_used & link_bit(link):
        bus_on_event(&link.bus, tag, events)
        edge.links_again |= link_bit(link)


cdef void _on_event(Edge *edge, epoll_event *event) noexcept nogil:
    """What one ready file descriptor asks for."""
    cdef uint64_t tag = event.data.u64
    cdef Connection *conn = conn_get(&edge.connections, tag)
    if conn != NULL:
        if event.events & EPOLLOUT:
            outbox_touch(edge, conn)
            conn.flags &= ~FLAG_BLOCKED
        if event.events & EPOLLIN:
            intake_read(edge, conn)
        elif event.events & (EPOLLERR | EPOLLHUP):
            edge_close(edge, conn, BYE)
    elif tag == TAG_TCP:
        accept_all(edge, edge.tcp_fd, False)
    elif tag == TAG_WS:
        accept_all(edge, edge.ws_fd, True)
    elif tag == TAG_WAKE:
        _notes_take(edge)
    elif TAG_LINKS <= tag <= TAG_LINKS_LAST:
        _on_link_event(edge, tag, event.events)


cdef void _timers_fire(Edge *edge) noexcept nogil:
    cdef uint32_t index = wheel_expire(&edge.wheel, edge.now_ms)
    while index != TIMER_NONE:
        edge_timer_fired(edge, <Connection *> slab_at(&edge.connections, index))
        index = wheel_expire(&edge.wheel, edge.now_ms)


cdef void _free_closed(Edge *edge) noexcept nogil:
    """Nothing is freed while events are being dispatched: here they are all done."""
    cdef Connection *conn
    cdef int form
    while edge.closed != NULL:
        conn = edge.closed
        edge.closed = conn.next_touched
        conn_release(&edge.connections, edge.ledger, conn)
    for form in range(FORM_COUNT):
        arena_rest(&edge.arenas[form], edge.ledger, edge.connections.live > 0)
    ledger_gauge(edge.ledger, GAUGE_OPEN_CONNECTIONS, edge.connections.live)
    ledger_gauge(edge.ledger, GAUGE_QUEUED_BYTES, edge.queued_bytes)
    ledger_gauge(edge.ledger, GAUGE_HANDSHAKES, edge.handshakes)


cdef void _control_ring(Edge *edge) noexcept nogil:
    """Wake the control thread for the notes of this turn, at once as long as that is rare.

    In a rush a wake-up for each HELLO costs more than the HELLO itself, here, there and at the router. Then notes lie
    until the next RING_MS is over, and all go their way together (ADR 12).
    """
    cdef uint64_t periods = (edge.now_ms - edge.ring_ms) // RING_MS
    if periods:
        edge.ring_ms = edge.now_ms
        edge.ring_credit = <uint32_t> min(RINGS_MAX, edge.ring_credit + periods)
    if edge.ring_credit and mailbox_ring(&edge.to_control):
        edge.ring_credit -= 1
        ledger_count(edge.ledger, COUNT_GIL_TAKES, 1)


cdef int _wait_ms(Edge *edge) noexcept nogil:
    """How long epoll may wait: until the next tick while anything has a deadline."""
    if edge.touched != NULL:
        return 0
    if edge.links_again:
        return 0
    if edge.ring_credit == 0:
        return RING_MS
    if edge.links_full:
        return 5
    if edge.wheel.count or edge.requests.oldest != edge.requests.next:
        return WHEEL_TICK_MS - <int> (edge.now_ms % WHEEL_TICK_MS)
    return 500


cdef void _tell_stopped(Edge *edge) noexcept nogil:
    cdef Note note
    note_init(&note, NOTE_STOPPED)
    mailbox_put(&edge.to_control, &note, NULL, NULL)
    edge.draining = False


cdef void _hang(Edge *edge) noexcept nogil:
    """What a test wants to be found and replaced."""
    while edge.inject_stuck:
        usleep(1000)


cdef void edge_run(Edge *edge) noexcept nogil:
    """Turn after turn until NOTE_STOP."""
    cdef epoll_event events[POLLER_EVENTS]
    cdef int place
    cdef int count = 0
    while not edge.stopping:
        pace_wait(&edge.pace, count)
        count = epoll_wait(edge.epoll_fd, events, POLLER_EVENTS, _wait_ms(edge))
        count = max(count, 0)
        edge.now_ms = clock_ms()
        ledger_count(edge.ledger, COUNT_WAKEUPS, 1)
        ledger_turn(edge.ledger, edge.now_ms)
        if HOLDFAST_CHECKS and edge.inject_stuck and edge.connections.live:
            _hang(edge)
        for place in range(count):
            _on_event(edge, &events[place])
        link_receive(edge)
        _timers_fire(edge)
        link_tick(edge)
        link_flush(edge)
        flush_touched(edge, edge.audit != 0)   # an audit is to find nobody who is closed and not freed
        replays_ask(edge)
        link_flush(edge)
        link_again(edge)
        _free_closed(edge)
        if edge.audit:
            edge_audit(edge, edge.audit)
            edge.audit = 0
        if edge.draining and edge.connections.live == 0:
            _tell_stopped(edge)
        _control_ring(edge)
    drain_cut(edge)
    joins_end(edge)
    link_bye(edge)
    link_flush(edge)
    flush_touched(edge, True)
    _free_closed(edge)


cdef _config_set(Edge *edge, dict options):
    path = options["ws_path"].encode()
    if len(path) >= sizeof(edge.config.ws_path):
        raise ValueError(f"ws_path is longer than {sizeof(edge.config.ws_path) - 1} bytes")
    memcpy(edge.config.ws_path, <const char *> path, len(path) + 1)
    edge.config.ping_ms = options["ping_ms"]
    edge.config.misses = options["misses"]
    edge.config.hello_timeout_ms = options["hello_timeout_ms"]
    edge.config.fin_timeout_ms = options["fin_timeout_ms"]
    edge.config.write_timeout_ms = options["write_timeout_ms"]
    edge.config.frame_timeout_ms = options["frame_timeout_ms"]
    edge.config.request_timeout_ms = options["request_timeout_ms"]
    edge.config.max_frame = options["max_frame"]
    edge.config.queue_bytes_max = options["queue_bytes_max"]
    edge.config.kept_bytes_max = options["kept_bytes_max"]
    edge.config.channels_max = options["channels_max"]
    edge.config.publish_rate = options["publish_rate"]
    edge.config.publish_burst = options["publish_burst"] or options["publish_rate"]
    edge.config.worker = options["worker"]
    edge.config.epoch = options["epoch"]
    edge.config.handshakes_max = options["handshakes_max"]
    edge.config.flush_us = options.get("flush_us", FLUSH_US)
    edge.config.expiry_notice_ms = options.get("expiry_notice_ms", 30000)
    edge.config.beside = options.get("beside", False)
    edge.config.proxy_protocol = options["proxy_protocol"]
    edge.config.development = options["development"]


cdef _tables_init(Edge *edge, uint32_t connections_max):
    cdef uint64_t seeds[3]
    random = os.urandom(sizeof(seeds))
    memcpy(seeds, <const char *> random, sizeof(seeds))
    edge.hash_key.k0 = seeds[0]
    edge.hash_key.k1 = seeds[1]
    edge.random = seeds[2] | 1
    edge.now_ms = clock_ms()
    slab_init(&edge.connections, sizeof(Connection), 8, connections_max)
    vitals_init(&edge.connections)
    slab_init(&edge.asides, sizeof(Aside), 6, 0xFFFFFFFE)
    slab_init(&edge.channels, sizeof(Channel), 9, 0xFFFFFFFE)
    names_init(&edge.names)
    slab_init(&edge.lags, sizeof(Lag), 6, 0xFFFFFFFE)
    slab_init(&edge.pendings, sizeof(Pending), 8, 0xFFFFFFFE)
    slab_init(&edge.openings, sizeof(Opening), 8, 0xFFFFFFFE)
    slab_init(&edge.replays, sizeof(Replay), 8, 0xFFFFFFFE)
    slab_init(&edge.segments, sizeof(Segment), 9, 0xFFFFFFFE)
    ring_pool_init(&edge.rings, edge.ledger, 0xFFFFFFFE)
    wheel_init(&edge.wheel, edge.ledger, &edge.connections, conn_timer_place(), edge.now_ms)
    edge.requests.oldest = 1
    edge.requests.next = 1
    kept_init(&edge.kept, edge.config.kept_bytes_max)
    for place in range(LINKS_MAX + 1):
        edge.links[place].place = place
        edge.links[place].out.bytes_max = edge.links[place].parted.bytes_max = LINK_OUT_BYTES_MAX
    told_init(edge)
    edge.control.bytes_max = LINK_OUT_BYTES_MAX
    # An unfinished message keeps at most max_frame, a header and an unfinished control frame of 131 bytes; an HTTP
    # request 8 KiB.
    edge.input_bytes = RECEIVE_BYTES + max(edge.config.max_frame, <uint32_t> 8192) + 256
    edge.input = <uint8_t *> malloc(edge.input_bytes)
    edge.scratch_bytes = <uint32_t> json_bound(4 * edge.config.max_frame)
    edge.scratch = <uint8_t *> malloc(edge.scratch_bytes)
    edge.unpacked_bytes = <uint32_t> mpack_bound(edge.config.max_frame)
    edge.unpacked = <uint8_t *> malloc(edge.unpacked_bytes)
    if edge.input == NULL or edge.scratch == NULL or edge.unpacked == NULL:
        raise MemoryError


@cython.no_gc_clear        # the counters that __dealloc__ writes are not to be collected first
cdef class EdgeLoop:
    """One worker's data plane.

    `run` is the thread's body and takes no GIL; every other method is for the control thread. Notes put with `put`
    leave with the next `flush`. `control_fd` becomes readable when `take` has something.
    """

    def __cinit__(self, Stats stats, **options):
        self.stats = stats
        self.links = set()
        self.edge = <Edge *> calloc(1, sizeof(Edge))
        if self.edge == NULL:
            raise MemoryError
        self.edge.ledger = &stats.ledger
        self.edge.tcp_fd = self.edge.ws_fd = self.edge.epoll_fd = self.edge.wake_fd = self.edge.reserve_fd = -1
        mailbox_init(&self.edge.to_control, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC))
        mailbox_init(&self.edge.from_control, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC))
        self.edge.wake_fd = self.edge.from_control.event_fd

    def __init__(self, Stats stats, *, endpoint, identity, tcp_fd, ws_fd, connections_max, namespaces=_BUILT_IN,
                 **options):
        """Take over two listening sockets and connect to the router.

        Args:
            stats: this process's counters.
            endpoint: the router's ZeroMQ endpoint.
            identity: this worker's on the bus, unique per start.
            tcp_fd: listening socket for TCP clients, or -1; owned by the loop from here on.
            ws_fd: listening socket for WebSocket clients, or -1; likewise.
            connections_max: bound of the connection table.
            namespaces: what the namespaces of channels are, as core.namespace_spec.NamespaceSpec values.
            options: the numbers of EdgeConfig by name, and `ws_path`; for TLS the files `tls_certificate` and
                `tls_key`, and `tls_ticket_key`, the same for all workers that clients may come back to.

        Raises:
            OSError: the bus cannot be opened, or epoll is refused.
            TlsError: the certificate or its key cannot be used, or there is no libssl.
        """
        cdef Edge *edge = self.edge
        namespaces_fill(&edge.namespaces, namespaces)
        _config_set(edge, options)
        _tables_init(edge, connections_max)
        edge.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if edge.epoll_fd < 0:
            raise OSError(errno, "epoll_create1 failed")
        accept_reserve(edge)
        self.identity = identity
        self._shards_init(options.get("shards", SHARDS_MAX), 0 if endpoint else LINK_NOWHERE)
        if endpoint:
            self.link_open(0, endpoint, *options.get("bus_keys", ()))
            link_opened(edge, 0)
        if options.get("tls_certificate"):
            edge.tls = tls_context_open(options["tls_certificate"], options["tls_key"],
                                        options.get("tls_ticket_key", b""))
        if HOLDFAST_CHECKS:
            edge.inject_stuck = os.environ.get("HOLDFAST_INJECT") == "stuck"
        edge.tcp_fd = tcp_fd
        edge.ws_fd = ws_fd
        for fd in (tcp_fd, ws_fd):
            if fd >= 0:
                accept_prepare(edge, fd)
        for fd, tag in ((tcp_fd, TAG_TCP), (ws_fd, TAG_WS), (edge.wake_fd, TAG_WAKE)):
            if fd >= 0 and poller_watch(edge.epoll_fd, fd, tag, EPOLL_CTL_ADD, EPOLLIN) < 0:
                raise OSError(errno, "epoll_ctl failed")
        for fd in (tcp_fd, ws_fd):
            if fd >= 0:
                ledger_acquire(edge.ledger, KIND_FD, fd, HERE)

    def __dealloc__(self):
        cdef Edge *edge = self.edge
        cdef int form
        if edge == NULL:
            return
        drain_listeners_close(edge)
        self.close()
        for fd in (edge.epoll_fd, edge.reserve_fd, edge.to_control.event_fd, edge.from_control.event_fd):
            if fd >= 0:
                c_close(fd)
        for form in range(FORM_COUNT):
            arena_rest(&edge.arenas[form], edge.ledger, False)
        slab_free(&edge.connections)
        slab_free(&edge.asides)
        slab_free(&edge.channels)
        names_free(&edge.names)
        slab_free(&edge.lags)
        slab_free(&edge.pendings)
        slab_free(&edge.openings)
        slab_free(&edge.replays)
        slab_free(&edge.segments)
        slab_free(&edge.kept.blocks)
        slab_free(&edge.rings.slab)
        index_free(&edge.channel_index)
        tls_context_free(<TlsContext *> edge.tls)
        for place in range(LINKS_MAX + 1):
            batch_free(&edge.links[place].out)
            batch_free(&edge.links[place].parted)
        told_free(edge)
        batch_free(&edge.control)
        mailbox_free(&edge.to_control)
        mailbox_free(&edge.from_control)
        requests_free(edge)
        free(edge.input)
        free(edge.scratch)
        free(edge.unpacked)
        free(edge)

    @property
    def control_fd(self):
        """Readable when `take` has notes."""
        return self.edge.to_control.event_fd

    def run(self):
        """Serve until the STOP note; the calling thread gives the GIL up for the whole time."""
        with nogil:
            edge_run(self.edge)

    cdef _shards_init(self, int count, uint32_t place):
        """Before any router said what it leads: a router that is alone leads all."""
        self.edge.shard_count = check_count(count)
        memset(self.edge.shard_links, <int> place, sizeof(self.edge.shard_links))
        memset(self.edge.shard_feeds, <int> place, sizeof(self.edge.shard_feeds))
        self.edge.links[place].led = self.edge.links[place].fed = count

    def link_open(self, uint32_t place, str endpoint, str server_key="", str public_key="", str secret_key="", *,
                  bint near=True):
        """Open a link to a router, at a place where there is none; LINK_OPEN lets the data plane use it.

        Args:
            place: 0 to LINKS_MAX - 1.
            endpoint: the router's.
            server_key: its public CURVE key, in Z85; empty: the link is not encrypted.
            public_key: of the cluster's pair.
            secret_key: likewise.
            near: it is of this worker's region: what it follows of others is heard there.

        Raises:
            OSError: the endpoint cannot be used.
            ValueError: there is no such place, or a link is there, or a key is none.
        """
        if place >= LINKS_MAX or self.edge.links_used >> place & 1 or place in self.links:
            raise ValueError(f"there is no free place {place} for a link: 0 to {LINKS_MAX - 1}, each once")
        memset(&self.edge.links[place].bus, 0, sizeof(Bus))
        bus_open(&self.edge.links[place].bus, self.edge.ledger, ZMQ_DEALER, endpoint, self.identity.encode(),
                 self.edge.epoll_fd, TAG_LINKS + 2 * place, server_key.encode(), public_key.encode(),
                 secret_key.encode())
        self.edge.links[place].near = near
        self.links.add(place)

    def link_close(self, uint32_t place):
        """Close a link that the data plane does not use any more (LINK_CLOSED)."""
        if place in self.links:
            self.links.discard(place)
            bus_close(&self.edge.links[place].bus)

    def close(self):
        """Give the streams to the routers back, once `run` has returned."""
        for place in list(self.links):
            self.link_close(place)

    def take(self):
        """All notes from the data plane, as `core.notes` gives them."""
        return notes_take(&self.edge.to_control)

    def put(self, int kind, uint64_t conn=0, uint64_t request=0, *, int flags=0, uint64_t first=0, uint64_t second=0,
            uint64_t third=0, bytes session=bytes(16), bytes text=b"", bytes extra=b""):
        """Add one note for the data plane.

        Raises:
            BufferError: the mailbox is full.
        """
        cdef Note note
        note_init(&note, kind)
        note.flags = flags
        note.conn = conn
        note.request = request
        note.first = first
        note.second = second
        note.third = third
        memcpy(note.session, <const char *> session, 16)
        notes_put(&self.edge.from_control, &note, text, extra)

    def flush(self):
        """Ring the data plane, once for all notes put since the last time."""
        mailbox_ring(&self.edge.from_control)
