"""Windows of real Chromium on the page of a real node: they talk to each other, and go on when a process is killed."""

import asyncio
import json
import os
import re
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Locator, Page, async_playwright, expect

from tests.client.test_page import ARGUMENTS, Windows, say
from tests.conftest import Node, stand_still, wait_until
from tools.provision import NEEDS, environment_for, find_program

PROGRAMS = next(need.programs for need in NEEDS if "chromium" in need.packages)
CHROMIUM = next(filter(None, map(find_program, PROGRAMS)), None)
DEADLINE_S = 60
ATTEMPTS = 50
# What Chromium itself says when a connection is lost or refused; nothing else may stand in the console.
LOST = "WebSocket connection to "
_MILLISECONDS = re.compile(r"\d+\.\d ms")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: python tools/provision.py installs it"),
]


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    assert CHROMIUM is not None
    environment: dict[str, str | float | bool] = {**environment_for(CHROMIUM)}
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, env=environment)
        try:
            yield browser
        finally:
            await browser.close()


def run(node: Node, test: Callable[[Windows], Coroutine[Any, Any, None]], *, loses_connections: bool = False) -> None:
    """Run with a browser on the node's page; what a window complains of fails the test."""

    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S), chromium() as browser:
            windows = Windows(browser, node.admin_url + "/")
            await test(windows)
            unexpected = [text for text in windows.complaints if not (loses_connections and text.startswith(LOST))]
            assert unexpected == []

    try:
        asyncio.run(main())
    except (AssertionError, TimeoutError) as error:
        error.add_note(f"the node said:\n{node.log_tail()}")
        raise


def texts(page: Page) -> Locator:
    return page.locator("#messages .text")


def members(page: Page) -> Locator:
    return page.locator("#member-list li")


async def watch_states(page: Page) -> None:
    """Keep every state from here on: `reconnecting` may be over before anybody looks."""
    watch = "state => { window.states = []; new MutationObserver(() => states.push(state.textContent))"
    await page.locator("#state").evaluate(watch + ".observe(state, {childList: true}) }")


async def back_open(page: Page) -> None:
    """The window has noticed that its connection was lost, and is open again."""
    await page.wait_for_function("states.includes('reconnecting') && states.at(-1) === 'open'")


async def publish_over_http(node: Node, channel: str, data: Any, sender: str) -> dict[str, int]:
    body = json.dumps({"channel": channel, "data": data, "from": sender}).encode()
    request = urllib.request.Request(
        node.admin_url + "/api/publish", data=body, headers={"Content-Type": "application/json"}
    )

    def post() -> dict[str, int]:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return dict(json.load(answer))

    return await asyncio.to_thread(post)


async def publish_from_shell(node: Node, *arguments: str) -> str:
    program = Path(sys.executable).parent / "holdfast"
    command = [str(program), "publish", "--url", node.admin_url, *arguments]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode == 0
    return output.decode()


def test_two_windows_talk_both_ways_and_a_third_sees_what_was_said(holdfast: Callable[..., Node]) -> None:
    node = holdfast("--workers", "2")
    said = ["hello?", "hello!", "<b>bold</b> <img src=x onerror=alert(1)>", "🚀 漢字", "שלום עולם", "a & b &amp; c"]

    async def test(windows: Windows) -> None:
        pages = [await windows.talking("ann"), await windows.talking("bob")]
        for number, text in enumerate(said):
            await say(pages[number % 2], text)
            for page in pages:
                await expect(texts(page)).to_have_text(said[: number + 1])
        pages.append(await windows.talking("eve"))
        for page in pages:
            await expect(texts(page)).to_have_text(said)
            await expect(page.locator("#messages .sender")).to_have_text(["ann", "bob"] * 3)
            await expect(page.locator("#messages .position")).to_have_text([f"#{n + 1}" for n in range(len(said))])
            assert await page.locator("#messages").locator("b, img").count() == 0
            await expect(page.locator("#state")).to_have_text("open")
            await expect(page.locator("#rtt")).to_have_text(_MILLISECONDS)
        await say(pages[2], "late, sorry")
        for page in pages:
            await expect(texts(page)).to_have_text([*said, "late, sorry"])
            await expect(members(page)).to_have_text(["ann", "bob", "eve"])
            await expect(page.locator("#member-count")).to_have_text("3")

    run(node, test)


def test_a_window_that_was_closed_is_no_member_any_more(holdfast: Callable[..., Node]) -> None:
    node = holdfast("--workers", "2")

    async def test(windows: Windows) -> None:
        ann, bob = await windows.talking("ann"), await windows.talking("bob")
        await ann.click("#refresh")
        await expect(members(ann)).to_have_text(["ann", "bob"])
        await bob.context.close()
        # A browser closes in its own time; each press asks anew.
        for _ in range(ATTEMPTS):
            await ann.click("#refresh")
            try:
                await expect(members(ann)).to_have_text(["ann"], timeout=200)
                break
            except AssertionError:
                continue
        await expect(ann.locator("#member-count")).to_have_text("1")

    run(node, test)


def test_what_is_published_from_outside_appears_in_the_windows(holdfast: Callable[..., Node]) -> None:
    node = holdfast("--workers", "2")

    async def test(windows: Windows) -> None:
        pages = [await windows.talking("ann"), await windows.talking("bob")]
        position = await publish_over_http(node, "group:lobby", {"text": "from HTTP"}, "backend")
        assert position["offset"] == 1
        printed = await publish_from_shell(node, "--json", "group:lobby", '{"text": "from a shell"}')
        assert printed == f"group:lobby: epoch {position['epoch']}, offset 2\n"
        await publish_from_shell(node, "--from", "cron", "group:lobby", 'plain "text"')
        await publish_over_http(node, "group:lobby", [1, None], "backend")
        for page in pages:
            shown = ["from HTTP", "from a shell", 'plain "text"', "[1,null]"]
            await expect(texts(page)).to_have_text(shown)
            await expect(page.locator("#messages .sender")).to_have_text(["backend", "admin", "cron", "backend"])

    run(node, test)


def test_after_each_worker_was_killed_every_window_goes_on_with_nothing_missing(holdfast: Callable[..., Node]) -> None:
    node = holdfast("--workers", "2")
    node.expect_lost()

    async def test(windows: Windows) -> None:
        pages = [await windows.talking("ann"), await windows.talking("bob")]
        said = ["before"]
        await say(pages[0], said[0])
        for page in pages:
            await expect(texts(page)).to_have_text(said)
            await watch_states(page)
        first, second = node.workers
        for pid in (first, second):
            os.kill(pid, signal.SIGKILL)
            # Said while a window may be away: it has to find it in the history.
            said.append(f"while {pid} was away")
            await publish_over_http(node, "group:lobby", {"text": said[-1]}, "backend")
            await asyncio.to_thread(wait_until, lambda: len(node.workers) == 2 and node.get("/readyz")[0] == 200, "2")
            for page in pages:
                await expect(page.locator("#state")).to_have_text("open", timeout=15_000)
                await expect(texts(page)).to_have_text(said, timeout=15_000)
        # Whichever worker had them, each has lost its connection at least once.
        for page in pages:
            await back_open(page)
            said.append(f"after {len(said)}")
            await say(page, said[-1])
            for other in pages:
                await expect(texts(other)).to_have_text(said)
        await pages[0].click("#refresh")
        await expect(members(pages[0])).to_have_text(["ann", "bob"])

    run(node, test, loses_connections=True)


def test_what_is_said_while_the_router_is_away_comes_with_the_next_one(holdfast: Callable[..., Node]) -> None:
    node = holdfast("--workers", "2")
    node.expect_lost()

    async def test(windows: Windows) -> None:
        ann, bob = await windows.talking("ann"), await windows.talking("bob")
        await say(ann, "before")
        for page in (ann, bob):
            await expect(texts(page)).to_have_text(["before"])
            await watch_states(page)
        (router,) = node.routers
        # Stopped first, so that what is said now surely does not reach it: it waits for the next router.
        await asyncio.to_thread(stand_still, router)
        await say(ann, "is anybody there?")
        await expect(ann.locator("#text")).to_have_value("")
        os.kill(router, signal.SIGKILL)
        for page in (ann, bob):
            await expect(texts(page).last).to_have_text("is anybody there?", timeout=15_000)
        await expect(ann.locator("#notice")).to_have_text("")
        await say(bob, "yes")
        for page in (ann, bob):
            await expect(texts(page)).to_have_text(["before", "is anybody there?", "yes"])
            # The connections have nothing to do with the router and stayed.
            assert await page.evaluate("states") == []
        await ann.click("#refresh")
        await expect(members(ann)).to_have_text(["ann", "bob"])

    run(node, test)


@pytest.mark.parametrize("width", [1280, 360])
def test_the_page_of_a_node_is_usable_wide_and_narrow_light_and_dark(
    holdfast: Callable[..., Node], width: int, tmp_path: Path
) -> None:
    node = holdfast("--workers", "1")

    async def test(windows: Windows) -> None:
        for number in range(1, 13):
            words = f"line {number} " + "and more " * number
            await publish_over_http(node, "group:lobby", {"text": words}, ("ann", "bob", "אבי")[number % 3])
        for scheme in ("light", "dark"):
            size = {"width": width, "height": 720}
            page = await windows.talking(f"ann-{scheme}", viewport=size, color_scheme=scheme)
            await say(page, "mine")
            await expect(texts(page).last).to_be_in_viewport()
            for name in ("user", "connect", "state", "rtt", "group", "join", "messages", "text", "send", "members"):
                await expect(page.get_by_test_id(name)).to_be_in_viewport()
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            await page.screenshot(path=tmp_path / f"{width}-{scheme}.png")

    run(node, test)
