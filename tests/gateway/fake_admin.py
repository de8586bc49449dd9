"""An admin server for tests of the command line: it keeps what it is asked, and answers what it is told to."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


class FakeAdmin:
    """Stands for a node's admin server.

    Attributes:
        requests: (method, path, body, Authorization) of each request.
        answers: (status, body) of the requests to come; the last one stays.

    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, Any, str | None]] = []
        self.answers: list[tuple[int, bytes]] = []
        admin = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                size = int(self.headers["Content-Length"] or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                assert body is None or self.headers["Content-Type"] == "application/json"
                admin.requests.append((self.command, self.path, body, self.headers["Authorization"]))
                status, answer = admin.answers.pop(0) if len(admin.answers) > 1 else admin.answers[0]
                self.send_response(status)
                self.end_headers()
                self.wfile.write(answer)

            do_POST = do_DELETE = do_GET

            def log_message(self, *_: object) -> None:
                """Tests are quiet."""

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
