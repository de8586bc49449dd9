# Peers: a ZeroMQ socket of our own over unix sockets, DEALER or ROUTER, driven by the loop that uses it.
#
# libzmq moves every message through a thread of its own at each end: eight system calls and four wake-ups a batch and
# hop (docs/adr/0004). Here the loop's thread writes and reads the stream itself: one sendmsg, one recv. The bytes are
# ZMTP (zmtp.pxd), so a peer may be libzmq's as well, as the supervisor's is. What a socket does not take waits here up
# to one batch, and the next send says EAGAIN. A DEALER whose peer is gone connects again; a ROUTER tells which peers it
# lost, so that nobody waits for them. Invariant: a slot with a descriptor is in the loop's epoll under `tag` + 1 + its
# number; a slot in the queue is there once.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from core.batch cimport Batch
from core.ledger cimport Ledger
from core.zmtp cimport ZMTP_IDENTITY_BYTES_MAX

cdef enum:
    PEERS_MAX = 512             # at a ROUTER: workers, supervisors, and those that just connect
    PEER_RECEIVE_BYTES = 16384  # asked of one recv at least
    PEER_BYTES_MAX = 0x7FFFFFFF  # of one batch
    PEER_AGAIN_MS = 20          # between two attempts to connect, doubling up to the next
    PEER_AGAIN_MAX_MS = 200
    PEER_REST_MS = 1000         # between two looks at who is quiet
    PEER_PATH_BYTES_MAX = 107   # sun_path less its terminating zero

cdef enum PeerStage:
    PEER_FREE
    PEER_GREETING               # its greeting is not complete
    PEER_HANDSHAKE              # its READY has not come
    PEER_OPEN
    PEER_LOST                   # its end has not been told yet; only the identity is left

ctypedef struct Peer:
    int32_t fd                  # owned; -1: none
    uint8_t stage
    uint8_t readable            # bytes may wait in the socket
    uint8_t queued              # in the queue of those to be looked at
    uint8_t watched             # EPOLLOUT is on
    uint8_t broken              # it takes nothing any more; it is read to its end
    uint8_t busy                # something was received since the last look at who is quiet
    uint32_t identity_size
    uint32_t in_start           # bytes of `received` that were used
    uint32_t out_start          # bytes of `unsent` that were sent
    Batch received              # owned
    Batch unsent                # owned: the rest of what was sent last
    uint8_t identity[ZMTP_IDENTITY_BYTES_MAX + 1]

ctypedef struct Peers:
    Ledger *ledger              # borrowed
    Peer *slots                 # owned; one for a DEALER, PEERS_MAX for a ROUTER
    uint32_t slot_count
    int32_t epoll_fd            # borrowed from the loop
    uint64_t tag                # of its listener; of its slots, the numbers behind it
    int32_t listen_fd           # owned; -1 at a DEALER
    uint16_t queue[PEERS_MAX]   # ring of slots to be looked at
    uint32_t queue_first
    uint32_t queue_count
    uint32_t lost_count         # slots in PEER_LOST
    uint32_t unnamed            # number for the next peer without an identity
    uint64_t again_ms           # when to try next: to connect, or to accept after an error
    uint32_t again_after_ms
    uint64_t rested_ms          # when it was last looked at who is quiet
    bint paused                 # the listener is not watched after an error
    uint8_t identity[ZMTP_IDENTITY_BYTES_MAX + 1]
    uint32_t identity_size
    char path[PEER_PATH_BYTES_MAX + 1]

ctypedef struct BusBatch:       # one batch as received: views until the next receive
    uint8_t *data               # 8-byte aligned
    size_t size
    const uint8_t *identity     # of who sent it, at a ROUTER
    uint32_t identity_size
    uint32_t slot               # a hint for sending to it


cdef inline bint peers_pending(Peers *peers) noexcept nogil:
    """Whether `peers_receive` may have something without another wait."""
    return peers.queue_count > 0


cdef object peers_open(Peers *peers, Ledger *ledger, bint router, bytes path, bytes identity, int epoll_fd,
                       uint64_t tag)
cdef void peers_close(Peers *peers) noexcept nogil
cdef void peers_on_event(Peers *peers, uint64_t tag, uint32_t events) noexcept nogil
cdef bint peers_receive(Peers *peers, BusBatch *batch) noexcept nogil
cdef int peers_send(Peers *peers, const uint8_t *identity, uint32_t identity_size, uint32_t slot,
                    const uint8_t *data, uint32_t size) noexcept nogil
cdef bint peers_lost(Peers *peers, uint8_t *identity, uint32_t *identity_size) noexcept nogil
cdef bint peers_tick(Peers *peers, uint64_t now_ms) noexcept nogil
