"""What a client knows of where to dial: the nearest first, the next one after each failure, and where it was sent."""

from collections.abc import Callable
from urllib.parse import urlsplit

Place = Callable[[], tuple[str, int]]


class Endpoints:
    """A `Place` of one client. Who is served begins with the nearest again when it comes back."""

    def __init__(self, *places: Place) -> None:
        self._places = places
        self._next = 0
        self._target: tuple[str, int] | None = None

    def __call__(self) -> tuple[str, int]:
        if self._target is not None:
            found, self._target = self._target, None
            return found
        place = self._places[self._next % len(self._places)]
        self._next += 1
        return place()

    def served(self) -> None:
        """The last one answered."""
        self._next = 0

    def sent_to(self, target: str) -> None:
        """The gateway said where to go instead, as URL: dial that next, and after it the farther ones first."""
        found = urlsplit(target)
        assert found.hostname is not None
        assert found.port is not None
        self._target, self._next = (found.hostname, found.port), 1


def served(place: Place) -> None:
    """WELCOME came from where this said; those that know one place only need no word of it."""
    if isinstance(place, Endpoints):
        place.served()


def sent_to(place: Place, target: object) -> None:
    """What FIN said of where to go; nothing to those that know one place only."""
    if isinstance(place, Endpoints) and isinstance(target, str):
        place.sent_to(target)
