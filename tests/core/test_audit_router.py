"""The audit of a router's data plane: it closes when nothing leaks, and finds a leak of each kind."""

import select
from collections.abc import Callable
from typing import Any

import pytest

from core import audit, ledger, notes, records
from tests.core.edge_harness import wait_for
from tests.core.router_harness import DEADLINE_S, Sequencer, Worker
from tests.core.test_audit_edge import refuses

KINDS = ("session", "subscription", "history", "key", "channel", "zmq_message", "peer")
# What shows at the router itself; the others only beside what the worker says.
CROSSED = ("session", "subscription")


def look(router: Sequencer) -> dict[str, Any]:
    """One audit of the data plane."""
    assert router.loop is not None
    router.loop.put(notes.AUDIT, request=3)
    assert select.select([router.loop.control_fd], [], [], DEADLINE_S)[0], "no answer in time"
    (note,) = router.loop.take()
    assert (note[0], note[3]) == (notes.AUDITED, 3)
    return audit.unpack(note[7], note[8])


def test_every_table_is_walked(sequencers: Callable[..., Sequencer]) -> None:
    router = sequencers()
    one, other = router.worker(0), router.worker(1)
    for name, handle in (("group:a", 11), ("user:u", 12)):
        one.subscribe(name, handle)
    other.subscribe("group:a", 13)
    one.say.session(records.OPEN, b"s" * 16, 5)
    one.publish("group:a", "x", key="k1")
    one.publish("group:a", "y", key="k2")
    report = look(router)
    assert report["findings"] == []
    live = {kind: counts["opened"] - counts["closed"] for kind, counts in report["kinds"].items()}
    assert live == {kind: counts["found"] for kind, counts in report["kinds"].items()}
    assert (live["channel"], live["subscription"], live["history"], live["key"]) == (2, 3, 2, 2)
    assert (live["session"], live["peer"]) == (1, 2)
    links = {link["identity"]: (link["sessions"], link["subscriptions"]) for link in report["links"]}
    assert links == {"node/0/1": (1, 2), "node/1/1": (0, 1)}


def _provoke(router: Sequencer, kind: str) -> None:
    """Let one thing of the kind come and go, its release being forgotten."""
    one = router.worker()
    one.subscribe("group:a", 11)
    one.say.session(records.OPEN, b"s" * 16, 5)
    one.publish("group:a", "x", key="k1")
    router.stats.leak(kind)
    if kind == "peer":
        one.socket.close()
    else:
        _release(one)


def _release(one: Worker) -> None:
    one.say.session(records.CLOSE, b"s" * 16, 5)
    one.say.channel(records.UNSUBSCRIBE, b"group:a", 11)
    one.publish("group:a", "y", key="k2")


@pytest.mark.parametrize("kind", ["history", "key", "peer", "zmq_message"])
def test_a_leak_of_each_kind_is_found_and_named(sequencers: Callable[..., Sequencer], kind: str) -> None:
    # One message and one key are kept, so that the second lets the first go.
    router = sequencers(history_messages=1, keys_max=1)
    if not ledger.CHECKED:
        refuses(router.stats, kind)
        return
    router.leaks = {kind}
    _provoke(router, kind)
    found: list[dict[str, Any]] = []

    def is_found() -> bool:
        found[:] = [one for one in look(router)["findings"] if one["kind"] == kind and one["place"]]
        return bool(found)

    wait_for(is_found, f"the leak of a {kind}")
    assert "core/" in found[0]["place"]


@pytest.mark.parametrize("kind", CROSSED)
def test_what_a_worker_gave_up_is_still_known_by_its_link(sequencers: Callable[..., Sequencer], kind: str) -> None:
    """The router's own tables agree with each other; the node's audit holds them against the worker's."""
    router = sequencers()
    if not ledger.CHECKED:
        refuses(router.stats, kind)
        return
    _provoke(router, kind)
    report = look(router)
    assert report["findings"] == []
    assert [link[f"{kind}s"] for link in report["links"]] == [1]
    assert [router.stats.places(kind)[0].partition(":")[0]] == [
        "core/sequencer.pyx" if kind == "session" else "core/stream.pyx"
    ]
