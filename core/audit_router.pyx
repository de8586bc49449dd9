"""Audit of a router's data plane: streams with their history and routes, sessions, keys, workers, the bus."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from core.audit cimport (Audit, AuditLink, SlabWalk, audit_begin, audit_end, audit_equal, audit_fd, audit_finding,
                         audit_found, audit_peers, audit_send, slab_walk, slab_walk_next)
from core.keys cimport Keys
from core.leaving cimport Leavings, leaving_at
from core.ledger cimport (KIND_CHANNEL, KIND_HISTORY, KIND_KEY, KIND_MEMBERSHIP, KIND_SESSION, KIND_SUBSCRIPTION,
                          KIND_TIMER)
from core.names cimport NAME_CLASSES
from core.rooms cimport NOBODY, Member, Room, attender_at, member_at, room_at
from core.sequencer cimport IDENTITY_BYTES_MAX, WORKER_ENDING, WORKER_LINKED, WORKER_LINKING, WORKERS_MAX, Owner, Worker
from core.slab cimport SLAB_NONE, slab_at
from core.stream cimport Route, Stream, route_key, stream_at, stream_kept, stream_route, stream_stored

assert sizeof((<AuditLink *> NULL).identity) == IDENTITY_BYTES_MAX

ctypedef struct Walk:
    Sequencer *sequencer        # borrowed
    Audit audit
    SlabWalk slab
    AuditLink links[WORKERS_MAX]    # by the worker's place
    uint64_t history_bytes


cdef inline bint _worker_known(Walk *walk, uint32_t worker) noexcept nogil:
    """Whether something may name it: it is linking, linked, or gone and not forgotten yet."""
    cdef uint32_t state
    if worker >= walk.sequencer.worker_count:
        return False
    state = walk.sequencer.workers[worker].state
    return state >= WORKER_LINKING or state == WORKER_ENDING


cdef void _stream(Walk *walk, uint32_t index) noexcept nogil:
    cdef Stream *stream = stream_at(&walk.sequencer.streams, index)
    cdef uint32_t place
    cdef uint64_t bytes = 0
    cdef Route route
    audit_found(&walk.audit, KIND_CHANNEL, index)
    for place in range(stream_kept(stream)):
        audit_found(&walk.audit, KIND_HISTORY, <size_t> stream_stored(stream, place))
        bytes += stream_stored(stream, place).size
    if stream.history != NULL and bytes != stream.history.bytes:
        audit_finding(&walk.audit, KIND_HISTORY, index, bytes, b"of this stream has other bytes (value) than counted")
    walk.history_bytes += bytes
    for place in range(stream.route_count):
        route = stream_route(stream, place)
        if _worker_known(walk, route.worker):
            audit_found(&walk.audit, KIND_SUBSCRIPTION, route_key(stream, route.worker))
            walk.links[route.worker].subscriptions += 1
        else:
            audit_finding(&walk.audit, KIND_SUBSCRIPTION, route_key(stream, route.worker), route.worker,
                          b"names a worker (value) that is not there")


cdef void _streams(Walk *walk) noexcept nogil:
    cdef uint32_t names = 0
    cdef int part
    cdef uint32_t index
    slab_walk(&walk.slab, &walk.sequencer.streams.slab)
    index = slab_walk_next(&walk.slab)
    while index != SLAB_NONE:
        _stream(walk, index)
        index = slab_walk_next(&walk.slab)
    for part in range(NAME_CLASSES):
        names += walk.sequencer.streams.names.slabs[part].live
    audit_equal(&walk.audit, KIND_CHANNEL, names, walk.sequencer.streams.slab.live,
                b"streams (key), but names (value)")
    audit_equal(&walk.audit, KIND_CHANNEL, walk.sequencer.streams.index.count, walk.sequencer.streams.slab.live,
                b"streams (key), but by name (value)")
    audit_equal(&walk.audit, KIND_HISTORY, walk.history_bytes, walk.sequencer.streams.history_total,
                b"bytes of history (key) are counted, but kept (value) are")


cdef void _owners(Walk *walk) noexcept nogil:
    cdef uint32_t index
    cdef Owner *owner
    slab_walk(&walk.slab, &walk.sequencer.owners)
    index = slab_walk_next(&walk.slab)
    while index != SLAB_NONE:
        owner = <Owner *> slab_at(&walk.sequencer.owners, index)
        if _worker_known(walk, owner.worker):
            audit_found(&walk.audit, KIND_SESSION, index)
            walk.links[owner.worker].sessions += 1
        else:
            audit_finding(&walk.audit, KIND_SESSION, index, owner.worker, b"is a worker's (value) that is not there")
        index = slab_walk_next(&walk.slab)
    audit_equal(&walk.audit, KIND_SESSION, walk.sequencer.owner_index.count, walk.sequencer.owners.live,
                b"sessions (key), but by name (value)")


cdef uint64_t _room(Walk *walk, uint32_t index) noexcept nogil:
    """Its members, each of which has to be its session's, too; how many are leaving it."""
    cdef Sequencer *sequencer = walk.sequencer
    cdef Room *room = room_at(&sequencer.rooms, index)
    cdef uint64_t count = 0
    cdef uint32_t at = room.first
    cdef uint32_t own
    cdef Member *member
    while at != NOBODY:
        member = member_at(&sequencer.rooms, at)
        if member.owner_previous == NOBODY:
            own = attender_at(&sequencer.rooms, member.owner).first
        else:
            own = member_at(&sequencer.rooms, member.owner_previous).owner_next
        if member.room == index and own == at:
            audit_found(&walk.audit, KIND_MEMBERSHIP, at)
        else:
            audit_finding(&walk.audit, KIND_MEMBERSHIP, at, index, b"is in a room (value), but not its session's")
        count += 1
        at = member.next
    audit_equal(&walk.audit, KIND_MEMBERSHIP, room.count, count,
                b"members (key) are counted in a room, but in it (value) are")
    return room.leaving


cdef uint64_t _leavings(Walk *walk, Leavings *leavings) noexcept nogil:
    """Who left a room a moment ago; how many there are."""
    cdef uint64_t count = 0
    cdef uint32_t index = leavings.oldest
    while index != NOBODY:
        audit_found(&walk.audit, KIND_TIMER, leavings.named + index)
        count += 1
        index = leaving_at(leavings, index).next
    audit_equal(&walk.audit, KIND_TIMER, leavings.index.count, count,
                b"sessions (key) that left are known by name, but kept (value) are")
    return count


cdef void _rooms(Walk *walk) noexcept nogil:
    """Who is in which room, and who left one a moment ago."""
    cdef Sequencer *sequencer = walk.sequencer
    cdef uint64_t names = 0
    cdef uint64_t leaving = 0
    cdef uint64_t kept
    cdef uint32_t index
    cdef int part
    slab_walk(&walk.slab, &sequencer.rooms.rooms)
    index = slab_walk_next(&walk.slab)
    while index != SLAB_NONE:
        leaving += _room(walk, index)
        index = slab_walk_next(&walk.slab)
    kept = _leavings(walk, &sequencer.leavings) + _leavings(walk, &sequencer.gone)
    for part in range(NAME_CLASSES):
        names += sequencer.rooms.names.slabs[part].live
    audit_equal(&walk.audit, KIND_TIMER, leaving, kept,
                b"sessions (key) leave rooms, but wait to be told of (value) are")
    audit_equal(&walk.audit, KIND_MEMBERSHIP, names, sequencer.rooms.rooms.live + sequencer.rooms.users.live,
                b"names of rooms and users (key), but rooms and users (value)")
    audit_equal(&walk.audit, KIND_MEMBERSHIP, sequencer.rooms.room_index.count, sequencer.rooms.rooms.live,
                b"rooms (value), but by name (key)")
    audit_equal(&walk.audit, KIND_MEMBERSHIP, sequencer.rooms.user_index.count, sequencer.rooms.users.live,
                b"users (value), but by name (key)")


cdef void _keys(Walk *walk, Keys *keys) noexcept nogil:
    cdef uint32_t at = keys.oldest
    while at != keys.next:
        audit_found(&walk.audit, KIND_KEY, keys.named + at)
        at += 1
    audit_equal(&walk.audit, KIND_KEY, keys.index.count, keys.next - keys.oldest,
                b"keys (key), but by hash (value)")


cdef uint32_t _workers(Walk *walk) noexcept nogil:
    """What is known of each worker, side by side at the front of the links; how many there are."""
    cdef uint32_t index
    cdef uint32_t count = 0
    cdef uint32_t linked = 0
    cdef Worker *worker
    for index in range(walk.sequencer.worker_count):
        worker = &walk.sequencer.workers[index]
        audit_equal(&walk.audit, KIND_SESSION, walk.links[index].sessions, worker.sessions,
                    b"sessions (key) are counted at a worker, but known (value) are")
        linked += worker.state == WORKER_LINKED
        if worker.state >= WORKER_LINKING:
            walk.links[count] = walk.links[index]
            memcpy(walk.links[count].identity, worker.identity, worker.identity_size)
            walk.links[count].identity_size = worker.identity_size
            walk.links[count].state = worker.state
            count += 1
    audit_equal(&walk.audit, KIND_SESSION, linked, walk.sequencer.linked,
                b"workers (key) are counted as linked, but linked (value) are")
    return count


cdef void sequencer_audit(Sequencer *sequencer, uint64_t request) noexcept nogil:
    """Walk everything, and tell the control thread. To be called between turns."""
    cdef Walk *walk = <Walk *> calloc(1, sizeof(Walk))
    cdef uint32_t count
    if walk == NULL:
        return                          # the asker's deadline tells
    walk.sequencer = sequencer
    audit_begin(&walk.audit, sequencer.ledger)
    _streams(walk)
    _owners(walk)
    _rooms(walk)
    _keys(walk, &walk.sequencer.keys)
    _keys(walk, &walk.sequencer.origins)
    count = _workers(walk)
    audit_fd(&walk.audit, sequencer.epoll_fd)
    audit_fd(&walk.audit, sequencer.from_control.event_fd)
    audit_fd(&walk.audit, sequencer.to_control.event_fd)
    audit_peers(&walk.audit, &sequencer.bus.peers)
    audit_end(&walk.audit)
    audit_send(&walk.audit, &sequencer.to_control, request, <const uint8_t *> walk.links, count * sizeof(AuditLink))
    free(walk)
