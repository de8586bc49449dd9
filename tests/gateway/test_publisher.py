"""What routers refuse, as HTTP says it."""

from typing import Any

import pytest

from gateway.errors import RequestError
from gateway.publisher import RouterPublisher
from router.client import Refused, Unavailable


class Link:
    """Stands for the link to the router: raises what it is given."""

    def __init__(self, failure: Exception) -> None:
        self.failure = failure

    async def publish(self, *_: object, **__: object) -> tuple[int, int]:
        raise self.failure


@pytest.mark.parametrize(
    ("failure", "status", "code", "retry_after_s"),
    [
        (Unavailable("no link"), 503, "unavailable", 1),
        (TimeoutError(), 503, "unavailable", 1),
        (Refused("unavailable"), 503, "unavailable", 1),
        (Refused("rate_limited"), 429, "rate_limited", 1),
        (Refused("too_large"), 413, "too_large", None),
        (Refused("no_such_channel"), 400, "no_such_channel", None),
    ],
)
def test_the_routers_refusals_in_the_words_of_http(
    run_in_loop: Any, failure: Exception, status: int, code: str, retry_after_s: int | None
) -> None:
    publisher = RouterPublisher(Link(failure), 1.0)  # type: ignore[arg-type]
    with pytest.raises(RequestError) as caught:
        run_in_loop(publisher.publish("group:a", b"\x01", key=None, sender="x", deadline_s=1))
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (status, code, retry_after_s)
