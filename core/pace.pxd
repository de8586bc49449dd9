# Pace: how soon a loop may begin its next turn, so that a busy loop finds work for several in one.
#
# A turn costs its wake-up, its wait and its batches whatever it brings. Each turn takes PACE_TURN_NS of a credit that
# grows with time; a loop without credit waits, as a network card moderates its interrupts (docs/adr/0005). The credit
# holds PACE_TURNS, so traffic that is quieter than one turn in PACE_TURN_NS never waits, and a turn that takes longer
# than that has earned the next one by itself. Time is an argument.

from libc.stdint cimport uint64_t

cdef enum:
    PACE_TURN_NS = 250000       # 4,000 turns a second, sustained
    PACE_TURNS = 8              # at once, after a quiet time

ctypedef struct Pace:
    uint64_t credit_ns
    uint64_t at_ns              # when the credit was last counted; 0 before the first turn


cdef inline uint64_t pace_turn(Pace *pace, uint64_t now_ns) noexcept nogil:
    """Take the credit for one turn; the nanoseconds to wait before it begins, 0 for none."""
    cdef uint64_t wait_ns = 0
    pace.credit_ns += now_ns - pace.at_ns
    pace.at_ns = now_ns
    if pace.credit_ns > PACE_TURNS * PACE_TURN_NS:
        pace.credit_ns = PACE_TURNS * PACE_TURN_NS
    if pace.credit_ns < PACE_TURN_NS:
        wait_ns = PACE_TURN_NS - pace.credit_ns
        pace.credit_ns += wait_ns
        pace.at_ns += wait_ns       # a wait that takes longer than asked for is credit again
    pace.credit_ns -= PACE_TURN_NS
    return wait_ns


cdef void pace_wait(Pace *pace) noexcept nogil
