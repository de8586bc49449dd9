"""Bus: find libzmq, open and close a socket."""

import ctypes.util
import glob
import importlib.util
import os

from posix.dlfcn cimport RTLD_NOW, dlerror, dlopen, dlsym


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


cdef object bus_open(Bus *bus, int kind, bytes endpoint, bytes identity):
    """Open a socket of `kind`: a ROUTER binds to `endpoint`, a DEALER of `identity` connects to it.

    Raises:
        OSError: the endpoint cannot be bound or connected.
        ImportError: there is no libzmq.
    """
    cdef size_t size = sizeof(bus.fd)
    cdef int failed
    _load(&bus.zmq)
    bus.context = bus.zmq.ctx_new()
    bus.socket = bus.zmq.socket(bus.context, kind)
    if bus.socket == NULL:
        raise OSError(bus.zmq.error(), "zmq_socket failed")
    # A worker's last word (BYE) gets a moment to leave; without it the router waits for the worker's silence.
    _option(bus, ZMQ_LINGER, 200 if kind == ZMQ_DEALER else 0)
    _option(bus, ZMQ_SNDHWM, BUS_HWM)
    _option(bus, ZMQ_RCVHWM, BUS_HWM)
    if kind == ZMQ_ROUTER:
        _option(bus, ZMQ_ROUTER_MANDATORY, 1)
        _option(bus, ZMQ_ROUTER_HANDOVER, 1)
        failed = bus.zmq.bind(bus.socket, endpoint)
    else:
        _option(bus, ZMQ_RECONNECT_IVL, 20)
        _option(bus, ZMQ_RECONNECT_IVL_MAX, 200)
        bus.zmq.setsockopt(bus.socket, ZMQ_IDENTITY, <const char *> identity, len(identity))
        failed = bus.zmq.connect(bus.socket, endpoint)
    if failed:
        raise OSError(bus.zmq.error(), f"cannot open the bus at {endpoint.decode()}")
    if bus.zmq.getsockopt(bus.socket, ZMQ_FD, &bus.fd, &size) != 0:
        raise OSError(bus.zmq.error(), "zmq_getsockopt(ZMQ_FD) failed")


cdef void bus_close(Bus *bus) noexcept:
    """Close socket and context; unsent batches are dropped, a worker's after 200 ms."""
    if bus.socket != NULL:
        bus.zmq.close(bus.socket)
        bus.socket = NULL
    if bus.context != NULL:
        bus.zmq.ctx_term(bus.context)
        bus.context = NULL
