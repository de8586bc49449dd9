"""What the kernel tells of this process's descriptors."""

import os
import select
import socket
from pathlib import Path

from core import descriptors


def test_an_open_descriptor_is_listed_and_a_closed_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    found = descriptors.look(fd)
    assert found is not None
    assert found.link == str(tmp_path / "file")
    assert fd in descriptors.listed()
    os.close(fd)
    assert descriptors.look(fd) is None
    assert fd not in descriptors.listed()


def test_the_same_number_of_another_file_is_another_descriptor() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert descriptors.look(one.fileno()) != descriptors.look(other.fileno())


def test_copies_of_a_descriptor_are_found(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    copies = sorted(os.dup(fd) for _ in range(2))
    assert descriptors.others_of(fd) == copies
    for one in (fd, *copies):
        os.close(one)


def test_bits_become_numbers() -> None:
    assert descriptors.from_bits(b"\x05\x00\x80") == {0, 2, 23}


def test_libzmqs_sockets_are_known_by_where_they_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(path))
        listener.listen()
        client.connect(str(path))
        accepted, _ = listener.accept()
        with accepted:
            for one in (listener, client, accepted):
                assert descriptors.is_bus(one.fileno(), f"ipc://{path}")
                assert not descriptors.is_bus(one.fileno(), "ipc:///elsewhere")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert descriptors.is_bus(server.fileno(), f"tcp://127.0.0.1:{port}")
        assert not descriptors.is_bus(server.fileno(), "tcp://127.0.0.1:1")
    with Path("/dev/null").open() as file:
        assert not descriptors.is_bus(file.fileno(), "tcp://127.0.0.1:1")


def test_event_descriptors_and_epolls_are_unnamed_and_sockets_are_not() -> None:
    event, (one, other) = os.eventfd(0), socket.socketpair()
    with one, other, select.epoll() as poller:
        found = [descriptors.is_unnamed(fd) for fd in (event, poller.fileno(), one.fileno())]
    os.close(event)
    assert found == [True, True, False]
    assert not descriptors.is_unnamed(event)
