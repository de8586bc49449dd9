"""Peers: connect, accept, shake hands, receive and send batches."""

from libc.errno cimport EAGAIN, ECONNABORTED, EHOSTUNREACH, EINTR, errno
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memmove, memset

from core.batch cimport batch_clear, batch_free, batch_reserve, batch_write
from core.ledger cimport KIND_FD, KIND_PEER, ledger_acquire, ledger_leaks, ledger_release
from core.poller cimport EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, poller_watch
from core.sites cimport HERE
from core.slab cimport invariant
from core.sockets cimport MSG_DONTWAIT, MSG_NOSIGNAL, iovec, msghdr, recv, send, sendmsg
from core.zmtp cimport (ZMTP_COMMAND, ZMTP_COMMAND_BYTES_MAX, ZMTP_GREETING_BYTES, ZMTP_HEADER_BYTES_MAX, ZmtpFrame,
                        zmtp_frame_read, zmtp_greeting_check, zmtp_greeting_write, zmtp_long_header_write,
                        zmtp_pong_write, zmtp_ready_read, zmtp_ready_write)

cdef extern from * nogil:
    """
    #include <string.h>
    #include <sys/socket.h>
    #include <sys/un.h>
    #include <unistd.h>
    static int holdfast_unix_socket(void) { return socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); }
    static struct sockaddr_un holdfast_unix_address(const char *path) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strncpy(address.sun_path, path, sizeof address.sun_path - 1);
        return address;
    }
    static int holdfast_unix_connect(const char *path) {
        struct sockaddr_un address = holdfast_unix_address(path);
        int fd = holdfast_unix_socket();
        if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address)) {
            close(fd);
            return -1;
        }
        return fd;
    }
    /* A socket file that nobody listens on is left over from a killed process, and in the way of bind. */
    static int holdfast_unix_listen(const char *path) {
        struct sockaddr_un address = holdfast_unix_address(path);
        int fd = holdfast_unix_socket();
        if (fd < 0) return -1;
        unlink(path);
        if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 256)) {
            close(fd);
            return -1;
        }
        return fd;
    }
    static int holdfast_unix_accept(int fd) { return accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC); }
    """
    int holdfast_unix_connect(const char *)
    int holdfast_unix_listen(const char *)
    int holdfast_unix_accept(int)
    int c_close "close"(int)
    int c_unlink "unlink"(const char *)


cdef object peers_open(Peers *peers, Ledger *ledger, bint router, bytes path, bytes identity, int epoll_fd,
                       uint64_t tag):
    """Listen at a path as a ROUTER, or connect to it as a DEALER of `identity`, now or as soon as somebody listens.

    Raises:
        OSError: the path is too long or cannot be bound.
        MemoryError: none is left.
    """
    if len(path) > PEER_PATH_BYTES_MAX:
        raise OSError(0, f"the bus's path is longer than {PEER_PATH_BYTES_MAX} bytes: {path.decode(errors='replace')}")
    peers.ledger = ledger
    peers.listen_fd = -1
    peers.epoll_fd = epoll_fd
    peers.tag = tag
    peers.slot_count = PEERS_MAX if router else 1
    peers.again_after_ms = PEER_AGAIN_MS
    memcpy(peers.path, <const char *> path, len(path) + 1)
    memcpy(peers.identity, <const char *> identity, len(identity))
    peers.identity_size = len(identity)
    peers.slots = <Peer *> calloc(peers.slot_count, sizeof(Peer))
    if peers.slots == NULL:
        raise MemoryError
    for slot in range(peers.slot_count):
        peers.slots[slot].fd = -1
        peers.slots[slot].received.bytes_max = PEER_BYTES_MAX
        peers.slots[slot].unsent.bytes_max = PEER_BYTES_MAX
    if not router:
        peers_tick(peers, 1)
        return
    peers.listen_fd = holdfast_unix_listen(peers.path)
    if peers.listen_fd < 0 or poller_watch(epoll_fd, peers.listen_fd, peers.tag, EPOLL_CTL_ADD, EPOLLIN) < 0:
        raise OSError(errno, f"cannot listen on the bus at {path.decode(errors='replace')}")
    ledger_acquire(ledger, KIND_FD, peers.listen_fd, HERE)


cdef void _let_go(Peers *peers, Peer *peer) noexcept nogil:
    """Close a peer's socket and free what it held."""
    if not ledger_leaks(peers.ledger, KIND_PEER):
        ledger_release(peers.ledger, KIND_PEER, peer.fd)
        c_close(peer.fd)
    peer.fd = -1
    batch_free(&peer.received)
    batch_free(&peer.unsent)
    peer.in_start = 0
    peer.out_start = 0
    peer.readable = 0
    peer.watched = 0
    peer.broken = 0


cdef void _lose(Peers *peers, Peer *peer) noexcept nogil:
    """A peer is gone or broke the protocol. One that was open is told of by `peers_lost`."""
    cdef bint told = peer.stage == PEER_OPEN
    _let_go(peers, peer)
    peer.stage = PEER_LOST if told else PEER_FREE
    peers.lost_count += told


cdef void peers_close(Peers *peers) noexcept nogil:
    """Close all sockets; a ROUTER's path goes with it."""
    cdef uint32_t slot
    if peers.slots == NULL:
        return
    for slot in range(peers.slot_count):
        if peers.slots[slot].fd >= 0:
            _let_go(peers, &peers.slots[slot])
    free(peers.slots)
    peers.slots = NULL
    if peers.listen_fd >= 0:
        ledger_release(peers.ledger, KIND_FD, peers.listen_fd)
        c_close(peers.listen_fd)
        c_unlink(peers.path)
        peers.listen_fd = -1


cdef void _watch(Peers *peers, Peer *peer, bint writing) noexcept nogil:
    if peer.watched != writing:
        peer.watched = writing
        poller_watch(peers.epoll_fd, peer.fd, peers.tag + 1 + <uint64_t> (peer - peers.slots), EPOLL_CTL_MOD,
                     EPOLLIN | EPOLLOUT if writing else EPOLLIN)


cdef void _break(Peers *peers, Peer *peer) noexcept nogil:
    """The stream takes nothing any more. What the peer said before it went is read first; its end shows there."""
    peer.broken = 1
    batch_free(&peer.unsent)
    peer.out_start = 0
    _watch(peers, peer, False)
    peer.readable = 1
    _enqueue(peers, <uint32_t> (peer - peers.slots))


cdef int _flush(Peers *peers, Peer *peer) noexcept nogil:
    """Send on what a socket did not take; -1: it takes nothing any more."""
    cdef ssize_t sent = 0
    if peer.unsent.size:
        sent = send(peer.fd, peer.unsent.data + peer.out_start, peer.unsent.size - peer.out_start,
                    MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent < 0 and errno != EAGAIN and errno != EINTR:
            return -1
        peer.out_start += <uint32_t> max(sent, 0)
    if peer.out_start == peer.unsent.size:
        batch_clear(&peer.unsent)
        peer.out_start = 0
        _watch(peers, peer, False)
    return 0


cdef int _say(Peers *peers, Peer *peer, const uint8_t *data, uint32_t size) noexcept nogil:
    """Send bytes of the handshake, behind whatever waits; -1: the peer is gone."""
    if batch_write(&peer.unsent, data, size) < 0:
        return -1
    _watch(peers, peer, True)
    return _flush(peers, peer)


cdef void _enqueue(Peers *peers, uint32_t slot) noexcept nogil:
    if not peers.slots[slot].queued:
        peers.slots[slot].queued = 1
        peers.queue[(peers.queue_first + peers.queue_count) % PEERS_MAX] = <uint16_t> slot
        peers.queue_count += 1


cdef uint32_t _dequeue(Peers *peers) noexcept nogil:
    cdef uint32_t slot = peers.queue[peers.queue_first]
    peers.queue_first = (peers.queue_first + 1) % PEERS_MAX
    peers.queue_count -= 1
    peers.slots[slot].queued = 0
    return slot


cdef bint _begin(Peers *peers, uint32_t slot, int fd) noexcept nogil:
    """A new stream in a free slot: watch it, say the greeting and READY at once; False: it failed and is closed."""
    cdef uint8_t words[ZMTP_GREETING_BYTES + ZMTP_COMMAND_BYTES_MAX]
    cdef Peer *peer = &peers.slots[slot]
    cdef uint32_t size
    invariant(peer.stage == PEER_FREE and peer.fd < 0)
    peer.fd = fd
    peer.stage = PEER_GREETING
    peer.identity_size = 0
    ledger_acquire(peers.ledger, KIND_PEER, fd, HERE)
    zmtp_greeting_write(words)
    size = ZMTP_GREETING_BYTES + zmtp_ready_write(words + ZMTP_GREETING_BYTES,
                                                  b"DEALER" if peers.listen_fd < 0 else b"ROUTER",
                                                  peers.identity, peers.identity_size)
    if poller_watch(peers.epoll_fd, fd, peers.tag + 1 + <uint64_t> slot, EPOLL_CTL_ADD, EPOLLIN) < 0 \
            or _say(peers, peer, words, size) < 0:
        _lose(peers, peer)
        return False
    return True


cdef void _accept(Peers *peers) noexcept nogil:
    """Take who waits at the listener; beyond PEERS_MAX they are closed at once."""
    cdef uint32_t slot
    cdef int fd
    while True:
        fd = holdfast_unix_accept(peers.listen_fd)
        if fd < 0:
            if errno == EINTR or errno == ECONNABORTED:
                continue
            if errno != EAGAIN:             # out of files: look again later instead of at once and for ever
                peers.paused = True
                poller_watch(peers.epoll_fd, peers.listen_fd, peers.tag, EPOLL_CTL_MOD, 0)
            return
        slot = 0
        while slot < peers.slot_count and peers.slots[slot].stage != PEER_FREE:
            slot += 1
        if slot == peers.slot_count:
            c_close(fd)
        else:
            _begin(peers, slot, fd)


cdef void peers_on_event(Peers *peers, uint64_t tag, uint32_t events) noexcept nogil:
    """What epoll said of one of these sockets."""
    cdef Peer *peer
    if tag == peers.tag:
        _accept(peers)
        return
    peer = &peers.slots[tag - peers.tag - 1]
    if peer.fd < 0:                         # closed earlier in this turn
        return
    if events & EPOLLOUT and _flush(peers, peer) < 0:
        _break(peers, peer)
    if events & ~<uint32_t> EPOLLOUT:
        peer.readable = 1
        _enqueue(peers, <uint32_t> (tag - peers.tag - 1))


cdef void _rest(Peers *peers, uint64_t now_ms) noexcept nogil:
    """A peer that was quiet since the last look gives its buffer back."""
    cdef uint32_t slot
    cdef Peer *peer
    peers.rested_ms = now_ms
    for slot in range(peers.slot_count):
        peer = &peers.slots[slot]
        if peer.busy:
            peer.busy = 0
        elif peer.received.capacity and peer.received.size == peer.in_start:
            batch_free(&peer.received)
            peer.in_start = 0


cdef bint peers_tick(Peers *peers, uint64_t now_ms) noexcept nogil:
    """Connect again, or listen again, when it is time to. True: a new stream was begun."""
    if now_ms - peers.rested_ms >= PEER_REST_MS:
        _rest(peers, now_ms)
    if now_ms < peers.again_ms:
        return False
    if peers.listen_fd >= 0:
        peers.again_ms = now_ms + PEER_AGAIN_MAX_MS
        if peers.paused:
            peers.paused = False
            poller_watch(peers.epoll_fd, peers.listen_fd, peers.tag, EPOLL_CTL_MOD, EPOLLIN)
        return False
    if peers.slots[0].stage != PEER_FREE:
        return False
    peers.again_ms = now_ms + peers.again_after_ms
    peers.again_after_ms = min(peers.again_after_ms * 2, <uint32_t> PEER_AGAIN_MAX_MS)
    cdef int fd = holdfast_unix_connect(peers.path)
    return fd >= 0 and _begin(peers, 0, fd)


cdef void _name(Peers *peers, Peer *peer, const uint8_t *identity, uint32_t size) noexcept nogil:
    """Give a peer its identity: its own, or a made-up one with a zero byte in front, as ZeroMQ does. An older stream of
    the same identity ends: the newer one knows that it is the one in use."""
    cdef uint32_t slot
    cdef Peer *other
    if size == 0:
        peers.unnamed += 1
        peer.identity[0] = 0
        memcpy(peer.identity + 1, &peers.unnamed, 4)
        peer.identity_size = 5
        return
    for slot in range(peers.slot_count):
        other = &peers.slots[slot]
        if other.stage == PEER_OPEN and other.identity_size == size and memcmp(other.identity, identity, size) == 0:
            _lose(peers, other)
    memcpy(peer.identity, identity, size)
    peer.identity_size = size


cdef int _command(Peers *peers, Peer *peer, const uint8_t *body, uint32_t size) noexcept nogil:
    """READY opens the peer, PING is answered, other commands are passed over; -1: broken, or the peer is gone."""
    cdef uint8_t answer[64]
    cdef const uint8_t *identity
    cdef uint32_t identity_size
    if peer.stage == PEER_HANDSHAKE:
        if zmtp_ready_read(body, size, &identity, &identity_size) < 0:
            return -1
        if peers.listen_fd >= 0:
            _name(peers, peer, identity, identity_size)
        peer.stage = PEER_OPEN
        peers.again_after_ms = PEER_AGAIN_MS
        return 0
    size = zmtp_pong_write(answer, body, size)
    return _say(peers, peer, answer, size) if size else 0


cdef int _take(Peers *peers, Peer *peer, ZmtpFrame *frame, BusBatch *batch) noexcept nogil:
    """One whole frame at the front of what was received: 1 a batch, 0 a command that was acted on, -1 broken."""
    cdef uint8_t *body = peer.received.data + peer.in_start + frame.header
    peer.in_start += frame.header + <uint32_t> frame.size
    if frame.flags & ZMTP_COMMAND:
        return _command(peers, peer, body, <uint32_t> frame.size)
    if peer.stage != PEER_OPEN:
        return -1
    batch.data = <uint8_t *> (<size_t> body & ~<size_t> 7)      # over the header, which was read
    if batch.data != body:
        memmove(batch.data, body, frame.size)
    batch.size = frame.size
    batch.identity = peer.identity
    batch.identity_size = peer.identity_size
    batch.slot = <uint32_t> (peer - peers.slots)
    return 1


cdef int _cut(Peers *peers, Peer *peer, BusBatch *batch) noexcept nogil:
    """The next batch of what was received: 1, 0 when more bytes are wanted, -1 when this is no ZeroMQ peer."""
    cdef ZmtpFrame frame
    cdef uint32_t left
    cdef int got
    while True:
        left = peer.received.size - peer.in_start
        if peer.stage == PEER_GREETING:
            if left < ZMTP_GREETING_BYTES:
                return 0
            if zmtp_greeting_check(peer.received.data + peer.in_start) < 0:
                return -1
            peer.in_start += ZMTP_GREETING_BYTES
            peer.stage = PEER_HANDSHAKE
            continue
        got = zmtp_frame_read(peer.received.data + peer.in_start, left, &frame)
        if got <= 0:
            return got
        if frame.size > PEER_BYTES_MAX - 64 or (frame.flags & ZMTP_COMMAND and frame.size > ZMTP_COMMAND_BYTES_MAX):
            return -1
        if left < frame.header + frame.size:
            return 0
        got = _take(peers, peer, &frame, batch)
        if got:
            return got


cdef int _receive(Peers *peers, Peer *peer) noexcept nogil:
    """One recv behind what is left of the last; -1: the peer is gone."""
    cdef uint32_t held = peer.received.size - peer.in_start
    cdef uint32_t room = max(held, <uint32_t> PEER_RECEIVE_BYTES)       # a large batch takes few calls
    cdef uint8_t *target
    cdef ssize_t got
    peer.busy = 1
    if peer.in_start:
        if held:
            memmove(peer.received.data, peer.received.data + peer.in_start, held)
            peer.received.size = held
        else:
            batch_clear(&peer.received)
        peer.in_start = 0
    target = batch_reserve(&peer.received, room)
    if target == NULL:
        return -1
    got = recv(peer.fd, target, room, MSG_DONTWAIT)
    peer.received.size = held + <uint32_t> max(got, 0)
    if got < <ssize_t> room:
        peer.readable = 0                   # the socket is empty, or at its end: then epoll says so again
    if got == 0 or (got < 0 and errno != EAGAIN and errno != EINTR):
        return -1
    return 0


cdef bint peers_receive(Peers *peers, BusBatch *batch) noexcept nogil:
    """The next batch of any peer, in turns; False: there is none now. The views end with the next call."""
    cdef uint32_t slot
    cdef Peer *peer
    cdef int got
    while peers.queue_count:
        slot = peers.queue[peers.queue_first]
        peer = &peers.slots[slot]
        got = -1 if peer.fd < 0 else _cut(peers, peer, batch)
        if got > 0:
            return True
        _dequeue(peers)
        if peer.fd < 0:
            continue
        if got == 0 and peer.readable:
            got = _receive(peers, peer)
            if got == 0:
                _enqueue(peers, slot)       # behind the others: nobody keeps the socket to himself
        if got < 0:
            _lose(peers, peer)
    return False


cdef Peer *_peer_of(Peers *peers, const uint8_t *identity, uint32_t size, uint32_t hint) noexcept nogil:
    """The open peer of an identity, looked for at `hint` first; a DEALER has only one. NULL: there is none."""
    cdef Peer *peer
    cdef uint32_t slot
    if peers.listen_fd < 0:
        return &peers.slots[0] if peers.slots[0].stage == PEER_OPEN else NULL
    for slot in range(peers.slot_count + 1):
        peer = &peers.slots[(hint if slot == 0 else slot - 1) % peers.slot_count]
        if peer.stage == PEER_OPEN and peer.identity_size == size and memcmp(peer.identity, identity, size) == 0:
            return peer
    return NULL


cdef int peers_send(Peers *peers, const uint8_t *identity, uint32_t identity_size, uint32_t slot,
                    const uint8_t *data, uint32_t size) noexcept nogil:
    """Send one batch without waiting: 0, EAGAIN (the socket is full, or a DEALER is not connected) or EHOSTUNREACH."""
    cdef uint8_t header[ZMTP_HEADER_BYTES_MAX]
    cdef iovec pieces[2]
    cdef msghdr message
    cdef ssize_t sent
    cdef uint32_t rest
    cdef Peer *peer = _peer_of(peers, identity, identity_size, slot)
    if peer == NULL:
        return EAGAIN if peers.listen_fd < 0 else EHOSTUNREACH
    if peer.unsent.size or peer.broken:
        return EAGAIN
    zmtp_long_header_write(header, size)
    pieces[0].iov_base = header
    pieces[0].iov_len = ZMTP_HEADER_BYTES_MAX
    pieces[1].iov_base = <void *> data
    pieces[1].iov_len = size
    memset(&message, 0, sizeof(message))
    message.msg_iov = pieces
    message.msg_iovlen = 2
    sent = sendmsg(peer.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
    if sent < 0:
        if errno == EAGAIN or errno == EINTR:
            _watch(peers, peer, True)
        else:
            _break(peers, peer)
        return EAGAIN
    if <size_t> sent == size + ZMTP_HEADER_BYTES_MAX:
        return 0
    rest = ZMTP_HEADER_BYTES_MAX - <uint32_t> sent if sent < ZMTP_HEADER_BYTES_MAX else 0
    sent = 0 if rest else sent - ZMTP_HEADER_BYTES_MAX
    if (rest and batch_write(&peer.unsent, header + ZMTP_HEADER_BYTES_MAX - rest, rest) < 0) \
            or batch_write(&peer.unsent, data + sent, size - <uint32_t> sent) < 0:
        _lose(peers, peer)                  # out of memory: half a frame is no use to anybody
        return EAGAIN if peers.listen_fd < 0 else EHOSTUNREACH
    _watch(peers, peer, True)
    return 0


cdef bint peers_lost(Peers *peers, uint8_t *identity, uint32_t *identity_size) noexcept nogil:
    """The identity (up to ZMTP_IDENTITY_BYTES_MAX bytes) of a peer that was open and is gone; False: no more."""
    cdef uint32_t slot
    cdef Peer *peer
    if peers.lost_count == 0:
        return False
    for slot in range(peers.slot_count):
        peer = &peers.slots[slot]
        if peer.stage == PEER_LOST:
            peer.stage = PEER_FREE
            peers.lost_count -= 1
            memcpy(identity, peer.identity, peer.identity_size)
            identity_size[0] = peer.identity_size
            return True
    return False
