# Bus: ZeroMQ from nogil code, through the libzmq that pyzmq brings.
#
# The library is opened by path and nine functions are looked up, so neither headers nor a link are needed, and a socket
# made here lives in the same library instance as pyzmq's. A worker's socket is DEALER, the router's ROUTER with
# ZMQ_ROUTER_MANDATORY (a plain one drops in silence at its high watermark); EAGAIN is back-pressure and the caller's to
# handle. ZMQ_FD is edge-triggered: ZMQ_EVENTS is read again after every send and every receive (libzmq zmq_getsockopt).

from libc.stdint cimport uint8_t, uint32_t

cdef enum:
    ZMQ_DEALER = 5
    ZMQ_ROUTER = 6
    ZMQ_DONTWAIT = 1
    ZMQ_SNDMORE = 2
    ZMQ_IDENTITY = 5
    ZMQ_RCVMORE = 13
    ZMQ_FD = 14
    ZMQ_EVENTS = 15
    ZMQ_LINGER = 17
    ZMQ_RECONNECT_IVL = 18
    ZMQ_SNDHWM = 23
    ZMQ_RCVHWM = 24
    ZMQ_RECONNECT_IVL_MAX = 21
    ZMQ_MAXMSGSIZE = 22
    ZMQ_ROUTER_MANDATORY = 33
    ZMQ_ROUTER_HANDOVER = 56
    ZMQ_POLLIN = 1
    ZMQ_POLLOUT = 2
    BUS_HWM = 1024              # batches under way on one link, each way

ctypedef struct ZmqMessage:     # zmq_msg_t: 64 opaque bytes, pointer-aligned
    void *opaque[8]

ctypedef struct Zmq:            # the functions, looked up once
    void *library
    void *(*ctx_new)() noexcept nogil
    int (*ctx_term)(void *) noexcept nogil
    void *(*socket)(void *, int) noexcept nogil
    int (*close)(void *) noexcept nogil
    int (*setsockopt)(void *, int, const void *, size_t) noexcept nogil
    int (*getsockopt)(void *, int, void *, size_t *) noexcept nogil
    int (*bind)(void *, const char *) noexcept nogil
    int (*connect)(void *, const char *) noexcept nogil
    int (*send)(void *, const void *, size_t, int) noexcept nogil
    int (*msg_init)(ZmqMessage *) noexcept nogil
    int (*msg_recv)(ZmqMessage *, void *, int) noexcept nogil
    void *(*msg_data)(ZmqMessage *) noexcept nogil
    size_t (*msg_size)(ZmqMessage *) noexcept nogil
    int (*msg_close)(ZmqMessage *) noexcept nogil
    int (*error)() noexcept nogil

ctypedef struct Bus:            # one socket
    Zmq zmq
    void *context               # owned
    void *socket                # owned
    int fd                      # borrowed from the socket: for epoll only


cdef inline int bus_events(Bus *bus) noexcept nogil:
    """ZMQ_POLLIN and ZMQ_POLLOUT as they are now; also what re-arms the edge-triggered fd."""
    cdef int events = 0
    cdef size_t size = sizeof(events)
    bus.zmq.getsockopt(bus.socket, ZMQ_EVENTS, &events, &size)
    return events


cdef inline bint bus_more(Bus *bus) noexcept nogil:
    """Whether the message just received has another part."""
    cdef int more = 0
    cdef size_t size = sizeof(more)
    bus.zmq.getsockopt(bus.socket, ZMQ_RCVMORE, &more, &size)
    return more != 0


cdef inline int bus_send(Bus *bus, const uint8_t *data, uint32_t size, int flags) noexcept nogil:
    """Send one part without waiting: 0, or the errno (EAGAIN: full; EHOSTUNREACH: no such peer)."""
    if bus.zmq.send(bus.socket, data, size, ZMQ_DONTWAIT | flags) >= 0:
        return 0
    return bus.zmq.error()


cdef object bus_open(Bus *bus, int kind, bytes endpoint, bytes identity)
cdef void bus_close(Bus *bus) noexcept
