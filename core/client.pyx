"""Client: the tables of a client thread."""

from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from core.batch cimport batch_free
from core.framing_ws cimport holdfast_static_assert
from core.hash cimport hash_bytes, index_find, index_free, index_put, index_remove
from core.ledger cimport (KIND_CHANNEL, KIND_CONNECTION, KIND_MEMBERSHIP, KIND_REQUEST, ledger_close, ledger_open)
from core.mailbox cimport mailbox_free
from core.position cimport position_base, position_based, position_skip
from core.ring cimport ring_pool_init
from core.slab cimport SLAB_NONE, invariant, slab_acquire, slab_free, slab_init, slab_release
from core.wheel cimport WHEEL_TICK_MS, timer_init, wheel_init

cdef enum:
    INPUT_BYTES = 262144        # of one recv

MEMORY = {"connection": sizeof(ClientConn), "member": sizeof(ClientMember), "channel": sizeof(ClientChannel),
          "request": sizeof(ClientRequest)}


cdef ClientConn *conn_new(Client *client, uint64_t handle) noexcept nogil:
    """A connection that is away."""
    cdef uint32_t slot = slab_acquire(&client.slots)
    cdef ClientConn *conn
    if slot == SLAB_NONE:
        return NULL
    conn = <ClientConn *> slab_at(&client.slots, slot)
    memset(conn, 0, sizeof(ClientConn))
    conn.slot = slot
    conn.number = <uint32_t> handle
    conn.generation = <uint32_t> (handle >> 32)
    conn.fd = -1
    conn.request_first = CLIENT_NONE
    conn.request_last = CLIENT_NONE
    timer_init(&conn.timer)
    invariant(client.conns[conn.number] == NULL)
    client.conns[conn.number] = conn
    ledger_open(client.ledger, KIND_CONNECTION)
    return conn


cdef void conn_free(Client *client, ClientConn *conn) noexcept nogil:
    """Give back a connection that is away, with its memberships."""
    invariant(conn.fd < 0 and conn.input == NULL and conn.backlog == NULL and conn.request_first == CLIENT_NONE)
    while conn.member_count:
        member_free(client, conn, &conn.members[conn.member_count - 1])
    free(conn.members)
    free(conn.identity)
    free(conn.resume)
    client.conns[conn.number] = NULL
    slab_release(&client.slots, conn.slot)
    ledger_close(client.ledger, KIND_CONNECTION)


cdef uint32_t _channel_find(Client *client, const char *name, uint32_t size, uint64_t hash) noexcept nogil:
    cdef uint32_t probe = 0
    cdef uint32_t found = index_find(&client.channel_index, hash, &probe)
    cdef ClientChannel *channel
    while found:
        channel = client_channel(client, found - 1)
        if channel.name_size == size and memcmp(channel.name, name, size) == 0:
            return found - 1
        found = index_find(&client.channel_index, hash, &probe)
    return CLIENT_NONE


cdef uint32_t _channel_new(Client *client, const char *name, uint32_t size, uint64_t hash) noexcept nogil:
    cdef uint32_t index = slab_acquire(&client.channels)
    cdef ClientChannel *channel
    if index == SLAB_NONE:
        return CLIENT_NONE
    channel = client_channel(client, index)
    memset(channel, 0, sizeof(ClientChannel))
    channel.name = <char *> malloc(size if size else 1)
    if channel.name == NULL or index_put(&client.channel_index, hash, index) < 0:
        free(channel.name)
        slab_release(&client.channels, index)
        return CLIENT_NONE
    memcpy(channel.name, name, size)
    channel.name_size = size
    channel.hash = hash
    ledger_open(client.ledger, KIND_CHANNEL)
    return index


cdef uint32_t channel_hold(Client *client, const char *name, uint32_t size) noexcept nogil:
    cdef uint64_t hash = hash_bytes(&client.hash_key, <const uint8_t *> name, size)
    cdef uint32_t index = _channel_find(client, name, size, hash)
    if index == CLIENT_NONE:
        index = _channel_new(client, name, size, hash)
    if index != CLIENT_NONE:
        client_channel(client, index).holds += 1
    return index


cdef void channel_drop(Client *client, uint32_t index) noexcept nogil:
    cdef ClientChannel *channel
    if index == CLIENT_NONE:
        return
    channel = client_channel(client, index)
    channel.holds -= 1
    if channel.holds:
        return
    index_remove(&client.channel_index, channel.hash, index)
    free(channel.name)
    slab_release(&client.channels, index)
    ledger_close(client.ledger, KIND_CHANNEL)


cdef bint _members_grow(ClientConn *conn) noexcept nogil:
    cdef uint32_t capacity = 1 if conn.member_capacity == 0 else conn.member_capacity * 2
    cdef ClientMember *members
    members = <ClientMember *> realloc(conn.members, capacity * sizeof(ClientMember))
    if members == NULL:
        return False
    conn.members = members
    conn.member_capacity = <uint16_t> capacity
    return True


cdef ClientMember *member_new(Client *client, ClientConn *conn, const char *name, uint32_t size) noexcept nogil:
    """A membership, wanted and without a position; the one that there is already if so. Moves the others' addresses."""
    cdef ClientMember *member = member_find(client, conn, name, size)
    cdef uint32_t index
    if member != NULL:
        return member
    if conn.member_count == CLIENT_MEMBERS_MAX:
        return NULL
    if conn.member_count == conn.member_capacity and not _members_grow(conn):
        return NULL
    index = channel_hold(client, name, size)
    if index == CLIENT_NONE:
        return NULL
    member = &conn.members[conn.member_count]
    conn.member_count += 1
    memset(member, 0, sizeof(ClientMember))
    member.channel = index
    ledger_open(client.ledger, KIND_MEMBERSHIP)
    return member


cdef ClientMember *member_find(Client *client, ClientConn *conn, const char *name, uint32_t size) noexcept nogil:
    """The membership of a channel, or NULL; O(memberships), of which a connection has few."""
    cdef uint32_t place
    cdef ClientChannel *channel
    for place in range(conn.member_count):
        channel = client_channel(client, conn.members[place].channel)
        if channel.name_size == size and memcmp(channel.name, name, size) == 0:
            return &conn.members[place]
    return NULL


cdef ClientMember *member_of(ClientConn *conn, uint32_t channel) noexcept nogil:
    cdef uint32_t place
    for place in range(conn.member_count):
        if conn.members[place].channel == channel:
            return &conn.members[place]
    return NULL


cdef void member_free(Client *client, ClientConn *conn, ClientMember *member) noexcept nogil:
    """End a membership; the last of the connection's takes its place."""
    cdef uint32_t index = member.channel
    conn.member_count -= 1
    member[0] = conn.members[conn.member_count]
    channel_drop(client, index)
    ledger_close(client.ledger, KIND_MEMBERSHIP)


cdef ClientRequest *request_new(Client *client, ClientConn *conn, int kind, uint32_t channel) noexcept nogil:
    """A request that starts now, the newest of its connection."""
    cdef uint32_t index = slab_acquire(&client.requests)
    cdef ClientRequest *request
    if index == SLAB_NONE:
        return NULL
    request = client_request(client, index)
    request.started_ns = client.now_ns
    request.conn = conn.number
    request.channel = channel
    request.kind = kind
    request.index = index
    request.live = 1
    request.deadline = client_tick(client) + client.config.request_timeout_ms // WHEEL_TICK_MS + 1
    request.next = CLIENT_NONE
    request.previous = conn.request_last
    if conn.request_last == CLIENT_NONE:
        conn.request_first = index
    else:
        client_request(client, conn.request_last).next = index
    conn.request_last = index
    client.requests_under_way += 1
    ledger_open(client.ledger, KIND_REQUEST)
    return request


cdef ClientRequest *request_find(Client *client, ClientConn *conn, uint64_t wire_id) noexcept nogil:
    """The request that an answer is to, or NULL when this connection has none of that number under way."""
    cdef uint32_t index = conn.request_first
    cdef ClientRequest *request
    # Answers come in nearly the order of the requests, so that the first looked at is mostly the one.
    while index != CLIENT_NONE:
        request = client_request(client, index)
        if <uint64_t> index + 1 == wire_id:
            return request
        index = request.next
    return NULL


cdef void request_free(Client *client, ClientRequest *request) noexcept nogil:
    cdef ClientConn *conn = client.conns[request.conn]
    invariant(request.live == 1 and conn != NULL)
    if request.previous == CLIENT_NONE:
        conn.request_first = request.next
    else:
        client_request(client, request.previous).next = request.next
    if request.next == CLIENT_NONE:
        conn.request_last = request.previous
    else:
        client_request(client, request.next).previous = request.previous
    request.live = 0
    channel_drop(client, request.channel)
    slab_release(&client.requests, request.index)
    client.requests_under_way -= 1
    ledger_close(client.ledger, KIND_REQUEST)


cdef void requests_drop(Client *client, ClientConn *conn) noexcept nogil:
    """The connection ends: what it still waited for will not be answered."""
    cdef ClientRequest *request
    cdef ClientMember *member
    while conn.request_first != CLIENT_NONE:
        request = client_request(client, conn.request_first)
        if request.kind == CLIENT_REQUEST_CATCH_UP:
            # Asked again after the next JOIN; what came live meanwhile is then given twice, and counted as caught up.
            member = member_of(conn, request.channel)
            if member != NULL:
                position_base(&member.position, request.since)
        elif conn.flags & CLIENT_TOLD or request.kind == CLIENT_REQUEST_PUBLISH:    # who leaves gives up all but that
            client_count(client, CLIENT_UNANSWERED, 1)
        request_free(client, request)


cdef uint64_t _missing_of(Client *client, ClientConn *conn, bint lost) noexcept nogil:
    cdef uint64_t missing = 0
    cdef uint64_t high
    cdef ClientMember *member
    cdef uint32_t place
    for place in range(conn.member_count):
        member = &conn.members[place]
        high = client_channel(client, member.channel).high
        if member.state != MEMBER_JOINED or not position_based(&member.position) or high <= member.position.last:
            continue
        missing += high - member.position.last
        if lost:
            position_skip(&member.position, high)
    return missing


cdef uint64_t client_missing(Client *client, bint lost) noexcept nogil:
    """Messages that answers or other members tell of and that have not come; `lost`: they are not waited for."""
    cdef uint64_t missing = 0
    cdef uint32_t number
    for number in range(client.conns_max):
        if client.conns[number] != NULL and client.conns[number].state == CLIENT_OPEN:
            missing += _missing_of(client, client.conns[number], lost)
    if lost:
        client_count(client, CLIENT_LOST, missing)
    return missing


cdef int client_init(Client *client, uint32_t connections_max) noexcept nogil:
    """Empty tables; the ledger, the clocks and the mailboxes are the caller's to set before. -1: out of memory."""
    holdfast_static_assert(sizeof(ClientConn) == 136)
    holdfast_static_assert(sizeof(ClientMember) == 24)
    holdfast_static_assert(sizeof(ClientChannel) == 40)
    slab_init(&client.slots, sizeof(ClientConn), 8, connections_max)
    slab_init(&client.channels, sizeof(ClientChannel), 8, 0xFFFFFFFE)
    slab_init(&client.requests, sizeof(ClientRequest), 8, 0xFFFFFFFE)
    ring_pool_init(&client.rings, client.ledger, 0xFFFFFFFE)
    wheel_init(&client.wheel, client.ledger, &client.slots, <uint32_t> <size_t> &(<ClientConn *> NULL).timer,
               client.now_ms)
    client.cork.bytes_max = CLIENT_CORK_BYTES
    client.conns_max = connections_max
    client.conns = <ClientConn **> calloc(connections_max, sizeof(ClientConn *))
    client.input = <uint8_t *> malloc(INPUT_BYTES + CLIENT_FRAME_MAX + 256)
    client.body = <uint8_t *> malloc(CLIENT_BODY_MAX + 64)
    return 0 if client.conns != NULL and client.input != NULL and client.body != NULL else -1


cdef void client_free(Client *client) noexcept nogil:
    """Free all tables; every connection is gone by then."""
    slab_free(&client.slots)
    slab_free(&client.channels)
    slab_free(&client.requests)
    slab_free(&client.rings.slab)
    index_free(&client.channel_index)
    batch_free(&client.cork)
    mailbox_free(&client.to_python)
    mailbox_free(&client.from_python)
    free(client.conns)
    free(client.input)
    free(client.body)
