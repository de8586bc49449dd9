"""Namespaces of the configuration: what is made of them, which are refused, and that every refusal says what to do."""

from pathlib import Path

import msgspec
import pytest

from core.namespace_spec import BUILT_IN, NAMESPACES_MAX, NamespaceSpec
from gateway.config import Config
from gateway.errors import ConfigError
from gateway.namespaces import OPTIONS, built_in_of, key_of, key_of_variable, parts_of, words_of
from gateway.settings import Machine, load

MACHINE = Machine("host-1", 2, 20_000)


def loaded(toml: str, tmp: Path, **environ: str) -> dict[str, NamespaceSpec]:
    path = tmp / "holdfast.toml"
    path.write_text(toml)
    specs = load(
        path, {f"HOLDFAST_NAMESPACES_{name}": value for name, value in environ.items()}, {}, MACHINE
    ).namespaces
    return {spec.name: spec for spec in specs}


def complaints(toml: str, tmp: Path, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(toml, tmp, **environ)
    return str(caught.value).splitlines()


def test_every_option_has_a_meaning_and_a_range_that_holds_the_defaults() -> None:
    for field in msgspec.structs.fields(NamespaceSpec):
        meta: msgspec.Meta = field.type.__metadata__[0]
        assert meta.description
        for spec in BUILT_IN:
            value = getattr(spec, field.name)
            assert msgspec.convert(value, field.type) == value
        assert field.type.__origin__ is not int or None not in (meta.ge, meta.le)


def test_without_a_word_there_are_the_built_in_ones() -> None:
    assert load(None, {}, {}, MACHINE).namespaces == Config().namespaces == BUILT_IN


def test_a_section_changes_a_built_in_namespace_and_leaves_the_rest(tmp_path: Path) -> None:
    specs = loaded("[namespaces.group]\nhistory_age_s = 60\nevents = true", tmp_path)
    group = next(spec for spec in BUILT_IN if spec.name == "group")
    assert specs.pop("group") == msgspec.structs.replace(group, history_age_s=60, events=True)
    assert list(specs.values()) == [spec for spec in BUILT_IN if spec.name != "group"]


@pytest.mark.parametrize(("domain", "like"), [(spec.domain, spec) for spec in BUILT_IN])
def test_a_new_one_starts_from_the_built_in_one_of_its_domain(domain: str, like: NamespaceSpec, tmp_path: Path) -> None:
    made = loaded(f"[namespaces.mine]\ndomain = '{domain}'\nhistory_messages = 5", tmp_path)["mine"]
    assert made == msgspec.structs.replace(like, name="mine", history_messages=5)
    assert built_in_of(made) == like


def test_the_environment_overrides_the_file_and_may_make_namespaces(tmp_path: Path) -> None:
    specs = loaded(
        "[namespaces.group]\nhistory_age_s = 60\n[namespaces.team-chat]\ndomain = 'group'",
        tmp_path,
        GROUP_HISTORY_AGE_S="70",
        TEAM_CHAT_EVENTS="yes",
        INBOX_DOMAIN="session",
        INBOX_HISTORY_MESSAGES="",
    )
    assert specs["group"].history_age_s == 70
    assert specs["team-chat"].events
    assert specs["inbox"] == msgspec.structs.replace(BUILT_IN[0], name="inbox")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["group", "a_b", "team-chat", "x_ack", "x_history_bytes"])
def test_a_variable_names_one_option_of_one_namespace(name: str, option: str) -> None:
    variable = f"{name}_{option}".upper().replace("-", "_")
    found = key_of_variable(variable, {"team-chat", "group"})
    assert found == key_of(name, option)
    assert parts_of(key_of(name, option)) == (name, option)


@pytest.mark.parametrize("rest", ["", "ACK", "_ACK", "GROUP", "GROUP_ACKS", "9_ACK"])
def test_other_variables_name_none(rest: str) -> None:
    assert key_of_variable(rest, {"group"}) is None


def test_the_words_of_an_option() -> None:
    assert words_of(OPTIONS["ack"]) == ["sequenced", "logged", "replicated"]
    assert words_of(OPTIONS["history_bytes"]) == []


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        (
            "[namespaces.group]\nhistory_mesages = 1",
            "unknown key namespaces.group.history_mesages in {}; did you mean history_messages?",
        ),
        ("[namespaces.group]\nxyzzy = 1", "unknown key namespaces.group.xyzzy in {}; a namespace has domain, ack,"),
        ("[namespaces.group]\nname = 'x'", "unknown key namespaces.group.name in {}"),
        ("[namespaces]\nack = 'logged'", "namespaces.ack in {} must be a section: a namespace's options stand below"),
        ("namespaces = 1", "namespaces in {} must be a section"),
        ("[namespace.group]\nack = 'logged'", "unknown section [namespace] in {}; did you mean [namespaces]?"),
        ("[namespaces.Chat]\ndomain = 'group'", '[namespaces."Chat"] in {}: a namespace is called by a small letter'),
        ("[namespaces.'a.b']\ndomain = 'group'", '[namespaces."a.b"] in {}: a namespace is called by'),
        (f"[namespaces.{'x' * 32}]\ndomain = 'group'", "up to 30 of small letters"),
        (
            "[namespaces.group]\nack = 'written'",
            'namespaces.group.ack = "written" in {}: must be sequenced, logged or replicated.',
        ),
        ("[namespaces.group]\njoin = 'all'", "must be anyone, token or server. Who may join a group"),
        ("[namespaces.group]\nhistory_age_s = 0", "must be a whole number between 1 and"),
        ("[namespaces.group]\nevents = 1", "namespaces.group.events = 1 in {}: must be true or false"),
        (
            "[namespaces.groups]\nack = 'logged'",
            "says who receives, session, group or global; or did you mean [namespaces.group]?",
        ),
        ("[namespaces.chat]\nack = 'logged'", "namespaces.chat.domain is missing"),
        (
            "[namespaces.group]\ndomain = 'global'",
            'namespaces.group.domain = "global": the protocol says that group is group: take another name',
        ),
        (
            "[namespaces.group]\nhistory_messages = 0\nack = 'logged'",
            'namespaces.group.ack = "logged": nothing is kept here',
        ),
        (
            "[namespaces.group]\nhistory_messages = 0\nhistory_bytes = 70000",
            "namespaces.group.history_messages = 0: no message would be kept, although history_bytes says so",
        ),
        (
            "[namespaces.group]\nhistory_bytes = 0\nhistory_messages = 5",
            "namespaces.group.history_bytes = 0: no message would be kept, although history_messages says so",
        ),
        (
            "[namespaces.group]\nhistory_bytes = 65535",
            "namespaces.group.history_bytes = 65535: the longest message has 65536 bytes and would never be kept",
        ),
        ("[namespaces.group]\nhistory_bytes = 2023\npayload_bytes_max = 1000", "the longest message has 2024 bytes"),
        (
            "[namespaces.group]\npayload_bytes_max = 64513",
            "namespaces.group.payload_bytes_max = 64513: gateway.max_frame = 65536 leaves 64512 for data",
        ),
        ("[namespaces.user]\nack = 'logged'\n[log]\nbackend = 'none'", "log.backend = none keeps nothing"),
        (
            "[namespaces.user]\njoin = 'token'",
            'namespaces.user.join = "token": channels of domain session are joined with HELLO',
        ),
        ("[namespaces.global]\njoin = 'server'", "channels of domain global are joined with HELLO"),
        (
            "[namespaces.group]\nnew_device = 'live'",
            'namespaces.group.new_device = "live": it is about channels of a user',
        ),
        ("[namespaces.global]\npublish = 'members'", 'namespaces.global.publish = "members": everybody is a member'),
        (
            "[namespaces.global]\npresence = true",
            "namespaces.global.presence = true: everybody receives a global channel",
        ),
        (
            "[namespaces.global]\nevents = true",
            "namespaces.global.events = true: nobody joins a global channel or leaves it: leave it out",
        ),
        (
            "[namespaces.closed]\ndomain = 'group'\njoin = 'server'",
            'namespaces.closed.publish = "members": with join = "server" no client is a member',
        ),
        (
            "[namespaces.global]\nslow_consumer = 'conflate'",
            'namespaces.global.slow_consumer = "conflate": a global channel has no members of its own',
        ),
        ("[namespaces.group]\nevents = true\npresence = false", "namespaces.group.events = true: who joined"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(toml: str, said: str, tmp_path: Path) -> None:
    assert said.format(tmp_path / "holdfast.toml") in "\n".join(complaints(toml, tmp_path))


@pytest.mark.parametrize(
    "toml",
    [
        "[namespaces.typing]\ndomain = 'group'\nhistory_messages = 0\nhistory_bytes = 0\nack = 'sequenced'",
        "[namespaces.group]\nhistory_bytes = 65536",
        "[namespaces.group]\nhistory_bytes = 2024\npayload_bytes_max = 1000",
        "[namespaces.group]\npayload_bytes_max = 64512",
        "[namespaces.notes]\ndomain = 'session'\npublish = 'members'\nnew_device = 'start'",
        "[namespaces.group]\njoin = 'server'\npublish = 'anyone'",
        "[namespaces.group]\njoin = 'token'\nslow_consumer = 'conflate'",
    ],
)
def test_what_just_fits_is_taken(toml: str, tmp_path: Path) -> None:
    loaded(toml, tmp_path)


@pytest.mark.parametrize("option", ["history_messages", "history_bytes"])
def test_without_history_the_rest_is_chosen_to_fit(option: str, tmp_path: Path) -> None:
    made = loaded(f"[namespaces.typing]\ndomain = 'group'\n{option} = 0", tmp_path)["typing"]
    assert (made.history_messages, made.history_bytes, made.ack) == (0, 0, "sequenced")


def test_without_a_log_nothing_is_promised_to_be_in_it(tmp_path: Path) -> None:
    specs = loaded("[log]\nbackend = 'none'\n[namespaces.chat]\ndomain = 'group'", tmp_path)
    assert {spec.ack for spec in specs.values()} == {"sequenced"}
    assert {spec.ack for spec in loaded("", tmp_path).values()} == {"logged"}


def test_all_complaints_come_together(tmp_path: Path) -> None:
    toml = "[namespaces.group]\nacks = 1\njoin = 'x'\n[namespaces.chat]\nack = 'logged'"
    said = complaints(toml, tmp_path, GROUP_EVENTS="perhaps", GROUP_COLOUR="red")
    assert len(said) == 5
    assert sum("HOLDFAST_NAMESPACES_GROUP_COLOUR" in one for one in said) == 1
    misfit = complaints("[namespaces.user]\njoin = 'server'\n[namespaces.group]\nhistory_bytes = 9", tmp_path)
    assert len(misfit) == 2


def test_there_is_a_bound_to_their_number(tmp_path: Path) -> None:
    def sections(count: int) -> str:
        return "\n".join(f"[namespaces.n{number}]\ndomain = 'group'" for number in range(count))

    assert len(loaded(sections(NAMESPACES_MAX - 3), tmp_path)) == NAMESPACES_MAX
    assert complaints(sections(NAMESPACES_MAX - 2), tmp_path) == [
        "there are 65 namespaces, 3 of them built in: there may be 64"
    ]
