"""The chat page in real Chromium, two windows, against the tests' own gateway."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, Route, WebSocket, async_playwright, expect

from tests.client.scripted_gateway import EVENT, MESSAGE, ScriptedGateway
from tools.provision import environment_for, find_program

PAGE = Path(__file__).parents[2] / "gateway" / "page"
CHROMIUM = find_program("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
TYPES = {".html": "text/html", ".css": "text/css", ".mjs": "text/javascript"}
DEADLINE_S = 60
OPEN_MS = 15_000
WIRE_MAX = 200  # lines that a failure tells
INFO = "**/api/info"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium"),
]


Api = Callable[[str, str | None], tuple[int, bytes]]
"""What answers a path under /api, with or without an Authorization."""


@contextmanager
def page_served(ws_port: int, api: Api | None = None) -> Iterator[str]:
    """The page as the admin port serves it."""
    said = {"node": "test", "version": "0.1.0", "development": True, "ws_port": ws_port, "ws_path": "/im"}
    info = json.dumps(said).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/api/info":
                self.answer("application/json", info)
                return
            if api is not None and self.path.startswith("/api/"):
                status, body = api(self.path, self.headers["Authorization"])
                self.answer("application/json", body, status)
                return
            file = PAGE / ("index.html" if self.path == "/" else self.path.removeprefix("/page/"))
            if self.path == "/" or (self.path.startswith("/page/") and file.parent == PAGE and file.exists()):
                self.answer(TYPES[file.suffix], file.read_bytes())
            else:
                self.send_error(404)

        def answer(self, kind: str, body: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are no news."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(DEADLINE_S)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        assert CHROMIUM is not None
        environment: dict[str, str | float | bool] = {**environment_for(CHROMIUM)}
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, env=environment)
        try:
            yield browser
        finally:
            await browser.close()


class Windows:
    """Windows on the page; whatever one of them complains of fails the test."""

    def __init__(self, browser: Browser, url: str) -> None:
        self._browser = browser
        self._url = url
        self.complaints: list[str] = []
        self.wire: deque[str] = deque(maxlen=WIRE_MAX)
        """What the windows dialled, sent and heard, the last lines of it."""

    async def open(
        self, user: str = "", *, prepare: Callable[[Page], Awaitable[Any]] | None = None, **options: Any
    ) -> Page:
        """A window on the page; `prepare` has it before it loads anything."""
        context = await self._browser.new_context(**options)
        page = await context.new_page()
        page.on("websocket", lambda socket: self._watch(user, socket))
        if prepare is not None:
            await prepare(page)
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        await page.goto(self._url + (f"#user={user}" if user else ""))
        return page

    async def talking(self, user: str, group: str = "lobby", **options: Any) -> Page:
        """A window that is connected and in a group."""
        page = await self.open(user, **options)
        await page.click("#connect")
        try:
            await expect(page.locator("#state")).to_have_text("open", timeout=OPEN_MS)
            await page.fill("#group", group)
            await page.click("#join")
            await expect(page.locator("#title")).to_have_text(group)
        except AssertionError as error:
            error.add_note(f"the window of {user} says: {await page.text_content('#notice')!r}")
            error.add_note("\n".join(["the consoles:", *self.complaints, "the connections:", *self.wire]))
            raise
        return page

    def _watch(self, user: str, socket: WebSocket) -> None:
        self.wire.append(f"{user} dials {socket.url}")
        socket.on("framesent", lambda body: self.wire.append(f"{user} > {body!r:.200}"))
        socket.on("framereceived", lambda body: self.wire.append(f"{user} < {body!r:.200}"))
        socket.on("close", lambda _: self.wire.append(f"{user} has no connection any more"))


def run(test: Callable[[ScriptedGateway, Windows], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE_S), ScriptedGateway() as gateway, chromium() as browser:
            with page_served(gateway.ws_port) as url:
                windows = Windows(browser, url)
                await test(gateway, windows)
                assert windows.complaints == []

    asyncio.run(main())


async def say(page: Page, text: str) -> None:
    await page.fill("#text", text)
    await page.press("#text", "Enter")


def test_two_windows_talk() -> None:
    async def test(gateway: ScriptedGateway, windows: Windows) -> None:
        ann = await windows.talking("ann")
        await say(ann, "hello, is <b>anybody</b> there? 你好")
        await expect(ann.locator("#messages .text")).to_have_text(["hello, is <b>anybody</b> there? 你好"])
        bob = await windows.talking("bob")
        # The history came with joining, as text.
        await expect(bob.locator("#messages .text")).to_have_text(["hello, is <b>anybody</b> there? 你好"])
        assert await bob.locator("#messages b").count() == 0
        await expect(bob.locator("#member-list li")).to_have_text(["ann", "bob"])
        await say(bob, "yes")
        for page in (ann, bob):
            await expect(page.locator("#messages .sender")).to_have_text(["ann", "bob"])
            await expect(page.locator("#messages .position")).to_have_text(["#1", "#2"])
            await expect(page.locator("#member-count")).to_have_text("2")
        await expect(ann.locator("#rtt")).to_contain_text("ms")

    run(test)


def test_lost_connection_is_shown_and_comes_back() -> None:
    async def test(gateway: ScriptedGateway, windows: Windows) -> None:
        ann = await windows.talking("ann")
        # Kept from here on, since `reconnecting` may be over before anybody looks.
        watch = "state => { window.states = []; new MutationObserver(() => states.push(state.textContent))"
        await ann.locator("#state").evaluate(watch + ".observe(state, {childList: true}) }")
        gateway.peers[0].drop()
        await gateway.broadcast("group:lobby", {"text": "meanwhile"}, "bob")
        await gateway.peer(2)
        await expect(ann.locator("#state")).to_have_text("open")
        assert await ann.evaluate("window.states") == ["reconnecting", "open"]
        await say(ann, "still here")
        # What was said meanwhile comes from the history, with a line saying why.
        await expect(ann.locator("#messages .text")).to_have_text(["meanwhile", "still here"])
        await expect(ann.locator("#messages .event")).to_have_count(1)

    run(test)


def test_a_gap_is_told_where_its_messages_would_stand() -> None:
    async def test(gateway: ScriptedGateway, windows: Windows) -> None:
        ann = await windows.talking("ann")
        await gateway.broadcast("group:lobby", {"text": "one"}, "bob")
        await gateway.peers[0].send([EVENT, "group:lobby", "gap", {"from": 2, "to": 3, "reason": "trimmed"}])
        fourth = [MESSAGE, "group:lobby", 4, {"text": "four"}, {"from": "bob", "epoch": gateway.epoch}]
        gateway.log["group:lobby"].append(fourth)
        await gateway.peers[0].send(fourth)
        told = ["one", "Messages 2 to 3 are not kept any more (trimmed)", "four"]
        for number, text in enumerate(told):
            await expect(ann.locator("#messages li").nth(number)).to_contain_text(text)

    run(test)


def test_groups_are_kept_apart_and_unread_ones_counted() -> None:
    async def test(gateway: ScriptedGateway, windows: Windows) -> None:
        ann = await windows.talking("ann", "one")
        await ann.fill("#group", "two")
        await ann.press("#group", "Enter")
        await expect(ann.locator("#title")).to_have_text("two")
        await gateway.broadcast("group:one", {"text": "psst"}, "ann")
        await expect(ann.locator("#groups .unread")).to_have_text(["1", ""])
        await expect(ann.locator("#messages li")).to_have_count(0)
        await ann.get_by_role("button", name="one").click()
        await expect(ann.locator("#messages .text")).to_have_text(["psst"])
        await expect(ann.locator("#groups .unread")).to_have_text(["", ""])
        await ann.click("#leave")
        await expect(ann.locator("#title")).to_have_text("two")

    run(test)


def test_disconnecting_says_goodbye_and_the_name_survives_a_reload() -> None:
    async def test(gateway: ScriptedGateway, windows: Windows) -> None:
        ann = await windows.talking("ann")
        await ann.click("#connect")
        await expect(ann.locator("#state")).to_have_text("closed")
        assert await (await gateway.peer()).expect(14) == [14, 0, "bye", {}]
        await ann.reload()
        await expect(ann.locator("#user")).to_have_value("ann")
        await expect(ann.locator("#send")).to_be_disabled()

    run(test)


def test_who_presses_before_the_gateway_has_told_its_port_is_connected_there() -> None:
    async def test(gateway: ScriptedGateway, windows: Windows) -> None:
        asked, told = asyncio.Event(), asyncio.Event()

        async def tell_late(route: Route) -> None:
            asked.set()
            await told.wait()
            await route.continue_()

        ann = await windows.open("ann", prepare=lambda page: page.route(INFO, tell_late))
        async with asyncio.timeout(DEADLINE_S):
            await asked.wait()
        await ann.click("#connect")
        await expect(ann.locator("#state")).to_have_text("connecting")
        await expect(ann.locator("#connect")).to_be_disabled()
        told.set()
        await expect(ann.locator("#state")).to_have_text("open", timeout=OPEN_MS)
        assert [line for line in windows.wire if "dials" in line] == [f"ann dials ws://127.0.0.1:{gateway.ws_port}/im"]

    run(test)


def test_what_the_gateway_could_not_tell_is_asked_again_by_who_presses() -> None:
    async def test(gateway: ScriptedGateway, windows: Windows) -> None:
        async def fail(route: Route) -> None:
            await route.fulfill(status=503)

        ann = await windows.open("ann", prepare=lambda page: page.route(INFO, fail))
        notice = "the gateway's page could not be told about the gateway: 503"
        await expect(ann.locator("#notice")).to_have_text(notice)
        async with ann.expect_response(INFO):
            await ann.click("#connect")
        await expect(ann.locator("#state")).to_have_text("closed")
        await expect(ann.locator("#notice")).to_have_text(notice)
        assert not windows.wire
        await ann.unroute(INFO)
        await ann.click("#connect")
        await expect(ann.locator("#state")).to_have_text("open", timeout=OPEN_MS)
        await expect(ann.locator("#notice")).to_have_text("")
        assert len(windows.complaints) == 2
        assert all("503" in said for said in windows.complaints)
        windows.complaints.clear()

    run(test)


def test_a_random_name_is_offered() -> None:
    async def test(gateway: ScriptedGateway, windows: Windows) -> None:
        first, second = await windows.open(), await windows.open()
        assert await first.input_value("#user") != await second.input_value("#user")

    run(test)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (360, "light"), (360, "dark")])
def test_everything_is_reachable_wide_and_narrow(width: int, scheme: str, tmp_path: Path) -> None:
    async def test(gateway: ScriptedGateway, windows: Windows) -> None:
        page = await windows.talking("ann", viewport={"width": width, "height": 720}, color_scheme=scheme)
        for number in range(12):
            await gateway.broadcast("group:lobby", {"text": f"line {number} " + "long " * (number * 4)}, "ann")
        await expect(page.locator("#messages li")).to_have_count(12)
        for name in ("user", "connect", "state", "rtt", "group", "join", "messages", "text", "send", "members"):
            await expect(page.get_by_test_id(name)).to_be_visible()
        assert await page.evaluate("document.documentElement.scrollWidth") <= width
        unlabelled = "[...document.querySelectorAll('input')].filter((i) => !i.labels.length).map((i) => i.id)"
        assert await page.evaluate(unlabelled) == []
        await page.screenshot(path=tmp_path / "page.png")

    run(test)
