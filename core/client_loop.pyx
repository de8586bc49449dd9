"""Client loop: the loop of a client thread, top to bottom, and its Python face."""

import ipaddress
import os
import socket
import time

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from core.batch cimport Batch
from core.client cimport (CLIENT_AWAY, CLIENT_COUNT_COUNT, CLIENT_ENDPOINTS_MAX, CLIENT_FORGET, CLIENT_HELD_BACK,
                          CLIENT_NAME_MAX, CLIENT_NOTE_AUDIT, CLIENT_NOTE_AUDITED, CLIENT_NOTE_CLOSE,
                          CLIENT_NOTE_CLOSED, CLIENT_NOTE_CONNECTED, CLIENT_NOTE_FAILED, CLIENT_NOTE_HISTORY,
                          CLIENT_NOTE_JOIN, CLIENT_NOTE_JOINED, CLIENT_NOTE_LEAVE, CLIENT_NOTE_OPEN,
                          CLIENT_NOTE_PAUSE, CLIENT_NOTE_PAUSED, CLIENT_NOTE_PUBLISH, CLIENT_NOTE_PUBLISHED,
                          CLIENT_NOTE_RECONNECT, CLIENT_NOTE_REFUSED, CLIENT_NOTE_STOP, CLIENT_OPEN, CLIENT_QUEUED,
                          CLIENT_RESUMABLE, CLIENT_TCP, MEMBER_WANTED, TIME_COUNT, ClientConn, ClientEndpoint,
                          ClientMember, client_count, client_free, client_get, client_init, client_missing, conn_free,
                          conn_new, member_find, member_new)
from core.client_history cimport history_ask
from core.client_in cimport client_dial_due, client_dial_wait, client_on_socket
from core.client_life cimport client_ended, client_fail, client_free_closed, client_queue, client_tell
from core.client_out cimport client_uncork
from core.client_session cimport (session_join, session_leave, session_part, session_publish, session_timer_fired)
from core.clock cimport clock_ms, clock_wall_ns
from core.histogram cimport histogram_take
from core.ledger cimport COUNT_WAKEUPS, KIND_FD, ledger_count, ledger_live
from core.mailbox cimport Note, mailbox_drain, mailbox_init, mailbox_put, mailbox_ring
from core.poller cimport (EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLLIN, POLLER_EVENTS, TAG_WAKE, epoll_create1, epoll_event,
                          epoll_wait, poller_watch)
from core.slab cimport slab_at
from core.stamp cimport STAMP_BYTES, STAMP_PAYLOAD_MAX
from core.wheel cimport TIMER_NONE, WHEEL_TICK_MS, wheel_expire

CONNECTED = CLIENT_NOTE_CONNECTED
JOINED = CLIENT_NOTE_JOINED
PUBLISHED = CLIENT_NOTE_PUBLISHED
REFUSED = CLIENT_NOTE_REFUSED
PAUSED = CLIENT_NOTE_PAUSED
FAILED = CLIENT_NOTE_FAILED
CLOSED = CLIENT_NOTE_CLOSED
AUDITED = CLIENT_NOTE_AUDITED
COUNTS = ("connected", "resumed", "failed", "left", "joined", "published", "held_back", "accepted", "refused",
          "publish_refused", "unanswered", "overdue", "delivered", "unchecked", "lost", "repeated", "out_of_order",
          "corrupt", "told_gaps", "missed_away", "caught_up", "events", "pings", "pongs", "acks", "histories",
          "bytes_in", "bytes_out")
TIMES = ("connect", "join", "publish", "delivery", "history")
REQUESTS = ("hello", "join", "leave", "publish", "history", "catch_up")
assert len(COUNTS) == CLIENT_COUNT_COUNT and len(TIMES) == TIME_COUNT

cdef enum:
    IDENTITY_BYTES_MAX = 16384
    IDLE_WAIT_MS = 500

cdef extern from * nogil:
    """
    #include <sys/eventfd.h>
    #include <unistd.h>
    """
    int eventfd(unsigned int, int)
    int c_close "close"(int)
    enum:
        EFD_NONBLOCK
        EFD_CLOEXEC


# ---- commands

cdef void _open(Client *client, const Note *note, const char *text) noexcept nogil:
    cdef ClientConn *conn = conn_new(client, note.conn)
    if conn == NULL:
        return
    conn.flags = note.flags
    conn.endpoint = <uint8_t> note.first
    conn.identity = <char *> malloc(note.text_size + 1)
    if conn.identity == NULL:
        conn.flags |= CLIENT_FORGET
        client_ended(client, conn)
        return
    memcpy(conn.identity, text, note.text_size)
    conn.identity[note.text_size] = 0
    client_queue(client, conn)


cdef void _join(Client *client, ClientConn *conn, const Note *note, const char *text) noexcept nogil:
    """Now, or with the next WELCOME."""
    cdef uint32_t before = conn.member_count
    cdef ClientMember *member = member_new(client, conn, text, note.text_size)
    if member == NULL:
        client_tell(client, conn, CLIENT_NOTE_REFUSED, 0, 1, 0, b"too many channels of one connection", 35)
    elif conn.state == CLIENT_OPEN and (conn.member_count > before or member.state != MEMBER_WANTED):
        session_join(client, conn, member)


cdef void _close(Client *client, ClientConn *conn) noexcept nogil:
    conn.flags |= CLIENT_FORGET
    if conn.state != CLIENT_AWAY:
        session_leave(client, conn, False)
    elif not conn.flags & CLIENT_QUEUED:    # one that is to be dialled is freed when its turn comes
        client_ended(client, conn)


cdef void _on_live(Client *client, ClientConn *conn, const Note *note, const char *text) noexcept nogil:
    """Commands that make sense for an open session alone; Python may not know yet that it ended."""
    cdef ClientMember *member = NULL
    if note.kind == CLIENT_NOTE_PUBLISH:
        member = member_find(client, conn, text, note.text_size)
        if conn.state != CLIENT_OPEN or (member != NULL and member.state == MEMBER_WANTED):
            client_count(client, CLIENT_HELD_BACK, 1)
            return
    if conn.state != CLIENT_OPEN:
        return
    if note.kind == CLIENT_NOTE_PUBLISH:
        session_publish(client, conn, text, note.text_size, <uint32_t> note.first, note.second)
    elif note.kind == CLIENT_NOTE_LEAVE:
        session_part(client, conn, text, note.text_size)
    elif note.kind == CLIENT_NOTE_HISTORY:
        history_ask(client, conn, text, note.text_size, <uint32_t> note.first)


cdef void _on_command(Client *client, const Note *note) noexcept nogil:
    cdef ClientConn *conn = client_get(client, note.conn)
    cdef const char *text = <const char *> note + sizeof(Note)
    if note.kind == CLIENT_NOTE_STOP:
        client.stopping = True
    elif note.kind == CLIENT_NOTE_AUDIT:
        client_tell(client, NULL, CLIENT_NOTE_AUDITED, client_missing(client, note.flags & 1),
                    client.requests_under_way, client.open_count, NULL, 0)
    elif note.kind == CLIENT_NOTE_OPEN:
        _open(client, note, text)
    elif conn == NULL or conn.flags & CLIENT_FORGET:
        return
    elif note.kind == CLIENT_NOTE_JOIN:
        _join(client, conn, note, text)
    elif note.kind == CLIENT_NOTE_PAUSE:
        if conn.state != CLIENT_AWAY:
            session_leave(client, conn, conn.flags & CLIENT_RESUMABLE != 0)
    elif note.kind == CLIENT_NOTE_RECONNECT:
        client_queue(client, conn)
    elif note.kind == CLIENT_NOTE_CLOSE:
        _close(client, conn)
    else:
        _on_live(client, conn, note, text)


# ---- the loop

cdef void _commands_take(Client *client) noexcept nogil:
    cdef Batch *batch = mailbox_drain(&client.from_python)
    cdef uint32_t place = 0
    while place < batch.size:
        _on_command(client, <const Note *> (batch.data + place))
        place += (<Note *> (batch.data + place)).size


cdef void _timers_fire(Client *client) noexcept nogil:
    cdef uint32_t slot = wheel_expire(&client.wheel, client.now_ms)
    while slot != TIMER_NONE:
        session_timer_fired(client, <ClientConn *> slab_at(&client.slots, slot))
        slot = wheel_expire(&client.wheel, client.now_ms)


cdef int _wait_ms(Client *client) noexcept nogil:
    cdef int wait = IDLE_WAIT_MS
    cdef int dial = client_dial_wait(client)
    if client.wheel.count:
        wait = WHEEL_TICK_MS - <int> (client.now_ms % WHEEL_TICK_MS)
    return dial if 0 <= dial < wait else wait


cdef void _clocks(Client *client) noexcept nogil:
    client.now_ns = clock_wall_ns()
    client.now_ms = clock_ms()


cdef void _close_all(Client *client) noexcept nogil:
    """Stopping: what still has a socket is cut off, and nothing is left in the tables."""
    cdef uint32_t number
    cdef ClientConn *conn
    client.dial_first = NULL
    client.dial_last = NULL
    for number in range(client.conns_max):
        conn = client.conns[number]
        if conn != NULL and conn.state != CLIENT_AWAY:
            client_fail(client, conn, b"the client stopped")
    client_free_closed(client)
    for number in range(client.conns_max):
        if client.conns[number] != NULL:
            conn_free(client, client.conns[number])
    mailbox_ring(&client.to_python)


cdef void client_run(Client *client) noexcept nogil:
    """Turn after turn until CLIENT_NOTE_STOP."""
    cdef epoll_event events[POLLER_EVENTS]
    cdef ClientConn *conn
    cdef int count, place
    while not client.stopping:
        count = epoll_wait(client.epoll_fd, events, POLLER_EVENTS, _wait_ms(client))
        _clocks(client)
        ledger_count(client.ledger, COUNT_WAKEUPS, 1)
        for place in range(count):
            if events[place].data.u64 == TAG_WAKE:
                _commands_take(client)
                continue
            conn = client_get(client, events[place].data.u64)
            if conn != NULL and conn.state != CLIENT_AWAY:
                client_on_socket(client, conn, events[place].events)
        client_dial_due(client)
        _timers_fire(client)
        client_uncork(client)
        client_free_closed(client)
        mailbox_ring(&client.to_python)
    _close_all(client)


# ---- Python's face

cdef uint32_t _address(bytes packed, int port, int family, uint8_t *target):
    """Write a sockaddr; its size."""
    cdef uint16_t name = family
    memset(target, 0, 28)
    memcpy(target, &name, 2)
    target[2] = port >> 8
    target[3] = port & 255
    memcpy(target + (4 if len(packed) == 4 else 8), <const char *> packed, len(packed))
    return 16 if len(packed) == 4 else 28


cdef _endpoint_set(ClientEndpoint *endpoint, host, int port):
    family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    packed = ipaddress.ip_address(found[0].partition("%")[0]).packed
    endpoint.address_size = _address(packed, port, family, endpoint.address)
    header = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    encoded = header.encode("ascii")
    if len(encoded) >= sizeof(endpoint.host):
        raise ValueError(f"{host}: the name of the host is too long")
    memcpy(endpoint.host, <const char *> encoded, len(encoded) + 1)


cdef bytes _name(channel):
    encoded = channel.encode()
    if not 0 < len(encoded) <= CLIENT_NAME_MAX:
        raise ValueError(f"a channel has 1 to {CLIENT_NAME_MAX} bytes, not {len(encoded)}: {channel[:40]!r}")
    return encoded


cdef class ClientLoop:
    """Many client connections of the gateway in one thread that needs no GIL.

    `run` is the thread's body. Every other method is for one Python thread, does not block, and only puts a command
    into a mailbox; `flush` rings the thread, once for all commands since the last time. `event_fd` becomes readable
    when `take` has something. Handles are integers, valid from `open` until `take` gives CLOSED for them.
    """

    def __cinit__(self, Stats stats, *args, **options):
        self.stats = stats
        self.free_numbers = []
        self.generations = []
        self.client = <Client *> calloc(1, sizeof(Client))
        if self.client == NULL:
            raise MemoryError
        self.client.ledger = &stats.ledger
        self.client.epoll_fd = -1
        mailbox_init(&self.client.to_python, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC))
        mailbox_init(&self.client.from_python, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC))

    def __init__(self, Stats stats, endpoints, *, connections_max, path="/ws", connect_rate=0, source="",
                 handshake_timeout_ms=10_000, request_timeout_ms=10_000, fin_timeout_ms=5_000, tell_requests=True,
                 catch_up=False):
        """Resolve the endpoints; nothing is dialled yet.

        Args:
            stats: this process's counters; every resource of the loop is in its ledger.
            endpoints: (host, port) of gateways, 1 to 16; `open` chooses one by its index.
            connections_max: bound of the table.
            path: of the WebSocket.
            connect_rate: connections a second that are dialled at most; 0: as fast as handshakes end.
            source: the IPv4 address that connections come from; "": the kernel chooses.
            handshake_timeout_ms: from connect() to WELCOME.
            request_timeout_ms: from a request to its answer.
            fin_timeout_ms: from FIN to FIN_ACK.
            tell_requests: whether `take` gives JOINED and PUBLISHED; the counters and times hold them anyway.
            catch_up: whether HISTORY is asked for what was missed while a connection was away.

        Raises:
            OSError: an endpoint's name cannot be resolved, or epoll is refused.
            ValueError: an argument is out of its range.
        """
        cdef Client *client = self.client
        random = os.urandom(20)
        encoded = path.encode()
        if not 1 <= len(endpoints) <= CLIENT_ENDPOINTS_MAX:
            raise ValueError(f"1 to {CLIENT_ENDPOINTS_MAX} endpoints, not {len(endpoints)}")
        if len(encoded) >= sizeof(client.config.path):
            raise ValueError(f"the path has more than {sizeof(client.config.path) - 1} bytes")
        for place, (host, port) in enumerate(endpoints):
            _endpoint_set(&client.config.endpoints[<int> place], host, port)
        if source:
            client.config.source_size = _address(ipaddress.IPv4Address(source).packed, 0, socket.AF_INET,
                                                 client.config.source)
        memcpy(client.config.path, <const char *> encoded, len(encoded) + 1)
        client.config.endpoint_count = len(endpoints)
        client.config.connect_rate = connect_rate
        client.config.handshake_timeout_ms = handshake_timeout_ms
        client.config.request_timeout_ms = request_timeout_ms
        client.config.fin_timeout_ms = fin_timeout_ms
        client.config.tell_requests = tell_requests
        client.config.catch_up = catch_up
        client.ping_ms = 30_000
        client.misses = 3
        memcpy(&client.hash_key, <const char *> random, 16)
        memcpy(&client.mask_state, <const char *> random + 16, 4)
        client.mask_state |= 1
        _clocks(client)
        client.dial_ms = client.now_ms
        if client_init(client, connections_max) < 0:
            raise MemoryError
        client.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        if client.epoll_fd < 0 or poller_watch(client.epoll_fd, client.from_python.event_fd, TAG_WAKE, EPOLL_CTL_ADD,
                                               EPOLLIN) < 0:
            raise OSError(errno, "epoll cannot be set up")

    def __dealloc__(self):
        if self.client == NULL:
            return
        for fd in (self.client.epoll_fd, self.client.to_python.event_fd, self.client.from_python.event_fd):
            if fd >= 0:
                c_close(fd)
        client_free(self.client)
        free(self.client)

    @property
    def event_fd(self):
        """Readable when `take` has something."""
        return self.client.to_python.event_fd

    def run(self):
        """Drive all connections until `stop`; the calling thread gives the GIL up for the whole time."""
        with nogil:
            client_run(self.client)

    cdef _put(self, int kind, uint64_t handle, int flags=0, uint64_t first=0, uint64_t second=0, bytes text=b""):
        cdef Note note
        memset(&note, 0, sizeof(note))
        note.kind = kind
        note.flags = flags
        note.conn = handle
        note.first = first
        note.second = second
        note.text_size = len(text)
        # There is no extra; a pointer that is surely not NULL keeps the compiler from warning of it.
        if mailbox_put(&self.client.from_python, &note, <const uint8_t *> <const char *> text,
                       <const uint8_t *> &note) < 0:
            raise BufferError("the mailbox to the client thread is full: it has not run for long")

    def open(self, *, user=None, token=None, int endpoint=0, bint resumable=False, bint tcp=False):
        """A new connection, dialled when its turn comes. Give `user` (development mode) or `token`.

        Args:
            user: who it is.
            token: or its token.
            endpoint: index of the gateway.
            resumable: keep what `reconnect` needs to resume the session.
            tcp: over TCP rather than WebSocket.

        Returns:
            The handle.

        Raises:
            ValueError: the arguments do not make a connection.
            BufferError: connections_max handles are in use.
        """
        if (user is None) == (token is None):
            raise ValueError("give either user or token")
        if not 0 <= endpoint < self.client.config.endpoint_count:
            raise ValueError(f"there is no endpoint {endpoint}")
        identity = (f"u{user}" if token is None else f"t{token}").encode()
        if len(identity) > IDENTITY_BYTES_MAX or 0 in identity:
            raise ValueError(f"user and token have at most {IDENTITY_BYTES_MAX} bytes, none of them 0")
        if not self.free_numbers:
            if len(self.generations) == self.client.conns_max:
                raise BufferError(f"all {self.client.conns_max} handles are in use")
            self.free_numbers.append(len(self.generations))
            self.generations.append(0)
        number = self.free_numbers.pop()
        self.generations[number] += 1
        handle = (self.generations[number] << 32) | number
        self._put(CLIENT_NOTE_OPEN, handle, (CLIENT_RESUMABLE if resumable else 0) | (CLIENT_TCP if tcp else 0),
                  endpoint, 0, identity)
        return handle

    def join(self, uint64_t handle, channel):
        """JOIN now, or with WELCOME, and again after each time away."""
        self._put(CLIENT_NOTE_JOIN, handle, 0, 0, 0, _name(channel))

    def leave(self, uint64_t handle, channel):
        """LEAVE."""
        self._put(CLIENT_NOTE_LEAVE, handle, 0, 0, 0, _name(channel))

    def publish(self, uint64_t handle, channel, uint32_t size, uint64_t intended_ns=0):
        """Publish a stamped payload of `size` bytes that should leave, or should have left, at `intended_ns`.

        0 stands for now (`time.time_ns`). Nothing happens while the session is not open.

        Raises:
            ValueError: the size is not one of a stamped payload.
        """
        if not STAMP_BYTES <= size <= STAMP_PAYLOAD_MAX:
            raise ValueError(f"a payload has {STAMP_BYTES} to {STAMP_PAYLOAD_MAX} bytes, not {size}")
        self._put(CLIENT_NOTE_PUBLISH, handle, 0, size, intended_ns or time.time_ns(), _name(channel))

    def history(self, uint64_t handle, channel, uint32_t limit=20):
        """HISTORY: the newest `limit` messages, which are not checked."""
        self._put(CLIENT_NOTE_HISTORY, handle, 0, limit, 0, _name(channel))

    def pause(self, uint64_t handle):
        """FIN; PAUSED comes when the connection is away. Its memberships and their positions are kept."""
        self._put(CLIENT_NOTE_PAUSE, handle)

    def reconnect(self, uint64_t handle):
        """Dial again after PAUSED or FAILED, once the socket is closed, and resume if there is a session to resume."""
        self._put(CLIENT_NOTE_RECONNECT, handle)

    def close(self, uint64_t handle):
        """FIN, wait for FIN_ACK, and give the handle up: CLOSED comes last."""
        self._put(CLIENT_NOTE_CLOSE, handle)

    def audit(self, bint final=False):
        """Ask what is still to come; AUDITED answers. `final`: what is missing now counts as lost."""
        self._put(CLIENT_NOTE_AUDIT, 0, 1 if final else 0)

    def stop(self):
        """Let `run` end: every connection is cut off."""
        self._put(CLIENT_NOTE_STOP, 0)
        self.flush()

    def flush(self):
        """Ring the thread."""
        mailbox_ring(&self.client.from_python)

    def take(self):
        """All that happened since the last call: [(kind, handle, first, second, third, text), ...].

        CONNECTED: ns from connect() to WELCOME, 1 if resumed. JOINED, PUBLISHED: offset, ns; text: channel. REFUSED:
        code, index in REQUESTS, retry after ms; text: why. PAUSED. FAILED: code of FIN or 0, ms to wait before coming
        back; text: why. CLOSED. AUDITED: messages missing, requests under way, sessions open.
        """
        cdef Batch *batch
        cdef uint32_t place = 0
        cdef Note *note
        found = []
        with nogil:
            batch = mailbox_drain(&self.client.to_python)
        while place < batch.size:
            note = <Note *> (batch.data + place)
            text = (<char *> note + sizeof(Note))[:note.text_size]
            found.append((note.kind, note.conn, note.first, note.second, note.third, text.decode(errors="replace")))
            if note.kind == CLIENT_NOTE_CLOSED:
                self.free_numbers.append(note.conn & 0xFFFFFFFF)
            place += note.size
        return found

    def counts(self):
        """The totals since the beginning, by the names in COUNTS, and `open`: the sessions open now."""
        cdef int place
        found = {name: self.client.counts[<int> place] for place, name in enumerate(COUNTS)}
        found["open"] = self.client.open_count
        return found

    def times(self):
        """What each histogram in TIMES got since the last call: {name: [(ns, count), ...]}, rising."""
        cdef int place
        return {name: histogram_take(&self.client.times[<int> place]) for place, name in enumerate(TIMES)}

    @property
    def sockets(self):
        """How many are open."""
        return ledger_live(self.client.ledger, KIND_FD)
