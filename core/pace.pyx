"""Pace: the wait itself, and a Python face for the tests."""

from core.clock cimport clock_ns

cdef extern from * nogil:
    """
    #include <time.h>
    static void holdfast_pace_sleep(unsigned long long wait_ns) {
        struct timespec wait = {0, (long)wait_ns};
        nanosleep(&wait, NULL);     /* a signal may cut it short: then this turn comes a little early */
    }
    """
    void holdfast_pace_sleep(unsigned long long)


cdef void pace_wait(Pace *pace, uint32_t events) noexcept nogil:
    """Wait until the next turn may begin, at most PACE_TURN_NS; `events` came with the last one."""
    cdef uint64_t wait_ns = pace_turn(pace, events, clock_ns())
    if wait_ns:
        holdfast_pace_sleep(wait_ns)


TURN_NS = PACE_TURN_NS
WINDOW_NS = PACE_WINDOW_NS
ENTER = PACE_ENTER
LEAVE = PACE_LEAVE


cdef class TurnPace:
    """A pace for tests; `turn` is told the time."""

    cdef Pace pace

    def turn(self, unsigned int events, unsigned long long now_ns):
        """Nanoseconds to wait before the next turn, after one that brought `events`."""
        return pace_turn(&self.pace, events, now_ns)
