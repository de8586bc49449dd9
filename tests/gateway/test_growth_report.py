"""The report names what grew, most first, for machines and people, and old ones make room."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from gateway.growth_report import Detail, about, as_text, sites, write

BEFORE = Detail(0.0, {"ledger": Counter(ring=10, buffer=5), "fds": Counter({"socket unix": 3, "/var/log/N": 2})})
NOW = Detail(
    60.0,
    {"ledger": Counter(ring=110, buffer=5, segment=3), "fds": Counter({"socket unix": 3, "/var/log/N": 40})},
    [{"line": "gateway/control.py:12", "code": "kept.append(frame)", "bytes": 5_000, "blocks": 50}],
)


def event(**changes: Any) -> dict[str, Any]:
    found = {
        "event": "leak_suspected", "time": 1_700_000_000.25, "node": "node-1", "process": "worker-0", "pid": 17,
        "resource": "private_bytes", "per_day": 2_000_000.0, "low": 1_500_000.0, "high": 2_500_000.0,
        "level": 40_000_000.0, "relative_per_day": 0.05, "relative_low": 0.0375, "relative_high": 0.0625,
        "confidence": 0.95, "samples": 240, "span_s": 14_400.0, "sites": sites(BEFORE, NOW),
    }  # fmt: skip
    return found | changes


def test_sites_are_what_grew_and_only_that() -> None:
    assert sites(BEFORE, NOW) == [
        {"group": "allocation", "name": "gateway/control.py:12  kept.append(frame)", "grown": 5_000, "blocks": 50},
        {"group": "ledger", "name": "ring", "grown": 100, "before": 10, "now": 110},
        {"group": "ledger", "name": "segment", "grown": 3, "before": 0, "now": 3},
        {"group": "fds", "name": "/var/log/N", "grown": 38, "before": 2, "now": 40},
    ]


def test_what_tells_most_about_a_resource_comes_first() -> None:
    found = sites(BEFORE, NOW)
    assert about(found, "fds", ("fds",))[0]["name"] == "/var/log/N"
    assert [site["name"] for site in about(found, "segment", ("ledger",))][:2] == ["segment", "ring"]
    assert {site["name"] for site in about(found, "segment", ("ledger",))} == {site["name"] for site in found}


def test_the_text_says_what_how_much_how_sure_and_where() -> None:
    text = as_text(event())
    assert "private_bytes of worker-0 (pid 17) on node-1 is suspected of leaking" in text
    assert "+2,000,000.0 bytes a day (+5.00%)" in text
    assert "+1,500,000.0 to +2,500,000.0 at 95.00% confidence" in text
    assert "+5,000 gateway/control.py:12  kept.append(frame) in 50 blocks" in text
    assert "+100 ring (10 -> 110)" in text
    assert "Nothing that can be named grew." in as_text(event(sites=[]))


def test_it_is_written_twice_and_the_oldest_go(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "if need be"
    (tmp_path / "made").mkdir()
    for place in range(5):
        path = write(folder, event(time=1_700_000_000.0 + place), kept_max=2)
    assert path.read_text() == as_text(event(time=1_700_000_004.0))
    assert json.loads(path.with_suffix(".json").read_text()) == event(time=1_700_000_004.0)
    kept = sorted(one.name for one in folder.iterdir())
    assert kept == [
        f"growth-{int((1_700_000_000 + place) * 1000):015}-worker-0-private_bytes.{suffix}"
        for place in (3, 4)
        for suffix in ("json", "txt")
    ]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "growth-notes.txt").write_text("mine")
    for place in range(3):
        write(tmp_path, event(time=float(place)), kept_max=1)
    assert (tmp_path / "growth-notes.txt").read_text() == "mine"
