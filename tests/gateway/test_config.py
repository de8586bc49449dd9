"""The types hold what the brief of each process needs, and the ranges hold the defaults."""

from typing import Any

import msgspec
import pytest

from gateway.cluster_config import RouterSection
from gateway.config import SECTIONS, GatewaySection, WorkerConfig, router_config, worker_config
from gateway.settings import Machine, load
from router.config import DirectoryConfig, RouterConfig

MACHINE = Machine("host-1", 2, 20_000)
SECRET = "s" * 32


def fields() -> list[Any]:
    found = []
    for name, section in SECTIONS.items():
        for field in msgspec.structs.fields(section):
            found.append(pytest.param(field, id=f"{name}.{field.name}"))
    return found


@pytest.mark.parametrize("field", fields())
def test_every_field_has_a_meaning_and_a_default_within_its_range(field: Any) -> None:
    assert msgspec.convert(field.default, field.type) == field.default
    meta: msgspec.Meta = field.type.__metadata__[0]
    assert meta.description
    if field.type.__origin__ is int:
        assert meta.ge is not None
        assert meta.le is not None


def test_a_worker_gets_its_part_and_reads_it_back() -> None:
    flags: dict[str, object] = {name: value for name, value in [("auth.secret", SECRET), ("gateway.ping_ms", 9_000)]}
    config = load(None, {}, flags, MACHINE)
    part = worker_config(config, index=3, epoch=77, router_endpoint="ipc:///run/x", stats_fd=8, commands_fd=9)
    assert (part.index, part.epoch, part.router_endpoint, part.stats_fd, part.commands_fd) == (
        3,
        77,
        "ipc:///run/x",
        8,
        9,
    )
    assert (part.node, part.secret, part.ping_ms, part.host) == ("host-1", SECRET, 9_000, "0.0.0.0")
    assert part.tls_certificate is None
    assert msgspec.json.decode(msgspec.json.encode(part), type=WorkerConfig) == part


def test_development_mode_reaches_the_worker_as_no_secret() -> None:
    part = worker_config(load(None, {}, {}, MACHINE), index=0, epoch=1, router_endpoint="ipc:///x")
    assert part.secret is None


def test_every_option_of_the_gateway_reaches_the_worker() -> None:
    own = {"workers", "advertise"}  # how many there are, and what others are told, is the supervisor's business
    assert set(GatewaySection.__struct_fields__) - own <= set(WorkerConfig.__struct_fields__)


def test_every_option_of_the_router_reaches_it() -> None:
    told = {*RouterConfig.__struct_fields__, *DirectoryConfig.__struct_fields__}
    assert set(RouterSection.__struct_fields__) <= told
    config = load(None, {}, {"router.channels_max": 5, "router.endpoint": "tcp://127.0.0.1:1"}, MACHINE)
    part = router_config(config, epoch=7, endpoint="ipc:///other")
    assert part.globals_bytes_max == config.gateway.max_frame // 2
    assert (part.channels_max, part.endpoint, part.epoch) == (5, "ipc:///other", 7)


def test_process_parts_and_sections_have_the_same_defaults() -> None:
    defaults = {field.name: field.default for field in msgspec.structs.fields(WorkerConfig)}
    chosen = {
        "workers",
        "advertise",
        "host",
        "port",
        "ws_port",
        "connections_max",
        "handshakes_max",
        "tls_certificate",
        "tls_key",
    }
    for field in msgspec.structs.fields(GatewaySection):
        if field.name not in chosen:
            assert defaults[field.name] == field.default, field.name
    parts = (*msgspec.structs.fields(RouterConfig), *msgspec.structs.fields(DirectoryConfig))
    defaults = {field.name: field.default for field in parts}
    for field in msgspec.structs.fields(RouterSection):
        if field.name != "endpoint":
            assert defaults[field.name] == field.default, field.name


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="extra"):
        msgspec.json.decode(b'{"node":"n","endpoint":"ipc:///x","epoch":1,"extra":1}', type=RouterConfig)
