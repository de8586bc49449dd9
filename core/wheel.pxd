# Timer wheel: one timer a connection, O(1) to set and to cancel (Varghese & Lauck 1987, scheme 6: hashed, with the
# full deadline kept in the timer, so that one beyond the horizon is met again and left alone).
#
# A timer lives in an object of a slab and is named by that object's index: links are indexes, too, half the size of
# addresses, and the slot follows from the deadline. Time is an argument, in milliseconds. Invariant: a timer is in
# exactly one slot's ring while its deadline is not TIMER_IDLE.

from libc.stdint cimport uint32_t, uint64_t

from core.ledger cimport KIND_TIMER, Ledger, ledger_acquire, ledger_leaks, ledger_release
from core.sites cimport HERE
from core.slab cimport Slab, invariant, slab_at

cdef enum:
    WHEEL_SLOTS = 1024
    WHEEL_TICK_MS = 100         # slots * tick = 102.4 s before a timer is met early
    TIMER_IDLE = 0              # no deadline: a set one is always later than the wheel's `now`
    TIMER_HEAD = 0xFFFFFC00     # links from here on name the slots' heads, so no object's index may reach it
    TIMER_NONE = 0xFFFFFFFF     # no timer is due

ctypedef struct Timer:          # 12 bytes, intrusive: lives in its owner
    uint32_t next               # neighbours in the slot's ring: an owner's index, or TIMER_HEAD + slot
    uint32_t previous
    uint32_t deadline           # tick; TIMER_IDLE: not set

ctypedef struct Wheel:
    Timer heads[WHEEL_SLOTS]    # of circular lists
    uint32_t now                # tick up to which all slots were visited
    uint32_t count              # timers that are set
    Slab *owners                # borrowed for the wheel's life: where the timers live
    uint32_t place              # bytes into an owner
    Ledger *ledger              # borrowed for the wheel's life


cdef inline Timer *wheel_timer(Wheel *wheel, uint32_t link) noexcept nogil:
    """The timer of a link: an owner's, or a head."""
    if link >= TIMER_HEAD:
        return &wheel.heads[link - TIMER_HEAD]
    return <Timer *> (slab_at(wheel.owners, link) + wheel.place)


cdef inline void timer_init(Timer *timer) noexcept nogil:
    timer.deadline = TIMER_IDLE


cdef inline bint timer_set(const Timer *timer) noexcept nogil:
    return timer.deadline != TIMER_IDLE


cdef inline void wheel_cancel(Wheel *wheel, uint32_t owner) noexcept nogil:
    """Take the owner's timer out; nothing happens if it is not set."""
    cdef Timer *timer = wheel_timer(wheel, owner)
    if not timer_set(timer):
        return
    wheel_timer(wheel, timer.previous).next = timer.next
    wheel_timer(wheel, timer.next).previous = timer.previous
    timer.deadline = TIMER_IDLE
    wheel.count -= 1
    ledger_release(wheel.ledger, KIND_TIMER, owner)


cdef inline void wheel_set(Wheel *wheel, uint32_t owner, uint64_t deadline_ms) noexcept nogil:
    """Let the timer fire at the first tick that is not before `deadline_ms`; a set one is moved."""
    cdef uint32_t tick = <uint32_t> ((deadline_ms + WHEEL_TICK_MS - 1) // WHEEL_TICK_MS)
    cdef Timer *timer = wheel_timer(wheel, owner)
    cdef uint32_t head
    invariant(owner < TIMER_HEAD)
    wheel_cancel(wheel, owner)
    if ledger_leaks(wheel.ledger, KIND_TIMER):     # the other way round: what has no timer is what leaks
        return
    if tick <= wheel.now:
        tick = wheel.now + 1
    timer.deadline = tick
    head = TIMER_HEAD + (tick & (WHEEL_SLOTS - 1))
    timer.next = head
    timer.previous = wheel_timer(wheel, head).previous
    wheel_timer(wheel, timer.previous).next = owner
    wheel_timer(wheel, head).previous = owner
    wheel.count += 1
    ledger_acquire(wheel.ledger, KIND_TIMER, owner, HERE)


cdef inline uint32_t wheel_expire(Wheel *wheel, uint64_t now_ms) noexcept nogil:
    """Take out one timer whose deadline has come and return its owner; TIMER_NONE: there is none up to `now_ms`."""
    cdef uint32_t target = <uint32_t> (now_ms // WHEEL_TICK_MS)
    cdef uint32_t link
    cdef Timer *timer
    if target > wheel.now and (wheel.count == 0 or target - wheel.now > 4 * WHEEL_SLOTS):
        # Nothing set, or the clock leapt: a walk over the last full turn meets every timer that is due.
        wheel.now = target if wheel.count == 0 else target - WHEEL_SLOTS
    while wheel.now < target:
        link = wheel.heads[(wheel.now + 1) & (WHEEL_SLOTS - 1)].next
        while link < TIMER_HEAD:
            timer = wheel_timer(wheel, link)
            if timer.deadline <= target:
                wheel_cancel(wheel, link)
                return link
            link = timer.next
        wheel.now += 1
    return TIMER_NONE


cdef void wheel_init(Wheel *wheel, Ledger *ledger, Slab *owners, uint32_t place, uint64_t now_ms) noexcept nogil
cdef bint wheel_check(Wheel *wheel) noexcept nogil
