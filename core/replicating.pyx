"""Replicating: what waits for another region."""

from core.batch cimport batch_taken, batch_write
from core.codes cimport UNAVAILABLE
from core.leading cimport SHARD_FORGETTING, SHARD_LEADING, SHARD_PAUSED
from core.sequencer cimport WORKER_LINKING, worker_at, worker_published

assert sizeof(Replicating) == 48


cdef inline Replicating *_at(const Sequencer *sequencer, uint32_t place) noexcept nogil:
    return <Replicating *> (sequencer.replicating.data + place)


cdef bint replicating_takes(const Sequencer *sequencer) noexcept nogil:
    """Whether some region confirms what it gets, and there is room for answers that wait for one."""
    return sequencer.confirmed and sequencer.replicating.size < sequencer.replicating.bytes_max // 2


cdef inline bint _is_ours(const Sequencer *sequencer, const Replicating *entry) noexcept nogil:
    """Whether its shard is led here as it was then, or is about to be forgotten."""
    cdef int state = sequencer.shards[entry.shard].state
    return (state == SHARD_LEADING or state == SHARD_PAUSED or state == SHARD_FORGETTING) \
        and entry.epoch >= sequencer.shards[entry.shard].epoch


cdef void _answer(Sequencer *sequencer, const Replicating *entry, int code) noexcept nogil:
    """Unless its worker is another's place by now, or the shard another router's."""
    cdef Worker *worker = worker_at(sequencer, entry.worker)
    if not _is_ours(sequencer, entry):
        return
    if worker.state >= WORKER_LINKING and <uint32_t> worker.epoch == entry.worker_start:
        worker_published(worker, entry.seq, code, 0 if code else entry.epoch, 0 if code else entry.offset)


cdef bint replicating_add(Sequencer *sequencer, const Replicating *entry) noexcept nogil:
    """An answer for later; False: there is no room, and it was told to come again, when its position is known."""
    if entry.seq == 0:
        return True
    if entry.number <= sequencer.replicated:    # who confirms may be quicker than who tells of our own log
        _answer(sequencer, entry, 0)
        return True
    if batch_write(&sequencer.replicating, entry, sizeof(Replicating)) < 0:
        _answer(sequencer, entry, UNAVAILABLE)
        return False
    return True


cdef int replicating_again(Sequencer *sequencer, const Stream *stream, uint32_t shard,
                           const Replicating *entry) noexcept nogil:
    """What is known of a position that was given before; where it waits, the new answer does too: O(those that wait),
    for who repeats a publish."""
    cdef uint32_t place = sequencer.replicating_place
    cdef Replicating other
    if entry.epoch < sequencer.shards[shard].epoch:
        return KNOWN_UNCERTAIN if sequencer.shards[shard].unconfirmed else KNOWN_REPLICATED
    while stream != NULL and stream.history != NULL and place < sequencer.replicating.size:
        other = _at(sequencer, place)[0]
        place += <uint32_t> sizeof(Replicating)
        if other.stream == stream.history.slot and other.epoch == entry.epoch and other.offset == entry.offset:
            other.worker = entry.worker
            other.worker_start = entry.worker_start
            other.seq = entry.seq
            replicating_add(sequencer, &other)
            return KNOWN_WAITS
    return KNOWN_REPLICATED


cdef void replicating_done(Sequencer *sequencer, const Note *note) noexcept nogil:
    """NOTE_REPLICATED."""
    cdef uint32_t place = sequencer.replicating_place
    if note.second:
        if note.request < sequencer.shard_count:
            sequencer.shards[note.request].unconfirmed = 0
        return
    sequencer.confirmed = note.first != 0
    sequencer.replicated = max(sequencer.replicated, note.request)
    while place < sequencer.replicating.size and _at(sequencer, place).number <= note.request:
        _answer(sequencer, _at(sequencer, place), 0)
        place += <uint32_t> sizeof(Replicating)
    sequencer.replicating_place = batch_taken(&sequencer.replicating, place)
