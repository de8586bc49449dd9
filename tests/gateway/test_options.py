"""The list of settings is a file that can be used, and the page of settings is what the fields say."""

import re
import tomllib
from pathlib import Path

import msgspec

from core.namespace_spec import BUILT_IN, NamespaceSpec
from gateway.config import SECTIONS, Config
from gateway.namespaces import OPTIONS
from gateway.options import as_markdown, as_toml
from gateway.settings import Machine, load

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
MACHINE = Machine("host-1", 2, 20_000)


def test_as_it_is_it_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.toml"
    path.write_text(as_toml())
    assert load(path, {}, {}, MACHINE) == load(None, {}, {}, MACHINE)
    read = tomllib.loads(as_toml())
    assert read.pop("namespaces") == {spec.name: {} for spec in BUILT_IN}
    assert read == {name: {} for name in SECTIONS}


def test_with_every_line_taken_in_it_is_the_default_configuration() -> None:
    taken = tomllib.loads(re.sub(r"^#(\w+ = )", r"\1", as_toml(), flags=re.MULTILINE))
    specs = taken.pop("namespaces")
    assert tuple(NamespaceSpec(name=name, **options) for name, options in specs.items()) == BUILT_IN
    assert all(options.keys() == OPTIONS.keys() for options in specs.values())
    assert msgspec.convert(taken, Config) == Config()
    assert sum(len(section) for section in taken.values()) == sum(
        len(msgspec.structs.fields(struct)) for struct in SECTIONS.values()
    )


def test_the_page_is_what_the_command_prints() -> None:
    assert PAGE.read_text() == as_markdown(), "run `holdfast config doc > docs/configuration.md`"


def test_the_page_says_each_option_once_with_its_default_and_range() -> None:
    page = as_markdown()
    for name, struct in SECTIONS.items():
        section = page.partition(f"\n## [{name}]\n")[2].partition("\n## ")[0]
        assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(struct.__struct_fields__)
    assert "| `port` | whole number | `7400` | 1 to 65535 | TCP port" in page
    assert (
        '| `ack` | text | `"logged"` | `"logged"` | `"logged"` | `sequenced`, `logged`, `replicated` | What an answer'
        in page
    )


def test_its_example_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "holdfast.toml"
    path.write_text(re.findall(r"```toml\n(.*?)```", as_markdown(), re.DOTALL)[0])
    specs = {spec.name: spec for spec in load(path, {}, {}, MACHINE).namespaces}
    assert specs["team"].join == "token"
    assert specs["typing"].ack == "sequenced"
