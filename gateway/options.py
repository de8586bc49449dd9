"""All settings as text: a TOML file to start from, and the page `docs/configuration.md`. Both come from the fields."""

import json
import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec

from core.namespace_spec import BUILT_IN, NAMESPACES_MAX, NamespaceSpec
from gateway import namespaces
from gateway.config import SECTIONS
from gateway.settings import CONFIG_VARIABLE, ENVIRONMENT_PREFIX

_WIDTH = 110

_PAGE_HEAD = f"""\
# Configuration

Every setting of Holdfast, its type, default and range, and what it is for. This page is what `holdfast config doc`
prints; `holdfast options` prints the same as a TOML file to start from.

Settings come from, each overriding those before it: the defaults, one TOML file (`--config FILE` or
`{CONFIG_VARIABLE}`), the environment, and the options of the command. `[gateway] port` of the file is
`{ENVIRONMENT_PREFIX}GATEWAY_PORT` in the environment. `holdfast config check FILE` says all that is wrong with a file,
`holdfast config show --origin` what is set and where it came from.
"""
_NAMESPACES_HEAD = f"""
## [namespaces.*name*]
What stands before the colon of a channel is its namespace. `[namespaces.group]` changes one that is built in
({", ".join(f"`{spec.name}`" for spec in BUILT_IN)}); `[namespaces.chat]` makes a new one, which must say its `domain`
and starts from the built-in namespace of that domain. There may be {NAMESPACES_MAX}. In the environment:
`{ENVIRONMENT_PREFIX}NAMESPACES_CHAT_HISTORY_AGE_S`. A user has a channel of its own in each namespace of domain
session, all of them joined with HELLO. Where nothing is kept, or `log.backend` is `none`, `ack` is `sequenced`.

```toml
[namespaces.team]          # as group, but whoever joins needs a token that names the channel
domain = "group"
join = "token"

[namespaces.typing]        # what is stale after a moment: nothing is kept, nothing waits
domain = "group"
history_messages = 0
```
"""


def as_toml() -> str:
    """The file's text; valid TOML, that changes nothing as it is."""
    head = [
        "# Every setting of Holdfast at its default. Take away the # of a line to change it. The environment overrides",
        f"# this file, by names such as {ENVIRONMENT_PREFIX}GATEWAY_PORT, and the command line overrides both.",
    ]
    sections = [_section(name, struct) for name, struct in SECTIONS.items()]
    return "\n".join([*head, *sections, *_namespaces(), ""])


def _section(name: str, struct: Any) -> str:
    lines = ["", f"[{name}]"]
    for field in msgspec.structs.fields(struct):
        lines += _comment(_about(field.type))
        lines.append(f"#{field.name} = {_json(field.default)}")
    return "\n".join(lines)


def _namespaces() -> Iterator[str]:
    """The built-in namespaces; what their options mean is said once."""
    yield "\n" + "\n".join(
        _comment(
            "Namespaces: what stands before the colon of a channel. These are built in; another one, [namespaces.chat],"
            " must say its domain and starts from the built-in one of that domain."
        )
    )
    for spec in BUILT_IN:
        yield f"\n[{namespaces.SECTION}.{spec.name}]"
        for option, annotated in namespaces.OPTIONS.items():
            if spec is BUILT_IN[0]:
                yield from _comment(_about(annotated))
            yield f"#{option} = {_json(getattr(spec, option))}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")


def _about(annotated: Any) -> str:
    meta: msgspec.Meta = annotated.__metadata__[0]
    allowed = "" if meta.ge is None else f" ({meta.ge} to {meta.le})"
    return f"{meta.description}{allowed}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


# ----------------------------------------------------------------------------------------------------------- the page


def as_markdown() -> str:
    """The page `docs/configuration.md`."""
    parts = [_PAGE_HEAD]
    for name, struct in SECTIONS.items():
        parts.append(f"\n## [{name}]\n| key | type | default | range | what it is |\n| --- | --- | --- | --- | --- |\n")
        parts += [_row(field.name, field.type, f"`{_json(field.default)}`") for field in msgspec.structs.fields(struct)]
    parts.append(_NAMESPACES_HEAD)
    names = " | ".join(f"`{spec.name}`" for spec in BUILT_IN)
    parts.append(
        f"\n| option | type | {names} | range | what it is |\n| --- | --- |{' --- |' * len(BUILT_IN)} --- | --- |\n"
    )
    for field in msgspec.structs.fields(NamespaceSpec):
        if field.name != "name":
            defaults = " | ".join(f"`{_json(getattr(spec, field.name))}`" for spec in BUILT_IN)
            parts.append(_row(field.name, field.type, defaults))
    return "".join(parts)


def _row(name: str, annotated: Any, default: str) -> str:
    meta: msgspec.Meta = annotated.__metadata__[0]
    kind = {int: "whole number", float: "number", bool: "true or false", str: "text"}[annotated.__origin__]
    allowed = "" if meta.ge is None else f"{meta.ge} to {meta.le}"
    words = namespaces.words_of(annotated)
    if words:
        allowed = ", ".join(f"`{word}`" for word in words)
    about = (meta.description or "").replace("|", "\\|")
    return f"| `{name}` | {kind} | {default} | {allowed} | {about} |\n"
