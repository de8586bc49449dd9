"""Which gateway to try when: the known endpoints, how near each was, and which of them are set aside for now.

No I/O, no clock. A pass goes once over all endpoints. Within it they race as in RFC 8305 (Happy Eyeballs): the nearest
has a head start, the next one begins when that is over or when the one before has failed. Where nothing is known, or
what is known is old, all begin together and the application's order is worth TIE_S a place.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from .transport import address, is_acceptable_target

TIE_S = 0.01
"""Of two endpoints that are nearer to each other than this, the application's order decides."""
HEAD_START_S, HEAD_START_LEAST_S, HEAD_START_MOST_S = 0.25, 0.1, 2.0
"""RFC 8305 §5: the recommended delay between two attempts, and its bounds."""
MEASURED_S = 600.0
"""After this long, what is known of who is near is measured anew with the next reconnect."""
ASIDE_FIRST_S, ASIDE_MOST_S = 5.0, 600.0
"""For how long one that failed comes last; it doubles with each failure."""
SMOOTHING = 0.5


@dataclass(slots=True)
class _Endpoint:
    url: str
    took_s: float | None = None
    """From the beginning of the attempt to WELCOME, smoothed; None: never measured."""
    failures: int = 0
    aside_until: float = float("-inf")


@dataclass(frozen=True, slots=True)
class Start:
    """One attempt of a race."""

    url: str
    after_s: float
    """After the one before it began, unless that fails earlier."""


class Endpoints:
    """All endpoints of one session.

    Args:
        urls: in the application's order.

    Raises:
        ValueError: one is no address of a gateway, or there is none.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._known: dict[str, _Endpoint] = {}
        for url in urls:
            self._known.setdefault(_same(url), _Endpoint(url))
        if not self._known:
            raise ValueError("name at least one endpoint")
        self._measured_at: float | None = None

    def __len__(self) -> int:
        return len(self._known)

    @property
    def urls(self) -> list[str]:
        """In the application's order."""
        return [one.url for one in self._known.values()]

    def target(self, named: str | None, here: str) -> str | None:
        """Where a FIN's `target` may send us from `here`; None: nowhere, it is passed over."""
        if named is None or not is_acceptable_target(named, here):
            return None
        known = self._known.get(_same(named))
        # A new one serves for this once: the application's are where a session comes back to.
        return named if known is None else known.url

    def starts(self, now: float, target: str | None = None, tried: Collection[str] = ()) -> list[Start]:
        """The rest of a pass, in order.

        Args:
            now: seconds of the session's clock.
            target: goes first, with the longest head start: the gateway has its reasons.
            tried: did not answer in this pass.
        """
        left = [one for one in self._known.values() if one.url not in tried]
        ready = [one for one in left if one.aside_until <= now]
        # One that failed is better than none: the one that is set aside the shortest first.
        aside = sorted((one for one in left if one.aside_until > now), key=lambda one: one.aside_until)
        together = self._measured_at is None or now >= self._measured_at + MEASURED_S
        if not together:
            ready.sort(key=lambda one: float("inf") if one.took_s is None else one.took_s)
        starts: list[Start] = []
        before: _Endpoint | None = None
        for one in ready + aside:
            # One that failed begins behind the others also where these begin together.
            at_once = together and one.aside_until <= now
            starts.append(Start(one.url, 0.0 if before is None else TIE_S if at_once else _head_start_s(before)))
            before = one
        return starts if target is None or target in tried else _first(target, starts)

    def answered(self, url: str, took_s: float, now: float, *, raced: bool) -> None:
        """WELCOME came so long after the attempt had begun.

        Args:
            url: of which.
            took_s: how long it took.
            now: seconds of the session's clock.
            raced: all had begun together: nobody is nearer.
        """
        one = self._known.get(_same(url))
        if one is None:
            return
        one.failures, one.aside_until = 0, float("-inf")
        if raced:  # what was known of the others is older than this
            for other in self._known.values():
                other.took_s = None
            self._measured_at = now
        one.took_s = took_s if one.took_s is None else one.took_s + SMOOTHING * (took_s - one.took_s)

    def is_measured(self, now: float) -> bool:
        """Whether a pass that begins now goes by what is known, rather than measure it."""
        return self._measured_at is not None and now < self._measured_at + MEASURED_S

    def failed(self, url: str, now: float) -> None:
        """It did not answer, or does not serve us now: the others come first for a while."""
        one = self._known.get(_same(url))
        if one is not None:
            one.aside_until = now + min(ASIDE_MOST_S, ASIDE_FIRST_S * 2.0 ** min(one.failures, 32))
            one.failures += 1

    def sent_away(self, url: str, now: float) -> None:
        """The gateway named another one: it does not want to be the first choice again soon."""
        one = self._known.get(_same(url))
        if one is not None:
            one.aside_until = now + ASIDE_MOST_S


def _head_start_s(one: _Endpoint) -> float:
    """Twice as long as it took before is not slow yet."""
    expected_s = HEAD_START_S if one.took_s is None else max(HEAD_START_S, 2 * one.took_s)
    return min(max(expected_s, HEAD_START_LEAST_S), HEAD_START_MOST_S)


def _first(target: str, starts: list[Start]) -> list[Start]:
    rest = [start for start in starts if start.url != target]
    behind = [Start(start.url, HEAD_START_MOST_S if place == 0 else start.after_s) for place, start in enumerate(rest)]
    return [Start(target, 0.0), *behind]


def _same(url: str) -> str:
    """Two ways to write one endpoint are one; only what the path says beside it is taken as it stands."""
    scheme, host, port = address(url)
    return f"{scheme}://{host}:{port}{urlsplit(url).path.rstrip('/')}"
