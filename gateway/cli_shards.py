"""The commands about a cluster's shards: who leads them, moving them, taking a router's away; and keys for the bus."""

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import click

from gateway.cli_admin import admin_options, ask, of_group, table
from gateway.cli_regions import state

POLL_S = 0.25
# Shards go one by one, each within a fraction of a second; 256 of them and a directory that was away fit into this.
FOLLOW_DEADLINE_S = 300.0
# What can come no more as things are is given up after so long: another node that is asked may know of a change late.
HOPELESS_S = 5.0
ROUTERS = ("ROUTER", "LEADS", "WANTED", "WEIGHT", "LOAD", "STATE", "BUS")
REGION = "REGION"

_wait = click.option("--wait/--no-wait", "follow", default=True, help="Follow it to its end.  [default: wait]")


def shard_commands(cli: click.Group) -> None:
    """Adds the commands of this module to the program."""
    for command in (shards, cordon, uncordon, keys):
        cli.add_command(command)


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with each shard.")
@admin_options
@click.pass_context
def shards(context: click.Context, as_json: bool, url: str, token: str | None) -> None:
    """Show which router of the cluster leads how many shards, and which shards are on their way.

    Any node of the cluster can be asked.
    """
    context.obj = {"url": url, "token": token}
    if context.invoked_subcommand is None:
        found = _shards(url, token)
        click.echo(json.dumps(found) if as_json else _said(found))


@shards.command()
@click.argument("shard", type=click.IntRange(0))
@click.argument("node", required=False)
@click.option("--auto", is_flag=True, help="Wherever it belongs: ends what an earlier move wanted.")
@_wait
@admin_options
@click.pass_context
def move(
    context: click.Context, shard: int, node: str | None, auto: bool, follow: bool, url: str, token: str | None
) -> None:
    """Move SHARD to the router of NODE, where it stays as long as that lives; or, with --auto, where it belongs."""
    if (node is None) != auto:
        raise click.UsageError("say where to: either NODE, or --auto")
    url, token = of_group(context, url, token)
    body: dict[str, object] = {"shard": shard, "to": node}
    ask("POST", f"{url.rstrip('/')}/api/shards/move", token=token, body=body, purpose="move a shard")

    def is_there(found: dict[str, Any]) -> bool:
        one = found["shards"][shard]
        return one["leader"] is not None and one["leader"] == (node or one["wanted"])

    def hopeless(found: dict[str, Any]) -> str:
        return "" if node is None else _why_not_there(found, shard, node)

    late = f"shard {shard} is not there"
    found = _followed(url, token, is_there, hopeless, late) if follow else _shards(url, token)
    one = found["shards"][shard]
    click.echo(f"shard {shard}: led by {one['leader'] or 'nobody'}, wanted at {one['wanted'] or 'no router'}")


@click.command()
@click.argument("node")
@_wait
@admin_options
def cordon(node: str, follow: bool, url: str, token: str | None) -> None:
    """Have the router of NODE give its shards to others, and get none until `holdfast uncordon`."""
    _cordon(node, True, url, token)
    found = _shards(url, token)
    if follow:
        if not _others(found, node):
            raise click.ClickException(f"{node} is cordoned, but there is no other router to take what it leads")

        def hopeless(found: dict[str, Any]) -> str:
            if not any(one["name"] == node and one["cordoned"] for one in found["routers"]):
                return "somebody has lifted that it is cordoned"
            return "" if _others(found, node) else "there is no other router any more to take them"

        late = f"{node} still leads shards"
        found = _followed(url, token, lambda now: not _leads(now)[node], hopeless, late)
    click.echo(f"{node}: cordoned, leads {_leads(found)[node]}")


@click.command()
@click.argument("node")
@admin_options
def uncordon(node: str, url: str, token: str | None) -> None:
    """Let the router of NODE have its share of shards again."""
    _cordon(node, False, url, token)
    click.echo(f"{node}: takes shards")


@click.command()
def keys() -> None:
    """Make a pair of keys for the bus, as lines for the configuration file of every node of a cluster."""
    import zmq  # here: the other commands start faster without it

    public, secret = (key.decode() for key in zmq.curve_keypair())
    click.echo(f'[bus]\npublic_key = "{public}"\nsecret_key = "{secret}"  # for the nodes alone')


# ---------------------------------------------------------------------------------------------------------------------


def _shards(url: str, token: str | None) -> dict[str, Any]:
    return ask("GET", f"{url.rstrip('/')}/api/shards", token=token, purpose="list shards")


def _cordon(node: str, on: bool, url: str, token: str | None) -> None:
    body: dict[str, object] = {"node": node, "on": on}
    ask("POST", f"{url.rstrip('/')}/api/shards/cordon", token=token, body=body, purpose="cordon a node")


def _followed(
    url: str,
    token: str | None,
    ended: Callable[[dict[str, Any]], bool],
    hopeless: Callable[[dict[str, Any]], str],
    late: str,
) -> dict[str, Any]:
    """How it stands when it has ended; `hopeless`: why it cannot come as things are, `late`: what is not so yet."""
    end, hoped = time.monotonic() + FOLLOW_DEADLINE_S, time.monotonic()
    while True:
        found = _shards(url, token)
        if ended(found):
            return found
        now, why = time.monotonic(), hopeless(found)
        if not why:
            hoped = now
        elif now - hoped >= HOPELESS_S:
            raise click.ClickException(f"{late}: {why}")
        if now >= end:
            raise click.ClickException(f"{late} after {FOLLOW_DEADLINE_S:g} s; it is written down, and may come yet")
        time.sleep(POLL_S)


def _why_not_there(found: dict[str, Any], shard: int, node: str) -> str:
    """Why a shard that was moved to a node will not get there as things are; empty: it may."""
    pinned = found["shards"][shard]["pinned"]
    if pinned != node:
        return f"somebody else has moved it {'to ' + pinned if pinned else 'to wherever it belongs'}"
    router = next((one for one in found["routers"] if one["name"] == node), None)
    undo = f"`holdfast shards move {shard} --auto` ends that it is wanted there"
    if router is None:
        return f"{node} is not there any more, and gets it when it comes back; {undo}"
    if router["cordoned"]:
        return f"{node} takes no shards any more, and gets it when it does; {undo}"
    return ""


def _others(found: dict[str, Any], node: str) -> list[str]:
    """The other routers that take shards."""
    return [one["name"] for one in found["routers"] if not one["cordoned"] and one["name"] != node]


def _leads(found: dict[str, Any]) -> Counter[str]:
    return Counter(one["leader"] for one in found["shards"])


def _state(router: dict[str, Any], evacuated: set[str]) -> str:
    if router["leaving"]:
        return "leaving"
    if router["cordoned"]:
        return "cordoned"
    return "region evacuated" if router.get("region") in evacuated else "takes shards"


def _said(found: dict[str, Any]) -> str:
    evacuated = {one["name"] for one in found.get("regions", ()) if one["evacuated"]}
    rows: list[tuple[str, ...]] = [
        (
            one["name"],
            str(one["leads"]),
            str(one["wanted"]),
            str(one["weight"]),
            "-" if one["load"] is None else f"{one['load']:g}/s",
            _state(one, evacuated),
            (one["bus"] or "-") + (" (CURVE)" if one["encrypted"] else ""),
        )
        for one in found["routers"]
    ]
    head: tuple[str, ...] = ROUTERS
    if any(one.get("region") for one in found["routers"]):
        head = (REGION, *head)
        rows = [(one.get("region") or "-", *row) for one, row in zip(found["routers"], rows, strict=True)]
    parts = [table([head, *rows]) if rows else "no routers"]
    gateways = ", ".join(one["name"] for one in found["gateways"]) or "none"
    parts.append(f"workers at {gateways}; {len(found['shards'])} shards, {found['unled']} without a leader")
    going = [one for one in found["shards"] if one["leader"] is not None and one["wanted"] != one["leader"]]
    if going:
        told = ", ".join(f"{one['shard']} {one['leader']} -> {one['wanted'] or 'nobody'}" for one in going[:8])
        parts.append(f"{len(going)} to move: {told}{', …' if len(going) > 8 else ''}")
    pinned = [f"{one['shard']} at {one['pinned']}" for one in found["shards"] if one["pinned"] is not None]
    if pinned:
        parts.append(f"pinned: {', '.join(pinned)}")
    parts += [f"region {one['name']} is {state(one)}" for one in found.get("regions", ()) if one["evacuated"]]
    if found["reachable"] is None:
        parts.append("this node is alone: it has no directory")
    elif not found["reachable"]:
        parts.append("the directory does not answer: this is how it was last known")
    return "\n".join(parts)
