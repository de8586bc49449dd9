"""Timer wheel: the cold verbs, and a Python face for the tests."""

from core.ledger cimport Stats
from core.slab cimport slab_acquire, slab_free, slab_init
from libc.stdlib cimport calloc, free

assert sizeof(Timer) == 12


cdef void wheel_init(Wheel *wheel, Ledger *ledger, Slab *owners, uint32_t place, uint64_t now_ms) noexcept nogil:
    """An empty wheel that stands at `now_ms`, for timers that stand `place` bytes into the objects of `owners`."""
    cdef uint32_t slot
    for slot in range(WHEEL_SLOTS):
        wheel.heads[slot].next = TIMER_HEAD + slot
        wheel.heads[slot].previous = TIMER_HEAD + slot
    wheel.now = <uint32_t> (now_ms // WHEEL_TICK_MS)
    wheel.count = 0
    wheel.owners = owners
    wheel.place = place
    wheel.ledger = ledger


cdef bint wheel_check(Wheel *wheel) noexcept nogil:
    """Walk the slots: each timer stands in the slot of its deadline, and `count` is their number."""
    cdef uint32_t slot, link
    cdef uint32_t count = 0
    cdef Timer *timer
    for slot in range(WHEEL_SLOTS):
        link = wheel.heads[slot].next
        while link < TIMER_HEAD:
            timer = wheel_timer(wheel, link)
            if not timer_set(timer) or (timer.deadline & (WHEEL_SLOTS - 1)) != slot \
                    or wheel_timer(wheel, timer.next).previous != link:
                return False
            count += 1
            link = timer.next
    return count == wheel.count


cdef class TimerWheel:
    """A wheel of `size` timers, numbered from 0, for tests."""

    cdef Wheel *wheel
    cdef Slab owners
    cdef Stats stats

    def __init__(self, Stats stats, unsigned int size, unsigned long long now_ms=0):
        self.stats = stats
        slab_init(&self.owners, sizeof(Timer), 4, size)
        self.wheel = <Wheel *> calloc(1, sizeof(Wheel))
        if self.wheel == NULL:
            raise MemoryError
        wheel_init(self.wheel, &stats.ledger, &self.owners, 0, now_ms)
        for _number in range(size):
            timer_init(wheel_timer(self.wheel, slab_acquire(&self.owners)))

    def __dealloc__(self):
        slab_free(&self.owners)
        free(self.wheel)

    def set(self, unsigned int number, unsigned long long deadline_ms):
        wheel_set(self.wheel, number, deadline_ms)

    def cancel(self, unsigned int number):
        wheel_cancel(self.wheel, number)

    def expire(self, unsigned long long now_ms):
        """The numbers of all timers due, in the order in which they fire."""
        fired = []
        cdef uint32_t number = wheel_expire(self.wheel, now_ms)
        while number != TIMER_NONE:
            fired.append(number)
            number = wheel_expire(self.wheel, now_ms)
        return fired

    def check(self):
        return wheel_check(self.wheel)

    def __len__(self):
        return self.wheel.count
