"""What routers tell of their loads and of other regions: what is left out, and what cannot be read."""

import asyncio

import msgpack
import pytest

from router.directory.embedded import EmbeddedDirectory, Store
from router.directory.port import Claim
from router.loads import LOADS, NEVER, Load, Other, others_of, pack, read, unpack

US = Other(False, {1: (3, 0.25), 2: (0, 0.0)}, 128, 4)
AP = Other(True, {1: (0, 0.0)}, 0, 0)


def test_what_is_told_is_read_but_for_shards_of_which_a_region_has_everything() -> None:
    told = unpack(pack(7, {1: 2.5}, {"us": US, "ap": AP}))
    assert told == Load(7, {1: 2.5}, {"us": US._replace(lags={1: (3, 0.25)}), "ap": AP._replace(lags={})})


def test_without_regions_it_is_as_it_ever_was() -> None:
    assert msgpack.unpackb(pack(7, {1: 2.5}, {}), strict_map_key=False) == [1, 7, {1: 2.5}]
    assert unpack(pack(7, {1: 2.5}, {})) == Load(7, {1: 2.5}, {})


@pytest.mark.parametrize("value", [b"", b"what a later version writes", msgpack.packb([2, 7, {}]), msgpack.packb([1])])
def test_what_cannot_be_read_is_of_no_node(value: bytes) -> None:
    assert unpack(value) == Load(NEVER, {}, {})


def test_what_a_process_tells_of_regions_is_read_from_its_form_on_the_way() -> None:
    told = msgpack.unpackb(msgpack.packb({"us": US, "ap": AP}), strict_map_key=False)
    assert others_of(told) == {"us": US, "ap": AP}


def test_only_lives_that_are_there_count() -> None:
    async def body() -> dict[str, Load]:
        store = Store()
        directory = EmbeddedDirectory(store)
        for name, epoch in (("a", 7), ("b", 8)):
            await directory.transact([Claim(LOADS + name, 0, pack(epoch, {0: 1.0}, {}))])
        found = await read(directory, {7})
        await directory.close()
        return found

    assert asyncio.run(body()) == {"a": Load(7, {0: 1.0}, {})}
