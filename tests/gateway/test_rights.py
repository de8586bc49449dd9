"""A token's lists of channels: what is taken, what is refused with what to do, and that the data plane agrees."""

from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.namespace_spec import BUILT_IN, JOINERS
from core.rights import RIGHTS_MAX, find
from gateway.rights import Rights

GROUP = next(spec for spec in BUILT_IN if spec.name == "group")
NAMES = st.text("ab:-", min_size=1, max_size=5)
PATTERNS = st.builds(lambda name, star: name + star, NAMES, st.sampled_from(["", "*"]))


@given(st.lists(PATTERNS, max_size=4), NAMES)
def test_what_may_be_joined_is_what_the_data_plane_finds(patterns: list[str], channel: str) -> None:
    rights = Rights.of(patterns, None)
    assert rights.may_join(GROUP, channel, development=False) == find(rights.packed(), "join", channel.encode())


@pytest.mark.parametrize("join", JOINERS)
@pytest.mark.parametrize("development", [False, True])
def test_without_a_list_the_namespace_decides(join: str, development: bool) -> None:
    spec = msgspec.structs.replace(GROUP, join=join)
    expected = join == "anyone" or (join == "token" and development)
    assert Rights().may_join(spec, "group:a", development=development) == expected


def test_nobody_joins_what_the_server_alone_may_join() -> None:
    spec = msgspec.structs.replace(GROUP, join="server")
    assert not Rights.of(["group:*"], None).may_join(spec, "group:a", development=True)


def test_no_list_takes_no_bytes() -> None:
    assert Rights.of(None, None) == Rights()
    assert Rights().packed() == b""
    assert msgpack.unpackb(Rights.of([], ["user:*"]).packed()) == {"join": [], "publish": ["user:*"]}


@pytest.mark.parametrize(
    ("join", "publish", "said"),
    [
        ("group:a", None, "channels must be a list of channels, such as group:lobby"),
        (None, {"group:a": 1}, "publish must be a list"),
        ([1], None, "channels must hold channels, each of 1 to 255 bytes"),
        ([""], None, "1 to 255 bytes"),
        (["x" * 256], None, "1 to 255 bytes"),
        (None, ["group:*:x"], "publish: a * may only stand at the end"),
        (["g" * 250] * (RIGHTS_MAX // 250), None, f"more than {RIGHTS_MAX} bytes: use patterns that end in *"),
    ],
)
def test_lists_that_cannot_be_used_are_refused_with_what_to_do(join: Any, publish: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("*", r"\*")):
        Rights.of(join, publish)
