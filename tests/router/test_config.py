"""The router's part: frozen, strict, and readable from JSON."""

import msgspec
import pytest

from router.config import RouterConfig


def test_it_survives_the_pipe() -> None:
    config = RouterConfig(node="n", endpoint="ipc:///run/x/router.sock", epoch=9)
    assert msgspec.json.decode(msgspec.json.encode(config), type=RouterConfig) == config


@pytest.mark.parametrize(
    "text",
    [
        b'{"node":"n","endpoint":"e"}',
        b'{"node":"n","endpoint":"e","epoch":"1"}',
        b'{"node":"n","endpoint":"e","epoch":1,"x":1}',
    ],
)
def test_what_is_missing_wrong_or_unknown_is_refused(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=RouterConfig)


def test_it_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        RouterConfig(node="n", endpoint="e", epoch=1).epoch = 2  # type: ignore[misc]
