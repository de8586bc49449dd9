"""The arithmetic of a crowd, and short real runs: one that goes well and one that loses connections."""

import argparse
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from loadtest import million
from loadtest.crowd import (
    PAYLOAD_BYTES,
    SWARM_FILES_BESIDE,
    WORKER_FILES_BESIDE,
    Crowd,
    shares_of,
    stamped,
    workers_for,
)
from loadtest.measure import Memory, Server
from loadtest.million_page import section
from loadtest.resources import Sample, cpu_us_per_connection_second, growth_per_day, kind_of
from tests.conftest import wait_until

FILES = 20_000
MIB = 1 << 20


@pytest.mark.parametrize("connections", [300, 19_744, 19_745, 120_000, 1_000_000])
def test_workers_suffice_also_when_the_hash_is_unkind_and_one_less_would_not(connections: int) -> None:
    def most(workers: int) -> float:
        mean = connections / workers
        return mean + (4 * math.sqrt(mean) if workers > 1 else 0)

    workers = workers_for(connections, FILES)
    assert most(workers) <= FILES - WORKER_FILES_BESIDE
    assert workers == 1 or most(workers - 1) > FILES - WORKER_FILES_BESIDE


@pytest.mark.parametrize(
    ("connections", "processes"), [(1_000_000, 0), (120_000, 0), (300, 2), (301, 2), (7, 7), (19, 3)]
)
def test_shares_are_all_of_the_crowd_without_a_gap(connections: int, processes: int) -> None:
    shares = shares_of(connections, FILES, processes)
    assert sum(share.count for share in shares) == connections
    assert [share.first for share in shares] == [sum(s.count for s in shares[:n]) for n in range(len(shares))]
    assert all(0 < share.count <= FILES - SWARM_FILES_BESIDE for share in shares)
    assert processes in (0, len(shares))


def test_a_million_has_small_groups_and_large_ones() -> None:
    shares = shares_of(1_000_000, FILES)
    assert len(shares) == 53
    assert {10, 100, 1_000} < {share.members for share in shares}
    assert max(share.members for share in shares) >= 18_000
    assert shares[0].channel(3) == "group:crowd0-3"
    words = shares[-1].options(2_000)
    assert words[words.index("--first") + 1] == str(1_000_000 - shares[-1].count)


def test_a_stamp_tells_its_time_and_number() -> None:
    text = stamped(1_234_567_890_123_456_789, 44)
    bits = [ord(letter) - ord("0") for letter in text[:32]]
    raw = b"".join(
        (bits[n] << 18 | bits[n + 1] << 12 | bits[n + 2] << 6 | bits[n + 3]).to_bytes(3, "big") for n in range(0, 32, 4)
    )
    assert int.from_bytes(raw[:8], "little") == 1_234_567_890_123_456_789
    assert int.from_bytes(raw[12:16], "little") == 44
    assert len(text) == PAYLOAD_BYTES


def a_sample(at_s: float, pss: int, cpu_s: float = 0.0) -> Sample:
    return Sample(at_s, 1_000, Memory(2 * pss, pss, pss), Memory(0, 0, 0), cpu_s, 0.0)


def test_growth_is_the_slope_over_all_samples_a_day() -> None:
    steady = [a_sample(at_s, 100 * MIB) for at_s in range(0, 600, 10)]
    assert growth_per_day(steady) == 0
    growing = [a_sample(at_s, 100 * MIB + at_s * 1_000) for at_s in range(0, 600, 10)]
    assert growth_per_day(growing) == pytest.approx(86_400 * 1_000 / (100 * MIB + 295_000))
    assert growth_per_day(steady[:1]) == 0


def test_cpu_is_told_for_one_connection_and_second() -> None:
    samples = [a_sample(0, MIB, 5.0), a_sample(10, MIB, 5.02)]
    assert cpu_us_per_connection_second(samples, lambda sample: sample.holdfast_cpu_s) == pytest.approx(2.0)


def test_the_defaults_are_those_of_the_promises() -> None:
    options = million.parse([])
    assert (options.connections, options.hold, options.rate, options.user_bytes_max) == (1_000_000, 600, 0, 1 << 30)
    soak = million.parse(["--soak"])
    assert (soak.connections, soak.hold, soak.rate, soak.name) == (120_000, 600, 20, "soak-120k")
    with pytest.raises(SystemExit):
        million.parse(["--hold", "0"])


def test_a_machine_without_room_is_told_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert million.main(["--connections", "1000000000"]) == 2
    assert "connections take about 11,718,750 MiB of the kernel's memory" in capsys.readouterr().err


def small(folder: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> tuple[int, dict[str, Any]]:
    """A run of 300 connections over 2 workers and 2 load processes; its exit code and what it wrote."""
    monkeypatch.setattr(million, "RESULTS", folder)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the tests' own handlers stay
    words = ["--connections", "300", "--workers", "2", "--processes", "2", "--hold", "1", *more]
    code = million.main(words)
    return code, json.loads((folder / "million.json").read_text())


@pytest.mark.slow
def test_a_small_crowd_is_held_and_everybody_hears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, result = small(tmp_path, monkeypatch, "--rate", "50")
    assert code == 0
    assert result["connections_least"] == 300
    assert [share["members"] for share in result["shares"]] == [10, 10]
    assert [(client["globals"], client["globals_least"]) for client in result["clients"]] == [(150, 1), (150, 1)]
    assert [client["global_latency_us"]["count"] for client in result["clients"]] == [150, 150]
    assert 0 < result["global"]["first_s"] <= result["global"]["last_s"] < million.GLOBAL_DEADLINE_S
    assert result["group_messages"] > 10
    assert sum(client["delivered"] for client in result["clients"]) == result["group_deliveries"]
    assert {"supervisor", "zygote", "router", "worker", "swarm", "holdfast"} == set(result["user"])
    assert result["user"]["worker"]["processes"] == 2
    assert result["ledger_after"] == result["ledger_before"]
    page = section("make million", result)
    assert "- 300 WebSocket connections joined" in page
    assert "0 were lost" in page
    assert "| workers | 2 |" in page


@pytest.mark.slow
def test_connections_that_are_lost_while_held_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real_hold = million.hold

    def hold(server: Server, crowd: Crowd, options: argparse.Namespace) -> Any:
        victim = next(pid for pid in server.pids() if kind_of(pid) == "worker")
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in server.pids(), "the worker is gone")
        wait_until(
            lambda: server.metrics()['holdfast_process_ready{process="worker-0"}'] == 1, "another took its place"
        )
        return real_hold(server, crowd, options)

    monkeypatch.setattr(million, "hold", hold)
    code, result = small(tmp_path, monkeypatch)
    assert code == 1
    assert result["connections_least"] < 300
    lost = sum(client["disconnected"] for client in result["clients"])
    assert lost == 300 - result["connections_least"]
    said = capsys.readouterr().out
    assert f"NOT KEPT  300 joined, never fewer than {300 - lost}" in said
    assert f"{lost} disconnected" in said
    assert "NOT KEPT  one global message to each: not everybody had it" in said
