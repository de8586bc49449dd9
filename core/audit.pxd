# Audit: what a data plane's tables hold, counted by walking them, beside what its ledger says they hold.
#
# The walk runs between two turns of the data-plane thread, so nothing moves under it. It counts an object only where
# it is reached the way the data plane reaches it: a ring through its connection, a pending through its request, a
# buffer through the segments that point to it. What its pool still has but nobody reaches is not found, and the
# difference to opened - closed is the leak. Where two sides know of each other, both are asked. A checked build marks
# what it met among the sites and so names each object that it missed, and where that was acquired.
#
# Cost: one visit an object, and some bytes for each descriptor; the thread does nothing else meanwhile.

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from core.ledger cimport HOLDFAST_CHECKS, KIND_COUNT, Ledger
from core.mailbox cimport Mailbox
from core.peers cimport Peers
from core.sites cimport Site, SiteEntry, site_find
from core.slab cimport Slab

cdef enum:
    AUDIT_FINDINGS_MAX = 64     # told; beyond them they are only counted
    AUDIT_CHUNK_MAX = 1024      # objects of the largest slab chunk
    AUDIT_FDS_STEP = 65536      # descriptors by which the set grows

ctypedef struct Finding:
    const char *what            # static: a sentence about `key` and `value`
    const Site *site            # where it was acquired; NULL: not known
    uint64_t key                # of the object, as in its ledger_acquire
    uint64_t value              # what was met instead
    uint32_t kind

ctypedef struct Audit:
    Ledger *ledger              # borrowed for the walk
    uint64_t opened[KIND_COUNT]
    uint64_t closed[KIND_COUNT]
    uint64_t found[KIND_COUNT]
    uint64_t sessions           # a worker's: connections whose session the router was told of
    uint64_t channels           # a worker's: channels that it told the router of
    uint64_t walked_us          # how long the walk took
    uint32_t number             # of this audit, to mark the sites with; never 0
    uint32_t finding_count      # all of them
    uint32_t fds_size           # bytes
    uint8_t *fds                # owned: the data plane's descriptors, one bit each
    Finding findings[AUDIT_FINDINGS_MAX]

ctypedef struct AuditLink:      # what a router knows of one worker
    uint8_t identity[96]
    uint32_t identity_size
    uint32_t state              # WorkerState
    uint64_t sessions
    uint64_t subscriptions

ctypedef struct SlabWalk:       # the live objects of a slab, one after the other
    Slab *slab                  # borrowed for the walk
    uint32_t place              # chunk
    uint32_t number             # object in it
    uint8_t unused[AUDIT_CHUNK_MAX]


cdef inline void audit_found(Audit *audit, int kind, uint64_t key) noexcept nogil:
    """The walk met an object."""
    cdef SiteEntry *entry
    audit.found[kind] += 1
    if HOLDFAST_CHECKS and audit.ledger.sites != NULL:
        entry = site_find(audit.ledger.sites, kind, key)
        if entry == NULL:
            audit_tell(audit, kind, key, 0, b"is in use but not open in the ledger", NULL)
        elif entry.seen == audit.number:
            audit_tell(audit, kind, key, 0, b"was met twice", entry.site)
        else:
            entry.seen = audit.number


cdef void audit_begin(Audit *audit, Ledger *ledger) noexcept nogil
cdef void audit_end(Audit *audit) noexcept nogil
cdef void audit_send(Audit *audit, Mailbox *box, uint64_t request, const uint8_t *links,
                     uint32_t links_size) noexcept nogil
cdef void audit_tell(Audit *audit, int kind, uint64_t key, uint64_t value, const char *what,
                     const Site *site) noexcept nogil
cdef void audit_finding(Audit *audit, int kind, uint64_t key, uint64_t value, const char *what) noexcept nogil
cdef void audit_equal(Audit *audit, int kind, uint64_t found, uint64_t kept, const char *what) noexcept nogil
cdef void audit_fd(Audit *audit, int32_t fd) noexcept nogil
cdef void audit_peers(Audit *audit, Peers *peers) noexcept nogil
cdef void slab_walk(SlabWalk *walk, Slab *slab) noexcept nogil
cdef uint32_t slab_walk_next(SlabWalk *walk) noexcept nogil
