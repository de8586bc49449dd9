"""Owners: which sessions exclude each other, and which fence is later."""

from router.shards.owners import Fence, Owner, Policy, prefix_of, slot_of

PHONE = Owner("s1", "anna", "phone", "n", 5, 0, 1)
TABLET = PHONE._replace(session="s2", device_class="tablet")
OTHER_PHONE = PHONE._replace(session="s3")


def test_by_the_policy_many_only_the_same_session_is_in_the_way() -> None:
    slots = {slot_of(Policy.MANY, owner) for owner in (PHONE, TABLET, OTHER_PHONE)}
    assert len(slots) == 3
    assert slot_of(Policy.MANY, PHONE._replace(worker=3, connection=9, node="m")) in slots


def test_one_per_device_class() -> None:
    assert slot_of(Policy.ONE_PER_DEVICE_CLASS, PHONE) == slot_of(Policy.ONE_PER_DEVICE_CLASS, OTHER_PHONE)
    assert slot_of(Policy.ONE_PER_DEVICE_CLASS, PHONE) != slot_of(Policy.ONE_PER_DEVICE_CLASS, TABLET)


def test_one_in_all() -> None:
    assert len({slot_of(Policy.ONE, owner) for owner in (PHONE, TABLET, OTHER_PHONE)}) == 1
    assert slot_of(Policy.ONE, PHONE) != slot_of(Policy.ONE, PHONE._replace(user="bert"))


def test_names_do_not_run_into_each_other_and_keys_stay_short() -> None:
    one = PHONE._replace(user="ab", device_class="c")
    other = PHONE._replace(user="a", device_class="bc")
    assert slot_of(Policy.ONE_PER_DEVICE_CLASS, one) != slot_of(Policy.ONE_PER_DEVICE_CLASS, other)
    assert len(prefix_of(255) + slot_of(Policy.ONE, PHONE._replace(user="/" * 1000))) < 64
    # Never the same key for two kinds of slots.
    assert slot_of(Policy.ONE, PHONE._replace(user="s1")) != slot_of(Policy.MANY, PHONE)


def test_a_fence_given_without_the_directory_is_between_the_last_claim_and_the_next() -> None:
    assert Fence(7) < Fence(7, 1) < Fence(7, 2) < Fence(8)
