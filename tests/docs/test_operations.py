"""docs/operations.md: its tables name every deadline there is, with the value that it has."""

import importlib
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core.namespace_spec import NamespaceSpec
from gateway.config import SECTIONS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
HEADINGS = (
    "Running",
    "Check the machine",
    "The embedded log",
    "The log in Redis",
    "Two nodes, one log",
    "Many nodes",
    "Upgrading",
    "What outlives what",
    "Deadlines",
    "Connections",
    "Tokens and bans",
    "What waits for a user",
    "What is in a channel",
    "The ledger",
    "Growth",
    "Drain and restart",
    "Supervision",
    "Alerts",
    "Soak and chaos",
)


ALL_OF = ("directory", "bus")
"""Sections of which the page has all settings, whether they are times or not."""
CODE = ("gateway", "router", "core")


def rows() -> dict[str, str]:
    """What stands in backquotes in a row's first cell, and the second cell."""
    return dict(re.findall(r"^\| `(\w+\.[\w.]+)` \| ([^|]*?) \|", PAGE, re.MULTILINE))


def settings() -> dict[str, object]:
    """Every setting that is a time, those that multiply one, and all of the sections about many nodes."""
    structs: dict[str, type[msgspec.Struct]] = {**SECTIONS, "namespaces.group": NamespaceSpec}
    return {
        f"{name}.{field.name}": field.default
        for name, struct in structs.items()
        for field in msgspec.structs.fields(struct)
        if field.name.endswith(("_ms", "_s", "_seconds")) or field.name == "misses" or name in ALL_OF
    }


def said(default: object) -> str:
    """As a table says it."""
    if isinstance(default, bool):
        return str(default).lower()
    return str(default) or "none"


def deadlines() -> set[str]:
    """Constants of the code that are called so."""
    found = set()
    for path in (file for folder in CODE for file in (ROOT / folder).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found |= {f"{module}.{name}" for name in re.findall(r"^([A-Z_]*DEADLINE_S)\b", path.read_text(), re.MULTILINE)}
    return found


def constants() -> dict[str, str]:
    return {name: value for name, value in rows().items() if name.rpartition(".")[2].isupper()}


def test_every_setting_that_is_a_deadline_or_of_many_nodes_stands_in_a_table_with_its_default() -> None:
    stated = {name: value for name, value in rows().items() if name not in constants()}
    assert stated == {name: said(default) for name, default in settings().items()}


def test_every_fixed_deadline_has_a_row() -> None:
    assert deadlines() - set(constants()) == set()


@pytest.mark.parametrize("name", constants())
def test_a_fixed_deadline_is_what_the_page_says(name: str) -> None:
    module, _, constant = name.rpartition(".")
    value: Any = getattr(importlib.import_module(module), constant)
    assert constants()[name] == f"{value:g} s"


def test_the_page_has_its_sections_in_order() -> None:
    assert tuple(re.findall(r"^## (.+)$", PAGE, re.MULTILINE)) == HEADINGS


def test_what_the_page_names_in_the_code_is_there() -> None:
    for module, name in re.findall(r"`((?:gateway|core|router)\.\w+)\.([A-Z_]+)`", PAGE):
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
