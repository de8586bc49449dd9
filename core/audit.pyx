"""Audit: counting, telling, and the Python face of what comes of it."""

from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from core.clock cimport clock_ns
from core.ledger cimport KIND_FD, KIND_PEER, KIND_TASK, LEDGER_FIRST, place_text
from core.mailbox cimport NOTE_AUDITED, Note, mailbox_put, note_init
from core.peers cimport Peer
from core.sites cimport Sites
from core.slab cimport SLAB_NONE, SlabChunk, invariant_always

from core.ledger import KINDS as _KINDS

cdef extern from * nogil:
    """
    #include <fcntl.h>
    static inline int holdfast_is_open(int fd) { return fcntl(fd, F_GETFD) >= 0; }
    """
    bint holdfast_is_open(int)


cdef void audit_begin(Audit *audit, Ledger *ledger) noexcept nogil:
    """An empty audit of what the ledger says at this moment."""
    cdef int kind
    memset(audit, 0, sizeof(Audit))
    audit.ledger = ledger
    audit.walked_us = clock_ns() // 1000
    audit.number = 1
    if ledger.sites != NULL:
        ledger.sites.audits += 1
        audit.number = ledger.sites.audits
    for kind in range(KIND_COUNT):
        audit.opened[kind] = ledger.words[LEDGER_FIRST + 2 * kind]
        audit.closed[kind] = ledger.words[LEDGER_FIRST + 2 * kind + 1]


cdef void audit_tell(Audit *audit, int kind, uint64_t key, uint64_t value, const char *what,
                     const Site *site) noexcept nogil:
    cdef Finding *finding
    if audit.finding_count < AUDIT_FINDINGS_MAX:
        finding = &audit.findings[audit.finding_count]
        finding.kind = <uint32_t> kind
        finding.key = key
        finding.value = value
        finding.what = what
        finding.site = site
    audit.finding_count += 1


cdef void audit_finding(Audit *audit, int kind, uint64_t key, uint64_t value, const char *what) noexcept nogil:
    """Something is wrong with the object of this kind and key."""
    cdef const Site *site = NULL
    cdef SiteEntry *entry = site_find(audit.ledger.sites, kind, key)
    if entry != NULL:
        site = entry.site
    audit_tell(audit, kind, key, value, what, site)


cdef void audit_equal(Audit *audit, int kind, uint64_t found, uint64_t kept, const char *what) noexcept nogil:
    """Two counts of the same must agree."""
    if found != kept:
        audit_tell(audit, kind, kept, found, what, NULL)


cdef void _sites_sweep(Audit *audit, Sites *sites) noexcept nogil:
    """What was acquired and not met."""
    cdef uint32_t place
    cdef SiteEntry *entry
    for place in range(sites.capacity):
        entry = &sites.entries[place]
        if entry.site != NULL and entry.seen != audit.number and entry.kind < KIND_TASK:
            audit_tell(audit, <int> entry.kind, entry.key, 0, b"was acquired, and is neither in use nor released",
                       entry.site)
    if sites.twice or sites.unknown:
        audit_tell(audit, KIND_FD, sites.twice, sites.unknown, b"acquired twice (key) or released twice (value)", NULL)


cdef void audit_end(Audit *audit) noexcept nogil:
    """All tables were walked: compare."""
    cdef int kind
    for kind in range(KIND_TASK):
        audit_equal(audit, kind, audit.found[kind], audit.opened[kind] - audit.closed[kind],
                    b"as many are open (key) by the ledger, but in use (value) are")
    if audit.ledger.sites != NULL:
        _sites_sweep(audit, audit.ledger.sites)
    audit.walked_us = clock_ns() // 1000 - audit.walked_us


cdef void audit_send(Audit *audit, Mailbox *box, uint64_t request, const uint8_t *links,
                     uint32_t links_size) noexcept nogil:
    """Hand it to the control thread, the set of descriptors and then the links as the note's extra; and free it."""
    cdef Note note
    cdef uint8_t *both = <uint8_t *> realloc(audit.fds, audit.fds_size + links_size)
    note_init(&note, NOTE_AUDITED)
    note.request = request
    note.text_size = sizeof(Audit)
    if both != NULL:
        audit.fds = both
        if links_size:
            memcpy(both + audit.fds_size, links, links_size)
        note.extra_size = audit.fds_size + links_size
    mailbox_put(box, &note, <const uint8_t *> audit, audit.fds)
    free(audit.fds)
    audit.fds = NULL


cdef void audit_fd(Audit *audit, int32_t fd) noexcept nogil:
    """A descriptor that the data plane owns; -1: none."""
    cdef uint8_t *fds
    cdef uint32_t size = audit.fds_size
    if fd < 0:
        return
    while size * 8 <= <uint32_t> fd:
        size += AUDIT_FDS_STEP // 8
    if size != audit.fds_size:
        fds = <uint8_t *> realloc(audit.fds, size)
        if fds == NULL:
            audit_tell(audit, KIND_FD, <uint64_t> fd, 0, b"could not be looked at: out of memory", NULL)
            return
        memset(fds + audit.fds_size, 0, size - audit.fds_size)
        audit.fds = fds
        audit.fds_size = size
    if audit.fds[fd >> 3] & (1 << (fd & 7)):
        audit_finding(audit, KIND_FD, <uint64_t> fd, 0, b"has two owners")
    if HOLDFAST_CHECKS and not holdfast_is_open(fd):
        audit_finding(audit, KIND_FD, <uint64_t> fd, 0, b"is in use, but closed")
    audit.fds[fd >> 3] |= 1 << (fd & 7)


cdef void audit_peers(Audit *audit, Peers *peers) noexcept nogil:
    """The bus's sockets; over libzmq there are none that it tells of."""
    cdef uint32_t slot
    cdef Peer *peer
    if peers.slots == NULL:
        return
    for slot in range(peers.slot_count):
        peer = &peers.slots[slot]
        if peer.fd >= 0:
            audit_found(audit, KIND_PEER, <uint64_t> peer.fd)
            audit_fd(audit, peer.fd)
    if peers.listen_fd >= 0:
        audit_found(audit, KIND_FD, <uint64_t> peers.listen_fd)
        audit_fd(audit, peers.listen_fd)


cdef void slab_walk(SlabWalk *walk, Slab *slab) noexcept nogil:
    """Before the first live object of a slab."""
    invariant_always(1u << slab.chunk_shift <= AUDIT_CHUNK_MAX)
    walk.slab = slab
    walk.place = SLAB_NONE
    walk.number = 0


cdef bint _chunk_begin(SlabWalk *walk) noexcept nogil:
    """The next chunk with memory: note which of its objects are free; False: there is none."""
    cdef SlabChunk *chunk
    cdef uint32_t number
    walk.number = 0
    walk.place += 1
    while walk.place < walk.slab.chunk_count and walk.slab.chunks[walk.place].memory == NULL:
        walk.place += 1
    if walk.place >= walk.slab.chunk_count:
        return False
    chunk = &walk.slab.chunks[walk.place]
    memset(walk.unused, 0, sizeof(walk.unused))
    number = chunk.free_head
    while number != SLAB_NONE and not walk.unused[number & (AUDIT_CHUNK_MAX - 1)]:
        walk.unused[number & (AUDIT_CHUNK_MAX - 1)] = 1
        number = (<uint32_t *> (chunk.memory + <size_t> number * walk.slab.object_size))[0]
    return True


cdef uint32_t slab_walk_next(SlabWalk *walk) noexcept nogil:
    """The index of the next live object; SLAB_NONE: there is no more."""
    while True:
        if walk.place == SLAB_NONE or walk.number >= walk.slab.chunks[walk.place].fresh:
            if not _chunk_begin(walk):
                return SLAB_NONE
            continue
        walk.number += 1
        if not walk.unused[walk.number - 1]:
            return (walk.place << walk.slab.chunk_shift) | (walk.number - 1)


def unpack(bytes text, bytes extra):
    """What a NOTE_AUDITED of this very process says; its `text` holds addresses.

    Returns:
        {"kinds": {kind: {"opened", "closed", "found"}}, "findings": [{"kind", "key", "value", "what", "place"}, ...],
        "finding_count", "sessions", "channels", "walked_us", "links": [{"identity", "state", "sessions",
        "subscriptions"}, ...], "fds": one bit a descriptor}. Kinds of the control thread are left out.
    """
    cdef const Audit *audit = <const Audit *> <const char *> text
    cdef const Finding *finding
    findings = []
    if len(text) != sizeof(Audit):
        raise ValueError("this is no audit")
    kinds = {name: {"opened": audit.opened[kind], "closed": audit.closed[kind], "found": audit.found[kind]}
             for kind, name in enumerate(_KINDS[:KIND_TASK])}
    for place in range(min(audit.finding_count, AUDIT_FINDINGS_MAX)):
        finding = &audit.findings[place]
        findings.append({"kind": _KINDS[finding.kind], "key": finding.key, "value": finding.value,
                         "what": finding.what.decode(), "place": place_text(finding.site)})
    return {"kinds": kinds, "findings": findings, "finding_count": audit.finding_count, "sessions": audit.sessions,
            "channels": audit.channels, "walked_us": audit.walked_us, "fds": extra[:audit.fds_size],
            "links": _links(extra[audit.fds_size:])}


cdef _links(bytes text):
    cdef const AuditLink *link = <const AuditLink *> <const char *> text
    found = []
    for place in range(len(text) // sizeof(AuditLink)):
        found.append({"identity": link[place].identity[:link[place].identity_size].decode(errors="replace"),
                      "state": link[place].state, "sessions": link[place].sessions,
                      "subscriptions": link[place].subscriptions})
    return found
