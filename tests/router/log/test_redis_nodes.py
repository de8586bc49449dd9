"""Who has which key: slots, Sentinel, Cluster."""

import pytest

from router.log.port import LogUnavailable
from router.log.redis_link import Link
from router.log.redis_nodes import SLOTS, Nodes, slot_of
from router.log.redis_url import parse
from tests.router.log.conftest import run
from tests.servers.redis import FLEETING, Server, running_cluster, running_sentinels


async def nothing(link: Link) -> None:
    """A greeting that says nothing."""


def test_slots_are_those_of_the_specification() -> None:
    # CRC16 of "123456789" is 0x31C3 there.
    assert slot_of(b"123456789") == 0x31C3
    assert 0 <= slot_of(b"s1") < SLOTS


def test_a_connection_is_kept_and_made_again_when_it_was_lost(redis_server: Server) -> None:
    async def work() -> None:
        greeted: list[Link] = []

        async def greet(link: Link) -> None:
            greeted.append(link)

        nodes = Nodes(parse(redis_server.url), 5.0, greet)
        assert nodes.up(7) is None
        first = await nodes.link(7)
        assert await nodes.link(8) is first is nodes.up(9)
        first.drop("the test wants another")
        assert nodes.up(7) is None
        second = await nodes.link(7)
        assert second is not first
        assert greeted == [first, second]
        await nodes.close()
        with pytest.raises(LogUnavailable, match="closed"):
            await nodes.link(7)

    run(work())


def test_a_primary_that_sentinels_do_not_know_is_named() -> None:
    with running_sentinels(*FLEETING) as servers:

        async def work() -> None:
            nodes = Nodes(parse(servers.url.replace("/holdfast", "/other")), 5.0, nothing)
            with pytest.raises(LogUnavailable, match="no primary `other`"):
                await nodes.link(0)
            await nodes.close()
            # One sentinel is enough.
            servers.sentinels[0].kill()
            nodes = Nodes(parse(servers.url), 5.0, nothing)
            link = await nodes.link(0)
            assert link.address[1] == servers.servers[0].port
            await nodes.close()

        run(work())


def test_a_clusters_nodes_are_found_from_any_of_them() -> None:
    with running_cluster(*FLEETING) as cluster:

        async def work() -> None:
            nodes = Nodes(parse(f"redis+cluster://127.0.0.1:{cluster.servers[1].port}"), 5.0, nothing)
            ports = {(await nodes.link(slot)).address[1] for slot in (0, SLOTS // 2, SLOTS - 1)}
            assert ports == {one.port for one in cluster.servers}
            await nodes.close()
            cluster.servers[0].kill()
            nodes = Nodes(parse(cluster.url), 5.0, nothing)
            with pytest.raises(LogUnavailable):
                await nodes.link(0)
            assert (await nodes.link(SLOTS - 1)).address[1] == cluster.servers[2].port
            await nodes.close()

        run(work())
