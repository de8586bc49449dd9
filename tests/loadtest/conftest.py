"""The load programs, built once for all tests here."""

import subprocess
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path

import pytest

from loadtest.measure import FLOOR, Server, free_ports

LOADTEST = Path(__file__).resolve().parents[2] / "loadtest"
BUILD_DEADLINE_S = 120

StartFloor = Callable[..., Server]


@pytest.fixture(scope="session", autouse=True)
def programs() -> None:
    subprocess.run(["make", "-s", "-C", str(LOADTEST)], check=True, timeout=BUILD_DEADLINE_S)


@pytest.fixture
def start_floor() -> Generator[StartFloor, None, None]:
    """Starts a floor with the given flags; ended after the test."""
    with ExitStack() as stack:

        def start(*flags: str) -> Server:
            (port,) = free_ports(1)
            return stack.enter_context(Server("floor", [str(FLOOR), "--port", str(port), *flags], port))

        yield start
