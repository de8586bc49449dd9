"""The table of codes against the protocol page: names, ranges and classes."""

import re
from pathlib import Path

import pytest

from core import codes
from core.codes import Code, CodeInfo

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
# The page's ranges, and what a client should do about a FIN with a code of each.
RANGES = {range(0, 1): "stop", range(1, 200): "resume", range(200, 400): "fresh", range(400, 600): "request"}


def documented() -> list[tuple[str, ...]]:
    """The rows of the page's table."""
    section = PAGE.read_text().split("\n## Codes\n")[1]
    return re.findall(r"^\| (\d+) \| `(\w+)` \| (\w+) \| (.*) \|$", section, re.MULTILINE)


def test_the_page_and_the_code_have_the_same_table() -> None:
    assert documented() == [(str(info.number), *info[1:]) for info in codes.TABLE]


@pytest.mark.parametrize("info", codes.TABLE, ids=lambda info: str(info.name))
def test_the_class_follows_from_the_number(info: CodeInfo) -> None:
    expected = [kind for numbers, kind in RANGES.items() if info.number in numbers] or ["stop"]
    assert [info.kind] == expected
    assert info.when.endswith(".")


def test_enum_and_table_name_the_same_codes() -> None:
    assert {code.name.lower(): int(code) for code in Code} == codes.BY_NAME
    assert {number: name for name, number in codes.BY_NAME.items()} == codes.NAMES
    assert len(codes.TABLE) == len(codes.NAMES)
