"""TLS is not served by this version: without a TLS context no connection may ever take that way."""

import pytest

from core.codes import Code
from tests.core.edge_harness import FIN, Edge

# The first bytes of a TLS 1.3 ClientHello.
CLIENT_HELLO = bytes.fromhex("16030100f8010000f40303") + bytes(64)


@pytest.mark.parametrize("size", [5, 11, len(CLIENT_HELLO)])
def test_a_client_that_speaks_tls_is_answered_as_a_broken_stream(edge: Edge, size: int) -> None:
    client = edge.client()
    client.socket.sendall(CLIENT_HELLO[:size])
    # 0x16030100 as a length is far beyond max_frame.
    assert client.frame()[:2] == [FIN, Code.FRAME_TOO_LARGE]
    assert client.frame() is None
    client.close()
    edge.wait_empty()
