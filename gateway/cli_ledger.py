"""`holdfast ledger`: what every process of a running node has opened and closed, and with `--audit` the proof."""

import json
import sys
from typing import Any

import click

from gateway.cli_admin import admin_options, ask

AUDIT_TIMEOUT_S = 90.0
"""As long as the admin server gives itself: what hangs is waited for, and the others are told all the same."""
_COLUMNS = ("process", "kind", "opened", "closed", "lost", "live")
_AUDITED = ("found", "difference")


@click.command()
@click.option(
    "--audit", is_flag=True, help="Let every process walk its tables; exit code 1 when something is left over."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--all", "every", is_flag=True, help="Show the kinds that a process never had, too.")
@admin_options
def ledger(audit: bool, as_json: bool, every: bool, url: str, token: str | None) -> None:
    """Print the ledger of a running node: opened - closed - lost = live, for each process and kind of resource."""
    base = f"{url.rstrip('/')}/api/ledger"
    if audit:
        told = ask("POST", f"{base}/audit", token=token, body={}, purpose="audit", timeout_s=AUDIT_TIMEOUT_S)
    else:
        told = ask("GET", base, token=token, purpose="read the ledger")
    if as_json:
        click.echo(json.dumps(told, indent=2))
    else:
        click.echo(table(told, audit=audit, every=every))
        for line in complaints(told):
            click.secho(line, fg="red")
    if audit:
        if not as_json and told["closes"]:
            click.echo("everything closes")
        sys.exit(0 if told["closes"] else 1)


def table(told: dict[str, Any], *, audit: bool, every: bool) -> str:
    """The lines for people; kinds that a process never opened only with `every`."""
    columns = (*_COLUMNS, *(_AUDITED if audit else ()))
    rows: list[tuple[str, ...]] = [columns]
    for process in told["processes"]:
        for kind, counts in process["kinds"].items():
            if every or counts["opened"] or counts.get("found"):
                numbers = tuple(str(counts.get(name, "-")) for name in columns[2:])
                rows.append((process["process"], kind, *numbers))
    widths = [max(len(row[place]) for row in rows) for place in range(len(columns))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def complaints(told: dict[str, Any]) -> list[str]:
    """One line for each thing that is wrong."""
    lines = []
    for process in told["processes"]:
        name = process["process"]
        if "error" in process:
            lines.append(f"{name}: could not be audited: {process['error']}")
        for one in process.get("findings", []):
            place = f"; {one['place']}" if one["place"] else ""
            lines.append(f"{name}: {one['kind']} {one['key']} ({one['value']}) {one['what']}{place}")
        hidden = process.get("finding_count", 0) - len(process.get("findings", []))
        if hidden > 0:
            lines.append(f"{name}: and {hidden} more")
    return lines
