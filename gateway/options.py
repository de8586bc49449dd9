"""All settings as a TOML file, every one commented out at its default: a list to read and a file to start from."""

import json
import textwrap
from typing import Any

import msgspec

from gateway.config import Config
from gateway.settings import ENVIRONMENT_PREFIX

_WIDTH = 110


def as_toml() -> str:
    """The file's text; valid TOML, that changes nothing as it is."""
    head = [
        "# Every setting of Holdfast at its default. Take away the # of a line to change it. The environment overrides",
        f"# this file, by names such as {ENVIRONMENT_PREFIX}GATEWAY_PORT, and the command line overrides both.",
    ]
    sections = [_section(field.name, field.type) for field in msgspec.structs.fields(Config)]
    return "\n".join([*head, *sections, ""])


def _section(name: str, struct: Any) -> str:
    lines = ["", f"[{name}]"]
    for field in msgspec.structs.fields(struct):
        lines += textwrap.wrap(_about(field.type), _WIDTH, initial_indent="# ", subsequent_indent="# ")
        lines.append(f"#{field.name} = {json.dumps(field.default, ensure_ascii=False)}")
    return "\n".join(lines)


def _about(annotated: Any) -> str:
    meta: msgspec.Meta = annotated.__metadata__[0]
    allowed = "" if meta.ge is None else f" ({meta.ge} to {meta.le})"
    return f"{meta.description}{allowed}"
