"""Who has which key: slots, Sentinel, Cluster."""

import contextlib
from collections.abc import Iterator

import pytest
import redis

from router.log.port import LogUnavailable
from router.log.redis_link import Link
from router.log.redis_nodes import SLOTS, Nodes, slot_of
from router.log.redis_url import parse
from tests.conftest import wait_until
from tests.router.log.conftest import run
from tests.servers.redis import AWAY, FLEETING, PRIMARY, Server, running, running_cluster, running_sentinels

SECRET = "s3cret"


async def nothing(link: Link) -> None:
    """A greeting that says nothing."""


@contextlib.contextmanager
def sentinels_of(server: Server) -> Iterator[tuple[Server, Server]]:
    """One for everybody, and one that asks for SECRET."""
    monitor = f"sentinel monitor {PRIMARY} 127.0.0.1 {server.port} 1"
    open_one, closed_one = Server(monitor, sentinel=True), Server(monitor, f"requirepass {SECRET}", sentinel=True)

    def answers() -> bool:
        with redis.Redis(port=closed_one.port, password=SECRET, socket_timeout=5.0) as client:
            try:
                return bool(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", PRIMARY))
            except AWAY:
                return False

    try:
        open_one.start()
        closed_one.start(wait=False)
        wait_until(answers, "the sentinel with a password answers")
        yield open_one, closed_one
    finally:
        open_one.destroy()
        closed_one.destroy()


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
        assert nodes.owner(7) is None
        first = await nodes.link(7)
        assert await nodes.link(8) is first is nodes.up(9)
        assert nodes.owner(9) == ("127.0.0.1", redis_server.port)
        nodes.drop_all("the test wants another")
        assert first.why_lost == "the test wants another"
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


def test_sentinels_that_want_a_password_are_told_the_urls_and_others_are_not() -> None:
    with running(*FLEETING) as server, sentinels_of(server) as (open_one, closed_one):

        async def work() -> None:
            for url, expected in (
                (f"redis+sentinel://127.0.0.1:{open_one.port}/{PRIMARY}", ""),
                (f"redis+sentinel://:{SECRET}@127.0.0.1:{open_one.port}/{PRIMARY}", ""),
                (f"redis+sentinel://:{SECRET}@127.0.0.1:{closed_one.port}/{PRIMARY}/3", ""),
                (f"redis+sentinel://127.0.0.1:{closed_one.port}/{PRIMARY}", "name user and password in the URL"),
                (f"redis+sentinel://:wrong@127.0.0.1:{closed_one.port}/{PRIMARY}", "this is a sentinel, which is told"),
            ):
                nodes = Nodes(parse(url), 5.0, nothing)
                if expected:
                    with pytest.raises(LogUnavailable, match=expected):
                        await nodes.link(0)
                else:
                    assert (await nodes.link(0)).address[1] == server.port
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
