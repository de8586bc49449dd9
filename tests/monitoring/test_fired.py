"""Fired for real: a node, Debian's Prometheus and Alertmanager, the relay, and what stands at its other end."""

import asyncio
import functools
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import Node, wait_until
from tests.monitoring.receivers import Receivers, running_relay, write_secrets
from tests.monitoring.stack import Alertmanager, Prometheus, running_alertmanager, running_prometheus
from tests.process.clients import Client, open_session, run

pytestmark = pytest.mark.slow
FIRES_DEADLINE_S = 40
WATCHED_CLOSELY = {
    "HOLDFAST_GROWTH_INTERVAL_S": "1",
    "HOLDFAST_GROWTH_WINDOW_S": "60",
    "HOLDFAST_GROWTH_WARM_UP_S": "0",
    "HOLDFAST_GROWTH_SAMPLES_MIN": "12",
    "HOLDFAST_GATEWAY_CHANNELS_PER_SESSION_MAX": "10000",
}
LEAK_EVERY_S = 0.05
ROBOTS = ("dingtalk", "wecom")
RESTARTS = 3  # what HoldfastRestartLoop calls a loop


class Duty(NamedTuple):
    """Who is on duty, and what calls them."""

    alertmanager: Alertmanager
    receivers: Receivers
    folder: Path

    def is_inhibited(self, alert: str, process: str) -> bool:
        found = self.alertmanager.alerts(alertname=alert, process=process)
        return any(one["status"]["inhibitedBy"] for one in found)

    def heard(self, door: str, *parts: str) -> list[str]:
        """The messages of a door that have all of these parts."""
        return [text for text in self.receivers.got[door] if all(part in text for part in parts)]


@pytest.fixture
def duty(tmp_path: Path) -> Iterator[Duty]:
    receivers = Receivers()
    try:
        write_secrets(tmp_path / "secrets", receivers)
        with (
            running_relay(tmp_path / "secrets", tmp_path / "relay.log") as relay_port,
            running_alertmanager(tmp_path / "alertmanager", relay_port) as alertmanager,
        ):
            yield Duty(alertmanager, receivers, tmp_path)
    finally:
        receivers.close()


def wait_heard(duty: Duty, doors: tuple[str, ...], *parts: str) -> None:
    """Wait until each of these doors has got a message with all of these parts."""
    for door in doors:
        wait_until(functools.partial(duty.heard, door, *parts), lambda: f"{duty.receivers.got}", FIRES_DEADLINE_S)


def is_scraped(prometheus: Prometheus) -> bool:
    return len(prometheus.query('holdfast_process_restarts_total{job="holdfast"}')) >= 3


def kill_again_and_again(node: Node, *names: str) -> None:
    """Let all workers, or the router, die as often as makes a loop, each time once all are ready again."""
    for number in range(1, RESTARTS + 1):
        for pid in node.routers if names == ("router",) else node.workers:
            os.kill(pid, signal.SIGKILL)

        def are_back(number: int = number) -> bool:
            restarts = [node.metric("holdfast_process_restarts_total", process=name) for name in names]
            ready = [node.metric("holdfast_process_ready", process=name) for name in names]
            return min(restarts) >= number and min(ready) == 1

        wait_until(are_back, lambda: f"{names} are back\n{node.log_tail()}")


def test_a_restart_loop_pages_once_for_both_workers_and_a_silence_keeps_the_next_one_quiet(
    holdfast: Callable[..., Node], duty: Duty
) -> None:
    node = holdfast("--workers", "2")
    node.expect_lost()
    with running_prometheus(duty.folder / "prometheus", node.admin_port, duty.alertmanager.port) as prometheus:
        wait_until(lambda: is_scraped(prometheus), "Prometheus has scraped the node", FIRES_DEADLINE_S)
        kill_again_and_again(node, "worker-0", "worker-1")
        # One message an area, that names both; on every door that a page has.
        told = ("HoldfastRestartLoop", "docs/alerts.md#holdfastrestartloop")
        wait_heard(duty, ROBOTS, *told, "worker-0 on 127.0.0.1", "worker-1 on 127.0.0.1")
        wait_heard(duty, ("sms", "phone"), "HoldfastRestartLoop")
        # The warning that a process died says less than the loop: inhibited, in Alertmanager's own words.
        for worker in ("worker-0", "worker-1"):
            wait_until(functools.partial(duty.is_inhibited, "HoldfastProcessDied", worker), "the warning is inhibited")
        # Now somebody works on it, and says so.
        silence = ("silence", "add", "--author=duty", "--comment=at work on it", "--duration=1h")
        duty.alertmanager.amtool(*silence, "alertname=HoldfastRestartLoop")
        kill_again_and_again(node, "router")
        wait_until(
            lambda: any(
                alert["status"]["silencedBy"]
                for alert in duty.alertmanager.alerts(alertname="HoldfastRestartLoop", process="router")
            ),
            "the router's loop has fired and is silenced",
            FIRES_DEADLINE_S,
        )
        node.stop()
        wait_heard(duty, ("phone",), "HoldfastNodeDown")
        assert not any(duty.heard(door, "HoldfastRestartLoop", "router on") for door in ROBOTS)


def test_a_provoked_leak_is_told_with_what_leaks_and_a_silence_ends_it(
    holdfast: Callable[..., Node], duty: Duty
) -> None:
    """A session that joins more and more groups: no load explains it, so the growth watcher suspects a leak."""
    node = holdfast("--workers", "1", **WATCHED_CLOSELY)

    async def leak(client: Client) -> None:
        for number in itertools.count():
            await client.join(f"group:{number}")
            await asyncio.sleep(LEAK_EVERY_S)  # the rate of the leak, not a wait for anything

    async def body() -> None:
        client = await open_session(node)
        leaking = asyncio.create_task(leak(client))
        try:
            await asyncio.to_thread(hear_of_it)
        finally:
            leaking.cancel()
            await asyncio.gather(leaking, return_exceptions=True)
            await client.close()

    def hear_of_it() -> None:
        told = ("HoldfastLeakSuspected", "leaks membership", "docs/alerts.md#holdfastleaksuspected")
        wait_heard(duty, ROBOTS, *told)
        assert duty.receivers.got["phone"] == [], "a warning wakes nobody"
        duty.alertmanager.amtool("silence", "add", "--author=duty", "--comment=known", "--duration=1h", "area=leak")
        wait_until(
            lambda: all(
                alert["status"]["silencedBy"] for alert in duty.alertmanager.alerts(alertname="HoldfastLeakSuspected")
            ),
            "it is silenced",
        )

    with running_prometheus(duty.folder / "prometheus", node.admin_port, duty.alertmanager.port):
        run(body())


def test_what_is_inhibited_is_so_by_alertmanagers_own_judgement(duty: Duty) -> None:
    """A node that is down silences what is said of it, critical silences the warning beside it, and no more."""
    given = {
        "down": ("HoldfastNodeDown", "n1", "critical", "node"),
        "of the same node": ("HoldfastPublishSlow", "n1", "critical", "latency"),
        "of another": ("HoldfastPublishSlow", "n2", "critical", "latency"),
        "worse": ("HoldfastFilesAlmostOut", "n2", "critical", "capacity"),
        "less bad": ("HoldfastFilesRunningOut", "n2", "warning", "capacity"),
        "elsewhere": ("HoldfastFilesRunningOut", "n3", "warning", "capacity"),
        "other subject": ("HoldfastHeartbeatLosses", "n2", "warning", "connections"),
    }
    for name, instance, severity, area in given.values():
        labels = (f"instance={instance}", "job=holdfast", f"severity={severity}", f"area={area}")
        duty.alertmanager.amtool("alert", "add", name, *labels)

    def inhibited() -> set[str]:
        return {
            what
            for what, (name, instance, _, _) in given.items()
            for alert in duty.alertmanager.alerts(alertname=name, instance=instance)
            if alert["status"]["inhibitedBy"]
        }

    wait_until(lambda: inhibited() == {"of the same node", "less bad"}, lambda: f"{inhibited()} are inhibited")
