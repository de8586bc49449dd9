"""The page of shards in real Chromium, with answers of the admin API that the tests write."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, expect

from tests.client.test_page import CHROMIUM, DEADLINE_S, Windows, chromium, page_served

REFRESHED_MS = 15_000
EVACUATED = "evacuated since 1970-01-01T00:00:00.000Z by op@host"
NONE = "\N{EN DASH}"
REFUSED = "401 (Unauthorized)"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
]


def router(name: str, region: str, **more: Any) -> dict[str, Any]:
    stands = {"leads": 2, "wanted": 2, "follows": 1, "load": 1234.5, "cordoned": False, "leaving": False}
    return {"name": name, "region": region, **stands, **more}


def region(name: str, **more: Any) -> dict[str, Any]:
    counts = {"routers": 1, "gateways": 2, "leads": 2, "wanted": 2, "follows": 1, "behind": 0, "breakers": 1}
    lag = {"lag_entries": 0, "lag_seconds": 0.0, "breakers_open": 0}
    return {"name": name, **counts, **lag, "evacuated": False, "by": None, "since_ms": None, **more}


def shard(number: int, leader: str | None, **more: Any) -> dict[str, Any]:
    return {"shard": number, "leader": leader, "wanted": leader, "pinned": None, "epoch": 3, "load": 0.0, **more}


def follower(router: str | None, entries: int = 0, seconds: float = 0.0) -> dict[str, Any]:
    return {"router": router, "lag_entries": entries, "lag_seconds": seconds}


class Admin:
    """The admin API: what it tells of shards, to whom."""

    def __init__(self) -> None:
        self.token = ""
        self.status = 200
        self.told: dict[str, Any] = {
            "node": "a",
            "reachable": True,
            "unled": 1,
            "gateways": [{"name": "a"}, {"name": "b"}],
            "routers": [router("a", "eu"), router("<b>u</b>", "us", cordoned=True, load=0.0), router("c", "us")],
            "regions": [
                region("eu", lag_entries=12, lag_seconds=0.44, behind=1),
                region("us", evacuated=True, by="op@host", since_ms=0, breakers_open=1, breakers=2),
            ],
            "shards": [
                shard(0, "a", load=0.75, followers={"us": follower("<b>u</b>", 3, 1.5)}),
                shard(1, "<b>u</b>", wanted="a", followers={"eu": follower(None)}),
                shard(2, None, epoch=0, followers={}),
                shard(3, "a", followers={"us": follower("<b>u</b>")}),
                shard(4, "a", pinned="a", followers={}),
            ],
        }

    def answer(self, path: str, authorization: str | None) -> tuple[int, bytes]:
        assert path == "/api/shards"
        if self.token and authorization != f"Bearer {self.token}":
            return 401, b'{"code": "bad_token", "message": "give the admin token"}'
        if self.status != 200:
            return self.status, b'{"code": "unavailable", "message": "the directory has not been read yet"}'
        return 200, json.dumps(self.told).encode()


def run(test: Callable[[Admin, Windows], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        admin = Admin()
        async with asyncio.timeout(DEADLINE_S), chromium() as browser:
            with page_served(0, admin.answer) as url:
                windows = Windows(browser, f"{url}page/shards.html")
                await test(admin, windows)
                assert windows.complaints == []

    asyncio.run(main())


async def rows(page: Page, table: str) -> list[list[str]]:
    """What stands in each cell that is seen."""
    cells = "rows => rows.map(row => [...row.cells].filter(cell => cell.offsetParent).map(cell => cell.textContent))"
    found: list[list[str]] = await page.locator(f"#{table} tbody tr").evaluate_all(cells)
    return found


def test_a_cluster_is_shown_with_its_regions_and_goes_on_being_shown() -> None:
    async def test(admin: Admin, windows: Windows) -> None:
        page = await windows.open()
        summary = page.locator("#summary")
        await expect(summary).to_have_text("5 shards, 1 without a leader, 1 on their way; workers at a, b.")
        assert await rows(page, "regions") == [
            ["eu", "1", "2", "2", "2", "1 (1 behind)", "12 (0.4 s)", "closed", "serves"],
            ["us", "1", "2", "2", "2", "1", "0", "open at 1 of 2", EVACUATED],
        ]
        assert await rows(page, "routers") == [
            ["a", "eu", "2", "2", "1", "1,234.5", "takes shards"],
            ["<b>u</b>", "us", "2", "2", "1", "0", "cordoned"],
            ["c", "us", "2", "2", "1", "1,234.5", "region evacuated"],
        ]
        assert await rows(page, "shards") == [
            ["0", "a", "eu", "3", "0.8", "", "us: <b>u</b>, 3 (1.5 s)"],
            ["1", "<b>u</b>", "us", "3", "0", "to a", "eu: nobody, 0"],
            ["2", "nobody", NONE, "0", "0", "", NONE],
            ["3", "a", "eu", "3", "0", "", "us: <b>u</b>, 0"],
            ["4", "a", "eu", "3", "0", "pinned at a", NONE],
        ]
        await page.check("#only")
        assert [cells[0] for cells in await rows(page, "shards")] == ["0", "1", "2", "4"]
        admin.told |= {"unled": 0, "reachable": False, "shards": [shard(0, "a", followers={})]}
        said = "1 shards, 0 without a leader, 0 on their way; workers at a, b; the directory does not answer"
        await expect(summary).to_contain_text(said, timeout=REFRESHED_MS)
        assert await rows(page, "shards") == []

    run(test)


def test_the_admin_token_is_asked_for_and_kept_in_this_window() -> None:
    async def test(admin: Admin, windows: Windows) -> None:
        admin.token = "t" * 16
        page = await windows.open()
        await expect(page.locator("#login")).to_be_visible()
        await expect(page.locator("#all")).to_be_hidden()
        await page.fill("#token", "wrong")
        await page.press("#token", "Enter")
        await expect(page.locator("#notice")).to_have_text("that is not the admin token")
        await page.fill("#token", admin.token)
        await page.click("#show")
        await expect(page.locator("#shards tbody tr")).to_have_count(5)
        await expect(page.locator("#login")).to_be_hidden()
        await expect(page.locator("#notice")).to_have_text("")
        assert await page.input_value("#token") == ""
        await page.reload()
        await expect(page.locator("#shards tbody tr")).to_have_count(5)
        other = await windows.open()
        await expect(other.locator("#login")).to_be_visible()
        assert len(windows.complaints) == 3
        assert all(REFUSED in said for said in windows.complaints)
        windows.complaints.clear()

    run(test)


def test_what_is_not_answered_is_told_and_what_was_known_stays() -> None:
    async def test(admin: Admin, windows: Windows) -> None:
        page = await windows.open()
        await expect(page.locator("#shards tbody tr")).to_have_count(5)
        admin.status = 503
        said = "the directory has not been read yet; this is how it was last known"
        await expect(page.locator("#notice")).to_have_text(said, timeout=REFRESHED_MS)
        await expect(page.locator("#shards tbody tr")).to_have_count(5)
        admin.status = 200
        await expect(page.locator("#notice")).to_have_text("", timeout=REFRESHED_MS)
        assert all("503" in complaint for complaint in windows.complaints)
        windows.complaints.clear()

    run(test)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_everything_is_reachable_wide_and_narrow(width: int, scheme: str, tmp_path: Path) -> None:
    async def test(admin: Admin, windows: Windows) -> None:
        page = await windows.open(viewport={"width": width, "height": 720}, color_scheme=scheme)
        await expect(page.locator("#shards tbody tr")).to_have_count(5)
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        for name in ("summary", "regions", "routers", "shards", "only"):
            await expect(page.get_by_test_id(name)).to_be_visible()
        await page.screenshot(path=tmp_path / "page.png", full_page=True)

    run(test)
