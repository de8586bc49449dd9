"""The values of the log port; what its two sides do with them is in tests/contract/."""

import inspect

from core.ban_list import RESUME_AGE_MAX_MS
from core.shards import byte_of
from router.log import port


def test_every_error_of_the_port_is_one_of_its_tree() -> None:
    errors = [one for one in vars(port).values() if inspect.isclass(one) and issubclass(one, Exception)]
    assert len(errors) > 1
    assert all(issubclass(one, port.LogError) for one in errors)


def test_changes_of_one_save_are_not_those_of_another() -> None:
    one, other = port.Changes(), port.Changes()
    one.sessions[b"s"] = port.SessionChange()
    one.sessions[b"s"].channels["group:a"] = port.Position(1, 2)
    assert other.sessions == {}
    assert port.SessionChange().channels == {}


def test_a_ban_is_kept_as_long_as_it_holds_and_as_there_may_be_tokens_that_it_killed() -> None:
    made_ms = 1_793_491_200_000
    assert port.Ban("eve", made_ms + 1, since_ms=made_ms).kept_ms == made_ms + RESUME_AGE_MAX_MS
    long_ms = made_ms + 2 * RESUME_AGE_MAX_MS
    assert port.Ban("eve", long_ms, since_ms=made_ms).kept_ms == long_ms


def test_of_some_shards_nothing_is_left_in_changes() -> None:
    changes = port.Changes()
    changes.sessions = {bytes([byte]) * 16: port.SessionChange() for byte in (1, 2, 5)}
    changes.cursors = {name: port.Position(1, 1) for name in ("user:alice", "user:bob")}
    gone = byte_of(b"user:bob")
    changes.drop(lambda byte: byte in (2, gone))
    assert [session[0] for session in changes.sessions] == [1, 5]
    assert list(changes.cursors) == ["user:alice"]
