"""Where settings come from, which is refused, and that every refusal says what to do."""

from pathlib import Path

import pytest

from gateway import settings
from gateway.cluster_config import is_loopback
from gateway.config import Config
from gateway.errors import ConfigError
from gateway.namespaces import words_of
from gateway.settings import Machine, load

MACHINE = Machine(hostname="host-1", processors=4, open_files_max=20_000)
SECRET = "s" * 32
TOKEN = "t" * 16


def loaded(
    toml: str = "",
    environ: dict[str, str] | None = None,
    flags: dict[str, object] | None = None,
    tmp: Path | None = None,
) -> Config:
    path = None
    if tmp is not None:
        path = tmp / "holdfast.toml"
        path.write_text(toml)
    return load(path, environ or {}, flags or {}, MACHINE)


def complaints(*arguments: object, **options: object) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(*arguments, **options)  # type: ignore[arg-type]
    return str(caught.value)


def test_defaults_are_chosen_for_the_machine() -> None:
    config = loaded()
    assert config.development
    assert config.node.name == "host-1"
    assert config.gateway.workers == 3
    assert config.gateway.host == "127.0.0.1"
    assert (config.gateway.port, config.gateway.ws_port, config.admin.port) == (7400, 7401, 7402)
    assert config.gateway.connections_max == 20_000 - 256
    assert config.gateway.handshakes_max == 4_096


@pytest.mark.parametrize(("processors", "workers"), [(1, 1), (2, 1), (8, 7)])
def test_one_processor_is_left_for_the_router(processors: int, workers: int) -> None:
    assert load(None, {}, {}, Machine("h", processors, 20_000)).gateway.workers == workers


def test_each_source_overrides_those_before_it(tmp_path: Path) -> None:
    toml = "[gateway]\nport = 1001\nws_port = 1002\nping_ms = 10000\n[log]\nlevel = 'debug'"
    environ = {"HOLDFAST_GATEWAY_WS_PORT": "2002", "HOLDFAST_GATEWAY_PING_MS": "20000"}
    config = loaded(toml, environ, {"gateway.ping_ms": 30_000, "gateway.workers": None}, tmp=tmp_path)
    assert (config.gateway.port, config.gateway.ws_port, config.gateway.ping_ms) == (1001, 2002, 30_000)
    assert config.log.level == "debug"
    assert config.gateway.workers == 3


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "other.toml"
    path.write_text("[gateway]\nport = 1001")
    assert loaded(environ={"HOLDFAST_CONFIG": str(path)}).gateway.port == 1001


def test_a_secret_ends_development_mode_and_opens_the_gateway_but_not_the_admin_server() -> None:
    config = loaded(environ={"HOLDFAST_AUTH_SECRET": SECRET})
    assert not config.development
    assert config.gateway.host == "0.0.0.0"
    assert config.admin.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("Yes", True), ("1", True), ("off", False), ("FALSE", False), ("", False)]
)
def test_environment_switches(text: str, value: bool) -> None:
    assert loaded(environ={"HOLDFAST_GATEWAY_PROXY_PROTOCOL": text}).gateway.proxy_protocol is value


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[gateway]\nprot = 1", "unknown key gateway.prot in {}; did you mean gateway.port?"),
        ("[admin]\nsecret = 'x'", "unknown key admin.secret in {}; did you mean auth.secret?"),
        ("[gatway]\nport = 1", "unknown section [gatway] in {}; did you mean [gateway]?"),
        ("[gateway]\nxyzzy = 1", "unknown key gateway.xyzzy in {}; [gateway] has workers, host, port"),
        ("[zzz]\na = 1", "unknown section [zzz] in {}; known: node, gateway, router, admin, auth, log"),
        ("gateway = 1", "gateway in {} must be a section: write [gateway] above its keys"),
        ("[gateway", "{} is not valid TOML"),
        ("[gateway]\nport = 65536", "gateway.port = 65536 in {}: must be a whole number between 1 and 65535"),
        (
            "[gateway]\nchannels_per_session_max = 32001",  # a session counts its memberships in 16 bits
            "gateway.channels_per_session_max = 32001 in {}: must be a whole number between 1 and 32000",
        ),
        ("[gateway]\nport = 0", "gateway.port = 0 in {}: must be a whole number between 1 and 65535"),
        ("[gateway]\nport = '7400'", 'gateway.port = "7400" in {}: must be a whole number'),
        ("[gateway]\nport = true", "gateway.port = true in {}: must be a whole number"),
        ("[gateway]\nport = 1.5", "gateway.port = 1.5 in {}: must be a whole number"),
        ("[gateway]\nproxy_protocol = 1", "gateway.proxy_protocol = 1 in {}: must be true or false"),
        ("[log]\nlevel = 'loud'", 'log.level = "loud" in {}: must be debug, info, warning or error.'),
        (
            "[router]\nendpoint = 'redis://x'",
            'router.endpoint = "redis://x" in {}: must be ipc:///path or tcp://host:port',
        ),
        ("[node]\nname = 'a b'", 'node.name = "a b" in {}: must be up to 63 letters, digits'),
        ("[auth]\nalgorithms = 'HS512'", 'auth.algorithms = "HS512" in {}: must be HS256, RS256 and ES256, or some'),
        ("[log]\nredis_url = 'http://x'", "log.redis_url = (hidden) in {}: must be a URL that begins with redis://"),
    ],
)
def test_the_file_is_refused_with_what_to_do(toml: str, said: str, tmp_path: Path) -> None:
    assert said.format(tmp_path / "holdfast.toml") in complaints(toml, tmp=tmp_path)


def test_each_form_that_a_text_must_have_is_said_in_words() -> None:
    """A pattern is no advice; only where it is a choice of words, these are listed."""
    for key, annotated in settings._keys().items():
        if annotated.__metadata__[0].pattern and not words_of(annotated):
            assert settings.FORMS[key]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "HOLDFAST_GATEWAY_PROT",
            "1",
            "unknown environment variable HOLDFAST_GATEWAY_PROT; did you mean HOLDFAST_GATEWAY_",
        ),
        (
            "HOLDFAST_GATEWAY_PORT",
            "x",
            'gateway.port = "x" in the environment (HOLDFAST_GATEWAY_PORT): must be a whole',
        ),
        ("HOLDFAST_GATEWAY_PROXY_PROTOCOL", "maybe", "must be true or false"),
    ],
)
def test_the_environment_is_refused_with_what_to_do(name: str, value: str, said: str) -> None:
    assert said in complaints(environ={name: value})


def test_variables_that_kubernetes_sets_beside_a_service_are_no_settings() -> None:
    environ = {
        "HOLDFAST_SERVICE_HOST": "10.0.0.7",
        "HOLDFAST_SERVICE_PORT": "7400",
        "HOLDFAST_SERVICE_PORT_WS": "7401",
        "HOLDFAST_PORT": "tcp://10.0.0.7:7400",
        "HOLDFAST_PORT_7400_TCP": "tcp://10.0.0.7:7400",
        "HOLDFAST_PORT_7400_TCP_ADDR": "10.0.0.7",
        "HOLDFAST_GATEWAY_PORT": "tcp://10.0.0.7:7400",
        "HOLDFAST_GATEWAY_PORT_7400_TCP_PROTO": "tcp",
    }
    assert loaded(environ=environ).gateway.port == 7400


def test_all_complaints_come_together(tmp_path: Path) -> None:
    said = complaints(
        "[gateway]\nprot = 1\nport = 0", {"HOLDFAST_LOG_LEVEL": "x"}, {"gateway.workers": -1}, tmp=tmp_path
    )
    assert len(said.splitlines()) == 4
    assert "gateway.workers = -1 on the command line: must be a whole number between 0 and 256" in said


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration file .*none\.toml: No such file"):
        load(tmp_path / "none.toml", {}, {}, MACHINE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auth.secret", "hunter2"),
        ("auth.secret", 12345678),
        ("admin.token", "hunter2"),
        ("log.redis_url", "redis+sentinel://:hunter2@one"),
        ("log.redis_url", "http://:hunter2@one"),
    ],
)
def test_secrets_are_never_shown(key: str, value: object) -> None:
    said = complaints(flags={key: value})
    assert key in said
    assert str(value) not in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"gateway.host": "0.0.0.0"}, "in development mode anybody who reaches the port may be any user"),
        ({"gateway.host": "10.0.0.7"}, "Set auth.secret (HOLDFAST_AUTH_SECRET), or gateway.host = 127.0.0.1"),
        ({"gateway.host": "::"}, "without auth.secret"),
        ({"gateway.host": "example.org"}, "must be an IPv4 or IPv6 address"),
        ({"router.endpoint": "tcp://0.0.0.0:7410"}, "router.endpoint = tcp://0.0.0.0:7410 without auth.secret"),
        ({"router.endpoint": "tcp://127.0.0.1:70000"}, "its port must be between 1 and 65535"),
        ({"admin.host": "0.0.0.0"}, "without admin.token"),
        ({"admin.host": "0.0.0.0", "auth.secret": SECRET}, "without admin.token"),
        ({"auth.secret": "s" * 31}, "auth.secret has 31 bytes: must be 32 or more"),
        ({"auth.secret": "s" * 4097}, "auth.secret has 4097 bytes: must be 4096 or fewer"),
        ({"admin.token": "t" * 15}, "admin.token has 15 characters: must be 16 or more"),
        ({"gateway.port": 7401}, "gateway.ws_port and gateway.port are both 7401"),
        ({"admin.port": 7400}, "admin.port and gateway.port are both 7400"),
        ({"gateway.connections_max": 19_745}, "needs 20001 open files in each worker, but the limit here is 20000"),
        ({"gateway.connections_max": 10, "gateway.handshakes_max": 11}, "gateway.handshakes_max = 11 must not be more"),
        ({"gateway.max_frame": 600_000}, "gateway.queue_bytes_max = 1048576 must be at least twice gateway.max_frame"),
        ({"gateway.kept_bytes_max": 65_536}, "gateway.kept_bytes_max = 65536 must be at least twice gateway.max_frame"),
        ({"gateway.publish_burst": 5}, "without gateway.publish_rate"),
        ({"gateway.ping_ms": 1_000, "gateway.misses": 1}, "hello_timeout_ms = 5000 is longer than"),
        (
            {"gateway.resume_token_age_max_s": 600, "gateway.resume_token_ttl_s": 601},
            "gateway.resume_token_age_max_s = 600 is less than resume_token_ttl_s = 601",
        ),
        ({"gateway.tls_key": "/etc/passwd"}, "belong together"),
        ({"gateway.tls_key": "/none", "gateway.tls_certificate": "/none"}, 'gateway.tls_key = "/none": no such file'),
        ({"log.backend": "redis"}, "needs log.redis_url: say where it is"),
        (
            {"log.redis_url": "redis+sentinel://:hunter2@one"},
            "log.redis_url: redis+sentinel:// needs the primary's name",
        ),
        ({"log.redis_url": "redis://one:0"}, "log.redis_url: `0` is no port"),
    ],
)
def test_values_that_do_not_fit_each_other_are_refused(flags: dict[str, object], said: str) -> None:
    assert said in complaints(flags=flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"gateway.host": "0.0.0.0", "auth.secret": SECRET},
        {"gateway.host": "::1"},
        {"gateway.host": "localhost"},
        {"admin.host": "0.0.0.0", "admin.token": TOKEN},
        {"router.endpoint": "tcp://[::1]:7410"},
        {"router.endpoint": "tcp://0.0.0.0:7410", "auth.secret": SECRET},
        {"gateway.connections_max": 19_744},
        {"gateway.resume_token_age_max_s": 600, "gateway.resume_token_ttl_s": 600},
    ],
)
def test_values_that_just_fit_are_taken(flags: dict[str, object]) -> None:
    loaded(flags=flags)


def test_a_rate_without_a_burst_allows_one_second_of_it_at_once() -> None:
    assert loaded(flags={"gateway.publish_rate": 20}).gateway.publish_burst == 20


@pytest.mark.parametrize(("name", "usable"), [("ünï host!", "n--host-"), ("...", "node"), ("a" * 80, "a" * 63)])
def test_the_host_name_is_made_a_usable_node_name(name: str, usable: str) -> None:
    assert load(None, {}, {}, Machine(name, 2, 20_000)).node.name == usable


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_addresses(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "127.0.0.1.example.org", ""])
def test_other_addresses(host: str) -> None:
    assert not is_loopback(host)


def test_numbers_may_have_a_fraction_where_that_makes_sense(tmp_path: Path) -> None:
    assert loaded("[growth]\nthreshold_percent = 0.25", tmp=tmp_path).growth.threshold_percent == 0.25
    assert loaded("[growth]\nthreshold_percent = 2", tmp=tmp_path).growth.threshold_percent == 2
    assert loaded(environ={"HOLDFAST_GROWTH_THRESHOLD_PERCENT": "0.5"}).growth.threshold_percent == 0.5
    refused = complaints(environ={"HOLDFAST_GROWTH_THRESHOLD_PERCENT": "lots"})
    assert "growth.threshold_percent" in refused
    assert "a number between 0.01 and 1000000" in refused
