"""Drained: a table of sessions that are on their way to another worker."""

from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

assert sizeof(DrainedSession) == 32 and DRAINED_SLOTS & (DRAINED_SLOTS - 1) == 0


cdef void drained_keep(Drained *drained, uint64_t hash, const uint8_t *session, uint32_t worker, uint64_t epoch,
                       uint64_t now_ms) noexcept nogil:
    """Remember a session that a worker told to come back; without memory nothing is, and the pace goes by the rest."""
    cdef DrainedSession *entry
    if drained.memory == NULL:
        drained.memory = <DrainedSession *> calloc(DRAINED_SLOTS, sizeof(DrainedSession))
        if drained.memory == NULL:
            return
    entry = &drained.memory[hash & (DRAINED_SLOTS - 1)]
    memcpy(entry.session, session, 16)
    entry.told_ms = now_ms
    entry.worker = worker
    entry.start = <uint32_t> epoch
    drained.last_ms = now_ms


cdef DrainedSession *drained_take(Drained *drained, uint64_t hash, const uint8_t *session,
                                  uint64_t now_ms) noexcept nogil:
    """The entry of a session that is claimed now, which is free from here on; NULL when it is not one of them."""
    cdef DrainedSession *entry
    if drained.memory == NULL:
        return NULL
    entry = &drained.memory[hash & (DRAINED_SLOTS - 1)]
    if entry.told_ms == 0 or now_ms - entry.told_ms > DRAINED_MS or memcmp(entry.session, session, 16) != 0:
        return NULL
    entry.told_ms = 0
    return entry


cdef void drained_tick(Drained *drained, uint64_t now_ms) noexcept nogil:
    """Give the memory back once nobody can be on the way any more."""
    if drained.memory != NULL and now_ms - drained.last_ms > DRAINED_MS:
        drained_free(drained)


cdef void drained_free(Drained *drained) noexcept nogil:
    free(drained.memory)
    drained.memory = NULL
