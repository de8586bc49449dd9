"""Base64 against the standard library; what is read must be exactly what would be written."""

import base64 as oracle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import base64

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="


@given(st.binary(max_size=100))
def test_what_is_written_reads_back(data: bytes) -> None:
    text = base64.encode(data)
    assert text == oracle.b64encode(data)
    assert base64.decode(text) == data


@given(st.text(alphabet=ALPHABET + " -_\n", max_size=12).map(str.encode))
@settings(max_examples=500, deadline=None)
def test_only_canonical_text_is_read(text: bytes) -> None:
    try:
        expected = oracle.b64decode(text, validate=True)
    except ValueError:
        expected = None
    if expected is not None and oracle.b64encode(expected) != text:
        expected = None
    assert base64.decode(text) == expected


@pytest.mark.parametrize(
    "text", [b"A", b"AA", b"AAA", b"AB==", b"AAB=", b"A===", b"====", b"AA=A", b"AA==AAAA", b"A-A="]
)
def test_wrong_padding_and_left_over_bits_are_refused(text: bytes) -> None:
    assert base64.decode(text) is None


def test_every_other_character_is_refused() -> None:
    for byte in range(256):
        text = b"AA" + bytes([byte]) + b"A"
        assert (base64.decode(text) is not None) == (chr(byte) in ALPHABET[:-1])


def test_each_bit_left_over_is_looked_at() -> None:
    # Two characters of a last group carry 4 bits too many, three carry 2.
    for value, char in enumerate(ALPHABET[:-1]):
        assert (base64.decode(f"A{char}==".encode()) is not None) == (value % 16 == 0)
        assert (base64.decode(f"AA{char}=".encode()) is not None) == (value % 4 == 0)
