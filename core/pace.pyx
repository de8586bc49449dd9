"""Pace: the wait itself, and a Python face for the tests."""

cdef extern from * nogil:
    """
    #include <time.h>
    static unsigned long long holdfast_pace_now_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (unsigned long long)now.tv_sec * 1000000000ULL + now.tv_nsec;
    }
    static void holdfast_pace_sleep(unsigned long long wait_ns) {
        struct timespec wait = {0, (long)wait_ns};
        nanosleep(&wait, NULL);     /* a signal may cut it short: then this turn comes a little early */
    }
    """
    unsigned long long holdfast_pace_now_ns()
    void holdfast_pace_sleep(unsigned long long)


cdef void pace_wait(Pace *pace) noexcept nogil:
    """Wait until the next turn may begin, at most one turn's time."""
    cdef uint64_t wait_ns = pace_turn(pace, holdfast_pace_now_ns())
    if wait_ns:
        holdfast_pace_sleep(wait_ns)


TURNS = PACE_TURNS


cdef class TurnPace:
    """A pace for tests; `turn` is told the time."""

    cdef Pace pace

    def __init__(self, unsigned long long turn_ns):
        self.pace.turn_ns = turn_ns

    def turn(self, unsigned long long now_ns):
        """Nanoseconds to wait before this turn."""
        return pace_turn(&self.pace, now_ns)
