# Clock: the clocks of the kernel that a data plane reads, once a turn.
#
# Whatever is below a loop is told the time, so that a test can be its clock.

from libc.stdint cimport uint64_t

cdef extern from * nogil:
    """
    #include <time.h>
    static inline uint64_t holdfast_clock_ns(clockid_t clock) {
        struct timespec now;
        clock_gettime(clock, &now);
        return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    }
    """
    uint64_t holdfast_clock_ns(int)
    enum:
        CLOCK_MONOTONIC
        CLOCK_REALTIME
        CLOCK_BOOTTIME


cdef inline uint64_t clock_ns() noexcept nogil:
    """The monotonic clock."""
    return holdfast_clock_ns(CLOCK_MONOTONIC)


cdef inline uint64_t clock_ms() noexcept nogil:
    return clock_ns() // 1000000


cdef inline uint64_t clock_boot_ms() noexcept nogil:
    """The clock that goes on while the machine is suspended, as leases do."""
    return holdfast_clock_ns(CLOCK_BOOTTIME) // 1000000


cdef inline uint64_t clock_wall_ns() noexcept nogil:
    """The wall clock, since 1970."""
    return holdfast_clock_ns(CLOCK_REALTIME)


cdef inline uint64_t clock_wall_ms() noexcept nogil:
    return clock_wall_ns() // 1000000
