"""The commands about regions: which there are, sending everything away from one, and having it serve again."""

import datetime
import getpass
import json
import socket
import time
from typing import Any

import click

from gateway.cli_admin import admin_options, ask, of_group, table

POLL_S = 0.5
FOLLOW_DEADLINE_S = 300.0
HEAD = ("REGION", "ROUTERS", "GATEWAYS", "LEADS", "WANTED", "FOLLOWS", "LAG", "BREAKER", "STATE")


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@admin_options
@click.pass_context
def region(context: click.Context, as_json: bool, url: str, token: str | None) -> None:
    """Show the regions: their nodes, what they lead and follow, how far they are, and which are evacuated.

    LAG is what a region has not confirmed of what others lead, and BREAKER is open where it counts as away. Any node of
    the cluster can be asked; what routers tell is written down every five seconds.
    """
    context.obj = {"url": url, "token": token}
    if context.invoked_subcommand is None:
        found = _regions(url, token)
        text = said(found["regions"]) or "no regions: directory.region is not set"
        click.echo(json.dumps(found) if as_json else text)


@region.command()
@click.argument("name")
@click.option("--pace", type=click.IntRange(0), default=0, help="Clients sent away a second. 0: as in a drain.")
@click.option("--wait/--no-wait", "follow", default=True, help="Until it leads no shard.  [default: wait]")
@admin_options
@click.pass_context
def evacuate(context: click.Context, name: str, pace: int, follow: bool, url: str, token: str | None) -> None:
    """Have region NAME give its shards to other regions, and send its clients there; it follows them on."""
    url, token = of_group(context, url, token)
    _order(url, token, {"region": name, "on": True, "pace": pace, "by": _who()})
    leads, _ = _now(url, token, name)
    end = time.monotonic() + FOLLOW_DEADLINE_S
    was_seen = False
    while follow and leads:
        if time.monotonic() >= end:
            raise click.ClickException(
                f"{name} still leads {leads} shards after {FOLLOW_DEADLINE_S:g} s; it is written down, and may come yet"
            )
        time.sleep(POLL_S)
        leads, is_evacuated = _now(url, token, name)
        if was_seen and not is_evacuated:
            raise click.ClickException(f"{name} was restored meanwhile: it leads {leads} shards, and takes others")
        was_seen = was_seen or is_evacuated  # it takes a moment until the node that is asked sees it
    click.echo(f"{name}: evacuated, leads {leads}; its clients go at their pace")


@region.command()
@click.argument("name")
@admin_options
@click.pass_context
def restore(context: click.Context, name: str, url: str, token: str | None) -> None:
    """Let region NAME have clients and shards again."""
    url, token = of_group(context, url, token)
    _order(url, token, {"region": name, "on": False, "by": _who()})
    click.echo(f"{name}: takes clients and shards")


def said(regions: list[dict[str, Any]]) -> str:
    """The regions as a table; empty: there are none."""
    rows = [
        (
            one["name"],
            *(str(one[key]) for key in ("routers", "gateways", "leads", "wanted")),
            f"{one['follows']} ({one['behind']} behind)" if one["behind"] else str(one["follows"]),
            _lag(one),
            _breaker(one),
            state(one),
        )
        for one in regions
    ]
    return table([HEAD, *rows]) if rows else ""


def _lag(one: dict[str, Any]) -> str:
    if one["lag_entries"] is None:
        return "-"
    return f"{one['lag_entries']} ({one['lag_seconds']:.1f} s)" if one["lag_entries"] else "0"


def _breaker(one: dict[str, Any]) -> str:
    if not one["breakers"]:
        return "-"
    opened = one["breakers_open"]
    return f"open at {opened} of {one['breakers']}" if 0 < opened < one["breakers"] else "open" if opened else "closed"


def state(one: dict[str, Any]) -> str:
    if not one["evacuated"]:
        return "serves"
    if one["since_ms"] is None:
        return "evacuated"
    since = datetime.datetime.fromtimestamp(one["since_ms"] / 1000, datetime.UTC)
    return f"evacuated since {since:%Y-%m-%d %H:%M:%S} UTC by {one['by'] or 'nobody known'}"


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):  # a container's user has no name
        return socket.gethostname()


def _regions(url: str, token: str | None) -> dict[str, Any]:
    return ask("GET", f"{url.rstrip('/')}/api/regions", token=token, purpose="list regions")


def _order(url: str, token: str | None, body: dict[str, object]) -> None:
    ask("POST", f"{url.rstrip('/')}/api/regions/evacuate", token=token, body=body, purpose="evacuate a region")


def _now(url: str, token: str | None, name: str) -> tuple[int, bool]:
    """How many shards a region leads, and whether it is evacuated."""
    found = [one for one in _regions(url, token)["regions"] if one["name"] == name]
    return sum(int(one["leads"]) for one in found), any(one["evacuated"] for one in found)
