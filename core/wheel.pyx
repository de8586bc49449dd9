"""Timer wheel: the cold verbs, and a Python face for the tests."""

from core.ledger cimport Stats
from libc.stdlib cimport calloc, free


cdef void wheel_init(Wheel *wheel, Ledger *ledger, uint64_t now_ms) noexcept nogil:
    """An empty wheel that stands at `now_ms`. It must not move in memory afterwards."""
    cdef uint32_t slot
    for slot in range(WHEEL_SLOTS):
        wheel.slots[slot].next = &wheel.slots[slot]
        wheel.slots[slot].previous = &wheel.slots[slot]
    wheel.now = <uint32_t> (now_ms // WHEEL_TICK_MS)
    wheel.count = 0
    wheel.ledger = ledger


cdef bint wheel_check(Wheel *wheel) noexcept nogil:
    """Walk the slots: each timer stands in the slot of its deadline, and `count` is their number."""
    cdef uint32_t slot
    cdef uint32_t count = 0
    cdef Timer *timer
    for slot in range(WHEEL_SLOTS):
        timer = wheel.slots[slot].next
        while timer != &wheel.slots[slot]:
            if timer.slot != slot or timer.next.previous != timer or (timer.deadline & (WHEEL_SLOTS - 1)) != slot:
                return False
            count += 1
            timer = timer.next
    return count == wheel.count


cdef class TimerWheel:
    """A wheel of `size` timers, numbered from 0, for tests."""

    cdef Wheel *wheel
    cdef Timer *timers
    cdef unsigned int size
    cdef Stats stats

    def __init__(self, Stats stats, unsigned int size, unsigned long long now_ms=0):
        self.stats = stats
        self.size = size
        self.wheel = <Wheel *> calloc(1, sizeof(Wheel))
        self.timers = <Timer *> calloc(size, sizeof(Timer))
        if self.wheel == NULL or self.timers == NULL:
            raise MemoryError
        wheel_init(self.wheel, &stats.ledger, now_ms)
        for number in range(size):
            timer_init(&self.timers[number])

    def __dealloc__(self):
        free(self.timers)
        free(self.wheel)

    def set(self, unsigned int number, unsigned long long deadline_ms):
        wheel_set(self.wheel, &self.timers[number], deadline_ms)

    def cancel(self, unsigned int number):
        wheel_cancel(self.wheel, &self.timers[number])

    def expire(self, unsigned long long now_ms):
        """The numbers of all timers due, in the order in which they fire."""
        fired = []
        cdef Timer *timer = wheel_expire(self.wheel, now_ms)
        while timer != NULL:
            fired.append(timer - self.timers)
            timer = wheel_expire(self.wheel, now_ms)
        return fired

    def check(self):
        return wheel_check(self.wheel)

    def __len__(self):
        return self.wheel.count
