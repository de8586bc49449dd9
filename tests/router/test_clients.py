"""The links to all routers: each publish and question goes to the one that leads the shard."""

import contextlib
from pathlib import Path

import uvloop

from core.shards import led_by, shard
from router.client import ChannelState
from router.clients import RouterClients
from tests.router.test_client import DATA, DEADLINE_S, router


def test_each_router_gets_what_is_its_own(tmp_path: Path) -> None:
    endpoints = [f"ipc://{tmp_path}/router.{number}" for number in range(3)]
    names = [f"group:{number}" for number in range(30)]

    async def body() -> list[int]:
        clients = RouterClients(endpoints, "test")
        await clients.start()
        for name in names:
            assert (await clients.publish(name, DATA, sender="a", deadline_s=DEADLINE_S))[1] == 1
        states = await clients.channels(names, deadline_s=DEADLINE_S)
        assert all(
            state == ChannelState((5 + shard(name.encode()) % 3, 1), None)
            for name, state in zip(names, states, strict=True)
        )
        assert clients.linked
        await clients.close()
        return [one.read()["counters"]["messages_sequenced"] for one in stats]

    with contextlib.ExitStack() as stack:
        stats = [
            stack.enter_context(router(endpoint, 5 + number, leads=led_by(number, 3)))  # type: ignore[arg-type]
            for number, endpoint in enumerate(endpoints)
        ]
        sequenced = uvloop.run(body())
        assert not any(one.read()["counters"]["moved_said"] for one in stats)
    assert sequenced == [sum(shard(name.encode()) % 3 == number for name in names) for number in range(3)]
