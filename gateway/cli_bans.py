"""The commands about bans: `holdfast ban`, `holdfast unban` and `holdfast bans`."""

import json
from typing import Any
from urllib.parse import quote

import click

from gateway.cli_admin import admin_options, ask, printable


def ban_commands(cli: click.Group) -> None:
    """Adds the commands of this module to the program."""
    for command in (ban, unban, bans):
        cli.add_command(command)


@click.command()
@click.argument("user")
@click.option("--for", "for_", metavar="DURATION", help="How long, such as 30m, 1h or 7d.  [default: until unban]")
@click.option("--reason", default="", help="What the user's clients are told.")
@admin_options
def ban(user: str, for_: str | None, reason: str, url: str, token: str | None) -> None:
    """Ban USER: all sessions end at once, none begins or resumes while the ban lasts.

    Sessions of before can never be resumed again, also when the ban is over.
    """
    body: dict[str, object] = {"user": user, "reason": reason}
    if for_ is not None:
        body["for"] = for_
    found = ask("POST", f"{url.rstrip('/')}/api/bans", token=token, body=body, purpose="ban")
    click.echo(_said(found))


@click.command()
@click.argument("user")
@admin_options
def unban(user: str, url: str, token: str | None) -> None:
    """End the ban of USER."""
    path = f"/api/bans/{quote(user, safe='', errors='surrogateescape')}"
    ask("DELETE", url.rstrip("/") + path, token=token, purpose="end the ban")
    click.echo(f"{printable(user)}: the ban is over")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@admin_options
def bans(as_json: bool, url: str, token: str | None) -> None:
    """List the bans that hold now, the latest first."""
    for one in ask("GET", f"{url.rstrip('/')}/api/bans", token=token)["bans"]:
        click.echo(json.dumps(one) if as_json else _said(one))


def _said(one: dict[str, Any]) -> str:
    until = "for good" if one["until"] is None else f"until {one['until']}"
    reason = f" ({printable(one['reason'])})" if one["reason"] else ""
    return f"{printable(one['user'])}: banned {until}{reason}"
