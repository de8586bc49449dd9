"""Which Redis server has which key: one for all, the primary that the sentinels name, or a cluster's nodes.

A connection to each of them is made when it is first needed, and again when it was lost; who has what is looked up
again then.
"""

import asyncio
import binascii
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from router.log.port import LogUnavailable
from router.log.redis_link import Link
from router.log.redis_url import Address, RedisUrl

SLOTS = 16_384
_log = logging.getLogger("holdfast")


def slot_of(tag: bytes) -> int:
    """The slot of a cluster that keys with a hash tag belong to (CRC16 XMODEM, Redis Cluster specification)."""
    return binascii.crc_hqx(tag, 0) % SLOTS


class Nodes:
    """Connections to the primaries of a Redis.

    Args:
        url: where it is.
        deadline_s: for each command, and for each step of connecting.
        greet: what to do with a new connection before it is used.
        make: of an address and a deadline, a connection that is not made yet.

    """

    def __init__(
        self,
        url: RedisUrl,
        deadline_s: float,
        greet: Callable[[Link], Awaitable[None]],
        make: Callable[[Address, float], Link] = Link,
    ) -> None:
        self._url = url
        self._deadline_s = deadline_s
        self._greet = greet
        self._make = make
        self._links: dict[Address, Link] = {}
        self._owners: list[Address] | None = None
        self._lock = asyncio.Lock()
        self._closed = False

    def up(self, slot: int) -> Link | None:
        """The connection for a slot, if it is there now."""
        if self._owners is None:
            return None
        link = self._links.get(self._owners[slot])
        return link if link is not None and not link.why_lost else None

    def owner(self, slot: int) -> Address | None:
        """Who has a slot, as far as it is known."""
        return None if self._owners is None else self._owners[slot]

    def drop_all(self, why: str) -> None:
        """Give up the connections that are there: who has what is looked up again."""
        for link in self._links.values():
            link.drop(why)

    async def link(self, slot: int) -> Link:
        """The connection for a slot, made if need be.

        Raises:
            LogUnavailable: there is none now.
        """
        found = self.up(slot)
        if found is not None:
            return found
        async with self._lock:  # deadline: each step of whoever has the lock has one
            found = self.up(slot)
            return found if found is not None else await self._connect(slot)

    async def _connect(self, slot: int) -> Link:
        if self._closed:
            raise LogUnavailable("the log is closed")
        # Whoever was lost may have been replaced.
        if self._owners is None or self._owners[slot] in self._links:
            self._owners = await self._find()
        address = self._owners[slot]
        before = self._links.pop(address, None)
        if before is not None and not before.why_lost:
            self._links[address] = before
            return before
        try:
            link = self._links[address] = await self._made(address)
        except BaseException:
            self._owners = None
            raise
        _log.info("connected to %s", link.name)
        return link

    async def _made(self, address: Address) -> Link:
        link = self._make(address, self._deadline_s)
        await link.connect(self._url)  # deadline: the link's own
        if link.role != "master":
            link.drop(f"{link.name} is a {link.role}, and no primary is known yet")
            raise LogUnavailable(link.why_lost)
        try:
            await self._greet(link)  # deadline: that of each command, in the log
        except BaseException:
            link.drop("given up")
            raise
        return link

    async def _find(self) -> list[Address]:
        if self._url.kind == "single":
            return [self._url.addresses[0]] * SLOTS
        known = [*self._url.addresses]
        if self._url.kind == "cluster":
            known += [address for address in self._links if address not in known]
        said = []
        for address in known:
            try:
                return await self._ask_who(address, credentials=self._url.kind == "cluster")
            except LogUnavailable as error:
                said.append(str(error))
        raise LogUnavailable(f"who has what is told by nobody: {'; '.join(said)}")

    async def _ask_who(self, address: Address, *, credentials: bool) -> list[Address]:
        """Ask one of them; a sentinel gets the URL's credentials if it asks for some."""
        link = Link(address, self._deadline_s)
        try:
            await link.connect(self._url, credentials=credentials)
            if self._url.kind == "sentinel":
                return await self._ask_sentinel(link)
            return await self._ask_cluster(link)
        except LogUnavailable as error:
            if not link.wants_credentials or credentials or not self._url.password:
                if credentials and self._url.kind == "sentinel":
                    raise LogUnavailable(f"{error}; this is a sentinel, which is told those for the servers") from None
                raise
        finally:
            link.drop("asked")
            await link.closed()
        return await self._ask_who(address, credentials=True)

    async def _ask_sentinel(self, link: Link) -> list[Address]:
        [found] = await link.ask(["SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._url.primary])
        if not found:
            raise LogUnavailable(f"{link.name} knows no primary `{self._url.primary}`: correct the name in the URL")
        return [(found[0].decode(), int(found[1]))] * SLOTS

    async def _ask_cluster(self, link: Link) -> list[Address]:
        [ranges] = await link.ask(["CLUSTER", "SLOTS"])
        owners: list[Any] = [None] * SLOTS
        for first, last, primary, *_ in ranges:
            host = primary[0].decode() if primary[0] else link.address[0]
            owners[first : last + 1] = [(host, primary[1])] * (last + 1 - first)
        if None in owners:
            raise LogUnavailable(f"{link.name} is of a cluster in which nobody has slot {owners.index(None)}")
        return owners

    async def close(self) -> None:
        """Give up all connections."""
        self._closed = True
        links, self._links = list(self._links.values()), {}
        for link in links:
            link.drop("the log is closed")
        for link in links:
            await link.closed()  # deadline: its own, by which it gives up
