"""Rights: reading a session's lists, and taking them over."""

from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy

from core.conn cimport Aside, conn_aside
from core.mpack cimport MP_OK, MpReader, mp_read_array, mp_read_map, mp_read_str, mp_skip

RIGHTS_MAX = RIGHTS_BYTES_MAX


cdef bint _fits(const char *pattern, uint32_t pattern_size, const char *name, uint32_t size) noexcept nogil:
    if pattern_size and pattern[pattern_size - 1] == c"*":
        return size >= pattern_size - 1 and memcmp(pattern, name, pattern_size - 1) == 0
    return size == pattern_size and memcmp(pattern, name, size) == 0


cdef int _list_find(MpReader *reader, const char *name, uint32_t size) noexcept nogil:
    cdef uint32_t count = 0
    cdef uint32_t pattern_size = 0
    cdef const char *pattern
    if mp_read_array(reader, &count) != MP_OK:
        return RIGHT_REFUSED
    while count:
        count -= 1
        if mp_read_str(reader, &pattern, &pattern_size) != MP_OK:
            return RIGHT_REFUSED
        if _fits(pattern, pattern_size, name, size):
            return RIGHT_GIVEN
    return RIGHT_REFUSED


cdef int right_find(const uint8_t *rights, uint32_t rights_size, bint join, const char *name,
                    uint32_t size) noexcept nogil:
    """What the lists say of a channel; what cannot be read refuses."""
    cdef const char *verb = b"join" if join else b"publish"
    cdef uint32_t verb_size = 4 if join else 7
    cdef uint32_t pairs = 0
    cdef uint32_t key_size = 0
    cdef MpReader reader
    cdef const char *key
    reader.p = rights
    reader.end = rights + rights_size
    if mp_read_map(&reader, &pairs) != MP_OK:
        return RIGHT_REFUSED
    while pairs:
        pairs -= 1
        if mp_read_str(&reader, &key, &key_size) != MP_OK:
            return RIGHT_REFUSED
        if key_size == verb_size and memcmp(key, verb, verb_size) == 0:
            return _list_find(&reader, name, size)
        if mp_skip(&reader) != MP_OK:
            return RIGHT_REFUSED
    return RIGHT_UNSAID


cdef int rights_set(Edge *edge, Connection *conn, const uint8_t *rights, uint32_t size) noexcept nogil:
    """Take over a copy in place of what the session had; nothing: no lists. -1: out of memory, and all stays."""
    cdef Aside *aside
    cdef uint8_t *copy = NULL
    if size == 0 and conn.aside == ASIDE_NONE:
        return 0
    aside = conn_aside(&edge.asides, edge.ledger, conn)
    if size:
        copy = <uint8_t *> malloc(size)
    if aside == NULL or (size and copy == NULL):
        free(copy)
        return -1
    if size:
        memcpy(copy, rights, size)
        aside.kept = 1
    free(aside.rights)
    aside.rights = copy
    aside.rights_size = size
    return 0


def find(bytes rights, str verb, bytes channel):
    """What lists say of `join` or `publish` and a channel: True, False, or None when there is no list; for tests."""
    cdef int found = right_find(<const uint8_t *> <const char *> rights, len(rights), verb == "join", channel,
                                len(channel))
    return None if found == RIGHT_UNSAID else found == RIGHT_GIVEN
