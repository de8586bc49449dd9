"""Shared buffers: a Python face for the tests."""

from core.ledger cimport Stats
from libc.string cimport memcpy


cdef class SharedBuffer:
    """A reference-counted buffer; `retain` and `release` count, the last release frees."""

    cdef Shared *shared
    cdef Stats stats

    def __init__(self, Stats stats, bytes data):
        self.stats = stats
        self.shared = shared_create(&stats.ledger, len(data))
        memcpy(self.shared.data, <const char *> data, len(data))
        self.shared.used = len(data)

    @property
    def refs(self):
        return 0 if self.shared == NULL else self.shared.refs

    def retain(self):
        self.shared.refs += 1

    def release(self):
        """Drop one reference; True when it was the last."""
        cdef bint last = self.shared.refs == 1
        shared_release(&self.stats.ledger, self.shared)
        if last:
            self.shared = NULL
        return last


cdef class WireArena:
    """An arena that messages are written to."""

    cdef Arena arena
    cdef Stats stats

    def __init__(self, Stats stats):
        self.stats = stats

    def write(self, bytes data):
        """(offset, references of the buffer) of the bytes just written."""
        cdef uint8_t *room = arena_reserve(&self.arena, &self.stats.ledger, len(data))
        if room == NULL:
            raise MemoryError
        memcpy(room, <const char *> data, len(data))
        return arena_commit(&self.arena, len(data)), self.arena.current.refs

    def rest(self, bint keep):
        arena_rest(&self.arena, &self.stats.ledger, keep)
