# Log records: what a batch for the log holds, and what is read back from it.
#
# A batch is bytes to whoever stores it; the router's data plane writes and reads the records in place. Same machine
# architecture on both ends, like the bus. The fields under "while it waits" mean something only between the batch's
# start and its commit in the process that wrote it; whoever stores a batch stores them as they are.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum LogKind:
    LOG_MESSAGE = 1
    LOG_POSITION = 2            # the channel's last position, without its message
    LOG_EVENT = 3               # an EVENT frame: in no log, only on its way to other regions (core/abroad.pxd)

cdef enum LogFlag:
    LOG_WAITS = 1               # to be delivered and answered when the batch is in the log
    LOG_LAST = 2                # asked about by a sift: it is the channel's last record in the log
    LOG_REPLICATED = 8          # with LOG_WAITS: it is answered when another region has it
    LOG_BEGINS = 4              # workers were told of its global channel with this message (core/everybody.pxd)

ctypedef struct LogRecord:      # 88 bytes; name and body (the frame as MessagePack) follow
    uint32_t size               # the whole record, a multiple of 8
    uint16_t kind
    uint8_t name_size
    uint8_t shard               # of its channel (core/shards.pxd); 0 in what was written before there were several
    uint64_t epoch
    uint64_t offset
    uint64_t time_ms            # wall clock
    uint64_t key_high           # name of the idempotency key (core/keys.pxd); both 0: none
    uint64_t key_low
    uint64_t origin_epoch       # the start of the worker that published it; 0: none
    uint32_t origin_worker      # its number
    uint32_t origin_seq         # its request
    uint32_t body_size
    uint32_t flags              # LogFlag
    # while it waits
    uint32_t stream             # slot of its stream
    uint32_t worker             # index of the publisher in the router's table
    uint32_t worker_start       # low half of that worker's epoch: an index may be another's by then
    uint32_t seq                # of the answer; 0: none is wanted


cdef inline bint log_record_fits(const LogRecord *record, size_t left) noexcept nogil:
    """Whether a whole record stands here with `left` bytes to go."""
    return left >= sizeof(LogRecord) and record.size >= sizeof(LogRecord) and record.size <= left \
        and record.size % 8 == 0 and record.kind in (LOG_MESSAGE, LOG_POSITION, LOG_EVENT) \
        and record.name_size > 0 \
        and sizeof(LogRecord) + <size_t> record.name_size + record.body_size <= record.size


cdef inline const char *log_record_name(const LogRecord *record) noexcept nogil:
    """Its channel, not terminated, `name_size` bytes."""
    return <const char *> record + sizeof(LogRecord)


cdef inline const uint8_t *log_record_body(const LogRecord *record) noexcept nogil:
    """Its MESSAGE or EVENT frame, `body_size` bytes."""
    return <const uint8_t *> record + sizeof(LogRecord) + record.name_size
