"""Credentials on a whole node: tokens by public keys, their end and REFRESH, and bans that reach every session."""

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Node, wait_until
from tests.gateway.token_makers import EC_KEY, OTHER_RSA_KEY, RSA_KEY, SECRET, jwk, pem, token
from tests.process.clients import EVENT, HELLO, KINDS, REFRESH, WELCOME, Client, Refused, dial, run, unique

TOKEN_EXPIRED, SESSION_EXPIRED, NOT_ALLOWED, BAD_TOKEN, BANNED = 200, 201, 400, 602, 603
HTTP_DEADLINE_S = 20.0
Start = Callable[..., Node]


async def api(node: Node, method: str, path: str, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=node.admin_url, timeout=HTTP_DEADLINE_S, trust_env=False) as client:
        return await client.request(method, f"/api/bans{path}", **options)


async def refused(node: Node, kind: str, **options: Any) -> tuple[int, str]:
    """The code and class of the FIN that a HELLO gets."""
    client = await dial(node, kind)
    await client.send(HELLO, 1, {"v": 1, **options})
    _, code, _, told = await client.fin()
    await client.ended()
    return code, told["class"]


async def answer(node: Node, given: str) -> int:
    """The type of the frame that answers a HELLO."""
    client = await dial(node, "tcp")
    await client.send(HELLO, 1, {"v": 1, "token": given})
    kind: int = (await client.receive())[0]
    await (client.close() if kind == WELCOME else client.ended())
    return kind


async def finned(client: Client) -> tuple[int, str]:
    _, code, reason, _ = await client.fin()
    await client.acknowledge()
    return code, reason


def test_public_keys_let_in_and_change_while_the_node_runs(holdfast: Start, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(json.dumps({"keys": [jwk(RSA_KEY, kid="a"), jwk(EC_KEY, kid="b")]}))
    node = holdfast("--workers", "1", HOLDFAST_AUTH_SECRET=SECRET, HOLDFAST_AUTH_KEYS_FILE=str(keys))

    async def body() -> None:
        for kind in KINDS:
            for given in (token({"sub": "alice"}, RSA_KEY, "RS256", kid="a"), token({"sub": "alice"}, EC_KEY, "ES256")):
                client = await (await dial(node, kind)).hello(token=given)
                assert client.user == "alice"
                await client.close()
            for given in (token({"sub": "eve"}), token({"sub": "eve"}, OTHER_RSA_KEY, "RS256")):
                assert await refused(node, kind, token=given) == (BAD_TOKEN, "stop")
        keys.write_bytes(pem(OTHER_RSA_KEY))
        for _ in range(200):  # the file is looked at every few seconds
            if await answer(node, token({"sub": "bob"}, OTHER_RSA_KEY, "RS256")) == WELCOME:
                break
            await asyncio.sleep(0.1)
        assert await refused(node, "tcp", token=token({"sub": "alice"}, RSA_KEY, "RS256")) == (BAD_TOKEN, "stop")

    run(body(), 60)


def test_the_end_of_a_token_is_told_put_off_by_refresh_and_kept(holdfast: Start) -> None:
    node = holdfast("--workers", "1", HOLDFAST_AUTH_SECRET=SECRET, HOLDFAST_AUTH_EXPIRY_NOTICE_S="1")

    async def lives(kind: str) -> None:
        user = unique("user")
        client = await (await dial(node, kind)).hello(token=token({"sub": user, "exp": time.time() + 3, "dev": "tv"}))
        _, channel, word, told = await client.expect(EVENT)
        assert (channel, word) == (f"user:{user}", "expired")
        assert 0 < told["after"] <= 1_500
        end = time.time() + 2
        answer = await client.ask(REFRESH, token({"sub": user, "exp": end}))
        assert answer["expires"] == int(end)
        for given, code in ((token({"sub": "eve"}), NOT_ALLOWED), ("no token", BAD_TOKEN)):
            with pytest.raises(Refused) as refusal:
                await client.ask(REFRESH, given)
            assert refusal.value.code == code
        assert (await client.expect(EVENT))[2] == "expired"
        assert await finned(client) == (TOKEN_EXPIRED, "the token's time is over: come back with a new one")
        assert time.time() >= end
        for resume in (client.resume_token, answer["resume_token"]):
            found = await refused(node, kind, session=client.session, token=resume)
            assert found == (TOKEN_EXPIRED, "fresh")

    async def body() -> None:
        await asyncio.gather(*(lives(kind) for kind in KINDS))

    run(body())


def test_a_resumed_session_ends_when_its_first_token_does(holdfast: Start) -> None:
    node = holdfast("--workers", "1", HOLDFAST_AUTH_SECRET=SECRET)

    async def body() -> None:
        first = await (await dial(node, "tcp")).hello(token=token({"sub": "alice", "exp": time.time() + 2}))
        await first.abort()
        again = await (await dial(node, "tcp")).hello(session=first.session, token=first.resume_token)
        assert again.welcome["resumed"]
        assert (await finned(again))[0] == TOKEN_EXPIRED

    run(body())


def test_a_ban_ends_every_session_at_once_and_its_resume_tokens_for_good(holdfast: Start) -> None:
    node = holdfast("--workers", "2")  # development mode: a ban holds there, too

    async def body() -> None:
        mine = [await (await dial(node, kind)).hello(user="eve") for kind in KINDS for _ in range(4)]
        other = await (await dial(node, "tcp")).hello(user="alice")
        answer = await api(node, "POST", "", json={"user": "eve", "for": "1h", "reason": "spam"})
        assert answer.status_code == 200, answer.text
        assert await asyncio.gather(*(finned(client) for client in mine)) == [(BANNED, "spam")] * len(mine)
        for kind in KINDS:
            assert await refused(node, kind, user="eve") == (BANNED, "stop")
            assert await refused(node, kind, session=mine[0].session, token=mine[0].resume_token) == (BANNED, "stop")
        assert [one["user"] for one in (await api(node, "GET", "")).json()["bans"]] == ["eve"]
        assert (await api(node, "DELETE", "/eve")).status_code == 200
        assert (await api(node, "DELETE", "/eve")).status_code == 404
        found = await refused(node, "tcp", session=mine[0].session, token=mine[0].resume_token)
        assert found == (SESSION_EXPIRED, "fresh")
        back = await (await dial(node, "tcp")).hello(user="eve")
        await back.close()
        await other.close()

    run(body())


def test_a_worker_that_starts_later_knows_the_bans(holdfast: Start) -> None:
    node = holdfast("--workers", "1")
    node.expect_lost()

    async def body() -> None:
        assert (await api(node, "POST", "", json={"user": "eve"})).status_code == 200
        pids = node.workers
        os.kill(pids[0], signal.SIGKILL)
        await asyncio.to_thread(
            wait_until, lambda: node.get("/readyz")[0] == 200 and node.workers != pids, "it is back"
        )
        assert await refused(node, "tcp", user="eve") == (BANNED, "stop")

    run(body())


def test_a_ban_outlives_the_router(holdfast: Start) -> None:
    node = holdfast("--workers", "1")
    node.expect_lost()

    async def body() -> None:
        assert (await api(node, "POST", "", json={"user": "eve", "reason": "spam"})).status_code == 200
        before = node.routers
        os.kill(before[0], signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: node.routers not in (before, []), "the next router")
        for _ in range(200):  # until the admin server is linked again
            answer = await api(node, "GET", "")
            if answer.status_code == 200 and answer.json()["bans"]:
                break
            await asyncio.sleep(0.1)
        assert [(one["user"], one["reason"]) for one in answer.json()["bans"]] == [("eve", "spam")]
        assert await refused(node, "tcp", user="eve") == (BANNED, "stop")

    run(body())


def test_a_refresh_changes_what_a_live_session_may_do(holdfast: Start) -> None:
    node = holdfast("--workers", "1", HOLDFAST_AUTH_SECRET=SECRET)

    async def body() -> None:
        room, other = unique("group:room"), unique("group:other")
        client = await (await dial(node, "tcp")).hello(token=token({"sub": "alice", "channels": [room]}))
        await client.join(room)
        with pytest.raises(Refused) as refusal:
            await client.join(other)
        assert refusal.value.code == NOT_ALLOWED
        await client.ask(REFRESH, token({"sub": "alice", "channels": [other], "publish": []}))
        await client.join(other)
        with pytest.raises(Refused) as refusal:
            await client.publish(other, "hello")
        assert refusal.value.code == NOT_ALLOWED
        await client.ask(REFRESH, token({"sub": "alice"}))
        await client.publish(other, "hello")
        await client.close()

    run(body())
