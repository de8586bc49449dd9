"""Relays Alertmanager's webhooks to DingTalk, WeCom, and a gateway for SMS and telephone calls.

Alertmanager posts JSON of its own shape; a robot of DingTalk or WeCom wants another one, DingTalk also a signature, and
both say "no" with status 200. Whoever points Alertmanager at them directly hears of no alert and of no failure. This
relay speaks each one's shape, believes only an answer that means yes, and answers 502 otherwise: then Alertmanager
tries again, and its own metrics (alertmanager_notifications_failed_total) show it.

One folder holds all that is secret, a file each; a door whose address is missing answers 503:
    token             what Alertmanager has to send as bearer token; required
    dingtalk_url      of the robot, with its access_token     dingtalk_secret   if it checks signatures
    wecom_url         of the group's robot, with its key
    sms_url           POST {"numbers": [...], "text": "..."}  sms_numbers       one a line
    phone_url         the same, to be read out                phone_numbers     one a line

The standard library only, so that it runs from a ConfigMap in an image of plain Python.
"""

import argparse
import base64
import hashlib
import hmac
import http.client
import json
import logging
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BODY_BYTES_MAX = 1_048_576
TIMEOUT_S = 10.0
DINGTALK_BYTES_MAX = 19_000  # of 20,000
WECOM_BYTES_MAX = 4_000  # of 4,096
SMS_CHARACTERS_MAX = 300
TITLE_NAMES_MAX = 4

Json = dict[str, Any]
log = logging.getLogger("relay")


class Refused(Exception):
    """The other side did not take the message."""


class Missing(Exception):
    """A file that this door needs is not there."""


class Secrets:
    """The folder, read anew for each message: a Secret that is changed is used without a restart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, name: str) -> str:
        """The file's text, stripped; empty when there is none."""
        try:
            return (self._folder / name).read_text().strip()
        except FileNotFoundError:
            return ""

    def need(self, name: str) -> str:
        """The file's text; Missing when there is none or it is empty."""
        if not (text := self.get(name)):
            raise Missing(f"{name} is not configured")
        return text


# --------------------------------------------------------------------------------------------------------- what is said


def title(group: Json) -> str:
    """One line: whether it burns, how badly, what, and how often."""
    alerts = group["alerts"]
    names = sorted({alert["labels"].get("alertname", "?") for alert in alerts})
    firing = sum(alert["status"] == "firing" for alert in alerts)
    said = f"{firing} firing" if firing else "resolved"
    severities = {alert["labels"].get("severity", "") for alert in alerts}
    worst = "critical" if "critical" in severities else "warning"
    more = f" and {len(names) - TITLE_NAMES_MAX} more" if len(names) > TITLE_NAMES_MAX else ""
    return f"[{said}, {worst}] {', '.join(names[:TITLE_NAMES_MAX])}{more}"


def lines(group: Json) -> list[str]:
    """A paragraph an alert."""
    found = []
    for alert in group["alerts"]:
        notes = alert.get("annotations", {})
        mark = "🔴" if alert["status"] == "firing" else "🟢"
        text = f"{mark} **{alert['labels'].get('alertname', '?')}**: {notes.get('summary', '')}"
        if alert["status"] == "firing":
            text += f"\n> {notes.get('description', '')}\n> {notes.get('runbook_url', '')}"
        found.append(text)
    return found


def markdown(group: Json, bytes_max: int) -> str:
    """The title and as many paragraphs as fit, with a word on those left out."""
    text = f"### {title(group)}"
    parts = lines(group)
    for number, part in enumerate(parts):
        # Room for the last line, whichever the number in it.
        if len(f"{text}\n\n{part}".encode()) > bytes_max - 40:
            return f"{text}\n\n… and {len(parts) - number} more"
        text += f"\n\n{part}"
    left_out = group.get("truncatedAlerts", 0)
    return f"{text}\n\n… and {left_out} more" if left_out else text


def plain(group: Json) -> str:
    """For SMS and to be read out: the title and each summary once."""
    summaries = dict.fromkeys(alert.get("annotations", {}).get("summary", "") for alert in group["alerts"])
    return f"{title(group)}: {'; '.join(filter(None, summaries))}"[:SMS_CHARACTERS_MAX]


# ------------------------------------------------------------------------------------------------------ to whom it goes


def signed(url: str, secret: str, now_ms: int) -> str:
    """DingTalk's signature: HMAC-SHA256 over time and secret, in the address."""
    digest = hmac.new(secret.encode(), f"{now_ms}\n{secret}".encode(), hashlib.sha256).digest()
    return f"{url}&timestamp={now_ms}&sign={urllib.parse.quote_plus(base64.b64encode(digest))}"


def dingtalk(group: Json, secrets: Secrets) -> None:
    url = secrets.need("dingtalk_url")
    if secret := secrets.get("dingtalk_secret"):
        url = signed(url, secret, int(time.time() * 1000))
    text = markdown(group, DINGTALK_BYTES_MAX)
    _check_errcode(_post(url, {"msgtype": "markdown", "markdown": {"title": title(group), "text": text}}))


def wecom(group: Json, secrets: Secrets) -> None:
    text = markdown(group, WECOM_BYTES_MAX)
    _check_errcode(_post(secrets.need("wecom_url"), {"msgtype": "markdown", "markdown": {"content": text}}))


def sms(group: Json, secrets: Secrets) -> None:
    _post(secrets.need("sms_url"), {"numbers": secrets.need("sms_numbers").split(), "text": plain(group)})


def phone(group: Json, secrets: Secrets) -> None:
    _post(secrets.need("phone_url"), {"numbers": secrets.need("phone_numbers").split(), "text": plain(group)})


DOORS: dict[str, Callable[[Json, Secrets], None]] = {
    "/dingtalk": dingtalk,
    "/wecom": wecom,
    "/sms": sms,
    "/phone": phone,
}


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would be followed by a GET without the message, and its answer be taken for a yes."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _post(url: str, message: Json) -> bytes:
    if not url.startswith(("http://", "https://")):
        raise Refused("an address that is not http:// or https://")
    body = json.dumps(message, ensure_ascii=False).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json; charset=utf-8"})
    try:
        with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_S) as answer:
            return bytes(answer.read(BODY_BYTES_MAX))
    except (OSError, http.client.HTTPException, ValueError) as error:
        # The address is secret: it stays out of what is said.
        why = f"status {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
        raise Refused(why) from error


def _check_errcode(answer: bytes) -> None:
    """DingTalk and WeCom answer 200 whatever happened; 0 in the body means that it was taken."""
    try:
        code = json.loads(answer)["errcode"]
    except (ValueError, KeyError, TypeError) as error:
        raise Refused("an answer without errcode") from error
    if code != 0:
        raise Refused(f"errcode {code}")


# ----------------------------------------------------------------------------------------------------------- the server


class Handler(BaseHTTPRequestHandler):
    """One request of Alertmanager."""

    timeout = TIMEOUT_S
    secrets: Secrets

    def do_GET(self) -> None:
        """Probes."""
        self._answer(HTTPStatus.OK if self.path == "/healthz" else HTTPStatus.NOT_FOUND, "")

    def do_POST(self) -> None:
        """A group of alerts for one door."""
        try:
            token = self.secrets.need("token")
            scheme, _, given = self.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
                self._answer(HTTPStatus.UNAUTHORIZED, "send the token")
            elif (door := DOORS.get(self.path)) is None:
                self._answer(HTTPStatus.NOT_FOUND, f"doors: {' '.join(DOORS)}")
            elif (group := self._group()) is not None:
                door(group, self.secrets)
                log.info("relayed to %s: %s", self.path, title(group))
                self._answer(HTTPStatus.OK, "")
        except Missing as missing:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, str(missing))
        except Refused as refused:
            self._answer(HTTPStatus.BAD_GATEWAY, f"not taken: {refused}")

    def _group(self) -> Json | None:
        """What was posted; None after an answer was given."""
        try:
            size = int(self.headers.get("Content-Length", "-1"))
            if not 0 <= size <= BODY_BYTES_MAX:
                raise ValueError(f"a body of {size} bytes")
            group: Json = json.loads(self.rfile.read(size))
            plain(group), markdown(group, DINGTALK_BYTES_MAX)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._answer(HTTPStatus.BAD_REQUEST, f"not a message of Alertmanager: {error!r}")
            return None
        return group

    def _answer(self, status: HTTPStatus, text: str) -> None:
        if status >= HTTPStatus.BAD_REQUEST:
            log.warning("%s %s: %d %s", self.command, self.path, status, text)
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are logged by what became of them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--secrets", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=9095)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    Handler.secrets = Secrets(arguments.secrets)
    if not Handler.secrets.get("token"):
        sys.exit(f"{arguments.secrets / 'token'}: missing or empty")
    with ThreadingHTTPServer((arguments.host, arguments.port), Handler) as server:
        log.info("listening on port %d", server.server_port)
        server.serve_forever()


if __name__ == "__main__":
    main()
