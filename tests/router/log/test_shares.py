"""Each router's folder in the embedded log, and what is said to who changes how many there are."""

from pathlib import Path

import pytest

from router.log.port import LogBroken
from router.log.shares import routers_of, share


def test_a_lone_router_has_the_folder_itself_and_several_one_each(tmp_path: Path) -> None:
    assert share(tmp_path / "log", 0, 1) == tmp_path / "log"
    assert share(tmp_path, 1, 3) == tmp_path / "router-1-of-3"
    assert routers_of(tmp_path) == 0


@pytest.mark.parametrize(
    ("there", "was", "now"),
    [
        (["segment-000000000001.log", "state.sqlite"], 1, 2),
        (["router-0-of-2", "router-1-of-2"], 2, 3),
        (["router-0-of-2"], 2, 1),
    ],
)
def test_another_number_of_routers_is_refused_on_a_log_that_is_there(
    tmp_path: Path, there: list[str], was: int, now: int
) -> None:
    for name in there:
        (tmp_path / name).mkdir() if name.startswith("router") else (tmp_path / name).touch()
    with pytest.raises(LogBroken, match=f"log of {was} router.*node.routers is {now}: set it back to {was}"):
        share(tmp_path, 0, now)
    assert share(tmp_path, 0, was).parent in (tmp_path, tmp_path.parent)
