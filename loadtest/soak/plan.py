"""What a soak does: one frozen value that the driver and its two load processes share."""

import json
import re
from dataclasses import asdict, dataclass, replace
from typing import Self

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
# The first half is warm-up: kernel, allocators and tables come to their peak, and what is kept for its time is full.
WARMUP_SHARE = 0.5
SAMPLES = 480
SAMPLE_EVERY_S_MIN = 1.0
# Longer runs have the defaults of the product; in a shorter one what is kept for its time must be full sooner.
FULL_LENGTH_S = 1_200.0
# Longer than any regular is away: what it missed has to be in HISTORY still.
AWAY_S_MAX = 10


@dataclass(frozen=True)
class Plan:
    """One soak."""

    seconds: float = FULL_LENGTH_S
    """From the moment when all regulars have joined."""
    seed: int = 1
    connections: int = 15_500
    """Regulars held, always about as many; what the rogues have open at the time comes on top."""
    connect_rate: int = 1_500
    """Connections a second while the regulars come."""
    churn: float = 150.0
    """Regulars that leave and come back a second: half of them for good (others come), half to resume."""
    rogues: float = 200.0
    """Connections a second of the rogues."""
    groups: int = 500
    publishes: float = 100.0
    """Messages a second to the regulars' groups."""
    joins: float = 40.0
    """Regulars that join, and that leave, a second group, a second."""
    loud: float = 10.0
    """Messages a second of LOUD_BYTES to the group that slow readers join."""
    workers: int = 2
    ping_s: float = 30.0
    misses: int = 3
    hello_timeout_s: float = 5.0
    kill_every_s: float = 180.0
    """The router of the node for the log's part is killed so often."""
    slow_s: float = 20.0
    """For so long at most slow readers read nothing and slow lorises go on."""

    @property
    def warmup_s(self) -> float:
        return self.seconds * WARMUP_SHARE

    @property
    def sample_every_s(self) -> float:
        return max(SAMPLE_EVERY_S_MIN, self.seconds / SAMPLES)

    @property
    def silence_s(self) -> float:
        """After so long a client that says nothing is given up."""
        return self.ping_s * self.misses

    def environment(self) -> dict[str, str]:
        """The node's settings: the product's own but for what a short run cannot wait for."""
        keep_s = max(1, int(self.warmup_s / 2))
        history_age_s = 3600 if self.seconds >= FULL_LENGTH_S else max(AWAY_S_MAX, keep_s)
        history_messages = max(64, min(256, int(keep_s / 2 * self.publishes / self.groups)))
        return {
            "HOLDFAST_GATEWAY_PING_MS": str(int(self.ping_s * 1000)),
            "HOLDFAST_GATEWAY_MISSES": str(self.misses),
            "HOLDFAST_GATEWAY_HELLO_TIMEOUT_MS": str(int(self.hello_timeout_s * 1000)),
            "HOLDFAST_GATEWAY_QUEUE_BYTES_MAX": "262144",
            "HOLDFAST_ROUTER_KEY_WINDOW_S": str(min(300, keep_s)),
            # Full before the warm-up is over, by number in a long run and by age in a short one, and more than anybody
            # misses while away.
            **{
                f"HOLDFAST_NAMESPACES_{name}_HISTORY_{bound}": str(value)
                for name in ("USER", "GROUP", "GLOBAL")
                for bound, value in (("MESSAGES", history_messages), ("AGE_S", history_age_s))
            },
            "HOLDFAST_LOG_LEVEL": "warning",
            "HOLDFAST_LOG_FORMAT": "json",
        }

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        return cls(**json.loads(text))


def plan_for(seconds: float, seed: int = 1) -> Plan:
    """The plan of a run of that length; one that is shorter than usual has quicker heartbeats, so that zombies end."""
    plan = Plan(seconds=seconds, seed=seed)
    return (
        plan
        if seconds >= FULL_LENGTH_S
        else replace(plan, ping_s=max(2.0, round(seconds / 40)), kill_every_s=seconds / 6)
    )


def seconds_of(text: str) -> float:
    """`90`, `90s`, `3m`, `24h`.

    Raises:
        ValueError: it is none of these, or not positive.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    if match is None or (seconds := float(match[1]) * _UNITS[match[2]]) <= 0:
        raise ValueError(f"{text!r}: a length of time is written 90s, 20m or 24h")
    return seconds
