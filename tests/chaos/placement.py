"""Where the sessions of a node are: which worker has whose connection, as the admin server says."""

import json
from dataclasses import dataclass
from typing import Self

from tests.conftest import Node

LIMIT = 1_000
MOVED_AT_LEAST = 10
"""In a hundred sessions; who comes back is at another worker as often as not where there are two."""


@dataclass(frozen=True)
class Placement:
    """At one moment.

    Attributes:
        workers: by user, the number of the worker.

    """

    workers: dict[str, int]

    @classmethod
    def of(cls, node: Node) -> Self:
        status, text = node.get(f"/api/connections?state=open&limit={LIMIT}")
        assert status == 200, text
        found = json.loads(text)
        assert not found["missing"], f"no answer from {found['missing']}"
        return cls({one["user"]: int(one["id"].partition("-")[0]) for one in found["connections"]})

    def is_moved(self, later: "Placement") -> bool:
        """Whether enough of the sessions are at another worker later."""
        both = self.workers.keys() & later.workers.keys()
        moved = sum(self.workers[user] != later.workers[user] for user in both)
        return moved * 100 >= MOVED_AT_LEAST * max(1, len(both))
