"""A worker's links to routers where there are several: which place of the data plane each of them has.

The supervisor tells which routers there are, whenever that changes. A link has its place from its opening until the
data plane has said that it does not touch it any more; only then is the address of its router linked to again, since a
router tells its workers apart by names, and a second link of this worker would have the same.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from core import descriptors, notes
from gateway import logs
from gateway.cluster_config import RouterLink

LINKS_MAX = 64
"""Routers that one worker can have links to (LINKS_MAX of core/edge.pxd)."""
UNNAMED_A_LINK = 16
"""Event descriptors and epolls of one link: 8 of context and stream, and as many while one stream follows another."""

_log = logs.get("worker")


class LinkPlane(Protocol):
    """What is needed of core.loop.EdgeLoop."""

    def link_open(
        self,
        place: int,
        endpoint: str,
        server_key: str = "",
        public_key: str = "",
        secret_key: str = "",
        *,
        near: bool = True,
    ) -> None: ...

    def link_close(self, place: int) -> None: ...

    def put(self, kind: int, conn: int = 0, request: int = 0) -> None: ...

    def flush(self) -> None: ...


class Links:
    """The links of one worker.

    Args:
        plane: its data plane.
        public_key: who it is to routers whose bus has keys.
        secret_key: of that pair.
        alone: endpoint of the one router that the data plane is linked to from the start; empty: there is none.
        region: where this worker is, if regions have logs of their own: routers of others are far, and feed it nothing.

    """

    def __init__(
        self, plane: LinkPlane, public_key: str = "", secret_key: str = "", *, alone: str = "", region: str = ""
    ) -> None:
        self._plane = plane
        self._alone = [alone] if alone.startswith("tcp://") else []
        self._keys = (public_key, secret_key)
        self._region = region
        self._wanted: list[RouterLink] = []
        self._open: dict[int, RouterLink] = {}
        self._closing: dict[int, RouterLink] = {}
        self._unnamed_before = _unnamed_count()

    @property
    def places(self) -> dict[int, RouterLink]:
        """The routers that it is linked to, or is about to be."""
        return dict(self._open)

    def owns(self, fd: int) -> bool:
        """Whether a descriptor may be of one of its links, for the ledger's audit.

        libzmq makes event descriptors with each stream, in threads of its own, and they all look alike: so many as its
        links may have are its own, and when there are more, something leaks.
        """
        links = [*self._alone, *(link.bus for link in (*self._open.values(), *self._closing.values()))]
        if not links:
            return False
        if not descriptors.is_unnamed(fd):
            return any(descriptors.is_bus(fd, endpoint) for endpoint in links)
        return _unnamed_count() <= self._unnamed_before + UNNAMED_A_LINK * len(links)

    def want(self, routers: Iterable[RouterLink]) -> None:
        """Have links to these routers and no others.

        Raises:
            OSError: a link could not be opened; what could be done was done, and is to be asked for again.
            ValueError: likewise, since the router's key is none.

        """
        self._wanted = _chosen(routers)
        for place, link in list(self._open.items()):
            if link not in self._wanted:
                self._closing[place] = self._open.pop(place)
                self._plane.put(notes.LINK_CLOSE, request=place)
        try:
            self._open_missing()
        finally:
            self._plane.flush()

    def on_closed(self, place: int) -> None:
        """The data plane has let go of a link."""
        if self._closing.pop(place, None) is None:
            return
        self._plane.link_close(place)
        try:
            self._open_missing()
        except (OSError, ValueError) as error:  # it is asked for again with the next list
            _log.error("link_not_opened", error=str(error))

    def _open_missing(self) -> None:
        failure: OSError | ValueError | None = None
        there = {link.bus for link in (*self._open.values(), *self._closing.values())}
        for link in self._wanted:
            if link.bus in there:
                continue
            place = next((free for free in range(LINKS_MAX) if free not in self._open | self._closing), None)
            if place is None:
                break  # one that is being closed makes room soon
            keys = (link.key, *self._keys) if link.key else ()
            near = not self._region or link.region == self._region
            try:
                self._plane.link_open(place, link.bus, *keys, near=near)
            except (OSError, ValueError) as error:
                failure = error
                continue
            self._open[place] = link
            self._plane.put(notes.LINK_OPEN, request=place)
        if failure is not None:
            raise failure


def _chosen(routers: Iterable[RouterLink]) -> list[RouterLink]:
    """One an address, the youngest; and of all, the oldest, as many as there are places."""
    by_bus: dict[str, RouterLink] = {}
    for link in sorted(routers, key=lambda one: one.epoch):
        by_bus[link.bus] = link
    found: Sequence[RouterLink] = sorted(by_bus.values(), key=lambda one: one.epoch)
    if len(found) > LINKS_MAX:
        _log.error("too_many_routers", most=LINKS_MAX, left_out=[link.name for link in found[LINKS_MAX:]])
    return list(found[:LINKS_MAX])


def _unnamed_count() -> int:
    return sum(map(descriptors.is_unnamed, descriptors.listed()))
