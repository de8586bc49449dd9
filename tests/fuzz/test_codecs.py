"""Damaged input through every codec: nothing crashes, and each answer agrees with another way to it.

The seed is printed when a test fails; put it into SEED to see the same run again.
"""

import json
import random
from collections.abc import Callable

import pytest

from core import framing_tcp, framing_ws, http_upgrade, mpack, proxy, transcode
from tests.fuzz import mutation

ROUNDS = 10000
SEED: int | None = None
LIMITS = (100, 1000, 65536)


@pytest.fixture
def source() -> random.Random:
    seed = random.randrange(1 << 32) if SEED is None else SEED
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.mark.parametrize(
    ("reader", "frame"),
    [(framing_ws.WsReader, mutation.ws_message), (framing_tcp.TcpReader, mutation.tcp_frame)],
)
def test_a_stream_in_pieces_is_the_same_stream(
    source: random.Random,
    reader: type[framing_ws.WsReader] | type[framing_tcp.TcpReader],
    frame: Callable[[random.Random], bytes],
) -> None:
    for _ in range(ROUNDS):
        data = mutation.stream(source, frame)
        limit = source.choice(LIMITS)
        whole, cut = reader(limit), reader(limit)
        expected = whole.feed(data)
        found = [item for piece in mutation.pieces(source, data) for item in cut.feed(piece)]
        assert (found, cut.error) == (expected, whole.error), data
        assert whole.error or whole.need > whole.buffered


def test_json_that_is_accepted_comes_back_the_same(source: random.Random) -> None:
    for _ in range(ROUNDS):
        data = mutation.damage(source, source.choice(mutation.JSON_TEXTS))
        try:
            packed = transcode.mpack_from_json(data)
        except transcode.TranscodeError:
            continue
        assert mpack.skip(packed) == len(packed), data
        assert transcode.mpack_from_json(transcode.json_from_mpack(packed)) == packed, data


def test_messagepack_is_json_exactly_if_it_can_be_skipped(source: random.Random) -> None:
    seeds = [transcode.mpack_from_json(text) for text in mutation.JSON_TEXTS[:-1]]
    for _ in range(ROUNDS):
        data = mutation.damage(source, source.choice(seeds))
        whole = mpack.skip(data) == len(data) > 0
        try:
            text = transcode.json_from_mpack(data)
        except transcode.TranscodeError:
            assert not whole, data
        else:
            assert whole, data
            json.loads(text.decode())


@pytest.mark.parametrize(
    ("parse", "seeds"),
    [(http_upgrade.parse, (mutation.HANDSHAKE,)), (proxy.parse, mutation.PROXY_HEADERS)],
)
def test_a_head_that_is_accepted_is_found_in_pieces_at_the_same_place(
    source: random.Random, parse: Callable[[bytes], tuple[object, ...]], seeds: tuple[bytes, ...]
) -> None:
    for _ in range(ROUNDS):
        data = mutation.damage(source, source.choice(seeds))
        consumed = parse(data)[0]
        assert isinstance(consumed, int)
        assert consumed <= len(data)
        if consumed > 0:
            assert parse(data[:consumed]) == parse(data), data
            assert parse(data[: source.randrange(consumed)])[0] == 0, data
