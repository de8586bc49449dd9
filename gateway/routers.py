"""The admin API's links to the routers of a cluster: a `RouterClient` each, and who of them is asked for what.

What is about a channel or a session goes to the router that leads its shard, as the directory says. When the shard gets
another leader meanwhile, the new one is asked, and while nobody leads it that is waited for: all within the deadline of
whoever asks. So a publish may be said to two routers; it has a key, its own or one made for it, and under that the
second one knows what the first one kept.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from core import descriptors
from core.ban_list import Standing
from core.namespace_spec import NamespaceSpec
from core.owned import ACCOUNT
from core.shards import Shards
from gateway import logs
from gateway.cluster_config import RouterLink
from gateway.cluster_view import ClusterView
from router.client import ChannelState, Missed, RouterClient, StoredSession, Survey, Unavailable

LINK_DEADLINE_S = 5.0
LOOK_S = 1.0
UNHEARD_S = 10.0
"""After so long without a word a router is said to be out of reach: a silent one has lost its lease by then."""
NOBODY = "there is no router"
_T = TypeVar("_T")

_log = logs.get("supervisor")


class RouterClients:
    """Links to all routers that there are; the same face as `router.client.RouterClient`.

    Args:
        cluster: who leads what.
        make: a link to one router, not started yet.
        namespaces: as the routers have them.

    """

    def __init__(
        self, cluster: ClusterView, make: Callable[[RouterLink], RouterClient], namespaces: Sequence[NamespaceSpec]
    ) -> None:
        self._cluster = cluster
        self._make = make
        self._shards = Shards(namespaces, cluster.shards)
        self._clients: dict[RouterLink, RouterClient] = {}
        self._heard: dict[RouterLink, float] = {}
        """When each was heard last, or linked."""
        self._unheard: set[RouterLink] = set()
        """Of whom that was said."""
        self._fds: dict[RouterLink, set[int]] = {}  # what libzmq opened for each, beside sockets
        self._news = asyncio.Event()  # set and replaced with each change
        self._changed = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Link to the routers that are there, and to those that come, from now on."""
        ACCOUNT.explain(self._owns)
        self._cluster.on_change.append(self._changed.set)
        self._changed.set()
        self._keeping = ACCOUNT.task(self._keep(), "links to routers")

    async def close(self) -> None:
        """End all links; what is under way is unavailable."""
        if self._keeping is None:
            return
        self._cluster.on_change.remove(self._changed.set)
        self._keeping.cancel()
        await asyncio.wait({self._keeping}, timeout=LINK_DEADLINE_S)
        for client in self._clients.values():
            await self._end(client)
        self._clients.clear()
        self._say_news()

    @property
    def links(self) -> dict[RouterLink, bool]:
        """The routers, and whether each was heard lately."""
        return {link: client.linked for link, client in self._clients.items()}

    async def _keep(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._changed.wait()
            self._look()
            if not self._changed.is_set():
                continue
            self._changed.clear()
            wanted = set(self._cluster.routers())
            for link in [link for link in self._clients if link not in wanted]:
                await self._end(self._clients.pop(link))
                del self._fds[link]
            for link in wanted - self._clients.keys():
                await self._begin(link)
            self._say_news()

    def _look(self) -> None:
        """Say of each router that is not heard, once, and when it is heard again."""
        now = time.monotonic()
        self._unheard &= self._clients.keys()
        self._heard = {
            link: now if client.linked else self._heard.get(link, now) for link, client in self._clients.items()
        }
        for link, heard in self._heard.items():
            if link in self._unheard and heard == now:
                self._unheard.discard(link)
                _log.info("router_in_reach", router=link.name)
            elif link not in self._unheard and now - heard >= UNHEARD_S:
                self._unheard.add(link)
                why = "nobody answers there: its bus.advertise, a firewall, or keys of the bus that differ"
                _log.error("router_out_of_reach", router=link.name, bus=link.bus, why=why)

    async def _begin(self, link: RouterLink) -> None:
        client, before = self._make(link), descriptors.listed()
        try:
            async with asyncio.timeout(LINK_DEADLINE_S):
                await client.start()
        except (OSError, ValueError, TimeoutError) as error:
            _log.error("router_not_linked", router=link.name, error=str(error))
            return
        self._fds[link] = {fd for fd in descriptors.listed() - before if descriptors.is_unnamed(fd)}
        self._clients[link] = client

    def _owns(self, fd: int) -> bool:
        """Whether a descriptor is one of libzmq's, for the ledger's audit."""
        return any(fd in owned for owned in self._fds.values()) and descriptors.is_unnamed(fd)

    @staticmethod
    async def _end(client: RouterClient) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINK_DEADLINE_S):
                await client.close()

    def _say_news(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # ------------------------------------------------------------------------------------------------ what is asked

    async def publish(
        self, channel: str, data: bytes, *, key: str | None = None, sender: str, deadline_s: float
    ) -> tuple[int, int]:
        """See `RouterClient.publish`."""
        key = key or f"admin-{uuid.uuid4().hex}"

        async def ask(client: RouterClient, left_s: float) -> tuple[int, int]:
            return await client.publish(channel, data, key=key, sender=sender, deadline_s=left_s)

        return await self._at(self._shard_of(channel), ask, deadline_s)

    async def ban(self, user: str, until_ms: int, reason: str, *, deadline_s: float) -> Standing:
        """See `RouterClient.ban`; any router does it for all."""

        async def ask(client: RouterClient, left_s: float) -> Standing:
            return await client.ban(user, until_ms, reason, deadline_s=left_s)

        return await self._with(self._any, ask, deadline_s, NOBODY)

    def bans(self) -> Mapping[str, Standing]:
        """See `RouterClient.bans`."""
        client = self._any()
        if client is None:
            raise Unavailable("there is no link to a router")
        return client.bans()

    async def channels(self, names: Sequence[str], *, deadline_s: float) -> list[ChannelState]:
        """See `RouterClient.channels`."""

        async def ask(client: RouterClient, some: Sequence[str], left_s: float) -> list[ChannelState]:
            return await client.channels(some, deadline_s=left_s)

        return await self._by_shard(names, self._shard_of, ask, deadline_s)

    async def survey(self, names: Sequence[str], depth: int, *, deadline_s: float) -> list[Survey]:
        """See `RouterClient.survey`."""

        async def ask(client: RouterClient, some: Sequence[str], left_s: float) -> list[Survey]:
            return await client.survey(some, depth, deadline_s=left_s)

        return await self._by_shard(names, self._shard_of, ask, deadline_s)

    async def missed(
        self, asked: Sequence[tuple[str, tuple[int, int]]], *, bytes_max: int, deadline_s: float
    ) -> list[Missed]:
        """See `RouterClient.missed`."""

        async def ask(client: RouterClient, some: Sequence[tuple[str, tuple[int, int]]], left_s: float) -> list[Missed]:
            return await client.missed(some, bytes_max=bytes_max, deadline_s=left_s)

        return await self._by_shard(asked, lambda one: self._shard_of(one[0]), ask, deadline_s)

    async def sessions(self, ids: Sequence[bytes], *, deadline_s: float) -> list[StoredSession | None] | None:
        """See `RouterClient.sessions`; what is stored, any router can read."""

        async def ask(client: RouterClient, left_s: float) -> list[StoredSession | None] | None:
            return await client.sessions(ids, deadline_s=left_s)

        return await self._with(self._any, ask, deadline_s, NOBODY)

    # ------------------------------------------------------------------------------------------------- who is asked

    def _shard_of(self, channel: str) -> int:
        return self._shards.of_channel(channel.encode())

    def _leader(self, shard: int) -> RouterClient | None:
        link = self._cluster.leader(shard)
        return None if link is None else self._clients.get(link)

    def _any(self) -> RouterClient | None:
        linked = (client for client in self._clients.values() if client.linked)
        return next(linked, next(iter(self._clients.values()), None))

    async def _by_shard(
        self,
        asked: Sequence[Hashable],
        shard_of: Callable[..., int],
        ask: Callable[..., Awaitable[list[_T]]],
        deadline_s: float,
    ) -> list[_T]:
        """Ask each leader for its own part, all at once; the answers in the order of what is asked."""
        places: dict[int, list[int]] = {}
        for place, one in enumerate(asked):
            places.setdefault(shard_of(one), []).append(place)

        async def part(shard: int, mine: list[int]) -> list[_T]:
            some = [asked[place] for place in mine]
            return await self._at(shard, lambda client, left_s: ask(client, some, left_s), deadline_s)

        answers = await asyncio.gather(*(part(shard, mine) for shard, mine in places.items()))
        found: dict[int, _T] = {}
        for mine, answer in zip(places.values(), answers, strict=True):
            found |= zip(mine, answer, strict=True)
        return [found[place] for place in range(len(asked))]

    async def _at(self, shard: int, ask: Callable[[RouterClient, float], Awaitable[_T]], deadline_s: float) -> _T:
        return await self._with(lambda: self._leader(shard), ask, deadline_s, f"no router leads shard {shard} now")

    async def _with(
        self,
        choose: Callable[[], RouterClient | None],
        ask: Callable[[RouterClient, float], Awaitable[_T]],
        deadline_s: float,
        nobody: str,
    ) -> _T:
        """Ask whoever is to be asked, another one when that changes, until there is an answer.

        Raises:
            Unavailable: there was nobody to ask, or no answer in time.
        """
        ends = time.monotonic() + deadline_s
        while (left_s := ends - time.monotonic()) > 0:
            client = choose()
            if client is None:
                await self._until_news(left_s)
                continue
            asking = asyncio.ensure_future(ask(client, left_s))
            try:
                while not asking.done() and choose() is client:
                    await self._until_news(ends - time.monotonic(), asking)
                    if time.monotonic() >= ends:
                        # deadline: its own is over too
                        return await asking
                if asking.done():
                    try:
                        return asking.result()
                    except Unavailable:
                        if choose() is client:
                            raise
            finally:
                asking.cancel()
        raise Unavailable(nobody)

    async def _until_news(self, left_s: float, *also: "asyncio.Future[_T]") -> None:
        """Until something changes, or `also` is done, or the time is over."""
        news = asyncio.ensure_future(self._news.wait())
        try:
            waited: set[asyncio.Future[object]] = {news, *also}  # type: ignore[arg-type]
            await asyncio.wait(waited, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
