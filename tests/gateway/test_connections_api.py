"""/api/connections: what the workers are asked, what is told of their answers, and who gets none."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from core.codes import Code
from core.commands import CommandError
from gateway import connections_api
from gateway.admin import AdminContext, create_app
from gateway.connection_id import ConnectionId
from gateway.connections_api import duration_s
from gateway.errors import RequestError

EPOCH = 1_764_139_200


def shown(worker: int, slot: int, epoch: int = EPOCH, **more: Any) -> dict[str, Any]:
    one = {"id": str(ConnectionId(worker, epoch, 1 << 32 | slot)), "user": "alice", "was": "open", "state": "open"}
    return {**one, **more}


class Worker:
    """Answers with what it holds from the asked slot on; `failure` is raised instead, None waits for ever."""

    def __init__(self, number: int, slots: int, epoch: int = EPOCH) -> None:
        self.name = f"worker-{number}"
        self.number = number
        self.epoch = epoch
        self.leaving: list[Worker] = []
        self.slots = slots
        self.state = "closing"
        self.was = "open"
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.failure: BaseException | str | None = ""

    def shown(self, slot: int, **more: Any) -> dict[str, Any]:
        return shown(self.number, slot, self.epoch, was=self.was, **more)

    async def ask(self, method: str, *, deadline_s: float, **arguments: Any) -> Any:
        self.asked.append((method, arguments))
        async with asyncio.timeout(deadline_s):
            if self.failure is None:
                await asyncio.Event().wait()
        if isinstance(self.failure, BaseException):
            raise self.failure
        state = {"state": self.state} if method == "reclaim" else {}
        if "id" in arguments:
            wanted = ConnectionId.parse(arguments["id"])
            assert wanted is not None
            here = wanted.epoch == self.epoch and wanted.slot < self.slots
            return {"connections": [self.shown(wanted.slot, **state)] * here, "more": 0}
        after = ConnectionId.parse(arguments.get("after", ""))
        first = 0 if after is None or after.epoch < self.epoch else after.slot + 1
        first = self.slots if after is not None and after.epoch > self.epoch else first
        found = [self.shown(slot, **state) for slot in range(first, self.slots)]
        return {"connections": found[: arguments["limit"]], "more": len(found) > arguments["limit"]}


Ask = Callable[..., httpx.Response]


@pytest.fixture
def workers() -> list[Worker]:
    return [Worker(0, 3), Worker(1, 2), Worker(2, 0)]


@pytest.fixture
def ask(workers: list[Worker], run_in_loop: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """One request; the workers have no more than 100 ms."""
    monkeypatch.setattr(connections_api, "LIST_DEADLINE_S", 0.1)
    monkeypatch.setattr(connections_api, "RECLAIM_DEADLINE_S", 0.1)
    context = AdminContext(
        info={"node": "host-1", "ws_port": 7401, "tls": False},
        missing=list,
        registry=CollectorRegistry(),
        publisher=None,  # type: ignore[arg-type]
        to_mpack=bytes,
        token="",
        deadline_s=5,
        workers=lambda: [(*worker.leaving, worker) for worker in workers],
    )

    async def once(method: str, path: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(create_app(context))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost:7402") as client:
            return await client.request(method, path, **options)

    return lambda method, path, **options: run_in_loop(once(method, path, **options))


def ids(answer: httpx.Response) -> list[str]:
    return [one["id"] for one in answer.json()["connections"]]


ALL = [shown(worker, slot)["id"] for worker, slots in ((0, 3), (1, 2)) for slot in range(slots)]


def test_all_workers_are_listed_in_their_order(workers: list[Worker], ask: Ask) -> None:
    answer = ask("GET", "/api/connections")
    assert answer.status_code == 200
    assert ids(answer) == ALL
    assert (answer.json()["next"], answer.json()["missing"]) == (None, [])
    assert "was" not in answer.json()["connections"][0]
    assert workers[0].asked == [("connections", {"limit": 100})]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6])
def test_page_after_page_each_is_told_once(ask: Ask, limit: int) -> None:
    found: list[str] = []
    after: dict[str, str] = {}
    for _ in range(len(ALL) + 1):
        answer = ask("GET", "/api/connections", params={"limit": limit, **after})
        assert len(ids(answer)) <= limit
        found += ids(answer)
        if answer.json()["next"] is None:
            break
        after = {"after": answer.json()["next"]}
    assert found == ALL


def test_after_skips_the_workers_that_are_done(workers: list[Worker], ask: Ask) -> None:
    ask("GET", "/api/connections", params={"after": ALL[3]})
    assert [len(worker.asked) for worker in workers] == [0, 1, 1]
    assert [worker.asked[0][1].get("after") for worker in workers[1:]] == [ALL[3], None]


@pytest.fixture
def leaving(workers: list[Worker]) -> Worker:
    """A process that leaves the first place to the one that is there."""
    one = Worker(0, 2, EPOCH - 9)
    workers[0].leaving = [one]
    return one


@pytest.mark.usefixtures("leaving")
@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_what_a_leaving_process_still_has_is_listed_first(ask: Ask, limit: int) -> None:
    found: list[str] = []
    after: dict[str, str] = {}
    while True:
        answer = ask("GET", "/api/connections", params={"limit": limit, **after})
        found += ids(answer)
        if answer.json()["next"] is None:
            break
        after = {"after": answer.json()["next"]}
    assert found == [shown(0, slot, EPOCH - 9)["id"] for slot in range(2)] + ALL


@pytest.mark.usefixtures("leaving")
def test_what_a_leaving_process_still_has_can_be_ended(ask: Ask) -> None:
    theirs = shown(0, 1, EPOCH - 9)["id"]
    assert ask("DELETE", f"/api/connections/{theirs}").json()["id"] == theirs
    assert theirs in ids(ask("DELETE", "/api/connections?user=alice"))


def test_a_leaving_process_that_does_not_answer_is_named(leaving: Worker, ask: Ask) -> None:
    leaving.failure = None
    assert ask("GET", "/api/connections").json()["missing"] == ["worker-0"]
    assert ask("GET", f"/api/connections/{ALL[0]}").status_code == 200
    assert ask("GET", f"/api/connections/{shown(0, 1, EPOCH - 9)['id']}").status_code == 503


def test_filters_are_passed_on(workers: list[Worker], ask: Ask) -> None:
    given = "user=al%20ice&session=" + "aB" * 16 + "&older=5m&idle=1.5s&state=open,closing&state=accepted&queued=7"
    assert ask("GET", f"/api/connections?{given}&address=::1&limit=9").status_code == 200
    assert workers[1].asked[0][1] == {
        "user": "al ice",
        "session": "aB" * 16,
        "address": "::1",
        "states": ["open", "closing", "accepted"],
        "older_s": 300.0,
        "idle_s": 1.5,
        "queued_bytes": 7,
        "limit": 9,
    }


@pytest.mark.parametrize(
    "failure", [None, ConnectionResetError("gone"), CommandError("no")], ids=["silent", "gone", "no"]
)
def test_a_worker_that_does_not_answer_is_named_and_the_others_are_told(
    workers: list[Worker], ask: Ask, failure: BaseException | None
) -> None:
    workers[0].failure = failure
    for method, path in (("GET", "/api/connections"), ("DELETE", "/api/connections?user=alice")):
        answer = ask(method, path)
        assert answer.status_code == 200
        assert answer.json()["missing"] == ["worker-0"]
        assert ids(answer) == ALL[3:]
    answer = ask("GET", f"/api/connections/{ALL[0]}")
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer.headers["retry-after"] == "1"
    assert "worker-0" in answer.json()["message"]
    assert ask("GET", f"/api/connections/{ALL[4]}").status_code == 200


def test_when_no_worker_answers_the_request_fails(workers: list[Worker], ask: Ask) -> None:
    for worker in workers:
        worker.failure = None
    assert ask("GET", "/api/connections").status_code == 503


def test_too_many_walks_at_once_are_refused_but_no_single_kick(
    workers: list[Worker], ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections_api, "WALKS_MAX", 0)
    for method, path in (("GET", ""), ("DELETE", "?user=alice")):
        answer = ask(method, f"/api/connections{path}")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "1"
    assert [worker.asked for worker in workers] == [[], [], []]
    assert ask("DELETE", f"/api/connections/{ALL[1]}").status_code == 202


def test_without_workers_there_are_no_connections(workers: list[Worker], ask: Ask) -> None:
    workers.clear()
    assert ask("GET", "/api/connections").json() == {"connections": [], "next": None, "missing": []}
    assert ask("DELETE", f"/api/connections/{ALL[0]}").status_code == 404


def test_one_is_shown_by_its_id(workers: list[Worker], ask: Ask) -> None:
    answer = ask("GET", f"/api/connections/{ALL[4]}")
    assert (answer.status_code, answer.json()["id"]) == (200, ALL[4])
    assert [len(worker.asked) for worker in workers] == [0, 1, 0]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("id_", ["x", "0-1", f"0-{EPOCH}-1-3", f"7-{EPOCH}-1-0", f"2-{EPOCH}-1-0"])
def test_an_id_that_nobody_has_is_not_found(ask: Ask, method: str, id_: str) -> None:
    answer = ask(method, f"/api/connections/{id_}")
    assert (answer.status_code, answer.json()["code"]) == (404, "no_such_connection")


def test_one_is_ended_by_its_id(workers: list[Worker], ask: Ask) -> None:
    answer = ask("DELETE", f"/api/connections/{ALL[1]}")
    assert answer.status_code == 202
    assert answer.json() | {"was": "open", "state": "closing"} == answer.json()
    said = {"code": int(Code.KICKED), "reason": connections_api.REASON, "after_ms": 0}
    assert workers[0].asked == [("reclaim", {**said, "id": ALL[1]})]
    workers[0].state = "closed"
    assert ask("DELETE", f"/api/connections/{ALL[1]}").status_code == 200


def test_fin_says_what_was_asked_for(workers: list[Worker], ask: Ask) -> None:
    ask("DELETE", f"/api/connections/{ALL[1]}?code=draining&reason=moving%20house&after=90s")
    asked = workers[0].asked[0][1]
    assert (asked["code"], asked["reason"], asked["after_ms"]) == (int(Code.DRAINING), "moving house", 90_000)


def test_all_of_a_user_are_ended(workers: list[Worker], ask: Ask) -> None:
    answer = ask("DELETE", "/api/connections?user=alice&limit=2").json()
    assert (answer["reclaimed"], answer["more"], len(answer["connections"])) == (4, True, 4)
    assert all(worker.asked[0][1]["user"] == "alice" for worker in workers)
    assert ask("DELETE", "/api/connections?user=alice").json()["more"] is False


def test_those_that_were_ending_already_are_told_and_not_counted(workers: list[Worker], ask: Ask) -> None:
    workers[0].was = "closing"
    answer = ask("DELETE", "/api/connections?state=closing").json()
    assert (answer["reclaimed"], len(answer["connections"])) == (2, 5)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "?usr=alice"),
        ("GET", "?code=kicked"),
        ("GET", "?session=12"),
        ("GET", "?address=localhost"),
        ("GET", "?state=closed"),
        ("GET", "?state="),
        ("GET", "?older=30"),
        ("GET", "?idle=-1s"),
        ("GET", "?queued=-1"),
        ("GET", "?queued=4294967296"),
        ("GET", "?limit=0"),
        ("GET", "?limit=1001"),
        ("DELETE", ""),
        ("DELETE", "?code=kicked"),
        ("DELETE", "?user=a&code=bad_request"),
        ("DELETE", "?user=a&code=nonsense"),
        ("DELETE", "?user=a&after=2h"),
        ("DELETE", "?user=a&after=1"),
        ("DELETE", "?user=a&user=b"),
        ("DELETE", f"/{ALL[0]}?user=alice"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_no_worker_hears_of_it(
    workers: list[Worker], ask: Ask, method: str, path: str
) -> None:
    answer = ask(method, f"/api/connections{path}")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert [worker.asked for worker in workers] == [[], [], []]


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
@pytest.mark.parametrize(
    ("method", "path"), [("GET", ""), ("GET", f"/{ALL[0]}"), ("DELETE", f"/{ALL[0]}"), ("DELETE", "?user=alice")]
)
def test_pages_of_elsewhere_get_nothing(
    workers: list[Worker], ask: Ask, method: str, path: str, headers: dict[str, str]
) -> None:
    assert ask(method, f"/api/connections{path}", headers=headers).status_code == 403
    assert [worker.asked for worker in workers] == [[], [], []]


@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("30s", 30), ("5m", 300), ("2h", 7200), ("1.5d", 129_600)]
)
def test_durations_have_a_unit(text: str, seconds: float) -> None:
    assert duration_s("older", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "5 s", "5w", "1e3s", "٣s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="older is a duration"):
        duration_s("older", text)
