"""Which log a router has by its configuration, and how long one that is away is asked."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.config import RouterConfig
from router.log import opening
from router.log.embedded import EmbeddedLog
from router.log.port import LogBroken, LogUnavailable, Opened
from router.log.redis import FORMAT, RedisLog
from tests.router.log.conftest import append, run
from tests.router.log.redis_records import message
from tests.servers.redis import Server

OPENED = Opened(7, bytes(48), complete=True)


def config(**more: Any) -> RouterConfig:
    return RouterConfig(node="n", endpoint="ipc:///run/x", epoch=1, **more)


def test_each_backend_is_made_from_its_own_settings(tmp_path: Path) -> None:
    assert opening.make_log(config(log_backend="none")) is None
    assert isinstance(opening.make_log(config(log_backend="embedded", log_directory=str(tmp_path))), EmbeddedLog)
    redis = config(log_backend="redis", log_redis_url="redis://127.0.0.1:1/0", log_redis_kept_bytes_max=1_000)
    log = opening.make_log(redis)
    assert isinstance(log, RedisLog)
    assert log.appender.kept_bytes_max == 1_000


class Away:
    """A log that is away for some calls of `open`."""

    def __init__(self, calls: int, error: Exception) -> None:
        self.calls = calls
        self.error = error
        self.asked = 0

    async def open(self, epoch: int) -> Opened:
        self.asked += 1
        if self.asked <= self.calls:
            raise self.error
        return OPENED


def test_a_log_that_is_away_is_waited_for_and_each_reason_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(opening, "OPEN_RETRY_S", 0.001)
    log, told = Away(3, LogUnavailable("away")), list[str]()
    assert asyncio.run(opening.open_log(log, 1, away=told.append)) == OPENED  # type: ignore[arg-type]
    assert log.asked == 4
    assert told == ["away"]
    assert caplog.messages == ["the log is away; the router serves once it is back: away"]


def test_a_log_that_stays_away_is_named_again_now_and_then(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(opening, "OPEN_RETRY_S", 0.001)
    monkeypatch.setattr(opening, "SAID_AGAIN_S", 0.0)
    asyncio.run(opening.open_log(Away(3, LogUnavailable("away")), 1))  # type: ignore[arg-type]
    assert len(caplog.messages) == 3


def test_who_says_how_long_hears_that_it_was_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "OPEN_RETRY_S", 0.4)
    log = Away(1_000, LogUnavailable("nobody there"))
    with pytest.raises(LogBroken, match=r"away for 1 s \(log.open_timeout_s\): nobody there"):
        asyncio.run(opening.open_log(log, 1, timeout_s=1))  # type: ignore[arg-type]
    assert log.asked <= 4


def test_a_broken_log_is_not_asked_again() -> None:
    log = Away(1, LogBroken("broken"))
    with pytest.raises(LogBroken):
        asyncio.run(opening.open_log(log, 1))  # type: ignore[arg-type]
    assert log.asked == 1


def test_a_log_of_a_later_format_is_refused_before_anything_of_it_is_changed(
    make_log: Callable[..., RedisLog], redis_server: Server, prefix: str
) -> None:
    async def work() -> None:
        former = make_log()
        epoch = (await former.open(7)).epoch
        redis_server.do("HSET", f"{prefix}log", "format", FORMAT + 1)
        before = redis_server.do("HGETALL", f"{prefix}log")
        log = make_log()
        with pytest.raises(
            LogBroken, match=f"is of format {FORMAT + 1}.* reads up to format {FORMAT}: start the version"
        ):
            await log.open(8)
        assert redis_server.do("HGETALL", f"{prefix}log") == before
        await append(former, message("group:a", epoch, 1))  # whoever has it is not deposed
        await log.close()
        await former.close()

    run(work())


def test_a_log_without_a_format_is_taken_and_has_one_then(
    make_log: Callable[..., RedisLog], redis_server: Server, prefix: str
) -> None:
    async def work() -> None:
        former = make_log()
        await former.open(7)
        await former.close()
        redis_server.do("HDEL", f"{prefix}log", "format", "holder")
        log = make_log()
        assert (await log.open(1)).epoch == 8
        assert int(redis_server.do("HGET", f"{prefix}log", "format")) == FORMAT
        await log.close()

    run(work())
