"""Stream: positions, history and routes; the cold verbs."""

from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from core.hash cimport index_free, index_put, index_remove
from core.ledger cimport (COUNT_HISTORY_SQUEEZED, KIND_CHANNEL, KIND_HISTORY, KIND_SUBSCRIPTION, ledger_acquire,
                          ledger_count, ledger_leaks, ledger_release)
from core.names cimport name_drop, name_keep, names_free, names_init
from core.namespaces cimport GLOBALS_MAX, Namespace, namespace_of
from core.shards cimport SHARD_WORDS, shard_of_channel, shards_add, shards_have
from core.sites cimport HERE
from core.slab cimport SLAB_NONE, invariant, invariant_always, slab_acquire, slab_free, slab_init, slab_release
from core.welcome cimport welcome_entry_bytes

assert sizeof(Stream) == 48

cdef enum:
    ROOM_SLOTS = 4096           # looked at for one that may go when a new stream finds no room


cdef void streams_init(Streams *streams, Ledger *ledger, const Namespaces *namespaces, HashKey key,
                       uint32_t shard_count) noexcept nogil:
    """An empty table; the bounds are the caller's to set."""
    slab_init(&streams.slab, sizeof(Stream), 9, 0xFFFFFFFE)
    names_init(&streams.names)
    streams.ledger = ledger
    streams.namespaces = namespaces
    streams.key = key
    streams.shard_count = shard_count


cdef inline bint _stream_live(Stream *stream) noexcept nogil:
    return stream.live == 1


cdef void _stored_drop_oldest(Streams *streams, Stream *stream) noexcept nogil:
    cdef History *history = stream.history
    cdef Stored *stored = stream_stored(stream, 0)
    history.first = (history.first + 1) & (history.capacity - 1)
    history.count -= 1
    history.bytes -= stored.size
    streams.history_total -= stored.size
    if ledger_leaks(streams.ledger, KIND_HISTORY):
        return
    ledger_release(streams.ledger, KIND_HISTORY, <size_t> stored)
    free(stored)


cdef uint32_t _stream_index(Streams *streams, Stream *stream, uint64_t hash) noexcept nogil:
    """Its slot, looked up when a stream ends instead of kept in each."""
    cdef uint32_t probe = 0
    cdef uint32_t found = index_find(&streams.index, hash, &probe)
    while found and stream_at(streams, found - 1) != stream:
        found = index_find(&streams.index, hash, &probe)
    invariant_always(found != 0)
    return found - 1


cdef void _waiting_free(Streams *streams, History *history) noexcept nogil:
    """A router that ends: nobody waits any more."""
    cdef StreamWaiting *waiting = history.waiting
    while waiting != NULL:
        history.waiting = waiting.next
        streams.waiting_bytes -= waiting.size
        free(waiting)
        waiting = history.waiting
    history.waiting_last = NULL


cdef void stream_shut(Stream *stream) noexcept nogil:
    """Give its History up: nothing is kept, and nothing waits."""
    free(stream.history.ring)
    free(stream.history)
    stream.history = NULL


cdef void stream_end(Streams *streams, Stream *stream) noexcept nogil:
    """Let go of it, with its routes and all that is kept: nothing of it may be on its way from or to the log."""
    cdef uint64_t hash = hash_bytes(&streams.key, <const uint8_t *> stream_name(streams, stream), stream.name_size)
    cdef uint32_t index = _stream_index(streams, stream, hash)
    while stream_kept(stream):
        _stored_drop_oldest(streams, stream)
    while stream.route_count:
        stream.route_count -= 1
        ledger_release(streams.ledger, KIND_SUBSCRIPTION,
                       route_key(stream, stream_route(stream, stream.route_count).worker))
    if stream.route_shift:
        free(stream.routes.many)
    if stream.history != NULL:
        _waiting_free(streams, stream.history)
        stream_unlist(streams, stream)
        stream_shut(stream)
    name_drop(&streams.names, stream.name, stream.name_size)
    index_remove(&streams.index, hash, index)
    stream.live = 0
    ledger_release(streams.ledger, KIND_CHANNEL, index)
    slab_release(&streams.slab, index)


cdef void streams_free(Streams *streams) noexcept nogil:
    cdef uint32_t chunk, number
    cdef Stream *stream
    for chunk in range(streams.slab.chunk_count):
        number = 0
        while number < (1u << streams.slab.chunk_shift) and streams.slab.chunks[chunk].memory != NULL:
            stream = stream_at(streams, (chunk << streams.slab.chunk_shift) | number)
            if _stream_live(stream):
                stream_end(streams, stream)
            number += 1
    slab_free(&streams.slab)
    names_free(&streams.names)
    index_free(&streams.index)


cdef Stream *stream_wanted(Streams *streams, const char *name, uint32_t size, uint64_t now_ms) noexcept nogil:
    """The stream of a name, made at offset 0 if it is new; NULL without a namespace, at the bound or out of memory."""
    cdef Stream *stream = stream_find(streams, name, size)
    cdef const Namespace *namespace
    cdef uint32_t index, text
    if stream != NULL:
        return stream
    namespace = namespace_of(streams.namespaces, name, size)
    if namespace == NULL:
        return NULL
    if streams.slab.live >= streams.streams_max:    # what nobody has makes room now: a member would wait unheard
        streams_sweep(streams, now_ms, ROOM_SLOTS)
    if streams.slab.live >= streams.streams_max:
        return NULL
    text = name_keep(&streams.names, name, size)
    if text == SLAB_NONE:
        return NULL
    index = slab_acquire(&streams.slab)
    if index == SLAB_NONE or index_put(&streams.index, hash_bytes(&streams.key, <const uint8_t *> name, size),
                                       index) < 0:
        name_drop(&streams.names, text, size)
        if index != SLAB_NONE:
            slab_release(&streams.slab, index)
        return NULL
    stream = stream_at(streams, index)
    memset(stream, 0, sizeof(Stream))
    stream.name = text
    stream.name_size = <uint8_t> size
    stream.domain = namespace.domain
    stream.namespace = <uint8_t> (namespace - &streams.namespaces.entries[0])
    stream.live = 1
    if not (streams.cold and namespace.history_messages):
        stream.epoch = streams.epochs[shard_of_channel(streams.namespaces, name, size, streams.shard_count)]
    stream_use(stream, now_ms)
    ledger_acquire(streams.ledger, KIND_CHANNEL, index, HERE)
    return stream


cdef void _read_again(Streams *streams, Stream *stream) noexcept nogil:
    """What is kept of it is not all in memory any more."""
    stream.history.filled = False
    streams.cold = streams.logged


cdef void _history_squeeze(Streams *streams) noexcept nogil:
    """Over the bound of all histories: empty one stream after the other, in turn, until it is kept again.

    Of one with records on their way to the log, nobody could say yet what is read from there.
    """
    cdef uint32_t total = streams.slab.chunk_count << streams.slab.chunk_shift
    cdef uint32_t looked = 0
    cdef Stream *stream
    while streams.history_total > streams.history_total_max and looked <= total:
        looked += 1
        streams.hand = streams.hand + 1 if streams.hand + 1 < total else 0
        if streams.slab.chunks[streams.hand >> streams.slab.chunk_shift].memory == NULL:
            continue
        stream = stream_at(streams, streams.hand)
        while _stream_live(stream) and stream_kept(stream) and not stream.history.loading \
                and not stream.history.under_way and streams.history_total > streams.history_total_max:
            _stored_drop_oldest(streams, stream)
            ledger_count(streams.ledger, COUNT_HISTORY_SQUEEZED, 1)
            _read_again(streams, stream)


cdef bint _history_grow(Stream *stream) noexcept nogil:
    """Double the ring, straightened out; False: out of memory."""
    cdef History *history = stream.history
    cdef uint32_t capacity = history.capacity * 2 if history.capacity else 4
    cdef uint32_t place
    cdef Stored **ring = <Stored **> malloc(capacity * sizeof(Stored *))
    if ring == NULL:
        return False
    for place in range(history.count):
        ring[place] = stream_stored(stream, place)
    free(history.ring)
    history.ring = ring
    history.first = 0
    history.capacity = capacity
    return True


cdef bint stream_open(Streams *streams, Stream *stream) noexcept nogil:
    """Before its first position: give it its History; False: out of memory."""
    cdef History *history = <History *> calloc(1, sizeof(History))
    if history == NULL:
        return False
    history.base = stream.offset
    history.given = stream.offset
    history.filled = stream.epoch != 0 and stream.offset == 0
    history.slot = _stream_index(streams, stream, hash_bytes(
        &streams.key, <const uint8_t *> stream_name(streams, stream), stream.name_size))
    stream.history = history
    return True


cdef uint32_t _welcome_bytes(Streams *streams, const Stream *stream) noexcept nogil:
    return welcome_entry_bytes(stream_name(streams, stream), stream.name_size)


cdef bint stream_list(Streams *streams, Stream *stream) noexcept nogil:
    """Put a global stream among those that workers are told of; False: there are as many as there may be, or as WELCOME
    has room for."""
    cdef uint32_t size = _welcome_bytes(streams, stream)
    if streams.globals == GLOBALS_MAX or streams.globals_bytes + size > streams.globals_bytes_max \
            or (stream.history == NULL and not stream_open(streams, stream)):
        return False
    if not stream.history.listed:
        stream.history.listed = 1
        streams.globals_bytes += size
        memset(&streams.everybody[streams.globals], 0, sizeof(Listed))
        streams.everybody[streams.globals].slot = stream.history.slot
        streams.globals += 1
    return True


cdef uint32_t _listed_place(const Streams *streams, const Stream *stream) noexcept nogil:
    """Where a listed stream stands in the list."""
    cdef uint32_t place = 0
    while streams.everybody[place].slot != stream.history.slot:
        place += 1
        invariant_always(place < streams.globals)
    return place


cdef void stream_unlist(Streams *streams, Stream *stream) noexcept nogil:
    """Take it out again, if it is there."""
    cdef uint32_t place
    if not stream.history.listed:
        return
    place = _listed_place(streams, stream)
    streams.globals -= 1
    streams.globals_bytes -= _welcome_bytes(streams, stream)
    streams.everybody[place] = streams.everybody[streams.globals]
    stream.history.listed = 0


cdef void stream_begins(Streams *streams, const Stream *stream, uint64_t epoch, uint64_t offset) noexcept nogil:
    """Workers are told of a stream from this position on, or were; of several the last one counts."""
    cdef Listed *listed
    if not stream_listed(stream):
        return
    listed = &streams.everybody[_listed_place(streams, stream)]
    if epoch > listed.epoch or (epoch == listed.epoch and offset > listed.offset):
        listed.epoch = epoch
        listed.offset = offset


cdef bint stream_began_at(const Streams *streams, const Stream *stream, uint64_t offset) noexcept nogil:
    """Whether the stream is listed, and this is its first message since."""
    cdef const Listed *listed
    if not stream_listed(stream):
        return False
    listed = &streams.everybody[_listed_place(streams, stream)]
    return listed.epoch != 0 and listed.offset + 1 == offset


cdef void stream_since(const Streams *streams, const Stream *stream, uint64_t *since) noexcept nogil:
    """The position (epoch, offset) of whoever has not heard of a global stream.

    One that is listed no more has nothing to tell. Where an earlier router listed it and its first message since is not
    kept, something was missed, and it is told as the gap that it is, though from the very start.
    """
    cdef const Listed *listed = NULL
    since[0] = stream.epoch
    since[1] = stream.offset
    if not stream_listed(stream):
        return
    listed = &streams.everybody[_listed_place(streams, stream)]
    if listed.epoch == 0:
        since[1] = 0
    elif listed.offset <= stream.offset:
        since[0] = listed.epoch
        since[1] = listed.offset


cdef void stream_adopt(Stream *stream, uint64_t epoch, uint64_t offset) noexcept nogil:
    """The position goes on behind one of an older epoch that others know and this stream does not."""
    stream.offset = offset
    if stream.history == NULL:
        return
    stream.history.base = offset
    stream.history.given = max(stream.history.given, offset)
    stream.history.last_epoch = epoch


cdef bint _stored_place(Stream *stream, uint64_t offset, uint32_t *place) noexcept nogil:
    """Where a message belongs into the ring, nearly always behind the newest; False: it is there already."""
    cdef uint32_t at = stream.history.count
    while at and stream_stored(stream, at - 1).offset >= offset:
        at -= 1
        if stream_stored(stream, at).offset == offset:
            return False
    place[0] = at
    return True


cdef void _ring_insert(Stream *stream, uint32_t place, Stored *stored) noexcept nogil:
    """At `place`, the later ones move up: O(1) for a new message, and older ones come only from a log that is read."""
    cdef History *history = stream.history
    cdef uint32_t mask = history.capacity - 1
    cdef uint32_t at = history.count
    while at > place:
        history.ring[(history.first + at) & mask] = history.ring[(history.first + at - 1) & mask]
        at -= 1
    history.ring[(history.first + place) & mask] = stored
    history.count += 1
    history.bytes += stored.size


cdef void stream_store(Streams *streams, Stream *stream, const Stored *head, const uint8_t *body,
                       uint64_t now_ms) noexcept nogil:
    """Keep a message that the stream gave a position, and drop what passes the bounds; not kept without memory.

    `head` tells its position, time and size.
    """
    cdef const Namespace *namespace = stream_namespace(streams, stream)
    cdef History *history = stream.history
    cdef Stored *stored = NULL
    cdef uint32_t place
    if namespace.history_messages == 0 or head.size > namespace.history_bytes:
        while history.count:
            _stored_drop_oldest(streams, stream)
        return
    # One that is there already must not cost the oldest its place.
    if head.time_ms + namespace.history_age_ms < now_ms or not _stored_place(stream, head.offset, &place):
        return
    while history.count and (
            history.count >= namespace.history_messages or history.bytes + head.size > namespace.history_bytes
            or stream_stored(stream, 0).time_ms + namespace.history_age_ms < now_ms):
        if stream_stored(stream, 0).offset > head.offset:
            return                      # older than all that there is room for
        _stored_drop_oldest(streams, stream)
        place -= 1
    if history.count < history.capacity or _history_grow(stream):
        stored = <Stored *> malloc(sizeof(Stored) + head.size)
    if stored == NULL:
        _read_again(streams, stream)
        return
    stored[0] = head[0]
    memcpy(stored.body, body, head.size)
    _ring_insert(stream, place, stored)
    streams.history_total += head.size
    ledger_acquire(streams.ledger, KIND_HISTORY, <size_t> stored, HERE)
    if streams.history_total > streams.history_total_max:
        _history_squeeze(streams)


cdef void stream_forget(Streams *streams, Stream *stream, uint64_t epoch) noexcept nogil:
    """Drop what is kept of epochs below this one."""
    while stream_kept(stream) and stream_stored(stream, 0).epoch < epoch:
        _stored_drop_oldest(streams, stream)


cdef bint _routes_grow(Stream *stream) noexcept nogil:
    """Room for twice as many routes; False: out of memory."""
    cdef Route one = stream_route(stream, 0)
    cdef Route *routes = NULL if stream.route_shift == 0 else stream.routes.many
    routes = <Route *> realloc(routes, sizeof(Route) << (stream.route_shift + 1))
    if routes == NULL:
        return False
    if stream.route_shift == 0:
        routes[0] = one
    stream.routes.many = routes
    stream.route_shift += 1
    return True


cdef inline void _route_put(Stream *stream, uint32_t place, Route route) noexcept nogil:
    if stream.route_shift:
        stream.routes.many[place] = route
    else:
        stream.routes.channel = route.channel
        stream.route_worker = <uint8_t> route.worker


cdef bint stream_is_silent(const Streams *streams, const Stream *stream, uint64_t now_ms) noexcept nogil:
    """Whether its last message is older than all that is kept."""
    return <uint64_t> stream.used_s * 1000 + stream_namespace(streams, stream).history_age_ms < now_ms


cdef bint stream_routes_to(const Stream *stream, uint32_t worker) noexcept nogil:
    """Whether it has a route to this worker."""
    cdef uint32_t place
    for place in range(stream.route_count):
        if stream_route(stream, place).worker == worker:
            return True
    return False


cdef int route_set(Streams *streams, Stream *stream, uint32_t worker, uint64_t channel) noexcept nogil:
    """The worker has members, under its handle `channel`; a newer handle replaces an older one. -1: out of memory."""
    cdef uint32_t place
    cdef Route route
    invariant(worker <= 255)
    route.channel = channel
    route.worker = worker
    route.reserved = 0
    for place in range(stream.route_count):
        if stream_route(stream, place).worker == worker:
            _route_put(stream, place, route)
            return 0
    if stream.route_count == 1u << stream.route_shift and not _routes_grow(stream):
        return -1
    _route_put(stream, stream.route_count, route)
    stream.route_count += 1
    ledger_acquire(streams.ledger, KIND_SUBSCRIPTION, route_key(stream, worker), HERE)
    return 0


cdef bint route_remove(Streams *streams, Stream *stream, uint32_t worker, uint64_t channel) noexcept nogil:
    """The worker has no members any more; False when its handle is not the one known (it subscribed again since).

    A `channel` of 0 removes whatever handle there is.
    """
    cdef uint32_t place
    for place in range(stream.route_count):
        if stream_route(stream, place).worker == worker:
            if channel and stream_route(stream, place).channel != channel:
                return False
            if ledger_leaks(streams.ledger, KIND_SUBSCRIPTION):
                return False
            stream.route_count -= 1
            _route_put(stream, place, stream_route(stream, stream.route_count))
            ledger_release(streams.ledger, KIND_SUBSCRIPTION, route_key(stream, worker))
            if stream.route_count == 0 and stream.offset == 0 and stream.history == NULL:
                stream_end(streams, stream)        # nothing was ever said here: there is no position to keep
            return True
    return False


cdef bint routes_forget(Streams *streams, uint32_t worker, uint32_t *place, uint32_t slots) noexcept nogil:
    """Forget a worker in some slots more, from `place` on; True: in all."""
    cdef uint32_t total = streams.slab.chunk_count << streams.slab.chunk_shift
    cdef Stream *stream
    while slots and place[0] < total:
        slots -= 1
        if streams.slab.chunks[place[0] >> streams.slab.chunk_shift].memory == NULL:
            place[0] = ((place[0] >> streams.slab.chunk_shift) + 1) << streams.slab.chunk_shift
            continue
        stream = stream_at(streams, place[0])
        if _stream_live(stream):
            route_remove(streams, stream, worker, 0)
        place[0] += 1
    return place[0] >= total


cdef bint _aged(Streams *streams, Stream *stream, uint64_t now_ms) noexcept nogil:
    """Whether it may go: nobody has it, and its history has aged away or is in a log too."""
    if stream.route_count or (stream.history != NULL and (stream.history.under_way or stream.history.loading)):
        return False
    if stream_is_silent(streams, stream, now_ms):
        return True
    if streams.slab.live <= streams.streams_max - streams.streams_max // 8 \
            or (stream.history != NULL and stream.history.listed):
        return False
    # Nearly as many as there may be: what nobody has goes before its time, so that new channels find room.
    ledger_count(streams.ledger, COUNT_HISTORY_SQUEEZED, stream_kept(stream))
    streams.cold = streams.cold or streams.logged
    return True


cdef void streams_sweep(Streams *streams, uint64_t now_ms, uint32_t slots) noexcept nogil:
    """Look at some more slots and drop the streams that nobody has and whose history has aged away."""
    cdef uint32_t total = streams.slab.chunk_count << streams.slab.chunk_shift
    cdef uint64_t dropped[SHARD_WORDS]
    cdef uint32_t shard
    cdef Stream *stream
    memset(dropped, 0, sizeof(dropped))
    while slots and total:
        slots -= 1
        streams.sweep = streams.sweep + 1 if streams.sweep + 1 < total else 0
        if streams.slab.chunks[streams.sweep >> streams.slab.chunk_shift].memory == NULL:
            continue
        stream = stream_at(streams, streams.sweep)
        if _stream_live(stream) and _aged(streams, stream, now_ms):
            shard = stream_shard(streams, stream)
            shards_add(dropped, shard)
            stream_end(streams, stream)
    for shard in range(streams.shard_count):
        streams.epochs[shard] += shards_have(dropped, shard)
