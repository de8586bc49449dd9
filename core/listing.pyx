"""Listing: one turn of a listing, and how queries and records look to Python."""

from libc.stdint cimport uint16_t
from libc.string cimport memcmp, memcpy, memset

from core.batch cimport batch_clear, batch_write
from core.conn cimport (ASIDE_NONE, FLAG_ENCODED, FLAG_TLS, FLAG_WEBSOCKET, FORM_WS_TEXT, STATE_CLOSED, STATE_CLOSING,
                        STATE_COUNT, Aside, Connection, conn_aside_at, conn_get, conn_handle, conn_live,
                        conn_memberships)
from core.edge cimport NAME_BYTES_MAX, NONE, Channel, edge_random, edge_tick
from core.fanout cimport channel_at, channel_find, conn_user
from core.lifecycle cimport edge_fin_sized
from core.mailbox cimport NOTE_LISTED, NOTE_RECLAIM, mailbox_put
from core.mpack cimport (MpWriter, mp_write_array, mp_write_bin, mp_write_bool, mp_write_nil, mp_write_str,
                         mp_write_uint)
from core.namespaces cimport DOMAIN_GLOBAL, USER_PREFIX_BYTES, domain_in
from core.slab cimport SlabChunk, invariant, slab_at
from core.vitals cimport RTT_UNKNOWN, Vital, vital_of
from core.wheel cimport WHEEL_TICK_MS

cdef extern from * nogil:
    """
    #include <netinet/in.h>
    #include <string.h>
    #include <sys/socket.h>
    /* The peer of a socket, IPv4 mapped; 0 when it has none of these. */
    static inline int holdfast_peer(int fd, unsigned char *address) {
        struct sockaddr_storage peer;
        socklen_t size = sizeof(peer);
        if (getpeername(fd, (struct sockaddr *)&peer, &size) < 0)
            return 0;
        if (peer.ss_family == AF_INET6) {
            memcpy(address, &((struct sockaddr_in6 *)&peer)->sin6_addr, 16);
            return ntohs(((struct sockaddr_in6 *)&peer)->sin6_port);
        }
        if (peer.ss_family != AF_INET)
            return 0;
        memset(address, 0, 10);
        memset(address + 10, 0xff, 2);
        memcpy(address + 12, &((struct sockaddr_in *)&peer)->sin_addr, 4);
        return ntohs(((struct sockaddr_in *)&peer)->sin_port);
    }
    """
    int holdfast_peer(int, uint8_t *)

ctypedef struct Walk:           # one turn's part of a listing
    Edge *edge
    ListQuery query
    uint32_t user               # index of the user's channel, NONE: there is none here
    uint32_t channel            # index, NONE: it has no members here, or every session is one
    bint everybody              # the channel is one of the global domain
    uint64_t members            # of the channel that is asked for
    uint32_t tick
    uint32_t records
    uint32_t peers              # that the kernel was asked for
    bint reclaim
    int code
    uint32_t after_ms
    const char *reason          # borrowed from the note
    uint32_t reason_size

FIELDS = ("conn", "was", "user", "session", "address", "port", "websocket", "json", "encoded", "tls", "created",
          "heard", "sent", "rtt_ms", "lost_heartbeats", "queued_bytes", "memberships", "requests", "state", "reason",
          "device")
SLOTS_A_TURN = SLOTS_MAX
RECORDS_A_TURN = RECORDS_MAX
PEERS_A_TURN = PEERS_MAX
END = <uint32_t> LIST_END
TICK_MS = WHEEL_TICK_MS
ANY_STATE = (1 << STATE_CLOSED) - 1
assert sizeof(ListQuery) == 72 and STATE_COUNT <= 8


cdef uint16_t _peer(Walk *walk, Connection *conn, uint8_t *address) noexcept nogil:
    """Where the client is: as a PROXY header told it, else the socket's peer. Its port; 0: nobody knows."""
    cdef Aside *aside
    if conn.aside != ASIDE_NONE:
        aside = conn_aside_at(&walk.edge.asides, conn)
        if aside.port:
            memcpy(address, aside.address, 16)
            return aside.port
    walk.peers += 1
    return <uint16_t> holdfast_peer(conn.fd, address)


cdef bint _is_member(Walk *walk, Connection *conn) noexcept nogil:
    """By the channel's index alone: RECLAIM may have ended its last member, and the channel with it."""
    cdef uint32_t slot
    if walk.everybody:
        return conn.membership_count != 0
    for slot in range(conn.membership_count):
        if conn_memberships(conn)[slot].channel == walk.channel:
            return True
    return False


cdef bint _fits(Walk *walk, Connection *conn) noexcept nogil:
    """Whether a live connection is one of those asked for; the dearest question comes last."""
    cdef ListQuery *query = &walk.query
    cdef uint8_t address[16]
    if not (query.states >> conn.state) & 1 or conn.queued_bytes < query.queued_bytes \
            or walk.tick - conn.last_heard < query.idle:
        return False
    if query.by_session and memcmp(conn.session, query.session, 16) != 0:
        return False
    if query.by_user and (conn.membership_count == 0 or conn_memberships(conn)[0].channel != walk.user):
        return False
    if query.by_channel and not _is_member(walk, conn):
        return False
    if query.by_device and vital_of(walk.edge, conn).device != query.device:
        return False
    if query.older and walk.tick - vital_of(walk.edge, conn).created < query.older:
        return False
    return not query.by_address \
        or (_peer(walk, conn, address) and memcmp(address, query.address, 16) == 0)


cdef void _write_session(MpWriter *writer, Edge *edge, Connection *conn) noexcept nogil:
    """The user, while the session is open, and the session's id once it has one."""
    cdef uint8_t nothing[16]
    cdef const char *user
    cdef uint32_t size = 0
    if conn.membership_count:
        user = conn_user(edge, conn, &size)
        mp_write_str(writer, user, size)
    else:
        mp_write_nil(writer)
    memset(nothing, 0, 16)
    if memcmp(conn.session, nothing, 16) != 0:
        mp_write_bin(writer, conn.session, 16)
    else:
        mp_write_nil(writer)


cdef void _write_vital(MpWriter *writer, const Vital *vital, Connection *conn) noexcept nogil:
    mp_write_uint(writer, vital.created)
    mp_write_uint(writer, conn.last_heard)
    mp_write_uint(writer, conn.last_sent)
    if vital.rtt_ms == RTT_UNKNOWN:
        mp_write_nil(writer)
    else:
        mp_write_uint(writer, vital.rtt_ms)
    mp_write_uint(writer, vital.lost)


cdef void _take(Walk *walk, Connection *conn) noexcept nogil:
    """Pack one connection's record and, for RECLAIM, end it in between: FIN, and all that follows from it."""
    cdef Edge *edge = walk.edge
    cdef uint8_t body[RECORD_BYTES_MAX]
    cdef uint8_t address[16]
    cdef MpWriter writer
    cdef uint16_t port
    memset(address, 0, 16)
    port = _peer(walk, conn, address)
    writer.p = body
    writer.end = body + sizeof(body)
    writer.overflow = False
    mp_write_array(&writer, 21)
    mp_write_uint(&writer, conn_handle(conn))
    mp_write_uint(&writer, conn.state)
    _write_session(&writer, edge, conn)
    mp_write_bin(&writer, address, 16)
    mp_write_uint(&writer, port)
    mp_write_bool(&writer, conn.flags & FLAG_WEBSOCKET)
    mp_write_bool(&writer, conn.form == FORM_WS_TEXT)
    mp_write_bool(&writer, conn.flags & FLAG_ENCODED or not conn.flags & FLAG_WEBSOCKET)
    mp_write_bool(&writer, conn.flags & FLAG_TLS)
    _write_vital(&writer, vital_of(edge, conn), conn)
    mp_write_uint(&writer, conn.queued_bytes)
    mp_write_uint(&writer, conn.membership_count)
    mp_write_uint(&writer, conn.under_way)
    if walk.reclaim and conn.state < STATE_CLOSING:
        edge_fin_sized(edge, conn, walk.code, walk.reason, walk.reason_size,
                       walk.after_ms + edge_random(edge, walk.after_ms // 2 + 1))
    mp_write_uint(&writer, conn.state)
    mp_write_uint(&writer, conn.reason)
    mp_write_uint(&writer, vital_of(edge, conn).device)
    invariant(not writer.overflow)
    if batch_write(&edge.control, body, <uint32_t> (writer.p - body)) == 0:
        walk.records += 1


cdef uint32_t _walk(Walk *walk) noexcept nogil:
    """Look at this turn's slots; the slot to go on with, LIST_END behind the last one."""
    cdef Edge *edge = walk.edge
    cdef uint32_t slot = walk.query.slot
    cdef uint32_t shift = edge.connections.chunk_shift
    cdef uint32_t steps = 0
    cdef SlabChunk *chunk
    cdef Connection *conn
    while slot >> shift < edge.connections.chunk_count:
        if steps == SLOTS_MAX or walk.records >= walk.query.limit or walk.peers >= PEERS_MAX:
            return slot
        steps += 1
        chunk = &edge.connections.chunks[slot >> shift]
        if chunk.memory == NULL or slot & ((1u << shift) - 1) >= chunk.fresh:
            slot = ((slot >> shift) + 1) << shift       # nobody ever was in the rest of this chunk
            continue
        conn = <Connection *> slab_at(&edge.connections, slot)
        if conn_live(conn) and _fits(walk, conn):
            _take(walk, conn)
        slot += 1
    return LIST_END


cdef uint32_t _channel(Edge *edge, const char *name, uint32_t size) noexcept nogil:
    """The index of a channel; NONE: nobody here is in it."""
    cdef Channel *channel = channel_find(edge, name, size)
    return NONE if channel == NULL else channel.index


cdef uint32_t _user_channel(Edge *edge, const uint8_t *user, uint32_t size) noexcept nogil:
    """The index of a user's own channel; NONE: nobody here is that user."""
    cdef char name[NAME_BYTES_MAX]
    if size > NAME_BYTES_MAX - USER_PREFIX_BYTES:
        return NONE
    memcpy(name, b"user:", USER_PREFIX_BYTES)
    memcpy(name + USER_PREFIX_BYTES, user, size)
    return _channel(edge, name, USER_PREFIX_BYTES + size)


cdef uint64_t _members(Walk *walk) noexcept nogil:
    """How many members the channel that was asked for has here; whoever is being caught up is none yet."""
    if walk.everybody:
        return walk.edge.connections.live - walk.edge.handshakes
    return 0 if walk.channel == NONE else channel_at(walk.edge, walk.channel).count


cdef void _begin(Walk *walk, Edge *edge, const Note *note, const uint8_t *text, const uint8_t *reason) noexcept nogil:
    cdef const uint8_t *names = text + sizeof(ListQuery)
    cdef uint32_t size = note.text_size - <uint32_t> sizeof(ListQuery)
    walk.edge = edge
    memcpy(&walk.query, text, sizeof(ListQuery))
    walk.query.limit = min(walk.query.limit, <uint32_t> RECORDS_MAX)
    walk.query.user_size = min(walk.query.user_size, size)
    walk.user = walk.channel = NONE
    walk.everybody = False
    walk.members = 0
    if walk.query.by_user:
        walk.user = _user_channel(edge, names, walk.query.user_size)
    if walk.query.by_channel:
        names += walk.query.user_size
        size -= walk.query.user_size
        walk.everybody = domain_in(&edge.namespaces, <const char *> names, size) == DOMAIN_GLOBAL
        walk.channel = _channel(edge, <const char *> names, size)
        walk.members = _members(walk)
    walk.tick = edge_tick(edge)
    walk.records = 0
    walk.peers = 0
    walk.reclaim = note.kind == NOTE_RECLAIM
    walk.code = <int> note.first
    walk.after_ms = <uint32_t> note.second
    walk.reason = <const char *> reason
    walk.reason_size = note.extra_size


cdef void listing_turn(Edge *edge, Note *note, const uint8_t *text, const uint8_t *reason) noexcept nogil:
    """One LIST or RECLAIM: look at so many slots as one turn may, and answer with LISTED."""
    cdef Walk walk
    cdef Note answer
    cdef Connection *conn
    cdef uint32_t goes_on = LIST_END
    if note.text_size < sizeof(ListQuery):
        return
    _begin(&walk, edge, note, text, reason)
    batch_clear(&edge.control)
    if walk.query.conn:
        conn = conn_get(&edge.connections, walk.query.conn)
        if conn != NULL:
            _take(&walk, conn)
    elif (not walk.query.by_user or walk.user != NONE) \
            and (not walk.query.by_channel or walk.everybody or walk.channel != NONE):
        goes_on = _walk(&walk)
    memset(&answer, 0, sizeof(answer))
    answer.kind = NOTE_LISTED
    answer.request = note.request
    answer.first = goes_on
    answer.second = walk.records
    answer.conn = walk.members
    answer.text_size = edge.control.size
    mailbox_put(&edge.to_control, &answer, edge.control.data, NULL)
    batch_clear(&edge.control)


def query(*, uint64_t conn=0, uint32_t slot=0, uint32_t limit=RECORDS_MAX, uint32_t older=0, uint32_t idle=0,
          uint32_t queued_bytes=0, uint8_t states=ANY_STATE, str user=None, bytes session=None, bytes address=None,
          str channel=None, device=None):
    """Pack a query, as LIST and RECLAIM want it in their text.

    Args:
        conn: the handle of the only connection that is asked for; the other conditions do not matter then.
        slot: where to begin; the answer's `first` says where to go on.
        limit: how many records at most; one turn gives no more than RECORDS_A_TURN.
        older, idle: at least so many ticks since the connection was accepted, since anything was heard of it.
        queued_bytes: at least so many wait to be sent.
        states: one bit for each state that fits.
        user, session, address: of this user, with this session id (16 bytes), from this IPv6 or mapped IPv4 address.
        channel: members of this channel; the answer's `conn` says how many it has.
        device: with a device of the class with this number.
    """
    cdef ListQuery packed
    memset(&packed, 0, sizeof(packed))
    packed.conn = conn
    packed.slot = slot
    packed.limit = limit
    packed.older = older
    packed.idle = idle
    packed.queued_bytes = queued_bytes
    packed.states = states
    packed.by_user = user is not None
    for name, value in (("session", session), ("address", address)):
        if value is not None and len(value) != 16:
            raise ValueError(f"{name} has 16 bytes")
    if session is not None:
        packed.by_session = 1
        memcpy(packed.session, <const char *> session, 16)
    if address is not None:
        packed.by_address = 1
        memcpy(packed.address, <const char *> address, 16)
    packed.by_channel = channel is not None
    packed.by_device = device is not None
    packed.device = device or 0
    names = ((user or "").encode(), (channel or "").encode())
    packed.user_size = len(names[0])
    return (<char *> &packed)[:sizeof(packed)] + names[0] + names[1]
