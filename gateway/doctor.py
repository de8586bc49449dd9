"""`holdfast doctor`: what of this machine and configuration breaks at which number of connections, and what raises it.

Pure: facts (`gateway.machine`) and a plan in, findings out. Each check names its source in its docstring; "kernel
docs" are the pages under https://docs.kernel.org/. Memory and CPU of a connection were measured with a million of them:
loadtest/results/million.json.
"""

import math
import os
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from gateway.config import Config
from gateway.log_facts import LogFacts
from gateway.machine import UNLIMITED, Facts
from gateway.settings import FDS_BESIDE_CONNECTIONS
from router.log.sifting import segment_bytes_of

# From loadtest/results/million.json: PSS of all of Holdfast, with a million held less before them, a connection.
USER_BYTES = 402
# Half of the slab that the kernel took for a connection, whose two ends were both on that machine.
KERNEL_BYTES = 5_146
# PSS of an empty node: supervisor, zygote and router, and each worker.
NODE_BYTES, WORKER_BYTES = 52_171_776, 5_053_382
# CPU of a held connection with a heartbeat every 30 s, in microseconds a second.
CPU_US, CPU_PING_MS = 0.57, 30_000
# An idle TLS connection, OpenSSL's part included: docs/adr/0003.
TLS_BYTES = 16_077
# Open files of the machine that are not the gateway's: for the rest of the system to go on while connections come.
FILES_RESERVE = 1_024
# Idle time-outs of what stands between: 60 s is the default of nginx (proxy_read_timeout) and of AWS's ALB.
BALANCER_IDLE_MS = 60_000
KUBERNETES_GRACE_S, DOCKER_GRACE_S = 30, 10
# What the supervisor adds to drain_ms before it kills (gateway.supervisor.Timing: grace and router).
STOP_EXTRA_S = 7
TIME_WAIT_S = 60  # include/net/tcp.h: TCP_TIMEWAIT_LEN, not a setting
NETDEV_BACKLOG_MIN = 1_000
MAPS_MIN = 65_530
FAST_CLOCKS = {"tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter"}

HOST = "root on the host (not a setting of a container)"
NETWORK = "root, in the gateway's network namespace (docker --sysctl, a pod's securityContext.sysctls)"
RUNTIME = "the service manager or container runtime (LimitNOFILE=, docker --ulimit nofile=), which need root"
CONFIGURATION = "the configuration"
OWNER = "whoever runs it"
LOG_BYTES_MIN = 67_108_864  # the least that log.bytes_max may be (gateway/config.py)
FAILS, RISK, UNKNOWN, OK = "fails", "risk", "unknown", "ok"
_WIDTH = 110
_ORDER = {FAILS: 0, RISK: 1, UNKNOWN: 2, OK: 3}


@dataclass(frozen=True)
class Plan:
    """What the node is to hold, and with which settings."""

    wanted: int
    """Connections, of all workers together."""
    config: Config
    log: LogFacts = field(default_factory=LogFacts)
    """What is known of the place of its log."""
    grace_s: int | None = None
    """What the container runtime or service manager gives between SIGTERM and SIGKILL; None: not known."""
    directory_error: str | None = None
    """As `gateway.directory_facts` tells it."""

    @property
    def workers(self) -> int:
        return self.config.gateway.workers

    @property
    def each(self) -> int:
        """Connections of one worker."""
        return math.ceil(self.wanted / self.workers)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: str
    """`fails`: the wanted number cannot be held; `risk`: it can, but see `says`; `unknown`: could not be read; `ok`."""
    value: str
    says: str
    breaks_at: int | None = None
    """The connections of the node that it allows; None: it does not bound them."""
    remedy: str = ""
    needs: str = ""


Check = Callable[[Facts, Plan], Finding]


def default_wanted(config: Config) -> int:
    """What the configuration allows."""
    return config.gateway.workers * config.gateway.connections_max


def examine(facts: Facts, plan: Plan) -> list[Finding]:
    """All findings: what fails, the first limit first; then risks, what is not known, and what is well."""
    found = [check(facts, plan) for check in CHECKS]
    return sorted(found, key=lambda one: (_ORDER[one.status], _bound(one), one.name))


def reachable(findings: list[Finding]) -> int | None:
    """The connections that every known limit allows; None when no limit is known."""
    known = [one.breaks_at for one in findings if one.breaks_at is not None and one.status in (FAILS, OK)]
    return min(known, default=None)


def _bound(finding: Finding) -> int:
    return UNLIMITED if finding.breaks_at is None else finding.breaks_at


def _limit(name: str, value: str, breaks_at: int, plan: Plan, says: str, remedy: str, needs: str) -> Finding:
    fails = breaks_at < plan.wanted
    return Finding(
        name, FAILS if fails else OK, value, says, breaks_at, remedy if fails else "", needs if fails else ""
    )


def _risk(name: str, is_risk: bool, value: str, says: str, remedy: str, needs: str, at: int | None = None) -> Finding:
    return Finding(name, RISK, value, says, at, remedy, needs) if is_risk else Finding(name, OK, value, says)


def _unknown(name: str, says: str) -> Finding:
    return Finding(name, UNKNOWN, "cannot be read", says)


# ------------------------------------------------------------------------------------------- what bounds connections


def configured(_: Facts, plan: Plan) -> Finding:
    """Workers times connections_max (gateway/config.py)."""
    gateway = plan.config.gateway
    return _limit(
        "gateway.connections_max",
        f"{gateway.workers} workers x {gateway.connections_max:,}",
        default_wanted(plan.config),
        plan,
        "A worker accepts a connection beyond its bound and closes it at once.",
        f"gateway.connections_max = {plan.each}, or more workers",
        CONFIGURATION,
    )


def files_of_a_process(facts: Facts, plan: Plan) -> Finding:
    """getrlimit(2), RLIMIT_NOFILE: each connection is a descriptor; accept(2) says EMFILE beyond."""
    name, says = "open files of a process", "A worker without a free descriptor closes newcomers at once."
    if facts.files_hard is None:
        return _unknown(name, says)
    needed = plan.each + FDS_BESIDE_CONNECTIONS
    remedy = f"LimitNOFILE={needed}, ulimit -Hn {needed}, or docker --ulimit nofile={needed}:{needed}"
    return _limit(name, _count(facts.files_hard), _all(facts.files_hard, plan), plan, says, remedy, RUNTIME)


def files_of_a_process_ceiling(facts: Facts, plan: Plan) -> Finding:
    """Kernel docs, admin-guide/sysctl/fs "nr_open": no RLIMIT_NOFILE may be set higher."""
    name, says = "fs.nr_open", "The limit of open files of a process cannot be raised beyond it."
    if facts.nr_open is None:
        return _unknown(name, says)
    remedy = f"sysctl -w fs.nr_open={plan.each + FDS_BESIDE_CONNECTIONS}"
    return _limit(name, _count(facts.nr_open), _all(facts.nr_open, plan), plan, says, remedy, HOST)


def files_of_the_machine(facts: Facts, plan: Plan) -> Finding:
    """Kernel docs, admin-guide/sysctl/fs "file-max & file-nr"; accept(2) says ENFILE beyond."""
    name, says = "fs.file-max", "The whole machine runs out of open files: all programs fail, not the gateway alone."
    if facts.file_max is None or facts.files_open is None:
        return _unknown(name, says)
    others = facts.files_open + FILES_RESERVE + plan.workers * FDS_BESIDE_CONNECTIONS
    return _limit(
        name,
        f"{_count(facts.file_max)}, {facts.files_open:,} in use",
        max(0, facts.file_max - others),
        plan,
        says,
        f"sysctl -w fs.file-max={plan.wanted + others}",
        HOST,
    )


def epoll_watches(facts: Facts, plan: Plan) -> Finding:
    """epoll(7) "/proc/sys/fs/epoll/max_user_watches": of all epoll descriptors of one user; epoll_ctl says ENOSPC."""
    name, says = "fs.epoll.max_user_watches", "A worker that cannot watch a connection closes it at once."
    if facts.epoll_watches_max is None:
        return _unknown(name, says)
    beside = plan.workers * FDS_BESIDE_CONNECTIONS
    remedy = f"sysctl -w fs.epoll.max_user_watches={plan.wanted + beside}"
    at = max(0, facts.epoll_watches_max - beside)
    return _limit(name, _count(facts.epoll_watches_max), at, plan, says, remedy, HOST)


def memory(facts: Facts, plan: Plan) -> Finding:
    """Measured: loadtest/results/million.json (user PSS, kernel slab); with TLS docs/adr/0003."""
    user = TLS_BYTES if plan.config.gateway.tls_certificate else USER_BYTES
    each = user + KERNEL_BYTES
    base = NODE_BYTES + plan.workers * WORKER_BYTES
    says = (
        f"An idle connection takes {user:,} bytes of the gateway and {KERNEL_BYTES:,} of the kernel; beyond, the kernel"
        f" kills a process. A slow reader may queue {plan.config.gateway.queue_bytes_max:,} bytes more."
    )
    if facts.memory_free is None:
        return _unknown("memory", says)
    needed = base + plan.wanted * each
    return _limit(
        "memory",
        f"{_mib(facts.memory_free)} free in {facts.memory_from}",
        max(0, facts.memory_free - base) // each,
        plan,
        says,
        f"{_mib(needed)} free, by the memory limit of the container or a larger machine",
        "the container runtime, or another machine",
    )


def processors(facts: Facts, plan: Plan) -> Finding:
    """Measured: loadtest/results/million.json, idle connections with heartbeats and nothing else."""
    each_us = CPU_US * CPU_PING_MS / plan.config.gateway.ping_ms
    says = f"Heartbeats alone take {each_us:.2f} us of CPU a second and connection; messages come on top."
    if facts.processors is None:
        return _unknown("processors", says)
    needed = plan.wanted * each_us / 1e6
    at, value = int(facts.processors * 1e6 / each_us), f"{facts.processors:g}"
    if at >= plan.wanted and plan.workers > max(1.0, facts.processors):
        says = f"{plan.workers} workers share {facts.processors:g} processors: they take turns. {says}"
        return Finding("processors", RISK, value, says, None, "gateway.workers = 0 (chosen)", CONFIGURATION)
    remedy = f"{math.ceil(needed)} processors, or a longer gateway.ping_ms"
    return _limit("processors", value, at, plan, says, remedy, "the container runtime, or another machine")


def conntrack(facts: Facts, plan: Plan) -> Finding:
    """Kernel docs, networking/nf_conntrack-sysctl "nf_conntrack_max", "nf_conntrack_count"; absent: nothing tracks."""
    name = "net.netfilter.nf_conntrack_max"
    says = "When the table is full, the packets of new connections are dropped: connects time out, without any answer."
    if not facts.has_conntrack:
        return Finding(name, OK, "no connection tracking", says)
    if facts.conntrack_max is None or facts.conntrack_count is None:
        return _unknown(name, says)
    if facts.conntrack_max == 0:
        return Finding(name, OK, "no bound", says)
    at, value = (
        facts.conntrack_max - facts.conntrack_count,
        f"{facts.conntrack_max:,}, {facts.conntrack_count:,} in use",
    )
    remedy = f"sysctl -w {name}={plan.wanted + facts.conntrack_count}, or do not track these ports"
    if facts.conntrack_count == 0:
        says = f"Nothing is tracked now; a firewall or NAT rule would change that. {says}"
        return _risk(name, at < plan.wanted, value, says, remedy, HOST, at)
    return _limit(name, value, max(0, at), plan, says, remedy, HOST)


# ------------------------------------------------------------------------------------------ what hurts on the way there


def tcp_memory(facts: Facts, plan: Plan) -> Finding:
    """Kernel docs, networking/ip-sysctl "tcp_mem": pages of all sockets' queues; an idle socket has none.

    A socket is charged by the page (include/net/sock.h, sk_mem_charge), so one message to everybody charges at least
    one for each connection until its acknowledgement comes.
    """
    says = (
        "Each connection with something under way takes a page or more. Above the second value TCP shrinks its windows,"
        " above the third it drops: one message to everybody comes late and with resets."
    )
    if facts.tcp_mem_pages is None:
        return _unknown("net.ipv4.tcp_mem", f"{says} It is the host's; a container does not see it.")
    _, pressure, most = facts.tcp_mem_pages
    value = f"{facts.tcp_mem_pages[0]} {pressure} {most} pages of {facts.page_bytes}"
    wanted = plan.wanted
    remedy = f'sysctl -w net.ipv4.tcp_mem="{wanted} {wanted * 3 // 2} {wanted * 2}"'
    return _risk("net.ipv4.tcp_mem", pressure < wanted, value, says, remedy, HOST, pressure)


def tcp_buffers(facts: Facts, plan: Plan) -> Finding:
    """Kernel docs, networking/ip-sysctl "tcp_rmem", "tcp_wmem": min, default, max of one socket's buffers."""
    name = "net.ipv4.tcp_wmem, tcp_rmem"
    says = "The kernel keeps up to the third value for a slow reader, beside what the gateway queues for it."
    if facts.tcp_wmem is None or facts.tcp_rmem is None or facts.memory_free is None:
        return _unknown(name, says)
    value = f"{_three(facts.tcp_wmem)}; {_three(facts.tcp_rmem)}"
    slow = facts.memory_free // (facts.tcp_wmem[2] + plan.config.gateway.queue_bytes_max)
    says += f" {slow:,} such readers fill the memory that is free."
    remedy = 'sysctl -w net.ipv4.tcp_wmem="4096 16384 262144", or a lower gateway.queue_bytes_max'
    return _risk(name, slow < plan.wanted // 100, value, says, remedy, NETWORK)


def accept_queue(facts: Facts, plan: Plan) -> Finding:
    """listen(2): a backlog above net.core.somaxconn is silently cut to it."""
    backlog = plan.config.gateway.backlog
    says = "Connections beyond the queue of a listening socket wait for their SYN's next try, 1 s, then 3 s, later."
    if facts.somaxconn is None:
        return _unknown("net.core.somaxconn", says)
    value = f"{facts.somaxconn:,}, gateway.backlog {backlog:,}"
    remedy = f"sysctl -w net.core.somaxconn={backlog}"
    return _risk("net.core.somaxconn", facts.somaxconn < backlog, value, says, remedy, NETWORK)


def syn_queue(facts: Facts, plan: Plan) -> Finding:
    """Kernel docs, networking/ip-sysctl "tcp_max_syn_backlog", "tcp_syncookies"."""
    name, backlog = "net.ipv4.tcp_max_syn_backlog", plan.config.gateway.backlog
    says = "Half-open connections beyond it are dropped, unless tcp_syncookies is 1 or 2."
    if facts.syn_backlog_max is None or facts.syncookies is None:
        return _unknown(name, says)
    value = f"{facts.syn_backlog_max:,}, tcp_syncookies {facts.syncookies}"
    is_risk = facts.syncookies == 0 and facts.syn_backlog_max < backlog
    return _risk(name, is_risk, value, says, f"sysctl -w net.ipv4.tcp_max_syn_backlog={backlog}", NETWORK)


def packet_queue(facts: Facts, plan: Plan) -> Finding:
    """Kernel docs, admin-guide/sysctl/net "netdev_max_backlog": packets waiting for one processor; the rest is lost."""
    name, says = "net.core.netdev_max_backlog", "Packets that come faster than a processor takes them are dropped."
    if facts.netdev_backlog_max is None:
        return _unknown(name, says)
    is_risk = facts.netdev_backlog_max < NETDEV_BACKLOG_MIN
    remedy = f"sysctl -w net.core.netdev_max_backlog={NETDEV_BACKLOG_MIN}"
    return _risk(name, is_risk, _count(facts.netdev_backlog_max), says, remedy, HOST)


def time_wait(facts: Facts, plan: Plan) -> Finding:
    """Kernel docs, networking/ip-sysctl "tcp_max_tw_buckets": sockets in TIME_WAIT beyond it are destroyed at once."""
    name = "net.ipv4.tcp_max_tw_buckets"
    says = (
        f"Who closes first keeps a socket in TIME_WAIT for {TIME_WAIT_S} s. A drain lets clients close first; when they"
        " do not, or this machine's own clients do, late packets of destroyed ones may reset a new connection."
    )
    if facts.tw_buckets_max is None:
        return _unknown(name, says)
    remedy = f"sysctl -w net.ipv4.tcp_max_tw_buckets={plan.wanted}"
    at, value = facts.tw_buckets_max, _count(facts.tw_buckets_max)
    return _risk(name, at < plan.wanted, value, says, remedy, NETWORK, at)


def ports(facts: Facts, plan: Plan) -> Finding:
    """Kernel docs, networking/ip-sysctl "ip_local_port_range", "tcp_tw_reuse" (0 off, 1 on, 2 loopback only).

    Only a side that connects uses them: a balancer or load client with one address has one connection a port to one
    address and port of the gateway. With tcp_tw_reuse 0, ports in TIME_WAIT are missing too.
    """
    name = "net.ipv4.ip_local_port_range"
    says = (
        "Does not bound the gateway, but whoever connects to it: with these values, one address of a balancer or load"
        " client reaches one address and port of the gateway that many times."
    )
    if facts.ports is None:
        return _unknown(name, says)
    low, high = facts.ports
    count = max(0, high - low + 1)
    reuse = "unknown" if facts.tw_reuse is None else str(facts.tw_reuse)
    remedy = 'sysctl -w net.ipv4.ip_local_port_range="1024 65535" there, or more addresses on either side'
    value = f"{low} {high}, tcp_tw_reuse {reuse}"
    return _risk(name, count < plan.wanted, value, says, remedy, NETWORK, count)


def maps(facts: Facts, _: Plan) -> Finding:
    """Kernel docs, admin-guide/sysctl/vm "max_map_count": beyond it mmap fails. Idle connections have no map."""
    says = "Each large table and slab is a map of its own (core/pages.pxd); without one, newcomers are refused."
    if facts.maps_max is None:
        return _unknown("vm.max_map_count", says)
    is_risk = facts.maps_max < MAPS_MIN
    return _risk(
        "vm.max_map_count", is_risk, _count(facts.maps_max), says, f"sysctl -w vm.max_map_count={MAPS_MIN}", HOST
    )


def overcommit(facts: Facts, plan: Plan) -> Finding:
    """Kernel docs, mm/overcommit-accounting: with 2, what is mapped counts, and not what is used."""
    says = (
        "With 2 the kernel refuses memory that is mapped and not used: tables are mapped generously, and forks count."
    )
    if facts.overcommit is None:
        return _unknown("vm.overcommit_memory", says)
    needed = NODE_BYTES + plan.workers * WORKER_BYTES + plan.wanted * USER_BYTES
    is_risk = facts.overcommit == 2 and (facts.commit_free is None or facts.commit_free < 2 * needed)
    remedy = "sysctl -w vm.overcommit_memory=0, or a higher vm.overcommit_ratio"
    return _risk("vm.overcommit_memory", is_risk, str(facts.overcommit), says, remedy, HOST)


def clock(facts: Facts, _: Plan) -> Finding:
    """Kernel docs, timers/timekeeping; vdso(7): other sources need a system call for each reading of the clock."""
    says = "Sources other than the processor's own counter make each reading of the clock a system call."
    if facts.clock_source is None:
        return _unknown("clock source", says)
    is_risk = facts.clock_source not in FAST_CLOCKS
    remedy = "boot with clocksource=tsc, if the machine's counters agree"
    return _risk("clock source", is_risk, facts.clock_source, says, remedy, HOST)


def huge_pages(facts: Facts, _: Plan) -> Finding:
    """Kernel docs, admin-guide/mm/transhuge: with `always`, touching one page of a mapping may take 2 MiB."""
    says = "With `always` a table that is mapped generously and little used takes memory it was measured not to take."
    if facts.huge_pages is None:
        return _unknown("transparent huge pages", says)
    remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
    return _risk("transparent huge pages", facts.huge_pages == "always", facts.huge_pages, says, remedy, HOST)


def core_dumps(facts: Facts, _: Plan) -> Finding:
    """core(5), getrlimit(2) RLIMIT_CORE: with 0 a process that aborts leaves no dump."""
    says = "A worker that breaks an invariant aborts and is started again; without a dump only its log says why."
    if facts.core_bytes is None:
        return _unknown("core dumps", says)
    value = "no bound" if facts.core_bytes >= UNLIMITED else f"{facts.core_bytes:,} bytes"
    remedy = "LimitCORE=infinity, ulimit -Hc unlimited, or docker --ulimit core=-1"
    return _risk("core dumps", facts.core_bytes == 0, value, says, remedy, RUNTIME)


# ------------------------------------------------------------------------------------- what does not fit together


def grace(facts: Facts, plan: Plan) -> Finding:
    """Kubernetes docs, "Pod termination" (terminationGracePeriodSeconds, 30 s); docker stop (10 s); systemd.kill(5)."""
    needed = math.ceil(plan.config.gateway.drain_ms / 1000) + STOP_EXTRA_S
    given = KUBERNETES_GRACE_S if plan.grace_s is None and facts.in_kubernetes else plan.grace_s
    says = (
        f"Stopping takes up to {needed} s (gateway.drain_ms and {STOP_EXTRA_S} s more); whoever kills earlier cuts"
        f" clients off without FIN. Defaults: Kubernetes {KUBERNETES_GRACE_S} s, docker stop {DOCKER_GRACE_S} s."
    )
    if given is None:
        return Finding("grace period", UNKNOWN, "not told (--grace)", says)
    remedy = f"terminationGracePeriodSeconds: {needed}, docker stop --time {needed}, TimeoutStopSec={needed}"
    return _risk("grace period", given < needed, f"{given} s", says, remedy, "the container runtime or service manager")


def heartbeat(_: Facts, plan: Plan) -> Finding:
    """Manuals of nginx ("proxy_read_timeout") and AWS ALB ("connection idle timeout"): 60 s by default, both."""
    ping_ms = plan.config.gateway.ping_ms
    says = f"Balancers end connections that are silent for {BALANCER_IDLE_MS // 1000} s unless told otherwise."
    remedy = "gateway.ping_ms = 30000, or a longer idle time-out in every balancer on the way"
    return _risk("gateway.ping_ms", ping_ms >= BALANCER_IDLE_MS, f"{ping_ms:,} ms", says, remedy, CONFIGURATION)


def handshakes(_: Facts, plan: Plan) -> Finding:
    """core/accept.pyx: whoever comes beyond handshakes_max is accepted and closed at once."""
    gateway = plan.config.gateway
    says = (
        "What waits in the queues of both ports is accepted in one go; beyond the bound it is closed, and comes back."
        f" After a restart {plan.wanted:,} clients need {math.ceil(plan.each / gateway.handshakes_max)} rounds."
    )
    is_risk = gateway.handshakes_max < min(gateway.backlog, plan.each)
    remedy = f"gateway.handshakes_max = {min(gateway.backlog, plan.each)}, or a shorter gateway.backlog"
    return _risk("gateway.handshakes_max", is_risk, f"{gateway.handshakes_max:,}", says, remedy, CONFIGURATION)


def log_disk(_: Facts, plan: Plan) -> Finding:
    """statvfs(3), access(2); docs/operations.md, "The embedded log": the segments, one more, and state.sqlite."""
    log, found, name = plan.config.log, plan.log, "log.directory"
    says = (
        "The embedded log takes up to log.bytes_max, and a segment more while it sifts. On a disk that is full before,"
        " publishes at `logged` are refused."
    )
    if log.backend != "embedded":
        return Finding(name, OK, f"not used: log.backend = {log.backend}", says)
    if found.is_writable is False:
        says = "The router cannot use this folder, and the node does not start."
        return Finding(name, FAILS, log.directory, says, 0, f"a folder that uid {os.geteuid()} may write to", OWNER)
    if found.disk_free is None:
        return _unknown(name, says)
    most, room = log.bytes_max, found.disk_free + found.disk_used
    needed = most + segment_bytes_of(most)
    value = f"{_mib(room)} free or the log's already, log.bytes_max {_mib(most)}"
    remedy = f"log.bytes_max = {max(room * 15 // 16, LOG_BYTES_MIN)}, so that old messages go instead, or a larger disk"
    return _risk(name, room < needed, value, says, remedy, CONFIGURATION)


def log_in_redis(_: Facts, plan: Plan) -> Finding:
    """Redis docs, "Redis persistence" (appendonly) and "Key eviction" (maxmemory-policy), from its INFO."""
    log, found, name = plan.config.log, plan.log, "Redis of the log"
    says = "What is answered at `logged` is Redis' to keep: it needs appendonly yes and maxmemory-policy noeviction."
    if log.backend != "redis":
        return Finding(name, OK, f"not used: log.backend = {log.backend}", says)
    if found.redis_error:
        return Finding(name, UNKNOWN, f"cannot be asked: {found.redis_error}", says)
    if found.redis_concerns is None:
        return Finding(name, UNKNOWN, "does not tell its settings", says)
    value = "; ".join(found.redis_concerns) or "keeps what it is given"
    return _risk(name, bool(found.redis_concerns), value, says, "set them in its configuration file", OWNER)


def logs_of_regions(_: Facts, plan: Plan) -> Finding:
    """As `log_in_redis`, of the logs of other regions, where what is answered at `replicated` is as well."""
    name, regions = "Redis of other regions", plan.log.regions
    says = "Routers of each region reach those of all others, which are to keep what they are given as the own one is."
    if not regions:
        return Finding(name, OK, "not used: there is no log.regions", says)
    lacks = {region: _lacks(one) for region, one in regions.items()}
    value = "; ".join(f"{region}: {what}" for region, what in lacks.items() if what)
    if value and not any(one.redis_concerns for one in regions.values()):
        return Finding(name, UNKNOWN, value, says)
    value = value or f"{', '.join(regions)}: keep what they are given"
    return _risk(name, any(lacks.values()), value, says, "set them in its configuration file", OWNER)


def _lacks(found: LogFacts) -> str:
    if found.redis_error:
        return f"cannot be asked: {found.redis_error}"
    return "does not tell its settings" if found.redis_concerns is None else "; ".join(found.redis_concerns)


def directory(_: Facts, plan: Plan) -> Finding:
    """Whether etcd answers with these settings."""
    name = "directory"
    says = "A node that cannot read its directory is not ready, and its router leads nothing."
    if plan.directory_error is None:
        return Finding(name, OK, "not used: directory.endpoints is not set", says)
    value = f"cannot be read: {plan.directory_error}" if plan.directory_error else "answers"
    return _risk(name, bool(plan.directory_error), value, says, "start etcd, or correct [directory]", OWNER)


CHECKS: tuple[Check, ...] = (
    configured,
    files_of_a_process,
    files_of_a_process_ceiling,
    files_of_the_machine,
    epoll_watches,
    memory,
    processors,
    conntrack,
    tcp_memory,
    tcp_buffers,
    accept_queue,
    syn_queue,
    packet_queue,
    time_wait,
    ports,
    maps,
    overcommit,
    clock,
    huge_pages,
    core_dumps,
    grace,
    heartbeat,
    handshakes,
    log_disk,
    log_in_redis,
    logs_of_regions,
    directory,
)


# --------------------------------------------------------------------------------------------------------- the report


def as_json(findings: list[Finding], plan: Plan) -> dict[str, Any]:
    """The report for machines; `holds` is whether the wanted number can be reached."""
    return {
        "wanted": plan.wanted,
        "workers": plan.workers,
        "reachable": reachable(findings),
        "holds": holds(findings),
        "findings": [asdict(one) for one in findings],
    }


def holds(findings: list[Finding]) -> bool:
    """Whether nothing that is known keeps the wanted number from being reached."""
    return all(one.status != FAILS for one in findings)


def as_text(findings: list[Finding], plan: Plan) -> str:
    """The report for people: a line for what is well, more for what is not."""
    return "\n".join(_lines(findings, plan))


def _lines(findings: list[Finding], plan: Plan) -> Iterator[str]:
    yield f"{plan.wanted:,} connections on {plan.workers} workers"
    for one in findings:
        at = "" if one.breaks_at is None else f", good for {one.breaks_at:,} connections"
        yield f"{one.status:<8} {one.name}: {one.value}{at}"
        if one.status != OK:
            yield from textwrap.wrap(one.says, _WIDTH, initial_indent=" " * 9, subsequent_indent=" " * 9)
        if one.remedy:
            yield f"         -> {one.remedy}"
            yield f"            needs: {one.needs}"
    most = reachable(findings)
    verdict = "can be held" if holds(findings) else f"cannot be held; {most:,} can"
    yield f"{plan.wanted:,} connections {verdict}"


def _all(files: int, plan: Plan) -> int:
    """Connections of all workers when each may have this many descriptors."""
    return plan.workers * max(0, files - FDS_BESIDE_CONNECTIONS)


def _count(number: int) -> str:
    return "no bound" if number >= UNLIMITED else f"{number:,}"


def _mib(size: int) -> str:
    return f"{size / 1_048_576:,.0f} MiB"


def _three(values: tuple[int, int, int]) -> str:
    return " ".join(str(value) for value in values)
