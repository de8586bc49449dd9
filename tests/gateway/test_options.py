"""The list of settings is a file that can be used."""

import re
import tomllib

import msgspec

from gateway.config import Config
from gateway.options import as_toml


def test_as_it_is_it_changes_nothing() -> None:
    assert all(section == {} for section in tomllib.loads(as_toml()).values())


def test_with_every_line_taken_in_it_is_the_default_configuration() -> None:
    taken = re.sub(r"^#(\w+ = )", r"\1", as_toml(), flags=re.MULTILINE)
    assert msgspec.convert(tomllib.loads(taken), Config) == Config()
    assert sum(len(section) for section in tomllib.loads(taken).values()) == sum(
        len(msgspec.structs.fields(field.type)) for field in msgspec.structs.fields(Config)
    )
