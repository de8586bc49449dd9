"""Decimal text of doubles against Python's repr and float, which are exact by contract."""

import locale
import math
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core import number


def check(value: float) -> None:
    assert number.double_text(value) == repr(value).encode()
    assert number.double_value(repr(abs(value)).encode()) == abs(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
@example(-0.0)
@example(5e-324)
@example(2.2250738585072014e-308)
@example(1.7976931348623157e308)
@example(9007199254740993.0)
@example(1e15)
@example(1e16)
@example(1e22)
@example(1e23)
@example(0.0001)
@example(0.00001)
@settings(max_examples=1000, deadline=None)
def test_doubles_are_written_as_python_writes_them(value: float) -> None:
    check(value)


def test_every_power_of_two_and_its_neighbours() -> None:
    for exponent in range(-1074, 1024):
        value = math.ldexp(1.0, exponent)
        check(value)
        check(math.nextafter(value, 0.0))
        check(math.nextafter(value, 2.0))


def test_random_bit_patterns() -> None:
    seed = random.randrange(1 << 32)
    source = random.Random(seed)
    for _ in range(20000):
        (value,) = struct.unpack("d", source.randbytes(8))
        if math.isfinite(value):
            assert number.double_text(value) == repr(value).encode(), f"seed {seed}"


decimals = st.from_regex(r"(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?", fullmatch=True)


@given(decimals)
@settings(max_examples=1000, deadline=None)
def test_any_decimal_is_read_as_the_nearest_double(text: str) -> None:
    # [0-9] in a regex is ASCII alone only where the pattern says so; JSON's digits are.
    if text.isascii():
        assert number.double_value(text.encode()) == float(text)


@pytest.mark.parametrize(
    "text",
    [
        "0." + "0" * 400 + "1e400",
        "1" + "0" * 400 + "e-400",
        "1" * 5000,
        "1e99999999999999999999999",
        "1e-99999999999999999999999",
        "0e99999999999999999999999",
        "0." + "0" * 60000 + "123e60000",
        "1" + "0" * 60000 + "e-60000",
        # A midpoint of two doubles, and the last of 900 digits that decides which is nearer.
        "9007199254740993." + "0" * 900 + "1",
        "9007199254740993." + "0" * 901,
        "0.1" + "0" * 1000 + "1",
        "2.47032822920623272e-324",
        "2.4703282292062328e-324",
        "1.7976931348623159e308",
    ],
)
def test_decimals_that_catch_rounding_twice(text: str) -> None:
    assert number.double_value(text.encode()) == float(text)


@given(st.integers(-(2**64) + 1, 2**64 - 1))
@example(0)
@example(2**64 - 1)
def test_integers(value: int) -> None:
    assert number.integer_text(value) == str(value).encode()


# LC_NUMERIC of a locale that writes 1,5, as localedef compiles it: a bare system has no such locale installed.
COMMA_LC_NUMERIC = bytes.fromhex(
    "1411032006000000200000002200000024000000280000002c00000030000000"
    "2c002e00030300002c0000002e000000414e53495f58332e342d3139363800"
)


@pytest.fixture
def comma_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A decimal comma, for the whole process while the test runs."""
    (tmp_path / "comma").mkdir()
    (tmp_path / "comma" / "LC_NUMERIC").write_bytes(COMMA_LC_NUMERIC)
    monkeypatch.setenv("LOCPATH", str(tmp_path))
    before = locale.setlocale(locale.LC_NUMERIC)
    locale.setlocale(locale.LC_NUMERIC, "comma")
    yield
    locale.setlocale(locale.LC_NUMERIC, before)


@pytest.mark.usefixtures("comma_locale")
def test_the_locale_does_not_matter() -> None:
    assert locale.localeconv()["decimal_point"] == ","
    for value in (1.5, 0.1, 1 / 3, 1e-300, 123456.789e100):
        check(value)
