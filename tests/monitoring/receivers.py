"""What stands at the other end of the relay: a robot of DingTalk, one of WeCom, and a gateway for SMS and calls.

One HTTP server that checks each message's shape as its model does, keeps it, and answers as told.
"""

import base64
import hashlib
import hmac
import json
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.conftest import free_ports, wait_until
from tests.monitoring.places import RELAY

TOKEN = "between-alertmanager-and-relay"
SECRET = "SEC-of-the-robot"
ERRCODE_SIGN = 310000
ERRCODE_CONTENT = 40008


class Receivers:
    """Their addresses, and what each has got.

    Attributes:
        got: the texts by door ("dingtalk", "wecom", "sms", "phone"), in order.
        status, errcode: what is answered to a message of the right shape.

    """

    def __init__(self) -> None:
        self.got: dict[str, list[str]] = {door: [] for door in ("dingtalk", "wecom", "sms", "phone")}
        self.status = 200
        self.errcode = 0
        receivers = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, answer = receivers._take(self.path, body)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, format: str, *args: object) -> None:
                """Not needed."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    def _take(self, path: str, body: Any) -> tuple[int, Any]:
        parts = urllib.parse.urlsplit(path)
        query = dict(urllib.parse.parse_qsl(parts.query))
        if parts.path == "/robot/send":
            code = self._robot("dingtalk", query.get("access_token") == "t", body, "text")
            return self.status, {"errcode": code if _is_signed(query) else ERRCODE_SIGN, "errmsg": ""}
        if parts.path == "/cgi-bin/webhook/send":
            return self.status, {
                "errcode": self._robot("wecom", query.get("key") == "k", body, "content"),
                "errmsg": "",
            }
        if self.status == 200 and set(body) == {"numbers", "text"} and body["numbers"] == ["+8610", "+8621"]:
            self.got[parts.path[1:]].append(body["text"])
        return self.status, {}

    def _robot(self, door: str, known: bool, body: Any, field: str) -> int:
        wanted = {field} | ({"title"} if door == "dingtalk" else set())
        if not known or body.get("msgtype") != "markdown" or set(body["markdown"]) != wanted:
            return ERRCODE_CONTENT
        if len(body["markdown"][field].encode()) > {"dingtalk": 20_000, "wecom": 4_096}[door]:
            return ERRCODE_CONTENT
        if self.status == 200 and self.errcode == 0:
            self.got[door].append(body["markdown"][field])
        return self.errcode


def _is_signed(query: dict[str, str]) -> bool:
    """As DingTalk's page on custom robots says it."""
    text = f"{query.get('timestamp', '')}\n{SECRET}".encode()
    wanted = base64.b64encode(hmac.new(SECRET.encode(), text, hashlib.sha256).digest()).decode()
    return query.get("sign") == wanted


def write_secrets(folder: Path, receivers: Receivers) -> None:
    """The relay's folder."""
    folder.mkdir(exist_ok=True)
    for name, text in (
        ("token", TOKEN),
        ("dingtalk_url", receivers.url("/robot/send?access_token=t")),
        ("dingtalk_secret", SECRET),
        ("wecom_url", receivers.url("/cgi-bin/webhook/send?key=k")),
        ("sms_url", receivers.url("/sms")),
        ("sms_numbers", "+8610\n+8621\n"),
        ("phone_url", receivers.url("/phone")),
        ("phone_numbers", "+8610\n+8621\n"),
    ):
        (folder / name).write_text(text)


@contextmanager
def running_relay(secrets: Path, log: Path) -> Iterator[int]:
    """The relay as a process of its own; its port."""
    (port,) = free_ports(1)
    with log.open("wb") as file:
        options = ["--secrets", str(secrets), "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen([sys.executable, "-I", str(RELAY), *options], stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: "listening" in log.read_text(), "the relay listens")
        yield port
    finally:
        process.terminate()
        process.wait(10)
