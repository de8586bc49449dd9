"""What a worker does while it runs: sessions of who is banned end, also those that were on their way; keys change."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.ban_list import FOREVER_MS, Standing, told_packed
from core.codes import Code
from core.owned import ACCOUNT
from gateway import guard as guard_module
from gateway.auth import Authenticator, AuthError
from gateway.guard import REASON, Guard
from gateway.token_keys import KeyFile
from gateway.token_policy import Policy
from tests.gateway.token_makers import EC_KEY, NOW, OTHER_RSA_KEY, RSA_KEY, SECRET, pem, token

Run = Callable[..., Any]
DEADLINE_S = 30.0


class Listing:
    """Notes who is ended; says that more are there as often as it was told."""

    def __init__(self, more: int = 0, *, fails: bool = False) -> None:
        self.ended: list[tuple[str, int, str]] = []
        self.more, self.fails = more, fails
        self.asked = asyncio.Event()

    async def reclaim(self, *, code: int, reason: str, after_ms: int, user: str) -> dict[str, Any]:
        assert after_ms == 0
        self.ended.append((user, code, reason))
        self.asked.set()
        if self.fails:
            raise TimeoutError
        self.more -= 1
        return {"connections": [{}], "more": self.more >= 0}


def made(
    listing: Any, monkeypatch: pytest.MonkeyPatch, key_file: KeyFile | None = None, now: list[float] | None = None
) -> tuple[Guard, Authenticator]:
    monkeypatch.setattr(guard_module, "_AGAIN_S", 0.01)
    policy = Policy(("RS256", "ES256"))
    auth = Authenticator(
        SECRET, node_key=b"", resume_ttl_s=60, policy=policy, keys=key_file.read() if key_file is not None else ()
    )
    clock = now or [NOW]
    return Guard(auth, listing, key_file, clock=lambda: clock[0], request_timeout_s=0.02), auth


def ban(user: str, until_ms: int = FOREVER_MS, reason: str = "") -> bytes:
    return told_packed(0, "", [Standing(user, int(NOW * 1000), until_ms, reason)])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - what is looked at has no event of its own
            await asyncio.sleep(0.001)


def test_sessions_of_who_is_banned_are_looked_for_until_none_can_be_on_its_way(
    run_in_loop: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        listing = Listing(more=1)
        guard, auth = made(listing, monkeypatch)
        guard.start()
        guard.on_bans(ban("eve", reason="spam"), all_=False)
        with pytest.raises(AuthError):
            auth.bans.check("eve", NOW)
        await until(lambda: len(listing.ended) == 4)  # the first look found more than one turn takes
        assert set(listing.ended) == {("eve", int(Code.BANNED), "spam")}
        guard.on_bans(ban("eve", reason="spam"), all_=True)
        await guard.close()
        assert len(listing.ended) == 4

    run_in_loop(body())


def test_a_ban_that_was_ended_meanwhile_ends_nobody_more(run_in_loop: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        listing = Listing()
        guard, _ = made(listing, monkeypatch)
        guard.start()
        guard.on_bans(ban("eve"), all_=False)
        guard.on_bans(ban("eve", 0), all_=False)
        guard.on_bans(ban("mallory"), all_=False)
        await until(lambda: len(listing.ended) == 3)
        assert listing.ended == [("mallory", int(Code.BANNED), REASON)] * 3
        await guard.close()

    run_in_loop(body())


def test_a_data_plane_that_does_not_answer_is_asked_again(run_in_loop: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        listing = Listing(fails=True)
        guard, _ = made(listing, monkeypatch)
        guard.start()
        guard.on_bans(ban("eve"), all_=False)
        await until(lambda: len(listing.ended) == 3)
        await guard.close()

    run_in_loop(body())


def test_what_is_under_way_ends_with_it(run_in_loop: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes(pem(RSA_KEY))

    async def body() -> None:
        listing = Listing()
        guard, _ = made(listing, monkeypatch, KeyFile(str(path)))
        before = ACCOUNT.read()["ledger"]
        guard.start()
        guard.on_bans(ban("eve"), all_=False)
        await guard.close()
        after = ACCOUNT.read()["ledger"]
        for kind in ("task", "handle"):
            opened = after[f"{kind}_opened"] - before[f"{kind}_opened"]
            assert opened == after[f"{kind}_closed"] - before[f"{kind}_closed"] > 0

    run_in_loop(body())


def test_keys_are_read_again_when_their_file_changes(
    run_in_loop: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(guard_module, "KEYS_LOOK_S", 0.001)
    path = tmp_path / "keys"
    path.write_bytes(pem(RSA_KEY))
    old, new = token({"sub": "a"}, RSA_KEY, "RS256"), token({"sub": "b"}, EC_KEY, "ES256")

    def comes_in(auth: Authenticator, given: str) -> bool:
        try:
            auth.identify(given, None, NOW)
        except AuthError:
            return False
        return True

    async def body() -> None:
        guard, auth = made(Listing(), monkeypatch, KeyFile(str(path)))
        guard.start()
        assert (comes_in(auth, old), comes_in(auth, new)) == (True, False)
        path.write_bytes(pem(EC_KEY) + pem(OTHER_RSA_KEY))
        await until(lambda: comes_in(auth, new))
        assert not comes_in(auth, old)
        path.write_bytes(b"broken")
        guard.look_at_keys()
        assert comes_in(auth, new)
        path.unlink()
        guard.look_at_keys()
        assert comes_in(auth, new)
        await guard.close()

    run_in_loop(body())
