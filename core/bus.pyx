"""Bus: find libzmq, open and close a socket, receive."""

import ctypes.util
import glob
import importlib.util
import os

from libc.errno cimport errno
from libc.string cimport memcpy
from posix.dlfcn cimport RTLD_NOW, dlerror, dlopen, dlsym

from core.batch cimport batch_clear, batch_free, batch_reserve
from core.ledger cimport ledger_acquire
from core.peers cimport peers_close, peers_lost, peers_on_event, peers_open, peers_receive, peers_tick
from core.poller cimport EPOLL_CTL_ADD, EPOLLIN, poller_watch
from core.sites cimport HERE


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
    zmq.send = <int (*)(void *, const void *, size_t, int) noexcept nogil> _symbol(zmq.library, b"zmq_send")
    zmq.msg_init = <int (*)(ZmqMessage *) noexcept nogil> _symbol(zmq.library, b"zmq_msg_init")
    zmq.msg_recv = <int (*)(ZmqMessage *, void *, int) noexcept nogil> _symbol(zmq.library, b"zmq_msg_recv")
    zmq.msg_data = <void *(*)(ZmqMessage *) noexcept nogil> _symbol(zmq.library, b"zmq_msg_data")
    zmq.msg_size = <size_t (*)(ZmqMessage *) noexcept nogil> _symbol(zmq.library, b"zmq_msg_size")
    zmq.msg_close = <int (*)(ZmqMessage *) noexcept nogil> _symbol(zmq.library, b"zmq_msg_close")
    zmq.error = <int (*)() noexcept nogil> _symbol(zmq.library, b"zmq_errno")


cdef _option(Bus *bus, int option, int value):
    if bus.zmq.setsockopt(bus.socket, option, &value, sizeof(value)) != 0:
        raise OSError(bus.zmq.error(), f"zmq_setsockopt({option}) failed")


cdef _zmq_open(Bus *bus, str endpoint, bytes identity):
    cdef int failed
    _load(&bus.zmq)
    bus.context = bus.zmq.ctx_new()
    bus.socket = bus.zmq.socket(bus.context, ZMQ_ROUTER if bus.router else ZMQ_DEALER)
    if bus.socket == NULL:
        raise OSError(bus.zmq.error(), "zmq_socket failed")
    # A worker's last word (BYE) gets a moment to leave; without it the router waits for the worker's silence.
    _option(bus, ZMQ_LINGER, 0 if bus.router else 200)
    _option(bus, ZMQ_SNDHWM, BUS_HWM)
    _option(bus, ZMQ_RCVHWM, BUS_HWM)
    if bus.router:
        _option(bus, ZMQ_ROUTER_MANDATORY, 1)
        _option(bus, ZMQ_ROUTER_HANDOVER, 1)
        failed = bus.zmq.bind(bus.socket, endpoint.encode())
    else:
        _option(bus, ZMQ_RECONNECT_IVL, 20)
        _option(bus, ZMQ_RECONNECT_IVL_MAX, 200)
        bus.zmq.setsockopt(bus.socket, ZMQ_IDENTITY, <const char *> identity, len(identity))
        failed = bus.zmq.connect(bus.socket, endpoint.encode())
    if failed:
        raise OSError(bus.zmq.error(), f"cannot open the bus at {endpoint}")


cdef object bus_open(Bus *bus, Ledger *ledger, int kind, str endpoint, bytes identity, int epoll_fd, uint32_t tag):
    """Open a socket of `kind`: a ROUTER binds to `endpoint`, a DEALER of `identity` is to connect to it.

    A ROUTER is watched in the loop's epoll under `tag` and the numbers behind it; a DEALER takes two, and nothing
    happens before `bus_start`.

    Raises:
        OSError: the endpoint cannot be bound or connected.
        ImportError: there is no libzmq for a tcp:// endpoint.
    """
    bus.ledger = ledger
    bus.router = kind == ZMQ_ROUTER
    bus.tag = tag
    bus.epoll_fd = epoll_fd
    bus.native = endpoint.startswith("ipc://")
    if bus.native:
        peers_open(&bus.peers, ledger, bus.router, os.fsencode(endpoint.removeprefix("ipc://")), identity, epoll_fd,
                   tag)
        return
    _zmq_open(bus, endpoint, identity)
    if bus.router and bus_start(bus) < 0:
        raise OSError(errno, "epoll_ctl failed")


cdef int bus_start(Bus *bus) noexcept nogil:
    """Watch a DEALER in the loop's epoll, and have it connect; -1: it cannot be watched."""
    cdef int fd = -1
    cdef size_t size = sizeof(fd)
    if bus.native:
        peers_tick(&bus.peers, 1)
        return 0
    if bus.zmq.getsockopt(bus.socket, ZMQ_FD, &fd, &size) != 0:
        return -1
    return poller_watch(bus.epoll_fd, fd, bus.tag, EPOLL_CTL_ADD, EPOLLIN)


cdef void bus_close(Bus *bus) noexcept nogil:
    """Close socket and context; unsent batches are dropped, a worker's over libzmq after 200 ms."""
    peers_close(&bus.peers)
    if bus.socket != NULL:
        bus.zmq.close(bus.socket)
        bus.socket = NULL
    if bus.context != NULL:
        bus.zmq.ctx_term(bus.context)
        bus.context = NULL
    batch_free(&bus.aligned)


cdef void bus_on_event(Bus *bus, uint64_t tag, uint32_t events) noexcept nogil:
    """What epoll said of one of its tags."""
    if bus.native:
        peers_on_event(&bus.peers, tag, events)
    else:
        bus.ready = True


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
    """Whether a peer was lost, and at a ROUTER which; False: none that is known. libzmq tells nobody."""
    return bus.native and peers_lost(&bus.peers, identity, identity_size)


cdef bint bus_tick(Bus *bus, uint64_t now_ms) noexcept nogil:
    """Connect again when it is time to; True: a new stream to the router was begun."""
    return bus.native and peers_tick(&bus.peers, now_ms)
