"""Shard map: links open and close, shards move between them, and are said to their routers."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from core.audit cimport SlabWalk, slab_walk, slab_walk_next
from core.batch cimport batch_free
from core.bus cimport ZMQ_DEALER, bus_close, bus_open, bus_start
from core.conn cimport FLAG_SESSION, STATE_OPEN, Connection, conn_live
from core.edge cimport CHANNEL_UNASKED, LINKS_MAX, NONE, REQUEST_OPEN, Channel, Request, channel_link, shard_link
from core.fanout cimport channel_at, channel_subscribe, channel_unsubscribe
from core.joins cimport joins_again
from core.kept cimport kept_say_all
from core.ledger cimport COUNT_SHARDS_MOVED, ledger_count
from core.link cimport LINK_OUT_BYTES_MAX
from core.mailbox cimport NOTE_LINK_CLOSED, mailbox_put, note_init
from core.opening cimport open_again, opening_again
from core.poller cimport TAG_BUS
from core.records cimport REC_SHARD, record_add
from core.replay cimport replays_again, replays_lift, replays_settle
from core.requests cimport request_peek
from core.shards cimport SHARDS
from core.slab cimport SLAB_NONE, invariant_always, slab_at
from core.told cimport told_say_all


# ------------------------------------------------------------------------------------------------------- the links


cdef Link *link_prepare(Edge *edge, uint32_t number, str endpoint, bytes identity) except NULL:
    """A link for a place, that nothing is done with before a map names it. For the control thread.

    Raises:
        OSError: the endpoint cannot be used.
        MemoryError: none is left.
    """
    cdef Link *link = <Link *> calloc(1, sizeof(Link))
    if link == NULL:
        raise MemoryError
    link.number = number
    link.others = NONE
    link.out.bytes_max = LINK_OUT_BYTES_MAX
    try:
        bus_open(&link.bus, edge.ledger, ZMQ_DEALER, endpoint, identity, edge.epoll_fd, TAG_BUS + 2 * number)
    except BaseException:
        link_free(link)
        raise
    return link


cdef void link_free(Link *link) noexcept nogil:
    """Close a link with all that it was to say; NULL: there is none."""
    if link == NULL:
        return
    bus_close(&link.bus)
    batch_free(&link.out)
    free(link)


cdef object links_open(Edge *edge, endpoints, bytes identity):
    """The links of a worker's start: each router leads every so manieth shard. See `link_prepare`."""
    cdef uint8_t[SHARDS] places
    cdef uint32_t number
    for number, endpoint in enumerate(endpoints):
        edge.prepared[number] = link_prepare(edge, number, endpoint, identity)
    for number in range(SHARDS):
        places[number] = <uint8_t> (number % len(endpoints))
    links = bytes(range(len(endpoints)))
    map_take(edge, 1, places, <const uint8_t *> <const char *> links, <uint32_t> len(endpoints))


cdef bint _links_start(Edge *edge, const uint8_t *links, uint32_t links_size) noexcept nogil:
    """Take over what the control thread opened; False: a place is named that has no link."""
    cdef uint32_t at
    cdef uint8_t number
    for at in range(links_size):
        number = links[at]
        if number >= LINKS_MAX or (edge.links[number] == NULL and edge.prepared[number] == NULL):
            return False
    for at in range(links_size):
        number = links[at]
        if edge.links[number] == NULL:
            edge.links[number] = edge.prepared[number]
            edge.prepared[number] = NULL
            edge.link_count = max(edge.link_count, <uint32_t> number + 1)
            bus_start(&edge.links[number].bus)
    return True


cdef void _links_close(Edge *edge, const uint8_t *wanted) noexcept nogil:
    """Close those that no map names any more, and tell the control thread."""
    cdef Note note
    cdef uint32_t number
    for number in range(edge.link_count):
        if edge.links[number] == NULL or wanted[number]:
            continue
        link_free(edge.links[number])
        edge.links[number] = NULL
        note_init(&note, NOTE_LINK_CLOSED)
        note.first = number
        mailbox_put(&edge.to_control, &note, NULL, NULL)


# --------------------------------------------------------------------------------------------------------- the map


cdef void _spread(Edge *edge) noexcept nogil:
    cdef uint32_t number
    cdef uint32_t count = 0
    for number in range(edge.link_count):
        count += edge.links[number] != NULL
    edge.spread = count > 1 or edge.owed > 0


cdef void _owe(Edge *edge, uint32_t shard) noexcept nogil:
    edge.owed += 1 - edge.shard_owed[shard]
    edge.shard_owed[shard] = 1
    edge.spread = True


cdef void _channels_leave(Edge *edge, const uint8_t *shards) noexcept nogil:
    """The routers that some shards have until now need not send what is said there any more."""
    cdef SlabWalk walk
    cdef Channel *channel
    cdef uint32_t index
    slab_walk(&walk, &edge.channels)
    index = slab_walk_next(&walk)
    while index != SLAB_NONE:
        channel = channel_at(edge, index)
        if shards[channel.shard] and channel_link(edge, channel).up:
            channel_unsubscribe(edge, channel_link(edge, channel), channel)
        index = slab_walk_next(&walk)


cdef void _shards_move(Edge *edge, const uint8_t *places, const uint8_t *moved) noexcept nogil:
    cdef uint32_t number, shard
    _channels_leave(edge, moved)
    replays_lift(edge, moved)
    memcpy(edge.shard_links, places, SHARDS)
    replays_settle(edge, moved)
    for shard in range(SHARDS):
        if moved[shard]:
            _owe(edge, shard)
    for number in range(edge.link_count):
        if edge.links[number] != NULL and edge.links[number].up:
            shards_pay(edge, edge.links[number])


cdef int map_take(Edge *edge, uint64_t version, const uint8_t *places, const uint8_t *links,
                  uint32_t links_size) noexcept nogil:
    """A new map: the place of each shard's link, and those of all links that are to be there; -1: it names a link
    that is not. One that is not newer than the last is passed over."""
    cdef uint8_t moved[SHARDS]
    cdef uint8_t wanted[LINKS_MAX]
    cdef uint32_t at
    cdef uint32_t count = 0
    if version <= edge.map_version:
        return 0
    memset(wanted, 0, sizeof(wanted))
    for at in range(links_size):
        if links[at] < LINKS_MAX:
            wanted[links[at]] = 1
    for at in range(SHARDS):
        if places[at] >= LINKS_MAX or not wanted[places[at]]:
            return -1
    if not _links_start(edge, links, links_size):
        return -1
    for at in range(SHARDS):
        moved[at] = edge.map_version and places[at] != edge.shard_links[at]
        count += moved[at]
    if edge.map_version == 0:               # the first: nobody is here yet
        memcpy(edge.shard_links, places, SHARDS)
    edge.map_version = version
    if count:
        _shards_move(edge, places, moved)
        ledger_count(edge.ledger, COUNT_SHARDS_MOVED, count)
    _links_close(edge, wanted)
    _spread(edge)
    return 0


cdef void map_changed(Edge *edge, const Note *note, const uint8_t *text, const uint8_t *extra) noexcept nogil:
    """NOTE_SHARD_MAP, which the control thread checked."""
    invariant_always(note.text_size == SHARDS
                     and map_take(edge, note.first, text, extra, note.extra_size) == 0)


cdef void link_shards(Edge *edge, Link *link, uint8_t *shards) noexcept nogil:
    """1 at each shard of a link."""
    cdef uint32_t shard
    for shard in range(SHARDS):
        shards[shard] = edge.shard_links[shard] == link.number


# ------------------------------------------------------------------------------------------- to a router that is new


cdef void _sessions_say(Edge *edge, const uint8_t *shards) noexcept nogil:
    cdef uint32_t chunk, number
    cdef uint32_t seq = edge.requests.oldest
    cdef uint32_t per_chunk = 1u << edge.connections.chunk_shift
    cdef Connection *conn
    cdef Request *request
    for chunk in range(edge.connections.chunk_count):
        if edge.connections.chunks[chunk].memory == NULL:
            continue
        for number in range(per_chunk):
            conn = <Connection *> slab_at(&edge.connections, (chunk << edge.connections.chunk_shift) | number)
            if conn_live(conn) and conn.flags & FLAG_SESSION and conn.state == STATE_OPEN:
                open_again(edge, conn, shards)
    while seq != edge.requests.next:
        request = request_peek(edge, seq)
        if request != NULL and request.kind == REQUEST_OPEN:
            opening_again(edge, request, seq, shards)
        seq += 1


cdef void shards_say(Edge *edge, const uint8_t *shards) noexcept nogil:
    """Tell the router of some shards what this worker holds of them."""
    cdef SlabWalk walk
    cdef Channel *channel
    cdef uint32_t index
    told_say_all(edge, shards)
    _sessions_say(edge, shards)
    slab_walk(&walk, &edge.channels)
    index = slab_walk_next(&walk)
    while index != SLAB_NONE:
        channel = channel_at(edge, index)
        if shards[channel.shard]:
            channel_subscribe(edge, channel)
        index = slab_walk_next(&walk)


cdef void channels_unasked_say(Edge *edge, Link *link) noexcept nogil:
    """Say SUBSCRIBE again for a link's channels for which there was no room."""
    cdef SlabWalk walk
    cdef Channel *channel
    cdef uint32_t index
    slab_walk(&walk, &edge.channels)
    index = slab_walk_next(&walk)
    while index != SLAB_NONE:
        channel = channel_at(edge, index)
        if channel.flags & CHANNEL_UNASKED and channel_link(edge, channel) == link:
            channel_subscribe(edge, channel)
        index = slab_walk_next(&walk)


cdef void shards_ask(Edge *edge, Link *link, const uint8_t *shards) noexcept nogil:
    """Behind that, ask again what was not answered, before anything new: of one channel nothing overtakes."""
    kept_say_all(edge, link, shards, True)
    joins_again(edge, shards)
    replays_again(edge, shards)


cdef void shards_paid(Edge *edge, const uint8_t *shards) noexcept nogil:
    """Some shards were said and asked; what comes now may follow."""
    cdef uint32_t shard
    for shard in range(SHARDS):
        if shards[shard] and edge.shard_owed[shard]:
            edge.shard_owed[shard] = 0
            edge.owed -= 1
    _spread(edge)


cdef uint32_t shards_begin(Edge *edge, Link *link, uint8_t *shards) noexcept nogil:
    """SHARD of each of a link's `shards`, to be followed by all that there is of them; how many. Those that find no
    room are taken out, and owed."""
    cdef uint32_t shard
    cdef uint32_t count = 0
    cdef RecShard *record
    for shard in range(SHARDS):
        if not shards[shard]:
            continue
        record = <RecShard *> record_add(&link.out, REC_SHARD, 0, sizeof(RecShard), 0)
        if record == NULL:
            shards[shard] = 0
            _owe(edge, shard)
            link.owed_ms = edge.now_ms + OWED_AGAIN_MS
            continue
        record.version = edge.map_version
        record.shard = shard
        count += 1
    return count


cdef void shards_pay(Edge *edge, Link *link) noexcept nogil:
    """Say the shards that are owed to the router of a link that is up."""
    cdef uint8_t shards[SHARDS]
    cdef uint32_t shard
    link.owed_ms = 0
    for shard in range(SHARDS):
        shards[shard] = edge.shard_owed[shard] and shard_link(edge, shard) == link
    if shards_begin(edge, link, shards) == 0:
        return
    shards_say(edge, shards)
    shards_ask(edge, link, shards)
    shards_paid(edge, shards)


cdef void shard_moved(Edge *edge, Link *link, const RecShard *record) noexcept nogil:
    """MOVED: the router does not lead the shard, yet or any more. A map that says so comes, or the router hears soon
    that it does: everything is said again then."""
    if record.shard < SHARDS and shard_link(edge, record.shard) == link:
        _owe(edge, record.shard)
        if link.owed_ms == 0:
            link.owed_ms = edge.now_ms + OWED_AGAIN_MS
