"""Taking a port of this machine, or saying in the operator's words why it cannot be had."""

import errno
import socket

from core.owned import ACCOUNT, Held
from gateway.errors import PortTakenError, StartError


def bound(key: str, host: str, port: int) -> socket.socket:
    """A TCP socket that is bound to the port and does not listen yet.

    Args:
        key: the setting that chose the port, for the message.
        host: an IPv4 or IPv6 address of this machine.
        port: 0 takes any.

    Raises:
        PortTakenError: another program listens there.
        StartError: the address is not one of this machine, or the port is not allowed.

    """
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    # Connections of an earlier start that linger in TIME_WAIT are no reason to wait.
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        where = f"{key} {port} on {host}"
        if error.errno == errno.EADDRINUSE:
            raise PortTakenError(f"{where} is in use by another program: stop it, or choose another {key}") from error
        raise StartError(f"cannot listen at {where}: {error.strerror}") from error
    return taken


def listening(host: str, port: int, backlog: int) -> socket.socket:
    """A non-blocking TCP socket that listens and shares its port with others of its kind (SO_REUSEPORT).

    Raises:
        OSError: the port is taken by somebody else, or the address is not this machine's.

    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by what it accepts
        listener.setblocking(False)
        listener.bind((host, port))
        listener.listen(backlog)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


class Listeners:
    """The node's listening sockets: for each worker's place a pair, TCP and WebSocket, open while its process changes.

    What a process that died had not accepted yet waits in its place's queue for the next one.

    Args:
        places: how many.
        host: where to listen.
        ports: of TCP and WebSocket.
        backlog: connections that may wait in each socket's queue.

    Raises:
        OSError: another program listens on a port.

    """

    def __init__(self, places: int, host: str, ports: tuple[int, int], backlog: int) -> None:
        self._pairs: list[list[socket.socket]] = []
        self._held: list[Held] = []
        try:
            for _ in range(places):
                pair: list[socket.socket] = []
                self._pairs.append(pair)
                for port in ports:
                    pair.append(listening(host, port, backlog))
                    self._held.append(ACCOUNT.hold("control_fd", f"the listener at {port}", fd=pair[-1].fileno()))
        except OSError:
            self.close()
            raise

    def fds(self, place: int) -> tuple[int, ...]:
        """The descriptors of one place; none once they are closed."""
        return tuple(listener.fileno() for listener in self._pairs[place]) if self._pairs else ()

    def close(self) -> None:
        """Closes this process's ends; whoever was passed them keeps listening."""
        for pair in self._pairs:
            for listener in pair:
                listener.close()
        self._pairs.clear()
        for held in self._held:
            held.close()
