# Bus: ZeroMQ between worker and router, from nogil code.
#
# Two sides behind the same verbs. ipc:// endpoints are served by our own stream of ZMTP (peers.pxd): the loop's thread
# writes and reads the socket itself. tcp:// endpoints go through the libzmq that pyzmq brings: opened by path, nine
# functions looked up, so neither headers nor a link are needed, and a socket made here lives in the same library
# instance as pyzmq's. A worker's socket is DEALER, the router's ROUTER; a ROUTER's send to a peer that is not there
# says EHOSTUNREACH (libzmq: ZMQ_ROUTER_MANDATORY, a plain one drops in silence), and EAGAIN is back-pressure and the
# caller's to handle. libzmq's ZMQ_FD is edge-triggered: ZMQ_EVENTS is read again after every send and every receive.
#
# libzmq connects again by itself, and then nobody knows what was lost, or sends what waited behind something that was.
# So a DEALER here has a socket for each stream, which a monitor tells the end of, and a new one is made for the next:
# what is sent goes by the stream that it was meant for, or not at all. Both ends send heartbeats, so that a stream over
# a network that is cut ends within BUS_HEARTBEAT_MS + BUS_SILENT_MS. With keys both ends speak CURVE; all peers of a
# cluster have one pair, and a ROUTER lets in nobody else (ZAP, RFC 27).

from libc.errno cimport EAGAIN
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from core.batch cimport Batch
from core.ledger cimport KIND_ZMQ_MESSAGE, Ledger, ledger_leaks, ledger_release
from core.peers cimport BusBatch, Peers, peers_pending, peers_send
from core.zmtp cimport ZMTP_IDENTITY_BYTES_MAX

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
    ZMQ_IMMEDIATE = 39
    ZMQ_IPV6 = 42
    ZMQ_CURVE_SERVER = 47
    ZMQ_CURVE_PUBLICKEY = 48
    ZMQ_CURVE_SECRETKEY = 49
    ZMQ_CURVE_SERVERKEY = 50
    ZMQ_ZAP_DOMAIN = 55
    ZMQ_ROUTER_HANDOVER = 56
    ZMQ_HANDSHAKE_IVL = 66
    ZMQ_HEARTBEAT_IVL = 75
    ZMQ_HEARTBEAT_TIMEOUT = 77
    ZMQ_CONNECT_TIMEOUT = 79
    ZMQ_TCP_MAXRT = 80
    ZMQ_POLLIN = 1
    ZMQ_POLLOUT = 2
    ZMQ_EVENT_CLOSED = 0x0080
    ZMQ_EVENT_DISCONNECTED = 0x0200
    ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL = 0x0800
    ZMQ_EVENT_HANDSHAKE_SUCCEEDED = 0x1000
    ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL = 0x2000
    ZMQ_EVENT_HANDSHAKE_FAILED_AUTH = 0x4000
    ZMQ_PAIR = 0
    ZMQ_REP = 4
    BUS_HWM = 1024              # batches under way on one link, each way
    BUS_HEARTBEAT_MS = 500      # between two of libzmq's own heartbeats
    BUS_SILENT_MS = 1500        # a stream without an answer to one for so long is over
    BUS_CONNECT_MS = 1000       # an attempt to connect takes so long at most, and so does its handshake
    BUS_AGAIN_MS = 20           # between two attempts, doubling up to the next
    BUS_AGAIN_MAX_MS = 200
    BUS_KEY_BYTES = 32          # a CURVE key; 40 characters in Z85
    BUS_ENDPOINT_BYTES_MAX = 255

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
    int (*monitor)(void *, const char *, int) noexcept nogil
    int (*recv)(void *, void *, size_t, int) noexcept nogil
    int (*send)(void *, const void *, size_t, int) noexcept nogil
    int (*msg_init)(ZmqMessage *) noexcept nogil
    int (*msg_recv)(ZmqMessage *, void *, int) noexcept nogil
    void *(*msg_data)(ZmqMessage *) noexcept nogil
    size_t (*msg_size)(ZmqMessage *) noexcept nogil
    int (*msg_close)(ZmqMessage *) noexcept nogil
    int (*error)() noexcept nogil

ctypedef struct Bus:            # one socket
    Ledger *ledger              # borrowed
    bint native                 # `peers` is in use, and nothing of libzmq
    bint router
    bint more                   # libzmq: another part of the message of `identity` follows
    bint ready                  # libzmq: the descriptor was told of, or ZMQ_EVENTS said so
    Peers peers                 # owned
    Zmq zmq
    void *context               # owned
    void *socket                # owned
    ZmqMessage identity         # owned while `more`: whom the parts are from
    ZmqMessage body             # owned until bus_done
    Batch aligned               # owned: libzmq's bytes begin anywhere, records at multiples of 8
    void *side                  # owned; at a ROUTER with keys: answers ZAP's questions; at a DEALER: the monitor
    int32_t epoll_fd            # borrowed from the loop
    uint64_t tag                # of all descriptors of this bus
    bint made                   # DEALER: its stream is there, and `bus_tick` has not said so
    bint open                   # DEALER: its stream was made
    bint lost                   # DEALER: its stream ended, and `bus_lost` has not said so
    uint32_t streams            # DEALER: begun so far
    uint32_t again_after_ms
    uint64_t again_ms           # DEALER without a socket: when to connect again
    bint curve                  # the keys are there
    uint8_t public_key[BUS_KEY_BYTES]
    uint8_t secret_key[BUS_KEY_BYTES]
    uint8_t server_key[BUS_KEY_BYTES]   # DEALER
    uint8_t named[ZMTP_IDENTITY_BYTES_MAX]  # DEALER: its own identity
    uint32_t named_size
    char endpoint[BUS_ENDPOINT_BYTES_MAX + 1]


cdef inline int bus_events(Bus *bus) noexcept nogil:
    """libzmq's ZMQ_POLLIN and ZMQ_POLLOUT as they are now; also what re-arms the edge-triggered descriptor."""
    cdef int events = 0
    cdef size_t size = sizeof(events)
    bus.zmq.getsockopt(bus.socket, ZMQ_EVENTS, &events, &size)
    return events


cdef inline bint bus_pending(Bus *bus) noexcept nogil:
    """Whether something may be received without another wait; to be asked after the last send of a turn."""
    if bus.native:
        return peers_pending(&bus.peers)
    return bus.ready or (bus.socket != NULL and (bus_events(bus) & ZMQ_POLLIN) != 0)


cdef inline int bus_send(Bus *bus, const uint8_t *identity, uint32_t identity_size, uint32_t slot,
                         const uint8_t *data, uint32_t size) noexcept nogil:
    """Send one batch without waiting, at a ROUTER to the peer of an identity (`slot`: where it was seen last).

    0, or EAGAIN (full), or EHOSTUNREACH (no such peer).
    """
    if bus.native:
        return peers_send(&bus.peers, identity, identity_size, slot, data, size)
    if bus.socket == NULL:
        return EAGAIN
    if bus.router and bus.zmq.send(bus.socket, identity, identity_size, ZMQ_DONTWAIT | ZMQ_SNDMORE) < 0:
        return bus.zmq.error()
    return 0 if bus.zmq.send(bus.socket, data, size, ZMQ_DONTWAIT) >= 0 else bus.zmq.error()


cdef inline void bus_done(Bus *bus) noexcept nogil:
    """The batch that was received last is not needed any more."""
    if ledger_leaks(bus.ledger, KIND_ZMQ_MESSAGE):
        return
    if not bus.native:
        bus.zmq.msg_close(&bus.body)
        if bus.router and not bus.more:
            bus.zmq.msg_close(&bus.identity)
    ledger_release(bus.ledger, KIND_ZMQ_MESSAGE, 0)


cdef object bus_open(Bus *bus, Ledger *ledger, int kind, str endpoint, bytes identity, int epoll_fd,
                     uint64_t tag, bytes server_key=*, bytes public_key=*, bytes secret_key=*)
cdef void bus_close(Bus *bus) noexcept
cdef void bus_on_event(Bus *bus, uint64_t tag, uint32_t events) noexcept nogil
cdef bint bus_receive(Bus *bus, BusBatch *batch) noexcept nogil
cdef bint bus_lost(Bus *bus, uint8_t *identity, uint32_t *identity_size) noexcept nogil
cdef bint bus_tick(Bus *bus, uint64_t now_ms) noexcept nogil
