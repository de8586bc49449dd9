# Sites: where each live object of a process was acquired; in checked builds only.
#
# A shadow of the tables: one entry an object, kept apart from the objects themselves, so that a table that lost one
# cannot lose its entry as well. An audit marks the entries that it met on its walk; what is left unmarked leaked, and
# its entry says where it came from. In release there is none, and every verb that would write here is compiled out.
# Invariant: an entry is there from ledger_acquire to ledger_release of its kind and key, once.

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "site.h" nogil:
    ctypedef struct Site "HoldfastSite":
        const char *file
        const char *module
        int line
    const Site *HERE "HOLDFAST_HERE"

ctypedef struct SiteEntry:      # 24 bytes
    uint64_t key                # of the object among those of its kind: an address, a descriptor, an index
    const Site *site            # borrowed for ever; NULL: the entry is free
    uint32_t kind
    uint32_t seen               # number of the last audit that met it

ctypedef struct Sites:
    SiteEntry *entries          # owned
    uint32_t capacity           # a power of two; 0 before the first
    uint32_t count
    uint32_t audits             # number of the last audit
    uint32_t twice              # acquired while the same kind and key was held already
    uint32_t unknown            # released without being held


cdef void site_add(Sites *sites, int kind, uint64_t key, const Site *site) noexcept nogil
cdef void site_remove(Sites *sites, int kind, uint64_t key) noexcept nogil
cdef SiteEntry *site_find(Sites *sites, int kind, uint64_t key) noexcept nogil
cdef void sites_free(Sites *sites) noexcept nogil
