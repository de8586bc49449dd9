"""The report about one suspected leak: what grows, how sure it is, and the sites that grew most, as JSON and as text.

Sites come from the difference of two details of a process (`Detail`): what its ledger, descriptors, threads, tasks,
objects and allocations were when the window began, and what they are now.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

SITES_MAX = 10
_NAME = re.compile(r"growth-\d+-[\w.-]+\.(json|txt)")


@dataclass(frozen=True)
class Detail:
    """What a process held at one time, by name, and the allocations that grew since it was marked."""

    time_s: float
    counts: Mapping[str, Counter[str]]
    """By group: `ledger`, `fds`, `threads`, `python threads`, `tasks`, `types`."""
    allocations: list[dict[str, Any]] = field(default_factory=list)


def sites(before: Detail | None, now: Detail) -> list[dict[str, Any]]:
    """What has grown, each with its group, its name, what it was and is; the most in each group, largest first."""
    found: list[dict[str, Any]] = [
        {"group": "allocation", "name": f"{one['line']}  {one['code']}", "grown": one["bytes"], "blocks": one["blocks"]}
        for one in now.allocations[:SITES_MAX]
    ]
    for group, counts in now.counts.items():
        was = before.counts.get(group, Counter()) if before is not None else Counter[str]()
        grown = Counter({name: count - was[name] for name, count in counts.items()})
        found += [
            {"group": group, "name": name, "grown": by, "before": was[name], "now": counts[name]}
            for name, by in grown.most_common(SITES_MAX)
            if by > 0
        ]
    return found


def about(found: list[dict[str, Any]], resource: str, groups: tuple[str, ...]) -> list[dict[str, Any]]:
    """The sites with the resource itself first, then those of `groups` in their order: what tells most about it."""
    place = {group: number for number, group in enumerate(groups)}
    return sorted(found, key=lambda site: (site["name"] != resource, place.get(site["group"], len(groups))))


def as_text(event: Mapping[str, Any]) -> str:
    """The event of a suspected leak for people."""
    unit = "bytes" if event["resource"].endswith("_bytes") else event["resource"]
    lines = [
        f"{event['resource']} of {event['process']} (pid {event['pid']}) on {event['node']} is suspected of leaking",
        "",
        f"  growth      {event['per_day']:+,.1f} {unit} a day ({event['relative_per_day']:+.2%})",
        f"  interval    {event['low']:+,.1f} to {event['high']:+,.1f} at {event['confidence']:.2%} confidence",
        f"  level       {event['level']:,.0f} {unit}",
        f"  seen for    {event['span_s']:,.0f} s, {event['samples']} samples",
        "",
        "What grew most since the window began:" if event["sites"] else "Nothing that can be named grew.",
    ]
    group = ""
    for site in event["sites"]:
        if site["group"] != group:
            group = site["group"]
            lines.append(f"  {group}")
        was = f" ({site['before']:,} -> {site['now']:,})" if "now" in site else f" in {site['blocks']:,} blocks"
        lines.append(f"    {site['grown']:+12,} {site['name']}{was}")
    return "\n".join([*lines, ""])


def write(folder: Path, event: Mapping[str, Any], kept_max: int) -> Path:
    """Writes the event as `growth-<time>-<process>-<resource>.json` and `.txt`; keeps the newest `kept_max` of both.

    Raises:
        OSError: the directory cannot be made or written to.

    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"growth-{int(event['time'] * 1000):015}-{event['process']}-{event['resource']}"
    for suffix, content in (
        (".json", msgspec.json.format(msgspec.json.encode(event))),
        (".txt", as_text(event).encode()),
    ):
        # Whole or not at all: somebody may be reading the directory.
        temporary = folder / f".{stem}{suffix}"
        temporary.write_bytes(content)
        os.replace(temporary, folder / f"{stem}{suffix}")
    for suffix in (".json", ".txt"):
        ours = sorted(path for path in folder.glob(f"growth-*{suffix}") if _NAME.fullmatch(path.name))
        for path in ours[:-kept_max]:
            path.unlink(missing_ok=True)
    return folder / f"{stem}.txt"
