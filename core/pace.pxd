# Pace: how soon a busy loop may begin its next turn, so that it finds work for several in one.
#
# A turn costs its wake-up, its wait and its batches whatever it brings. While events come faster than PACE_ENTER a
# second, turns begin PACE_TURN_NS apart at least, as a network card moderates its interrupts under load
# (docs/adr/0005); below PACE_LEAVE they come as their events do. The rate is counted over PACE_WINDOW_NS, so quiet
# traffic, and the first messages after a quiet time, never wait. Time is an argument.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    PACE_TURN_NS = 400000
    PACE_WINDOW_NS = 10000000
    PACE_ENTER = 8000           # events a second
    PACE_LEAVE = 5000           # less: paced turns bring fewer events of the bus for the same messages

ctypedef struct Pace:
    uint64_t window_ns          # when the present window began; 0 before the first turn
    uint64_t turn_ns            # when the last turn began, or will
    uint32_t events             # of the present window
    bint busy


cdef inline uint64_t pace_turn(Pace *pace, uint32_t events, uint64_t now_ns) noexcept nogil:
    """The nanoseconds to wait before the next turn, 0 for none; `events` came with the last one."""
    cdef uint64_t wait_ns = 0
    cdef uint64_t window_ns = now_ns - pace.window_ns
    pace.events += events
    if window_ns >= PACE_WINDOW_NS:
        pace.busy = <uint64_t> pace.events * 1000000000 // window_ns >= <uint64_t> (
            PACE_LEAVE if pace.busy else PACE_ENTER)
        pace.window_ns = now_ns
        pace.events = 0
    if pace.busy and now_ns - pace.turn_ns < PACE_TURN_NS:
        wait_ns = PACE_TURN_NS - (now_ns - pace.turn_ns)
    pace.turn_ns = now_ns + wait_ns
    return wait_ns


cdef void pace_wait(Pace *pace, uint32_t events) noexcept nogil
