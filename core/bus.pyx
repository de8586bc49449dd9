"""Bus: find libzmq, open and close a socket, connect again, let in, receive."""

import ctypes.util
import glob
import importlib.util
import os

from libc.stdint cimport uint16_t
from libc.stdio cimport snprintf
from libc.string cimport memcmp, memcpy, strchr
from posix.dlfcn cimport RTLD_NOW, dlerror, dlopen, dlsym

from core.batch cimport batch_clear, batch_free, batch_reserve
from core.ledger cimport ledger_acquire
from core.peers cimport peers_close, peers_lost, peers_on_event, peers_open, peers_receive, peers_tick
from core.poller cimport EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLLIN, poller_watch
from core.sites cimport HERE

cdef enum:
    ENDS = ZMQ_EVENT_CLOSED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL \
        | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH


def libzmq_path():
    """Where libzmq is: in pyzmq's wheel (its file name has a hash), else the system's.

    Raises:
        ImportError: there is none.
    """
    # Found, but not imported: pyzmq's own Python would cost each process 2 MiB.
    spec = importlib.util.find_spec("zmq")
    if spec is not None:
        folder = os.path.join(os.path.dirname(os.path.dirname(spec.origin)), "pyzmq.libs")
        for path in sorted(glob.glob(os.path.join(folder, "libzmq*.so*"))):
            return path
    path = ctypes.util.find_library("zmq")
    if path is None:
        raise ImportError("no libzmq found: neither in pyzmq's wheel nor on the system; "
                          "install pyzmq from a wheel (pip install --force-reinstall pyzmq)")
    return path


def preload():
    """Map libzmq without a socket yet, so that processes forked from this one share it.

    Raises:
        ImportError: there is no libzmq.
    """
    cdef Zmq zmq
    _load(&zmq)


cdef void *_symbol(void *library, const char *name) except NULL:
    cdef void *found = dlsym(library, name)
    if found == NULL:
        raise ImportError(f"libzmq lacks {name.decode()}: {dlerror().decode()}")
    return found


cdef _load(Zmq *zmq):
    path = os.fsencode(libzmq_path())
    zmq.library = dlopen(path, RTLD_NOW)
    if zmq.library == NULL:
        raise ImportError(f"cannot open {os.fsdecode(path)}: {dlerror().decode()}")
    zmq.ctx_new = <void *(*)() noexcept nogil> _symbol(zmq.library, b"zmq_ctx_new")
    zmq.ctx_term = <int (*)(void *) noexcept nogil> _symbol(zmq.library, b"zmq_ctx_term")
    zmq.socket = <void *(*)(void *, int) noexcept nogil> _symbol(zmq.library, b"zmq_socket")
    zmq.close = <int (*)(void *) noexcept nogil> _symbol(zmq.library, b"zmq_close")
    zmq.setsockopt = <int (*)(void *, int, const void *, size_t) noexcept nogil> _symbol(zmq.library, b"zmq_setsockopt")
    zmq.getsockopt = <int (*)(void *, int, void *, size_t *) noexcept nogil> _symbol(zmq.library, b"zmq_getsockopt")
    zmq.bind = <int (*)(void *, const char *) noexcept nogil> _symbol(zmq.library, b"zmq_bind")
    zmq.connect = <int (*)(void *, const char *) noexcept nogil> _symbol(zmq.library, b"zmq_connect")
    zmq.monitor = <int (*)(void *, const char *, int) noexcept nogil> _symbol(zmq.library, b"zmq_socket_monitor")
    zmq.recv = <int (*)(void *, void *, size_t, int) noexcept nogil> _symbol(zmq.library, b"zmq_recv")
    zmq.send = <int (*)(void *, const void *, size_t, int) noexcept nogil> _symbol(zmq.library, b"zmq_send")
    zmq.msg_init = <int (*)(ZmqMessage *) noexcept nogil> _symbol(zmq.library, b"zmq_msg_init")
    zmq.msg_recv = <int (*)(ZmqMessage *, void *, int) noexcept nogil> _symbol(zmq.library, b"zmq_msg_recv")
    zmq.msg_data = <void *(*)(ZmqMessage *) noexcept nogil> _symbol(zmq.library, b"zmq_msg_data")
    zmq.msg_size = <size_t (*)(ZmqMessage *) noexcept nogil> _symbol(zmq.library, b"zmq_msg_size")
    zmq.msg_close = <int (*)(ZmqMessage *) noexcept nogil> _symbol(zmq.library, b"zmq_msg_close")
    zmq.error = <int (*)() noexcept nogil> _symbol(zmq.library, b"zmq_errno")


cdef bint _option(Bus *bus, int option, int value) noexcept nogil:
    return bus.zmq.setsockopt(bus.socket, option, &value, sizeof(value)) == 0


cdef bint _key(Bus *bus, int option, const uint8_t *key) noexcept nogil:
    return bus.zmq.setsockopt(bus.socket, option, key, BUS_KEY_BYTES) == 0


cdef bint _socket_set(Bus *bus) noexcept nogil:
    """The options of both kinds; False: libzmq refuses one."""
    # A worker's last word (BYE) gets a moment to leave; without it the router waits for the worker's silence.
    if not (_option(bus, ZMQ_LINGER, 0 if bus.router else 200) and _option(bus, ZMQ_SNDHWM, BUS_HWM)
            and _option(bus, ZMQ_RCVHWM, BUS_HWM) and _option(bus, ZMQ_HEARTBEAT_IVL, BUS_HEARTBEAT_MS)
            and _option(bus, ZMQ_HEARTBEAT_TIMEOUT, BUS_SILENT_MS)
            and _option(bus, ZMQ_TCP_MAXRT, BUS_SILENT_MS + BUS_HEARTBEAT_MS)
            and _option(bus, ZMQ_HANDSHAKE_IVL, BUS_CONNECT_MS)):
        return False
    # Not for each: libzmq would then look names up as IPv6 first, and listen at "*" where there may be none.
    if strchr(bus.endpoint, c"[") != NULL and not _option(bus, ZMQ_IPV6, 1):
        return False
    return not bus.curve or (_key(bus, ZMQ_CURVE_PUBLICKEY, bus.public_key)
                             and _key(bus, ZMQ_CURVE_SECRETKEY, bus.secret_key))


cdef bint _watch(Bus *bus, void *socket, int operation) noexcept nogil:
    """Watch what says that a socket of libzmq may have something, or no more."""
    cdef int fd = -1
    cdef size_t size = sizeof(fd)
    return bus.zmq.getsockopt(socket, ZMQ_FD, &fd, &size) == 0 \
        and poller_watch(bus.epoll_fd, fd, bus.tag, operation, EPOLLIN) == 0


cdef void _drop(Bus *bus, void **socket) noexcept nogil:
    if socket[0] != NULL:
        _watch(bus, socket[0], EPOLL_CTL_DEL)   # libzmq closes the descriptor some time later
        bus.zmq.close(socket[0])
        socket[0] = NULL


cdef bint _bind(Bus *bus) noexcept nogil:
    """Make the ROUTER, and before it who says which keys it lets in."""
    if bus.curve:
        bus.side = bus.zmq.socket(bus.context, ZMQ_REP)
        if bus.side == NULL or bus.zmq.bind(bus.side, b"inproc://zeromq.zap.01") != 0 \
                or not _watch(bus, bus.side, EPOLL_CTL_ADD):
            return False
    bus.socket = bus.zmq.socket(bus.context, ZMQ_ROUTER)
    if bus.socket == NULL or not _socket_set(bus) or not _option(bus, ZMQ_ROUTER_MANDATORY, 1) \
            or not _option(bus, ZMQ_ROUTER_HANDOVER, 1):
        return False
    if bus.curve and not (_option(bus, ZMQ_CURVE_SERVER, 1)
                          and bus.zmq.setsockopt(bus.socket, ZMQ_ZAP_DOMAIN, b"holdfast", 8) == 0):
        return False
    return bus.zmq.bind(bus.socket, bus.endpoint) == 0 and _watch(bus, bus.socket, EPOLL_CTL_ADD)


cdef bint _connect(Bus *bus) noexcept nogil:
    """Make a DEALER for one stream, and the monitor that tells of its beginning and its end."""
    cdef char name[32]
    bus.streams += 1
    snprintf(name, sizeof(name), b"inproc://stream-%u", bus.streams)
    bus.socket = bus.zmq.socket(bus.context, ZMQ_DEALER)
    bus.side = bus.zmq.socket(bus.context, ZMQ_PAIR)
    if bus.socket == NULL or bus.side == NULL or not _socket_set(bus):
        return False
    if not _option(bus, ZMQ_IMMEDIATE, 1) or not _option(bus, ZMQ_RECONNECT_IVL, -1) \
            or not _option(bus, ZMQ_CONNECT_TIMEOUT, BUS_CONNECT_MS):
        return False
    if bus.curve and not _key(bus, ZMQ_CURVE_SERVERKEY, bus.server_key):
        return False
    bus.zmq.setsockopt(bus.socket, ZMQ_IDENTITY, bus.named, bus.named_size)
    return bus.zmq.monitor(bus.socket, name, ENDS | ZMQ_EVENT_HANDSHAKE_SUCCEEDED) == 0 \
        and bus.zmq.connect(bus.side, name) == 0 and _watch(bus, bus.side, EPOLL_CTL_ADD) \
        and bus.zmq.connect(bus.socket, bus.endpoint) == 0 and _watch(bus, bus.socket, EPOLL_CTL_ADD)


cdef void _hang_up(Bus *bus) noexcept nogil:
    """The stream is over: nothing of it is sent or received any more."""
    cdef int now = 0
    bus.more = False
    bus.zmq.setsockopt(bus.socket, ZMQ_LINGER, &now, sizeof(now))
    _drop(bus, &bus.socket)
    _drop(bus, &bus.side)
    bus.ready = False
    bus.lost = bus.lost or bus.open
    bus.open = False
    bus.made = False


cdef void _monitor_read(Bus *bus) noexcept nogil:
    """What became of a DEALER's stream. An event is a number and a value in one part, the endpoint in another."""
    cdef uint8_t said[512]
    cdef uint16_t event
    cdef bint ended = False
    while bus.zmq.recv(bus.side, said, sizeof(said), ZMQ_DONTWAIT) >= 0:
        memcpy(&event, said, sizeof(event))
        bus.zmq.recv(bus.side, said, sizeof(said), ZMQ_DONTWAIT)
        if event == ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
            bus.open = True
            bus.made = bus.streams > 1      # who opened the bus knows of the first
        ended = ended or event & ENDS != 0
    if ended:
        _hang_up(bus)


cdef void _zap_answer(Bus *bus) noexcept nogil:
    """Let in who has the cluster's own key (RFC 27). A question: version, request, domain, address, identity,
    mechanism, credentials."""
    cdef uint8_t parts[8][256]
    cdef int sizes[8]
    cdef int place, more
    cdef size_t size = sizeof(more)
    cdef bint welcome
    while True:
        place = 0
        more = 1
        while more:
            sizes[min(place, 7)] = bus.zmq.recv(bus.side, parts[min(place, 7)], 256, ZMQ_DONTWAIT)
            if sizes[min(place, 7)] < 0:
                return
            place += 1
            bus.zmq.getsockopt(bus.side, ZMQ_RCVMORE, &more, &size)
        # One that is cut off here is longer than 256 bytes, and neither a request's number nor a key.
        welcome = place == 7 and sizes[5] == 5 and memcmp(parts[5], b"CURVE", 5) == 0 \
            and sizes[6] == BUS_KEY_BYTES and memcmp(parts[6], bus.public_key, BUS_KEY_BYTES) == 0
        bus.zmq.send(bus.side, b"1.0", 3, ZMQ_SNDMORE | ZMQ_DONTWAIT)
        bus.zmq.send(bus.side, parts[1], min(sizes[1], 256) if place > 1 else 0, ZMQ_SNDMORE | ZMQ_DONTWAIT)
        bus.zmq.send(bus.side, b"200" if welcome else b"400", 3, ZMQ_SNDMORE | ZMQ_DONTWAIT)
        bus.zmq.send(bus.side, b"", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT)
        bus.zmq.send(bus.side, b"", 0, ZMQ_SNDMORE | ZMQ_DONTWAIT)
        bus.zmq.send(bus.side, b"", 0, ZMQ_DONTWAIT)


cdef _keys_set(Bus *bus, bytes server_key, bytes public_key, bytes secret_key):
    """Raises ValueError when there are some and not all, or one is no key."""
    bus.curve = bool(public_key or secret_key or server_key)
    if not bus.curve:
        return
    server_key = b"" if bus.router else _z85(server_key)
    public_key, secret_key = _z85(public_key), _z85(secret_key)
    memcpy(bus.public_key, <const char *> public_key, BUS_KEY_BYTES)
    memcpy(bus.secret_key, <const char *> secret_key, BUS_KEY_BYTES)
    if not bus.router:
        memcpy(bus.server_key, <const char *> server_key, BUS_KEY_BYTES)


_DIGITS = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def _z85(bytes text):
    """The 32 bytes of a key in Z85 (RFC 32).

    Raises:
        ValueError: it is none.
    """
    digits = [_DIGITS.find(one) for one in text]
    if len(digits) != 40 or -1 in digits:
        raise ValueError("a key of the bus is 40 characters of Z85")
    key = b""
    for place in range(0, 40, 5):
        number = 0
        for digit in digits[place:place + 5]:
            number = number * 85 + digit
        if number > 0xFFFFFFFF:
            raise ValueError("a key of the bus is 40 characters of Z85")
        key += number.to_bytes(4)
    return key


cdef object bus_open(Bus *bus, Ledger *ledger, int kind, str endpoint, bytes identity, int epoll_fd,
                     uint64_t tag, bytes server_key=b"", bytes public_key=b"", bytes secret_key=b""):
    """Open a socket of `kind` and watch it in the loop's epoll: a ROUTER binds to `endpoint`, a DEALER of `identity`
    connects to it. With keys (Z85) both speak CURVE: `server_key` is the public one of the ROUTER.
    `tag` is that of its events; those of further descriptors follow it.

    Raises:
        OSError: the endpoint cannot be bound or connected.
        ImportError: there is no libzmq for a tcp:// endpoint.
        ValueError: a key is none.
    """
    bus.ledger = ledger
    bus.router = kind == ZMQ_ROUTER
    bus.native = endpoint.startswith("ipc://")
    if bus.native:
        peers_open(&bus.peers, ledger, bus.router, os.fsencode(endpoint.removeprefix("ipc://")), identity, epoll_fd,
                   tag)
        return
    where = endpoint.encode()
    if len(where) > BUS_ENDPOINT_BYTES_MAX or len(identity) > ZMTP_IDENTITY_BYTES_MAX:
        raise OSError(0, f"cannot open the bus at {endpoint}: its name is too long")
    _keys_set(bus, server_key, public_key, secret_key)
    _load(&bus.zmq)
    bus.context = bus.zmq.ctx_new()
    bus.epoll_fd = epoll_fd
    bus.tag = tag
    bus.again_after_ms = BUS_AGAIN_MS
    memcpy(bus.endpoint, <const char *> where, len(where) + 1)
    memcpy(bus.named, <const char *> identity, len(identity))
    bus.named_size = len(identity)
    if not (_bind(bus) if bus.router else _connect(bus)):
        raise OSError(bus.zmq.error(), f"cannot open the bus at {endpoint}")


cdef void bus_close(Bus *bus) noexcept:
    """Close socket and context; unsent batches are dropped, a worker's over libzmq after 200 ms."""
    peers_close(&bus.peers)
    _drop(bus, &bus.socket)                 # first: while it stands, somebody says whom it lets in
    _drop(bus, &bus.side)
    if bus.context != NULL:
        bus.zmq.ctx_term(bus.context)
        bus.context = NULL
    batch_free(&bus.aligned)


cdef void bus_on_event(Bus *bus, uint64_t tag, uint32_t events) noexcept nogil:
    """What epoll said of one of its tags."""
    if bus.native:
        peers_on_event(&bus.peers, tag, events)
        return
    bus.ready = bus.socket != NULL
    if bus.side != NULL and bus.router:
        _zap_answer(bus)
    elif bus.side != NULL:
        _monitor_read(bus)


cdef bint _align(Bus *bus, BusBatch *batch) noexcept nogil:
    """Move a batch to where its records may be read in place; False: out of memory."""
    cdef uint8_t *data
    batch_clear(&bus.aligned)
    bus.aligned.bytes_max = 0xFFFFFFFF
    data = batch_reserve(&bus.aligned, <uint32_t> batch.size) if batch.size <= 0x7FFFFFFF else NULL
    if data == NULL:
        return False
    memcpy(data, batch.data, batch.size)
    batch.data = data
    return True


cdef bint _zmq_receive(Bus *bus, BusBatch *batch) noexcept nogil:
    """The next part that libzmq has; at a ROUTER a message is the identity and then batches."""
    cdef int more = 0
    cdef size_t size = sizeof(more)
    if bus.socket == NULL:
        return False
    if bus.router and not bus.more:
        bus.zmq.msg_init(&bus.identity)
        if bus.zmq.msg_recv(&bus.identity, bus.socket, ZMQ_DONTWAIT) < 0:
            return False
    bus.zmq.msg_init(&bus.body)
    if bus.zmq.msg_recv(&bus.body, bus.socket, ZMQ_DONTWAIT) < 0:
        if bus.router:                      # an identity without a batch
            bus.more = False
            bus.zmq.msg_close(&bus.identity)
        return False
    bus.zmq.getsockopt(bus.socket, ZMQ_RCVMORE, &more, &size)
    bus.more = more != 0
    batch.data = <uint8_t *> bus.zmq.msg_data(&bus.body)
    batch.size = bus.zmq.msg_size(&bus.body)
    if <size_t> batch.data & 7 and not _align(bus, batch):
        batch.size = 0                      # out of memory: like a batch that was lost, which both sides get over
    batch.slot = 0
    if bus.router:
        batch.identity = <uint8_t *> bus.zmq.msg_data(&bus.identity)
        batch.identity_size = <uint32_t> bus.zmq.msg_size(&bus.identity)
    return True


cdef bint bus_receive(Bus *bus, BusBatch *batch) noexcept nogil:
    """The next batch, to be given back with bus_done before the next call; False: there is none now."""
    if not (peers_receive(&bus.peers, batch) if bus.native else _zmq_receive(bus, batch)):
        bus.ready = False
        return False
    ledger_acquire(bus.ledger, KIND_ZMQ_MESSAGE, 0, HERE)
    return True


cdef bint bus_lost(Bus *bus, uint8_t *identity, uint32_t *identity_size) noexcept nogil:
    """Whether a peer was lost, and at a ROUTER which; False: none that is known. libzmq's ROUTER is told by the peer
    that comes again."""
    cdef bint lost = bus.lost
    if bus.native:
        return peers_lost(&bus.peers, identity, identity_size)
    bus.lost = False
    return lost


cdef bint bus_tick(Bus *bus, uint64_t now_ms) noexcept nogil:
    """Connect again when it is time to; True: a new stream to the router was begun."""
    cdef bint made = bus.made
    if bus.native:
        return peers_tick(&bus.peers, now_ms)
    bus.made = False
    if made:
        bus.again_after_ms = BUS_AGAIN_MS
    if bus.socket != NULL and not bus.open and not bus.router:
        _monitor_read(bus)                  # libzmq wakes nobody for the first event before somebody looked for one
    if bus.socket != NULL or bus.router:
        return made
    if bus.again_ms == 0:
        bus.again_ms = now_ms + bus.again_after_ms
        bus.again_after_ms = min(bus.again_after_ms * 2, <uint32_t> BUS_AGAIN_MAX_MS)
    elif now_ms >= bus.again_ms:
        bus.again_ms = 0
        if not _connect(bus):               # out of files or memory
            _hang_up(bus)
    return made
