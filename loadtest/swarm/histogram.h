/* A full log-linear histogram of nanoseconds: 64 buckets a power of two, so a value is known to 1.6 %, none is lost and
 * none is averaged (Gil Tene's HdrHistogram, reduced to what is needed). Bound: 64 * 64 counters, 32 KiB. */
#ifndef SWARM_HISTOGRAM_H
#define SWARM_HISTOGRAM_H

#include <stdint.h>

enum { HISTOGRAM_SUB_BITS = 6, HISTOGRAM_BUCKETS = 64 << HISTOGRAM_SUB_BITS };

typedef struct {
    uint64_t counts[HISTOGRAM_BUCKETS];
    uint64_t total;
    uint64_t max_ns;
} Histogram;

static inline unsigned histogram_bucket(uint64_t value) {
    if (value < 1u << HISTOGRAM_SUB_BITS) return (unsigned)value;
    unsigned shift = 63 - (unsigned)__builtin_clzll(value) - HISTOGRAM_SUB_BITS;
    return ((shift + 1) << HISTOGRAM_SUB_BITS) + (unsigned)(value >> shift) - (1u << HISTOGRAM_SUB_BITS);
}

static inline uint64_t histogram_bucket_top(unsigned bucket) {
    if (bucket < 1u << HISTOGRAM_SUB_BITS) return bucket;
    unsigned shift = (bucket >> HISTOGRAM_SUB_BITS) - 1;
    uint64_t mantissa = (bucket & ((1u << HISTOGRAM_SUB_BITS) - 1)) + (1u << HISTOGRAM_SUB_BITS);
    return ((mantissa + 1) << shift) - 1;
}

static inline void histogram_add(Histogram *h, uint64_t value_ns) {
    h->counts[histogram_bucket(value_ns)]++;
    h->total++;
    if (value_ns > h->max_ns) h->max_ns = value_ns;
}

/* The upper edge of the bucket in which the given share of all values is reached; 0 when there are no values. */
static inline uint64_t histogram_percentile(const Histogram *h, double share) {
    uint64_t wanted = (uint64_t)(share * (double)h->total), seen = 0;
    for (unsigned i = 0; i < HISTOGRAM_BUCKETS && h->total; i++) {
        seen += h->counts[i];
        if (seen > wanted || seen == h->total) {
            uint64_t top = histogram_bucket_top(i);
            return top < h->max_ns ? top : h->max_ns;
        }
    }
    return 0;
}

#endif
