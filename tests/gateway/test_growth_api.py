"""What the watcher found, as Prometheus and people see it."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway import growth_api, metrics
from gateway.config import GrowthSection
from gateway.errors import RequestError
from gateway.growth import DAY_S, GROWING, STEADY, TOO_FEW, Growth
from gateway.growth_api import GrowthCollector
from gateway.hook import Hook
from gateway.watcher import Watcher

Run = Callable[[Coroutine[Any, Any, Any]], Any]
LEAK = Growth(GROWING, 3.0, 2.0, 4.0, 100.0, 0.03, 0.02, 0.04, 0.95, 100, DAY_S)
STILL = Growth(STEADY, 0.0, 0.0, 0.0, 7.0, 0.0, 0.0, 0.0, 0.95, 100, DAY_S)
FEW = Growth(TOO_FEW, 0.0, 0.0, 0.0, 7.0, 0.0, 0.0, 0.0, 0.95, 3, 60.0)
EVENT = {"event": "leak_suspected", "process": "worker-0", "resource": "ring"}


class Found(Watcher):
    """A watcher that has found something."""

    def __init__(self) -> None:
        super().__init__(GrowthSection(threshold_percent=2.0), "node-1", list, Hook("", "", 1))

    def fits(self) -> dict[str, dict[str, Growth]]:
        return {"worker-0": {"ring": LEAK, "fds": STILL, "tasks": FEW}, "router": {"fds": STILL}}

    def pids(self) -> dict[str, int]:
        return {"worker-0": 17, "router": 18}

    def suspected(self) -> list[dict[str, Any]]:
        return [EVENT]


@dataclass(frozen=True)
class Context:
    """The part of the admin server's context that the route needs."""

    growth: Watcher | None
    token: str = ""


@pytest.fixture
def samples(run_in_loop: Run) -> dict[tuple[str, ...], float]:
    """Every sample of the metrics: (name, labels' values...) to its value."""

    async def scrape() -> str:
        registry = CollectorRegistry(auto_describe=False)
        hook = Hook("", "", 1)
        hook.delivered, hook.failed = 5, 2
        registry.register(GrowthCollector(Found(), hook))
        return metrics.exposition(registry).decode()

    families = text_string_to_metric_families(run_in_loop(scrape()))
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


def test_each_resource_has_its_growth_and_whether_it_is_suspected(samples: dict[tuple[str, ...], float]) -> None:
    ratio = "holdfast_growth_per_day_ratio"
    assert samples["holdfast_leak_suspected", "worker-0", "ring"] == 1
    assert samples["holdfast_leak_suspected", "worker-0", "fds"] == 0
    assert samples["holdfast_leak_suspected", "router", "fds"] == 0
    assert samples[ratio, "worker-0", "ring"] == 0.03
    assert samples[f"{ratio}_low", "worker-0", "ring"] == 0.02
    assert samples[f"{ratio}_high", "worker-0", "ring"] == 0.04
    assert not [sample for sample in samples if "tasks" in sample]  # too few samples to say anything


def test_the_hooks_events_are_counted(samples: dict[tuple[str, ...], float]) -> None:
    assert samples["holdfast_hook_events_total", "delivered"] == 5
    assert samples["holdfast_hook_events_total", "failed"] == 2


def asked(run_in_loop: Run, context: Context, **headers: str) -> httpx.Response:
    async def refuse(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return JSONResponse({"code": error.code}, error.status)

    async def ask() -> httpx.Response:
        app = Starlette(routes=growth_api.routes(context), exception_handlers={RequestError: refuse})  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)
        async with asyncio.timeout(5), httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/api/growth", headers=headers)

    answer: httpx.Response = run_in_loop(ask())
    return answer


def test_the_fits_are_told_with_the_settings_that_they_come_from(run_in_loop: Run) -> None:
    found = asked(run_in_loop, Context(Found())).json()
    assert found["settings"]["threshold_percent"] == 2
    assert found["suspected"] == [EVENT]
    worker, router = found["processes"]
    assert (worker["process"], worker["pid"], router["process"]) == ("worker-0", 17, "router")
    assert worker["resources"]["ring"] == {
        "verdict": "growing", "level": 100, "per_day": 3, "low": 2, "high": 4, "relative_per_day": 0.03,
        "relative_low": 0.02, "relative_high": 0.04, "samples": 100, "span_s": DAY_S,
    }  # fmt: skip
    assert worker["resources"]["tasks"]["verdict"] == "too few samples"


def test_it_is_told_to_whom_it_may_be(run_in_loop: Run) -> None:
    context = Context(Found(), token="t" * 16)
    assert asked(run_in_loop, context).status_code == 401
    assert asked(run_in_loop, context, Authorization=f"Bearer {'t' * 16}").status_code == 200


def test_without_a_watcher_there_is_nothing_to_ask(run_in_loop: Run) -> None:
    assert asked(run_in_loop, Context(None)).status_code == 404
