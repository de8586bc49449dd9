"""The command line, `holdfast`: the entry point, and the only part that reads the environment.

What cannot be used is said in one message without a traceback: exit code 2 for the configuration, 78 for a port that
is in use, 1 for the rest.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from gateway import __version__, options, settings
from gateway.cli_admin import admin_commands, admin_options, ask
from gateway.cli_bans import ban_commands
from gateway.cli_channel import channel
from gateway.cli_config import config
from gateway.cli_growth import growth
from gateway.cli_ledger import ledger
from gateway.cli_regions import region
from gateway.cli_shards import shard_commands
from gateway.cli_supervision import supervision_commands
from gateway.cli_user import user
from gateway.config import Config
from gateway.errors import ConfigError, HoldfastError

# What `gateway` and `router` meet at when nothing is configured; `run` uses a socket in its run directory.
ENDPOINT = "tcp://127.0.0.1:7410"

_Command = TypeVar("_Command", bound=Callable[..., Any])

_SOURCES = """Settings come from, each overriding those before it: the defaults, the TOML file, the environment
(HOLDFAST_<SECTION>_<KEY>, such as HOLDFAST_GATEWAY_PORT) and these options. `holdfast config doc` lists all of them,
also those that have no option here. Without auth.secret (HOLDFAST_AUTH_SECRET) it runs in DEVELOPMENT MODE: on
loopback only, and anybody may be any user."""

_CONFIG = [
    click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        envvar=settings.CONFIG_VARIABLE,
        show_envvar=True,
        help="TOML file with settings.",
    ),
    click.option(
        "--log-level",
        "log__level",
        metavar="LEVEL",
        help="Least level to log: debug, info, warning or error.  [default: info]",
    ),
    click.option(
        "--log-format",
        "log__format",
        metavar="FORMAT",
        help="console (for people) or json (for machines).  [default: console]",
    ),
    click.option("--node-name", "node__name", metavar="NAME", help="Name of this node.  [default: the host's]"),
]
_GATEWAY = [
    click.option(
        "--workers",
        "gateway__workers",
        type=int,
        metavar="N",
        help="Worker processes that share the ports.  [default: processors - 1]",
    ),
    click.option(
        "--host",
        "gateway__host",
        metavar="ADDRESS",
        help="Address to listen on.  [default: 127.0.0.1 in development mode, else 0.0.0.0]",
    ),
    click.option("--port", "gateway__port", type=int, metavar="PORT", help="TCP port.  [default: 7400]"),
    click.option("--ws-port", "gateway__ws_port", type=int, metavar="PORT", help="WebSocket port.  [default: 7401]"),
    click.option(
        "--admin-host",
        "admin__host",
        metavar="ADDRESS",
        help="Address of the admin HTTP server; beyond loopback it needs admin.token.  [default: 127.0.0.1]",
    ),
    click.option(
        "--admin-port",
        "admin__port",
        type=int,
        metavar="PORT",
        help="Port of the admin HTTP server: page, health, metrics, publishing.  [default: 7402]",
    ),
]


def _with(*options_: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for option in reversed(options_):
            command = option(command)
        return command

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Holdfast, a real-time messaging gateway.

    `holdfast run` starts everything on this machine and says what to open.
    """


@cli.command(epilog=_SOURCES)
@_with(*_CONFIG, *_GATEWAY)
def run(config_path: Path | None, **flags: object) -> None:
    """Run a whole node: router, workers and admin server; with a directory, what node.role says.

    Runs until SIGTERM or Ctrl-C, then says goodbye to the clients and stops; a second Ctrl-C stops at once.
    """
    _run(lambda: _read(config_path, flags))


@cli.command(epilog=_SOURCES)
@_with(
    *_CONFIG,
    *_GATEWAY,
    click.option(
        "--router-endpoint", "router__endpoint", metavar="ENDPOINT", help=f"Where the router is.  [default: {ENDPOINT}]"
    ),
)
def gateway(config_path: Path | None, **flags: object) -> None:
    """Run workers and the admin server, linked to a router elsewhere (see `holdfast router`).

    With a directory they are linked to all routers that are there, as by node.role = gateway.
    """
    _run(lambda: _read(config_path, flags, role="gateway"))


@cli.command(epilog=_SOURCES)
@_with(
    *_CONFIG,
    click.option("--endpoint", "router__endpoint", metavar="ENDPOINT", help=f"Where to listen.  [default: {ENDPOINT}]"),
    click.option(
        "--admin-port",
        "admin__port",
        type=int,
        metavar="PORT",
        help="Serve health and metrics here as well.  [default: no admin server]",
    ),
)
def router(config_path: Path | None, **flags: object) -> None:
    """Run a router alone, for gateways that `holdfast gateway` runs.

    With a directory it leads its share of the shards, and has an admin server, as by node.role = router.
    """
    _run(lambda: _read(config_path, flags, role="router"), admin=flags.get("admin__port") is not None)


@cli.command("options")
def list_options() -> None:
    """List every setting with its default, range and meaning, as a TOML file to start from."""
    click.echo(options.as_toml(), nl=False)


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(f"holdfast {__version__}")


@cli.command()
@_with(
    *_CONFIG,
    _GATEWAY[0],
    click.option(
        "--connections",
        type=click.IntRange(min=1),
        metavar="N",
        help="How many it is to hold.  [default: what the configuration allows]",
    ),
    click.option(
        "--grace",
        "grace_s",
        type=click.IntRange(min=0),
        metavar="SECONDS",
        help="What the container runtime or service manager gives between SIGTERM and SIGKILL.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print it for machines."),
)
def doctor(
    config_path: Path | None, connections: int | None, grace_s: int | None, as_json: bool, **flags: object
) -> None:
    """Say what of this machine breaks at which number of connections, and what raises it.

    Exit code 1 when the number cannot be reached. Run it where the gateway will run: in its container, as its user.
    """
    from gateway import doctor as checks
    from gateway import machine
    from gateway.directory_facts import directory_error
    from gateway.log_facts import log_facts

    # What the files allow is judged here, and must not be what the number wanted is made from.
    roomy = dataclasses.replace(settings.Machine.here(), open_files_max=machine.UNLIMITED)
    config = _load(config_path, flags, machine=roomy)
    wanted = connections or checks.default_wanted(config)
    plan = checks.Plan(wanted, config, log_facts(config), grace_s, directory_error(config))
    findings = checks.examine(machine.here(), plan)
    report = json.dumps(checks.as_json(findings, plan)) if as_json else checks.as_text(findings, plan)
    click.echo(report)
    sys.exit(0 if checks.holds(findings) else 1)


@cli.command()
@click.argument("channel")
@click.argument("data")
@click.option("--json/--text", "is_json", default=False, help="Read DATA as JSON, or send it as text.  [default: text]")
@click.option("--key", help="Idempotency key: the same one again within 5 minutes publishes nothing.")
@click.option("--from", "sender", metavar="NAME", help="Who the message is from.  [default: admin]")
@admin_options
def publish(
    channel: str, data: str, is_json: bool, key: str | None, sender: str | None, url: str, token: str | None
) -> None:
    """Publish DATA to CHANNEL (such as group:lobby) through a running node; prints the message's position."""
    try:
        content = json.loads(data) if is_json else data
    except ValueError as error:
        raise click.UsageError(f"DATA is not valid JSON: {error}") from error
    body = {"channel": channel, "data": content}
    body |= {name: part for name, part in (("key", key), ("from", sender)) if part is not None}
    answer = ask("POST", f"{url.rstrip('/')}/api/publish", token=token, body=body, purpose="publish")
    click.echo(f"{channel}: epoch {answer['epoch']}, offset {answer['offset']}")


admin_commands(cli)
ban_commands(cli)
cli.add_command(config)
cli.add_command(growth)
cli.add_command(channel)
cli.add_command(user)
supervision_commands(cli)
shard_commands(cli)
cli.add_command(region)
cli.add_command(ledger)


def main() -> None:
    """The program `holdfast`."""
    cli(prog_name="holdfast")


# --------------------------------------------------------------------------------------------------- running a node


def _load(config_path: Path | None, flags: dict[str, object], machine: settings.Machine | None = None) -> Config:
    """The configuration; ends the program with its complaints when it cannot be used."""
    try:
        return _given(config_path, flags, machine)
    except ConfigError as error:
        _end(error)


def _given(config_path: Path | None, flags: dict[str, object], machine: settings.Machine | None = None) -> Config:
    """The configuration, from the file, the environment and the options; ConfigError with its complaints."""
    given = {name.replace("__", "."): value for name, value in flags.items()}
    return settings.load(config_path, os.environ, given, machine)


def _read(config_path: Path | None, flags: dict[str, object], role: str = "") -> tuple[Config, str]:
    """The configuration, and what is to run: what the command says, or else what node.role says."""
    if not role:
        config = _given(config_path, flags)
        return config, config.node.role
    # Its role is what it is checked as; without a directory there is none, but a place to meet.
    try:
        config = _given(config_path, {**flags, "node__role": role})
    except ConfigError as error:
        if f"node.role = {role} without" not in str(error):
            raise
        config = _given(config_path, flags)
    if not config.clustered and not config.router.endpoint:
        config = _given(config_path, {**flags, "router__endpoint": ENDPOINT})
    return config, role


def _run(load: Callable[[], tuple[Config, str]], *, admin: bool = True) -> None:
    """Runs a node; `load` is called again when it is to be restarted with the settings of then."""
    # Imported here: `holdfast version` and `publish` need neither uvloop nor the web server.
    from gateway import node

    try:
        config, role = load()
    except ConfigError as error:
        _end(error)
    parts = node.Parts(
        router=role in ("all", "router"), workers=role in ("all", "gateway"), admin=admin or config.clustered
    )
    if config.development:
        click.secho(_DEVELOPMENT, fg="yellow", bold=True, err=True)
    try:
        code = node.run(config, parts, lambda: click.echo(banner(config, parts)), lambda: load()[0])
    except HoldfastError as error:
        _end(error)
    sys.exit(code)


def _end(error: HoldfastError) -> NoReturn:
    click.secho(f"holdfast: {error}", fg="red", err=True)
    sys.exit(error.exit_code)


_DEVELOPMENT = """\
*** DEVELOPMENT MODE: no auth.secret is set, so anybody on this machine may be any user.
*** Listening on loopback only. For anything else set HOLDFAST_AUTH_SECRET (openssl rand -hex 32)."""


def banner(config: Config, parts: Any) -> str:
    """What to open, once the node serves; `parts` as `gateway.node.Parts`."""
    gateway_, lines = config.gateway, [f"Holdfast {__version__}, node {config.node.name}, is ready"]
    if parts.admin:
        label = "page" if parts.workers else "admin"
        lines.append(f"  {label:<9}  http://{_shown(config.admin.host)}:{config.admin.port}/")
        if config.recovery.port:
            scheme = "https" if gateway_.tls_certificate else "http"
            lines.append(f"  recovery   {scheme}://{_shown(config.recovery.host)}:{config.recovery.port}/recover")
    if parts.workers:
        scheme = "wss" if gateway_.tls_certificate else "ws"
        lines.append(f"  WebSocket  {scheme}://{_shown(gateway_.host)}:{gateway_.ws_port}{gateway_.ws_path}")
        lines.append(f"  TCP        {_shown(gateway_.host)}:{gateway_.port}")
        lines.append(f"  workers    {gateway_.workers}")
    if config.clustered:
        lines.append(f"  directory  {config.directory.endpoints}")
    if config.router.endpoint and (parts.router or not config.clustered):
        lines.append(f"  router     {config.router.endpoint}")
    elif config.clustered and parts.router:
        lines.append(f"  router     tcp://{config.bus.advertise}")
    mode = "development (anybody may be any user)" if config.development else "tokens are checked"
    return "\n".join([*lines, f"  mode       {mode}"])


def _shown(host: str) -> str:
    """An address that a person can open for one that was listened on."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host else host
