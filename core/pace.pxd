# Pace: how soon a loop may begin its next turn, so that a busy loop finds work for several in one.
#
# A turn costs its wake-up, its wait and its batches whatever it brings. Each turn takes `turn_ns` of a credit that grows
# with time; a loop without credit waits, as a network card moderates its interrupts (docs/adr/0005). The credit holds
# PACE_TURNS, so traffic that is quieter than one turn in `turn_ns` never waits, and a turn that takes longer than that
# has earned the next one by itself. Time is an argument.

from libc.stdint cimport uint64_t

cdef enum:
    PACE_WORKER_NS = 300000     # 3,333 turns a second, sustained
    PACE_ROUTER_NS = 100000     # its workers are paced already: this bounds what many of them ask for together
    PACE_TURNS = 8              # at once, after a quiet time

ctypedef struct Pace:
    uint64_t turn_ns
    uint64_t credit_ns
    uint64_t at_ns              # when the credit was last counted; 0 before the first turn


cdef inline uint64_t pace_turn(Pace *pace, uint64_t now_ns) noexcept nogil:
    """Take the credit for one turn; the nanoseconds to wait before it begins, 0 for none."""
    cdef uint64_t wait_ns = 0
    pace.credit_ns += now_ns - pace.at_ns
    pace.at_ns = now_ns
    if pace.credit_ns > PACE_TURNS * pace.turn_ns:
        pace.credit_ns = PACE_TURNS * pace.turn_ns
    if pace.credit_ns < pace.turn_ns:
        wait_ns = pace.turn_ns - pace.credit_ns
        pace.credit_ns += wait_ns
        pace.at_ns += wait_ns       # a wait that takes longer than asked for is credit again
    pace.credit_ns -= pace.turn_ns
    return wait_ns


cdef void pace_wait(Pace *pace) noexcept nogil
