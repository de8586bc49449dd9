"""The links to all routers of a node: each publish and each question goes to the router that leads the shard.

Bans are kept by the router of shard 0, which tells them to everybody.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from core.ban_list import Standing
from core.shards import SHARD_COUNT, shard
from router.client import ChannelState, RouterClient, StoredSession, Survey

_A = TypeVar("_A")
_T = TypeVar("_T")


class _StoresNoneError(Exception):
    """A router stores no sessions, and neither do the others."""


class RouterClients:
    """A link to each router, owned by the event loop that `start` runs in.

    Args:
        endpoints: of the routers, each of which leads every so manieth shard.
        name: what the links are called on the bus.

    """

    def __init__(self, endpoints: Sequence[str], name: str) -> None:
        self._clients = [RouterClient(endpoint, name) for endpoint in endpoints]
        self._places = bytes(number % len(endpoints) for number in range(SHARD_COUNT))

    @property
    def linked(self) -> bool:
        """Whether all routers know this peer and were heard lately."""
        return all(client.linked for client in self._clients)

    async def start(self) -> None:
        """Connect; the links come up by themselves, now or when the routers do."""
        for client in self._clients:
            await client.start()

    async def close(self) -> None:
        """End the links; what is under way is unavailable."""
        for client in self._clients:
            await client.close()

    async def publish(
        self, channel: str, data: bytes, *, key: str | None = None, sender: str, deadline_s: float
    ) -> tuple[int, int]:
        """See `RouterClient.publish`."""
        client = self._clients[self._places[shard(channel.encode())]]
        return await client.publish(channel, data, key=key, sender=sender, deadline_s=deadline_s)

    async def ban(self, user: str, until_ms: int, reason: str, *, deadline_s: float) -> Standing:
        """See `RouterClient.ban`."""
        return await self._clients[self._places[0]].ban(user, until_ms, reason, deadline_s=deadline_s)

    def bans(self) -> Mapping[str, Standing]:
        """See `RouterClient.bans`."""
        return self._clients[self._places[0]].bans()

    async def channels(self, names: Sequence[str], *, deadline_s: float) -> list[ChannelState]:
        """See `RouterClient.channels`."""
        return await self._each(
            names, [name.encode() for name in names], lambda client, own: client.channels(own, deadline_s=deadline_s)
        )

    async def survey(self, names: Sequence[str], depth: int, *, deadline_s: float) -> list[Survey]:
        """See `RouterClient.survey`."""
        return await self._each(
            names,
            [name.encode() for name in names],
            lambda client, own: client.survey(own, depth, deadline_s=deadline_s),
        )

    async def sessions(self, ids: Sequence[bytes], *, deadline_s: float) -> list[StoredSession | None] | None:
        """See `RouterClient.sessions`."""

        async def ask(client: RouterClient, own: Sequence[bytes]) -> list[StoredSession | None]:
            found = await client.sessions(own, deadline_s=deadline_s)
            if found is None:
                raise _StoresNoneError
            return found

        try:
            return await self._each(ids, ids, ask)
        except _StoresNoneError:
            return None

    async def _each(
        self,
        asked: Sequence[_A],
        names: Sequence[bytes],
        ask: Callable[[RouterClient, list[_A]], Awaitable[list[_T]]],
    ) -> list[_T]:
        """Ask each router for its own, all at once; the answers in the order of what was asked.

        Of nothing the first router is asked, which says whether it answers at all.
        """
        places: dict[int, list[int]] = {} if asked else {0: []}
        for at, name in enumerate(names):
            places.setdefault(self._places[shard(name)], []).append(at)
        answers = await asyncio.gather(  # deadline: the askers'
            *(ask(self._clients[place], [asked[at] for at in own]) for place, own in places.items())
        )
        found = {
            at: answer
            for own, told in zip(places.values(), answers, strict=True)
            for at, answer in zip(own, told, strict=True)
        }
        return [found[at] for at in range(len(asked))]
