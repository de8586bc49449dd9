"""A sweep removes what is certainly dead: not what came meanwhile, not what was changed meanwhile."""

from router.directory.embedded import EmbeddedDirectory, EmbeddedRegistration
from router.directory.port import Claim, NodeEpoch, Snapshot
from router.directory.sweep import PAGE_KEYS, Swept, sweep
from tests.router.directory.conftest import run

FAST = 1e6


def owner(_: str, value: bytes) -> NodeEpoch | None:
    node, _, epoch = value.decode().partition(":")
    return NodeEpoch(node, int(epoch)) if epoch else None


def named(node: NodeEpoch) -> bytes:
    return f"{node.node}:{node.epoch}".encode()


def test_a_node_that_registers_and_claims_while_a_page_is_read_is_not_dead() -> None:
    class Slow(EmbeddedDirectory):
        """Between reading a page and reading the nodes, a node comes and takes over what is on the page's side."""

        async def page(self, prefix: str, after: str, count: int) -> Snapshot:
            if after:
                return await super().page(prefix, after, count)
            new = await other.register("new", b"", 10)
            registrations.append(new)
            await other.transact([Claim("s/1", 0, named(new.identity), new.identity)])
            return await super().page(prefix, after, count)

    registrations: list[EmbeddedRegistration] = []

    async def body() -> None:
        swept = await sweep(directory, "s/", owner, FAST)
        assert swept == Swept(1, 0)
        for one in registrations:
            await one.close()
        assert await sweep(EmbeddedDirectory(directory.store), "s/", owner, FAST) == Swept(1, 1)

    directory = Slow()
    other = EmbeddedDirectory(directory.store)
    run(body())


def test_what_is_changed_between_reading_and_removing_stays() -> None:
    class Busy(EmbeddedDirectory):
        """A page is out of date as soon as it is read."""

        async def page(self, prefix: str, after: str, count: int) -> Snapshot:
            found = await super().page(prefix, after, count)
            for key, item in found.items.items():
                await other.transact([Claim(key, item.revision, b"nobody")])
            return found

    async def body() -> None:
        await other.transact([Claim("s/1", 0, b"dead:1")])
        assert await sweep(Busy(other.store), "s/", owner, FAST) == Swept(1, 0)
        assert (await other.read("s/")).items["s/1"].value == b"nobody"

    other = EmbeddedDirectory()
    run(body())


def test_pages_are_swept_whole_although_keys_go_meanwhile() -> None:
    async def body() -> None:
        directory = EmbeddedDirectory()
        count = 2 * PAGE_KEYS + 7
        await directory.transact([Claim(f"s/{number}", 0, b"dead:1") for number in range(count)])
        assert await sweep(directory, "s/", owner, FAST) == Swept(count, count)
        assert (await directory.read("s/")).items == {}
        assert await sweep(directory, "s/", owner, FAST) == Swept(0, 0)

    run(body())
