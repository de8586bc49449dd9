"""`holdfast user`: what waits for a user, and the user's sessions on a node."""

import json
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import click

from gateway.cli_admin import admin_options, ago, ask, printable, say_missing, shown_address, table

CHANNELS = ("CHANNEL", "EPOCH", "OFFSET", "ACKNOWLEDGED", "UNREAD")
SESSIONS = ("SESSION", "DEVICE", "CONNECTION", "WORKER", "TRANSPORT", "ADDRESS", "AGE", "IDLE")
STORED = ("SESSION", "CHANNEL", "EPOCH", "OFFSET", "BEHIND")


@click.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with all that is known.")
@admin_options
def user(name: str, as_json: bool, url: str, token: str | None) -> None:
    """Show what waits for user NAME in the user's own channels, and the user's sessions on this node."""
    path = f"/api/users/{quote(name, safe='', errors='surrogateescape')}"
    found = ask("GET", url.rstrip("/") + path, token=token)
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(_said(found, datetime.now(UTC)))
    say_missing(found["missing"])


def _said(found: dict[str, Any], now: datetime) -> str:
    unread = "no cursors are kept" if found["unread"] is None else f"{found['unread']} unread"
    parts = [f"{printable(found['user'])}: {unread}"]
    if found["channels"]:
        parts.append(table([CHANNELS, *(_channel(*one) for one in found["channels"].items())]))
    if found["sessions"]:
        parts.append(table([SESSIONS, *(_session(one, now) for one in found["sessions"])]))
        stored = [row for one in found["sessions"] for row in _stored(one)]
        parts += [table([STORED, *stored])] if stored else []
    else:
        parts.append("no sessions here")
    if found["more"]:
        parts.append(f"and more: holdfast connections --user {printable(found['user'])}")
    return "\n\n".join(parts)


def _channel(name: str, state: dict[str, Any]) -> tuple[str, ...]:
    cursor = "-" if state["cursor"] is None else str(state["cursor"][1])
    unread = "-" if state["unread"] is None else str(state["unread"])
    return printable(name), *map(str, state["position"]), cursor, unread


def _stored(one: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each channel that is stored of a session, and one that says how many are left out."""
    channels = one["channels"] or {}
    rows = [
        (one["session"], printable(name), *map(str, at["position"]), "-" if at["behind"] is None else str(at["behind"]))
        for name, at in channels.items()
    ]
    left = (one["channel_count"] or 0) - len(rows)
    return [*rows, (one["session"], f"and {left} more", "", "", "")] if left else rows


def _session(one: dict[str, Any], now: datetime) -> tuple[str, ...]:
    return (
        one["session"],
        printable(one["device"] or "-"),
        one["id"],
        one["worker"],
        one["transport"],
        shown_address(one) or "-",
        ago(one["created"], now),
        ago(one["last_heard"], now),
    )
