"""HISTORY paged through both ways: pages meet without a gap or a repetition, whatever lies between two of them."""

import json
import os
import signal
import urllib.request
from typing import Any

import pytest

from tests.conftest import HTTP_DEADLINE_S, Node
from tests.process.clients import HISTORY, Client, group, open_session, run

MAX_FRAME = 8_192
KINDS = ("tcp", "text")
Position = tuple[int, int]


def publish(node: Node, channel: str, data: Any) -> Position:
    """Through the admin API, which takes more than `max_frame`."""
    body = json.dumps({"channel": channel, "data": data}).encode()
    request = urllib.request.Request(
        f"{node.admin_url}/api/publish", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=HTTP_DEADLINE_S) as answer:
        said = json.load(answer)
    return said["epoch"], said["offset"]


async def page(client: Client, channel: str, **options: Any) -> list[tuple[Position, Any]]:
    answer = await client.ask(HISTORY, channel, options)
    return [((envelope["epoch"], offset), data) for _, _, offset, data, envelope in answer["messages"]]


async def pages(
    client: Client, channel: str, *, since: Position | None = None, **options: Any
) -> list[list[tuple[Position, Any]]]:
    """Page after page, each asked for with the position of the last message of the one before, until one is empty."""
    found = []
    at = {} if since is None else {"since": list(since)}
    while one := await page(client, channel, **options, **at):
        found.append(one)
        at = {"since": list(one[-1][0])}
    return found


def joined(found: list[list[Any]]) -> list[Any]:
    return [message for one in found for message in one]


@pytest.mark.parametrize("kind", KINDS)
def test_pages_meet_over_the_epochs_of_routers_that_were_killed(
    kept_in: dict[str, str], holdfast: Any, kind: str
) -> None:
    node: Node = holdfast("--workers", "1", **kept_in)
    node.expect_lost()

    async def body() -> None:
        channel = group()
        client = await open_session(node, kind)
        await client.join(channel)
        sent: list[tuple[Position, Any]] = []
        for epoch in range(3):
            for number in range(7):
                at = await client.publish(channel, f"{epoch}.{number}")
                sent.append(((at["epoch"], at["offset"]), f"{epoch}.{number}"))
            if epoch < 2:
                (router,) = node.routers
                os.kill(router, signal.SIGKILL)
        assert len({at[0] for at, _ in sent}) == 3
        assert [at[1] for at, _ in sent] == list(range(1, 22))
        for limit in (1, 4, 7, 1000):
            assert joined(await pages(client, channel, limit=limit)) == sent
            assert joined(await pages(client, channel, limit=limit, reverse=True)) == sent[::-1]
        # From any message on, both ways: what lies before it and what follows it are all the others.
        for place, (known, _) in enumerate(sent):
            assert joined(await pages(client, channel, since=known, limit=5)) == sent[place + 1 :]
            assert joined(await pages(client, channel, since=known, limit=5, reverse=True)) == sent[:place][::-1]
        await client.close()

    run(body())


@pytest.mark.parametrize("reverse", [False, True])
def test_paging_goes_on_where_it_was_when_the_router_is_killed_in_between(
    kept_in: dict[str, str], holdfast: Any, reverse: bool
) -> None:
    node: Node = holdfast("--workers", "1", **kept_in)
    node.expect_lost()

    async def body() -> None:
        channel = group()
        client = await open_session(node, "tcp")
        await client.join(channel)
        for number in range(20):
            await client.publish(channel, number)
        first = await page(client, channel, limit=8, reverse=reverse)
        (router,) = node.routers
        os.kill(router, signal.SIGKILL)
        await client.publish(channel, 20)  # of the next epoch
        rest = joined(await pages(client, channel, since=first[-1][0], limit=8, reverse=reverse))
        found = [data for _, data in [*first, *rest]]
        assert found == (list(range(19, -1, -1)) if reverse else list(range(21)))
        await client.close()

    run(body())


def sizes_at_the_bounds() -> list[int]:
    """Of data: pairs and triples of messages that just fill a frame, and those that are as long as one or longer."""
    half, third = MAX_FRAME // 2, MAX_FRAME // 3
    around = [size + more for size in (third, half) for more in (-160, -120, -100, -80, -60, 0)]
    return [*around, 1, MAX_FRAME - 200, 1, MAX_FRAME - 64, MAX_FRAME, 2 * MAX_FRAME, 1, 1, 3 * MAX_FRAME]


@pytest.mark.parametrize("kind", KINDS)
def test_pages_meet_at_the_bound_of_a_frame_and_one_message_is_always_given(holdfast: Any, kind: str) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_GATEWAY_MAX_FRAME=str(MAX_FRAME))
    channel = group()
    sent = []
    for number, size in enumerate(sizes_at_the_bounds()):
        data = chr(ord("a") + number) * size
        sent.append((publish(node, channel, data), data))

    async def body() -> None:
        client = await open_session(node, kind)
        await client.join(channel)
        for reverse in (False, True):
            found = await pages(client, channel, reverse=reverse)
            assert joined(found) == (sent[::-1] if reverse else sent)
            assert all(len(one) == 1 or sum(len(data) for _, data in one) < MAX_FRAME for one in found)
            assert any(len(one) > 1 for one in found)
        await client.close()

    run(body())


def test_the_end_that_is_trimmed_is_the_end_of_paging_back(kept_in: dict[str, str], holdfast: Any) -> None:
    node: Node = holdfast("--workers", "1", HOLDFAST_NAMESPACES_GROUP_HISTORY_MESSAGES="10", **kept_in)

    async def body() -> None:
        channel = group()
        client = await open_session(node, "tcp")
        await client.join(channel)
        for number in range(1, 16):
            await client.publish(channel, number)
        first = await page(client, channel, limit=4, reverse=True)
        assert [data for _, data in first] == [15, 14, 13, 12]
        for number in range(16, 19):  # 6, 7 and 8 go meanwhile
            await client.publish(channel, number)
        rest = joined(await pages(client, channel, since=first[-1][0], limit=2, reverse=True))
        assert [data for _, data in rest] == [11, 10, 9]
        newer = joined(await pages(client, channel, since=first[0][0], limit=2))
        assert [data for _, data in newer] == [16, 17, 18]
        await client.close()

    run(body())
