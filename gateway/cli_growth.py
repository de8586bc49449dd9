"""`holdfast growth`: what grows in a running node's processes, how sure that is, and what may be leaking."""

import json
from collections.abc import Iterator
from typing import Any

import click

from gateway.cli_admin import admin_options, ask
from gateway.growth import GROWING, TOO_FEW

_COLUMNS = ("PROCESS", "RESOURCE", "LEVEL", "A DAY", "AT LEAST", "AT MOST", "VERDICT")


@click.command()
@click.option("--all", "everything", is_flag=True, help="Also what does not grow.")
@click.option("--json", "as_json", is_flag=True, help="All that is known, as JSON.")
@admin_options
def growth(everything: bool, as_json: bool, url: str, token: str | None) -> None:
    """Show what grows in the processes of a running node, a day and in percent of its level.

    A resource is LEAK SUSPECTED when its growth has for some time surely been above growth.threshold_percent; what
    follows the number of connections is not growth.
    """
    found = ask("GET", f"{url.rstrip('/')}/api/growth", token=token)
    if as_json:
        click.echo(json.dumps(found))
        return
    rows = list(_rows(found, everything))
    if rows:
        _print_table([_COLUMNS, *rows])
    for name in _unknown(found):
        click.echo(f"{name}: too few samples yet")
    if not rows:
        click.echo("nothing grows" if found["processes"] else "no process has been sampled yet")
    for event in found["suspected"]:
        sites = "; ".join(f"{site['group']} {site['name']} +{site['grown']:,}" for site in event["sites"][:3])
        click.echo(f"{event['process']} {event['resource']}: {sites or 'no site known'}")
        if event["report"]:
            click.echo(f"  report: {event['report']}")


def _rows(found: dict[str, Any], everything: bool) -> Iterator[tuple[str, ...]]:
    suspected = {(event["process"], event["resource"]) for event in found["suspected"]}
    for one in found["processes"]:
        for resource, fit in one["resources"].items():
            accused = (one["process"], resource) in suspected
            if fit["verdict"] == TOO_FEW or not (everything or accused or fit["verdict"] == GROWING):
                continue
            yield (
                one["process"],
                resource,
                f"{fit['level']:,.0f}",
                f"{fit['per_day']:+,.1f} ({fit['relative_per_day']:+.2%})",
                f"{fit['relative_low']:+.2%}",
                f"{fit['relative_high']:+.2%}",
                "LEAK SUSPECTED" if accused else str(fit["verdict"]),
            )


def _unknown(found: dict[str, Any]) -> list[str]:
    return [
        one["process"]
        for one in found["processes"]
        if all(fit["verdict"] == TOO_FEW for fit in one["resources"].values())
    ]


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[place]) for row in rows) for place in range(len(_COLUMNS))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
