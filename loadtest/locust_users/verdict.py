"""Whether a run was right: the clients' counts against each other and against the server's, to the message."""

import re
import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

DEADLINE_S = 10.0
# The counters of the server that the clients' must agree with.
SERVER = {
    "publishes": "holdfast_publishes_total",
    "sequenced": "holdfast_messages_sequenced_total",
    "delivered": "holdfast_messages_delivered_total",
}
WRONG = ("lost", "repeated", "out_of_order", "corrupt", "told_gaps", "overdue", "unanswered")
EXIT_UNMEASURED = 2
EXIT_WRONG = 3  # as the swarm says it: messages, and not connections, went wrong


def server_counts(admin: str) -> dict[str, int]:
    """The server's counters, all its processes summed.

    Raises:
        OSError: the admin port does not answer.

    """
    with urllib.request.urlopen(f"{admin}/metrics", timeout=DEADLINE_S) as answer:
        text = answer.read().decode()
    return {name: sum(samples(text, metric)) for name, metric in SERVER.items()}


def samples(text: str, metric: str) -> Iterable[int]:
    """The values of a metric in Prometheus's text."""
    for value in re.findall(rf"^{metric}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE):
        yield int(float(value))


def summed(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    """The counts of several processes as one; zeros stay, so that every name is there."""
    total: Counter[str] = Counter()
    for one in counts:
        for name, value in one.items():
            total[name] += value
    return total


@dataclass(frozen=True)
class Verdict:
    """What came of a run: the clients' counts, the server's (None: not compared), and everything that is wrong."""

    clients: Mapping[str, int]
    server: Mapping[str, int] | None
    wrong: tuple[str, ...]

    @property
    def exit_code(self) -> int | None:
        """EXIT_WRONG, or None: locust's own judgement of its requests stands."""
        return EXIT_WRONG if self.wrong else None

    def lines(self) -> list[str]:
        """The summary, for people."""
        rows = [("published", self._expected("publishes"), "publishes")]
        rows += [("accepted", self._expected("sequenced"), "sequenced")]
        rows += [("delivered", self._expected("delivered"), "delivered")]
        lines = [f"{'':12}{'clients':>16}{'server':>16}"]
        for name, mine, theirs in rows:
            lines.append(f"{name:12}{mine:>16,}{'not compared' if self.server is None else self.server[theirs]:>16}")
        lines.append(", ".join(f"{name} {self.clients[name]:,}" for name in WRONG))
        kept = ("connected", "resumed", "left", "failed", "joined", "held_back", "missed_away", "unchecked")
        lines.append(", ".join(f"{name} {self.clients[name]:,}" for name in kept))
        return [*lines, *(f"WRONG: {one}" for one in self.wrong or ())]

    def _expected(self, name: str) -> int:
        return expected(self.clients)[name]


def expected(clients: Mapping[str, int]) -> dict[str, int]:
    """What the server must have counted if the clients' counts are right."""
    return {
        "publishes": clients["published"] - clients["publish_refused"],
        "sequenced": clients["accepted"],
        "delivered": clients["delivered"],
    }


def judge(clients: Mapping[str, int], server: Mapping[str, int] | None, missing: Iterable[str] = ()) -> Verdict:
    """Compare; `missing` names processes whose counts did not come, which is wrong by itself."""
    wrong = [f"{name}: no final counts from it" for name in missing]
    wrong += [f"{name}: {clients[name]:,}" for name in WRONG if clients[name]]
    wrong += [f"{name}: nothing, so nothing was shown" for name in ("published", "delivered") if not clients[name]]
    if server is not None:
        for name, count in expected(clients).items():
            if count != server[name]:
                difference = server[name] - count
                wrong.append(f"{name}: the server counts {server[name]:,}, {difference:+,} against the clients")
    return Verdict(clients, server, tuple(wrong))
