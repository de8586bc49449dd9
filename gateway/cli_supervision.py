"""The commands that act on a running node as a whole: the rolling restart, and its end."""

import time
from typing import Any

import click

from gateway.cli_admin import admin_options, ask

POLL_S = 0.5
# Of a rolling restart: each place may take start_s + drain_ms + grace, and a node may have 256 of them.
FOLLOW_DEADLINE_S = 12 * 3600.0


def supervision_commands(cli: click.Group) -> None:
    """Adds the commands of this module to the program."""
    for command in (reload, drain):
        cli.add_command(command)


@click.command()
@click.option("--router", is_flag=True, help="Restart the router as well, last: publishes wait for a moment.")
@click.option("--wait/--no-wait", "follow", default=True, help="Follow it to its end.  [default: wait]")
@admin_options
def reload(router: bool, follow: bool, url: str, token: str | None) -> None:
    """Restart the workers of a running node one by one, with the code, certificates and settings of now.

    No connect is refused; clients are sent to the new processes at the pace of gateway.drain_ms. SIGHUP to the node
    does the same. Exit code 1 when it was called off; what was running runs on.
    """
    address = f"{url.rstrip('/')}/api/reload"
    found = ask("POST", address, token=token, body={"router": router}, purpose="reload")
    replaced = -1
    end = time.monotonic() + FOLLOW_DEADLINE_S
    while follow and found["state"] == "running" and time.monotonic() < end:
        if found["replaced"] != replaced:
            replaced = found["replaced"]
            click.echo(f"{replaced} of {found['places']} workers replaced")
        time.sleep(POLL_S)
        found = ask("GET", address, token=token, purpose="reload")
    _say_end(found)


def _say_end(found: dict[str, Any]) -> None:
    if found["state"] == "called_off":
        raise click.ClickException(f"called off after {found['replaced']} of {found['places']}: {found['why']}")
    cut = f"; {found['cut']} did not leave in time and were killed" if found["cut"] else ""
    click.echo(f"{found['state']}: {found['replaced']} of {found['places']} workers replaced{cut}")


@click.command()
@admin_options
def drain(url: str, token: str | None) -> None:
    """End a running node without harm: at once not ready, then its clients are sent away paced, then it stops.

    SIGTERM to the node does the same.
    """
    ask("POST", f"{url.rstrip('/')}/api/drain", token=token, body={}, purpose="drain")
    click.echo(
        "draining: the node ends when its clients have left, or when gateway.drain_ms and the grace time are over"
    )
