"""What the tests of regions count with: differences of histories, what a region had alone, endpoints, busy seconds."""

from tests.chaos.endpoints import Endpoints
from tests.chaos.guests import busiest
from tests.chaos.meters import percentile
from tests.chaos.regions import Entry, History, lacking, unlike

KEY = b"hf:{h3}:c:group:a"


def history(*ids: str, text: str = "x") -> History:
    return {KEY: [Entry(one.encode(), ((b"m", text.encode()),)) for one in ids]} if ids else {}


def test_histories_that_are_the_same_have_no_difference() -> None:
    assert list(unlike("eu", history("3-1", "3-2"), "us", history("3-1", "3-2"))) == []
    assert list(unlike("eu", {}, "us", {})) == []


def test_a_difference_says_where_and_what() -> None:
    ours, theirs = history("3-1", "3-2", "3-3"), history("3-1", "4-2")
    assert list(unlike("eu", ours, "us", theirs)) == [
        "hf:{h3}:c:group:a: 2 only in eu, such as 3-2; 1 only in us, such as 4-2"
    ]
    assert list(unlike("eu", history("3-1"), "us", {})) == ["hf:{h3}:c:group:a: 1 only in eu, such as 3-1"]


def test_other_content_or_another_order_is_a_difference() -> None:
    told = ["hf:{h3}:c:group:a: same ids, different entries or another order"]
    assert list(unlike("eu", history("3-1"), "us", history("3-1", text="y"))) == told
    assert list(unlike("eu", history("3-1", "3-2"), "us", history("3-2", "3-1"))) == told


def test_what_a_region_had_alone_is_what_is_missing_later() -> None:
    assert lacking(history("3-1", "3-2", "3-3"), history("3-1", "3-2", "4-3")) == [(KEY, b"3-3")]
    assert lacking(history("3-1"), history()) == [(KEY, b"3-1")]
    assert lacking({}, history("3-1")) == []


def test_what_was_trimmed_since_was_not_had_alone() -> None:
    before, after = history("3-1", "3-2", "3-10"), history("3-10", "4-11")
    assert lacking(before, after, retained=2) == []
    assert lacking(before, after, retained=3) == [(KEY, b"3-1"), (KEY, b"3-2")]


def test_a_channel_of_which_nothing_is_left_was_had_alone() -> None:
    assert lacking(history("3-1"), history("4-1")) == [(KEY, b"3-1")]


def test_the_next_endpoint_after_each_failure_and_the_nearest_again_after_success() -> None:
    places = Endpoints(lambda: ("eu", 1), lambda: ("us", 1), lambda: ("ap", 1))
    assert [places()[0] for _ in range(4)] == ["eu", "us", "ap", "eu"]
    places.served()
    assert places()[0] == "eu"


def test_who_is_sent_elsewhere_goes_there_first() -> None:
    places = Endpoints(lambda: ("eu", 1), lambda: ("us", 1), lambda: ("ap", 1))
    assert places()[0] == "eu"
    places.sent_to("tcp://10.0.0.7:7400")
    assert places() == ("10.0.0.7", 7400)
    assert places()[0] == "us"


def test_the_busiest_second_is_of_any_window() -> None:
    assert busiest([]) == 0
    assert busiest([0.0, 1.0, 2.0]) == 1
    assert busiest([0.0, 0.9, 1.0, 1.8, 1.85, 5.0]) == 4


def test_a_percentile_is_a_value_that_so_many_do_not_exceed() -> None:
    values = [float(number) for number in range(1, 201)]
    assert percentile(values, 99) == 198.0
    assert percentile(values, 50) == 100.0
    assert percentile([7.0], 99) == 7.0
