"""Where a shard's publishers are: clearly somewhere else, or it stays where it is."""

from router.publishers import LEAST, Published, Publishers


def _counts(**regions: list[int]) -> dict[str, list[int]]:
    return regions


def test_a_shard_without_a_region_gets_that_of_most_publishes() -> None:
    found = Publishers().look(_counts(eu=[100, 10], us=[20, 90]), [0, 1], {})
    assert found == {0: "eu", 1: "us"}


def test_few_publishes_say_nothing() -> None:
    assert Publishers().look(_counts(eu=[int(LEAST) - 1]), [0], {}) == {}
    assert Publishers().look({}, [0], {}) == {}


def test_it_moves_only_when_clearly_more_comes_from_elsewhere() -> None:
    publishers = Publishers()
    assert publishers.look(_counts(eu=[100], us=[120]), [0], {0: "eu"}) == {}
    assert publishers.look(_counts(eu=[110], us=[520]), [0], {0: "eu"}) == {0: "us"}


def test_what_was_long_ago_fades() -> None:
    publishers = Publishers()
    assert publishers.look(_counts(eu=[10_000], us=[0]), [0], {}) == {0: "eu"}
    moved = []
    for turn in range(1, 40):
        moved.append(publishers.look(_counts(eu=[10_000], us=[100 * turn]), [0], {0: "eu"}))
    assert moved[0] == {}
    assert moved[-1] == {0: "us"}


def test_of_what_was_led_elsewhere_meanwhile_nothing_is_known() -> None:
    publishers = Publishers()
    publishers.look(_counts(eu=[1_000]), [0], {})
    publishers.look(_counts(eu=[2_000]), [], {})
    assert publishers.look(_counts(eu=[2_000], us=[60]), [0], {}) == {0: "us"}


def test_messages_are_counted_for_the_region_of_who_published_them_whoever_goes() -> None:
    workers = {b"a/0/1": [3, 0], b"a/1/1": [1, 1], b"b/0/1": [0, 9], b"c/0/1": [7, 7]}
    published = Published(lambda: workers, {"a.gw": "eu", "b.gw": "us"}.get)
    assert published() == {"eu": [4, 1], "us": [0, 9]}
    del workers[b"a/0/1"]
    workers[b"b/0/1"] = [2, 10]
    assert published() == {"eu": [4, 1], "us": [2, 10]}
    workers[b"b/0/1"] = [1, 0]
    assert published() == {"eu": [4, 1], "us": [3, 10]}, "known anew"
