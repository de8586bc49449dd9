"""What is read of a machine, from faked files and from the real ones; what cannot be read is None, never an error."""

from collections.abc import Mapping

import pytest

from gateway import machine
from gateway.machine import UNLIMITED, Facts

SYSCTL = {
    "fs/nr_open": "1048576\n",
    "fs/file-max": "9223372036854775807\n",
    "fs/file-nr": "1655\t0\t2466170\n",
    "fs/epoll/max_user_watches": "5491511\n",
    "net/core/somaxconn": "4096\n",
    "net/core/netdev_max_backlog": "1000\n",
    "net/ipv4/tcp_max_syn_backlog": "2048\n",
    "net/ipv4/tcp_syncookies": "1\n",
    "net/ipv4/tcp_tw_reuse": "2\n",
    "net/ipv4/tcp_max_tw_buckets": "131072\n",
    "net/ipv4/ip_local_port_range": "32768\t60999\n",
    "net/ipv4/tcp_mem": "287898\t383867\t575796\n",
    "net/ipv4/tcp_rmem": "4096\t131072\t33554432\n",
    "net/ipv4/tcp_wmem": "4096\t16384\t4194304\n",
    "net/netfilter/nf_conntrack_max": "262144\n",
    "net/netfilter/nf_conntrack_count": "7\n",
    "vm/max_map_count": "65530\n",
    "vm/overcommit_memory": "2\n",
}
FILES = {f"/proc/sys/{name}": text for name, text in SYSCTL.items()} | {
    "/proc/meminfo": "MemTotal: 4000 kB\nMemAvailable:   2000 kB\nCommitLimit: 900 kB\nCommitted_AS: 400 kB\n",
    "/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
    "/sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
}
UNREADABLE = Facts(files_hard=20_000, core_bytes=0, processors=4, page_bytes=4096)


def read(files: Mapping[str, str]) -> Facts:
    return machine.facts(files.get, files_hard=20_000, core_bytes=0, processors=4, page_bytes=4096)


def test_all_facts_are_read() -> None:
    assert read(FILES) == Facts(
        files_hard=20_000,
        nr_open=1_048_576,
        file_max=9_223_372_036_854_775_807,
        files_open=1655,
        epoll_watches_max=5_491_511,
        memory_free=2000 * 1024,
        memory_from="the machine",
        processors=4,
        somaxconn=4096,
        syn_backlog_max=2048,
        syncookies=1,
        netdev_backlog_max=1000,
        tw_reuse=2,
        tw_buckets_max=131_072,
        ports=(32_768, 60_999),
        tcp_mem_pages=(287_898, 383_867, 575_796),
        tcp_rmem=(4096, 131_072, 33_554_432),
        tcp_wmem=(4096, 16_384, 4_194_304),
        page_bytes=4096,
        has_conntrack=True,
        conntrack_max=262_144,
        conntrack_count=7,
        maps_max=65_530,
        overcommit=2,
        commit_free=500 * 1024,
        clock_source="tsc",
        huge_pages="madvise",
        core_bytes=0,
        in_kubernetes=False,
    )


def test_without_files_all_is_unknown() -> None:
    assert read({}) == UNREADABLE


@pytest.mark.parametrize("text", ["", "\n", "nonsense", "12x 3", "1 x 3", ":", "0::", "max max"])
def test_nonsense_in_every_file_is_no_error(text: str) -> None:
    everywhere = machine.facts(lambda _: text, files_hard=1, core_bytes=0, processors=1, page_bytes=4096)
    assert everywhere.ports is None
    assert everywhere.tcp_mem_pages is None
    assert everywhere.processors == 1


GROUPS = {
    "/proc/self/cgroup": "0::/pods/one\n",
    "/sys/fs/cgroup/pods/one/memory.max": "max\n",
    "/sys/fs/cgroup/pods/one/memory.current": "1000\n",
    "/sys/fs/cgroup/pods/memory.max": "600000\n",
    "/sys/fs/cgroup/pods/memory.current": "500000\n",
    "/sys/fs/cgroup/pods/memory.stat": "anon 1\ninactive_file 50000\n",
    "/sys/fs/cgroup/pods/one/cpu.max": "150000 100000\n",
    "/sys/fs/cgroup/pods/cpu.max": "max 100000\n",
}


def test_the_tightest_cgroup_bounds_memory_and_processors() -> None:
    facts = read({**FILES, **GROUPS})
    assert (facts.memory_free, facts.memory_from) == (150_000, "its cgroup")
    assert facts.processors == 1.5


def test_the_cgroups_of_the_first_version_bound_too() -> None:
    facts = read(
        FILES
        | {
            "/proc/self/cgroup": "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n",
            # As seen inside the container, where its own group is the root.
            "/sys/fs/cgroup/memory/memory.limit_in_bytes": "700000\n",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes": "650000\n",
            "/sys/fs/cgroup/memory/memory.stat": "total_inactive_file 1000\n",
            "/sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": "50000\n",
            "/sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": "100000\n",
            "/sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "/sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        }
    )
    assert (facts.memory_free, facts.memory_from) == (51_000, "its cgroup")
    assert facts.processors == 0.5


def test_a_cgroup_without_a_bound_leaves_what_the_machine_has() -> None:
    unbounded = {
        "/proc/self/cgroup": "4:memory:/\n",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": "650000\n",
    }
    assert read(FILES | unbounded).memory_from == "the machine"


def test_this_machine() -> None:
    facts = machine.here()
    assert facts.files_hard is not None
    assert 0 < facts.files_hard <= UNLIMITED
    assert facts.page_bytes >= 4096
    assert facts.memory_free is None or facts.memory_free > 1_000_000
    assert facts.processors is not None
    assert facts.processors > 0


def test_a_file_that_is_not_there_reads_as_none() -> None:
    assert machine.read_file("/proc/sys/no/such/file") is None
    assert machine.read_file("/proc/self/cgroup") is not None
