# Presence: what a router does with who is where: it answers PRESENCE, and tells members who joined and who left.
#
# A worker tells what its sessions do in channels (STATE), and after a lost link where they are; the end of a session's
# owner ends what it held (core/sequencer). Both change the rooms (core/rooms.pxd), of which PRESENCE is answered by one
# router alone.
#
# EVENT `joined` and `left` go the way of messages, without a position, to the members in channels of at most
# `events_members_max`, to those in other regions through who follows there (core/abroad.pxd). A `left` waits for
# `damping_ms`: a session that is back by then (a connection that broke, a worker that died, a link that was lost) was
# never gone for anybody. One that comes back later has been told of as left, so it is told of as joined. A router that
# has just started does not know who was told of before: until `quiet_until_ms` it takes whoever was somewhere already
# (HERE) for known, but for those of whom it said itself that they left.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from core.records cimport RecHistory, RecState
from core.sequencer cimport Sequencer, Worker
from core.stream cimport Stream

cdef enum:
    PRESENCE_SESSIONS_MAX = 500     # told of one channel; the counts are whole
    PRESENCE_BYTES_MAX = 32768
    LEAVINGS_MAX = 262144           # sessions in a room that wait to be told of as left; beyond it before their time

cdef void event_route(Sequencer *sequencer, const Stream *stream, const uint8_t *frame,
                      uint32_t size) noexcept nogil
cdef void presence_state(Sequencer *sequencer, uint32_t owner, const RecState *record) noexcept nogil
cdef void presence_end(Sequencer *sequencer, uint32_t owner) noexcept nogil
cdef void presence_leave(Sequencer *sequencer, uint32_t index) noexcept nogil
cdef void presence_due(Sequencer *sequencer) noexcept nogil
cdef void presence_answer(Sequencer *sequencer, Worker *worker, const RecHistory *record) noexcept nogil
