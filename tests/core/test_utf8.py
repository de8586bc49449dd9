"""UTF-8 validity against Python's own decoder."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core import utf8


def oracle(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.binary(max_size=40))
@example(b"")
@settings(max_examples=500, deadline=None)
def test_random_bytes_are_judged_as_python_judges_them(data: bytes) -> None:
    assert utf8.valid(data) == oracle(data)


@given(st.text(max_size=30), st.integers(0, 1 << 16), st.integers(0, 255))
@settings(max_examples=500, deadline=None)
def test_text_is_valid_and_damaged_text_is_judged_as_python_judges_it(text: str, at: int, byte: int) -> None:
    data = bytearray(text.encode())
    assert utf8.valid(bytes(data))
    if data:
        data[at % len(data)] = byte
        assert utf8.valid(bytes(data)) == oracle(bytes(data))


def test_every_lead_and_second_byte_with_good_and_bad_rest() -> None:
    for lead in range(0x80, 0x100):
        for second in range(0x100):
            for rest in (b"", b"\x80", b"\x80\x80", b"\xbf\xbf", b"\x80\xc0", b"\xc0\x80", b"\x7f\x80", b"a"):
                data = bytes([lead, second]) + rest
                assert utf8.valid(data) == oracle(data), data


@pytest.mark.parametrize("code", [0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF])
def test_the_edges_of_each_length_at_every_offset_of_a_word(code: int) -> None:
    for offset in range(18):
        data = b"a" * offset + chr(code).encode() + b"b" * 9
        assert utf8.valid(data)
        assert all(utf8.valid(data[:cut]) == oracle(data[:cut]) for cut in range(len(data)))


@pytest.mark.parametrize(
    "data", [b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf",
             b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\x80"],
)  # fmt: skip
def test_surrogates_overlong_forms_and_too_high_code_points_are_refused(data: bytes) -> None:
    for offset in range(9):
        assert not utf8.valid(b"x" * offset + data + b"y" * 8)
