"""Log index: add, find and settle the places of messages, for the threads of the embedded log.

Its methods hold the GIL from beginning to end: that is what keeps those threads apart. Settling takes long, so that it
is done in steps, and others have their turn between two of them.
"""

import os

from core import namespace_spec

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from core.batch cimport batch_free, batch_reserve
from core.hash cimport hash_bytes, index_find, index_free, index_put, index_remove
from core.log_records cimport (LOG_BEGINS, LOG_LAST, LOG_MESSAGE, LOG_POSITION, LogRecord, log_record_fits,
                               log_record_name)
from core.names cimport name_drop, name_keep, name_text, names_free, names_init
from core.namespaces cimport Namespace, namespace_of, namespaces_fill
from core.slab cimport SLAB_NONE, invariant, slab_acquire, slab_at, slab_free, slab_init, slab_release

cdef enum:
    STEP_RECORDS = 2000         # half a millisecond

assert HISTORY_AGE_DAYS_MAX * namespace_spec.DAY_S == namespace_spec.HISTORY_AGE_S_MAX
assert sizeof(Place) == 24 and sizeof(Channel) == 64


cdef inline uint64_t _hash(LogPlaces *places, const char *name, uint32_t size) noexcept nogil:
    return hash_bytes(&places.key, <const uint8_t *> name, size)


cdef inline uint32_t _check(LogPlaces *places, const uint8_t *record, uint32_t size) noexcept nogil:
    return <uint32_t> hash_bytes(&places.key, record, size)


cdef inline Channel *_channel_at(LogPlaces *places, uint32_t index) noexcept nogil:
    return <Channel *> slab_at(&places.slab, index)


cdef uint32_t _slot(LogPlaces *places, const char *name, uint32_t size) noexcept nogil:
    """The slot of a channel, SLAB_NONE: it is not known."""
    cdef uint64_t hash = _hash(places, name, size)
    cdef uint32_t probe = 0
    cdef uint32_t found = index_find(&places.index, hash, &probe)
    cdef Channel *channel
    while found:
        channel = _channel_at(places, found - 1)
        if channel.name_size == size and memcmp(name_text(&places.names, channel.name, size), name, size) == 0:
            return found - 1
        found = index_find(&places.index, hash, &probe)
    return SLAB_NONE


cdef Channel *places_find(LogPlaces *places, const char *name, uint32_t size) noexcept nogil:
    """A channel, or NULL."""
    cdef uint32_t slot = _slot(places, name, size) if 0 < size <= 255 else SLAB_NONE
    return NULL if slot == SLAB_NONE else _channel_at(places, slot)


cdef Channel *_make(LogPlaces *places, const char *name, uint32_t size) noexcept nogil:
    """A new channel; NULL: out of memory."""
    cdef uint32_t text = name_keep(&places.names, name, size)
    cdef uint32_t slot = SLAB_NONE if text == SLAB_NONE else slab_acquire(&places.slab)
    cdef Channel *channel
    if slot == SLAB_NONE or index_put(&places.index, _hash(places, name, size), slot) < 0:
        if slot != SLAB_NONE:
            slab_release(&places.slab, slot)
        if text != SLAB_NONE:
            name_drop(&places.names, text, size)
        return NULL
    channel = _channel_at(places, slot)
    memset(channel, 0, sizeof(Channel))
    channel.name = text
    channel.name_size = <uint8_t> size
    channel.live = 1
    return channel


cdef void _forget(LogPlaces *places, uint32_t slot) noexcept nogil:
    """Nothing of the channel is on disk."""
    cdef Channel *channel = _channel_at(places, slot)
    cdef const char *name = name_text(&places.names, channel.name, channel.name_size)
    places.count -= channel.count
    index_remove(&places.index, _hash(places, name, channel.name_size), slot)
    name_drop(&places.names, channel.name, channel.name_size)
    free(channel.places)
    channel.live = 0
    slab_release(&places.slab, slot)


cdef void _drop_oldest(LogPlaces *places, Channel *channel) noexcept nogil:
    channel.bytes -= place_body_size(channel, channel_place(channel, 0))
    places.bytes -= place_size(channel_place(channel, 0))
    channel.first = (channel.first + 1) & (channel.capacity - 1)
    channel.count -= 1
    places.count -= 1


cdef bint _grow(Channel *channel) noexcept nogil:
    """Double the ring, straightened out; False: out of memory."""
    cdef uint32_t capacity = channel.capacity * 2 if channel.capacity else 1
    cdef Place *ring = <Place *> malloc(capacity * sizeof(Place))
    cdef uint32_t number
    if ring == NULL:
        return False
    for number in range(channel.count):
        ring[number] = channel_place(channel, number)[0]
    free(channel.places)
    channel.places = ring
    channel.first = 0
    channel.capacity = capacity
    return True


cdef void _trim(LogPlaces *places, Channel *channel, const Namespace *namespace) noexcept nogil:
    """Forget what the namespace's size does not keep."""
    while channel.count and (channel.count > namespace.history_messages or channel.bytes > namespace.history_bytes):
        _drop_oldest(places, channel)


cdef bint _is_new(const Channel *channel, const LogRecord *record, uint64_t last) noexcept nogil:
    """Whether a message is behind the last one at a place; one that was appended twice is not."""
    return channel.count == 0 or record.epoch > channel.message_epoch \
        or record.epoch == channel.message_epoch and record.offset > last


cdef inline uint32_t _size(const LogRecord *record) noexcept nogil:
    """As a place has it; of a record with more padding than it needs, the rest counts as its message."""
    cdef uint32_t padding = record.size - record.body_size - record.name_size - <uint32_t> sizeof(LogRecord)
    return record.size | min(padding, <uint32_t> 7)


cdef bint _message_add(LogPlaces *places, Channel *channel, const LogRecord *record, uint32_t segment,
                       uint32_t at) noexcept nogil:
    cdef const Namespace *namespace = namespace_of(&places.namespaces, log_record_name(record), record.name_size)
    cdef uint64_t last = channel_place(channel, channel.count - 1).offset if channel.count else 0
    cdef Place *place
    if not _is_new(channel, record, last):
        return True
    while channel.count and record.offset <= last:      # of another stream of this name, which aged away
        _drop_oldest(places, channel)
    if channel.count == channel.capacity and not _grow(channel):
        return False
    channel.count += 1
    places.count += 1
    channel.message_epoch = record.epoch
    place = channel_place(channel, channel.count - 1)
    place.offset = record.offset
    place.segment = segment
    place.at = at
    place.size = _size(record)
    places.bytes += record.size
    channel.bytes += place_body_size(channel, place)
    place.check = _check(places, <const uint8_t *> record, record.size)
    if namespace != NULL:
        _trim(places, channel, namespace)
    return True


cdef bint places_add(LogPlaces *places, const LogRecord *record, uint32_t segment, uint32_t at) noexcept nogil:
    """A record is in the log now; False: out of memory."""
    cdef Channel *channel = places_find(places, log_record_name(record), record.name_size)
    if channel == NULL:
        channel = _make(places, log_record_name(record), record.name_size)
    if channel == NULL:
        return False
    if record.epoch > channel.epoch or record.epoch == channel.epoch and record.offset >= channel.offset:
        channel.epoch = record.epoch
        channel.offset = record.offset
        channel.segment = segment
    return record.kind != LOG_MESSAGE or _message_add(places, channel, record, segment, at)


cdef Place *_place_of(Channel *channel, const LogRecord *record) noexcept nogil:
    """The place of a message's offset, or NULL."""
    cdef uint32_t low = 0
    cdef uint32_t high = channel.count
    cdef uint32_t middle
    while low < high:
        middle = (low + high) // 2
        if channel_place(channel, middle).offset < record.offset:
            low = middle + 1
        else:
            high = middle
    if low == channel.count or channel_place(channel, low).offset != record.offset:
        return NULL
    return channel_place(channel, low)


cdef bint _is_placed(Channel *channel, const LogRecord *record, uint32_t segment, uint32_t at) noexcept nogil:
    """Whether a record is a message that is kept, and this one is where it is."""
    cdef Place *place = NULL
    if channel != NULL and record.kind == LOG_MESSAGE:
        place = _place_of(channel, record)
    return place != NULL and place.segment == segment and place.at == at


cdef bint _is_young(LogPlaces *places, const LogRecord *record, uint32_t segment, uint32_t at,
                    uint64_t wall_ms) noexcept nogil:
    """Whether a record is a message that is kept, and has not aged."""
    cdef const Namespace *namespace = namespace_of(&places.namespaces, log_record_name(record), record.name_size)
    return record.time_ms + history_age_ms(namespace) >= wall_ms and _is_placed(
        places_find(places, log_record_name(record), record.name_size), record, segment, at)


cdef bint places_ask(LogPlaces *places, const LogRecord *record, uint32_t segment, uint32_t at,
                     bint whole_wanted, Batch *asked) noexcept nogil:
    """What the router is asked about an old record: all of it where it has a place and that is wanted, else its
    position, if that is the channel's last, or a key is in it. False: out of memory."""
    cdef Channel *channel = places_find(places, log_record_name(record), record.name_size)
    cdef bint last = channel != NULL and channel.epoch == record.epoch and channel.offset == record.offset
    cdef bint whole = whole_wanted and _is_placed(channel, record, segment, at)
    cdef uint32_t used, size
    cdef uint8_t *room
    if not whole and not last and not (record.key_high or record.key_low or record.origin_epoch):
        return True
    used = <uint32_t> sizeof(LogRecord) + record.name_size + (record.body_size if whole else 0)
    size = (used + 7) & ~(<uint32_t> 7)
    room = batch_reserve(asked, size)
    if room == NULL:
        return False
    memcpy(room, record, used)
    memset(room + used, 0, size - used)
    (<LogRecord *> room).size = size
    (<LogRecord *> room).flags = (record.flags & LOG_BEGINS) | (LOG_LAST if last else 0)
    if not whole:
        (<LogRecord *> room).kind = LOG_POSITION
        (<LogRecord *> room).body_size = 0
    return True


cdef void _settle_record(LogPlaces *places, const LogRecord *record, uint32_t segment, uint32_t at) noexcept nogil:
    """A sift wrote this record here."""
    cdef Channel *channel = places_find(places, log_record_name(record), record.name_size)
    cdef Place *place
    if channel == NULL:
        return
    if record.epoch > channel.epoch or record.epoch == channel.epoch and record.offset >= channel.offset:
        channel.epoch = record.epoch
        channel.offset = record.offset
        channel.segment = segment | <uint32_t> SETTLED
    if record.kind != LOG_MESSAGE:
        return
    place = _place_of(channel, record)
    if place != NULL and not place.segment & <uint32_t> SETTLED:
        place.segment = segment | <uint32_t> SETTLED
        place.at = at
        places.bytes += record.size
        places.bytes -= place_size(place)
        place.size = _size(record)
        place.check = _check(places, <const uint8_t *> record, record.size)


cdef uint32_t _behind(Channel *channel, uint32_t first) noexcept nogil:
    """The number of the first place that is not in a segment before this one: places are in the order of theirs."""
    cdef uint32_t low = 0
    cdef uint32_t high = channel.count
    cdef uint32_t middle
    while low < high:
        middle = (low + high) // 2
        if channel_place(channel, middle).segment & ~(<uint32_t> SETTLED) < first:
            low = middle + 1
        else:
            high = middle
    return low


cdef bint _settle_channel(LogPlaces *places, Channel *channel, uint32_t first, uint32_t last) noexcept nogil:
    """Forget what stood in these segments and was not written again; False: nothing of the channel is left."""
    cdef uint32_t number = _behind(channel, first) if channel.count else 0
    cdef uint32_t kept = number
    cdef uint32_t removed
    cdef Place *place
    while number < channel.count:
        place = channel_place(channel, number)
        if not place.segment & <uint32_t> SETTLED and place.segment > last:
            break                       # and so are all behind it
        if place.segment & <uint32_t> SETTLED:
            place.segment &= ~(<uint32_t> SETTLED)
            channel_place(channel, kept)[0] = place[0]
            kept += 1
        else:
            channel.bytes -= place_body_size(channel, place)
            places.bytes -= place_size(place)
        number += 1
    removed = number - kept
    while kept:                         # those that stay move up to the ones behind them
        kept -= 1
        channel_place(channel, kept + removed)[0] = channel_place(channel, kept)[0]
    if removed:
        channel.first = (channel.first + removed) & (channel.capacity - 1)
        channel.count -= removed
        places.count -= removed
    if channel.segment & <uint32_t> SETTLED:
        channel.segment &= ~(<uint32_t> SETTLED)
        return True
    return channel.count != 0 or not first <= channel.segment <= last


cdef inline bint _is_live(LogPlaces *places, uint32_t chunk, uint32_t number) noexcept nogil:
    return places.slab.chunks[chunk].memory != NULL and \
        _channel_at(places, (chunk << places.slab.chunk_shift) | number).live == 1


cdef size_t _settle_records(LogPlaces *places, const uint8_t *data, size_t size, size_t place, uint32_t segment,
                            uint32_t at, uint32_t step) noexcept nogil:
    """Some records of a batch, from `place` on; where the next one is."""
    while place < size and step:
        step -= 1
        _settle_record(places, <const LogRecord *> (data + place), segment, at + <uint32_t> place)
        place += (<const LogRecord *> (data + place)).size
    return place


cdef uint32_t _settle_channels(LogPlaces *places, uint32_t first, uint32_t last, uint32_t slot,
                               uint32_t step) noexcept nogil:
    """Some channels from `slot` on; the next one: O(channels) in all, once a file that a sift wrote. One that begins
    meanwhile stands in later segments."""
    cdef uint32_t total = places.slab.chunk_count << places.slab.chunk_shift
    cdef uint64_t done = 0
    cdef Channel *channel
    while slot < total and done < step:
        done += 1
        if _is_live(places, slot >> places.slab.chunk_shift, slot & ((1u << places.slab.chunk_shift) - 1)):
            channel = _channel_at(places, slot)
            done += channel.count
            if not _settle_channel(places, channel, first, last):
                _forget(places, slot)
        slot += 1
    return slot


cdef void _places_free(LogPlaces *places) noexcept nogil:
    cdef uint32_t chunk, number
    for chunk in range(places.slab.chunk_count):
        for number in range(1u << places.slab.chunk_shift):
            if _is_live(places, chunk, number):
                free(_channel_at(places, (chunk << places.slab.chunk_shift) | number).places)
    slab_free(&places.slab)
    names_free(&places.names)
    index_free(&places.index)


cdef tuple _ask(LogIndex index, bytes batch, uint32_t segment, uint32_t at, bint whole_wanted, uint64_t wall_ms):
    """(What `places_ask` writes of a batch, messages that it leaves out and that have not aged)."""
    cdef const uint8_t *data = <const uint8_t *> <const char *> batch
    cdef size_t size = len(batch)
    cdef size_t place = 0
    cdef uint64_t young = 0
    cdef const LogRecord *record
    cdef Batch asked
    memset(&asked, 0, sizeof(asked))
    asked.bytes_max = <uint32_t> size + 64
    try:
        while place < size:
            record = <const LogRecord *> (data + place)
            if not log_record_fits(record, size - place):
                raise ValueError(f"no whole log record at byte {place} of {size}")
            if not places_ask(&index.all, record, segment, at + <uint32_t> place, whole_wanted, &asked):
                raise MemoryError
            young += not whole_wanted and _is_young(&index.all, record, segment, at + <uint32_t> place, wall_ms)
            place += record.size
        return (<const char *> asked.data)[:asked.size] if asked.size else b"", young
    finally:
        batch_free(&asked)


cdef class LogIndex:
    """The index of one log.

    Args:
        namespaces: what the namespaces of channels are, as core.namespace_spec.NamespaceSpec values.

    """

    cdef LogPlaces all

    def __cinit__(self, namespaces):
        slab_init(&self.all.slab, sizeof(Channel), 9, 0xFFFFFFFE)
        names_init(&self.all.names)

    def __init__(self, namespaces):
        cdef bytes drawn = os.urandom(sizeof(HashKey))
        memcpy(&self.all.key, <const char *> drawn, sizeof(HashKey))
        namespaces_fill(&self.all.namespaces, namespaces)

    def __dealloc__(self):
        _places_free(&self.all)

    @property
    def channels(self):
        """Channels that are known."""
        return self.all.slab.live

    @property
    def messages(self):
        """Messages that have a place."""
        return self.all.count

    @property
    def record_bytes(self):
        """Of the records of these."""
        return self.all.bytes

    def add(self, bytes batch, uint32_t segment, uint32_t at):
        """A batch of log records is in the segment now, from the byte `at` on.

        Raises:
            ValueError: the bytes are no batch.
        """
        cdef const uint8_t *data = <const uint8_t *> <const char *> batch
        cdef size_t size = len(batch)
        cdef size_t place = 0
        cdef const LogRecord *record
        invariant(segment < <uint32_t> SETTLED)
        while place < size:
            record = <const LogRecord *> (data + place)
            if not log_record_fits(record, size - place):
                raise ValueError(f"no whole log record at byte {place} of {size}")
            if not places_add(&self.all, record, segment, at + <uint32_t> place):
                raise MemoryError
            place += record.size

    def position(self, bytes channel):
        """(epoch, offset) of its last record; (0, 0): it is not known."""
        cdef Channel *found = places_find(&self.all, channel, len(channel))
        if found == NULL:
            return 0, 0
        return found.epoch, found.offset

    def places(self, bytes channel):
        """(segment, at, size, check) of each of its messages, oldest first."""
        cdef Channel *found = places_find(&self.all, channel, len(channel))
        cdef Place *place
        cdef uint32_t number
        told = []
        if found != NULL:
            for number in range(found.count):
                place = channel_place(found, number)
                told.append((place.segment, place.at, place_size(place), place.check))
        return told

    def last_places(self, bytes namespace):
        """(channel, epoch, offset, segment, at, size, check) of each channel of a namespace that has messages: its
        position, and the place of its last message. O(channels)."""
        cdef bytes prefix = namespace + b":"
        cdef uint32_t chunk, number
        cdef Channel *channel
        cdef Place *place
        cdef const char *name
        told = []
        for chunk in range(self.all.slab.chunk_count):
            for number in range(1u << self.all.slab.chunk_shift):
                if not _is_live(&self.all, chunk, number):
                    continue
                channel = _channel_at(&self.all, (chunk << self.all.slab.chunk_shift) | number)
                name = name_text(&self.all.names, channel.name, channel.name_size)
                if channel.count == 0 or not name[:channel.name_size].startswith(prefix):
                    continue
                place = channel_place(channel, channel.count - 1)
                told.append((name[:channel.name_size], channel.epoch, channel.offset,
                             place.segment, place.at, place_size(place), place.check))
        return told

    def unknown(self):
        """How many messages there are of each namespace that is none of those it was given. O(channels)."""
        cdef uint32_t chunk, number
        cdef Channel *channel
        cdef const char *name
        told = {}
        for chunk in range(self.all.slab.chunk_count):
            for number in range(1u << self.all.slab.chunk_shift):
                if not _is_live(&self.all, chunk, number):
                    continue
                channel = _channel_at(&self.all, (chunk << self.all.slab.chunk_shift) | number)
                name = name_text(&self.all.names, channel.name, channel.name_size)
                if channel.count and namespace_of(&self.all.namespaces, name, channel.name_size) == NULL:
                    space = (<bytes> name[:channel.name_size]).partition(b":")[0]
                    told[space] = told.get(space, 0) + channel.count
        return told

    def check(self, bytes record):
        """What `places` says of a record that is whole."""
        return _check(&self.all, <const uint8_t *> <const char *> record, <uint32_t> len(record))

    def ask(self, bytes batch, uint32_t segment, uint32_t at):
        """What the router is to be asked of old records that stand there: see `places_ask`.

        Raises:
            ValueError: the bytes are no batch.
        """
        return _ask(self, batch, segment, at, True, 0)[0]

    def ask_positions(self, bytes batch, uint32_t segment, uint32_t at, uint64_t wall_ms):
        """The same of records whose messages go: positions and keys alone, and how many go that have not aged.

        Raises:
            ValueError: the bytes are no batch.
        """
        return _ask(self, batch, segment, at, False, wall_ms)

    def settle(self, uint32_t first, uint32_t last, kept, uint32_t step=STEP_RECORDS):
        """A sift put the segment `first` in the place of those up to `last`: an iterator, each step of which does some.

        Between two steps records may be added and positions asked for; places only when all steps are done.

        Args:
            kept: (at, batch of log records) of all that is in it.
            step: records or places that one step looks at, about.
        """
        cdef size_t place
        cdef uint32_t slot = 0
        for at, batch in kept:
            place = 0
            while place < <size_t> len(batch):
                place = _settle_records(&self.all, <const uint8_t *> <const char *> (<bytes> batch), len(batch), place,
                                        first, at, step)
                yield
        while slot < self.all.slab.chunk_count << self.all.slab.chunk_shift:
            slot = _settle_channels(&self.all, first, last, slot, step)
            yield
