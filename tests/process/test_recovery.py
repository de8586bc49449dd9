"""The recovery server of a real node: what a session missed, for a client that speaks HTTP alone."""

import contextlib
import json
import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack

from tests.conftest import HTTP_DEADLINE_S, Node, free_ports, stand_still, wait_until
from tests.gateway.token_makers import SECRET, token
from tests.process.clients import ACK, Client, dial, group, open_session, run, unique

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "recovery.md").read_text()


class Door:
    """A node's recovery port."""

    def __init__(self, holdfast: Any, **settings: str) -> None:
        (self.port,) = free_ports(1)
        self.node: Node = holdfast("--workers", "2", HOLDFAST_RECOVERY_PORT=str(self.port), **settings)
        wait_until(lambda: self.get("/healthz", "")[0] == 200, "the recovery server answers")

    def get(self, path: str, given: str) -> tuple[int, Any]:
        return self._ask(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=_bearer(given)))

    def state(self, client: Client, given: str | None = None) -> tuple[int, Any]:
        return self.get(f"/recover?session={client.session}", _token(client) if given is None else given)

    def missed(self, client: Client, given: str | None = None, **body: Any) -> dict[str, Any]:
        status, told = self.post(client, _token(client) if given is None else given, **body)
        assert status == 200, told
        return dict(told)

    def post(self, client: Client, given: str, **body: Any) -> tuple[int, Any]:
        said = json.dumps({"session": client.session} | body).encode()
        headers = _bearer(given) | {"Content-Type": "application/json"}
        return self._ask(urllib.request.Request(f"http://127.0.0.1:{self.port}/recover", said, headers))

    def packed(self, client: Client, **body: Any) -> dict[str, Any]:
        """The answer in MessagePack."""
        said = json.dumps({"session": client.session} | body).encode()
        headers = {"Content-Type": "application/json", "Accept": "application/msgpack"} | _bearer(_token(client))
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/recover", said, headers)
        with urllib.request.urlopen(request, timeout=HTTP_DEADLINE_S) as answer:
            assert answer.headers["Content-Type"] == "application/msgpack"
            return dict(msgpack.unpackb(answer.read()))

    @staticmethod
    def _ask(request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=HTTP_DEADLINE_S) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


def _bearer(given: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {given}"}


def _token(client: Client) -> str:
    return str(client.welcome["resume_token"])


def documented() -> list[dict[str, Any]]:
    """The answers that the page shows."""
    return [json.loads(one) for one in re.findall(r"```json\n(.*?)```", DOCUMENT, re.DOTALL)]


def told(page: dict[str, Any], channel: str) -> list[Any]:
    return [message[3] for message in page["channels"][channel]["messages"]]


def test_what_came_while_a_session_was_away_is_told_page_by_page_and_the_session_can_still_be_resumed(
    holdfast: Any,
) -> None:
    door = Door(holdfast)

    async def body() -> None:
        channel, user = group(), unique("alice")
        alice = await open_session(door.node, "tcp", user)
        bob = await open_session(door.node, "text")
        await alice.join(channel)
        await bob.join(channel)
        await bob.publish(channel, "seen")
        await alice.message()
        await alice.send(ACK, {channel: 1})
        wait_until(lambda: door.state(alice)[1].get("channels", {}).get(channel, [0, 0])[1] == 1, "the ACK is stored")
        await alice.abort()
        for number in range(5):
            await bob.publish(channel, number)
        await bob.publish(f"user:{user}", "note")
        state = door.state(alice)[1]
        assert (state["user"], state["whole"]) == (user, True)
        assert state.keys() == documented()[0].keys()
        whole = door.missed(alice)
        assert whole.keys() == documented()[1].keys()
        (shown,) = documented()[1]["channels"].values()
        assert whole["channels"][channel].keys() == shown.keys()
        assert whole["channels"][channel]["messages"][0][4].keys() == shown["messages"][0][4].keys()
        assert (told(whole, channel), told(whole, f"user:{user}"), whole["more"]) == ([*range(5)], ["note"], False)
        seen: list[Any] = []
        positions: dict[str, Any] = {}
        more = True
        while more:
            page = door.missed(alice, positions=positions, limit=2)
            seen += [data for name in page["channels"] for data in told(page, name)]
            positions = {name: one["next"] for name, one in page["channels"].items()}
            more = page["more"]
        assert seen == [*range(5), "note"]
        assert {one["outcome"] for one in door.missed(alice, positions=positions)["channels"].values()} == {"live"}
        again = await dial(door.node, "tcp")
        await again.hello(session=alice.session, token=_token(alice), resume={})
        assert [message[3] for message in await again.messages(6) if message[1] == channel] == [*range(5)]
        for client in (again, bob):
            await client.close()

    run(body())


def test_gaps_and_resets_are_told_as_the_protocol_has_them(holdfast: Any) -> None:
    door = Door(holdfast, HOLDFAST_NAMESPACES_GROUP_HISTORY_MESSAGES="3")

    async def body() -> None:
        channel = group()
        alice, bob = await open_session(door.node), await open_session(door.node)
        held = await alice.join(channel)
        await bob.join(channel)
        await alice.abort()
        for number in range(1, 8):
            await bob.publish(channel, number)
        wait_until(lambda: channel in door.state(alice)[1].get("channels", {}), "that it joined is stored")
        one = door.missed(alice)["channels"][channel]
        assert (one["outcome"], one["gap"]) == ("gap", {"from": 1, "to": 4, "reason": "trimmed"})
        assert [message[3] for message in one["messages"]] == [5, 6, 7]
        beyond = [held["epoch"] + 1, 3]
        reset = door.missed(alice, positions={channel: beyond})["channels"][channel]
        assert (reset["outcome"], reset["next"], reset["more"]) == ("reset", reset["position"], False)
        await bob.close()

    run(body())


def test_rights_bans_and_the_end_of_a_session_count(holdfast: Any) -> None:
    door = Door(holdfast, HOLDFAST_AUTH_SECRET=SECRET)

    async def enter(user: str) -> Client:
        return await (await dial(door.node, "tcp")).hello(token=token({"sub": user}))

    async def body() -> None:
        user, other, channel, secret = unique("alice"), unique("eve"), group(), group("secret")
        alice, eve = await enter(user), await enter(other)
        await alice.join(channel)
        await eve.join(secret)
        await eve.publish(secret, "secret")
        wait_until(lambda: channel in door.state(alice)[1].get("channels", {}), "that it joined is stored")
        assert door.state(alice, token({"sub": user}))[0] == 200
        assert door.state(alice, token({"sub": other}))[1]["code"] == "session_expired"
        assert door.state(alice, _token(eve))[1]["code"] == "bad_token"
        assert door.state(alice, "nonsense")[0] == 401
        page = door.missed(alice, positions={secret: [1, 0], f"user:{other}": [1, 0]})
        assert page["channels"][secret] == page["channels"][f"user:{other}"] == {"code": "not_joined"}
        listed = door.missed(alice, token({"sub": user, "channels": ["group:else-*"]}))
        assert listed["channels"][channel] == {"code": "not_allowed"}
        await alice.close()  # bye: it is over
        wait_until(lambda: door.state(alice)[0] == 404, "the end of the session is known")
        ban(door.node, other)
        wait_until(lambda: door.state(eve)[1].get("code") == "banned", "the ban is known")
        assert door.state(eve, token({"sub": other}))[0] == 403
        await eve.fin()
        await eve.acknowledge()

    run(body())


def ban(node: Node, user: str) -> None:
    said = json.dumps({"user": user, "for": "10m"}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{node.admin_url}/api/bans", said, headers, method="POST")
    with urllib.request.urlopen(request, timeout=HTTP_DEADLINE_S) as answer:
        assert answer.status in (200, 201)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    stand_still(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_messagepack_and_a_router_that_is_away(holdfast: Any) -> None:
    door = Door(holdfast, HOLDFAST_RECOVERY_TIMEOUT_MS="500")

    async def body() -> None:
        channel = group()
        alice = await open_session(door.node)
        await alice.join(channel)
        await alice.publish(channel, b"\x00\xff")
        wait_until(lambda: channel in door.state(alice)[1].get("channels", {}), "that it joined is stored")
        (message,) = door.packed(alice, positions={channel: [0, 0]})["channels"][channel]["messages"]
        assert message[3] == b"\x00\xff"
        (router,) = door.node.routers
        with stopped(router):
            assert door.state(alice)[1]["code"] == "unavailable"
        wait_until(lambda: door.state(alice)[0] == 200, "it is told again")
        await alice.close()

    run(body())
