"""What this machine allows, read from /proc and /sys once: the facts that `gateway.doctor` judges.

Anything may be unreadable (a container shows part of /proc/sys, another system none of it); such a fact is None.
"""

import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

UNLIMITED = 1 << 63
# What kernels say for "no limit" in cgroup v1: the largest multiple of a page.
_UNLIMITED_FROM = 1 << 60
_KIB = 1024

Read = Callable[[str], str | None]
"""The text of a file, or None when it cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One machine, as far as this process may use it. None: unknown."""

    files_hard: int | None = None
    """RLIMIT_NOFILE, hard: the node raises its soft one to it."""
    nr_open: int | None = None
    file_max: int | None = None
    files_open: int | None = None
    """Open files of the whole machine."""
    epoll_watches_max: int | None = None
    memory_free: int | None = None
    """Bytes that can be had without swapping, of the machine and every cgroup around."""
    memory_from: str = "the machine"
    """What bounds that."""
    processors: float | None = None
    """As far as affinity and cgroups allow."""
    somaxconn: int | None = None
    syn_backlog_max: int | None = None
    syncookies: int | None = None
    netdev_backlog_max: int | None = None
    tw_reuse: int | None = None
    tw_buckets_max: int | None = None
    ports: tuple[int, int] | None = None
    tcp_mem_pages: tuple[int, int, int] | None = None
    tcp_rmem: tuple[int, int, int] | None = None
    tcp_wmem: tuple[int, int, int] | None = None
    page_bytes: int = 4096
    has_conntrack: bool = False
    conntrack_max: int | None = None
    conntrack_count: int | None = None
    maps_max: int | None = None
    overcommit: int | None = None
    commit_free: int | None = None
    clock_source: str | None = None
    huge_pages: str | None = None
    core_bytes: int | None = None
    """RLIMIT_CORE, hard."""
    in_kubernetes: bool = False


def read_file(path: str) -> str | None:
    """The real reader."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return None


def here() -> Facts:
    """What can be read of the machine that this process runs on."""
    return facts(
        read_file,
        files_hard=_limit(resource.RLIMIT_NOFILE),
        core_bytes=_limit(resource.RLIMIT_CORE),
        processors=len(os.sched_getaffinity(0)),
        page_bytes=resource.getpagesize(),
    )


def facts(read: Read, *, files_hard: int, core_bytes: int, processors: int, page_bytes: int) -> Facts:
    """All that can be read, with what a process knows of its own limits."""

    def sysctl(name: str) -> int | None:
        return _number(read(f"/proc/sys/{name}"))

    memory = _named(read("/proc/meminfo"))
    free, source = _memory_free(read, memory)
    opened = _numbers(read("/proc/sys/fs/file-nr"), 3)
    conntrack = [sysctl(f"net/netfilter/nf_conntrack_{name}") for name in ("max", "count")]
    commit = (memory.get("CommitLimit"), memory.get("Committed_AS"))
    return Facts(
        files_hard=files_hard,
        nr_open=sysctl("fs/nr_open"),
        file_max=sysctl("fs/file-max"),
        files_open=opened[0] if opened else None,
        epoll_watches_max=sysctl("fs/epoll/max_user_watches"),
        memory_free=free,
        memory_from=source,
        processors=_processors(read, processors),
        somaxconn=sysctl("net/core/somaxconn"),
        syn_backlog_max=sysctl("net/ipv4/tcp_max_syn_backlog"),
        syncookies=sysctl("net/ipv4/tcp_syncookies"),
        netdev_backlog_max=sysctl("net/core/netdev_max_backlog"),
        tw_reuse=sysctl("net/ipv4/tcp_tw_reuse"),
        tw_buckets_max=sysctl("net/ipv4/tcp_max_tw_buckets"),
        ports=_pair(_numbers(read("/proc/sys/net/ipv4/ip_local_port_range"), 2)),
        tcp_mem_pages=_triple(_numbers(read("/proc/sys/net/ipv4/tcp_mem"), 3)),
        tcp_rmem=_triple(_numbers(read("/proc/sys/net/ipv4/tcp_rmem"), 3)),
        tcp_wmem=_triple(_numbers(read("/proc/sys/net/ipv4/tcp_wmem"), 3)),
        page_bytes=page_bytes,
        has_conntrack=any(value is not None for value in conntrack),
        conntrack_max=conntrack[0],
        conntrack_count=conntrack[1],
        maps_max=sysctl("vm/max_map_count"),
        overcommit=sysctl("vm/overcommit_memory"),
        commit_free=None if None in commit else max(0, (commit[0] or 0) - (commit[1] or 0)) * _KIB,
        clock_source=_word(read("/sys/devices/system/clocksource/clocksource0/current_clocksource")),
        huge_pages=_chosen(read("/sys/kernel/mm/transparent_hugepage/enabled")),
        core_bytes=core_bytes,
        in_kubernetes=read("/var/run/secrets/kubernetes.io/serviceaccount/namespace") is not None,
    )


def _limit(which: int) -> int:
    hard = resource.getrlimit(which)[1]
    return UNLIMITED if hard == resource.RLIM_INFINITY else hard


# ------------------------------------------------------------------------------------------------- memory, processors


def _memory_free(read: Read, memory: dict[str, int]) -> tuple[int | None, str]:
    """The least that the machine and the cgroups leave (kernel docs: admin-guide/cgroup-v2 "memory.max", cgroup-v1).

    What a cgroup has in page cache that is not in use counts as free, as in MemAvailable.
    """
    available = memory.get("MemAvailable")
    rooms = [] if available is None else [(available * _KIB, "the machine")]
    for folder, limit, usage, cache in (
        *((path, "memory.max", "memory.current", "inactive_file") for path in _cgroups(read, "")),
        *((path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
          for path in _cgroups(read, "memory")),
    ):  # fmt: skip
        bytes_max, used = _number(read(f"{folder}/{limit}")), _number(read(f"{folder}/{usage}"))
        if bytes_max is not None and used is not None and bytes_max < _UNLIMITED_FROM:
            unused = _named(read(f"{folder}/memory.stat")).get(cache, 0)
            rooms.append((max(0, bytes_max - used + unused), "its cgroup"))
    return min(rooms) if rooms else (None, "the machine")


def _processors(read: Read, affinity: int) -> float:
    """Affinity, and what the cgroups' quotas leave of it (kernel docs: admin-guide/cgroup-v2 "cpu.max")."""
    allowed = [float(affinity)]
    for folder in _cgroups(read, ""):
        quota = (read(f"{folder}/cpu.max") or "").split()
        if len(quota) == 2 and quota[0].isdigit():
            allowed.append(int(quota[0]) / int(quota[1]))
    for folder in _cgroups(read, "cpu"):
        quota_us, period_us = (_number(read(f"{folder}/cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if quota_us is not None and quota_us > 0 and period_us:
            allowed.append(quota_us / period_us)
    return min(allowed)


def _cgroups(read: Read, controller: str) -> Iterator[str]:
    """The folders of this process's cgroup and those around it; `controller` empty: the second version."""
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller not in controllers.split(","):
            continue
        root = f"/sys/fs/cgroup/{controller}".rstrip("/")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        # Seen from inside a container its own group may be mounted as the root.
        for count in range(len(parts), -1, -1):
            yield "/".join([root, *parts[:count]])


# --------------------------------------------------------------------------------------------------------- small help


def _numbers(text: str | None, count: int) -> tuple[int, ...] | None:
    words = (text or "").split()
    if len(words) < count or not all(word.lstrip("-").isdigit() for word in words[:count]):
        return None
    return tuple(int(word) for word in words[:count])


def _number(text: str | None) -> int | None:
    if _word(text) == "max":
        return UNLIMITED
    found = _numbers(text, 1)
    return found[0] if found else None


def _pair(numbers: tuple[int, ...] | None) -> tuple[int, int] | None:
    return None if numbers is None else (numbers[0], numbers[1])


def _triple(numbers: tuple[int, ...] | None) -> tuple[int, int, int] | None:
    return None if numbers is None else (numbers[0], numbers[1], numbers[2])


def _word(text: str | None) -> str | None:
    words = (text or "").split()
    return words[0] if words else None


def _chosen(text: str | None) -> str | None:
    """`always [madvise] never` is madvise."""
    return next((word.strip("[]") for word in (text or "").split() if word.startswith("[")), None)


def _named(text: str | None) -> dict[str, int]:
    """`Name: 12 kB` or `name 12`, one a line."""
    found = {}
    for line in (text or "").splitlines():
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdigit():
            found[words[0]] = int(words[1])
    return found
