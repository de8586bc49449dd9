# Stream: a channel as its sequencer sees it: its position, its recent messages, the workers that have members.
#
# The position grows by one a message, without a gap. It is what members were told: a message that waits for the log has
# an offset beyond it (`given`), and moves it at its commit. History is a ring of stored MESSAGE frames, bounded in
# number, bytes and age. A stream without workers whose history has aged away is dropped, unless the log still has to
# answer for it, and whatever is made later gets a higher epoch, so that a position never means two messages. Most
# streams are a user's own, with one worker and without a message so far: such a one is 48 bytes and its name (ADR 20).
# Beside a log memory is a cache: what has not aged may leave it, and is read again when it is wanted (ADR 108).
# Invariant: routes name linked workers only; the stored messages are in the order of their offsets, and none is beyond
# the stream's; a stream has a History from its first position on; offset <= given.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from core.hash cimport HashKey, Index, hash_bytes, index_find
from core.ledger cimport Ledger
from core.names cimport Names, name_text
from core.namespaces cimport GLOBALS_MAX, Namespace, Namespaces
from core.shards cimport SHARDS_MAX, shard_of_channel
from core.slab cimport Slab, slab_at

ctypedef struct Route:          # 16 bytes: a worker that has members
    uint64_t channel            # the worker's own handle for the channel
    uint32_t worker             # index in the sequencer's table
    uint32_t reserved

ctypedef struct Stored:         # a message kept for HISTORY
    uint64_t epoch
    uint64_t offset
    uint64_t time_ms            # wall clock
    uint32_t size
    uint8_t body[4]             # `size` bytes: the MESSAGE frame as MessagePack

ctypedef struct StreamWaiting:  # a worker's record that waits for a load (core/loading.pxd); the record follows
    StreamWaiting *next         # owned
    uint32_t worker             # index
    uint32_t worker_start       # low half of its epoch: the index may be another's by then
    uint32_t size
    uint32_t reserved

ctypedef struct History:        # what a stream has from the first position that it gave
    uint64_t base               # offset that this epoch began with
    uint64_t given              # the last offset that a message got
    uint64_t last_epoch         # of the message at the stream's offset
    uint32_t under_way          # records of it on their way to the log: it may not be dropped
    uint32_t slot               # of its stream
    uint64_t sifted             # the sift that last wrote its position again
    StreamWaiting *waiting      # owned: oldest first, while it is loading
    StreamWaiting *waiting_last
    uint8_t loading             # Loading
    uint8_t listed              # among the global ones that workers are told of (core/everybody.pxd)
    uint8_t let_go              # it was, and nothing was said in it since
    bint filled                 # the ring has all that is retained
    bint passed                 # its position came while it was loading (core/following.pyx): `given` of `last_epoch`
    Stored **ring               # owned: `capacity` places, NULL before the first message that is kept
    uint32_t first              # place of the oldest
    uint32_t count
    uint32_t capacity           # a power of two
    uint32_t bytes              # of the stored bodies

ctypedef union Routes:
    uint64_t channel            # of the only one, whose worker is `route_worker`, while `route_shift` is 0
    Route *many                 # owned

ctypedef struct Stream:         # 48 bytes
    uint32_t name               # owned: number in the streams' names
    uint32_t used_s             # wall clock of the last message or subscription, rounded up
    uint64_t epoch              # 0: cold
    uint64_t offset             # of the last message that members were told of; 0 before the first
    History *history            # owned: NULL while this epoch has given no position
    Routes routes               # read through stream_route
    uint16_t route_count
    uint8_t route_worker
    uint8_t route_shift         # log2 of the routes there is room for
    uint8_t name_size
    uint8_t domain              # Domain of its namespace
    uint8_t live                # 1 while the slot is in use
    uint8_t namespace           # place in the table

ctypedef struct Listed:         # a global stream that workers are told of
    uint32_t slot
    uint32_t reserved
    uint64_t epoch              # the position at which they were: who has not heard of it missed what came since
    uint64_t offset             # epoch 0: an earlier router told them, and the message that it began with is not kept

ctypedef struct Streams:
    Slab slab
    Index index
    Names names
    HashKey key
    Ledger *ledger              # borrowed
    uint64_t epochs[SHARDS_MAX]     # for streams made from now on, by shard (core/leading.pxd)
    uint32_t shard_count
    bint logged                 # there is a log to read from what is not in memory
    bint cold                   # not all that it keeps is: new ones have to be loaded first (core/loading.pxd)
    uint64_t waiting_bytes      # of all streams
    uint32_t unasked            # streams whose load is still to be asked for
    uint32_t globals            # global streams that workers are told of
    Listed everybody[GLOBALS_MAX]
    uint32_t globals_bytes      # that they take in a WELCOME, at most
    uint32_t globals_bytes_max
    const Namespaces *namespaces    # borrowed: how much is kept of one stream
    uint64_t history_total      # bytes kept of all streams
    uint64_t history_total_max  # beyond it whatever the hand points at loses its oldest
    uint32_t hand               # slot, moves on with each stream it emptied
    uint32_t streams_max
    uint32_t sweep              # next slot to look at


cdef inline Stream *stream_at(Streams *streams, uint32_t index) noexcept nogil:
    return <Stream *> slab_at(&streams.slab, index)


cdef inline const char *stream_name(Streams *streams, const Stream *stream) noexcept nogil:
    """Its name, not terminated, `name_size` bytes."""
    return name_text(&streams.names, stream.name, stream.name_size)


cdef inline Route stream_route(const Stream *stream, uint32_t place) noexcept nogil:
    """One of its `route_count` routes."""
    cdef Route route
    if stream.route_shift:
        return stream.routes.many[place]
    route.channel = stream.routes.channel
    route.worker = stream.route_worker
    route.reserved = 0
    return route


cdef inline uint64_t route_key(const Stream *stream, uint32_t worker) noexcept nogil:
    """What the ledger tells subscriptions apart by: a user-space address has 47 bits."""
    return (<uint64_t> <size_t> stream << 8) | worker


cdef inline uint8_t stream_shard(const Streams *streams, const Stream *stream) noexcept nogil:
    """Its shard, from its name: too rarely asked for to be kept in each."""
    return shard_of_channel(streams.namespaces, name_text(<Names *> &streams.names, stream.name, stream.name_size),
                            stream.name_size, streams.shard_count)


cdef inline const Namespace *stream_namespace(const Streams *streams, const Stream *stream) noexcept nogil:
    return &streams.namespaces.entries[stream.namespace]


cdef inline void stream_use(Stream *stream, uint64_t now_ms) noexcept nogil:
    """It ages from now on."""
    stream.used_s = <uint32_t> ((now_ms + 999) // 1000)


cdef inline uint64_t stream_base(const Stream *stream) noexcept nogil:
    """The offset that this epoch began with."""
    return stream.offset if stream.history == NULL else stream.history.base


cdef inline uint64_t stream_last_epoch(const Stream *stream) noexcept nogil:
    """The epoch of the message at its offset, 0 when it is not known."""
    return 0 if stream.history == NULL else stream.history.last_epoch


cdef inline bint stream_waits(const Stream *stream, uint64_t epoch, uint64_t offset) noexcept nogil:
    """Whether a message that got this position is still on its way to the log."""
    return stream.history != NULL and epoch == stream.epoch and stream.offset < offset <= stream.history.given


cdef inline void stream_reach(Stream *stream, uint64_t epoch, uint64_t offset) noexcept nogil:
    """Members are told of this message now. A stream that went on beyond it meanwhile (core/sequencer.pyx) stays."""
    if offset > stream.offset:
        stream.offset = offset
        stream.history.last_epoch = epoch


cdef inline uint32_t stream_kept(const Stream *stream) noexcept nogil:
    """How many messages are kept."""
    return 0 if stream.history == NULL else stream.history.count


cdef inline bint stream_listed(const Stream *stream) noexcept nogil:
    """Whether it is among the global ones that workers are told of."""
    return stream.history != NULL and stream.history.listed


cdef inline Stream *stream_find(Streams *streams, const char *name, uint32_t size) noexcept nogil:
    """The stream of a name, or NULL."""
    cdef uint64_t hash = hash_bytes(&streams.key, <const uint8_t *> name, size)
    cdef uint32_t probe = 0
    cdef uint32_t found = index_find(&streams.index, hash, &probe)
    cdef Stream *stream
    while found:
        stream = stream_at(streams, found - 1)
        if stream.name_size == size and memcmp(stream_name(streams, stream), name, size) == 0:
            return stream
        found = index_find(&streams.index, hash, &probe)
    return NULL


cdef inline Stored *stream_stored(Stream *stream, uint32_t place) noexcept nogil:
    """The stored message number `place`, 0 the oldest."""
    return stream.history.ring[(stream.history.first + place) & (stream.history.capacity - 1)]


cdef inline bint stream_is_kept(const Streams *streams, Stream *stream, uint64_t wall_ms) noexcept nogil:
    """Whether anything of a stream is still kept."""
    cdef uint32_t count = stream_kept(stream)
    return count != 0 and stream_stored(stream, count - 1).time_ms \
        + stream_namespace(streams, stream).history_age_ms >= wall_ms


cdef inline bint stream_holds(Stream *stream, uint64_t epoch, uint64_t offset) noexcept nogil:
    """Whether the message of this position is kept: O(log n)."""
    cdef uint32_t low = 0
    cdef uint32_t high = stream_kept(stream)
    cdef uint32_t middle
    while low < high:
        middle = (low + high) // 2
        if stream_stored(stream, middle).offset < offset:
            low = middle + 1
        else:
            high = middle
    return low < stream_kept(stream) and stream_stored(stream, low).offset == offset \
        and stream_stored(stream, low).epoch == epoch


cdef bint stream_open(Streams *streams, Stream *stream) noexcept nogil


cdef inline bint stream_advance(Streams *streams, Stream *stream) noexcept nogil:
    """Give the next position, (its epoch, history.given); False: out of memory."""
    if stream.history == NULL and not stream_open(streams, stream):
        return False
    stream.history.given += 1
    return True


cdef inline void stream_take_back(Stream *stream) noexcept nogil:
    """The message that was given the last position is refused: the next one gets it."""
    stream.history.given -= 1


cdef void streams_init(Streams *streams, Ledger *ledger, const Namespaces *namespaces, HashKey key,
                       uint32_t shard_count) noexcept nogil
cdef void streams_free(Streams *streams) noexcept nogil
cdef Stream *stream_wanted(Streams *streams, const char *name, uint32_t size, uint64_t now_ms) noexcept nogil
cdef void stream_shut(Stream *stream) noexcept nogil
cdef bint stream_list(Streams *streams, Stream *stream) noexcept nogil
cdef void stream_unlist(Streams *streams, Stream *stream) noexcept nogil
cdef void stream_begins(Streams *streams, const Stream *stream, uint64_t epoch, uint64_t offset) noexcept nogil
cdef bint stream_began_at(const Streams *streams, const Stream *stream, uint64_t offset) noexcept nogil
cdef void stream_since(const Streams *streams, const Stream *stream, uint64_t *since) noexcept nogil
cdef bint stream_is_silent(const Streams *streams, const Stream *stream, uint64_t now_ms) noexcept nogil
cdef bint stream_routes_to(const Stream *stream, uint32_t worker) noexcept nogil
cdef void stream_adopt(Stream *stream, uint64_t epoch, uint64_t offset) noexcept nogil
cdef void stream_store(Streams *streams, Stream *stream, const Stored *head, const uint8_t *body,
                       uint64_t now_ms) noexcept nogil
cdef void stream_forget(Streams *streams, Stream *stream, uint64_t epoch) noexcept nogil
cdef int route_set(Streams *streams, Stream *stream, uint32_t worker, uint64_t channel) noexcept nogil
cdef bint route_remove(Streams *streams, Stream *stream, uint32_t worker, uint64_t channel) noexcept nogil
cdef bint routes_forget(Streams *streams, uint32_t worker, uint32_t *place, uint32_t slots) noexcept nogil
cdef void stream_end(Streams *streams, Stream *stream) noexcept nogil
cdef void streams_sweep(Streams *streams, uint64_t now_ms, uint32_t slots) noexcept nogil
