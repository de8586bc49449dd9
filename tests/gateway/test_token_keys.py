"""Files of keys: PEM and JWKS, one key or several, and the ones that must not be there named."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from gateway.errors import ConfigError
from gateway.token_keys import FILE_BYTES_MAX, KEYS_MAX, KeyFile
from tests.gateway.token_makers import EC_KEY, OTHER_RSA_KEY, RSA_KEY, jwk, pem


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def read(path: Path, content: Any) -> list[tuple[str, str | None]]:
    """The keys of a file with this content, by algorithm and kid."""
    text = content if isinstance(content, bytes | str) else json.dumps(content)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return [(key.algorithm, key.kid) for key in KeyFile(str(path)).read()]


def private(key: Any) -> bytes:
    found: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return found


def test_pem_holds_one_key_or_several_with_anything_between_them(path: Path) -> None:
    assert read(path, pem(RSA_KEY)) == [("RS256", None)]
    several = b"of the shop\n" + pem(RSA_KEY) + b"\n" + pem(EC_KEY) + b"end\n"
    assert read(path, several) == [("RS256", None), ("ES256", None)]
    old = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.PKCS1)
    assert read(path, old) == [("RS256", None)]


def test_a_jwks_gives_its_keys_by_kid(path: Path) -> None:
    keys = [jwk(RSA_KEY, kid="a", use="sig", alg="RS256"), jwk(OTHER_RSA_KEY), jwk(EC_KEY, kid="c")]
    assert read(path, {"keys": keys}) == [("RS256", "a"), ("RS256", None), ("ES256", "c")]
    path.write_text(json.dumps({"keys": keys}))
    found = KeyFile(str(path)).read()
    assert found[0].key.public_numbers() == RSA_KEY.public_key().public_numbers()
    assert found[2].key.public_numbers() == EC_KEY.public_key().public_numbers()


def test_keys_of_a_set_that_are_for_other_uses_are_passed_over(path: Path) -> None:
    others = [
        jwk(RSA_KEY, use="enc"),
        jwk(RSA_KEY, alg="RS512"),
        jwk(ec.generate_private_key(ec.SECP384R1())),
        {"kty": "OKP", "crv": "Ed25519", "x": "AAAA"},
        {"kty": "later"},
    ]
    assert read(path, {"keys": [*others, jwk(EC_KEY)]}) == [("ES256", None)]
    with pytest.raises(ConfigError, match="has no key"):
        read(path, {"keys": others})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "has no key"),
        (b"\xff\xfe", "neither PEM nor JSON"),
        (b"{", "Expecting"),
        ({}, "is {"),
        ({"keys": {}}, "is {"),
        ({"keys": ["a"]}, "is {"),
        ({"keys": [{"kty": "oct", "k": "AAAA"}]}, "holds a secret"),
        ({"keys": [jwk(RSA_KEY, d="AAAA")]}, "holds a secret"),
        ({"keys": [jwk(RSA_KEY, kid=5)]}, "kid is a string"),
        ({"keys": [{"kty": "RSA", "kid": "x"}]}, "the key x cannot be read"),
        ({"keys": [{"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"}]}, "cannot be read"),
        ({"keys": [jwk(EC_KEY)] * (KEYS_MAX + 1)}, "at most"),
        (private(RSA_KEY), "holds a private key"),
        (pem(rsa.generate_private_key(65_537, 1_024)), "too weak"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "only RSA keys"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "only RSA keys"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "is no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "auth.keys_file"),
        (b" " * (FILE_BYTES_MAX + 1), "is longer"),
    ],
)
def test_what_cannot_be_used_is_said_with_the_file(path: Path, content: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        read(path, content)
    assert str(path) in str(refused.value)


def test_a_file_that_is_not_there_is_said(path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        KeyFile(str(path)).read()


def test_a_change_of_the_file_is_seen_also_when_it_keeps_its_size(path: Path) -> None:
    path.write_bytes(pem(RSA_KEY))
    file = KeyFile(str(path))
    assert file.changed()
    file.read()
    assert not file.changed()
    os.utime(path, ns=(1, 1))
    assert file.changed()
    file.read()
    other = path.with_name("other")
    other.write_bytes(pem(OTHER_RSA_KEY))
    os.utime(other, ns=(1, 1))
    other.replace(path)
    assert file.changed()
    path.unlink()
    assert file.changed()
