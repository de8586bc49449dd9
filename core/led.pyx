"""Led: who leads what, as routers say, and what each of them is told of it."""

from libc.stdint cimport uint8_t
from libc.string cimport memcpy, memset

from core.batch cimport batch_clear
from core.codes cimport UNAVAILABLE
from core.conn cimport FLAG_SESSION, STATE_OPEN, Connection, conn_get, conn_live
from core.edge cimport LINK_NOWHERE, REQUEST_OPEN, Channel, Request, conn_shard, link_of, links_next
from core.fanout cimport channel_at, channel_leave_leader, channel_shard, channel_subscribe
from core.joins cimport joins_again, opening_at
from core.kept cimport kept_say_all
from core.ledger cimport COUNT_ROUTER_LINKS, GAUGE_LINKED, GAUGE_ROUTER_EPOCH, ledger_count, ledger_gauge
from core.mailbox cimport NOTE_LINKED, Note, mailbox_put, note_init
from core.opening cimport attends_again, open_again, opening_again, opening_refused
from core.records cimport (BEGIN_BEFORE, BEGIN_BESIDE, BEGIN_EVERYBODY, LEADS_FEEDS, LINK_FRESH, RECORDS_VERSION,
                           REC_BEGIN, REC_END, REC_LINK, REC_SHARDS, SHARDS_BEFORE, SHARDS_ELSEWHERE, SHARDS_SAID,
                           RecLink, RecShards, record_add)
from core.replay cimport replays_again
from core.requests cimport request_peek
from core.shards cimport SHARDS_MAX, SHARD_OF_GLOBALS, SHARD_WORDS, shards_add, shards_have, shards_remove
from core.slab cimport slab_at
from core.told cimport told_say_all

ctypedef void (*DoChannel)(Edge *, Channel *) noexcept nogil


cdef void link_hello(Edge *edge, Link *link, int kind) noexcept nogil:
    """LINK, BEGIN, END or BYE."""
    cdef int flags = 0
    cdef RecLink *record
    if kind == REC_LINK and link.fresh:
        flags = LINK_FRESH
    elif kind == REC_BEGIN:
        flags = BEGIN_EVERYBODY | (BEGIN_BESIDE if edge.config.beside else 0) \
            | (BEGIN_BEFORE if link.router_epoch else 0)
    record = <RecLink *> record_add(&link.out, kind, flags, sizeof(RecLink), 0)
    if record != NULL:
        record.epoch = edge.config.epoch
        record.version = RECORDS_VERSION
        record.worker = edge.config.worker
        record.stored_ms = edge.now_ms


cdef void _again_sessions(Edge *edge, Link *link, const uint64_t *shards) noexcept nogil:
    """The sessions of these shards (bits), and then who is where."""
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
                if shards_have(shards, conn_shard(edge, conn)):
                    open_again(edge, conn)
                attends_again(edge, link, conn, shards)
    while seq != edge.requests.next:
        request = request_peek(edge, seq)
        if request != NULL and request.kind == REQUEST_OPEN:
            conn = conn_get(&edge.connections, request.conn)
            if conn != NULL and shards_have(shards, conn_shard(edge, conn)):
                opening_again(edge, request, seq)
        seq += 1


cdef void _each_channel(Edge *edge, const uint64_t *shards, int flags, DoChannel run) noexcept nogil:
    """Of these shards (bits), those that have any of these flags; 0: all."""
    cdef uint32_t chunk, number
    cdef uint32_t per_chunk = 1u << edge.channels.chunk_shift
    cdef Channel *channel
    for chunk in range(edge.channels.chunk_count):
        if edge.channels.chunks[chunk].memory == NULL:
            continue
        for number in range(per_chunk):
            channel = channel_at(edge, (chunk << edge.channels.chunk_shift) | number)
            if channel.generation != 0 and channel.generation != <uint32_t> 0xDDDDDDDD \
                    and (flags == 0 or channel.flags & flags) and shards_have(shards, channel_shard(edge, channel)):
                run(edge, channel)


cdef void led_subscribe(Edge *edge, const uint64_t *shards, int flags) noexcept nogil:
    """Say SUBSCRIBE for the channels of these shards (bits) that have any of these flags; 0: for all."""
    _each_channel(edge, shards, flags, channel_subscribe)


cdef void _gauges(Edge *edge) noexcept nogil:
    ledger_gauge(edge.ledger, GAUGE_LINKED, edge.links_up)


cdef void link_up(Edge *edge, Link *link) noexcept nogil:
    if not link.up:
        link.up = True
        edge.links_up += 1
        _gauges(edge)


cdef void link_down(Edge *edge, Link *link) noexcept nogil:
    if link.up:
        link.up = False
        edge.links_up -= 1
        _gauges(edge)


cdef void fed_map(Edge *edge, uint32_t shard, uint32_t place) noexcept nogil:
    """A shard's channels are heard elsewhere: its new feed is told of them behind the batch."""
    edge.links[edge.shard_feeds[shard]].fed -= 1
    edge.shard_feeds[shard] = <uint8_t> place
    edge.links[place].fed += 1
    edge.fed_news = True
    if place != LINK_NOWHERE:
        shards_add(edge.links[place].news, shard)


cdef void led_map(Edge *edge, uint32_t shard, uint32_t place) noexcept nogil:
    """A shard has another leader, or none that is known."""
    if edge.shard_feeds[shard] == edge.shard_links[shard]:
        fed_map(edge, shard, place)
    edge.links[edge.shard_links[shard]].led -= 1
    edge.shard_links[shard] = <uint8_t> place
    edge.links[place].led += 1
    edge.unled_ms[shard] = edge.now_ms


cdef inline bint _lacks_leader(Edge *edge, uint32_t shard, uint64_t asked_ms) noexcept nogil:
    """Whether nobody leads a shard, and who asked then has waited for it long enough."""
    if edge.shard_links[shard] != LINK_NOWHERE:
        return False
    if edge.unled_ms[shard] == 0:
        edge.unled_ms[shard] = edge.now_ms
    return edge.now_ms - min(edge.unled_ms[shard], asked_ms) >= UNLED_WAIT_MS


cdef void led_overdue(Edge *edge) noexcept nogil:
    """Refuse the HELLOs of sessions that nobody leads. O(requests), and only while a shard has no leader."""
    cdef uint32_t seq = edge.requests.oldest
    cdef Request *request
    cdef Connection *conn
    if edge.links[LINK_NOWHERE].led == 0 or edge.now_ms - edge.unled_looked_ms < UNLED_LOOK_MS:
        return
    edge.unled_looked_ms = edge.now_ms
    while seq != edge.requests.next:
        request = request_peek(edge, seq)
        seq += 1
        if request == NULL or request.kind != REQUEST_OPEN or opening_at(edge, request.index).claimed:
            continue
        conn = conn_get(&edge.connections, request.conn)
        if conn != NULL and _lacks_leader(edge, conn_shard(edge, conn), request.sent_ms):
            opening_refused(edge, opening_at(edge, request.index), UNAVAILABLE,
                            b"nobody can tell now whose the session is: no router leads its shard")


cdef void _fed_told(Edge *edge, Link *link, const RecLeads *record) noexcept nogil:
    """The router follows a shard that another region leads, or does no more (epoch 0)."""
    cdef uint32_t shard = record.head.shard
    if record.epoch and link.near and edge.shard_feeds[shard] != link.place:
        if edge.shard_feeds[shard] == edge.shard_links[shard]:
            shards_add(edge.fed_left, shard)
        fed_map(edge, shard, link.place)
    elif record.epoch == 0 and edge.shard_feeds[shard] == link.place:
        fed_map(edge, shard, edge.shard_links[shard])


cdef void led_told(Edge *edge, Link *link, const RecLeads *record) noexcept nogil:
    """The router leads a shard, unless another one leads it by now; it is told what is held of it behind the batch. Or
    it leads it no more (epoch 0): what is said of it waits for who does."""
    cdef uint32_t shard = record.head.shard
    if shard < edge.shard_count and record.head.aux & LEADS_FEEDS:
        _fed_told(edge, link, record)
        return
    if shard < edge.shard_count and record.epoch == 0 and edge.shard_links[shard] == link.place:
        led_map(edge, shard, LINK_NOWHERE)
        shards_remove(link.news, shard)
    if shard >= edge.shard_count or record.epoch == 0 or record.epoch < edge.shard_epochs[shard]:
        return
    edge.shard_epochs[shard] = record.epoch
    if edge.shard_links[shard] != link.place:
        link.stored_ms = 0              # what the one before was told, this one may not find stored
    led_map(edge, shard, link.place)
    shards_add(link.news, shard)


cdef void led_shards(Edge *edge, const Link *link, uint64_t *shards) noexcept nogil:
    """Bits of the shards whose leader is at the other end."""
    cdef uint32_t shard
    memset(shards, 0, SHARDS_MAX // 8)
    for shard in range(edge.shard_count):
        if edge.shard_links[shard] == link.place:
            shards_add(shards, shard)


cdef void fed_shards(Edge *edge, const Link *link, uint64_t *shards) noexcept nogil:
    """Bits of the shards whose channels are heard from the other end."""
    cdef uint32_t shard
    memset(shards, 0, SHARDS_MAX // 8)
    for shard in range(edge.shard_count):
        if edge.shard_feeds[shard] == link.place:
            shards_add(shards, shard)


cdef void led_kept(Edge *edge, Link *link, bint again) noexcept nogil:
    cdef uint64_t shards[SHARD_WORDS]
    led_shards(edge, link, shards)
    kept_say_all(edge, shards, again)


cdef void _shards(Link *link, const uint64_t *shards, int flags) noexcept nogil:
    cdef RecShards *record = <RecShards *> record_add(&link.out, REC_SHARDS, flags, sizeof(RecShards), 0)
    if record != NULL:
        memcpy(record.which, shards, sizeof(record.which))


cdef inline void _both(uint64_t *shards, const uint64_t *others) noexcept nogil:
    """Those of the shards (bits) that are among the others too."""
    cdef int word
    for word in range(SHARD_WORDS):
        shards[word] &= others[word]


cdef void _hold(Edge *edge, Link *link, const uint64_t *shards) noexcept nogil:
    """All that is held of these shards (bits), between two SHARDS."""
    cdef uint64_t led[SHARD_WORDS]
    cdef uint64_t fed[SHARD_WORDS]
    led_shards(edge, link, led)
    fed_shards(edge, link, fed)
    _both(led, shards)
    _both(fed, shards)
    _shards(link, shards, 0)
    told_say_all(edge, link, led)
    _again_sessions(edge, link, led)
    led_subscribe(edge, fed, 0)
    _shards(link, shards, SHARDS_SAID | (SHARDS_BEFORE if edge.globals_told else 0)
            | (SHARDS_ELSEWHERE if shards[0] & 1 and not fed[0] & 1 else 0))
    if fed[0] & 1:
        edge.globals_told = True


cdef void _ask_again(Edge *edge, const Link *link, const uint64_t *shards) noexcept nogil:
    """What waits for an answer, before anything new: of one channel nothing overtakes."""
    cdef uint64_t asked[SHARD_WORDS]
    led_shards(edge, link, asked)
    _both(asked, shards)
    kept_say_all(edge, asked, True)
    fed_shards(edge, link, asked)
    _both(asked, shards)
    joins_again(edge, asked)
    replays_again(edge, asked)


cdef void _say_everything(Edge *edge, Link *link) noexcept nogil:
    """To a router that does not know this worker."""
    cdef Note note
    cdef uint64_t shards[SHARD_WORDS]
    cdef uint64_t fed[SHARD_WORDS]
    cdef int word
    batch_clear(&link.out)              # whatever stands there this router would pass over; all of it is said again
    batch_clear(&link.parted)           # and it has no routes to take away
    link.asked = False
    memset(link.news, 0, sizeof(link.news))
    led_shards(edge, link, shards)
    fed_shards(edge, link, fed)
    for word in range(SHARD_WORDS):
        shards[word] |= fed[word]
    link_hello(edge, link, REC_BEGIN)
    _hold(edge, link, shards)
    link_hello(edge, link, REC_END)
    _ask_again(edge, link, shards)
    link_up(edge, link)
    link.router_epoch = link.asked_epoch
    ledger_count(edge.ledger, COUNT_ROUTER_LINKS, 1)
    ledger_gauge(edge.ledger, GAUGE_ROUTER_EPOCH, link.router_epoch)
    note_init(&note, NOTE_LINKED)
    note.first = link.router_epoch
    note.request = link.place
    mailbox_put(&edge.to_control, &note, NULL, NULL)


cdef void led_news(Edge *edge, Link *link) noexcept nogil:
    """Behind a batch: the router wants to know everything, or leads some shards from now on."""
    cdef uint64_t shards[SHARD_WORDS]
    if link.asked:
        _say_everything(edge, link)
    elif link.up and link.news[0] | link.news[1] | link.news[2] | link.news[3]:
        memcpy(shards, link.news, sizeof(shards))
        memset(link.news, 0, sizeof(link.news))
        _hold(edge, link, shards)
        _ask_again(edge, link, shards)


cdef void _leave_leaders(Edge *edge) noexcept nogil:
    """Channels that are heard from who follows their leader are not sent by that one as well."""
    _each_channel(edge, edge.fed_left, 0, channel_leave_leader)
    if edge.fed_left[0] & 1 and link_of(edge, SHARD_OF_GLOBALS).up:
        memset(edge.fed_left, 0, sizeof(edge.fed_left))
        edge.fed_left[0] = 1
        _shards(link_of(edge, SHARD_OF_GLOBALS), edge.fed_left, SHARDS_SAID | SHARDS_ELSEWHERE)
    memset(edge.fed_left, 0, sizeof(edge.fed_left))


cdef void feds_news(Edge *edge) noexcept nogil:
    """Shards are heard elsewhere from now on: who feeds them is told, also where it was not heard in this turn."""
    cdef uint64_t left = edge.links_used
    cdef Link *link
    if not edge.fed_news:
        return
    edge.fed_news = False
    if edge.fed_left[0] | edge.fed_left[1] | edge.fed_left[2] | edge.fed_left[3]:
        _leave_leaders(edge)
    while left:
        link = links_next(edge, &left)
        if link.up:
            led_news(edge, link)
