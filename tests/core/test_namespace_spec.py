"""The specification of a namespace: the built-in ones are those of the protocol page."""

import re
from pathlib import Path

import msgspec
import pytest

from core.namespace_spec import BUILT_IN, NamespaceSpec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"


def test_the_built_in_namespaces_are_those_of_the_protocol_page() -> None:
    rows = re.findall(r"^\| (session|group|global) \| `(\w+):", PAGE.read_text(), re.MULTILINE)
    assert {(spec.domain, spec.name) for spec in BUILT_IN} == set(rows)


def test_a_field_that_is_not_known_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `colour`"):
        msgspec.convert({"name": "a", "domain": "group", "colour": "red"}, NamespaceSpec)
