"""The table of namespaces: what is found for a channel's name, and what is refused."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.namespace_spec import BUILT_IN, NAMESPACES_MAX, NamespaceSpec
from core.namespaces import NamespaceTable

CHAT = NamespaceSpec(
    name="chat",
    domain="group",
    ack="sequenced",
    history_messages=7,
    history_bytes=8,
    history_age_s=9,
    payload_bytes_max=10,
    publish="server",
    join="token",
    slow_consumer="conflate",
    presence=False,
    events=True,
    new_device="live",
)


@pytest.mark.parametrize("spec", [*BUILT_IN, CHAT])
def test_a_channel_finds_all_that_its_namespace_says(spec: NamespaceSpec) -> None:
    found = NamespaceTable([*BUILT_IN, CHAT]).find(f"{spec.name}:x".encode())
    expected = msgspec.structs.asdict(spec)
    del expected["login"]  # the control thread's alone
    assert found == expected


@pytest.mark.parametrize("channel", [b"", b":", b":x", b"group", b"group:", b"groups:x", b"grou:x", b"x" * 40 + b":y"])
def test_what_has_no_namespace_finds_none(channel: bytes) -> None:
    assert NamespaceTable(BUILT_IN).find(channel) is None


@given(st.binary(max_size=255))
def test_any_bytes_find_what_stands_before_their_first_colon(channel: bytes) -> None:
    prefix, colon, rest = channel.partition(b":")
    expected = prefix.decode() if colon and rest and prefix in {b"user", b"group", b"global"} else None
    found = NamespaceTable(BUILT_IN).find(channel)
    assert (found and found["name"]) == expected


@pytest.mark.parametrize(
    ("specs", "why"),
    [
        ([CHAT, CHAT], "twice"),
        ([msgspec.structs.replace(CHAT, name="a:b")], "no colon"),
        ([msgspec.structs.replace(CHAT, name="x" * 32)], "1 to 31 bytes"),
        ([msgspec.structs.replace(CHAT, name="")], "1 to 31 bytes"),
        ([msgspec.structs.replace(CHAT, name=f"n{at}") for at in range(NAMESPACES_MAX + 1)], "at most"),
        ([msgspec.structs.replace(CHAT, domain="room")], "not in tuple"),
    ],
)
def test_a_table_that_cannot_be_is_refused(specs: list[NamespaceSpec], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        NamespaceTable(specs)
