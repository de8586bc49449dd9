"""A log batch as commands for Redis: cutting it, and reading a tail back."""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING
from libc.string cimport memchr, memcmp, memcpy, memset

from core.log_records cimport LOG_BEGINS, LOG_POSITION, LogRecord, log_record_fits, log_record_name
from core.number cimport NUMBER_TEXT_SIZE_MAX, integer_write

cdef enum:
    BULK_BYTES = 16         # what stands around a value: `$`, at most ten digits, two line ends
    ID_BYTES = 41           # two numbers of 64 bits and a hyphen
    EPOCH_BYTES = 20
    SHARD_EPOCH_SHIFT = 24  # of a shard's epoch in those of its records: see router/shard_keeper.py
    COUNTS_BYTES = 256      # the numbers of a command: arguments, keys, epoch, batch, the last one
    RUN_BYTES = 64          # count of a run's records
    WAITING_BYTES = 20      # the record's end: its flags, and what means something only while it waits
    FIXED_KEYS = 4          # of a command, before those of channels
    FIXED_ARGS = 7          # before what is said of channels
    EMPTY = 0xa0            # MessagePack of a string without bytes

cdef uint32_t _crc[256]


cdef void _crc_fill() noexcept nogil:
    """The reflected polynomial of IEEE 802.3, as zlib has it."""
    cdef uint32_t byte, value
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (<uint32_t> 0xEDB88320 if value & 1 else 0)
        _crc[byte] = value


_crc_fill()
assert sizeof(TailHead) == 26
assert sizeof(TailKey) == 16
assert sizeof(TailOrigin) == 16


cdef uint32_t crc32(const uint8_t *data, uint32_t size) noexcept nogil:
    """CRC-32 as zlib.crc32 has it."""
    cdef uint32_t value = <uint32_t> 0xFFFFFFFF
    cdef uint32_t at
    for at in range(size):
        value = (value >> 8) ^ _crc[(value ^ data[at]) & 0xFF]
    return value ^ <uint32_t> 0xFFFFFFFF


cdef inline uint64_t _fnv1a(const char *data, uint32_t size) noexcept nogil:
    """FNV-1a of 64 bits (Fowler, Noll, Vo)."""
    cdef uint64_t value = <uint64_t> 0xCBF29CE484222325
    cdef uint32_t at
    for at in range(size):
        value = (value ^ <uint8_t> data[at]) * <uint64_t> 0x100000001B3
    return value


cdef bint _is_fresh(Refreshed *places, const LogRecord *record) noexcept nogil:
    """Whether the channel's key was told within the last hour when to expire; if not, it is to be told now."""
    cdef uint64_t hash = _fnv1a(log_record_name(record), record.name_size)
    cdef uint64_t minute = record.time_ms // 60000
    cdef Refreshed *place = &places[hash % REFRESH_SLOTS]
    if place.hash == hash and place.minute <= minute and minute - place.minute < REFRESH_MINUTES:
        return True
    place.hash = hash
    place.minute = minute
    return False


cdef inline bint _same_channel(const LogRecord *one, const LogRecord *other) noexcept nogil:
    return one.name_size == other.name_size \
        and memcmp(log_record_name(one), log_record_name(other), one.name_size) == 0


cdef inline bint _has_key(const LogRecord *record) noexcept nogil:
    return record.key_high != 0 or record.key_low != 0


cdef inline uint32_t _tail_size(const LogRecord *record) noexcept nogil:
    return <uint32_t> (sizeof(TailHead) + record.name_size + (sizeof(TailKey) if _has_key(record) else 0)
                       + (sizeof(TailOrigin) if record.origin_epoch else 0))


cdef uint8_t *_put_tail(uint8_t *to, const LogRecord *record) noexcept nogil:
    cdef TailHead head
    cdef TailKey key
    cdef TailOrigin origin
    head.flags = (TAIL_KEY if _has_key(record) else 0) | (TAIL_ORIGIN if record.origin_epoch else 0)
    head.name_size = <uint8_t> record.name_size
    head.epoch = record.epoch
    head.offset = record.offset
    head.time_ms = record.time_ms
    to = _put(to, &head, sizeof(head))
    to = _put(to, log_record_name(record), record.name_size)
    if head.flags & TAIL_KEY:
        key.high = record.key_high
        key.low = record.key_low
        to = _put(to, &key, sizeof(key))
    if head.flags & TAIL_ORIGIN:
        origin.epoch = record.origin_epoch
        origin.worker = record.origin_worker
        origin.seq = record.origin_seq
        to = _put(to, &origin, sizeof(origin))
    return to


cdef inline uint8_t *_put(uint8_t *to, const void *data, size_t size) noexcept nogil:
    memcpy(to, data, size)
    return to + size


cdef inline uint8_t *_put_count(uint8_t *to, uint8_t mark, uint64_t count) noexcept nogil:
    """`*3` or `$3`, and the line's end."""
    to[0] = mark
    to += 1
    to += integer_write(False, count, to)
    return _put(to, b"\r\n", 2)


cdef inline uint8_t *_put_bulk(uint8_t *to, const void *data, size_t size) noexcept nogil:
    to = _put_count(to, b"$", size)
    to = _put(to, data, size)
    return _put(to, b"\r\n", 2)


cdef inline uint8_t *_put_number(uint8_t *to, uint64_t value) noexcept nogil:
    cdef uint8_t text[NUMBER_TEXT_SIZE_MAX]
    return _put_bulk(to, text, integer_write(False, value, text))


cdef inline uint8_t *_put_epoch(uint8_t *to, uint64_t epoch) noexcept nogil:
    """Twenty digits, so that epochs are in the order of their texts."""
    cdef uint8_t text[EPOCH_BYTES]
    cdef int at
    for at in range(EPOCH_BYTES - 1, -1, -1):
        text[at] = <uint8_t> (48 + epoch % 10)
        epoch //= 10
    return _put_bulk(to, text, EPOCH_BYTES)


cdef inline uint8_t *_put_record(uint8_t *to, const LogRecord *record) noexcept nogil:
    """Its id and its bytes, at rest; of a position alone, no bytes."""
    cdef uint8_t text[2 * NUMBER_TEXT_SIZE_MAX]
    cdef uint8_t rest[WAITING_BYTES]
    cdef size_t size = integer_write(False, record.epoch, text)
    cdef uint32_t flags = record.flags & <uint32_t> LOG_BEGINS
    text[size] = b"-"
    size += 1
    size += integer_write(False, record.offset, text + size)
    to = _put_bulk(to, text, size)
    if record.kind == LOG_POSITION:
        return _put_bulk(to, b"", 0)
    to = _put_bulk(to, record, record.size)
    memset(rest, 0, WAITING_BYTES)
    memcpy(rest, &flags, sizeof(flags))
    memcpy(to - 2 - record.size + sizeof(LogRecord) - WAITING_BYTES, rest, WAITING_BYTES)
    return to


cdef class Cutter:
    """Cuts batches into commands.

    Args:
        evalsha: `EVALSHA` and the script's name, packed.
        starts: how the keys of each shard begin.
        keys: the keys of each shard that come before its channels, four of them, packed.
        settings: three arguments after epoch and number, packed.
        retentions: a namespace, how many messages are kept of its channels, and after how many ms without one a
            channel is forgotten (what else the script makes of it is the script's), both packed; the last one is for
            all others. The latter is only sent if it was not
            sent for that channel within the last hour, since it costs as much as a sixth of all else; else it is 0.
        shared: whether several routers write the log, each some of the shards.
    """

    cdef bytes _evalsha, _settings
    cdef list _starts, _keys, _names, _retentions, _expiries
    cdef bytearray _cuts, _parts, _room, _refreshed
    cdef uint32_t _shards
    cdef uint32_t _retention_bytes
    cdef bint _shared

    def __init__(self, bytes evalsha, list starts, list keys, bytes settings, list retentions, bint shared=False):
        self._shared = shared
        self._evalsha, self._settings = evalsha, settings
        self._starts, self._keys = starts, keys
        self._names = [name for name, _, _ in retentions]
        self._retentions = [kept for _, kept, _ in retentions]
        self._expiries = [expiry for _, _, expiry in retentions]
        self._retention_bytes = max(len(kept) + len(expiry) for _, kept, expiry in retentions)
        self._shards = len(starts)
        self._cuts = bytearray(self._shards * sizeof(Cut))
        self._parts = bytearray()
        self._room = bytearray()
        self._refreshed = bytearray(REFRESH_SLOTS * sizeof(Refreshed))

    def forget(self):
        """Another server may be there: it is to be told anew when keys expire."""
        memset(PyByteArray_AS_STRING(self._refreshed), 0, REFRESH_SLOTS * sizeof(Refreshed))

    def cut(self, bytes batch, uint64_t epoch, list numbers):
        """The commands of a batch: shard, command.

        Args:
            batch: log records.
            epoch: who appends; of no account where several routers do.
            numbers: for each shard, the number that its next batch gets.

        Raises:
            ValueError: the bytes are no batch.
        """
        cdef uint32_t shard
        cdef Cut *cuts
        self._sort(batch)
        cuts = <Cut *> PyByteArray_AS_STRING(self._cuts)
        return [(shard, self._command(batch, epoch, shard, numbers[shard]))
                for shard in range(self._shards) if cuts[shard].records]

    cdef _sort(self, bytes batch):
        """Each record to its shard."""
        cdef const uint8_t *data = <const uint8_t *> PyBytes_AS_STRING(batch)
        cdef size_t size = len(batch), at = 0
        cdef uint32_t count = 0
        cdef const LogRecord *record
        cdef Cut *cuts = <Cut *> PyByteArray_AS_STRING(self._cuts)
        if <size_t> len(self._parts) < size // sizeof(LogRecord) * sizeof(Part):
            PyByteArray_Resize(self._parts, size // sizeof(LogRecord) * sizeof(Part))
        memset(cuts, 0, self._shards * sizeof(Cut))
        while at < size:
            record = <const LogRecord *> (data + at)
            if not log_record_fits(record, size - at):
                raise ValueError(f"no whole log record at byte {at} of {size}")
            count += 1
            _sort_one(data, <Part *> PyByteArray_AS_STRING(self._parts), &cuts[self._shard_of(record)],
                      <uint32_t> at, count)
            at += record.size

    cdef inline uint32_t _shard_of(self, const LogRecord *record) noexcept:
        if self._shared:
            return record.shard % self._shards
        return crc32(<const uint8_t *> log_record_name(record), record.name_size) % self._shards

    cdef int _retention(self, const LogRecord *record):
        """Which namespace's retention the record's channel has."""
        cdef const char *name = log_record_name(record)
        cdef bytes known
        cdef int index
        for index in range(len(self._names) - 1):
            known = <bytes> self._names[index]
            if len(known) < record.name_size and name[len(known)] == b":" \
                    and memcmp(PyBytes_AS_STRING(known), name, len(known)) == 0:
                return index
        return <int> len(self._names) - 1

    cdef bytes _command(self, bytes batch, uint64_t epoch, uint32_t shard, uint64_t number):
        cdef Cut *cut = <Cut *> PyByteArray_AS_STRING(self._cuts) + shard
        cdef const Part *parts = <const Part *> PyByteArray_AS_STRING(self._parts)
        cdef const uint8_t *data = <const uint8_t *> PyBytes_AS_STRING(batch)
        cdef bytes start = <bytes> self._starts[shard]
        cdef bytes keys = <bytes> self._keys[shard]
        cdef uint64_t room = cut.room + COUNTS_BYTES + len(self._evalsha) + len(keys) + len(self._settings) \
            + cut.runs * (<uint64_t> BULK_BYTES + len(start) + 258 + RUN_BYTES + self._retention_bytes)
        cdef uint8_t *to
        cdef uint8_t *begin
        if <uint64_t> len(self._room) < room:
            PyByteArray_Resize(self._room, room)
        begin = to = <uint8_t *> PyByteArray_AS_STRING(self._room)
        to = _put_count(to, b"*", <uint64_t> 15 + 4 * <uint64_t> cut.runs + 2 * <uint64_t> cut.records)
        to = _put(to, PyBytes_AS_STRING(self._evalsha), len(self._evalsha))
        to = _put_number(to, <uint64_t> 4 + cut.runs)
        to = _put(to, PyBytes_AS_STRING(keys), len(keys))
        to = _put_channels(to, data, parts, cut, PyBytes_AS_STRING(start), <uint32_t> len(start))
        if self._shared:  # of the oldest: what was ordered under an earlier one is refused with it
            epoch = (<const LogRecord *> (data + parts[cut.first - 1].at)).epoch >> SHARD_EPOCH_SHIFT
        to = _put_epoch(to, epoch)
        to = _put_number(to, number)
        to = _put(to, PyBytes_AS_STRING(self._settings), len(self._settings))
        to = _put_tails(to, data, parts, cut, True)
        to = _put_tails(to, data, parts, cut, False)
        to = self._put_runs(to, data, parts, cut)
        to = _put_bulk(to, b"0", 1)
        assert <uint64_t> (to - begin) <= room
        return (<const char *> begin)[:to - begin]

    cdef uint8_t *_put_runs(self, uint8_t *to, const uint8_t *data, const Part *parts, Cut *cut):
        """The records, with what is said of each run of one channel before it."""
        cdef uint32_t index = cut.first, next_run
        cdef const LogRecord *record
        cdef Refreshed *refreshed = <Refreshed *> PyByteArray_AS_STRING(self._refreshed)
        cdef bytes kept, expiry
        cdef int retention
        while index:
            record = <const LogRecord *> (data + parts[index - 1].at)
            retention = self._retention(record)
            kept, expiry = <bytes> self._retentions[retention], <bytes> self._expiries[retention]
            to = _put(to, PyBytes_AS_STRING(kept), len(kept))
            if _is_fresh(refreshed, record):
                to = _put_bulk(to, b"0", 1)
            else:
                to = _put(to, PyBytes_AS_STRING(expiry), len(expiry))
            to = _put_number(to, _run_size(data, parts, index, &next_run))
            while index != next_run:
                to = _put_record(to, <const LogRecord *> (data + parts[index - 1].at))
                index = parts[index - 1].next
        return to


cdef void _sort_one(const uint8_t *data, Part *parts, Cut *cut, uint32_t at, uint32_t count) noexcept nogil:
    """Behind the shard's records so far; `count` is its own number, from 1."""
    cdef const LogRecord *record = <const LogRecord *> (data + at)
    parts[count - 1].at = at
    parts[count - 1].next = 0
    if cut.records:
        parts[cut.last - 1].next = count
    else:
        cut.first = count
    if cut.records == 0 or not _same_channel(record, <const LogRecord *> (data + parts[cut.last - 1].at)):
        cut.runs += 1
    cut.last = count
    cut.records += 1
    if _has_key(record):
        cut.keys_bytes += _tail_size(record)
    else:
        cut.tail_bytes += _tail_size(record)
    cut.room += _tail_size(record) + ID_BYTES + 2 * BULK_BYTES + record.size


cdef uint32_t _run_size(const uint8_t *data, const Part *parts, uint32_t index, uint32_t *after) noexcept nogil:
    """How many records of one channel follow each other from here on; `after`: the one after them, 0: none."""
    cdef const LogRecord *first = <const LogRecord *> (data + parts[index - 1].at)
    cdef uint32_t size = 0
    while index and _same_channel(first, <const LogRecord *> (data + parts[index - 1].at)):
        size += 1
        index = parts[index - 1].next
    after[0] = index
    return size


cdef uint8_t *_put_channels(uint8_t *to, const uint8_t *data, const Part *parts, Cut *cut, const char *start,
                            uint32_t start_size) noexcept nogil:
    """The key of each run's channel: the shard's start, `c:`, the name."""
    cdef uint32_t index = cut.first, after
    cdef const LogRecord *record
    while index:
        record = <const LogRecord *> (data + parts[index - 1].at)
        to = _put_count(to, b"$", <uint64_t> start_size + 2 + record.name_size)
        to = _put(to, start, start_size)
        to = _put(to, b"c:", 2)
        to = _put(to, log_record_name(record), record.name_size)
        to = _put(to, b"\r\n", 2)
        _run_size(data, parts, index, &after)
        index = after
    return to


cdef uint8_t *_put_tails(uint8_t *to, const uint8_t *data, const Part *parts, Cut *cut, bint keys) noexcept nogil:
    """The tail of the records that have a key, or of those that have none."""
    cdef uint32_t index = cut.first
    cdef const LogRecord *record
    to = _put_count(to, b"$", cut.keys_bytes if keys else cut.tail_bytes)
    while index:
        record = <const LogRecord *> (data + parts[index - 1].at)
        if _has_key(record) == keys:
            to = _put_tail(to, record)
        index = parts[index - 1].next
    return _put(to, b"\r\n", 2)


def tail_records(bytes tail, uint8_t shard=0):
    """The records of a tail, as log records of a shard without bodies.

    Raises:
        ValueError: the bytes are no tail.
    """
    cdef const uint8_t *data = <const uint8_t *> PyBytes_AS_STRING(tail)
    cdef size_t size = len(tail), at = 0, need
    # 26 bytes and a name become 88 and the same name, and seven more at most.
    cdef bytearray room = bytearray(size * 4 + sizeof(LogRecord))
    cdef uint8_t *begin = <uint8_t *> PyByteArray_AS_STRING(room)
    cdef uint8_t *to = begin
    cdef const TailHead *head
    while at < size:
        head = <const TailHead *> (data + at)
        need = sizeof(TailHead)
        if size - at >= need:
            need += head.name_size + (sizeof(TailKey) if head.flags & TAIL_KEY else 0) \
                + (sizeof(TailOrigin) if head.flags & TAIL_ORIGIN else 0)
        if size - at < need or head.name_size == 0:
            raise ValueError(f"{size} bytes that are no keys and origins")
        to = _record_of(to, head, shard)
        at += need
    return (<const char *> begin)[:to - begin]


cdef uint8_t *_record_of(uint8_t *to, const TailHead *head, uint8_t shard) noexcept nogil:
    """The log record of one entry, which is whole."""
    cdef LogRecord *record = <LogRecord *> to
    cdef const uint8_t *rest = <const uint8_t *> head + sizeof(TailHead)
    cdef uint32_t size = (<uint32_t> sizeof(LogRecord) + head.name_size + 7) & ~(<uint32_t> 7)
    memset(to, 0, size)
    record.size = size
    record.kind = LOG_POSITION
    record.name_size = head.name_size
    record.shard = shard
    record.epoch = head.epoch
    record.offset = head.offset
    record.time_ms = head.time_ms
    memcpy(to + sizeof(LogRecord), rest, head.name_size)
    rest += head.name_size
    if head.flags & TAIL_KEY:
        record.key_high = (<const TailKey *> rest).high
        record.key_low = (<const TailKey *> rest).low
        rest += sizeof(TailKey)
    if head.flags & TAIL_ORIGIN:
        record.origin_epoch = (<const TailOrigin *> rest).epoch
        record.origin_worker = (<const TailOrigin *> rest).worker
        record.origin_seq = (<const TailOrigin *> rest).seq
    return to + size


cdef inline const uint8_t *_take_size(const uint8_t *at, const uint8_t *end, uint8_t fixed, uint8_t wide,
                                      uint64_t *size) noexcept nogil:
    """Read the head of an array (fixed 0x90, wide 0xdc) or of a string (0xa0, 0xda); NULL: it is none."""
    cdef uint8_t mask = <uint8_t> (0x0f if fixed == 0x90 else 0x1f)
    cdef uint32_t bytes_ = 0
    if at == end:
        return NULL
    if (at[0] & ~mask) == fixed:
        size[0] = at[0] & mask
        return at + 1
    if at[0] == wide:
        bytes_ = 2
    elif at[0] == wide + 1:
        bytes_ = 4
    elif fixed == 0xa0 and at[0] == 0xd9:
        bytes_ = 1
    if bytes_ == 0 or <size_t> (end - at) <= bytes_:
        return NULL
    at += 1
    size[0] = 0
    while bytes_:
        size[0] = size[0] << 8 | at[0]
        at += 1
        bytes_ -= 1
    return at


cdef inline const uint8_t *_take_text(const uint8_t *at, const uint8_t *end, Text *text) noexcept nogil:
    """Read a string; NULL: it is none, or not whole."""
    at = _take_size(at, end, 0xa0, 0xda, &text.size)
    if at == NULL or text.size > <uint64_t> (end - at):
        return NULL
    text.data = at
    return at + text.size


cdef inline uint64_t _number_of(const uint8_t *at, const uint8_t *end) noexcept nogil:
    """The digits from here on."""
    cdef uint64_t value = 0
    while at != end and 48 <= at[0] <= 57:
        value = value * 10 + (at[0] - 48)
        at += 1
    return value


cdef inline const uint8_t *_name_of(const Text *key) noexcept nogil:
    """Where the channel stands in its key, behind the hash tag and `:c:`; NULL: it is no key of a channel."""
    cdef const uint8_t *brace = <const uint8_t *> memchr(key.data, c"}", key.size)
    cdef uint64_t left = 0 if brace == NULL else <uint64_t> (key.data + key.size - brace)
    if left < 5 or left > 4 + 255 or memcmp(brace, b"}:c:", 4) != 0:
        return NULL
    return brace + 4


cdef inline uint8_t *_put_position(uint8_t *to, const Text *key, const Text *id_, uint8_t shard) noexcept nogil:
    """The record of a position alone; NULL: it is none."""
    cdef LogRecord *record = <LogRecord *> to
    cdef const uint8_t *name = _name_of(key)
    cdef const uint8_t *mark = <const uint8_t *> memchr(id_.data, c"-", id_.size)
    cdef uint32_t size
    if name == NULL or mark == NULL:
        return NULL
    size = (<uint32_t> sizeof(LogRecord) + <uint32_t> (key.data + key.size - name) + 7) & ~(<uint32_t> 7)
    memset(to, 0, size)
    record.size = size
    record.kind = LOG_POSITION
    record.name_size = <uint8_t> (key.data + key.size - name)
    record.shard = shard
    record.epoch = _number_of(id_.data, mark)
    record.offset = _number_of(mark + 1, id_.data + id_.size)
    memcpy(to + sizeof(LogRecord), name, record.name_size)
    return to + size


cdef inline uint8_t *_put_message(uint8_t *to, const Text *body) noexcept nogil:
    """A whole record; NULL: it is none."""
    if body.size < sizeof(LogRecord):
        return NULL
    memcpy(to, body.data, body.size)
    if not log_record_fits(<const LogRecord *> to, body.size) or (<const LogRecord *> to).size != body.size:
        return NULL
    return to + body.size


cdef uint8_t *_put_bridged(uint8_t *to, const uint8_t *at, const uint8_t *end, uint8_t shard) noexcept nogil:
    """All records of an entry of a bridge; NULL: it is none."""
    cdef uint64_t two = 0, keys = 0, args = 0, _index, _record
    cdef Text text, key, id_, body
    cdef const uint8_t *names
    at = _take_size(at, end, 0x90, 0xdc, &two)
    if at == NULL or two != 2:
        return NULL
    at = _take_size(at, end, 0x90, 0xdc, &keys)
    for _index in range(FIXED_KEYS):
        if at != NULL:
            at = _take_text(at, end, &text)
    names = at
    for _index in range(FIXED_KEYS, keys):
        if at != NULL:
            at = _take_text(at, end, &text)
    if at != NULL:
        at = _take_size(at, end, 0x90, 0xdc, &args)
    for _index in range(FIXED_ARGS):
        if at != NULL:
            at = _take_text(at, end, &text)
    if at == NULL:
        return NULL
    for _index in range(FIXED_KEYS, keys):
        names = _take_text(names, end, &key)
        for _record in range(3):  # how many are kept, until when, and how many records there are
            if at != NULL:
                at = _take_text(at, end, &text)
        if at == NULL:
            return NULL
        for _record in range(_number_of(text.data, text.data + text.size)):
            at = _take_text(at, end, &id_)
            if at != NULL:
                at = _take_text(at, end, &body)
            if at == NULL or body.size == 0 and (at - 1)[0] != EMPTY:  # there is room for those that are counted
                return NULL
            to = _put_message(to, &body) if body.size else _put_position(to, &key, &id_, shard)
            if to == NULL:
                return NULL
    return to


def bridged_records(bytes entry, uint8_t shard):
    """The log records that an entry of a shard's bridge (router/log/bridge_scripts.py) holds, in their order.

    Raises:
        ValueError: the bytes are no such entry.
    """
    cdef const uint8_t *data = <const uint8_t *> PyBytes_AS_STRING(entry)
    cdef size_t size = len(entry)
    # A position has at least seven bytes and its part of a key here, and becomes 88, the name, and seven more at most;
    # of the names of a run there is one for all of its records.
    cdef uint64_t room = size
    cdef uint8_t *begin
    cdef uint8_t *to
    cdef bytearray there
    room += entry.count(b"\xa0") * (<uint64_t> sizeof(LogRecord) + 256 + 7)
    there = bytearray(room)
    begin = <uint8_t *> PyByteArray_AS_STRING(there)
    to = _put_bridged(begin, data, data + size, shard)
    if to == NULL:
        raise ValueError(f"{size} bytes that are no batch of a bridge")
    return (<const char *> begin)[:to - begin]
