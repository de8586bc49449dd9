"""A port is had or the operator is told why not."""

import socket

import pytest

from gateway.errors import PortTakenError, StartError
from gateway.ports import Listeners, bound


def listening(reuse_port: bool) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, reuse_port)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


@pytest.mark.parametrize("reuse_port", [False, True])
def test_a_port_that_somebody_listens_on_is_taken_even_if_they_would_share_it(reuse_port: bool) -> None:
    with listening(reuse_port) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTakenError, match=rf"gateway\.port {port} on 127\.0\.0\.1 is in use by another program"):
            bound("gateway.port", "127.0.0.1", port)


def test_once_they_are_gone_it_can_be_had() -> None:
    with listening(reuse_port=True) as listener:
        port = listener.getsockname()[1]
        # A connection that the listening side closes first leaves TIME_WAIT on the port.
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            listener.accept()[0].close()
            assert client.recv(1) == b""
    with bound("gateway.port", "127.0.0.1", port) as taken:
        assert taken.getsockname()[1] == port


def test_ipv6() -> None:
    with bound("admin.port", "::1", 0) as taken:
        assert taken.family == socket.AF_INET6


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(StartError, match=r"cannot listen at admin\.port 7402 on 192\.0\.2\.1: Cannot assign"):
        bound("admin.port", "192.0.2.1", 7402)


def test_listeners_share_their_ports_and_are_kept_until_they_are_closed() -> None:
    with listening(reuse_port=True) as one, listening(reuse_port=True) as other:
        ports = (one.getsockname()[1], other.getsockname()[1])
    listeners = Listeners(2, "127.0.0.1", ports, 16)
    pairs = [listeners.fds(place) for place in range(2)]
    assert len({fd for pair in pairs for fd in pair}) == 4
    for port in ports:
        socket.create_connection(("127.0.0.1", port), 5).close()
    listeners.close()
    assert listeners.fds(0) == ()
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 5)


def test_when_one_port_cannot_be_had_none_stays_open() -> None:
    with listening(reuse_port=False) as taken, listening(reuse_port=True) as free:
        port = free.getsockname()[1]
        free.close()
        with pytest.raises(OSError, match="cannot listen on 127"):
            Listeners(1, "127.0.0.1", (port, taken.getsockname()[1]), 16)
        with bound("gateway.port", "127.0.0.1", port):
            pass
