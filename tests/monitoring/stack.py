"""Debian's Prometheus and Alertmanager with the product's own files, only faster.

What is replaced in the files: addresses and paths; the intervals of scraping and evaluation (15 s become 1 s), of `for`
(minutes become 2 s) and of grouping; and the quiet hours, which would make a test depend on the hour. Thresholds,
windows, expressions, routes, matchers and inhibition are the product's.
"""

import json
import re
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import free_ports, wait_until
from tests.monitoring.places import ALERTMANAGER, MONITORING, RULES, program
from tests.monitoring.receivers import TOKEN
from tools import provision

START_DEADLINE_S = 30
HTTP_DEADLINE_S = 10


class Server:
    """One of the two, running."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port

    def get(self, path: str, **query: str) -> Any:
        """The JSON at a path."""
        url = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=HTTP_DEADLINE_S) as answer:
            return json.load(answer)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=HTTP_DEADLINE_S) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


class Alertmanager(Server):
    def amtool(self, *arguments: str) -> str:
        """What operators type."""
        path = program("amtool")
        command = [path, f"--alertmanager.url={self.url}", *arguments]
        done = subprocess.run(
            command, env=provision.environment_for(path), capture_output=True, text=True, timeout=HTTP_DEADLINE_S
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def alerts(self, **labels: str) -> list[dict[str, Any]]:
        """The alerts that it knows and that have these labels."""
        found = self.get("/api/v2/alerts")
        return [alert for alert in found if labels.items() <= alert["labels"].items()]


class Prometheus(Server):
    def query(self, expression: str) -> list[dict[str, Any]]:
        """The instant vector."""
        answer = self.get("/api/v1/query", query=expression)
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """The text with each pattern replaced; each must be there."""
    for pattern, by in pairs:
        text, count = re.subn(pattern, by, text, flags=re.MULTILINE)
        assert count, f"nothing like {pattern} in the file"
    return text


@contextmanager
def _running(name: str, server: Server, log: Path, *arguments: str) -> Iterator[None]:
    path = program(name)
    command = [path, *arguments, f"--web.listen-address=127.0.0.1:{server.port}"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env=provision.environment_for(path), stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    try:
        wait_until(server.is_ready, lambda: f"{name} is ready\n{log.read_text()}", START_DEADLINE_S)
        yield
    finally:
        process.terminate()
        process.wait(START_DEADLINE_S)


@contextmanager
def running_alertmanager(folder: Path, relay_port: int) -> Iterator[Alertmanager]:
    """Alertmanager that speaks to a relay on loopback."""
    folder.mkdir()
    (folder / "token").write_text(TOKEN)
    config = folder / "alertmanager.yaml"
    config.write_text(
        replaced(
            ALERTMANAGER.read_text(),
            (r"holdfast-alert-relay:9095", f"127.0.0.1:{relay_port}"),
            (r"credentials_file: \S+/token", f"credentials_file: {folder / 'token'}"),
            (r"group_wait: \d+s", "group_wait: 1s"),
            (r"group_interval: \d+m", "group_interval: 2s"),
            (r"^ *mute_time_intervals: .*$", ""),
        )
    )
    server = Alertmanager(*free_ports(1))
    options = [f"--config.file={config}", f"--storage.path={folder / 'data'}", "--cluster.listen-address="]
    with _running("prometheus-alertmanager", server, folder / "log", *options):
        yield server


@contextmanager
def running_prometheus(folder: Path, admin_port: int, alertmanager_port: int) -> Iterator[Prometheus]:
    """Prometheus that scrapes one node, by the product's rules."""
    (folder / "rules").mkdir(parents=True)
    for path in RULES.glob("*.yaml"):
        text = path.read_text()
        (folder / "rules" / path.name).write_text(re.sub(r"for: \d+m", "for: 2s", text))
    config = folder / "prometheus.yaml"
    config.write_text(
        replaced(
            (MONITORING / "prometheus.yaml").read_text(),
            (r"_interval: 15s", "_interval: 1s"),
            (r"localhost:7402", f"127.0.0.1:{admin_port}"),
            (r"localhost:9093", f"127.0.0.1:{alertmanager_port}"),
        )
    )
    server = Prometheus(*free_ports(1))
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    with _running("prometheus", server, folder / "log", *options):
        yield server
