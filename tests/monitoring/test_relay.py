"""The relay speaks to each receiver in its own shape, and says no to Alertmanager when the receiver did."""

import http.client
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.monitoring.places import RELAY
from tests.monitoring.receivers import TOKEN, Receivers, running_relay, write_secrets

ROBOTS = ("dingtalk", "wecom")
DOORS = (*ROBOTS, "sms", "phone")


class Relay(NamedTuple):
    port: int
    secrets: Path
    log: Path
    receivers: Receivers

    def post(self, door: str, body: Any, token: str = TOKEN) -> tuple[int, str]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{door}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Relay]:
    receivers = Receivers()
    try:
        write_secrets(tmp_path / "secrets", receivers)
        with running_relay(tmp_path / "secrets", tmp_path / "log") as port:
            yield Relay(port, tmp_path / "secrets", tmp_path / "log", receivers)
    finally:
        receivers.close()


@pytest.fixture
def http_redirect() -> Iterator[str]:
    """An address that sends whoever posts there to one that answers 200."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(302)
            self.send_header("Location", "/login")
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}/send"
        server.shutdown()
        serving.join(10)


def alert(name: str = "HoldfastLeak", *, firing: bool = True, severity: str = "warning", about: str = "n1") -> Any:
    return {
        "status": "firing" if firing else "resolved",
        "labels": {"alertname": name, "severity": severity},
        "annotations": {
            "summary": "Something grows",
            "description": f"about {about}",
            "runbook_url": "docs/alerts.md#x",
        },
    }


def group(*alerts: Any, left_out: int = 0) -> Any:
    return {"version": "4", "status": "firing", "truncatedAlerts": left_out, "alerts": list(alerts)}


@pytest.mark.parametrize("door", DOORS)
def test_each_door_takes_a_group_and_says_what_burns(relay: Relay, door: str) -> None:
    assert relay.post(door, group(alert(severity="critical"), alert(about="n2")))[0] == 200
    (text,) = relay.receivers.got[door]
    assert "[2 firing, critical] HoldfastLeak" in text
    assert "Something grows" in text
    assert ("about n2" in text and "docs/alerts.md#x" in text) == (door in ROBOTS)
    assert len(text) <= 300 or door in ROBOTS


@pytest.mark.parametrize("door", DOORS)
def test_the_end_of_an_alert_is_told_as_such(relay: Relay, door: str) -> None:
    assert relay.post(door, group(alert(firing=False)))[0] == 200
    assert "[resolved, warning] HoldfastLeak" in relay.receivers.got[door][0]
    assert "about n1" not in relay.receivers.got[door][0]


@pytest.mark.parametrize(("door", "shown"), [("dingtalk", 100), ("wecom", 25)])
def test_a_storm_is_cut_to_what_the_robot_takes_and_says_so(relay: Relay, door: str, shown: int) -> None:
    assert relay.post(door, group(*(alert(f"Alert{number}", about="节点" * 30) for number in range(300))))[0] == 200
    text = relay.receivers.got[door][0]
    seen = text.count("🔴")
    assert shown / 2 < seen < shown
    assert "Alert0, Alert1, Alert10, Alert100 and 296 more" in text
    assert text.endswith(f"… and {300 - seen} more")
    assert relay.post(door, group(alert(), left_out=7))[0] == 200
    assert relay.receivers.got[door][1].endswith("… and 7 more")


@pytest.mark.parametrize("door", DOORS)
def test_what_was_not_taken_is_an_error_to_alertmanager_which_then_tries_again(relay: Relay, door: str) -> None:
    relay.receivers.status = 500
    assert relay.post(door, group(alert())) == (502, "not taken: status 500")
    relay.receivers.status = 200
    relay.receivers.errcode = 45009  # too many messages: with status 200
    expected = (502, "not taken: errcode 45009") if door in ROBOTS else (200, "")
    assert relay.post(door, group(alert())) == expected
    relay.receivers.close()
    assert relay.post(door, group(alert())) == (502, "not taken: URLError")
    logged = relay.log.read_text()
    assert "502" in logged
    assert not any(secret in logged for secret in ("access_token", "key=k", TOKEN))


def test_a_changed_secret_is_used_at_once_and_a_missing_one_is_said(relay: Relay) -> None:
    (relay.secrets / "dingtalk_secret").write_text("another")
    assert relay.post("dingtalk", group(alert())) == (502, "not taken: errcode 310000")
    (relay.secrets / "dingtalk_url").unlink()
    assert relay.post("dingtalk", group(alert())) == (503, "dingtalk_url is not configured")
    (relay.secrets / "token").write_text("")
    assert relay.post("wecom", group(alert()), token="")[0] == 503


@pytest.mark.parametrize("door", ["sms", "phone"])
def test_a_redirect_or_another_kind_of_address_is_no_delivery(
    relay: Relay, door: str, tmp_path: Path, http_redirect: str
) -> None:
    (relay.secrets / f"{door}_url").write_text(http_redirect)
    assert relay.post(door, group(alert())) == (502, "not taken: status 302")
    (relay.secrets / f"{door}_url").write_text((tmp_path / "log").as_uri())
    assert relay.post(door, group(alert()))[0] == 502


def announce(relay: Relay, size: int) -> int:
    """The answer to a body that is announced and not sent: the relay does not read what is too large."""
    connection = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=10)
    try:
        connection.putrequest("POST", "/wecom")
        connection.putheader("Authorization", f"Bearer {TOKEN}")
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        return connection.getresponse().status
    finally:
        connection.close()


def test_only_alertmanager_may_ask_and_only_for_what_there_is(relay: Relay) -> None:
    assert relay.post("wecom", group(alert()), token="guessed")[0] == 401
    assert relay.post("fax", group(alert()))[0] == 404
    for body in (b"", b"{", b"[]", b"{}", b'{"alerts": [{}]}', b'{"alerts": 5}'):
        assert relay.post("wecom", body)[0] == 400
    assert announce(relay, 1_048_577) == 400
    assert relay.receivers.got["wecom"] == []
    with urllib.request.urlopen(f"http://127.0.0.1:{relay.port}/healthz", timeout=10) as answer:
        assert answer.status == 200


def test_without_a_token_it_does_not_start(tmp_path: Path) -> None:
    command = [sys.executable, str(RELAY), "--secrets", str(tmp_path), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    assert done.returncode == 1
    assert "token: missing or empty" in done.stderr
