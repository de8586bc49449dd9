# Timer wheel: one timer a connection, O(1) to set and to cancel (Varghese & Lauck 1987, scheme 6: hashed, with the
# full deadline kept in the timer, so that one beyond the horizon is met again and left alone).
#
# Time is an argument, in milliseconds. Invariant: a timer is in exactly one slot's list while `slot` is not TIMER_IDLE.

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from core.ledger cimport KIND_TIMER, Ledger, ledger_close, ledger_open

cdef extern from "invariant.h":
    void invariant(bint) nogil

cdef enum:
    WHEEL_SLOTS = 1024
    WHEEL_TICK_MS = 100         # slots * tick = 102.4 s before a timer is met early
    TIMER_IDLE = 0xFFFF

ctypedef struct Timer:          # 24 bytes, intrusive: lives in its owner
    Timer *next                 # borrowed: neighbours in the slot's ring
    Timer *previous
    uint32_t deadline           # tick
    uint16_t slot               # TIMER_IDLE: not set
    uint16_t reserved

ctypedef struct Wheel:
    Timer slots[WHEEL_SLOTS]    # heads of circular lists
    uint32_t now                # tick up to which all slots were visited
    uint32_t count              # timers that are set
    Ledger *ledger              # borrowed for the wheel's life


cdef inline void timer_init(Timer *timer) noexcept nogil:
    timer.slot = TIMER_IDLE


cdef inline void wheel_cancel(Wheel *wheel, Timer *timer) noexcept nogil:
    """Take the timer out; nothing happens if it is not set."""
    if timer.slot == TIMER_IDLE:
        return
    timer.previous.next = timer.next
    timer.next.previous = timer.previous
    timer.slot = TIMER_IDLE
    wheel.count -= 1
    ledger_close(wheel.ledger, KIND_TIMER)


cdef inline void wheel_set(Wheel *wheel, Timer *timer, uint64_t deadline_ms) noexcept nogil:
    """Let the timer fire at the first tick that is not before `deadline_ms`; a set one is moved."""
    cdef uint32_t tick = <uint32_t> ((deadline_ms + WHEEL_TICK_MS - 1) // WHEEL_TICK_MS)
    cdef Timer *head
    wheel_cancel(wheel, timer)
    if tick <= wheel.now:
        tick = wheel.now + 1
    timer.deadline = tick
    timer.slot = <uint16_t> (tick & (WHEEL_SLOTS - 1))
    head = &wheel.slots[timer.slot]
    timer.next = head
    timer.previous = head.previous
    head.previous.next = timer
    head.previous = timer
    wheel.count += 1
    ledger_open(wheel.ledger, KIND_TIMER)


cdef inline Timer *wheel_expire(Wheel *wheel, uint64_t now_ms) noexcept nogil:
    """Take out and return one timer whose deadline has come; NULL when there is none up to `now_ms`."""
    cdef uint32_t target = <uint32_t> (now_ms // WHEEL_TICK_MS)
    cdef Timer *head
    cdef Timer *timer
    if target > wheel.now and (wheel.count == 0 or target - wheel.now > 4 * WHEEL_SLOTS):
        # Nothing set, or the clock leapt: a walk over the last full turn meets every timer that is due.
        wheel.now = target if wheel.count == 0 else target - WHEEL_SLOTS
    while wheel.now < target:
        head = &wheel.slots[(wheel.now + 1) & (WHEEL_SLOTS - 1)]
        timer = head.next
        while timer != head:
            if timer.deadline <= target:
                wheel_cancel(wheel, timer)
                return timer
            timer = timer.next
        wheel.now += 1
    return NULL


cdef void wheel_init(Wheel *wheel, Ledger *ledger, uint64_t now_ms) noexcept nogil
cdef bint wheel_check(Wheel *wheel) noexcept nogil
