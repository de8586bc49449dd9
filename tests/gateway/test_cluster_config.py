"""Settings of many nodes: what does not fit together, and what the processes are told of them."""

import json
from pathlib import Path

import msgspec
import pytest
import zmq

from gateway.cluster_config import address, bus_endpoint, directory_config, is_loopback, link_of
from gateway.config import Config, router_config, worker_config
from gateway.errors import ConfigError
from gateway.settings import Machine, load
from router.agreement import start_here
from tests.servers.certificates import self_signed

MACHINE = Machine(hostname="host-1", processors=4, open_files_max=20_000)
SECRET = "s" * 32
ETCD: dict[str, object] = {"directory.endpoints": "etcd-0:2379,etcd-1:2379", "log.backend": "none"}
NODE = ETCD | {"bus.advertise": "127.0.0.1:7410"}
FAR = ETCD | {"bus.advertise": "10.0.0.5:7410", "auth.secret": SECRET}
FAR6 = FAR | {"bus.insecure": True, "bus.advertise": "[fd00::5]:7410"}
PUBLIC, PRIVATE = (key.decode() for key in zmq.curve_keypair())


def configured(given: dict[str, object]) -> Config:
    return load(None, {}, given, MACHINE)


def complaints(given: dict[str, object]) -> str:
    with pytest.raises(ConfigError) as caught:
        configured(given)
    return str(caught.value)


def test_without_a_directory_a_node_is_alone() -> None:
    config = configured({})
    assert not config.clustered
    assert (config.node.role, directory_config(config)) == ("all", None)
    assert router_config(config, epoch=1, endpoint="ipc:///x").directory is None


def test_the_router_is_told_its_directory_and_how_it_is_reached() -> None:
    given = NODE | {"directory.ttl_s": 5, "directory.shards": 64, "router.weight": 3, "router.leave_s": 7}
    told = router_config(configured(given), epoch=1, endpoint="tcp://127.0.0.1:7410").directory
    assert told is not None
    assert told.endpoints == ("etcd-0:2379", "etcd-1:2379")
    assert (told.prefix, told.ttl_s, told.shards, told.weight, told.leave_s) == ("holdfast/", 5, 64, 3, 7)
    reached = {"bus": "tcp://127.0.0.1:7410", "admin": "http://127.0.0.1:7402"}
    assert json.loads(told.address) == reached | {"start": start_here()}


def test_a_router_with_keys_tells_its_public_one_alone() -> None:
    config = configured(FAR | {"bus.public_key": PUBLIC, "bus.secret_key": PRIVATE})
    assert json.loads(address(config))["key"] == PUBLIC
    assert PRIVATE not in address(config)
    told = router_config(config, epoch=1, endpoint="tcp://*:7410")
    assert (told.bus_public_key, told.bus_secret_key) == (PUBLIC, PRIVATE)
    worker = worker_config(config, index=0, epoch=1, router_endpoint="")
    assert (worker.bus_public_key, worker.bus_secret_key) == (PUBLIC, PRIVATE)


def test_an_admin_server_on_all_addresses_is_reached_where_the_bus_is() -> None:
    given = FAR | {"bus.insecure": True, "admin.host": "0.0.0.0", "admin.token": "t" * 16}
    assert json.loads(address(configured(given)))["admin"] == "http://10.0.0.5:7402"


@pytest.mark.parametrize(
    ("advertise", "host"),
    [
        ("[fd00::5]:7410", "[fd00::5]"),
        ("fd00:0:0:0:0:0:0:5:7410", "[fd00:0:0:0:0:0:0:5]"),  # eight parts and a ninth: that is a port
        ("[10.0.0.5]:7410", "10.0.0.5"),  # as [$(POD_IP)]:7410 says it
    ],
)
def test_an_ipv6_address_is_told_in_brackets_and_no_other(advertise: str, host: str) -> None:
    given = FAR6 | {"bus.advertise": advertise, "admin.host": "::", "admin.token": "t" * 16}
    told = json.loads(address(configured(given)))
    assert (told["bus"], told["admin"]) == (f"tcp://{host}:7410", f"http://{host}:7402")


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        (NODE, "tcp://127.0.0.1:7410"),
        (FAR | {"bus.insecure": True}, "tcp://*:7410"),
        (NODE | {"router.endpoint": "tcp://127.0.0.1:7411"}, "tcp://127.0.0.1:7411"),
        (NODE | {"bus.advertise": "[::1]:7410"}, "tcp://[::1]:7410"),
        (FAR6, "tcp://[::]:7410"),
        (FAR6 | {"bus.advertise": "[10.0.0.5]:7410"}, "tcp://*:7410"),
    ],
)
def test_the_router_listens_where_it_can_be_reached(given: dict[str, object], endpoint: str) -> None:
    assert bus_endpoint(configured(given)) == endpoint


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"node.role": "router"}, "node.role = router without directory.endpoints"),
        ({"node.role": "gateway"}, "node.role = gateway without directory.endpoints"),
        ({"node.role": "both"}, 'node.role = "both" on the command line: must be all, gateway or router'),
        ({"bus.advertise": "127.0.0.1:7410"}, "bus.advertise = 127.0.0.1:7410 without directory.endpoints"),
        ({"bus.advertise": "here"}, "must be host:port, such as 10.0.0.5:7410"),
        (ETCD, "directory.endpoints without bus.advertise"),
        (NODE | {"node.name": "a.gw"}, "node.name = a.gw: what ends with .gw"),
        (NODE | {"log.backend": "embedded"}, "log.backend = embedded with directory.endpoints"),
        (NODE | {"router.endpoint": "ipc:///run/x"}, "router.endpoint = ipc:///run/x with directory.endpoints"),
        (NODE | {"bus.advertise": "127.0.0.1:70000"}, "its port must be between 1 and 65535"),
        (FAR6 | {"bus.advertise": "fd00::1:5"}, "[fd00::1:5]:7410, or [fd00::1]:5 if 5 is the port"),
        (FAR6 | {"bus.advertise": "fd00::5:7410"}, "[fd00::5:7410]:7410, or [fd00::5]:7410 if 7410 is the port"),
        (FAR6 | {"bus.advertise": "fd00::5::1:7410"}, "[fd00::5::1] is no IPv6 address; one stands in brackets"),
        (FAR6 | {"bus.advertise": "fd00::5"}, "behind them: [fd00::5]:7410"),
        (NODE | {"directory.endpoints": "http://etcd:2379"}, "must be host:port of each member"),
        (NODE | {"directory.endpoints": "etcd:99999"}, "[directory]: 'etcd:99999' is no endpoint of etcd"),
        (NODE | {"directory.prefix": "holdfast"}, "of which the last is a slash"),
        (NODE | {"directory.user": "holdfast"}, "[directory]: etcd's user and password go together"),
        (NODE | {"directory.tls_ca": "/nowhere"}, "of no use without tls = true"),
        (NODE | {"directory.tls": True, "directory.tls_ca": "/nowhere"}, 'directory.tls_ca = "/nowhere": no such file'),
        (NODE | {"directory.shards": 100}, "directory.shards = 100: must be a power of two"),
        (FAR | {"bus.insecure": True, "auth.secret": ""}, "bus.advertise = 10.0.0.5:7410 without auth.secret"),
        (FAR, "bus.advertise = 10.0.0.5:7410 without bus.public_key and bus.secret_key"),
        ({"bus.public_key": PUBLIC}, "bus.public_key and bus.secret_key belong together"),
        ({"bus.public_key": PUBLIC, "bus.secret_key": "a" * 40}, "bus.public_key is not that of bus.secret_key"),
        ({"bus.public_key": PUBLIC, "bus.secret_key": "#" * 40}, "bus.public_key is not that of bus.secret_key"),
        (
            {"bus.public_key": PUBLIC, "bus.secret_key": PRIVATE + "\n"},
            "bus.secret_key = (hidden) on the command line: ends",
        ),
        (NODE | {"bus.advertise": "127.0.0.1:7410\n"}, "ends with a line break"),
        (FAR | {"bus.advertise": "0.0.0.0:7410"}, '"0.0.0.0" is for listening; say the address'),
        (FAR | {"bus.advertise": "[::]:7410"}, '"[::]" is for listening'),
        (FAR | {"bus.advertise": "*:7410"}, '"*" is for listening'),
        (FAR | {"bus.advertise": "224.0.0.1:7410"}, '"224.0.0.1" is no address of one node'),
        (FAR | {"bus.advertise": "[$(POD_IP)]:7410"}, '"$(POD_IP)" has a variable that nothing has replaced'),
        (FAR | {"bus.advertise": "[]:7410"}, '"" is no address and no name of a host'),
        (FAR | {"bus.advertise": "10.0.0.300:7410"}, '"10.0.0.300" is no address and no name of a host'),
        ({"bus.secret_key": "short"}, "bus.secret_key = (hidden) on the command line: must be 40 characters of Z85"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_to_do(given: dict[str, object], said: str) -> None:
    assert said in complaints(given)


@pytest.mark.parametrize(
    ("own", "key", "said"),
    [
        ("", "", "tls_ca = "),
        ("client.pem", "client.key", "tls_ca = "),
        ("client.key", "client.pem", "no certificate and its own key"),
        ("client.pem", "other.key", "no certificate and its own key"),
        ("words.pem", "client.key", "no certificate and its own key"),
    ],
)
def test_files_of_tls_that_are_none_are_refused_before_anybody_is_asked(
    tmp_path: Path, own: str, key: str, said: str
) -> None:
    for name in ("client", "other"):
        self_signed(tmp_path, f"{name}.pem", f"{name}.key")
    (tmp_path / "words.pem").write_text("words")
    with_ca = NODE | {"directory.tls": True, "directory.tls_ca": str(tmp_path / "other.pem")}
    fits = {
        "directory.tls_certificate": str(tmp_path / "client.pem"),
        "directory.tls_key": str(tmp_path / "client.key"),
    }
    assert configured(with_ca | fits).clustered
    if said.startswith("tls_ca"):
        for name in ("words.pem", "."):
            assert f"directory.{said}" in complaints(with_ca | fits | {"directory.tls_ca": str(tmp_path / name)})
        return
    wrong = {"directory.tls_certificate": str(tmp_path / own), "directory.tls_key": str(tmp_path / key)}
    assert said in complaints(with_ca | wrong)


@pytest.mark.parametrize(
    "host", ["node-1", "router-0.routers.chat.svc.cluster.local", "db7.", "localhost", "[fe80::1]"]
)
def test_names_and_addresses_of_one_node_are_taken(host: str) -> None:
    assert configured(FAR | {"bus.insecure": True, "bus.advertise": f"{host}:7410"}).clustered


@pytest.mark.parametrize("given", [NODE, FAR | {"bus.insecure": True}, ETCD | {"node.role": "gateway"}])
def test_what_fits_is_taken(given: dict[str, object]) -> None:
    assert configured(given).clustered


def test_a_router_is_found_from_what_its_node_says() -> None:
    config = configured(FAR | {"bus.public_key": PUBLIC, "bus.secret_key": PRIVATE})
    link = link_of("host-1", 7, address(config))
    assert link is not None
    assert (link.name, link.epoch, link.bus, link.key) == ("host-1", 7, "tcp://10.0.0.5:7410", PUBLIC)
    assert msgspec.convert(msgspec.to_builtins(link), type(link)) == link


@pytest.mark.parametrize("text", ["", "10.0.0.5:7410", "[]", "{}", '{"bus": 1}', "null"])
def test_an_address_of_another_form_is_nobodys(text: str) -> None:
    assert link_of("host-1", 7, text) is None


@pytest.mark.parametrize(("host", "own"), [("localhost", True), ("[::1]", True), ("10.0.0.5", False), ("db", False)])
def test_what_only_this_machine_reaches_is_known(host: str, own: bool) -> None:
    assert is_loopback(host) is own
