"""What talkers say, their habits, and what comes of them in numbers."""

from dataclasses import dataclass, field


@dataclass
class Say:
    """One message on its way."""

    content: str
    channel: str
    keyed: bool
    attempts: int = 0
    request: int = 0


@dataclass(frozen=True)
class Habits:
    """How often in a hundred acts a talker does what; the rest is publishing."""

    pause_s: float = 0.01
    unkeyed: int = 10
    leaves: int = 2
    breaks: int = 1
    hurries: int = 0
    doubles: int = 0
    whispers: int = 10
    """To the user's channel of one of its mates."""
    away_s: float = 0.0
    """It stays away for up to so long."""
    leaves_out: int = 15
    """In a hundred returns and channels: the position is left out, so that the last ACK counts."""
    forgets: int = 0
    """In a hundred returns: its program died, and begins anew behind its last ACK. It names nothing."""
    sure_s: float = 0.0
    """Of a channel that it joined no longer before its connection ended, and leaves out, the gateway may know nothing
    where router and worker are killed at once (ADR 96): if WELCOME lacks it, it joins again from where it was. A
    session that began no longer ago may be gone as well: it begins afresh, and joins everything so."""
    acks_last: bool = False
    """An ACK that the router heard is known from then on: nothing happens to the router or to what it stands on."""
    acks_every: int = 20
    returns_left: bool = False
    """A router is cut off from workers: it may hear that a channel was left when the session is another worker's, and
    that does not count. What WELCOME lists although it was left is counted then, and anywhere else a fault."""


@dataclass
class Counts:
    """What a talker did."""

    returns: int = 0
    expired: int = 0
    """Sessions that were gone when it came back."""
    forgets: int = 0
    """Returns behind the last ACK."""
    at_once: int = 0
    """Returns on two connections, both of which said HELLO before either was answered: each was welcome, or had to
    give way to the other."""
    lacks: int = 0
    """Channels that it joined just before, and that the gateway did not know any more."""
    unwanted: int = 0
    """Channels that WELCOME listed although they were left, where that may be."""
    outcomes: dict[str, int] = field(default_factory=dict)
    refusals: dict[int, int] = field(default_factory=dict)
