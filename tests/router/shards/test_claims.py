"""Sessions at their shard's leader, step by step. Leaders that follow each other are in tests/simulation/."""

from typing import TypeVar

import pytest

from router.shards import claims as c
from router.shards import events as ev
from router.shards.claims import Admit, Bye, End, Hello, NodeOver, Refuse, Renumber, Stopped
from router.shards.owners import Fence, Owner, Policy, prefix_of, slot_of
from router.shards.records import encode

E = TypeVar("E")
FIRST = Owner("s1", "anna", "phone", "n1", 3, 0, 1)
SECOND = FIRST._replace(node="n2", node_epoch=4, connection=2)
THIRD = FIRST._replace(node="n2", node_epoch=4, connection=3)


class Shard:
    """A shard's sessions, and a directory of the test's own making."""

    def __init__(self, policy: Policy = Policy.MANY, local: bool = False) -> None:
        self.policy = policy
        self.over: set[int] = set()
        self.machine = c.SessionClaims(0, policy, local, self.over.__contains__)
        assert not self.machine.ready()
        self.step(ev.Snapshot("sessions/", 10, {}))
        assert self.machine.ready()
        self.revision = 10

    def step(self, event: c.SessionEvent) -> list[c.SessionEffect]:
        return self.machine.step(event)

    def key(self, owner: Owner) -> str:
        return prefix_of(0) + slot_of(self.policy, owner)

    def ask(self, owner: Owner) -> ev.Claim:
        """A HELLO: its claim."""
        found = claims(self.step(Hello(owner.connection, owner)))
        assert len(found) == 1
        return found[0]

    def win(self, claim: ev.Claim) -> list[c.SessionEffect]:
        self.revision += 1
        return self.step(ev.ClaimAnswered(claim, ev.Won(self.revision)))

    def enter(self, owner: Owner) -> list[c.SessionEffect]:
        effects = self.win(self.ask(owner))
        assert Admit(owner.connection, owner, Fence(self.revision)) in effects
        return effects

    def told(self, owner: Owner, value: bytes | None) -> list[c.SessionEffect]:
        """The watch tells of a change."""
        self.revision += 1
        return self.step(ev.Changed("sessions/", self.revision, ((self.key(owner), value, self.revision),)))


def claims(effects: list[c.SessionEffect]) -> tuple[ev.Claim, ...]:
    found = [effect for effect in effects if isinstance(effect, ev.Claims)]
    assert len(found) <= 1
    return found[0].claims if found else ()


def one(effects: list[c.SessionEffect], kind: type[E]) -> E:
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, effects
    return found[0]


def test_nobody_is_let_in_before_the_claim_won() -> None:
    shard = Shard()
    claim = shard.ask(FIRST)
    assert (claim.key, claim.expected_revision, claim.alive) == (shard.key(FIRST), 0, ev.NodeEpoch("n1", 3))
    assert shard.machine.route("s1") is None
    shard.win(claim)
    assert shard.machine.route("s1") == (FIRST, Fence(11))


def test_who_resumes_elsewhere_ends_the_former_connection_in_the_same_step() -> None:
    shard = Shard()
    shard.enter(FIRST)
    claim = shard.ask(SECOND)
    assert claim.expected_revision == 11
    # Until then messages go where they went.
    assert shard.machine.route("s1") == (FIRST, Fence(11))
    assert one(shard.win(claim), End) == End(FIRST, SECOND, same_session=True)
    assert shard.machine.route("s1") == (SECOND, Fence(12))


@pytest.mark.parametrize(("policy", "ended"), [(Policy.MANY, 0), (Policy.ONE_PER_DEVICE_CLASS, 1), (Policy.ONE, 2)])
def test_the_login_policy_says_who_is_in_the_way(policy: Policy, ended: int) -> None:
    shard = Shard(policy)
    tablet = FIRST._replace(session="s2", device_class="tablet", connection=7)
    other_phone = FIRST._replace(session="s3", connection=8)
    effects = shard.enter(FIRST) + shard.enter(tablet) + shard.enter(other_phone)
    ends = [effect for effect in effects if isinstance(effect, End)]
    assert len(ends) == ended
    assert not any(end.same_session for end in ends)
    assert shard.machine.route("s3") == (other_phone, Fence(13))


def test_of_two_that_compare_the_same_revision_one_loses_and_is_told_to_whom() -> None:
    shard = Shard()
    claim = shard.ask(FIRST)
    effects = shard.step(ev.ClaimAnswered(claim, ev.Lost(11, encode(SECOND))))
    assert one(effects, Refuse) == Refuse(1, FIRST, SECOND)
    assert shard.machine.route("s1") == (SECOND, Fence(11))


def test_whoever_comes_while_a_claim_is_under_way_waits_and_the_latest_goes_next() -> None:
    shard = Shard()
    claim = shard.ask(FIRST)
    assert shard.step(Hello(2, SECOND)) == []
    assert shard.step(Hello(3, THIRD)) == [Refuse(2, SECOND, THIRD)]
    effects = shard.win(claim)
    assert one(effects, Admit).owner == FIRST
    assert claims(effects)[0].value == encode(THIRD)
    assert one(shard.win(claims(effects)[0]), End) == End(FIRST, THIRD, same_session=True)


def test_the_same_hello_again_is_answered_from_the_table() -> None:
    shard = Shard()
    shard.enter(FIRST)
    assert shard.step(Hello(9, FIRST)) == [Admit(9, FIRST, Fence(11))]


def test_a_claim_that_lost_against_an_end_that_was_not_known_is_tried_again_a_few_times() -> None:
    shard = Shard()
    shard.enter(FIRST)
    claim = shard.ask(SECOND)
    again = claims(shard.step(ev.ClaimAnswered(claim, ev.Lost(0, None))))[0]
    assert again.expected_revision == 0
    assert one(shard.win(again), Admit).owner == SECOND
    claim = shard.ask(THIRD)
    for _ in range(c.ATTEMPTS_MAX - 1):
        claim = claims(shard.step(ev.ClaimAnswered(claim, ev.Lost(0, None))))[0]
    assert one(shard.step(ev.ClaimAnswered(claim, ev.Lost(0, None))), Refuse) == Refuse(3, THIRD, None)


def test_a_claim_of_which_nothing_is_known_lets_nobody_in_and_goes_if_it_won() -> None:
    shard = Shard()
    claim = shard.ask(FIRST)
    assert shard.step(ev.ClaimAnswered(claim, None)) == [Refuse(1, FIRST, None)]
    removal = claims(shard.told(FIRST, encode(FIRST)))[0]
    assert (removal.expected_revision, removal.value) == (11, None)
    assert shard.machine.route("s1") is None
    shard.win(removal)
    assert shard.machine._slots == {}


def test_it_goes_also_where_somebody_has_the_session_who_is_written_down_anew() -> None:
    shard = Shard()
    shard.enter(FIRST)
    assert shard.step(ev.ClaimAnswered(shard.ask(SECOND), None)) == [Refuse(2, SECOND, None)]
    effects = shard.told(SECOND, encode(SECOND))
    assert not any(isinstance(effect, End) for effect in effects)
    (written,) = claims(effects)
    assert (written.expected_revision, written.value) == (12, encode(FIRST))
    assert shard.win(written) == [Renumber(FIRST, Fence(13))]


def test_whoever_asks_again_after_a_claim_of_which_nothing_is_known_is_there() -> None:
    shard = Shard()
    shard.step(ev.ClaimAnswered(shard.ask(FIRST), None))
    again = shard.ask(FIRST)
    shard.told(FIRST, encode(FIRST))
    assert shard.machine.route("s1") == (FIRST, Fence(11))
    effects = shard.step(ev.ClaimAnswered(again, ev.Lost(11, encode(FIRST))))
    assert effects == [Admit(1, FIRST, Fence(11))]


def test_who_ends_frees_the_key_and_only_his_own() -> None:
    shard = Shard()
    shard.enter(FIRST)
    assert shard.step(Bye(SECOND)) == []
    assert claims(shard.step(Bye(FIRST)))[0].value is None
    assert shard.machine.route("s1") is None


def test_who_ends_while_his_claim_is_under_way_is_not_left_behind() -> None:
    shard = Shard()
    claim = shard.ask(FIRST)
    shard.step(Bye(FIRST))
    assert claims(shard.win(claim))[0].value is None
    assert shard.machine.route("s1") is None


def test_an_end_while_the_directory_is_away_is_written_down_later() -> None:
    shard = Shard()
    shard.enter(FIRST)
    shard.step(ev.DirectoryAway())
    assert shard.step(Bye(FIRST)) == []
    assert claims(shard.step(ev.DirectoryBack()))[0].value is None


def test_what_a_dead_node_owned_is_routed_to_no_more_and_claimed_without_ending_anybody() -> None:
    shard = Shard()
    shard.enter(FIRST)
    shard.over.add(3)
    assert shard.step(NodeOver(3)) == []
    assert shard.machine.route("s1") is None
    assert not any(isinstance(effect, End) for effect in shard.enter(SECOND))


def test_a_claim_that_won_unnoticed_ends_the_former_connection_though_its_own_node_is_over_by_then() -> None:
    shard = Shard()
    shard.enter(FIRST)
    assert one(shard.step(ev.ClaimAnswered(shard.ask(SECOND), None)), Refuse) == Refuse(2, SECOND, None)
    shard.over.add(4)
    shard.step(NodeOver(4))
    assert one(shard.told(SECOND, encode(SECOND)), End) == End(FIRST, SECOND, same_session=True)
    assert shard.machine.route("s1") is None


def test_a_new_leader_finds_the_owners_and_those_of_dead_nodes_do_not_count() -> None:
    shard = Shard()
    shard.over.add(3)
    other = FIRST._replace(session="s2", node="n2", node_epoch=4)
    items = {shard.key(owner): (encode(owner), at) for owner, at in ((FIRST, 20), (other, 21))}
    shard.step(ev.Snapshot("sessions/", 30, items))
    assert shard.machine.route("s1") is None
    assert shard.machine.route("s2") == (other, Fence(21))


def test_without_the_directory_the_mode_refuse_lets_nobody_in() -> None:
    shard = Shard(local=False)
    shard.enter(FIRST)
    shard.step(ev.DirectoryAway())
    assert shard.step(Hello(2, SECOND)) == [Refuse(2, SECOND, None)]
    assert shard.machine.route("s1") == (FIRST, Fence(11))


def test_without_the_directory_the_mode_local_lets_in_and_writes_it_down_later() -> None:
    shard = Shard(local=True)
    shard.enter(FIRST)
    shard.step(ev.DirectoryAway())
    effects = shard.step(Hello(2, SECOND))
    assert effects == [End(FIRST, SECOND, True), Admit(2, SECOND, Fence(11, 1))]
    claim = claims(shard.step(ev.DirectoryBack()))[0]
    assert (claim.expected_revision, claim.value) == (11, encode(SECOND))
    assert shard.win(claim) == [Renumber(SECOND, Fence(12))]


def test_of_two_owners_the_one_with_the_higher_fence_stays() -> None:
    shard = Shard(local=True)
    shard.step(ev.DirectoryAway())
    shard.step(Hello(1, FIRST))
    claim = claims(shard.step(ev.DirectoryBack()))[0]
    assert one(shard.step(ev.ClaimAnswered(claim, ev.Lost(20, encode(SECOND)))), End) == End(FIRST, SECOND, True)
    assert shard.machine.route("s1") == (SECOND, Fence(20))


def test_a_connection_that_an_earlier_leader_let_in_is_held_against_the_table() -> None:
    shard = Shard()
    shard.enter(SECOND)
    assert shard.step(Hello(1, FIRST, Fence(5))) == [Refuse(1, FIRST, SECOND), End(FIRST, SECOND, True)]
    # Let in without the directory after that claim: it is the later one.
    assert claims(shard.step(Hello(3, THIRD, Fence(11, 1))))[0].expected_revision == 11


def test_a_leader_that_stops_sends_those_who_wait_to_the_next() -> None:
    shard = Shard()
    claim = shard.ask(FIRST)
    shard.step(Hello(2, SECOND))
    assert shard.step(Stopped()) == [Refuse(1, FIRST, None), Refuse(2, SECOND, None)]
    shard.win(claim)
    assert one(shard.step(Hello(3, THIRD)), ev.Claims)


def test_what_cannot_be_read_is_nobodys_to_take() -> None:
    shard = Shard()
    assert any(isinstance(effect, ev.Complain) for effect in shard.told(FIRST, b"?"))
    assert shard.step(Hello(1, FIRST)) == [Refuse(1, FIRST, None)]


def test_an_empty_slot_is_not_kept() -> None:
    shard = Shard()
    for number in range(50):
        owner = FIRST._replace(session=f"x{number}", connection=number)
        shard.enter(owner)
        shard.win(claims(shard.step(Bye(owner)))[0])
        shard.told(owner, None)
    assert shard.machine._slots == {}
    assert shard.machine._by_session == {}
    assert shard.machine.table._seen == {}


def test_who_waits_for_a_silent_directory_is_refused_and_what_he_claimed_goes_if_it_wins() -> None:
    shard = Shard()
    claim = shard.ask(FIRST)
    shard.step(Hello(2, SECOND))
    assert shard.step(c.DirectorySilent()) == [Refuse(1, FIRST, None), Refuse(2, SECOND, None)]
    assert shard.step(Hello(3, THIRD)) == [Refuse(3, THIRD, None)]
    assert shard.win(claim) == []
    assert shard.machine.route("s1") is None
    removal = claims(shard.step(ev.DirectoryBack()))[0]
    assert (removal.expected_revision, removal.value) == (11, None)
    assert shard.step(Hello(3, THIRD)) == []
    claim = claims(shard.win(removal))[0]
    assert claim.value == encode(THIRD)
    assert one(shard.win(claim), Admit).owner == THIRD


def test_whoever_has_a_session_keeps_it_if_who_claimed_it_has_been_refused_meanwhile() -> None:
    shard = Shard()
    shard.enter(FIRST)
    claim = shard.ask(SECOND)
    shard.step(c.DirectorySilent())
    shard.step(ev.DirectoryBack())
    effects = shard.win(claim)
    assert not any(isinstance(effect, End) for effect in effects)
    written = claims(effects)[0]
    assert (written.expected_revision, written.value) == (12, encode(FIRST))
    assert shard.win(written) == [Renumber(FIRST, Fence(13))]
    assert shard.machine.route("s1") == (FIRST, Fence(13))


def test_or_is_let_in_and_has_his_number_by_it() -> None:
    shard = Shard(local=True)
    claim = shard.ask(FIRST)
    assert shard.step(c.DirectorySilent()) == [Admit(1, FIRST, Fence(10, 1))]
    assert shard.win(claim) == [Renumber(FIRST, Fence(11))]
    assert claims(shard.step(ev.DirectoryBack())) == ()


def test_of_two_that_are_let_in_the_later_one_stays_whatever_becomes_of_the_others_claim() -> None:
    shard = Shard(local=True)
    claim = shard.ask(FIRST)
    shard.step(c.DirectorySilent())
    assert shard.step(Hello(2, SECOND)) == [End(FIRST, SECOND, True), Admit(2, SECOND, Fence(10, 2))]
    assert shard.win(claim) == []
    written = claims(shard.step(ev.DirectoryBack()))[0]
    assert (written.expected_revision, written.value) == (11, encode(SECOND))
    assert shard.win(written) == [Renumber(SECOND, Fence(12))]


def test_a_claim_that_came_about_when_nobody_waited_for_it_is_in_nobodys_way() -> None:
    shard = Shard()
    assert shard.step(ev.ClaimAnswered(shard.ask(FIRST), None)) == [Refuse(1, FIRST, None)]
    effects = shard.step(ev.ClaimAnswered(shard.ask(SECOND), ev.Lost(11, encode(FIRST))))
    again = claims(effects)[0]
    assert not any(isinstance(effect, Refuse) for effect in effects)
    assert (again.expected_revision, again.value) == (11, encode(SECOND))
    shard.revision = 11
    assert one(shard.win(again), Admit).owner == SECOND


def test_only_so_many_of_such_claims_are_remembered() -> None:
    shard = Shard()
    for number in range(c.DOUBTFUL_MAX + 10):
        owner = FIRST._replace(session=f"x{number}", connection=number)
        shard.step(ev.ClaimAnswered(shard.ask(owner), None))
    assert len(shard.machine._doubtful) == c.DOUBTFUL_MAX
