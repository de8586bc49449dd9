"""`holdfast channel`: where a channel stands, what is kept of it, and who is in it."""

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import click

from gateway.cli_admin import admin_options, ago, ask, printable, say_missing, shown_address, table

FACTS = ("DOMAIN", "EPOCH", "OFFSET", "WAITING", "KEPT", "BYTES", "SINCE", "IN MEMORY", "MEMBERS", "WORKERS")
SESSIONS = ("SESSION", "USER", "DEVICE", "CONNECTION", "WORKER", "TRANSPORT", "ADDRESS", "AGE", "IDLE")


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with all that is known.")
@admin_options
def channel(name: str, as_json: bool, url: str, token: str | None) -> None:
    """Show where channel NAME stands, what is kept of it, and its members on this node."""
    path = f"/api/channels/{quote(name, safe='', errors='surrogateescape')}"
    found = ask("GET", url.rstrip("/") + path, token=token)
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(_said(found, datetime.now(UTC)))
    say_missing(found["missing"])


def _said(found: dict[str, Any], now: datetime) -> str:
    name = printable(found["channel"])
    parts = [f"{name}: {_presence(found['presence'])}", table([FACTS, _facts(found, now)])]
    if found["sessions"]:
        parts.append(table([SESSIONS, *(_session(one, now) for one in found["sessions"])]))
    else:
        parts.append("no members here")
    if found["next"] is not None:
        parts.append(f"and more: holdfast connections --channel {name}")
    return "\n\n".join(parts)


def _presence(presence: dict[str, int] | None) -> str:
    if presence is None:
        return "presence is not kept"
    return f"{presence['users']} users in {presence['sessions']} sessions"


def _since(oldest: dict[str, Any] | None, now: datetime) -> str:
    return "-" if oldest is None else f"{oldest['position'][1]} ({ago(oldest['time'], now)})"


def _facts(found: dict[str, Any], now: datetime) -> tuple[str, ...]:
    history = found["history"]
    return (
        found["domain"],
        *map(str, found["position"]),
        str(found["waiting"]),
        str(history["messages"]),
        str(history["bytes"]),
        _since(history["oldest"], now),
        found["in_memory"],
        str(found["members"]),
        str(found["workers"]),
    )


def _session(one: dict[str, Any], now: datetime) -> tuple[str, ...]:
    return (
        one["session"],
        printable(one["user"] or "-"),
        printable(one["device"] or "-"),
        one["id"],
        one["worker"],
        one["transport"],
        shown_address(one) or "-",
        ago(one["created"], now),
        ago(one["last_heard"], now),
    )
