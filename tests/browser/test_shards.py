"""The page of shards of a real node: one that is alone, and one that has a token."""

from collections.abc import Callable

from playwright.async_api import expect

from tests.browser.test_two_windows import pytestmark as pytestmark
from tests.browser.test_two_windows import run
from tests.client.test_page import Windows
from tests.conftest import Node

TOKEN = "t" * 16
SHARDS = 256
NONE = "\N{EN DASH}"


def test_a_node_that_is_alone_shows_that_it_leads_everything(holdfast: Callable[..., Node]) -> None:
    node = holdfast("--workers", "1", HOLDFAST_NODE_NAME="alone")

    async def test(windows: Windows) -> None:
        page = await windows.open()
        await page.click("text=Shards")
        await expect(page.locator("#shards tbody tr")).to_have_count(SHARDS)
        said = f"This node is alone: it has no directory, and its router leads all {SHARDS} shards."
        await expect(page.locator("#summary")).to_have_text(said)
        await expect(page.locator("#node")).to_have_text("alone")
        await expect(page.locator("#routers tbody tr")).to_have_text(
            [f"alone{NONE}{SHARDS}{SHARDS}0{NONE}takes shards"]
        )
        await expect(page.locator("#regions")).to_be_hidden()
        await expect(page.locator("#login")).to_be_hidden()
        await page.click("text=Chat")
        await expect(page.locator("#connect")).to_be_visible()

    run(node, test)


def test_a_node_with_a_token_shows_shards_to_whoever_has_it(holdfast: Callable[..., Node]) -> None:
    node = holdfast("--workers", "1", HOLDFAST_ADMIN_TOKEN=TOKEN)

    async def test(windows: Windows) -> None:
        page = await windows.open()
        await page.click("text=Shards")
        await page.fill("#token", TOKEN)
        await page.click("#show")
        await expect(page.locator("#shards tbody tr")).to_have_count(SHARDS)
        (complaint,) = windows.complaints
        assert "401" in complaint
        windows.complaints.clear()

    run(node, test)
