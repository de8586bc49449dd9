"""Log out: begin, fill and free chunks; and a face for tests."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from core.batch cimport Batch, batch_free, batch_reserve
from core.slab cimport invariant, invariant_always

assert sizeof(LateAnswer) == 40


cdef int log_init(LogOut *out, uint64_t bytes_max, uint32_t under_way_max, uint32_t chunks_max,
                  uint32_t pace_ms) noexcept nogil:
    """A router with a log; -1: out of memory."""
    invariant_always(chunks_max != 0 and chunks_max & (chunks_max - 1) == 0)
    out.chunks = <LogChunk *> calloc(chunks_max, sizeof(LogChunk))
    if out.chunks == NULL:
        return -1
    out.chunks_max = chunks_max
    out.first = out.sent = out.next = 1
    out.bytes = 0
    out.bytes_max = bytes_max
    out.under_way_max = min(max(under_way_max, 1), <uint32_t> LOG_UNDER_WAY_MAX)
    out.pace_ms = pace_ms
    out.paced_ms = 0
    out.available = True
    return 0


cdef void log_free(LogOut *out) noexcept nogil:
    cdef uint32_t at
    if out.chunks == NULL:
        return
    for at in range(out.chunks_max):
        batch_free(&out.chunks[at].records)
        batch_free(&out.chunks[at].late)
    batch_free(&out.spare)
    free(out.chunks)
    out.chunks = NULL


cdef bint _begin(LogOut *out) noexcept nogil:
    """Let the newest chunk be one that still fills; False: there are too many."""
    cdef LogChunk *chunk
    if out.next > out.sent and log_chunk(out, out.next - 1).records.size < LOG_CHUNK_BYTES:
        return True
    if out.next - out.first >= out.chunks_max:
        return False
    chunk = log_chunk(out, out.next)
    invariant(chunk.records.size == 0 and chunk.late.size == 0 and chunk.count == 0)
    chunk.records = out.spare
    memset(&out.spare, 0, sizeof(Batch))
    chunk.records.bytes_max = chunk.late.bytes_max = <uint32_t> 1 << 31
    out.next += 1
    return True


cdef inline void _records_give(LogOut *out, Batch *records) noexcept nogil:
    """Keep the memory for the chunk that begins next, or free it.

    Batches of some dozen records come by the hundreds a second. Memory from the kernel for each costs three calls, its
    pages' faults, and an interrupt to the other cores when it goes: more than ordering what is in it.
    """
    if records.capacity > out.spare.capacity and records.capacity <= LOG_SPARE_BYTES:
        batch_free(&out.spare)
        out.spare = records[0]
        out.spare.size = 0
        memset(records, 0, sizeof(Batch))
    else:
        batch_free(records)


cdef uint8_t *log_reserve(LogOut *out, uint32_t size) noexcept nogil:
    """Room for a record in the chunk that fills, of undefined content, until the next call; NULL: out of memory.

    Whether it keeps the bound is the caller's question (`log_has_room`).
    """
    cdef uint8_t *room
    if not _begin(out):
        return NULL
    room = batch_reserve(&log_chunk(out, out.next - 1).records, size)
    if room != NULL:
        out.bytes += size
        log_chunk(out, out.next - 1).count += 1
    return room


cdef LateAnswer *log_late(LogOut *out) noexcept nogil:
    """Room for an answer that the newest chunk's commit gives; NULL: nothing is under way, or out of memory."""
    if out.next == out.first:
        return NULL
    return <LateAnswer *> batch_reserve(&log_chunk(out, out.next - 1).late, sizeof(LateAnswer))


cdef void log_done(LogOut *out) noexcept nogil:
    """Free the oldest chunk: the log has it, and all that waited for it was told."""
    cdef LogChunk *chunk = log_chunk(out, out.first)
    invariant(out.first < out.sent)
    out.bytes -= chunk.records.size
    _records_give(out, &chunk.records)
    batch_free(&chunk.late)
    chunk.count = 0
    out.first += 1


cdef class LogQueue:
    """The chunks of a router, for tests: records are any bytes."""

    cdef LogOut out

    def __init__(self, uint64_t bytes_max, uint32_t under_way_max, uint32_t pace_ms=0):
        if log_init(&self.out, bytes_max, under_way_max, LOG_CHUNKS_MAX, pace_ms) < 0:
            raise MemoryError

    def __dealloc__(self):
        log_free(&self.out)

    def add(self, bytes record, *, uint32_t spare=0):
        """Append a record, reserved with `spare` bytes more; False: no room for it."""
        cdef uint32_t size = <uint32_t> len(record)
        cdef uint8_t *room
        if not log_has_room(&self.out, size + spare):
            return False
        room = log_reserve(&self.out, size + spare)
        if room == NULL:
            return False
        memcpy(room, <const char *> record, size)
        log_shrink(&self.out, spare)
        return True

    def late(self, uint32_t seq):
        """An answer for the newest chunk; False: nothing is under way."""
        cdef LateAnswer *answer = log_late(&self.out)
        if answer == NULL:
            return False
        answer.seq = seq
        return True

    def wait_ms(self, uint64_t now_ms, int most_ms):
        """In how many milliseconds to ask for the next chunk."""
        return log_wait_ms(&self.out, now_ms, most_ms)

    def hand_over(self, uint64_t now_ms=0):
        """(number, records) of the next chunk, or None."""
        cdef LogChunk *chunk = log_due(&self.out, now_ms)
        if chunk == NULL:
            return None
        log_sent(&self.out, now_ms)
        return self.out.sent - 1, (<const char *> chunk.records.data)[:chunk.records.size]

    def commit(self, uint64_t number):
        """[(records, [seq of each late answer, ...]), ...] of the chunks up to `number`, which are freed."""
        cdef LogChunk *chunk = log_under_way(&self.out, number)
        done = []
        while chunk != NULL:
            late = [(<LateAnswer *> chunk.late.data)[at].seq for at in range(chunk.late.size // sizeof(LateAnswer))]
            done.append(((<const char *> chunk.records.data)[:chunk.records.size], late))
            log_done(&self.out)
            chunk = log_under_way(&self.out, number)
        return done

    @property
    def bytes(self):
        """Of all records that are not committed."""
        return self.out.bytes
