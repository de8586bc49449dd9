# Histogram: a full log-linear count of times in nanoseconds (Gil Tene's HdrHistogram, reduced to what is needed).
#
# 64 buckets a power of two, so that a value is known to 1.6 %, none is lost and none is averaged. One thread adds; any
# other may read, bucket by bucket: a difference taken while it adds holds each value once, now or the next time.

from libc.stdint cimport uint64_t

cdef enum:
    HISTOGRAM_SUB_BITS = 6
    HISTOGRAM_BUCKETS = 3776    # (64 - 6) powers of two above the first 64 values, and those

ctypedef struct Histogram:      # 30 KiB
    uint64_t counts[HISTOGRAM_BUCKETS]
    uint64_t taken[HISTOGRAM_BUCKETS]   # the reader's: what it has been told already

cdef extern from *:
    int __builtin_clzll(unsigned long long) nogil


cdef inline unsigned int histogram_bucket(uint64_t value_ns) noexcept nogil:
    cdef unsigned int shift
    if value_ns < 1u << HISTOGRAM_SUB_BITS:
        return <unsigned int> value_ns
    shift = 63 - <unsigned int> __builtin_clzll(value_ns) - HISTOGRAM_SUB_BITS
    return ((shift + 1) << HISTOGRAM_SUB_BITS) + <unsigned int> (value_ns >> shift) - (1u << HISTOGRAM_SUB_BITS)


cdef inline uint64_t histogram_value(unsigned int bucket) noexcept nogil:
    """The middle of a bucket."""
    cdef unsigned int shift
    if bucket < 1u << HISTOGRAM_SUB_BITS:
        return bucket
    shift = (bucket >> HISTOGRAM_SUB_BITS) - 1
    return (<uint64_t> ((bucket & ((1u << HISTOGRAM_SUB_BITS) - 1)) + (1u << HISTOGRAM_SUB_BITS)) << shift) \
        + ((<uint64_t> 1 << shift) >> 1)


cdef inline void histogram_add(Histogram *histogram, uint64_t value_ns) noexcept nogil:
    histogram.counts[histogram_bucket(value_ns)] += 1


# What was added since the last call, for the reader alone: [(middle of the bucket in ns, count), ...], rising.
cdef list histogram_take(Histogram *histogram)
