"""A TLS client that can say close_notify and go on receiving, which Python's own sockets cannot."""

import socket
import ssl
from typing import cast

from tests.core.edge_harness import Client


class TlsSocket:
    """The part of a socket that `Client` uses, over memory BIOs."""

    def __init__(self, plain: socket.socket) -> None:
        self.plain = plain
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing)
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._exchange()
        self._flush()

    def _flush(self) -> None:
        if data := self._outgoing.read():
            self.plain.sendall(data)

    def _exchange(self) -> bool:
        """Send what there is and take what comes; False at the end of the stream."""
        self._flush()
        data = self.plain.recv(1 << 16)
        self._incoming.write(data)
        return bool(data)

    def sendall(self, data: bytes) -> None:
        self._tls.write(data)
        self._flush()

    def recv(self, size: int) -> bytes:
        """Plaintext; nothing once the other side said close_notify or closed."""
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                if not self._exchange():
                    return b""
            except ssl.SSLZeroReturnError:
                return b""

    def shutdown(self, _how: int) -> None:
        """close_notify: no more is sent, but TCP stays open both ways."""
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            self._flush()

    def close(self) -> None:
        self.plain.close()


class TlsClient(Client):
    """A client over TCP with TLS."""

    def __init__(self, port: int, receive_bytes: int = 0) -> None:
        super().__init__(port, receive_bytes)
        self.socket = cast(socket.socket, TlsSocket(self.socket))
