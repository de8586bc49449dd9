"""A rolling restart under load: no connect is refused, and who comes back has every message once."""

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.conftest import Node, children, wait_until
from tests.process.clients import (
    ERROR,
    FIN,
    FIN_ACK,
    HELLO,
    HISTORY,
    MESSAGE,
    WELCOME,
    Gone,
    TcpClient,
    group,
    run,
)
from tests.servers.certificates import self_signed

DRAINING = 1
MEMBERS = 24
DRAIN_MS = 1_500
RELOAD_DEADLINE_S = 40.0


def post(node: Node, path: str, body: dict[str, object]) -> dict[str, Any]:
    request = urllib.request.Request(
        node.admin_url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(json.load(answer))


def progress(node: Node) -> dict[str, Any]:
    return dict(json.loads(node.get("/api/reload")[1]))


async def reloaded(node: Node) -> dict[str, Any]:
    """Wait until the rolling restart under way is over; how it ended."""
    await asyncio.to_thread(
        wait_until, lambda: progress(node)["state"] != "running", "the reload ends", RELOAD_DEADLINE_S
    )
    return await asyncio.to_thread(progress, node)


class Member:
    """A client that comes back when it is told to, as the protocol says, and keeps the offsets of what it got."""

    def __init__(self, node: Node, user: str, channel: str) -> None:
        self.node, self.user, self.channel = node, user, channel
        self.offsets: list[int] = []
        self.returns: list[float] = []
        self.fins: list[int] = []
        self.may_be_cut = False
        self._epoch = self._last = 0
        self._client: TcpClient | None = None

    async def begin(self) -> None:
        self._client = await TcpClient.dial(self.node.port)
        await self._client.hello(user=self.user)
        joined = await self._client.join(self.channel)
        self._epoch, self._last = joined["epoch"], joined["offset"]

    async def listen(self) -> None:
        """For ever; cancelled at the end."""
        while True:
            assert self._client is not None
            try:
                frame = await self._client.receive(deadline_s=RELOAD_DEADLINE_S)
            except Gone:
                assert self.may_be_cut, "the gateway closed without FIN"
                await self._resume(self._client)
                continue
            if frame[0] == MESSAGE:
                self._got(frame)
            elif frame[0] == FIN:
                await self._come_back(frame)

    async def close(self) -> None:
        """Leave; nothing to do for one that is on its way back, whose old connection has ended in order."""
        if self._client is not None:
            await self._client.close()

    def _got(self, frame: list[Any]) -> None:
        if frame[2] > self._last:
            self.offsets.append(frame[2])
            self._last = frame[2]

    async def _come_back(self, fin: list[Any]) -> None:
        assert (fin[1], fin[3]["class"]) == (DRAINING, "resume")
        old = self._client
        assert old is not None
        self.fins.append(fin[1])
        await old.send(FIN_ACK)
        old.end()
        self.returns.append(time.monotonic() + fin[3].get("after", 0) / 1000)
        self._client = None
        await old.ended()
        for frame in old.kept:
            assert frame[0] != MESSAGE, "nothing follows FIN"
        await asyncio.sleep(max(0.0, self.returns[-1] - time.monotonic()))
        await self._resume(old)

    async def _resume(self, old: TcpClient) -> None:
        while True:
            try:
                await self._try_to_resume(old)
                return
            except Gone:
                assert self.may_be_cut, "the gateway closed without FIN whom it had let in"

    async def _try_to_resume(self, old: TcpClient) -> None:
        new = await TcpClient.dial(self.node.port)
        held = {self.channel: [self._epoch, self._last]}
        await new.send(HELLO, 1, {"v": 1, "session": old.session, "token": old.resume_token, "resume": held})
        while (answer := await new.receive())[0] not in (WELCOME, ERROR):
            new.kept.append(answer)
        if answer[0] == ERROR:  # there was something meanwhile: come afresh, and ask for it
            await new.hello(user=self.user)
            await new.join(self.channel)
            missed = await new.ask(HISTORY, self.channel, {"since": [self._epoch, self._last], "limit": 1000})
            for frame in missed["messages"]:
                self._got(frame)
        else:
            new.session, new.resume_token = answer[2]["session"], answer[2]["resume_token"]
        self._client = new


class Connects:
    """Connects again and again, at both ports, and counts what was refused."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.made = 0
        self.refused: list[str] = []

    async def run(self) -> None:
        """For ever; cancelled at the end."""
        while True:
            for port in (self.node.port, self.node.ws_port):
                try:
                    async with asyncio.timeout(5):
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                    writer.transport.abort()
                    self.made += 1
                except (OSError, TimeoutError) as error:
                    self.refused.append(repr(error))
            await asyncio.sleep(0.005)


def most_within(times: list[float], width_s: float) -> int:
    ordered = sorted(times)
    return max(sum(1 for time_ in ordered if first <= time_ < first + width_s) for first in ordered)


def test_no_connect_is_refused_and_who_comes_back_has_every_message_once(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "2", HOLDFAST_GATEWAY_DRAIN_MS=str(DRAIN_MS))
    before = node.workers

    async def body() -> None:
        channel, connects, over = group(), Connects(node), asyncio.Event()
        members = [Member(node, f"user{number}", channel) for number in range(MEMBERS)]
        for member in members:
            await member.begin()
        tasks = [asyncio.create_task(work) for work in (connects.run(), *(member.listen() for member in members))]
        publishing = asyncio.create_task(publish(node, channel, over))
        os.kill(node.pid, signal.SIGHUP)
        await asyncio.to_thread(wait_until, lambda: progress(node)["state"] != "none", "it begins")
        ended = await reloaded(node)
        assert (ended["state"], ended["replaced"], ended["cut"]) == ("done", 2, 0)
        over.set()
        last = await publishing
        await everybody_has(members, last, tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert connects.refused == []
        assert connects.made > 100
        assert all(member.offsets == list(range(1, last + 1)) for member in members)
        returns = [moment for member in members for moment in member.returns]
        assert len(returns) >= MEMBERS, "everybody was sent away at least once"
        # 24 clients within 1.5 s or 20 a second, whichever is more; a FIN takes a moment to arrive.
        assert most_within(returns, 0.9) <= 20 + 1
        for member in members:
            await member.close()

    run(body(), 90)
    after = node.workers
    assert len(after) == 2
    assert not set(before) & set(after)
    assert node.metric("holdfast_process_restarts_total") == 0
    # No zombie, and no zygote but one.
    wait_until(lambda: len(children(node.pid)) == 4, lambda: f"router, workers, zygote: {children(node.pid)}")


def test_a_new_worker_that_dies_is_replaced_at_once_while_the_old_one_serves_whom_it_still_has(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "2", HOLDFAST_GATEWAY_DRAIN_MS="2000")
    node.expect_lost()
    before = set(node.workers)

    async def body() -> None:
        channel, over = group(), asyncio.Event()
        members = [Member(node, f"user{number}", channel) for number in range(3 * MEMBERS)]
        for member in members:
            await member.begin()
            member.may_be_cut = True
        tasks = [asyncio.create_task(member.listen()) for member in members]
        publishing = asyncio.create_task(publish(node, channel, over))
        await asyncio.to_thread(post, node, "/api/reload", {})
        await asyncio.to_thread(wait_until, lambda: "drain_begins" in node.log.read_text(), "the first leaves")
        (new,) = set(node.workers) - before
        os.kill(new, signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: "child_is_back" in node.log.read_text(), "there is another")
        assert before < set(node.workers), "both old ones still run"
        ended = await reloaded(node)
        assert (ended["state"], ended["replaced"]) == ("called_off", 1)
        assert "the new process of worker-0 ended" in ended["why"]
        over.set()
        last = await publishing
        await everybody_has(members, last, tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(member.offsets == list(range(1, last + 1)) for member in members)
        for member in members:
            await member.close()

    run(body(), 90)
    assert len(before & set(node.workers)) == 1
    assert len(node.workers) == 2
    assert node.metric("holdfast_process_restarts_total") == 1


async def publish(node: Node, channel: str, over: asyncio.Event) -> int:
    """Publish steadily until `over`; the last offset."""
    last = 0
    while not over.is_set():
        last = (await asyncio.to_thread(post, node, "/api/publish", {"channel": channel, "data": last}))["offset"]
        await asyncio.sleep(0.02)  # the router keeps 256 messages for who is away
    return last


async def everybody_has(members: list[Member], last: int, tasks: list["asyncio.Task[None]"]) -> None:
    """Wait until all members have the last message; a member that failed says why."""
    async with asyncio.timeout(RELOAD_DEADLINE_S):
        while not all(member.offsets and member.offsets[-1] >= last for member in members):
            for task in tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.02)


def shown_certificate(node: Node) -> str:
    return ssl.get_server_certificate(("127.0.0.1", node.port), timeout=10)


def reload(node: Node) -> subprocess.CompletedProcess[str]:
    """`holdfast reload`, to its end."""
    program = Path(sys.executable).parent / "holdfast"
    return subprocess.run(
        [program, "reload", "--url", node.admin_url], capture_output=True, text=True, timeout=RELOAD_DEADLINE_S
    )


def test_certificates_and_settings_of_now_are_used_and_what_is_wrong_changes_nothing(
    holdfast: Any, tmp_path: Path
) -> None:
    settings = tmp_path / "holdfast.toml"
    settings.write_text("[gateway]\nping_ms = 30000\n")
    self_signed(tmp_path)
    node: Node = holdfast(
        "--workers",
        "2",
        "--config",
        str(settings),
        HOLDFAST_GATEWAY_TLS_CERTIFICATE=str(tmp_path / "cert.pem"),
        HOLDFAST_GATEWAY_TLS_KEY=str(tmp_path / "key.pem"),
    )
    first = shown_certificate(node)
    self_signed(tmp_path)
    settings.write_text("[gateway]\nping_ms = 5000\n")
    assert shown_certificate(node) == first
    done = reload(node)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "done: 2 of 2 workers replaced"
    second = shown_certificate(node)
    assert second != first
    assert json.loads(node.get("/api/info")[1])["ping"] == 5
    before = node.workers

    (tmp_path / "cert.pem").write_text("no certificate")
    done = reload(node)
    assert done.returncode == 1
    assert "called off after 0 of 2: the new process of worker-0 ended before it was ready" in done.stderr
    settings.write_text("[gateway]\nping_ms = 5000\nbacklog = 7\n")
    done = reload(node)
    assert done.returncode == 1
    assert "gateway.backlog cannot change while the node runs" in done.stderr
    settings.write_text("[gateway]\npong_ms = 5000\n")
    done = reload(node)
    assert done.returncode == 1
    assert "gateway.pong_ms" in done.stderr
    assert node.workers == before
    assert shown_certificate(node) == second
