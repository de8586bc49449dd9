"""Position: a Python face for the tests."""

NEXT = POSITION_NEXT
JUMPED = POSITION_JUMPED
LATE = POSITION_LATE
REPEATED = POSITION_REPEATED
WINDOW = POSITION_WINDOW


cdef class Reader:
    """One member's position, from a base on."""

    cdef Position position

    def __init__(self, uint64_t base):
        position_base(&self.position, base)

    @property
    def last(self):
        return self.position.last

    def take(self, uint64_t offset):
        """(step, offsets jumped over)."""
        cdef uint64_t jumped = 0
        step = position_take(&self.position, offset, &jumped)
        return step, jumped

    def skip(self, uint64_t last):
        """How many offsets were given up by it."""
        return position_skip(&self.position, last)
