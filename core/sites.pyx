"""Sites: a table with open addressing and backward-shift deletion, and a Python face for the tests."""

from libc.stdlib cimport calloc, free


cdef inline uint32_t _home(Sites *sites, int kind, uint64_t key) noexcept nogil:
    cdef uint64_t hash = (key ^ (<uint64_t> kind << 56)) * <uint64_t> 0x9E3779B97F4A7C15ULL
    return <uint32_t> (hash >> 32) & (sites.capacity - 1)


cdef SiteEntry *site_find(Sites *sites, int kind, uint64_t key) noexcept nogil:
    """The entry of a live object, or NULL."""
    cdef uint32_t place
    if sites == NULL or sites.capacity == 0:
        return NULL
    place = _home(sites, kind, key)
    while sites.entries[place].site != NULL:
        if sites.entries[place].key == key and sites.entries[place].kind == <uint32_t> kind:
            return &sites.entries[place]
        place = (place + 1) & (sites.capacity - 1)
    return NULL


cdef void _put(Sites *sites, const SiteEntry *entry) noexcept nogil:
    cdef uint32_t place = _home(sites, <int> entry.kind, entry.key)
    while sites.entries[place].site != NULL:
        place = (place + 1) & (sites.capacity - 1)
    sites.entries[place] = entry[0]
    sites.count += 1


cdef bint _grow(Sites *sites) noexcept nogil:
    cdef SiteEntry *old = sites.entries
    cdef uint32_t capacity = sites.capacity
    cdef uint32_t place
    cdef SiteEntry *entries = <SiteEntry *> calloc(capacity * 2 if capacity else 1024, sizeof(SiteEntry))
    if entries == NULL:
        return False
    sites.entries = entries
    sites.capacity = capacity * 2 if capacity else 1024
    sites.count = 0
    for place in range(capacity):
        if old[place].site != NULL:
            _put(sites, &old[place])
    free(old)
    return True


cdef void site_add(Sites *sites, int kind, uint64_t key, const Site *site) noexcept nogil:
    """Note where an object was acquired; without memory it has no entry, and its audit says so."""
    cdef SiteEntry entry
    if site_find(sites, kind, key) != NULL:
        sites.twice += 1
        return
    if (sites.count + 1) * 4 > sites.capacity * 3 and not _grow(sites):
        return
    entry.key = key
    entry.site = site
    entry.kind = <uint32_t> kind
    entry.seen = 0
    _put(sites, &entry)


cdef void site_remove(Sites *sites, int kind, uint64_t key) noexcept nogil:
    """Forget an object that is released; those behind it move up so that no search ends early."""
    cdef SiteEntry *found = site_find(sites, kind, key)
    cdef uint32_t free_place, place, home
    if found == NULL:
        sites.unknown += 1
        return
    free_place = <uint32_t> (found - sites.entries)
    place = free_place
    while True:
        place = (place + 1) & (sites.capacity - 1)
        if sites.entries[place].site == NULL:
            break
        home = _home(sites, <int> sites.entries[place].kind, sites.entries[place].key)
        if ((place - home) & (sites.capacity - 1)) >= ((place - free_place) & (sites.capacity - 1)):
            sites.entries[free_place] = sites.entries[place]
            free_place = place
    sites.entries[free_place].site = NULL
    sites.count -= 1


cdef void sites_free(Sites *sites) noexcept nogil:
    free(sites.entries)
    sites.entries = NULL
    sites.capacity = 0
    sites.count = 0


cdef class SiteTable:
    """The table of sites, for tests."""

    cdef Sites sites

    def __dealloc__(self):
        sites_free(&self.sites)

    def add(self, int kind, uint64_t key, int line):
        """Note an object as acquired at one of two places: the first for an even `line`, the second for an odd one."""
        site_add(&self.sites, kind, key, &_LINES[line & 1])

    def remove(self, int kind, uint64_t key):
        site_remove(&self.sites, kind, key)

    def line(self, int kind, uint64_t key):
        """0 or 1, as it was given; None: there is no such object."""
        cdef SiteEntry *found = site_find(&self.sites, kind, key)
        return None if found == NULL else found.site.line

    @property
    def faults(self):
        """(acquired twice, released without being held)."""
        return self.sites.twice, self.sites.unknown

    def __len__(self):
        return self.sites.count


cdef Site[2] _LINES
for _line in range(2):
    _LINES[_line].file = b"file"
    _LINES[_line].module = b"module"
    _LINES[_line].line = _line
