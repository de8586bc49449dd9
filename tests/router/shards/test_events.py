"""Events and effects are values: each has its place in the machines, none is left out."""

import typing

from router.shards import claims, leadership
from router.shards import events as ev


def test_the_machine_of_shards_takes_every_event() -> None:
    assert set(leadership._HANDLERS) == set(typing.get_args(ev.Event))
    assert all(hasattr(leadership.Leadership, name) for name in leadership._HANDLERS.values())


def test_the_machine_of_sessions_takes_every_event() -> None:
    assert set(claims._HANDLERS) == set(typing.get_args(claims.SessionEvent))
    assert all(hasattr(claims.SessionClaims, name) for name in claims._HANDLERS.values())


def test_effects_are_values() -> None:
    for effect in typing.get_args(ev.Effect):
        assert issubclass(effect, tuple)
        assert effect.__doc__
