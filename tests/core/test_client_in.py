"""What a client receives: cut anywhere, refused with the reason, dialled at the pace."""

import socket
import time

import pytest

from core import client_loop, stamp
from core.client_loop import CONNECTED, FAILED, ClientLoop
from tests.core.client_harness import MESSAGE, PING, PONG, REPLY, TRANSPORTS, Driver, Session, wait_for

MESSAGES = [[MESSAGE, "group:a", offset, stamp.write(150, 1, 2, 3), {"epoch": 5}] for offset in range(1, 600)]


def send_in_two(driver: Driver, session: Session, data: bytes, at: int) -> None:
    """Send the pieces so that the client surely reads them one by one."""
    before = driver.count("bytes_in")
    session.raw(data[:at])
    driver.wait_count("bytes_in", before + at)
    session.raw(data[at:])
    driver.wait_count("bytes_in", before + len(data))


@pytest.mark.slow
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_message_may_be_cut_anywhere(driver: Driver, transport: str) -> None:
    _, session = driver.connect("group:a", transport=transport)
    for at, message in enumerate(MESSAGES, 1):
        data = session.wire(message)
        if at >= len(data):
            break
        send_in_two(driver, session, data, at)
        driver.wait_count("delivered", at)
    assert driver.count("corrupt") == driver.count("lost") == driver.count("repeated") == 0
    assert driver.live("ring") == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_many_messages_in_one_piece_and_byte_by_byte(driver: Driver, transport: str) -> None:
    _, session = driver.connect("group:a", transport=transport)
    session.raw(session.wire(*MESSAGES[:500]))
    driver.wait_count("delivered", 500)
    for byte in session.wire(*MESSAGES[500:503]):
        session.raw(bytes([byte]))
    driver.wait_count("delivered", 503)
    assert driver.count("corrupt") == driver.count("lost") == 0


@pytest.mark.slow
def test_the_answer_to_the_upgrade_may_be_cut_anywhere(drivers: type[Driver]) -> None:
    size = 129
    driver = drivers(connections_max=size + 1)
    for at in range(1, size):
        driver.open()
        session = driver.accept()
        session.upgrade(answer=b"")
        answer = session.accepted()
        assert len(answer) == size
        send_in_two(driver, session, answer, at)
        session.welcome()
        driver.expect(CONNECTED)


def test_welcome_may_come_together_with_the_end_of_the_upgrade(driver: Driver) -> None:
    handle = driver.open()
    session = driver.accept()
    session.upgrade(answer=b"")
    session.raw(session.accepted() + session.wire([PING, 1, 2]))
    assert session.welcome() == {"v": 1, "user": "alice"}
    driver.expect(CONNECTED)
    assert session.frame() == [PONG, 1, 2]
    assert driver.loop.counts()["open"] == 1
    assert handle


def test_fragments_and_control_frames_between_them_are_put_together(driver: Driver) -> None:
    _, session = driver.connect("group:a")
    body = session.wire(MESSAGES[0])[4:]
    half = len(body) // 2
    ping = bytes([0x89, 2]) + b"hi"
    session.raw(bytes([0x02, half]) + body[:half] + ping + bytes([0x80, len(body) - half]) + body[half:])
    assert session.opcode_and_body() == (0xA, b"hi")
    driver.wait_count("delivered", 1)
    assert driver.count("corrupt") == 0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "upgrade refused: HTTP/1.1 503"),
        (b"HTTP/1.1 101 x\r\nSec-WebSocket-Accept: stored\r\n\r\n", "upgrade: wrong Sec-WebSocket-Accept"),
        (b"\r\n\r\n", "upgrade refused: "),
        (b"x" * 9000, "the answer to the upgrade is too long"),
    ],
)
def test_a_refused_upgrade_says_why(driver: Driver, answer: bytes, reason: str) -> None:
    handle = driver.open()
    driver.accept().upgrade(answer)
    found = driver.expect(FAILED)
    assert found[:2] == (handle, 0)
    assert found[4].startswith(reason)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x82\x81abcdx", "the server's bytes break the framing of the transport"),
        (b"\x81\x02[]", "the server answered MessagePack with text"),
        (b"\x82\x01\x01", "the server sent a body that is not a frame"),
        (b"\x82\x02\x92\x02", "the server sent an answer without a number"),
        (b"\x88\x06\x0f\xa1slow", "closed by the server: 4001 slow"),
        (b"\x88\x00", "closed by the server: 1005 "),
        (b"", "closed by the server without a word"),
    ],
)
def test_what_breaks_a_connection_says_why(driver: Driver, data: bytes, reason: str) -> None:
    handle, session = driver.connect()
    session.raw(data)
    session.socket.shutdown(socket.SHUT_WR)
    assert driver.expect(FAILED) == (handle, 0, 0, 0, reason)


def test_nobody_listening_is_an_error_with_its_reason() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound but not listening: nobody else can take the port
        driver = Driver()
        driver.loop, unused = ClientLoop(driver.stats, [held.getsockname()], connections_max=1), driver.loop
        unused.stop()
        driver.thread.join()
        driver.thread = type(driver.thread)(target=driver.loop.run, daemon=True)
        driver.thread.start()
        try:
            handle = driver.open()
            assert driver.expect(FAILED) == (handle, 0, 0, 0, "connect: Connection refused")
        finally:
            driver.close()


def test_a_server_that_answers_nothing_has_a_deadline(drivers: type[Driver]) -> None:
    driver = drivers(handshake_timeout_ms=100)
    handle = driver.open()
    driver.accept()
    assert driver.expect(FAILED) == (handle, 0, 0, 0, "no WELCOME in time")


def test_connections_are_dialled_at_their_pace(drivers: type[Driver]) -> None:
    driver = drivers(connect_rate=100)
    begin = time.monotonic()
    for _ in range(30):
        driver.open(tcp=True)
    for _ in range(30):
        driver.accept(tcp=True)
    # The first, and what 20 ms of the pace allow at once, do not wait.
    assert time.monotonic() - begin >= (30 - 1 - 2) / 100


def test_connections_come_from_the_source_address(drivers: type[Driver]) -> None:
    driver = drivers(source="127.0.0.7")
    driver.open(tcp=True)
    assert driver.accept(tcp=True).socket.getpeername()[0] == "127.0.0.7"


def test_a_source_address_of_another_machine_is_refused_with_its_reason(drivers: type[Driver]) -> None:
    driver = drivers(source="192.0.2.1")
    handle = driver.open()
    assert driver.expect(FAILED) == (handle, 0, 0, 0, "bind: Cannot assign requested address")


def test_an_answer_longer_than_the_receive_buffer_arrives_whole(driver: Driver) -> None:
    handle, session = driver.connect("group:a", transport="tcp")
    driver.command("history", handle, "group:a")
    number = session.frame()[1]
    session.send([REPLY, number, {"messages": [bytes(1_000_000)], "epoch": 5, "offset": 0}])
    driver.wait_count("histories", 1)
    wait_for(lambda: driver.live("ring") == 0, "the large ring is given back")
    assert client_loop.TIMES[-1] == "history"
