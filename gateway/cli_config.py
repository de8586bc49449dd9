"""`holdfast config`: whether a configuration can be used, what it comes to, and what may stand in one."""

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from gateway import namespaces, options, settings
from gateway.config import SECTIONS, Config
from gateway.errors import ConfigError


def _file(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command its file, which may also be named as for `holdfast run`."""

    @click.argument("file", required=False, type=click.Path(path_type=Path))
    @click.option("--config", "config_path", type=click.Path(path_type=Path), help="The same as FILE.")
    @functools.wraps(command)
    def wrapper(file: Path | None, config_path: Path | None, **options: Any) -> None:
        if file and config_path:
            raise click.UsageError("name one file: FILE, or --config FILE")
        command(file or config_path, **options)

    return wrapper


@click.group()
def config() -> None:
    """Check the configuration, show what it comes to, or list what may stand in it.

    FILE is a TOML file; left out, the one that HOLDFAST_CONFIG names, if any. The environment counts as for a node.
    """


@config.command()
@_file
def check(file: Path | None) -> None:
    """Say everything that is wrong with the configuration; exit code 2 if anything is."""
    loaded, _ = _loaded(file)
    custom = len(loaded.namespaces) - len(Config().namespaces)
    mode = "development mode" if loaded.development else "tokens are checked"
    click.echo(f"{_name(file)} can be used: node {loaded.node.name}, {mode}, {custom} namespaces beside the built-in")


@config.command()
@_file
@click.option("--origin", is_flag=True, help="Say where each value came from.")
@click.option("--json", "as_json", is_flag=True, help="Print it for machines.")
def show(file: Path | None, origin: bool, as_json: bool) -> None:
    """Show every setting as a node would use it; secrets are hidden."""
    entries = list(_entries(*_loaded(file)))
    if as_json:
        told = {one.key: {"value": one.value, "origin": one.origin} if origin else one.value for one in entries}
        click.echo(json.dumps(told, ensure_ascii=False))
    else:
        click.echo("\n".join(_lines(entries, origin)))


@config.command()
def doc() -> None:
    """Print every setting with type, default, range and reason, as the page docs/configuration.md."""
    click.echo(options.as_markdown(), nl=False)


@dataclass(frozen=True)
class _Entry:
    key: str
    value: object
    origin: str


def _loaded(file: Path | None) -> tuple[Config, dict[str, str]]:
    try:
        return settings.load_with_sources(file, os.environ, {})
    except ConfigError as error:
        click.secho(f"holdfast: {error}", fg="red", err=True)
        sys.exit(error.exit_code)


def _name(file: Path | None) -> str:
    named = file or os.environ.get(settings.CONFIG_VARIABLE)
    return str(named) if named else "the configuration without a file"


def _entries(config: Config, sources: dict[str, str]) -> Iterator[_Entry]:
    """Each key with its value and its origin."""
    for section, struct in SECTIONS.items():
        for field in msgspec.structs.fields(struct):
            key, value = f"{section}.{field.name}", getattr(getattr(config, section), field.name)
            origin = sources.get(key) or ("default" if value == field.default else "chosen for this machine")
            hidden = value and key in settings.HIDDEN_KEYS
            yield _Entry(key, "(hidden)" if hidden else value, origin)
    for spec in config.namespaces:
        for option in namespaces.OPTIONS:
            key = namespaces.key_of(spec.name, option)
            base, value = namespaces.built_in_of(spec), getattr(spec, option)
            origin = f"default of {base.name}" if value == getattr(base, option) else "chosen to fit the rest"
            yield _Entry(key, value, sources.get(key, origin))


def _lines(entries: list[_Entry], origin: bool) -> Iterator[str]:
    """TOML, a section after the other; what came from somewhere says so behind its line."""
    section = ""
    for one in entries:
        its, _, name = one.key.rpartition(".")
        if its != section:
            yield f"[{its}]" if not section else f"\n[{its}]"
            section = its
        line = f"{name} = {json.dumps(one.value, ensure_ascii=False)}"
        yield f"{line:<40} # {one.origin}" if origin else line
