"""The registry of a whole node: what the admin API and the command line say of real clients, and how they end them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Node, stand_still, wait_until
from tests.process.clients import FIN, HELLO, KINDS, PING, PONG, WELCOME, Client, Gone, dial, open_session, run, unique
from tests.process.places import worker_of

HTTP_DEADLINE_S = 20.0


async def api(node: Node, method: str, path: str = "", **options: Any) -> httpx.Response:
    """One request to the node's /api/connections."""
    async with httpx.AsyncClient(base_url=node.admin_url, timeout=HTTP_DEADLINE_S, trust_env=False) as client:
        return await client.request(method, f"/api/connections{path}", **options)


async def found(node: Node, **parameters: Any) -> list[dict[str, Any]]:
    answer = await api(node, "GET", params=parameters)
    assert answer.status_code == 200, answer.text
    assert answer.json()["missing"] == []
    listed: list[dict[str, Any]] = answer.json()["connections"]
    return listed


async def holdfast(node: Node, *arguments: str) -> tuple[int, str, str]:
    """The program, as an operator calls it."""
    program = Path(sys.executable).parent / "holdfast"
    process = await asyncio.create_subprocess_exec(
        program, *arguments, "--url", node.admin_url, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(HTTP_DEADLINE_S):
        out, error = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), error.decode()


async def gone(node: Node, id_: str) -> None:
    """Wait until nobody knows the connection any more."""
    await asyncio.to_thread(wait_until, lambda: node.get(f"/api/connections/{id_}")[0] == 404, f"{id_} is gone")


async def finned(client: Client, *start: Any) -> None:
    """FIN that starts so; answered, after which both close."""
    assert (await client.fin())[1 : 1 + len(start)] == list(start)
    assert isinstance(await client.acknowledge(), Gone)


def test_each_session_is_listed_with_what_it_is(node: Node) -> None:
    user = unique("alice")

    async def body() -> None:
        clients = {kind: await open_session(node, kind, user) for kind in KINDS}
        await clients["tcp"].join("group:registry")
        listed = {one["session"]: one for one in await found(node, user=user)}
        assert len(listed) == len(KINDS)
        for kind, client in clients.items():
            one = listed[client.session]
            assert (one["user"], one["state"], one["address"], one["port"]) == (user, "open", *client.address)
            assert one["transport"] == ("tcp" if kind == "tcp" else "websocket")
            assert one["encoding"] == ("json" if kind == "text" else "msgpack")
            assert one["memberships"] == (2 if kind == "tcp" else 1)
            assert one["worker"] == f"worker-{node.workers.index(worker_of(node, client))}"
            assert (await api(node, "GET", f"/{one['id']}")).json()["session"] == client.session
            assert await found(node, session=client.session) == [one]
        assert await found(node, user=user, older="1h") == await found(node, user=user, idle="1h") == []
        for client in clients.values():
            await client.close()

    run(body())


def test_a_listing_in_pages_has_everybody_once(node: Node) -> None:
    async def body() -> None:
        clients = [await open_session(node) for _ in range(30)]
        seen: list[str] = []
        after: dict[str, str] = {}
        while True:
            answer = (await api(node, "GET", params={"limit": 7, "state": "open", **after})).json()
            seen += [one["session"] for one in answer["connections"]]
            if answer["next"] is None:
                break
            after = {"after": answer["next"]}
        assert sorted(seen) == sorted(client.session for client in clients)
        for client in clients:
            await client.close()

    run(body())


@pytest.mark.parametrize("kind", KINDS)
def test_a_kicked_session_hears_why_and_leaves_nothing(node: Node, kind: str) -> None:
    async def body() -> None:
        client = await open_session(node, kind)
        [one] = await found(node, session=client.session)
        before = node.metric("holdfast_closed_kicked_total")
        open_before = node.live("connection")
        answer = await api(node, "DELETE", f"/{one['id']}", params={"reason": "so long"})
        assert answer.status_code == 202
        assert (answer.json()["was"], answer.json()["state"]) == ("open", "closing")
        again = await api(node, "DELETE", f"/{one['id']}")
        assert (again.status_code, again.json()["was"], again.json()["reason"]) == (202, "closing", "kicked")
        await finned(client, 604, "so long", {"class": "stop"})
        await gone(node, one["id"])
        assert (await api(node, "DELETE", f"/{one['id']}")).status_code == 404
        wait_until(lambda: node.live("connection") == open_before - 1, "one connection less")
        assert node.metric("holdfast_closed_kicked_total") == before + 1

    run(body())


def test_the_command_line_lists_and_kicks(node: Node) -> None:
    user, other = unique("alice"), unique("bob")

    async def body() -> None:
        clients = [await open_session(node, "text", user), await open_session(node, "tcp", user)]
        stays = await open_session(node, "tcp", other)
        code, out, error = await holdfast(node, "connections", "--user", user, "--json")
        assert (code, error) == (0, "")
        assert {json.loads(line)["session"] for line in out.splitlines()} == {client.session for client in clients}
        code, out, error = await holdfast(node, "connections", "--user", user)
        assert (code, len(out.splitlines())) == (0, 3)
        code, out, error = await holdfast(node, "kick", "--user", user, "--code", "draining", "--after", "2s")
        assert (code, error) == (0, "")
        assert [line.partition(": ")[2] for line in out.splitlines()] == ["open -> closing (draining)"] * 2
        for client in clients:
            kind_, after = (await client.fin())[3].values()
            assert (kind_, 2000 <= after <= 3000) == ("resume", True)
            await client.acknowledge()
        [one] = await found(node, user=other)
        code, out, error = await holdfast(node, "kick", one["id"])
        assert (code, out) == (0, f"{one['id']} of {other}: open -> closing (kicked)\n")
        await finned(stays, 604)
        await gone(node, one["id"])
        code, _, error = await holdfast(node, "kick", one["id"])
        assert code == 1
        assert "no_such_connection" in error

    run(body())


@pytest.mark.parametrize(("code", "number"), [("kicked", 604), ("draining", 1)])
def test_a_kick_ends_the_session_unless_its_code_says_to_come_back(node: Node, code: str, number: int) -> None:
    async def body() -> None:
        old = await open_session(node, "tcp")
        await old.join("group:registry")
        done, _, error = await holdfast(node, "kick", "--session", old.session, "--code", code)
        assert (done, error) == (0, "")
        await finned(old, number)
        client = await dial(node, "tcp")
        await client.send(HELLO, 1, {"session": old.session, "token": old.resume_token})
        answer = await client.receive()
        if code == "kicked":
            assert (answer[:2], answer[3]["class"]) == ([FIN, 201], "fresh")
            await client.ended()
        else:
            assert (answer[0], answer[2]["resumed"]) == (WELCOME, True)
            assert "group:registry" in answer[2]["channels"]
            await client.close()

    run(body())


def test_the_round_trip_is_measured_and_losses_are_seen(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_GATEWAY_PING_MS="1000", HOLDFAST_GATEWAY_MISSES="5")

    async def body() -> None:
        client = await open_session(node, "text")
        client.answers_pings = False
        _, seq, at = await client.expect(PING)
        await client.send(PONG, seq, at)
        await client.send(PING, 1, 0)
        await client.send(PING, 4, 0)
        await client.settle()
        [one] = await found(node, session=client.session)
        assert 0 <= one["rtt_ms"] < 5000
        assert one["lost_heartbeats"] >= 2
        await client.close()

    run(body())
    assert node.metric("holdfast_round_trips_total") == 1
    assert node.metric("holdfast_pings_lost_total") >= 2


def test_a_worker_that_stands_still_is_named_and_one_that_starts_anew_is_another(holdfast: Any) -> None:
    node: Node = holdfast("--workers", "2")
    node.expect_lost()

    async def body() -> None:
        clients = [await open_session(node) for _ in range(8)]
        by_worker: dict[str, list[dict[str, Any]]] = {"worker-0": [], "worker-1": []}
        for one in await found(node):
            by_worker[one["worker"]].append(one)
        assert all(by_worker.values()), "the kernel gave one worker all of them"
        pid = node.workers[0]
        stand_still(pid)
        answer = (await api(node, "GET")).json()
        assert answer["missing"] == ["worker-0"]
        assert {one["id"] for one in answer["connections"]} == {one["id"] for one in by_worker["worker-1"]}
        assert (await api(node, "GET", f"/{by_worker['worker-0'][0]['id']}")).status_code == 503
        os.kill(pid, signal.SIGCONT)
        assert len(await found(node)) == 8
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: node.workers[:1] not in ([], [pid]) and len(node.workers) == 2, "it is started anew")
        wait_until(lambda: node.get("/readyz")[0] == 200, "it is ready")
        late = [await open_session(node) for _ in range(12)]
        # The slots are used again, but by another start.
        stale = {one["id"] for one in by_worker["worker-0"]}
        assert stale.isdisjoint(one["id"] for one in await found(node))
        for id_ in stale:
            assert (await api(node, "DELETE", f"/{id_}")).status_code == 404
        for client in [*clients, *late]:
            await client.abort()

    run(body())
