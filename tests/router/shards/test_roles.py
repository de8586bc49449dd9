"""Settings that cannot work are refused with what is wrong."""

from typing import Any

import pytest

from router.shards.roles import Settings


def test_a_move_fits_into_what_is_promised() -> None:
    settings = Settings()
    assert settings.drain_s < 0.2
    # A shard that nobody leads is claimed by the last of all within the two seconds that a takeover may take.
    assert settings.patience_s * settings.patience_rank_max + settings.retry_s < 2.0


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"shards": 0}, "0 shards"),
        ({"shards": 70_000}, "70000 shards"),
        ({"drain_s": 3.0}, "does not fit"),
        ({"margin_s": -0.1}, "above 0"),
        ({"retry_s": 0.0}, "above 0"),
        ({"patience_rank_max": 0}, "patience_rank_max"),
        ({"region": "eu", "regions": frozenset({"eu", "us"})}, "'eu' has to be one beside eu, us"),
        ({"regions": frozenset({"us"})}, "'' has to be one beside us"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Settings(**given)
