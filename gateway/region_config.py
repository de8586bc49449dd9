"""What the configuration says about regions: whose logs there are, where shards are led, and what does not fit.

`log.regions` is one text, so that it can also stand in the environment: `us=redis://a:6379/0 ap=redis://b:6379/0`. In
the file it may be a table as well, `[log.regions]`.
"""

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from router.log import redis_url
from router.shards.placement import BY_PUBLISHERS, SPREAD

if TYPE_CHECKING:
    from gateway.config import Config

REGION = "[a-z][a-z0-9_-]{0,30}"
REGION_FORM = f"^({REGION})?$"
LOGS_FORM = rf"^({REGION}=\S+( +{REGION}=\S+)*)?$"
PLACEMENT_FORM = rf"^{REGION}(,{REGION})*$"
ADVERTISE_FORM = r"^((wss?|tcp|tls)://[^\s,\x00]+(,(wss?|tcp|tls)://[^\s,\x00]+)*)?$"
Advertise = Annotated[
    str,
    Meta(
        pattern=ADVERTISE_FORM,
        description="With regions: URLs at which clients of an evacuated region are told to come here, such as"
        " wss://eu.example.com/ws,tls://eu.example.com:7400. Empty: they choose by themselves.",
    ),
]
Logs = Annotated[
    str,
    Meta(
        pattern=LOGS_FORM,
        description="Logs of the other regions, whose messages are brought into this one's: region=URL with spaces"
        " between, or a table [log.regions]. Single Redis, or Sentinel. Empty: there is one log.",
    ),
]
FORMS = {
    "directory.region": "a small letter, then up to 30 of small letters, digits, - and _",
    "directory.placement": "spread, publishers, or names of regions with commas and no spaces between",
    "log.regions": "region=URL of each other region's Redis with spaces between, or a table of them",
    "gateway.advertise": "URLs that begin with wss://, ws://, tls:// or tcp://, with commas and no spaces between",
}


def as_text(table: dict[str, object]) -> str:
    """The setting of a table that stands in the file."""
    return " ".join(f"{region}={url}" for region, url in table.items())


def logs_of(text: str) -> dict[str, str]:
    """URLs of the other regions' logs, by region."""
    return dict(one.split("=", 1) for one in text.split())


def targets_of(advertise: str) -> tuple[str, str]:
    """Where a client may go: the first URL for WebSocket, and the first for TCP; empty: there is none."""
    urls = [one for one in advertise.split(",") if one]
    websocket = next((one for one in urls if one.startswith("ws")), "")
    return websocket, next((one for one in urls if not one.startswith("ws")), "")


def misfits(config: "Config") -> Iterator[str]:
    """What is wrong although each value by itself is allowed."""
    yield from _placement(config)
    if config.log.regions:
        yield from _logs(config)
    for spec in config.namespaces:
        if spec.ack == "replicated" and not config.log.regions:
            yield (
                f'namespaces.{spec.name}.ack = "replicated" without log.regions: there is no other region to have it.'
                ' Name the other regions\' logs there, or set ack = "logged"'
            )
        elif config.log.regions and spec.domain != "global" and not spec.history_messages:
            yield (
                f"namespaces.{spec.name}.history_messages = 0 with log.regions: other regions get what is in the log,"
                " and nothing of these channels is. Set 1 or more"
            )


def _placement(config: "Config") -> Iterator[str]:
    section = config.directory
    if (section.region or section.placement != SPREAD) and not section.endpoints:
        yield (
            f'directory.region = "{section.region}", directory.placement = "{section.placement}" without'
            " directory.endpoints: a node that is alone is in no region. Set directory.endpoints, or leave them out"
        )
    elif section.placement != SPREAD and not section.region:
        yield (
            f'directory.placement = "{section.placement}" without directory.region: say on each node in which region'
            " it is"
        )
    named = section.placement.split(",")
    if len(named) > 1 and {SPREAD, BY_PUBLISHERS} & set(named):
        yield (
            f'directory.placement = "{section.placement}": {SPREAD} and {BY_PUBLISHERS} stand alone, and are no names'
            " of regions"
        )
    elif section.placement not in (SPREAD, BY_PUBLISHERS):
        yield from _order(named, {section.region, *logs_of(config.log.regions)}, is_known=bool(config.log.regions))


def _order(named: list[str], regions: set[str], *, is_known: bool) -> Iterator[str]:
    """Regions in order; `is_known`: which there are."""
    for name in sorted({one for one in named if named.count(one) > 1}):
        yield f"directory.placement names {name} twice: leave one out"
    for name in named:
        if is_known and name not in regions:
            near = difflib.get_close_matches(name, {*regions, SPREAD, BY_PUBLISHERS}, 1)
            yield (
                f"directory.placement names {name}, which is none of {', '.join(sorted(regions))}"
                + (f"; did you mean {near[0]}?" if near else " (directory.region and log.regions)")
            )


def _logs(config: "Config") -> Iterator[str]:
    region, logs = config.directory.region, logs_of(config.log.regions)
    if not config.directory.endpoints or not region:
        yield (
            "log.regions without directory.endpoints and directory.region: regions find each other in the directory."
            " Set both, on every node"
        )
    if config.log.backend != "redis":
        yield f"log.backend = {config.log.backend} with log.regions: each region has a log in Redis of its own"
    if region in logs:
        yield (
            f"log.regions names {region}, where this node is (directory.region): its own log is log.redis_url, and"
            " log.regions those of the others"
        )
    if len(logs) < len(config.log.regions.split()):
        yield "log.regions names a region twice: leave one out"
    for name in {*logs} & {SPREAD, BY_PUBLISHERS}:
        yield f"log.regions names {name}, which is a word of directory.placement: give the region another name"
    for name, url in logs.items():
        yield from _log(name, url, config.log.redis_url)


def _log(region: str, url: str, own: str) -> Iterator[str]:
    if url == own:
        yield f"log.regions names this region's own log (log.redis_url) as that of {region}: regions have one each"
    try:
        kind = redis_url.parse(url).kind
    except ValueError as error:
        yield f"log.regions, {region}: {error}"
        return
    if kind == "cluster":
        yield (
            f"log.regions, {region}: Redis Cluster cannot be followed from another region. Take a single Redis, or one"
            " with Sentinel"
        )
