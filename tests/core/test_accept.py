"""Accept: newcomers within the bounds, and what those beyond them see."""

import os
import resource
import socket
from collections.abc import Callable

from tests.core.edge_harness import Edge, wait_for


def refused(edge: Edge) -> bool:
    """Whether a newcomer is closed without a word."""
    client = edge.client()
    try:
        return client.frame() is None
    except ConnectionResetError:
        return True


def test_the_table_takes_no_more_connections_than_its_bound(edges: Callable[..., Edge]) -> None:
    edge = edges(connections_max=3)
    clients = [edge.open(f"user{number}") for number in range(3)]
    assert refused(edge)
    assert edge.counter("connections_refused") == 1
    clients[0].close()
    wait_for(lambda: edge.live("connection") == 2, "a place is free")
    edge.open("late")


def test_connections_that_say_nothing_take_no_more_places_than_handshakes_may(edges: Callable[..., Edge]) -> None:
    edge = edges(handshakes_max=2)
    edge.open("alice")
    silent = [edge.client(), edge.client()]
    wait_for(lambda: edge.live("connection") == 3, "both are there")
    assert refused(edge)
    silent[0].close()
    wait_for(lambda: edge.live("connection") == 2, "one is gone")
    edge.open("bob")


def test_many_at_once_are_all_taken(edge: Edge) -> None:
    clients = [edge.client() for _ in range(100)]
    wait_for(lambda: edge.live("connection") == 100, "all are taken")
    for client in clients:
        client.reset()
    edge.wait_empty()
    assert edge.counter("entered_accepted") == edge.counter("entered_closed") == 100


def test_without_file_descriptors_newcomers_are_closed_and_nobody_else_is(edge: Edge) -> None:
    """The limit is this process's own, so both ends of the newcomer's connection are made before it is set."""
    alice = edge.open("alice")
    newcomers = [socket.socket() for _ in range(3)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = max(int(name) for name in os.listdir("/proc/self/fd"))
    holes = [os.open("/dev/null", os.O_RDONLY)]
    while holes[-1] <= top:  # the kernel gives the lowest number that is free
        holes.append(os.open("/dev/null", os.O_RDONLY))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (holes[-1] + 1, hard))
        for one in newcomers:
            one.settimeout(10)
            one.connect(("127.0.0.1", edge.port))
        assert [one.recv(1) for one in newcomers] == [b""] * 3
        alice.send([4, 1, 2])
        assert alice.frame() == [5, 1, 2]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in holes:
            os.close(fd)
    assert edge.counter("connections_refused") == 3
    for one in newcomers:
        one.close()
    edge.open("bob")
