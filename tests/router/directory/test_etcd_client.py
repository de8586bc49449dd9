"""Calls to etcd: the next member is asked when one fails; TLS, logins, and what a refusal says."""

import asyncio
import subprocess
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.owned import ACCOUNT
from router.directory import etcdpb_pb2 as pb
from router.directory.etcd import EtcdDirectory
from router.directory.etcd_client import NEAREST_AGAIN_S, RANGE, REFUSED_S, TXN, Client, Compacted, prefix_end
from router.directory.etcd_config import EtcdConfig
from router.directory.port import Changes, Claim, Misused, NotAllowed, Unavailable, Won, now
from tests.conftest import free_ports
from tests.router.directory.conftest import run
from tests.servers.etcd import Member, running

NOTHING = pb.RangeRequest(key=b"nothing")


def with_client(config: EtcdConfig, test: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        client = Client(config)
        try:
            await test(client)
        finally:
            await client.close()

    run(body())


def with_directory(config: EtcdConfig, test: Callable[[EtcdDirectory], Coroutine[Any, Any, None]]) -> None:
    async def body() -> None:
        directory = EtcdDirectory(config)
        try:
            await test(directory)
        finally:
            await directory.close()

    run(body())


# ------------------------------------------------------------------------------------------------------------- members


def test_a_member_that_refuses_is_left_for_the_next_which_is_asked_from_then_on(config: EtcdConfig) -> None:
    refuses = [f"127.0.0.1:{port}" for port in free_ports(2)]

    async def test(client: Client) -> None:
        client.current = 0
        assert not client.reach.answers
        await client.call(RANGE, NOTHING)
        assert client.current == 2
        assert client.reach.answers
        assert len(client._channels) == 3
        await client.call(RANGE, NOTHING)
        assert client.current == 2

    with_client(replace(config, endpoints=(*refuses, *config.endpoints)), test)


def test_the_nearest_member_is_asked_first_and_again_some_time_after_it_failed(config: EtcdConfig) -> None:
    [refuses] = [f"127.0.0.1:{port}" for port in free_ports(1)]
    clock = [100.0]

    async def body() -> None:
        endpoints = (*config.endpoints, refuses, *config.endpoints)
        client = Client(replace(config, endpoints=endpoints, nearest_first=True), lambda: clock[0])
        assert client.current == 0
        client.failed(0)
        await client.call(RANGE, NOTHING)
        assert client.current == 2
        clock[0] += NEAREST_AGAIN_S - 1
        await client.call(RANGE, NOTHING)
        assert client.current == 2
        clock[0] += 1
        await client.call(RANGE, NOTHING)
        assert client.current == 0
        await client.close()

    run(body())


def test_a_member_that_says_nothing_costs_one_attempt(config: EtcdConfig) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def body() -> None:
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = Client(replace(config, endpoints=(where, *config.endpoints), deadline_s=6.0))
        client.current = 0
        asked = now()
        await client.call(RANGE, NOTHING)
        assert 1.9 < now() - asked < client.config.deadline_s
        assert client.current == 1
        await client.close()
        server.close()

    run(body())


def test_when_nobody_answers_it_says_so_within_its_deadline(config: EtcdConfig) -> None:
    nobody = tuple(f"127.0.0.1:{port}" for port in free_ports(2))

    async def test(client: Client) -> None:
        asked = now()
        with pytest.raises(Unavailable, match=r"etcd at 127\.0\.0\.1:\d+ cannot be reached") as raised:
            await client.call(RANGE, NOTHING)
        assert 0.4 < now() - asked < 3
        assert not raised.value.nothing_done
        assert not client.reach.answers

    with_client(replace(config, endpoints=nobody, deadline_s=0.5), test)


def test_a_call_that_is_under_way_when_it_is_closed_is_unavailable_and_not_cancelled(config: EtcdConfig) -> None:
    came = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await reader.read()
        writer.close()

    async def body() -> None:
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        where = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        client = Client(replace(config, endpoints=(where,)))
        calling = asyncio.create_task(client.call(RANGE, NOTHING))
        await came.wait()
        await client.close()
        with pytest.raises(Unavailable, match="closed"):
            await calling
        server.close()

    run(body())


def test_what_etcd_does_not_take_is_our_mistake(config: EtcdConfig) -> None:
    request = pb.TxnRequest()
    for number in range(129):
        request.success.add().request_range.key = b"%d" % number

    async def test(client: Client) -> None:
        with pytest.raises(Misused, match="too many operations"):
            await client.call(TXN, request)

    with_client(config, test)


def test_a_revision_that_is_forgotten_is_told_as_such(member: Member, config: EtcdConfig) -> None:
    async def test(directory: EtcdDirectory) -> None:
        [first] = await directory.transact([Claim("k", 0, b"")])
        await directory.transact([Claim("k", first.revision, b"")])
        await asyncio.to_thread(member.compact)
        with pytest.raises(Compacted):
            await directory._client.call(RANGE, pb.RangeRequest(key=b"k", revision=first.revision))

    with_directory(config, test)


@given(st.binary(min_size=1, max_size=6), st.binary(max_size=4))
def test_a_prefix_ends_after_all_that_begin_with_it(prefix: bytes, more: bytes) -> None:
    end = prefix_end(prefix)
    if end == b"\0":
        assert set(prefix) == {0xFF}, "etcd takes it for no end at all"
    else:
        assert prefix + more < end
        assert prefix + b"\xff" * 8 < end
        assert not end.startswith(prefix)


def put(key: bytes, value: bytes = b"") -> pb.TxnRequest:
    request = pb.TxnRequest()
    wanted = request.success.add().request_put
    wanted.key, wanted.value = key, value
    return request


async def fill(client: Client) -> None:
    """Write until it takes no more."""
    while True:
        await client.call(TXN, put(b"large", bytes(1_000_000)))


def test_one_whose_store_is_full_is_away_until_it_writes_again_whatever_it_tells(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with running("--quota-backend-bytes=4194304") as member:

        async def test(client: Client) -> None:
            with pytest.raises(Unavailable, match="its store is full") as caught:
                await fill(client)
            assert caught.value.nothing_done
            assert not client.reach.answers
            for _ in range(3):
                await client.call(RANGE, NOTHING)
                with pytest.raises(Unavailable, match="its store is full"):
                    await client.call(TXN, put(b"small"))
            assert not client.reach.answers
            assert sum("is away" in line for line in caplog.messages) == 1
            member.compact()
            member.do("maintenance/defragment")
            for alarm in member.do("maintenance/alarm", action="GET")["alarms"]:
                member.do("maintenance/alarm", action="DEACTIVATE", **alarm)
            await client.call(TXN, put(b"small"))
            assert client.reach.answers

        with_client(EtcdConfig(endpoints=(member.endpoint,)), test)


# ----------------------------------------------------------------------------------------------------------------- TLS


def openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=30)


def signed(folder: Path, name: str, authority: tuple[Path, Path]) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key, by an authority."""
    chain, key, wish, more = (folder / f"{name}.{kind}" for kind in ("pem", "key", "csr", "ext"))
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", *curve, "-keyout", str(key), "-out", str(wish), "-subj", f"/CN={name}")
    more.write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    by = ["-CA", str(authority[0]), "-CAkey", str(authority[1]), "-CAcreateserial"]
    openssl("x509", "-req", "-in", str(wish), *by, "-days", "2", "-extfile", str(more), "-out", str(chain))
    return chain, key


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Path, Path], ...]:
    """Two of them: their certificates and keys."""
    found = []
    for name in ("ours", "another"):
        folder = tmp_path_factory.mktemp(name)
        chain, key = folder / "ca.pem", folder / "ca.key"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        openssl("req", "-x509", *curve, "-days", "2", "-subj", f"/CN={name}", "-keyout", str(key), "-out", str(chain))
        found.append((chain, key))
    return tuple(found)


@pytest.fixture(scope="module")
def tls_member(authorities: tuple[tuple[Path, Path], ...]) -> Iterator[Member]:
    folder = authorities[0][0].parent
    with running(tls=(*signed(folder, "server", authorities[0]), authorities[0][0])) as member:
        yield member


def test_over_tls_with_a_certificate_of_our_own(
    tls_member: Member, authorities: tuple[tuple[Path, Path], ...], tmp_path: Path
) -> None:
    ca = authorities[0][0]
    chain, key = signed(tmp_path, "client", authorities[0])
    config = EtcdConfig(
        endpoints=(tls_member.endpoint,), tls=True, ca_file=str(ca), cert_file=str(chain), key_file=str(key)
    )

    async def test(directory: EtcdDirectory) -> None:
        registration = await directory.register("a", b"", 10)
        [result] = await directory.transact([Claim("k", 0, b"", registration.identity)])
        assert isinstance(result, Won)
        async with aclosing(directory.watch("k", result.revision - 1)) as watch:
            said = await anext(watch)
        assert said.revision == result.revision
        await registration.close()

    with_directory(config, test)


@pytest.mark.parametrize("wrong", ["no TLS", "another authority", "no certificate", "another's certificate"])
def test_whom_we_do_not_trust_or_who_does_not_trust_us_is_unavailable_and_told_why(
    tls_member: Member,
    authorities: tuple[tuple[Path, Path], ...],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    wrong: str,
) -> None:
    ours, another = authorities
    config = EtcdConfig(endpoints=(tls_member.endpoint,), tls=True, ca_file=str(ours[0]), deadline_s=1.5)
    if wrong == "no TLS":
        config = replace(config, tls=False, ca_file="")
    elif wrong == "another authority":
        config = replace(config, ca_file=str(another[0]))
    elif wrong == "another's certificate":
        chain, key = signed(tmp_path, "client", another)
        config = replace(config, cert_file=str(chain), key_file=str(key))

    async def test(client: Client) -> None:
        with pytest.raises(Unavailable, match="do not agree on TLS"):
            await client.call(RANGE, NOTHING)

    with_client(config, test)
    assert "andshake" not in capfd.readouterr().err, "gRPC tells of each attempt by itself"


def test_a_certificate_that_cannot_be_read_is_refused_at_once() -> None:
    with pytest.raises(Misused, match=r"cannot be read: /none\.pem"):
        Client(EtcdConfig(endpoints=("a:1",), tls=True, ca_file="/none.pem"))


# -------------------------------------------------------------------------------------------------------------- logins


@pytest.fixture(scope="module")
def secured() -> Iterator[Member]:
    """A server that knows one user beside root, and forgets a token after two seconds without use."""
    with running("--auth-token-ttl", "2") as member:
        member.secure("hold", "fast", "holdfast/")
        yield member


def as_user(member: Member, **changes: Any) -> EtcdConfig:
    return replace(EtcdConfig(endpoints=(member.endpoint,), user="hold", password="fast"), **changes)


def test_a_token_that_has_ended_is_replaced_and_nobody_notices(secured: Member) -> None:
    async def test(directory: EtcdDirectory) -> None:
        [result] = await directory.transact([Claim("k", 0, b"")])
        first = directory._client.token
        assert first
        # Each use lets it live on. Without any, the server has forgotten it when its next second is over.
        while directory._client.token == first:
            await asyncio.sleep(3.5)
            await directory.read("k")
        async with aclosing(directory.watch("k", result.revision - 1)) as watch:
            said = await anext(watch)
            assert isinstance(said, Changes)
        await directory.transact([Claim("k", result.revision, None)])

    with_directory(as_user(secured), test)


@pytest.mark.parametrize("call", ["read", "transact", "watch", "register"])
def test_a_token_that_etcd_does_not_know_is_replaced_whatever_is_asked(secured: Member, call: str) -> None:
    async def test(directory: EtcdDirectory) -> None:
        revision = (await directory.read("none")).revision
        key = f"token/{call}"
        [result] = await directory.transact([Claim(key, 0, b"")])
        directory._client.token = forged = "forged.1"
        if call == "read":
            await directory.read(key)
        elif call == "transact":
            await directory.transact([Claim(key, result.revision, None)])
        elif call == "register":
            await (await directory.register("b", b"", 10)).close()
        else:
            async with aclosing(directory.watch(key, revision)) as watch:
                assert (await anext(watch)).revision == result.revision
        assert directory._client.token not in {"", forged}

    with_directory(as_user(secured), test)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"password": "wrong"}, "does not take user 'hold'"),
        ({"user": "", "password": ""}, "wants a user and a password"),
        ({"prefix": "another/"}, "under our prefix"),
    ],
)
def test_who_may_not_is_told_at_once_what_to_do(secured: Member, changes: dict[str, str], said: str) -> None:
    async def test(directory: EtcdDirectory) -> None:
        async def watch() -> None:
            async with aclosing(directory.watch("k", 0)) as changes:
                await anext(changes)

        claims = [Claim("k", 0, b"")]
        for ask in (
            lambda: directory.read("k"),
            lambda: directory.transact(claims),
            lambda: directory.register("a", b"", 10),
            watch,
        ):
            asked = now()
            with pytest.raises(NotAllowed, match=said):
                await ask()
            assert now() - asked < directory._client.config.deadline_s

    with_directory(as_user(secured, **changes), test)


def test_one_that_lets_us_write_nothing_is_away_until_it_does_or_some_time_is_over(secured: Member) -> None:
    late = 0.0
    config = EtcdConfig(endpoints=(secured.endpoint,), user="hold", password="fast")

    async def body() -> None:
        nonlocal late
        client = Client(config, lambda: now() + late)
        try:
            await client.call(TXN, put(b"holdfast/a"))
            for wait_s in (0.0, REFUSED_S):
                with pytest.raises(NotAllowed, match="under our prefix"):
                    await client.call(TXN, put(b"others/a"))
                await client.call(RANGE, pb.RangeRequest(key=b"holdfast/a"))
                assert not client.reach.answers
                late += wait_s
                if wait_s:
                    await client.call(RANGE, pb.RangeRequest(key=b"holdfast/a"))
                else:
                    await client.call(TXN, put(b"holdfast/a"))
                assert client.reach.answers
        finally:
            await client.close()

    run(body())


def test_a_user_where_nobody_is_asked_who_he_is(member: Member) -> None:
    async def test(directory: EtcdDirectory) -> None:
        with pytest.raises(NotAllowed, match="take user and password away"):
            await directory.read("k")

    with_directory(as_user(member), test)


def test_many_that_come_at_once_share_one_login(secured: Member) -> None:
    async def test(directory: EtcdDirectory) -> None:
        before = ACCOUNT.read()["ledger"]["task_opened"]
        await asyncio.gather(*(directory.read("k") for _ in range(20)))
        logins = ACCOUNT.read()["ledger"]["task_opened"] - before
        assert logins == 1

    with_directory(as_user(secured), test)
