"""Each check of the doctor at its boundary, the order of its findings, and where its figures come from."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway import doctor, machine
from gateway.config import Config, GatewaySection, LogSection
from gateway.doctor import FAILS, OK, RISK, UNKNOWN, Check, Plan
from gateway.log_facts import LogFacts
from gateway.machine import UNLIMITED, Facts
from gateway.settings import FDS_BESIDE_CONNECTIONS
from gateway.supervisor import Timing

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = GatewaySection(workers=4, connections_max=100_000, handshakes_max=4_096)
WANTED = 400_000
ROOMY = LogFacts(disk_free=1 << 40, is_writable=True)


def plan(wanted: int = WANTED, grace_s: int | None = 60, **settings: Any) -> Plan:
    return Plan(wanted, Config(gateway=msgspec.structs.replace(GATEWAY, **settings)), ROOMY, grace_s)


def log_plan(found: LogFacts, **log: Any) -> Plan:
    return Plan(WANTED, Config(log=LogSection(directory="/log", **log)), found)


# A machine that is good for exactly WANTED connections with these settings.
BESIDE = 4 * FDS_BESIDE_CONNECTIONS
EACH = doctor.USER_BYTES + doctor.KERNEL_BYTES
FIT = Facts(
    files_hard=100_000 + FDS_BESIDE_CONNECTIONS,
    nr_open=100_000 + FDS_BESIDE_CONNECTIONS,
    file_max=WANTED + BESIDE + doctor.FILES_RESERVE + 2_000,
    files_open=2_000,
    epoll_watches_max=WANTED + BESIDE,
    memory_free=doctor.NODE_BYTES + 4 * doctor.WORKER_BYTES + WANTED * EACH,
    processors=4,
    somaxconn=4_096,
    syn_backlog_max=4_096,
    syncookies=0,
    netdev_backlog_max=1_000,
    tw_reuse=2,
    tw_buckets_max=WANTED,
    ports=(1, WANTED),
    tcp_mem_pages=(1, WANTED, 2 * WANTED),
    tcp_rmem=(4_096, 131_072, 262_144),
    tcp_wmem=(4_096, 16_384, 262_144),
    has_conntrack=True,
    conntrack_max=WANTED + 10,
    conntrack_count=10,
    maps_max=65_530,
    overcommit=0,
    clock_source="tsc",
    huge_pages="madvise",
    core_bytes=UNLIMITED,
)


def test_what_just_fits_is_well_in_every_point() -> None:
    large = replace(FIT, memory_free=1 << 40)
    findings = doctor.examine(large, plan())
    assert {one.name for one in findings if one.status != OK} == set()
    assert doctor.holds(findings)
    assert doctor.reachable(findings) == WANTED


LIMITS: list[tuple[Check, dict[str, Any], int]] = [
    (doctor.files_of_a_process, {"files_hard": 100_000 + FDS_BESIDE_CONNECTIONS - 1}, WANTED - 4),
    (doctor.files_of_a_process_ceiling, {"nr_open": 100_000 + FDS_BESIDE_CONNECTIONS - 1}, WANTED - 4),
    (doctor.files_of_the_machine, {"files_open": 2_001}, WANTED - 1),
    (doctor.epoll_watches, {"epoll_watches_max": WANTED + BESIDE - 1}, WANTED - 1),
    (doctor.memory, {"memory_free": (FIT.memory_free or 0) - 1}, WANTED - 1),
    (doctor.processors, {"processors": 0.2}, 350_877),
    (doctor.conntrack, {"conntrack_count": 11}, WANTED - 1),
]


@pytest.mark.parametrize(("check", "change", "at"), LIMITS, ids=[check.__name__ for check, _, _ in LIMITS])
def test_one_too_few_fails_and_says_at_which_number(check: Check, change: dict[str, Any], at: int) -> None:
    assert check(FIT, plan()).status == OK
    finding = check(replace(FIT, **change), plan())
    assert (finding.status, finding.breaks_at) == (FAILS, at)
    assert finding.remedy
    assert finding.needs
    assert doctor.holds([check(replace(FIT, **change), plan(wanted=at))])


def test_the_configuration_bounds_too() -> None:
    assert doctor.configured(FIT, plan()).status == OK
    finding = doctor.configured(FIT, plan(wanted=WANTED + 1))
    assert (finding.status, finding.breaks_at, finding.needs) == (FAILS, WANTED, doctor.CONFIGURATION)
    assert "gateway.connections_max = 100001" in finding.remedy


RISKS: list[tuple[Check, dict[str, Any]]] = [
    (doctor.tcp_memory, {"tcp_mem_pages": (1, WANTED - 1, 2 * WANTED)}),
    (doctor.tcp_buffers, {"memory_free": 3_999 * (262_144 + 1_048_576)}),
    (doctor.accept_queue, {"somaxconn": 4_095}),
    (doctor.syn_queue, {"syn_backlog_max": 4_095}),
    (doctor.packet_queue, {"netdev_backlog_max": 999}),
    (doctor.time_wait, {"tw_buckets_max": WANTED - 1}),
    (doctor.ports, {"ports": (2, WANTED)}),
    (doctor.conntrack, {"conntrack_max": WANTED - 1, "conntrack_count": 0}),
    (doctor.maps, {"maps_max": 65_529}),
    (doctor.overcommit, {"overcommit": 2}),
    (doctor.overcommit, {"overcommit": 2, "commit_free": 100_000_000}),
    (doctor.clock, {"clock_source": "hpet"}),
    (doctor.huge_pages, {"huge_pages": "always"}),
    (doctor.core_dumps, {"core_bytes": 0}),
    (doctor.processors, {"processors": 3}),
]


@pytest.mark.parametrize(("check", "change"), RISKS)
def test_what_hurts_without_a_bound_is_a_risk_and_holds(check: Check, change: dict[str, Any]) -> None:
    fit = replace(FIT, memory_free=1 << 40)
    assert check(fit, plan()).status == OK
    finding = check(replace(fit, **change), plan())
    assert finding.status == RISK
    assert finding.remedy
    assert finding.needs
    assert doctor.holds([finding])


def test_syn_cookies_make_the_queue_of_half_open_ones_unimportant() -> None:
    assert doctor.syn_queue(replace(FIT, syn_backlog_max=1, syncookies=1), plan()).status == OK


def test_strict_overcommit_with_room_is_well() -> None:
    assert doctor.overcommit(replace(FIT, overcommit=2, commit_free=1 << 40), plan()).status == OK


def test_no_connection_tracking_is_well_and_so_is_one_without_a_bound() -> None:
    none = replace(FIT, has_conntrack=False, conntrack_max=None, conntrack_count=None)
    assert doctor.conntrack(none, plan()).status == OK
    assert doctor.conntrack(replace(FIT, conntrack_max=0), plan()).status == OK
    assert doctor.conntrack(replace(FIT, conntrack_max=None), plan()).status == UNKNOWN


@pytest.mark.parametrize(
    ("grace_s", "in_kubernetes", "status"),
    [(17, False, OK), (16, False, RISK), (None, False, UNKNOWN), (None, True, OK), (10, True, RISK)],
)
def test_the_grace_period_must_hold_a_whole_stop(grace_s: int | None, in_kubernetes: bool, status: str) -> None:
    facts = replace(FIT, in_kubernetes=in_kubernetes)
    assert doctor.grace(facts, plan(grace_s=grace_s)).status == status


@pytest.mark.parametrize(("ping_ms", "status"), [(59_999, OK), (60_000, RISK)])
def test_heartbeats_come_before_balancers_lose_patience(ping_ms: int, status: str) -> None:
    assert doctor.heartbeat(FIT, plan(ping_ms=ping_ms)).status == status


@pytest.mark.parametrize(("handshakes_max", "status"), [(4_096, OK), (4_095, RISK)])
def test_what_waits_in_the_kernel_should_be_let_in(handshakes_max: int, status: str) -> None:
    assert doctor.handshakes(FIT, plan(handshakes_max=handshakes_max)).status == status


MIB = 1 << 20


@pytest.mark.parametrize(
    ("free", "used", "status"), [(1_088 * MIB, 0, OK), (88 * MIB, 1_000 * MIB, OK), (1_088 * MIB - 1, 0, RISK)]
)
def test_the_logs_disk_has_room_for_its_bound_and_a_segment(free: int, used: int, status: str) -> None:
    found = LogFacts(disk_free=free, disk_used=used, is_writable=True)
    finding = doctor.log_disk(FIT, log_plan(found, bytes_max=1_024 * MIB))
    assert finding.status == status
    assert ("log.bytes_max = " in finding.remedy) == (status == RISK)


def test_a_log_that_cannot_be_written_fails_and_one_that_nobody_looked_at_is_unknown() -> None:
    finding = doctor.log_disk(FIT, log_plan(LogFacts(disk_free=1 << 40, is_writable=False)))
    assert (finding.status, finding.breaks_at, finding.value) == (FAILS, 0, "/log")
    assert finding.remedy
    assert doctor.log_disk(FIT, log_plan(LogFacts())).status == UNKNOWN
    assert doctor.log_disk(FIT, log_plan(LogFacts(), backend="none")).status == OK


@pytest.mark.parametrize(
    ("found", "status", "value"),
    [
        (LogFacts(redis_concerns=()), OK, "keeps what it is given"),
        (LogFacts(redis_concerns=("x: appendonly is no",)), RISK, "x: appendonly is no"),
        (LogFacts(redis_error="nobody is there"), UNKNOWN, "cannot be asked: nobody is there"),
        (LogFacts(), UNKNOWN, "does not tell its settings"),
    ],
)
def test_redis_has_to_keep_what_it_is_given(found: LogFacts, status: str, value: str) -> None:
    finding = doctor.log_in_redis(FIT, log_plan(found, backend="redis"))
    assert (finding.status, finding.value) == (status, value)
    assert doctor.log_in_redis(FIT, plan()).status == OK


def test_what_the_logs_of_other_regions_lack_is_named_with_the_region() -> None:
    keeps, fleeting, gone = LogFacts(redis_concerns=()), LogFacts(redis_concerns=("x: y",)), LogFacts(redis_error="z")

    def found(**regions: LogFacts) -> tuple[str, str]:
        finding = doctor.logs_of_regions(FIT, log_plan(LogFacts(regions=regions), backend="redis"))
        return finding.status, finding.value

    assert found() == (OK, "not used: there is no log.regions")
    assert found(us=keeps, ap=keeps) == (OK, "us, ap: keep what they are given")
    assert found(us=keeps, ap=fleeting) == (RISK, "ap: x: y")
    assert found(us=gone, ap=fleeting) == (RISK, "us: cannot be asked: z; ap: x: y")
    assert found(us=gone, ap=LogFacts()) == (UNKNOWN, "us: cannot be asked: z; ap: does not tell its settings")


def test_tls_takes_its_memory_and_a_shorter_heartbeat_its_cpu() -> None:
    plain, tls = doctor.memory(FIT, plan()), doctor.memory(FIT, plan(tls_certificate="c", tls_key="k"))
    assert plain.breaks_at is not None
    assert tls.breaks_at is not None
    assert plain.breaks_at / tls.breaks_at == pytest.approx((doctor.TLS_BYTES + doctor.KERNEL_BYTES) / EACH, rel=1e-4)
    usual, often = doctor.processors(FIT, plan()), doctor.processors(FIT, plan(ping_ms=1_000))
    assert usual.breaks_at is not None
    assert often.breaks_at is not None
    assert usual.breaks_at / often.breaks_at == pytest.approx(30, rel=1e-3)


def test_what_fails_stands_first_and_in_the_order_in_which_it_does() -> None:
    facts = replace(FIT, memory_free=1 << 40, files_hard=5_000, epoll_watches_max=100_000, somaxconn=1, nr_open=None)
    findings = doctor.examine(facts, plan())
    assert [(one.name, one.status) for one in findings[:4]] == [
        ("open files of a process", FAILS),
        ("fs.epoll.max_user_watches", FAILS),
        ("net.core.somaxconn", RISK),
        ("fs.nr_open", UNKNOWN),
    ]
    assert {one.status for one in findings[4:]} == {OK}
    assert doctor.reachable(findings) == 4 * (5_000 - FDS_BESIDE_CONNECTIONS)
    text = doctor.as_text(findings, plan())
    assert text.splitlines()[0] == "400,000 connections on 4 workers"
    assert text.splitlines()[-1] == "400,000 connections cannot be held; 18,976 can"
    assert "-> LimitNOFILE=100256" in text
    assert doctor.as_text(doctor.examine(replace(FIT, memory_free=1 << 40), plan()), plan()).endswith("can be held")


def test_a_machine_that_shows_nothing_is_unknown_and_no_failure() -> None:
    findings = doctor.examine(Facts(), plan(grace_s=None))
    assert doctor.holds(findings)
    assert sum(one.status == UNKNOWN for one in findings) >= 18
    assert "can be held" in doctor.as_text(findings, plan())


def test_this_machine_is_examined_and_the_report_has_its_schema() -> None:
    wanted = plan(wanted=10)
    findings = doctor.examine(machine.here(), wanted)
    report = json.loads(json.dumps(doctor.as_json(findings, wanted)))
    assert set(report) == {"wanted", "workers", "reachable", "holds", "findings"}
    assert report["holds"] is True
    assert report["reachable"] >= 10
    assert len(report["findings"]) == len(doctor.CHECKS)
    for finding in report["findings"]:
        assert set(finding) == {"name", "status", "value", "says", "breaks_at", "remedy", "needs"}
        assert finding["status"] in (RISK, UNKNOWN, OK)
        assert finding["breaks_at"] is None or isinstance(finding["breaks_at"], int)


def test_every_check_names_its_source() -> None:
    for check in doctor.CHECKS:
        assert check.__doc__, check.__name__


def test_the_figures_are_those_that_were_measured() -> None:
    result = json.loads((ROOT / "loadtest" / "results" / "million.json").read_text())
    before, during = result["user_before"], result["user"]
    count = result["connections"]
    assert round((during["holdfast"]["pss"] - before["holdfast"]["pss"]) / count) == doctor.USER_BYTES
    assert -(-result["kernel_memory"]["Slab"] // (2 * count)) == doctor.KERNEL_BYTES
    workers = before["worker"]["pss"] // before["worker"]["processes"]
    assert workers == doctor.WORKER_BYTES
    assert before["holdfast"]["pss"] - before["worker"]["pss"] == doctor.NODE_BYTES
    assert round(result["cpu_us_per_connection_second"]["holdfast"], 2) == doctor.CPU_US


def test_stopping_takes_what_the_supervisor_takes() -> None:
    timing = Timing()
    assert timing.grace_s + timing.router_stop_s == doctor.STOP_EXTRA_S


@pytest.mark.parametrize(
    ("error", "status", "value"),
    [(None, OK, "not used: "), ("", OK, "answers"), ("nobody is there", RISK, "cannot be read: nobody is there")],
)
def test_a_directory_has_to_answer(error: str | None, status: str, value: str) -> None:
    finding = doctor.directory(FIT, dataclasses.replace(plan(), directory_error=error))
    assert finding.status == status
    assert finding.value.startswith(value)
