"""`[namespaces.<name>]` of the configuration: what may stand there, the namespaces made of it, and what does not fit.

A section changes a built-in namespace (`user`, `group`, `global`) or makes a new one. A new one names its domain, and
starts from the built-in namespace of that domain, so that only what differs has to be said.
"""

import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

from core.namespace_spec import BUILT_IN, DOMAINS, NAME_PATTERN, NAMESPACES_MAX, NamespaceSpec

SECTION = "namespaces"
ENVELOPE_BYTES = 1_024  # what MESSAGE may add to the data of a PUBLISH (core/edge.pxd)
OPTIONS: dict[str, Any] = {
    field.name: field.type for field in msgspec.structs.fields(NamespaceSpec) if field.name != "name"
}
_BUILT_IN = {spec.name: spec for spec in BUILT_IN}
_OF_DOMAIN = {spec.domain: spec for spec in BUILT_IN}


def words_of(annotated: Any) -> list[str]:
    """The words that an option may be, none when it is not one of a few."""
    found = re.fullmatch(r"\^\(([a-z_|]+)\)\$", annotated.__metadata__[0].pattern or "")
    return found[1].split("|") if found else []


def key_of(name: str, option: str) -> str:
    """How an option of a namespace is called everywhere: `namespaces.chat.ack`."""
    return f"{SECTION}.{name}.{option}"


def parts_of(key: str) -> tuple[str, str]:
    """The namespace and the option of such a key."""
    _, name, option = key.split(".")
    return name, option


def is_name(name: str) -> bool:
    """Whether a namespace may be called so."""
    return re.fullmatch(NAME_PATTERN, name) is not None


def key_of_variable(rest: str, known: Collection[str]) -> str | None:
    """The key of `HOLDFAST_NAMESPACES_<rest>`; `known`: the namespaces so far, for what upper case cannot tell."""
    for option in OPTIONS:
        if rest.endswith(f"_{option.upper()}"):
            spelt = rest.removesuffix(f"_{option.upper()}")
            names = {name.upper().replace("-", "_"): name for name in known}
            name = names.get(spelt, spelt.lower())
            return key_of(name, option) if is_name(name) else None
    return None


def built_in_of(spec: NamespaceSpec) -> NamespaceSpec:
    """The built-in namespace that one started from."""
    return _BUILT_IN.get(spec.name, _OF_DOMAIN[spec.domain])


def built(
    given: Mapping[str, Mapping[str, object]], complaints: list[str], *, logs: bool = True
) -> tuple[NamespaceSpec, ...]:
    """All namespaces, the built-in ones first.

    Args:
        given: name to option to checked value.
        complaints: grows by what is wrong.
        logs: whether there is a log (log.backend).

    """
    specs = [_made(spec, given.get(spec.name, {}), logs) for spec in BUILT_IN]
    for name, options in given.items():
        if name in _BUILT_IN:
            continue
        base = _OF_DOMAIN.get(str(options.get("domain")))
        if base is None:
            complaints.append(
                f"{key_of(name, 'domain')} is missing: a new namespace says who receives, {', '.join(DOMAINS[:-1])} or"
                f" {DOMAINS[-1]}{_perhaps(name)}"
            )
        else:
            specs.append(_made(msgspec.structs.replace(base, name=name), options, logs))
    return tuple(specs)


def _made(base: NamespaceSpec, options: Mapping[str, object], logs: bool) -> NamespaceSpec:
    """A namespace with these options; what nobody said and cannot hold beside them is chosen so that it can."""
    spec = msgspec.structs.replace(base, **options)
    if not spec.history_messages or not spec.history_bytes:
        spec = msgspec.structs.replace(spec, **{"history_messages": 0, "history_bytes": 0, **options})
    if not spec.history_messages or not logs:
        spec = msgspec.structs.replace(spec, **{"ack": "sequenced", **options})
    return spec


def _perhaps(name: str) -> str:
    found = difflib.get_close_matches(name, _BUILT_IN, n=1, cutoff=0.6)
    return f"; or did you mean [{SECTION}.{found[0]}]?" if found else ""


def misfits(specs: Collection[NamespaceSpec], max_frame: int, *, logs: bool = True) -> Iterator[str]:
    """What is wrong with the namespaces although each value by itself is allowed; `logs`: whether there is a log."""
    if len(specs) > NAMESPACES_MAX:
        yield f"there are {len(specs)} namespaces, {len(BUILT_IN)} of them built in: there may be {NAMESPACES_MAX}"
    for spec in specs:
        for option, why in (*_kept(spec, max_frame, logs), *_of_domain(spec)):
            value: object = getattr(spec, option)
            yield f"{key_of(spec.name, option)} = {msgspec.json.encode(value).decode()}: {why}"


def _kept(spec: NamespaceSpec, max_frame: int, logs: bool) -> Iterator[tuple[str, str]]:
    """How long a message may be, and what becomes of it."""
    longest = max_frame - ENVELOPE_BYTES
    if spec.payload_bytes_max > longest:
        yield (
            "payload_bytes_max",
            f"gateway.max_frame = {max_frame} leaves {max(longest, 0)} for data: lower one, or raise the other",
        )
    if bool(spec.history_messages) != bool(spec.history_bytes):
        zero, other = (
            ("history_messages", "history_bytes") if spec.history_bytes else ("history_bytes", "history_messages")
        )
        yield zero, f"no message would be kept, although {other} says so: set both to 0, or neither"
    elif spec.ack == "logged" and not spec.history_messages:
        yield (
            "ack",
            'nothing is kept here (history_messages = 0), so no log holds what is published: set ack = "sequenced"',
        )
    elif spec.ack == "logged" and not logs:
        yield "ack", 'log.backend = none keeps nothing that outlives the router: set ack = "sequenced", or use a log'
    whole = (spec.payload_bytes_max or longest) + ENVELOPE_BYTES
    if 0 < spec.history_bytes < whole:
        yield (
            "history_bytes",
            f"the longest message has {whole} bytes and would never be kept: raise it, or lower payload_bytes_max",
        )


def _of_domain(spec: NamespaceSpec) -> Iterator[tuple[str, str]]:
    """Options that a domain has no use for."""
    base = _BUILT_IN.get(spec.name)
    if base is not None and base.domain != spec.domain:
        yield "domain", f"the protocol says that {spec.name} is {base.domain}: take another name"
    if spec.domain != "group" and spec.join != "anyone":
        yield "join", f"channels of domain {spec.domain} are joined with HELLO, by nobody else: leave it out"
    if spec.domain == "group" and spec.join == "server" and spec.publish == "members":
        yield (
            "publish",
            'with join = "server" no client is a member, so that none could publish: say "anyone", or "server" for the'
            " admin API alone",
        )
    if spec.domain != "session" and spec.new_device != "last_ack":
        yield "new_device", "it is about channels of a user, domain session: leave it out"
    if spec.name != "user" and spec.login != "many":
        yield "login", "how many sessions a user may have is said of the namespace user alone: leave it out"
    if spec.domain == "global":
        if spec.publish == "members":
            yield "publish", 'everybody is a member: say "anyone", or "server" for the admin API alone'
        if spec.presence:
            yield "presence", "everybody receives a global channel, so that nobody's presence is kept: leave it out"
        if spec.slow_consumer != "disconnect":
            yield "slow_consumer", "a global channel has no members of its own to be held aside for: leave it out"
        if spec.events:
            yield "events", "nobody joins a global channel or leaves it: leave it out"
    elif spec.events and not spec.presence:
        yield "events", "who joined and who left is known from presence: set presence = true, or events = false"
