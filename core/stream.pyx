"""Stream: positions, history and routes; the cold verbs."""

from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

from core.hash cimport index_free, index_put, index_remove
from core.ledger cimport KIND_CHANNEL, KIND_HISTORY, KIND_SUBSCRIPTION, ledger_close, ledger_open
from core.slab cimport SLAB_NONE, slab_acquire, slab_free, slab_init, slab_release


cdef void streams_init(Streams *streams, Ledger *ledger, HashKey key, uint64_t epoch) noexcept nogil:
    """An empty table; the bounds are the caller's to set."""
    slab_init(&streams.slab, sizeof(Stream), 8, 0xFFFFFFFE)
    streams.ledger = ledger
    streams.key = key
    streams.epoch = epoch


cdef inline bint _stream_live(Stream *stream) noexcept nogil:
    return stream.live == 1


cdef void _stored_drop_oldest(Streams *streams, Stream *stream) noexcept nogil:
    cdef Stored *stored = stream_stored(stream, 0)
    stream.history_first = (stream.history_first + 1) & (stream.history_capacity - 1)
    stream.history_count -= 1
    stream.history_bytes -= stored.size
    streams.history_total -= stored.size
    free(stored)
    ledger_close(streams.ledger, KIND_HISTORY)


cdef void _stream_end(Streams *streams, Stream *stream) noexcept nogil:
    while stream.history_count:
        _stored_drop_oldest(streams, stream)
    while stream.route_count:
        stream.route_count -= 1
        ledger_close(streams.ledger, KIND_SUBSCRIPTION)
    if stream.routes != &stream.one:
        free(stream.routes)
    free(stream.history)
    free(stream.name)
    index_remove(&streams.index, stream.hash, stream.index)
    stream.live = 0
    slab_release(&streams.slab, stream.index)
    ledger_close(streams.ledger, KIND_CHANNEL)


cdef void streams_free(Streams *streams) noexcept nogil:
    cdef uint32_t chunk, number
    cdef Stream *stream
    for chunk in range(streams.slab.chunk_count):
        number = 0
        while number < (1u << streams.slab.chunk_shift) and streams.slab.chunks[chunk].memory != NULL:
            stream = stream_at(streams, (chunk << streams.slab.chunk_shift) | number)
            if _stream_live(stream):
                _stream_end(streams, stream)
            number += 1
    slab_free(&streams.slab)
    index_free(&streams.index)


cdef Stream *stream_wanted(Streams *streams, const char *name, uint32_t size, int domain,
                           uint64_t now_ms) noexcept nogil:
    """The stream of a name, made at offset 0 if it is new; NULL at the bound or out of memory."""
    cdef Stream *stream = stream_find(streams, name, size)
    cdef uint32_t index
    if stream != NULL:
        return stream
    if streams.slab.live >= streams.streams_max:
        return NULL
    index = slab_acquire(&streams.slab)
    if index == SLAB_NONE:
        return NULL
    stream = stream_at(streams, index)
    memset(stream, 0, sizeof(Stream))
    stream.hash = hash_bytes(&streams.key, <const uint8_t *> name, size)
    stream.name = <char *> malloc(size)
    if stream.name == NULL or index_put(&streams.index, stream.hash, index) < 0:
        free(stream.name)
        slab_release(&streams.slab, index)
        return NULL
    memcpy(stream.name, name, size)
    stream.name_size = <uint8_t> size
    stream.domain = <uint8_t> domain
    stream.index = index
    stream.live = 1
    stream.epoch = streams.epoch
    stream.routes = &stream.one
    stream.route_capacity = 1
    stream.used_ms = now_ms
    ledger_open(streams.ledger, KIND_CHANNEL)
    return stream


cdef void _history_squeeze(Streams *streams) noexcept nogil:
    """Over the bound of all histories: empty one stream after the other, in turn, until it is kept again."""
    cdef uint32_t total = streams.slab.chunk_count << streams.slab.chunk_shift
    cdef uint32_t looked = 0
    cdef Stream *stream
    while streams.history_total > streams.history_total_max and looked <= total:
        looked += 1
        streams.hand = streams.hand + 1 if streams.hand + 1 < total else 0
        if streams.slab.chunks[streams.hand >> streams.slab.chunk_shift].memory == NULL:
            continue
        stream = stream_at(streams, streams.hand)
        while _stream_live(stream) and stream.history_count and streams.history_total > streams.history_total_max:
            _stored_drop_oldest(streams, stream)


cdef bint _history_grow(Streams *streams, Stream *stream) noexcept nogil:
    """Double the ring, straightened out; False: out of memory."""
    cdef uint32_t capacity = stream.history_capacity * 2 if stream.history_capacity else 4
    cdef uint32_t place
    cdef Stored **history = <Stored **> malloc(capacity * sizeof(Stored *))
    if history == NULL:
        return False
    for place in range(stream.history_count):
        history[place] = stream_stored(stream, place)
    free(stream.history)
    stream.history = history
    stream.history_first = 0
    stream.history_capacity = capacity
    return True


cdef void stream_store(Streams *streams, Stream *stream, const uint8_t *body, uint32_t size,
                       uint64_t now_ms) noexcept nogil:
    """Keep the message of the present position, and drop what passes the bounds; not kept without memory."""
    cdef Stored *stored
    stream.used_ms = now_ms
    if streams.history_messages == 0 or size > streams.history_bytes:
        while stream.history_count:
            _stored_drop_oldest(streams, stream)
        return
    while stream.history_count and (
            stream.history_count >= streams.history_messages or stream.history_bytes + size > streams.history_bytes
            or stream_stored(stream, 0).time_ms + streams.history_age_ms < now_ms):
        _stored_drop_oldest(streams, stream)
    if stream.history_count == stream.history_capacity and not _history_grow(streams, stream):
        return
    stored = <Stored *> malloc(sizeof(Stored) + size)
    if stored == NULL:
        return
    stored.epoch = stream.epoch
    stored.offset = stream.offset
    stored.time_ms = now_ms
    stored.size = size
    memcpy(stored.body, body, size)
    stream.history[(stream.history_first + stream.history_count) & (stream.history_capacity - 1)] = stored
    stream.history_count += 1
    stream.history_bytes += size
    streams.history_total += size
    if streams.history_total > streams.history_total_max:
        _history_squeeze(streams)
    ledger_open(streams.ledger, KIND_HISTORY)


cdef int route_set(Streams *streams, Stream *stream, uint32_t worker, uint64_t channel) noexcept nogil:
    """The worker has members, under its handle `channel`; a newer handle replaces an older one. -1: out of memory."""
    cdef uint32_t place
    cdef uint32_t capacity
    cdef Route *routes
    for place in range(stream.route_count):
        if stream.routes[place].worker == worker:
            stream.routes[place].channel = channel
            return 0
    if stream.route_count == stream.route_capacity:
        capacity = stream.route_capacity * 2
        if stream.routes == &stream.one:
            routes = <Route *> malloc(capacity * sizeof(Route))
            if routes != NULL:
                routes[0] = stream.one
        else:
            routes = <Route *> realloc(stream.routes, capacity * sizeof(Route))
        if routes == NULL:
            return -1
        stream.routes = routes
        stream.route_capacity = capacity
    stream.routes[stream.route_count].worker = worker
    stream.routes[stream.route_count].channel = channel
    stream.route_count += 1
    ledger_open(streams.ledger, KIND_SUBSCRIPTION)
    return 0


cdef bint route_remove(Streams *streams, Stream *stream, uint32_t worker, uint64_t channel) noexcept nogil:
    """The worker has no members any more; False when its handle is not the one known (it subscribed again since).

    A `channel` of 0 removes whatever handle there is.
    """
    cdef uint32_t place
    for place in range(stream.route_count):
        if stream.routes[place].worker == worker:
            if channel and stream.routes[place].channel != channel:
                return False
            stream.route_count -= 1
            stream.routes[place] = stream.routes[stream.route_count]
            ledger_close(streams.ledger, KIND_SUBSCRIPTION)
            if stream.route_count == 0 and stream.offset == 0:
                _stream_end(streams, stream)        # nothing was ever said here: there is no position to keep
            return True
    return False


cdef void routes_remove_worker(Streams *streams, uint32_t worker) noexcept nogil:
    """Forget a worker everywhere: O(streams), once a worker's end."""
    cdef uint32_t chunk, number
    cdef Stream *stream
    for chunk in range(streams.slab.chunk_count):
        number = 0
        while number < (1u << streams.slab.chunk_shift) and streams.slab.chunks[chunk].memory != NULL:
            stream = stream_at(streams, (chunk << streams.slab.chunk_shift) | number)
            if _stream_live(stream):
                route_remove(streams, stream, worker, 0)
            number += 1


cdef bint _aged(Streams *streams, Stream *stream, uint64_t now_ms) noexcept nogil:
    if stream.route_count:
        return False
    if stream.used_ms + streams.history_age_ms < now_ms:
        return True
    # Nearly as many as there may be: what nobody has goes before its time, so that new channels find room.
    return streams.slab.live > streams.streams_max - streams.streams_max // 8


cdef void streams_sweep(Streams *streams, uint64_t now_ms, uint32_t slots) noexcept nogil:
    """Look at some more slots and drop the streams that nobody has and whose history has aged away."""
    cdef uint32_t total = streams.slab.chunk_count << streams.slab.chunk_shift
    cdef bint dropped = False
    cdef Stream *stream
    while slots and total:
        slots -= 1
        streams.sweep = streams.sweep + 1 if streams.sweep + 1 < total else 0
        if streams.slab.chunks[streams.sweep >> streams.slab.chunk_shift].memory == NULL:
            continue
        stream = stream_at(streams, streams.sweep)
        if _stream_live(stream) and _aged(streams, stream, now_ms):
            dropped = True
            _stream_end(streams, stream)
    if dropped:
        streams.epoch += 1
