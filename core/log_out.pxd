# Log out: what a router ordered and the log does not have yet.
#
# Records gather in the newest chunk; a chunk is one batch of the log, numbered from 1, and stays in memory until the
# log has it. Chunks are handed over and committed in their order, so the numbers of those under way are a range. What
# waits is bounded in bytes: beyond the bound there is no room, and whoever asked says what becomes of the message.
# A batch costs the log the same whatever is in it. So behind one of several records the next leaves `pace_ms` later at
# the soonest, unless it has grown to LOG_PACED_BYTES by then, where its cost does not show any more (docs/adr/0098).
# Whoever publishes one message after the other never waits for that. Time is an argument.
# Invariant: 1 <= first <= sent <= next, next - first <= chunks_max; `bytes` is the sum of the chunks' records.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.batch cimport Batch

cdef enum:
    LOG_CHUNKS_MAX = 1024       # unless whoever makes it says otherwise; a power of two
    LOG_CHUNK_BYTES = 1048576   # what is beyond it goes into the next one
    LOG_UNDER_WAY_MAX = 64
    LOG_PACED_BYTES = 32768     # one of so many bytes waits for no pace
    LOG_SPARE_BYTES = 131072    # memory for a chunk's records that is kept for the next one, at most

ctypedef struct LateAnswer:     # 40 bytes: a publish that repeats one which is not in the log yet
    uint64_t epoch              # the position that it is answered with
    uint64_t offset
    uint32_t worker             # as in LogRecord
    uint32_t worker_start
    uint32_t seq
    uint32_t stream             # slot + 1, where it is answered when another region has it; else 0
    uint32_t shard
    uint32_t reserved

ctypedef struct LogChunk:
    Batch records               # LogRecords
    Batch late                  # LateAnswers that this chunk's commit gives
    uint32_t count              # of the records

ctypedef struct LogOut:
    LogChunk *chunks            # owned: `chunks_max` of them; NULL: this router has no log
    uint64_t first              # number of the oldest that is not committed
    uint64_t sent               # of the first that was not handed over
    uint64_t next               # of the first that was not begun
    uint64_t bytes
    uint64_t bytes_max
    uint32_t chunks_max         # a power of two
    Batch spare                 # memory without records in it, for the next chunk; owned
    uint64_t paced_ms           # before this time of the monotonic clock only what is large is handed over
    uint32_t pace_ms            # 0: nothing waits for it
    uint32_t under_way_max      # chunks handed over and not committed
    bint available              # the log takes batches


cdef inline bint log_is_there(const LogOut *out) noexcept nogil:
    return out.chunks != NULL


cdef inline LogChunk *log_chunk(const LogOut *out, uint64_t number) noexcept nogil:
    return &out.chunks[number & (out.chunks_max - 1)]


cdef inline bint log_has_room(const LogOut *out, uint32_t size) noexcept nogil:
    """Whether a record of `size` bytes stays within the bound."""
    return out.bytes + size <= out.bytes_max


cdef inline void log_shrink(LogOut *out, uint32_t by) noexcept nogil:
    """Give back the last bytes of what `log_reserve` gave last."""
    log_chunk(out, out.next - 1).records.size -= by
    out.bytes -= by


cdef inline bint log_waits(const LogOut *out) noexcept nogil:
    """Whether there is a chunk that may be handed over as far as those under way go."""
    return out.sent != out.next and out.sent - out.first < out.under_way_max \
        and log_chunk(out, out.sent).records.size != 0          # else begun without memory for its first record


cdef inline int log_wait_ms(const LogOut *out, uint64_t now_ms, int most_ms) noexcept nogil:
    """In how many milliseconds `log_due` is to be asked again, at most `most_ms`."""
    if out.paced_ms <= now_ms or not log_waits(out):
        return most_ms
    return min(most_ms, <int> (out.paced_ms - now_ms))


cdef inline LogChunk *log_due(LogOut *out, uint64_t now_ms) noexcept nogil:
    """The next chunk to hand over, number `sent`, or NULL: there is none, enough are under way, or it is too soon."""
    cdef LogChunk *chunk
    if not log_waits(out):
        return NULL
    chunk = log_chunk(out, out.sent)
    return NULL if now_ms < out.paced_ms and chunk.records.size < LOG_PACED_BYTES else chunk


cdef inline void log_sent(LogOut *out, uint64_t now_ms) noexcept nogil:
    """What `log_due` gave is handed over."""
    if log_chunk(out, out.sent).count > 1:
        out.paced_ms = now_ms + out.pace_ms
    out.sent += 1


cdef inline LogChunk *log_under_way(LogOut *out, uint64_t number) noexcept nogil:
    """The oldest chunk if it is handed over and its number is not beyond `number`, else NULL."""
    if out.first == out.sent or out.first > number:
        return NULL
    return log_chunk(out, out.first)


cdef int log_init(LogOut *out, uint64_t bytes_max, uint32_t under_way_max, uint32_t chunks_max,
                  uint32_t pace_ms) noexcept nogil
cdef void log_free(LogOut *out) noexcept nogil
cdef uint8_t *log_reserve(LogOut *out, uint32_t size) noexcept nogil
cdef LateAnswer *log_late(LogOut *out) noexcept nogil
cdef void log_done(LogOut *out) noexcept nogil
