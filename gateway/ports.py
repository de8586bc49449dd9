"""Taking a port of this machine, or saying in the operator's words why it cannot be had."""

import errno
import socket

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
