"""Settings of etcd: what cannot be is refused, and says what to do."""

from pathlib import Path
from typing import Any

import pytest

from router.config import DirectoryConfig
from router.directory.etcd_config import ENDPOINTS_MAX, EtcdConfig, pem
from router.directory.port import Misused

ONE = ("etcd-0:2379",)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"endpoints": ()}, "1 to 16 endpoints"),
        ({"endpoints": ("a:1",) * (ENDPOINTS_MAX + 1)}, "1 to 16 endpoints"),
        ({"endpoints": ("https://a:2379",)}, "TLS is a setting of its own"),
        ({"endpoints": ("a",)}, "host:port"),
        ({"endpoints": (":2379",)}, "host:port"),
        ({"endpoints": ("a:port",)}, "host:port"),
        ({"endpoints": ("a:70000",)}, "host:port"),
        ({"endpoints": ("::1:2379",)}, "in brackets"),
        ({"endpoints": ONE, "prefix": "holdfast"}, "end with `/`"),
        ({"endpoints": ONE, "prefix": ""}, "end with `/`"),
        ({"endpoints": ONE, "user": "a"}, "go together"),
        ({"endpoints": ONE, "password": "a"}, "go together"),
        ({"endpoints": ONE, "tls": True, "cert_file": "a"}, "its key"),
        ({"endpoints": ONE, "tls": True, "key_file": "a"}, "its key"),
        ({"endpoints": ONE, "ca_file": "a"}, "tls = true"),
        ({"endpoints": ONE, "deadline_s": 0.0}, "0.1 to 60 s"),
        ({"endpoints": ONE, "deadline_s": 61.0}, "0.1 to 60 s"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(Misused, match=said):
        EtcdConfig(**settings)


def test_what_a_process_is_told_are_its_settings() -> None:
    files: dict[str, Any] = {"tls_ca": "ca.pem", "tls_certificate": "our.pem", "tls_key": "key.pem"}
    told = DirectoryConfig(endpoints=ONE, prefix="p/", user="hold", password="fast", tls=True, **files)
    assert EtcdConfig.of(told) == EtcdConfig(
        endpoints=ONE,
        prefix="p/",
        user="hold",
        password="fast",
        tls=True,
        ca_file="ca.pem",
        cert_file="our.pem",
        key_file="key.pem",
    )


def test_names_and_addresses_are_endpoints() -> None:
    config = EtcdConfig(endpoints=("etcd-0.etcd:2379", "127.0.0.1:1", "[::1]:65535"))
    assert len(config.endpoints) == 3
    assert config.attempt_s < config.deadline_s


def test_it_shows_itself_without_its_password() -> None:
    shown = f"{EtcdConfig(endpoints=ONE, user='hold', password='secret', tls=True)}"
    assert shown == "etcd at etcd-0:2379 under holdfast/ with TLS"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    there = tmp_path / "ca.pem"
    there.write_bytes(b"text")
    assert pem(str(there), "the authority") == b"text"
    assert pem("", "the authority") is None
    with pytest.raises(Misused, match=r"the authority for etcd cannot be read: .*none.pem"):
        pem(str(tmp_path / "none.pem"), "the authority")
