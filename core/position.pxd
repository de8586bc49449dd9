# Position: the check that a member of a channel gets each offset once and in order.
#
# The last 64 offsets are remembered one by one, so that an older one that comes is told apart: late if it had not come,
# repeated if it had; beyond 64 it is called repeated. Invariant: of the offsets from the base to `last`, each is either
# delivered or, for now, lost; a late one moves from lost to delivered.

from libc.stdint cimport uint64_t

cdef enum:
    POSITION_WINDOW = 64

cdef enum PositionStep:
    POSITION_NEXT               # the next offset: as it should be
    POSITION_JUMPED             # beyond the next one: `jumped` offsets are missing
    POSITION_LATE               # one of the missing: it came out of order
    POSITION_REPEATED           # it had come

ctypedef struct Position:       # 16 bytes
    uint64_t last               # the highest offset seen
    uint64_t seen               # bit n: offset last - n has come, or lies before the base; 0: there is no base yet


cdef inline bint position_based(const Position *position) noexcept nogil:
    return position.seen != 0


cdef inline void position_base(Position *position, uint64_t offset) noexcept nogil:
    """Begin here: the next offset is offset + 1."""
    position.last = offset
    position.seen = ~(<uint64_t> 0)


cdef inline int position_take(Position *position, uint64_t offset, uint64_t *jumped) noexcept nogil:
    """One offset came. `jumped` is set for POSITION_JUMPED alone."""
    cdef uint64_t step
    if offset == position.last + 1:
        position.last = offset
        position.seen = (position.seen << 1) | 1
        return POSITION_NEXT
    if offset > position.last:
        step = offset - position.last
        position.seen = ((position.seen << step) | 1) if step < POSITION_WINDOW else 1
        position.last = offset
        jumped[0] = step - 1
        return POSITION_JUMPED
    step = position.last - offset
    if step >= POSITION_WINDOW or position.seen & (<uint64_t> 1 << step):
        return POSITION_REPEATED
    position.seen |= <uint64_t> 1 << step
    return POSITION_LATE


cdef inline uint64_t position_skip(Position *position, uint64_t last) noexcept nogil:
    """The server says that the offsets up to `last` will not come (EVENT gap); returns how many that had not come."""
    cdef uint64_t skipped = 0
    if last > position.last:
        skipped = last - position.last
        position_base(position, last)
    return skipped
