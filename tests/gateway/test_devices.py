"""Classes of devices have numbers of a byte, however many there are."""

from gateway.devices import NUMBERS_MAX, OTHER, Devices


def test_a_class_keeps_its_number_and_none_is_0() -> None:
    devices = Devices()
    numbers = [devices.number(name) for name in ("phone", "", "desktop", "phone")]
    assert numbers == [1, 0, 2, 1]
    assert [devices.name(number) for number in (0, 1, 2)] == [None, "phone", "desktop"]


def test_beyond_a_byte_they_share_one() -> None:
    devices = Devices()
    numbers = [devices.number(f"d{number}") for number in range(300)]
    assert max(numbers) == NUMBERS_MAX == 255
    assert devices.name(NUMBERS_MAX) == OTHER
    assert devices.name(numbers[253]) == "d253"
    assert devices.number("d0") == 1
