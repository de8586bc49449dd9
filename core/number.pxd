# Decimal text of numbers, as JSON writes them: exact both ways, without the GIL, the heap or the locale.
#
# strtod and snprintf round correctly, but their decimal point is the locale's; so a number is handed to strtod as bare
# digits and an exponent ("12.5e3" as "125e2"), and snprintf's digits are taken without what stands between them.
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef enum:
    NUMBER_TEXT_SIZE_MAX = 32  # room that any double's or 64-bit integer's text fits in


# Write the shortest decimal text that reads back as `value` (finite), laid out as Python's repr does: 1.0, 0.0001,
# 1e-05, 1e+16. Returns its size; `dst` has room for NUMBER_TEXT_SIZE_MAX bytes.
cdef size_t double_write(double value, uint8_t* dst) noexcept nogil

# Write an integer in decimal; returns its size.
cdef size_t integer_write(bint negative, uint64_t magnitude, uint8_t* dst) noexcept nogil

# Read a number of JSON's grammar (checked by the caller, no sign) as the nearest double; may be infinite.
cdef double double_read(const uint8_t* text, size_t size) noexcept nogil
