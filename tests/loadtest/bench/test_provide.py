"""Installing peers: pinned, once, and a failure is told and costs only that peer."""

from dataclasses import replace
from pathlib import Path

import pytest

from loadtest.bench import provide
from loadtest.bench.provide import Installation, NotInstalledError, pinned


@pytest.mark.parametrize(
    ("text", "name", "version"),
    [
        ("# a comment\npicows==2.3.1\nuvloop==0.23.0\n", "uvloop", "0.23.0"),
        ('{"dependencies": {"socket.io": "4.8.4", "ws": "8.23.0"}}', "ws", "8.23.0"),
        ("require (\n\tgithub.com/lxzan/gws v1.8.9\n)", "gws", "1.8.9"),
        ("websockets==17.4", "ws", "unknown"),
    ],
)
def test_versions_are_read_where_they_are_pinned(text: str, name: str, version: str) -> None:
    assert pinned(text, name) == version


def test_every_peer_has_a_version() -> None:
    assert "unknown" not in " ".join(provide.versions().values())


def test_a_peer_is_installed_again_when_its_pins_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pins, done = tmp_path / "pins", []
    pins.write_text("ws 1")
    one = Installation("node", lambda: done.append(pins.read_text()), ("ws",), (pins,))
    monkeypatch.setattr(provide, "INSTALLATIONS", (one, replace(one, name="go", peers=("gws",))))
    monkeypatch.setattr(provide, "PEERS", tmp_path)
    for text in ("ws 1", "ws 1", "ws 2"):
        pins.write_text(text)
        assert provide.provide({"ws"}) == {}
    assert done == ["ws 1", "ws 2"]


def test_a_failed_installation_names_the_step_and_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails() -> None:
        provide.run("sh", "-c", "echo the index is not reachable >&2; exit 3")

    good = Installation("go", lambda: None, ("gws",), ())
    monkeypatch.setattr(provide, "INSTALLATIONS", (Installation("node", fails, ("ws", "socketio"), ()), good))
    monkeypatch.setattr(provide, "PEERS", tmp_path)
    missing = provide.provide({"ws", "socketio", "gws"})
    assert sorted(missing) == ["socketio", "ws"]
    assert "the index is not reachable" in missing["ws"]
    with pytest.raises(NotInstalledError, match="no program holdfast-no-such-program"):
        provide.run("holdfast-no-such-program")
