"""Settings of Redis that lose messages: told in words, of each server, also where little may be asked."""

import logging

import pytest

from router.log.redis import RedisLog
from router.log.redis_settings import concerns_at, judged
from tests.router.log.conftest import append, run
from tests.router.log.redis_records import message
from tests.servers.redis import FLEETING, running


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ([b"# P\r\naof_enabled:1\r\n", b"maxmemory_policy:noeviction\r\n"], []),
        (["txt:# P\r\naof_enabled:0\r\n", "maxmemory_policy:noeviction\r\n"], ["appendonly is no"]),
        ([b"aof_enabled:1", b"maxmemory_policy:volatile-lru"], ["maxmemory-policy is volatile-lru"]),
        ([b"aof_enabled:0", b"maxmemory_policy:x"], ["appendonly is no", "maxmemory-policy is x"]),
        ([b"aof_enabled:0", b""], ["appendonly is no"]),
        ([b"", b""], None),
    ],
)
def test_what_info_says_is_judged(info: list[bytes | str], said: list[str] | None) -> None:
    found = judged(info)
    assert (found is None) == (said is None)
    for concern, part in zip(found or [], said or [], strict=True):
        assert concern.startswith(part)
        assert ": set " in concern


def test_a_router_warns_once_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    with running(*FLEETING, "--maxmemory-policy", "allkeys-lru") as server:

        async def work() -> None:
            log = RedisLog(f"redis://127.0.0.1:{server.port}")
            epoch = (await log.open(1)).epoch
            await append(log, message("group:a", epoch, 1))
            server.do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # it connects anew
            await append(log, message("group:a", epoch, 2))
            assert log._links == 2
            await log.close()

        run(work())
    said = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    kept = [one for one in said if "keeps less than what is promised" in one]
    assert len(kept) == 2
    assert f"Redis at 127.0.0.1:{server.port} keeps less than what is promised: appendonly is no" in kept[0]
    assert "maxmemory-policy is allkeys-lru" in kept[1]


def test_who_may_not_ask_is_not_refused() -> None:
    with running(*FLEETING) as server:
        server.do("ACL", "SETUSER", "holdfast", "on", ">word", "~*", "+@all", "-info")
        assert run(concerns_at(f"redis://holdfast:word@127.0.0.1:{server.port}", 2.0)) is None
