"""Log records: the face for those who store batches, in Python, and for tests."""

from libc.string cimport memcpy, memset

MESSAGE = LOG_MESSAGE
POSITION = LOG_POSITION
EVENT = LOG_EVENT
WAITS = LOG_WAITS
REPLICATED = LOG_REPLICATED
BEGINS = LOG_BEGINS
HEAD_BYTES = sizeof(LogRecord)

assert HEAD_BYTES == 88


class LogEntry:
    """One record of a batch, as whoever stores it needs it."""

    __slots__ = ("kind", "channel", "epoch", "offset", "time_ms", "key", "origin", "flags", "body", "record")

    def __init__(self, kind, channel, epoch, offset, time_ms, key, origin, flags, body, record):
        self.kind = kind
        self.channel = channel
        self.epoch = epoch
        self.offset = offset
        self.time_ms = time_ms
        self.key = key
        self.origin = origin
        self.flags = flags
        self.body = body
        self.record = record


def entries(bytes batch):
    """The records of a batch, in order; `record` is the whole record, to be stored as it is.

    Raises:
        ValueError: the bytes are no batch.
    """
    cdef const uint8_t *data = <const uint8_t *> <const char *> batch
    cdef size_t size = len(batch)
    cdef size_t place = 0
    cdef const LogRecord *record
    cdef const char *name
    cdef const char *body
    found = []
    while place < size:
        record = <const LogRecord *> (data + place)
        if not log_record_fits(record, size - place):
            raise ValueError(f"no whole log record at byte {place} of {size}")
        name = log_record_name(record)
        body = <const char *> log_record_body(record)
        found.append(LogEntry(
            record.kind, name[:record.name_size], record.epoch, record.offset, record.time_ms,
            (record.key_high, record.key_low), (record.origin_epoch, record.origin_worker, record.origin_seq),
            record.flags, body[:record.body_size], (<const char *> record)[:record.size]))
        place += record.size
    return found


def pack(int kind, bytes channel, uint64_t epoch, uint64_t offset, *, uint64_t time_ms=0, key=(0, 0),
         origin=(0, 0, 0), int flags=0, bytes body=b"", int shard=0):
    """One record."""
    cdef uint32_t size = <uint32_t> ((sizeof(LogRecord) + len(channel) + len(body) + 7) & ~(<size_t> 7))
    cdef bytearray room = bytearray(size)
    cdef LogRecord *record = <LogRecord *> <char *> room
    memset(record, 0, sizeof(LogRecord))
    record.size = size
    record.kind = kind
    record.name_size = len(channel)
    record.shard = shard
    record.epoch = epoch
    record.offset = offset
    record.time_ms = time_ms
    record.key_high, record.key_low = key
    record.origin_epoch, record.origin_worker, record.origin_seq = origin
    record.body_size = len(body)
    record.flags = flags
    memcpy(<char *> record + sizeof(LogRecord), <const char *> channel, len(channel))
    memcpy(<char *> record + sizeof(LogRecord) + len(channel), <const char *> body, len(body))
    return bytes(room)
