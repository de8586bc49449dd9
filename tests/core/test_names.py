"""Names: what was kept is what is read, for every size, whatever is kept and dropped beside it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.names import NameTable


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=255), st.booleans()), max_size=80))
@settings(max_examples=80, deadline=None)
def test_names_stay_as_they_were_kept(steps: list[tuple[bytes, bool]]) -> None:
    table, live = NameTable(), dict[tuple[int, int], bytes]()
    for text, drop in steps:
        if drop and live:
            name, size = next(iter(live))
            table.drop(name, size)
            del live[name, size]
        number = table.keep(text)
        assert number is not None
        assert (number, len(text)) not in live
        live[number, len(text)] = text
        assert table.check()
        assert len(table) == len(live)
    assert all(table.text(name, size) == text for (name, size), text in live.items())


@pytest.mark.parametrize("size", [1, 3, 4, 5, 8, 252, 253, 255])
def test_names_of_a_size_do_not_run_into_each_other(size: int) -> None:
    table = NameTable()
    texts = [(b"%d" % number * 255)[:size] for number in range(2000)]
    numbers = [table.keep(text) for text in texts]
    assert all(
        number is not None and table.text(number, size) == text for number, text in zip(numbers, texts, strict=True)
    )


@pytest.mark.parametrize("size", [0, 256, 1000])
def test_no_name_has_such_a_size(size: int) -> None:
    table = NameTable()
    assert table.keep(b"x" * size) is None
    assert len(table) == 0
