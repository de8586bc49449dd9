"""Histogram: the reader's verb, and a Python face for the tests."""

from libc.stdlib cimport calloc, free


cdef list histogram_take(Histogram *histogram):
    cdef unsigned int bucket
    cdef uint64_t count
    found = []
    for bucket in range(HISTOGRAM_BUCKETS):
        count = histogram.counts[bucket]
        if count != histogram.taken[bucket]:
            found.append((histogram_value(bucket), count - histogram.taken[bucket]))
            histogram.taken[bucket] = count
    return found


cdef class Times:
    """A histogram of its own, for tests."""

    cdef Histogram *histogram

    def __cinit__(self):
        self.histogram = <Histogram *> calloc(1, sizeof(Histogram))
        if self.histogram == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.histogram)

    def add(self, uint64_t value_ns):
        histogram_add(self.histogram, value_ns)

    def take(self):
        """What was added since the last call: [(middle of the bucket in ns, count), ...], rising."""
        return histogram_take(self.histogram)
