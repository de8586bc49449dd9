"""Reads the configuration from its sources and checks it, once, at the start of the program.

Sources, each overriding those before it: the defaults in `gateway.config`, one TOML file, the environment
(`HOLDFAST_<SECTION>_<KEY>`), the command line. Every complaint names the key, the value, where it came from, what is
allowed and what to do; all complaints about single keys come together, and so do those about keys that do not fit
each other. Below this module nothing reads the environment.
"""

import difflib
import ipaddress
import os
import re
import resource
import socket
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from gateway import cluster_config, namespaces, region_config
from gateway.cluster_config import is_loopback
from gateway.config import SECTIONS, Config
from gateway.errors import ConfigError
from router.log import redis_url

ENVIRONMENT_PREFIX = "HOLDFAST_"
CONFIG_VARIABLE = "HOLDFAST_CONFIG"
# Variables of the same prefix that belong to the build and the tests, not to a running node.
_OTHER_VARIABLES = re.compile(r"HOLDFAST_(CONFIG$|BUILD$|CHECKS$|CHAOS$|INJECT$|TEST_)")
# Kubernetes sets these for a service called `holdfast` or `holdfast-gateway` (`enableServiceLinks`, on by default);
# HOLDFAST_GATEWAY_PORT=tcp://10.0.0.7:7400 would otherwise stop every pod beside such a service.
_KUBERNETES_NAMES = re.compile(r".*_(SERVICE_(HOST|PORT(_.+)?)|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
_KUBERNETES_VALUES = re.compile(r"(tcp|udp|sctp)://")
HIDDEN_KEYS = frozenset({"auth.secret", "admin.token", "log.redis_url"}) | cluster_config.HIDDEN_KEYS
# What a text must be that has a pattern, in words.
FORMS = {
    "node.name": "up to 63 letters, digits, dots, dashes and underscores, of which the first is a letter or digit",
    "gateway.ws_path": "a path that begins with a slash, without spaces, of 256 characters at most",
    "router.endpoint": "ipc:///path or tcp://host:port",
    "auth.algorithms": "HS256, RS256 and ES256, or some of them, with commas and no spaces between",
    "log.redis_url": "a URL that begins with redis://, rediss://, redis+sentinel:// or redis+cluster://",
    "log.redis_prefix": "1 to 64 letters, digits, colons, dots, _ and -",
    "growth.hook_url": "a URL that begins with http:// or https://, without spaces",
    **cluster_config.FORMS,
}
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})

# Descriptors a worker needs beside its connections: listeners, epoll, event and timer fds, ZeroMQ's own, logs, and one
# kept in reserve so that a connection beyond the limit can be accepted and refused politely.
FDS_BESIDE_CONNECTIONS = 256
CONNECTIONS_AUTO_MAX = 100_000
HANDSHAKES_AUTO_MAX = 4_096
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 32, 4_096
TOKEN_CHARACTERS_MIN = 16


@dataclass(frozen=True)
class Machine:
    """What the defaults depend on."""

    hostname: str
    processors: int
    open_files_max: int

    @classmethod
    def here(cls) -> "Machine":
        """The machine that this process runs on, as far as it may use it."""
        open_files_max = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        if open_files_max == resource.RLIM_INFINITY:
            open_files_max = 1_048_576
        return cls(socket.gethostname(), len(os.sched_getaffinity(0)), open_files_max)


@dataclass(frozen=True)
class _Given:
    """One value from one source."""

    key: str
    value: object
    source: str
    text: bool  # a string that still has to be read as the key's type


def load(
    path: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, object],
    machine: Machine | None = None,
) -> Config:
    """The configuration of this start.

    Args:
        path: the TOML file; None: the one that HOLDFAST_CONFIG names, if any.
        environ: the environment.
        flags: `section.key` to value, for the options given on the command line; None is "not given".
        machine: what the defaults depend on; this machine unless told.

    Raises:
        ConfigError: with every complaint, one a line.

    """
    return load_with_sources(path, environ, flags, machine)[0]


def load_with_sources(
    path: Path | None,
    environ: Mapping[str, str],
    flags: Mapping[str, object],
    machine: Machine | None = None,
) -> tuple[Config, dict[str, str]]:
    """The same, and of each key that is set anywhere from where its value is, such as `in the environment (NAME)`."""
    complaints: list[str] = []
    given: dict[str, _Given] = {}
    file = path or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    for one in _from_file(file, complaints):
        given[one.key] = one
    names = {spec.name for spec in Config().namespaces} | {
        namespaces.parts_of(key)[0] for key in given if _is_of_namespace(key)
    }
    for one in [*_from_environment(environ, names, complaints), *_from_flags(flags)]:
        given[one.key] = one
    values: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
    specs: dict[str, dict[str, object]] = {}
    for one in given.values():
        section, _, name = one.key.rpartition(".")
        into = specs.setdefault(section.partition(".")[2], {}) if _is_of_namespace(one.key) else values[section]
        try:
            into[name] = _checked(one)
        except ConfigError as error:
            complaints.append(str(error))
    logs = values["log"].get("backend") != "none"
    built = namespaces.built(specs, complaints, logs=logs)
    _complain(complaints)
    config = msgspec.structs.replace(msgspec.convert(values, Config), namespaces=built)
    config = _with_choices(config, machine or Machine.here(), environ)
    _complain(list(_misfits(config, machine or Machine.here())))
    return config, {key: one.source for key, one in given.items()}


def _complain(complaints: list[str]) -> None:
    if complaints:
        raise ConfigError("\n".join(complaints))


# ---------------------------------------------------------------------------------------------------------- the keys


def _keys() -> dict[str, Any]:
    """Every `section.key` with its annotated type; those of namespaces, whose names are free, are not among them."""
    return {
        f"{section}.{field.name}": field.type
        for section, struct in SECTIONS.items()
        for field in msgspec.structs.fields(struct)
    }


def _is_of_namespace(key: str) -> bool:
    return key.startswith(f"{namespaces.SECTION}.")


def _type_of(key: str) -> Any:
    return namespaces.OPTIONS[namespaces.parts_of(key)[1]] if _is_of_namespace(key) else _keys()[key]


def _variable(key: str) -> str:
    return ENVIRONMENT_PREFIX + re.sub(r"[.-]", "_", key).upper()


def _nearest(word: str, known: list[str]) -> str:
    """A question with the known word most like `word`, or nothing when none is like it."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


# ------------------------------------------------------------------------------------------------------- the sources


def _from_file(path: Path | None, complaints: list[str]) -> Iterator[_Given]:
    if path is None:
        return
    known = list(_keys())
    sections = [*SECTIONS, namespaces.SECTION]
    for section, content in _read_toml(path).items():
        if section not in sections:
            hint = _nearest(f"[{section}]", [f"[{name}]" for name in sections]) or f"; known: {', '.join(sections)}"
            complaints.append(f"unknown section [{section}] in {path}{hint}")
        elif not isinstance(content, dict):
            complaints.append(f"{section} in {path} must be a section: write [{section}] above its keys")
        elif section == namespaces.SECTION:
            yield from _namespaces_from_file(content, path, complaints)
        else:
            for name, value in content.items():
                key = f"{section}.{name}"
                if key == "log.regions" and isinstance(value, dict):
                    value = region_config.as_text(value)
                if key in known:
                    yield _Given(key, value, f"in {path}", text=False)
                else:
                    complaints.append(f"unknown key {key} in {path}{_nearest_key(section, name)}")


def _namespaces_from_file(content: dict[str, Any], path: Path, complaints: list[str]) -> Iterator[_Given]:
    for name, options in content.items():
        section = f"{namespaces.SECTION}.{name}"
        if not isinstance(options, dict):
            complaints.append(
                f"{section} in {path} must be a section: a namespace's options stand below"
                f" [{namespaces.SECTION}.<name>]"
            )
        elif not namespaces.is_name(name):
            complaints.append(
                f'[{namespaces.SECTION}."{name}"] in {path}: a namespace is called by a small letter and up to 30 of'
                " small letters, digits, - and _"
            )
        else:
            for option, value in options.items():
                if option in namespaces.OPTIONS:
                    yield _Given(f"{section}.{option}", value, f"in {path}", text=False)
                else:
                    hint = _nearest(option, list(namespaces.OPTIONS)) or (
                        f"; a namespace has {', '.join(namespaces.OPTIONS)}"
                    )
                    complaints.append(f"unknown key {section}.{option} in {path}{hint}")


def _nearest_key(section: str, name: str) -> str:
    """Looks in the key's own section first, since that is where people mean it to be; only names are compared."""
    keys = [key.split(".") for key in _keys()]
    own = [key for in_section, key in keys if in_section == section]
    for candidates in (own, [key for _, key in keys]):
        found = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
        if found:
            place = section if candidates is own else next(where for where, key in keys if key == found[0])
            return f"; did you mean {place}.{found[0]}?"
    return f"; [{section}] has {', '.join(own)}"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def _from_environment(environ: Mapping[str, str], names: set[str], complaints: list[str]) -> Iterator[_Given]:
    """Settings among the variables; `names`: the namespaces that are known so far."""
    known = {_variable(key): key for key in _keys()}
    of_namespaces = _variable(namespaces.SECTION) + "_"
    for name, value in environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or _OTHER_VARIABLES.match(name) or _set_by_kubernetes(name, value):
            continue
        key = known.get(name)
        if name.startswith(of_namespaces):
            key = namespaces.key_of_variable(name.removeprefix(of_namespaces), names)
        if key is None:
            examples = [_variable(namespaces.key_of(one, option)) for one in names for option in namespaces.OPTIONS]
            complaints.append(f"unknown environment variable {name}{_nearest(name, [*known, *examples])}")
        elif value:  # an empty variable is what compose files and manifests leave for "not set"
            yield _Given(key, value, f"in the environment ({name})", text=True)


def _set_by_kubernetes(name: str, value: str) -> bool:
    return bool(_KUBERNETES_NAMES.fullmatch(name) or (name.endswith("_PORT") and _KUBERNETES_VALUES.match(value)))


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for key, value in flags.items():
        if value is not None:
            yield _Given(key, value, "on the command line", text=False)


# --------------------------------------------------------------------------------------------------- one key's value


def _checked(given: _Given) -> object:
    """The value as the key's type; a ConfigError names all that is needed to put it right."""
    annotated = _type_of(given.key)
    shown = "(hidden)" if given.key in HIDDEN_KEYS else _shown(given.value)
    if isinstance(given.value, str) and given.value.endswith(("\n", "\r")):
        shown = shown.replace("\n", "\\n").replace("\r", "\\r")
        raise ConfigError(
            f"{given.key} = {shown} {given.source}: ends with a line break, as a file often does, or a Secret made of"
            " one. Take it away"
        )
    try:
        value = _read_text(str(given.value), annotated) if given.text else given.value
        return msgspec.convert(value, annotated)
    except (msgspec.ValidationError, ValueError) as error:
        allowed, about = _allowed(given.key, annotated)
        raise ConfigError(f"{given.key} = {shown} {given.source}: must be {allowed}. {about}") from error


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _read_text(text: str, annotated: object) -> object:
    kind = msgspec.inspect.type_info(annotated)
    kind = kind.type if isinstance(kind, msgspec.inspect.Metadata) else kind
    if isinstance(kind, msgspec.inspect.IntType):
        return int(text)
    if isinstance(kind, msgspec.inspect.FloatType):
        return float(text)
    if isinstance(kind, msgspec.inspect.BoolType):
        if text.lower() not in _TRUE | _FALSE:
            raise ValueError(text)
        return text.lower() in _TRUE
    return text


def _allowed(key: str, annotated: Any) -> tuple[str, str]:
    """What a value of the key may be, in words, and the key's description."""
    meta: msgspec.Meta = annotated.__metadata__[0]
    about = meta.description or ""
    if annotated.__origin__ is int:
        return f"a whole number between {meta.ge} and {meta.le}", about
    if annotated.__origin__ is float:
        return f"a number between {meta.ge} and {meta.le}", about
    if annotated.__origin__ is bool:
        return "true or false", about
    words = namespaces.words_of(annotated)
    if words:
        *first, last = words
        return f"{', '.join(first)} or {last}", about
    if meta.pattern:
        return FORMS[key], about
    if meta.max_length:
        return f"text of at most {meta.max_length} characters", about
    return "text" if not meta.min_length else "text that is not empty", about


# -------------------------------------------------------------------------------------------- choices and the whole


def _with_choices(config: Config, machine: Machine, environ: Mapping[str, str]) -> Config:
    """Replaces each "empty: choose" by the choice, so that all who read the configuration see the same."""
    gateway, replace = config.gateway, msgspec.structs.replace
    connections_max = gateway.connections_max or min(
        CONNECTIONS_AUTO_MAX, max(1, machine.open_files_max - FDS_BESIDE_CONNECTIONS)
    )
    gateway = replace(
        gateway,
        workers=gateway.workers or max(1, machine.processors - 1),
        host=_numeric(gateway.host or ("127.0.0.1" if config.development else "0.0.0.0")),
        connections_max=connections_max,
        handshakes_max=gateway.handshakes_max or min(HANDSHAKES_AUTO_MAX, connections_max),
        publish_burst=gateway.publish_burst or gateway.publish_rate,
    )
    name = config.node.name or re.sub(r"[^A-Za-z0-9._-]", "-", machine.hostname)[:63].lstrip("._-") or "node"
    admin = replace(config.admin, host=_numeric(config.admin.host))
    recovery = replace(config.recovery, host=_numeric(config.recovery.host or gateway.host))
    log = replace(config.log, directory=config.log.directory or str(_state_home(environ) / "holdfast" / name))
    return replace(
        config, gateway=gateway, node=replace(config.node, name=name), admin=admin, recovery=recovery, log=log
    )


def _state_home(environ: Mapping[str, str]) -> Path:
    """Where a user's programs keep their state (XDG Base Directory Specification); a service without a home has its
    own.
    """
    if environ.get("XDG_STATE_HOME"):
        return Path(environ["XDG_STATE_HOME"])
    return Path(environ["HOME"]) / ".local" / "state" if environ.get("HOME") else Path("/var/lib")


def _numeric(host: str) -> str:
    return "127.0.0.1" if host == "localhost" else host


def _misfits(config: Config, machine: Machine) -> Iterator[str]:
    """What is wrong although each value by itself is allowed."""
    rules: tuple[Callable[[Config], Iterator[str]], ...] = (
        _addresses,
        _access,
        _tokens,
        _timeouts,
        _sizes,
        _tls,
        _namespaces,
        _log,
        cluster_config.misfits,
    )
    for rule in rules:
        yield from rule(config)
    needed = config.gateway.connections_max + FDS_BESIDE_CONNECTIONS
    if needed > machine.open_files_max and config.gateway.connections_max > 1:
        yield (
            f"gateway.connections_max = {config.gateway.connections_max} needs {needed} open files in each worker, but"
            f" the limit here is {machine.open_files_max}: raise it (ulimit -Hn, LimitNOFILE=) or set at most"
            f" {machine.open_files_max - FDS_BESIDE_CONNECTIONS}"
        )


def _log(config: Config) -> Iterator[str]:
    if config.log.redis_url:
        try:
            redis_url.parse(config.log.redis_url)
        except ValueError as error:
            yield f"log.redis_url: {error}"
    elif config.log.backend == "redis":
        yield "log.backend = redis needs log.redis_url: say where it is, such as redis://127.0.0.1:6379/0"


def _addresses(config: Config) -> Iterator[str]:
    hosts = {section: getattr(config, section).host for section in ("gateway", "admin", "recovery")}
    for key, host in ((f"{section}.host", host) for section, host in hosts.items()):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            yield f'{key} = "{host}": must be an IPv4 or IPv6 address of this machine, or localhost'
    ports: dict[int, str] = {}
    for key, port in (
        ("gateway.port", config.gateway.port),
        ("gateway.ws_port", config.gateway.ws_port),
        ("admin.port", config.admin.port),
        ("recovery.port", config.recovery.port),
    ):
        if port and port in ports:
            yield f"{key} and {ports[port]} are both {port}: each needs a port of its own"
        ports[port] = key
    if config.router.endpoint.startswith("tcp://"):
        port = int(config.router.endpoint.rpartition(":")[2])
        if not 1 <= port <= 65_535:
            yield f'router.endpoint = "{config.router.endpoint}": its port must be between 1 and 65535'


def _access(config: Config) -> Iterator[str]:
    """Who may reach what without showing who they are."""
    secret, token, host = config.auth.secret, config.admin.token, config.gateway.host
    if secret and len(secret.encode()) < SECRET_BYTES_MIN:
        yield f"auth.secret has {len(secret.encode())} bytes: must be {SECRET_BYTES_MIN} or more (openssl rand -hex 32)"
    if len(secret.encode()) > SECRET_BYTES_MAX:
        yield f"auth.secret has {len(secret.encode())} bytes: must be {SECRET_BYTES_MAX} or fewer"
    if token and len(token) < TOKEN_CHARACTERS_MIN:
        yield f"admin.token has {len(token)} characters: must be {TOKEN_CHARACTERS_MIN} or more (openssl rand -hex 32)"
    if not secret and not is_loopback(host):
        yield (
            f"gateway.host = {host} without auth.secret: in development mode anybody who reaches the port may be any"
            " user, so only loopback is allowed. Set auth.secret (HOLDFAST_AUTH_SECRET), or gateway.host = 127.0.0.1"
        )
    if not token and not is_loopback(config.admin.host):
        yield (
            f"admin.host = {config.admin.host} without admin.token: anybody who reaches the port could publish as"
            " anybody. Set admin.token (HOLDFAST_ADMIN_TOKEN), or admin.host = 127.0.0.1"
        )
    endpoint = config.router.endpoint
    if not secret and endpoint.startswith("tcp://") and not is_loopback(endpoint[6:].rpartition(":")[0]):
        yield (
            f"router.endpoint = {endpoint} without auth.secret: development mode keeps to this machine. Set"
            " auth.secret (HOLDFAST_AUTH_SECRET), or use a loopback address"
        )


def _tokens(config: Config) -> Iterator[str]:
    """What tokens are checked with."""
    auth = config.auth
    algorithms = set(auth.algorithms.split(",")) - {""}
    if auth.secret.lstrip().startswith(("-----BEGIN", "ssh-")):
        yield "auth.secret is a key for another algorithm than HS256: public keys belong into auth.keys_file"
    if not auth.secret:
        for key, value in (("keys_file", auth.keys_file), ("algorithms", auth.algorithms)):
            if value:
                yield f"auth.{key} without auth.secret, which signs resume tokens: set both (openssl rand -hex 32)"
    elif algorithms & {"RS256", "ES256"} and not auth.keys_file:
        yield f"auth.algorithms = {auth.algorithms} needs auth.keys_file, with the public keys"
    if auth.keys_file:
        from gateway.token_keys import KeyFile  # here: with the library of keys a command starts 0.1 s later

        try:
            kinds = {key.algorithm for key in KeyFile(auth.keys_file).read()}
        except ConfigError as error:
            yield str(error)
            return
        for algorithm in sorted(algorithms - {"HS256"} - kinds):
            yield f"auth.algorithms has {algorithm}, but auth.keys_file {auth.keys_file} has no key for it"


def _timeouts(config: Config) -> Iterator[str]:
    gateway = config.gateway
    if gateway.resume_token_age_max_s < gateway.resume_token_ttl_s:
        yield (
            f"gateway.resume_token_age_max_s = {gateway.resume_token_age_max_s} is less than resume_token_ttl_s ="
            f" {gateway.resume_token_ttl_s}, for which a token is good in any case: raise one, or lower the other"
        )
    if gateway.hello_timeout_ms > gateway.ping_ms * gateway.misses:
        yield (
            f"gateway.hello_timeout_ms = {gateway.hello_timeout_ms} is longer than ping_ms * misses ="
            f" {gateway.ping_ms * gateway.misses}: a silent connection would be given up before its time for HELLO ends"
        )
    if gateway.publish_burst and not gateway.publish_rate:
        yield f"gateway.publish_burst = {gateway.publish_burst} without gateway.publish_rate: set the rate too"


def _sizes(config: Config) -> Iterator[str]:
    gateway, router = config.gateway, config.router
    for key, size in (
        ("gateway.queue_bytes_max", gateway.queue_bytes_max),
        ("gateway.kept_bytes_max", gateway.kept_bytes_max),
        ("router.spill_bytes_max", router.spill_bytes_max),
    ):
        if size < 2 * gateway.max_frame:
            yield f"{key} = {size} must be at least twice gateway.max_frame ({gateway.max_frame}): raise it"
    if gateway.handshakes_max > gateway.connections_max:
        yield (
            f"gateway.handshakes_max = {gateway.handshakes_max} must not be more than gateway.connections_max"
            f" ({gateway.connections_max})"
        )


def _namespaces(config: Config) -> Iterator[str]:
    yield from namespaces.misfits(config.namespaces, config.gateway.max_frame, logs=config.log.backend != "none")


def _tls(config: Config) -> Iterator[str]:
    certificate, key = config.gateway.tls_certificate, config.gateway.tls_key
    if bool(certificate) != bool(key):
        yield "gateway.tls_certificate and gateway.tls_key belong together: set both or neither"
    for name, path in (("tls_certificate", certificate), ("tls_key", key)):
        if path and not os.access(path, os.R_OK):
            yield f'gateway.{name} = "{path}": no such file, or it may not be read'
