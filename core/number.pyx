"""Decimal text of doubles and integers."""

from libc.math cimport fabs
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport strtod
from libc.string cimport memcpy, memmove, memset

from core.number cimport NUMBER_TEXT_SIZE_MAX

cdef enum:
    # No double and no midpoint of two has more than 767 significant digits; one more, not zero, stands for the rest.
    DIGITS_MAX = 768
    EXPONENT_MAX = 100000  # far beyond a double's range even with all the digits that a frame could hold in front
    SHORT_DIGITS = 15      # any decimal of so many digits survives the way through a double (of normal size)
    LONG_DIGITS = 17       # so many always tell a double from its neighbours

ctypedef struct Decimal:  # 0.d1d2d3… times ten to the power of `point`
    char digits[LONG_DIGITS + 1]
    int count
    int point

cdef extern from *:
    """
    static const double POWERS_OF_TEN[] = {1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13,
                                           1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    """
    const double* POWERS_OF_TEN


# ---- reading -------------------------------------------------------------------------------------------------------

cdef int64_t exponent_read(const uint8_t* text, size_t size) noexcept nogil:
    """The number after the "e", held within EXPONENT_MAX either way."""
    cdef bint negative = text[0] == c"-"
    cdef int64_t exponent = 0
    cdef size_t at
    for at in range(1 if negative or text[0] == c"+" else 0, size):
        if exponent < EXPONENT_MAX * 1000:
            exponent = exponent * 10 + (text[at] - c"0")
    return -exponent if negative else exponent


cdef int digits_collect(const uint8_t* text, size_t size, char* digits, int64_t* exponent) noexcept nogil:
    """Put the significant digits of `text` into `digits` (DIGITS_MAX + 1); value = digits * 10 ** exponent."""
    cdef int count = 0
    cdef bint fraction = False
    cdef bint beyond = False
    cdef size_t at = 0
    exponent[0] = 0
    while at < size and text[at] != c"e" and text[at] != c"E":
        if text[at] == c".":
            fraction = True
        elif count < DIGITS_MAX:
            if count or text[at] != c"0":
                digits[count] = <char>text[at]
                count += 1
            exponent[0] -= fraction
        else:
            beyond = beyond or text[at] != c"0"
            exponent[0] += not fraction
        at += 1
    if at < size:
        exponent[0] += exponent_read(text + at + 1, size - at - 1)
    if beyond:
        digits[count] = c"1"
        count += 1
        exponent[0] -= 1
    return count


cdef double decimal_value(char* digits, int count, int64_t exponent) noexcept nogil:
    """The double nearest to digits * 10 ** exponent; `digits` has room for an exponent's text behind them."""
    cdef uint64_t mantissa = 0
    cdef int at
    if count == 0:
        return 0.0
    if count <= SHORT_DIGITS and -22 <= exponent <= 22:
        # Both factors are exact doubles, so that one operation rounds once (Clinger 1990).
        for at in range(count):
            mantissa = mantissa * 10 + <uint64_t>(digits[at] - c"0")
        if exponent < 0:
            return <double>mantissa / POWERS_OF_TEN[-exponent]
        return <double>mantissa * POWERS_OF_TEN[exponent]
    if exponent > EXPONENT_MAX:
        exponent = EXPONENT_MAX
    elif exponent < -EXPONENT_MAX:
        exponent = -EXPONENT_MAX
    snprintf(digits + count, NUMBER_TEXT_SIZE_MAX, b"e%d", <int>exponent)
    return strtod(digits, NULL)


cdef double double_read(const uint8_t* text, size_t size) noexcept nogil:
    cdef char[DIGITS_MAX + 1 + NUMBER_TEXT_SIZE_MAX] digits
    cdef int64_t exponent
    cdef int count = digits_collect(text, size, digits, &exponent)
    return decimal_value(digits, count, exponent)


# ---- writing -------------------------------------------------------------------------------------------------------

cdef void decimal_print(double value, int count, Decimal* decimal) noexcept nogil:
    """The `count` digits nearest to `value` (> 0)."""
    cdef char[NUMBER_TEXT_SIZE_MAX + 16] text
    cdef int size = snprintf(text, sizeof(text), b"%.*e", count - 1, value)
    cdef int at = 0
    decimal.count = 0
    while at < size and text[at] != c"e":
        if c"0" <= text[at] <= c"9" and decimal.count < LONG_DIGITS:
            decimal.digits[decimal.count] = text[at]
            decimal.count += 1
        at += 1
    decimal.point = <int>exponent_read(<const uint8_t*>text + at + 1, size - at - 1) + 1


cdef bint decimal_is(const Decimal* decimal, double value) noexcept nogil:
    """Whether `decimal` reads back as `value`."""
    cdef char[LONG_DIGITS + NUMBER_TEXT_SIZE_MAX] digits
    memcpy(digits, decimal.digits, decimal.count)
    return decimal_value(digits, decimal.count, decimal.point - decimal.count) == value


cdef bint decimal_step(Decimal* decimal) noexcept nogil:
    """Add one to the last digit, where no carry runs out at the front."""
    cdef int at = decimal.count - 1
    while at >= 0 and decimal.digits[at] == c"9":
        decimal.digits[at] = c"0"
        at -= 1
    if at < 0:
        return False
    decimal.digits[at] += 1
    return True


cdef bint power_of_two(double value) noexcept nogil:
    cdef uint64_t bits
    memcpy(&bits, &value, 8)
    return bits & <uint64_t>0xFFFFFFFFFFFFF == 0


cdef void decimal_shortest(double value, Decimal* decimal) noexcept nogil:
    """The fewest digits that read back as `value` (> 0), and of those the nearest."""
    # Below the normal range doubles are so coarse that fewer than 15 digits may do where 15 would print noise.
    cdef int count = SHORT_DIGITS if value >= 2.2250738585072014e-308 else 1
    while count < LONG_DIGITS:
        decimal_print(value, count, decimal)
        if decimal_is(decimal, value):
            break
        # Under a power of two the neighbour is only half as far as above it: the digits nearest to the value can miss
        # it while the next ones up, farther away, still hit (2 ** -44).
        if power_of_two(value) and decimal_step(decimal) and decimal_is(decimal, value):
            break
        count += 1
    if count == LONG_DIGITS:
        decimal_print(value, count, decimal)
    while decimal.count > 1 and decimal.digits[decimal.count - 1] == c"0":
        decimal.count -= 1


cdef size_t plain_write(const Decimal* decimal, uint8_t* dst) noexcept nogil:
    """Lay out without an exponent: 0.00012, 1.5, 1200.0."""
    cdef int whole = decimal.point if decimal.point > 0 else 1
    cdef int lead = 1 - decimal.point if decimal.point <= 0 else 0
    cdef size_t size = decimal.count + lead
    memset(dst, c"0", LONG_DIGITS + 4)
    memcpy(dst + lead, decimal.digits, decimal.count)
    if size < <size_t>whole + 1:
        size = whole + 1
    memmove(dst + whole + 1, dst + whole, size - whole)
    dst[whole] = c"."
    return size + (size > <size_t>whole)


cdef size_t exponent_write(const Decimal* decimal, uint8_t* dst) noexcept nogil:
    """Lay out with an exponent: 1e-05, 1.25e+16."""
    cdef size_t size = 1
    cdef int exponent = decimal.point - 1
    dst[0] = <uint8_t>decimal.digits[0]
    if decimal.count > 1:
        dst[1] = c"."
        memcpy(dst + 2, decimal.digits + 1, decimal.count - 1)
        size = decimal.count + 1
    return size + <size_t>snprintf(<char*>dst + size, 8, b"e%+03d", exponent)


cdef size_t double_write(double value, uint8_t* dst) noexcept nogil:
    cdef Decimal decimal
    cdef uint64_t bits
    cdef size_t sign
    memcpy(&bits, &value, 8)
    sign = bits >> 63
    value = fabs(value)
    if sign:
        dst[0] = c"-"
    if value < 1e15 and value == <double><uint64_t>value:
        # A whole number, zero included: its digits are those of the integer.
        sign += integer_write(False, <uint64_t>value, dst + sign)
        memcpy(dst + sign, b".0", 2)
        return sign + 2
    decimal_shortest(value, &decimal)
    if -4 < decimal.point <= 16:
        return sign + plain_write(&decimal, dst + sign)
    return sign + exponent_write(&decimal, dst + sign)


cdef size_t integer_write(bint negative, uint64_t magnitude, uint8_t* dst) noexcept nogil:
    cdef char[NUMBER_TEXT_SIZE_MAX] text
    cdef int at = NUMBER_TEXT_SIZE_MAX
    while True:
        at -= 1
        text[at] = <char>(c"0" + magnitude % 10)
        magnitude //= 10
        if magnitude == 0:
            break
    if negative:
        at -= 1
        text[at] = c"-"
    memcpy(dst, text + at, NUMBER_TEXT_SIZE_MAX - at)
    return NUMBER_TEXT_SIZE_MAX - at


def double_text(value: float) -> bytes:
    """`value` (finite) in its shortest form, for tests."""
    cdef uint8_t dst[NUMBER_TEXT_SIZE_MAX]
    cdef size_t size = double_write(value, dst)
    return (<char*>dst)[:size]


def double_value(text: bytes) -> float:
    """The double nearest to `text`, a JSON number without a sign."""
    return double_read(<const uint8_t*><const char*>text, len(text))


def integer_text(value: int) -> bytes:
    """`value` (-2**64 < value < 2**64) in decimal."""
    cdef uint8_t dst[NUMBER_TEXT_SIZE_MAX]
    cdef size_t size = integer_write(value < 0, <uint64_t>abs(value), dst)
    return (<char*>dst)[:size]
