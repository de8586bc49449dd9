"""Which router has which place of a worker's data plane: one that plays it notes what it is asked for."""

import os

import msgspec
import pytest

from core import notes
from gateway import links
from gateway.cluster_config import RouterLink
from gateway.links import LINKS_MAX, Links

A, B = RouterLink(name="a", epoch=5, bus="tcp://10.0.0.1:1"), RouterLink(name="b", epoch=6, bus="tcp://10.0.0.2:1")


class Plane:
    """Notes what it is told, and opens no link to whatever is in `broken`."""

    def __init__(self) -> None:
        self.said: list[tuple[object, ...]] = []
        self.broken: set[str] = set()
        self.near: dict[str, bool] = {}

    def link_open(
        self,
        place: int,
        endpoint: str,
        server_key: str = "",
        public_key: str = "",
        secret_key: str = "",
        near: bool = True,
    ) -> None:
        self.near[endpoint] = near
        if endpoint in self.broken:
            raise OSError(22, "no such address")
        self.said.append(("open", place, endpoint, server_key, public_key, secret_key))

    def link_close(self, place: int) -> None:
        self.said.append(("closed", place))

    def put(self, kind: int, conn: int = 0, request: int = 0) -> None:
        self.said.append(({notes.LINK_OPEN: "use", notes.LINK_CLOSE: "leave"}[kind], request))

    def flush(self) -> None:
        """Nothing waits here."""

    def take(self) -> list[tuple[object, ...]]:
        said, self.said = self.said, []
        return said


def test_each_router_gets_a_place_of_its_own() -> None:
    plane = Plane()
    own = Links(plane, "mine", "secret")
    own.want([B, A])
    assert plane.take() == [
        ("open", 0, A.bus, "", "", ""),
        ("use", 0),
        ("open", 1, B.bus, "", "", ""),
        ("use", 1),
    ]
    own.want([A, B])
    assert plane.take() == []
    assert own.places == {0: A, 1: B}


def test_a_router_with_a_key_is_shown_ours() -> None:
    plane = Plane()
    Links(plane, "mine", "secret").want([RouterLink(name="a", epoch=5, bus="tcp://a:1", key="theirs")])
    assert plane.take()[0] == ("open", 0, "tcp://a:1", "theirs", "mine", "secret")


def test_a_place_is_free_again_only_when_the_data_plane_has_let_go_of_it() -> None:
    plane = Plane()
    own = Links(plane)
    own.want([A])
    plane.take()
    own.want([B])
    assert plane.take() == [("leave", 0), ("open", 1, B.bus, "", "", ""), ("use", 1)]
    own.on_closed(0)
    assert plane.take() == [("closed", 0)]
    own.want([A, B])
    assert plane.take()[:1] == [("open", 0, A.bus, "", "", "")]


def test_a_router_that_restarted_at_the_same_address_is_linked_to_anew_once_the_old_link_is_closed() -> None:
    plane = Plane()
    own = Links(plane)
    own.want([A])
    plane.take()
    again = RouterLink(name="a", epoch=9, bus=A.bus)
    own.want([again])
    assert plane.take() == [("leave", 0)]
    own.on_closed(0)
    assert plane.take() == [("closed", 0), ("open", 0, A.bus, "", "", ""), ("use", 0)]
    assert own.places == {0: again}


def test_of_two_lives_at_one_address_the_younger_counts() -> None:
    plane = Plane()
    own = Links(plane)
    own.want([RouterLink(name="renamed", epoch=9, bus=A.bus), A])
    assert [link.epoch for link in own.places.values()] == [9]


def test_a_router_that_went_before_its_old_link_was_closed_is_not_linked_to() -> None:
    plane = Plane()
    own = Links(plane)
    own.want([A])
    own.want([RouterLink(name="a", epoch=9, bus=A.bus)])
    own.want([])
    plane.take()
    own.on_closed(0)
    assert plane.take() == [("closed", 0)]
    assert own.places == {}


def test_a_link_that_cannot_be_opened_is_said_and_keeps_no_other_from_it() -> None:
    plane = Plane()
    plane.broken = {A.bus}
    own = Links(plane)
    with pytest.raises(OSError, match="no such address"):
        own.want([A, B])
    assert own.places == {0: B}
    plane.broken = set()
    own.want([A, B])
    assert own.places == {0: B, 1: A}


def test_more_routers_than_places_are_said_and_the_oldest_are_linked_to() -> None:
    plane = Plane()
    own = Links(plane)
    many = [RouterLink(name=f"r{number}", epoch=number, bus=f"tcp://r:{number}") for number in range(LINKS_MAX + 3)]
    own.want(reversed(many))
    assert sorted(link.epoch for link in own.places.values()) == list(range(LINKS_MAX))


def test_a_full_house_takes_a_newcomer_when_a_place_is_free() -> None:
    plane = Plane()
    own = Links(plane)
    many = [RouterLink(name=f"r{number}", epoch=number, bus=f"tcp://r:{number}") for number in range(1, LINKS_MAX + 2)]
    own.want(many[:-1])
    own.want(many[1:])
    assert many[-1] not in own.places.values()
    own.on_closed(0)
    assert own.places[0] == many[-1]


@pytest.mark.parametrize("alone", ["", "tcp://127.0.0.1:7410"])
def test_event_descriptors_are_its_own_as_far_as_its_links_may_have_them(alone: str) -> None:
    own = Links(Plane(), alone=alone)
    own.want([] if alone else [A])
    opened = [os.eventfd(0) for _ in range(links.UNNAMED_A_LINK)]
    try:
        assert own.owns(opened[0])
        opened.append(os.eventfd(0))
        assert not own.owns(opened[0])
    finally:
        for fd in opened:
            os.close(fd)


def test_routers_of_other_regions_are_far() -> None:
    there = [msgspec.structs.replace(A, region="eu"), msgspec.structs.replace(B, region="us")]
    plane = Plane()
    Links(plane, region="us").want(there)
    assert plane.near == {A.bus: False, B.bus: True}
    plane = Plane()
    Links(plane).want(there)
    assert plane.near == {A.bus: True, B.bus: True}
