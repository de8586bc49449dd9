"""The commands that ask a running node over its admin server: who is connected, and ending connections.

Each is a page of output or one sentence about why it could not be; the HTTP behind it is the same for all (`ask`).
"""

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import click

ADMIN_URL = "http://127.0.0.1:7402"
HTTP_TIMEOUT_S = 15.0
PAGE = 1000
COLUMNS = ("ID", "USER", "DEVICE", "STATE", "TRANSPORT", "ADDRESS", "AGE", "IDLE", "RTT", "LOST", "QUEUED", "GROUPS")

_Command = TypeVar("_Command", bound=Callable[..., Any])


def admin_options(command: _Command) -> _Command:
    """Where the node's admin server is, and its token: `url` and `token`."""
    token = click.option(
        "--token", envvar="HOLDFAST_ADMIN_TOKEN", show_envvar=True, help="The admin token, if the node has one."
    )
    url = click.option("--url", default=ADMIN_URL, show_default=True, help="The node's admin server.")
    return url(token(command))


def admin_commands(cli: click.Group) -> None:
    """Adds the commands of this module to the program."""
    for command in (connections, kick):
        cli.add_command(command)


def _filters(command: _Command) -> _Command:
    """Which connections: the parameters of /api/connections."""
    options = [
        click.option("--user", help="Of this user."),
        click.option("--session", metavar="ID", help="With this session id."),
        click.option("--device", metavar="CLASS", help="With a device of this class, such as phone; '': of none."),
        click.option("--channel", metavar="NAME", help="Members of this channel."),
        click.option("--address", metavar="IP", help="From this address."),
        click.option(
            "--state", multiple=True, type=click.Choice(["accepted", "handshaking", "open", "closing"]), help="In it."
        ),
        click.option("--older", metavar="DURATION", help="Connected at least so long, such as 30s, 5m or 2h."),
        click.option("--idle", metavar="DURATION", help="Nothing heard of it for so long."),
        click.option("--queued", metavar="BYTES", type=int, help="At least so much waits to be sent."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@_filters
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="How many at most.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with all that is known.")
@admin_options
def connections(limit: int, as_json: bool, url: str, token: str | None, **filters: Any) -> None:
    """List the connections of a running node."""
    now = datetime.now(UTC)
    rows = []
    for one in _pages(url, token, filters, limit):
        if as_json:
            click.echo(json.dumps(one))
        else:
            rows.append(_row(one, now))
    if not as_json:
        click.echo(table([COLUMNS, *rows]))


@click.command()
@click.argument("ids", metavar="[ID]...", nargs=-1)
@_filters
@click.option(
    "--code",
    default="kicked",
    show_default=True,
    help="The code of FIN; it says whether to come back. With kicked sessions are over, too.",
)
@click.option("--reason", help="The reason of FIN, for people.")
@click.option("--after", metavar="DURATION", help="How long the client is to wait before it comes back.")
@admin_options
def kick(
    ids: tuple[str, ...],
    code: str,
    reason: str | None,
    after: str | None,
    url: str,
    token: str | None,
    **filters: Any,
) -> None:
    """End connections: those with these IDs (see `holdfast connections`), or all that the options describe.

    The exit code is 1 when one of the IDs is nobody's, or a worker did not answer.
    """
    chosen = _given(filters)
    if bool(ids) == bool(chosen):
        raise click.UsageError("say which: either IDs, or options such as --user")
    said = _given({"code": code, "reason": reason, "after": after})
    missed = False
    for connection in ids:
        path = f"/api/connections/{quote(connection, safe='', errors='surrogateescape')}"
        try:
            click.echo(_ended(ask("DELETE", url.rstrip("/") + path, token=token, parameters=said)))
        except RefusedError as error:  # most often it is gone already: no reason to let the others stay
            missed = True
            click.secho(f"{printable(connection)}: {error.message}", fg="yellow", err=True)
    more = bool(chosen)
    while more:
        answer = ask("DELETE", f"{url.rstrip('/')}/api/connections", token=token, parameters=chosen + said)
        for one in answer["connections"]:
            click.echo(_ended(one))
        say_missing(answer["missing"])
        missed = missed or bool(answer["missing"])
        more = answer["more"] and answer["reclaimed"] > 0
    if missed:
        sys.exit(1)


# ---------------------------------------------------------------------------------------------------------------- HTTP


class RefusedError(click.ClickException):
    """The node answered that it would not."""


def ask(
    method: str,
    url: str,
    *,
    token: str | None,
    body: dict[str, object] | None = None,
    parameters: list[tuple[str, str]] | None = None,
    purpose: str = "ask the node",
    timeout_s: float = HTTP_TIMEOUT_S,
) -> dict[str, Any]:
    """One request to the admin server; its answer.

    Raises:
        RefusedError: it was refused; the message says why.
        ClickException: nobody answers in time.

    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    data = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        data = json.dumps(body).encode()
    full = f"{url}?{urlencode(parameters, errors='surrogateescape')}" if parameters else url
    request = urllib.request.Request(full, data, headers, method=method)
    # No proxy: the admin server is on this machine or in this cluster, and the token is for it alone.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        raise RefusedError(_refusal(error)) from error
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise click.ClickException(f"cannot {purpose} through {url}: {reason}; is a node running there?") from error


def _refusal(error: urllib.error.HTTPError) -> str:
    try:
        answer = json.load(error)
        return f"refused ({answer['code']}): {answer['message']}"
    except (ValueError, KeyError, TypeError):
        return f"refused with HTTP status {error.code}"


# --------------------------------------------------------------------------------------------------------- connections


def _given(options: dict[str, Any]) -> list[tuple[str, str]]:
    """The options that were given, as parameters; one that may be given several times, several times."""
    found = []
    for name, value in options.items():
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        found += [(name, str(one)) for one in values]
    return found


def _pages(url: str, token: str | None, filters: dict[str, Any], limit: int) -> Iterator[dict[str, Any]]:
    """Page after page until the limit or the end; says which workers did not answer."""
    after: list[tuple[str, str]] = []
    missing: set[str] = set()
    while limit > 0:
        parameters = [*_given(filters), ("limit", str(min(limit, PAGE))), *after]
        answer = ask("GET", f"{url.rstrip('/')}/api/connections", token=token, parameters=parameters)
        yield from answer["connections"]
        say_missing(set(answer["missing"]) - missing)
        missing |= set(answer["missing"])
        limit -= len(answer["connections"])
        if answer["next"] is None:
            return
        after = [("after", answer["next"])]


def say_missing(names: Any) -> None:
    for name in sorted(names):
        click.secho(f"{name} did not answer: its connections are not among these", fg="yellow", err=True)


def _row(one: dict[str, Any], now: datetime) -> tuple[str, ...]:
    encoding = f"/{one['encoding']}" if one["encoding"] else ""
    return (
        one["id"],
        printable(one["user"] or "-"),
        printable(one["device"] or "-"),
        one["state"] if one["reason"] is None else f"{one['state']} ({one['reason']})",
        f"{one['transport']}{encoding}{'+tls' if one['tls'] else ''}",
        shown_address(one) or "-",
        ago(one["created"], now),
        ago(one["last_heard"], now),
        "-" if one["rtt_ms"] is None else f"{one['rtt_ms']}ms",
        str(one["lost_heartbeats"]),
        str(one["queued_bytes"]),
        str(max(0, one["memberships"] - 1)),
    )


def printable(text: str) -> str:
    """A name that a client chose, as a terminal may be given it."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def shown_address(one: dict[str, Any]) -> str:
    """Address and port of a connection, or nothing."""
    return "" if one["address"] is None else f"{_bracketed(one['address'])}:{one['port']}"


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def ago(time: str, now: datetime) -> str:
    """How long ago, in the largest unit that says it well."""
    seconds = max(0.0, (now - datetime.fromisoformat(time)).total_seconds())
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{int(seconds // size)}{unit}"
    return f"{seconds:.0f}s"


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows, the first of them the head, in columns."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _ended(one: dict[str, Any]) -> str:
    whose = f" of {printable(one['user'])}" if one["user"] else ""
    if one["was"] == one["state"]:
        return f"{one['id']}{whose}: ends already ({one['reason']})"
    return f"{one['id']}{whose}: {one['was']} -> {one['state']} ({one['reason']})"


def of_group(context: click.Context, url: str, token: str | None) -> tuple[str, str | None]:
    """What the command was given, or else what stands before it: `holdfast shards --url … move …`."""
    given = context.get_parameter_source("url")
    before = context.obj or {}
    if given is click.core.ParameterSource.DEFAULT and before:
        url = before["url"]
    return url, token or before.get("token")
