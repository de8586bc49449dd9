"""When what happens: locust's events, in one process, or at a master with workers.

The end is in two steps. First, while the users are still there, every process that has connections goes quiet and waits
until all that was published has come (`Fleet.settle`); only then are the counts compared. A master asks its workers to
do so by a message and waits for their final counts, since locust's own stop would not.
"""

import argparse
import logging
import sys
import time
from typing import Any

import gevent
from locust import events
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtest.locust_users import options
from loadtest.locust_users.fleet import Fleet
from loadtest.locust_users.verdict import EXIT_UNMEASURED, Verdict, judge, server_counts, summed

SETTLE, SETTLED = "holdfast_settle", "holdfast_settled"
REPORT = "holdfast"
GRACE_S = 20.0  # beside the time that settling may take
LOOK_S = 0.1
log = logging.getLogger("holdfast.locust")


class Run:
    """One run as one process sees it."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.load = options.load_of(environment.parsed_options, environment.host)
        self.has_users = not isinstance(environment.runner, MasterRunner)
        self.is_judge = not isinstance(environment.runner, WorkerRunner)
        self.before = server_counts(self.load.admin) if self.load.admin and self.is_judge else None
        # The number that the master gave this worker; 0 in a process of its own.
        index = max(getattr(environment.runner, "worker_index", 0), 0)
        self.fleet = Fleet(environment, self.load, index) if self.has_users else None
        self.counts: dict[str, dict[str, int]] = {}  # by worker: the newest
        self.final: set[str] = set()
        self.verdict: Verdict | None = None
        self.ending = False

    def end(self) -> None:
        """Count, compare, and say what came of it; a second call does nothing."""
        if self.ending or not self.is_judge:
            return
        self.ending = True
        missing: list[str] = []
        if self.fleet is not None:
            self.counts["here"] = self.fleet.settle()
        else:
            missing = self._settle_workers()
        server = None
        if self.before is not None:
            after = server_counts(self.load.admin)
            server = {name: after[name] - count for name, count in self.before.items()}
        self.verdict = judge(summed(self.counts.values()), server, missing)
        for line in self.verdict.lines():
            log.info(line)
        if self.verdict.exit_code is not None:
            self.environment.process_exit_code = self.verdict.exit_code

    def _settle_workers(self) -> list[str]:
        """Ask every worker for its final counts; those that did not answer in time."""
        runner = self.environment.runner
        assert isinstance(runner, MasterRunner)
        wanted = {client.id for client in runner.clients.all} | set(self.counts)
        runner.send_message(SETTLE)
        end = time.monotonic() + self.load.settle_s + GRACE_S
        while wanted - self.final and time.monotonic() < end:
            gevent.sleep(LOOK_S)
        return sorted(wanted - self.final)

    def stop(self) -> None:
        if self.fleet is not None:
            self.fleet.stop()
            self.fleet = None


_runs: dict[int, Run] = {}  # by environment: a process may have more than one, in tests


def the_run(environment: Environment) -> Run:
    return _runs[id(environment)]


def the_fleet(environment: Environment) -> Fleet:
    """The connections of a process that has users."""
    fleet = the_run(environment).fleet
    assert fleet is not None
    return fleet


@events.init_command_line_parser.add_listener
def on_parser(parser: argparse.ArgumentParser) -> None:
    options.add_to(parser)


@events.init.add_listener
def on_init(environment: Environment, runner: Any, **_: Any) -> None:
    """Say what is wrong with the options before anything starts, and listen to the other side."""
    if isinstance(runner, WorkerRunner):
        runner.register_message(SETTLE, _on_settle, concurrent=True)
        return
    try:
        load = options.load_of(environment.parsed_options, environment.host)
        if load.admin:
            server_counts(load.admin)
    except (ValueError, OSError) as error:
        sys.exit(f"locust: {error}")
    if isinstance(runner, MasterRunner):
        runner.register_message(SETTLED, _on_settled)


def _on_settle(environment: Environment, msg: Any, **_: Any) -> None:
    assert isinstance(environment.runner, WorkerRunner)
    environment.runner.send_message(SETTLED, the_fleet(environment).settle())


def _on_settled(environment: Environment, msg: Any, **_: Any) -> None:
    run = the_run(environment)
    run.counts[msg.node_id] = msg.data
    run.final.add(msg.node_id)


@events.test_start.add_listener
def on_test_start(environment: Environment, **_: Any) -> None:
    _runs[id(environment)] = Run(environment)


@events.test_stopping.add_listener
def on_test_stopping(environment: Environment, **_: Any) -> None:
    run = _runs.get(id(environment))
    if run is None:
        log.error("the run's time was over before the load began: nothing was measured; give it a longer --run-time")
        environment.process_exit_code = EXIT_UNMEASURED
        return
    run.end()


@events.test_stop.add_listener
def on_test_stop(environment: Environment, **_: Any) -> None:
    run = _runs.get(id(environment))
    if run is not None:
        run.stop()


@events.quitting.add_listener
def on_quitting(environment: Environment, **_: Any) -> None:
    """An end by Ctrl-C or SIGTERM comes here first."""
    run = _runs.get(id(environment))
    if run is not None:
        run.end()


@events.report_to_master.add_listener
def on_report(client_id: str, data: dict[str, Any]) -> None:
    """A worker's counts travel with its statistics."""
    for run in _runs.values():
        if run.fleet is not None:
            data[REPORT] = run.fleet.loop.counts()


@events.worker_report.add_listener
def on_worker_report(client_id: str, data: dict[str, Any]) -> None:
    for run in _runs.values():
        if REPORT in data and client_id not in run.final:
            run.counts[client_id] = data[REPORT]
