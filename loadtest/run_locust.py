"""`make locust`: locust headless against a running gateway, or against one that is started for it on free ports.

Options are locust's and those of loadtest/locust_users/options.py; what is not given has the defaults below. With
--host and --admin they name the gateway; without, the one of `make run` is used if it runs, else one is started.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCUST = ROOT / ".cache" / "locust-venv" / "bin" / "locust"
HOLDFAST = ROOT / ".venv" / "bin" / "holdfast"
WS_PORT, ADMIN_PORT = 7401, 7402
START_S, STOP_S, HTTP_S, LOOK_S = 30.0, 30.0, 2.0, 0.1
DEFAULTS = {"--users": "10", "--spawn-rate": "10", "--run-time": "30s", "--stop-timeout": "10"}
SHORT = {"-u": "--users", "-r": "--spawn-rate", "-t": "--run-time", "-s": "--stop-timeout", "-H": "--host"}


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on; all held open together, so that they differ."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in held]


def ready(admin: str) -> bool:
    """Whether a gateway serves behind this admin port."""
    try:
        with urllib.request.urlopen(f"{admin}/readyz", timeout=HTTP_S) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def gateway() -> Iterator[tuple[int, int]]:
    """(WebSocket port, admin port) of `make run`'s gateway, or of one of our own that ends with the run."""
    if ready(f"http://127.0.0.1:{ADMIN_PORT}"):
        print(f"using the gateway at ws://127.0.0.1:{WS_PORT}/ws", file=sys.stderr)
        yield WS_PORT, ADMIN_PORT
        return
    port, ws_port, admin_port = free_ports(3)
    command = [str(HOLDFAST), "run", "--port", str(port), "--ws-port", str(ws_port), "--admin-port", str(admin_port)]
    process = subprocess.Popen(command, stdout=sys.stderr)
    try:
        end = time.monotonic() + START_S
        while not ready(f"http://127.0.0.1:{admin_port}"):
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"the gateway did not start: {' '.join(command)}")
            time.sleep(LOOK_S)
        yield ws_port, admin_port
    finally:
        process.terminate()
        process.wait(STOP_S)


def given(arguments: list[str]) -> set[str]:
    """The options on the command line, by their long names."""
    names = {argument.partition("=")[0] for argument in arguments if argument.startswith("-")}
    return {SHORT.get(name, name) for name in names}


def run(arguments: list[str]) -> int:
    """Locust with the tree's modules; its exit code."""
    # A worker is told by its master.
    there = set(DEFAULTS) if "--worker" in arguments else given(arguments)
    defaults = [word for name, value in DEFAULTS.items() if name not in there for word in (name, value)]
    command = [str(LOCUST), "-f", str(ROOT / "loadtest" / "locustfile.py"), "--headless", *defaults, *arguments]
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    # deadline: locust's own, --run-time among the arguments
    return subprocess.call(command, env={**os.environ, "PYTHONPATH": path})


def main(arguments: list[str]) -> int:
    if "--host" in given(arguments) or "--worker" in arguments:
        return run(arguments)
    with gateway() as (ws_port, admin_port):
        ours = ["--host", f"ws://127.0.0.1:{ws_port}/ws", "--admin", f"http://127.0.0.1:{admin_port}"]
        return run([*ours, *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
