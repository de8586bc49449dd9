"""One router's machine, step by step: what it must do, and must not, in the interleavings that its page speaks of.

Whole clusters of it are in tests/simulation/.
"""

from typing import TypeVar

from router.shards import events as ev
from router.shards.leadership import Leadership
from router.shards.records import (
    CORDONS,
    MOVES,
    NODES,
    PINS,
    PREFIXES,
    REGIONS,
    SHARDS,
    CordonRecord,
    MoveRecord,
    NodeRecord,
    PinRecord,
    RegionRecord,
    ShardRecord,
    decode,
    encode,
    request_of,
)
from router.shards.roles import Settings

E = TypeVar("E")
NODE = encode(NodeRecord(1, "x"))
SETTLE = Settings().settle_s
# Epochs of the routers a, b and c.
A, B, C = 2, 3, 4


class Machine:
    """Router a's machine with a clock and a directory of the test's own making."""

    def __init__(self, shards: int = 2, nodes: str = "a", until: float = 100.0) -> None:
        self.now = 0.0
        self.revision = 10
        self.machine = Leadership("a", Settings(shards=shards))
        items = {NODES + name: (NODE, "  abc".index(name)) for name in nodes}
        for prefix in PREFIXES:
            self.step(ev.Snapshot(prefix, 10, items if prefix == NODES else {}))
        self.step(ev.Registered(A))
        self.step(ev.LeaseHeld(A, until))

    def step(self, event: ev.Event, after: float = 0.0) -> list[ev.Effect]:
        self.now += after
        return self.machine.step(event, self.now)

    def put(self, key: str, value: bytes | None, after: float = 0.0) -> list[ev.Effect]:
        """The watch tells of a change."""
        self.revision += 1
        prefix = key[: key.index("/") + 1]
        return self.step(ev.Changed(prefix, self.revision, ((key, value, self.revision),)), after)

    def lead(self, shard: int, epoch: int = 1) -> None:
        """Its key names it, and the log is open."""
        effects = self.put(f"{SHARDS}{shard}", encode(ShardRecord("a", A, epoch, "taken")))
        assert ev.Open(shard, epoch) in effects
        assert not self.machine.leads(shard, self.now)
        assert self.step(ev.Opened(shard, epoch))[0] == ev.Lead(shard, epoch)
        assert self.machine.leads(shard, self.now)

    def hand_over(self, shard: int = 0) -> ev.Claim:
        """Router b asks for a shard and it is drained: the claim that gives it away."""
        pin = encode(PinRecord("b"))
        self.put(f"{PINS}{shard}", pin)
        epoch = self.machine.held[shard].epoch
        effects = self.put(f"{MOVES}b", encode(MoveRecord(B, shard, epoch)))
        assert ev.Pause(shard) in effects
        assert not self.machine.leads(shard, self.now)
        claim = claims(self.step(ev.Drained(shard, one(effects, ev.Drain).ticket)))[0]
        assert decode(ShardRecord, claim.value or b"") == ShardRecord("b", B, epoch + 1, "handed")
        assert claim.alive == ev.NodeEpoch("b", B)
        return claim


def one(effects: list[ev.Effect], kind: type[E]) -> E:
    found = [effect for effect in effects if isinstance(effect, kind)]
    assert len(found) == 1, effects
    return found[0]


def claims(effects: list[ev.Effect]) -> tuple[ev.Claim, ...]:
    """The claims of a step: all in one batch."""
    found = [effect for effect in effects if isinstance(effect, ev.Claims)]
    assert len(found) <= 1
    return found[0].claims if found else ()


def claimed(effects: list[ev.Effect]) -> set[str]:
    return {claim.key for claim in claims(effects)}


def test_shards_that_nobody_led_are_claimed_in_one_batch_when_the_routers_have_settled() -> None:
    router = Machine(shards=3)
    assert claims(router.step(ev.Tick(), SETTLE - 0.01)) == ()
    effects = router.step(ev.Tick(), 0.02)
    assert claimed(effects) == {"shards/0", "shards/1", "shards/2"}
    assert {claim.expected_revision for claim in claims(effects)} == {0}
    # They are under way: not claimed again.
    assert claims(router.step(ev.Tick(), 5.0)) == ()


def test_nothing_is_claimed_before_everything_was_read() -> None:
    machine = Leadership("a", Settings(shards=1))
    machine.step(ev.Registered(A), 0.0)
    machine.step(ev.LeaseHeld(A, 100.0), 0.0)
    for prefix in PREFIXES:
        assert claims(machine.step(ev.Tick(), 50.0)) == ()
        items = {NODES + "a": (NODE, A)} if prefix == NODES else {}
        machine.step(ev.Snapshot(prefix, 10, items), 50.0)
    assert claimed(machine.step(ev.Tick(), 60.0)) == {"shards/0"}


def test_it_leads_only_when_the_key_names_it_and_the_log_is_open() -> None:
    router = Machine()
    router.lead(0)
    assert ev.Stop(0) in router.put(f"{SHARDS}0", encode(ShardRecord("b", B, 2, "handed")))
    assert not router.machine.leads(0, router.now)


def test_it_leads_up_to_the_margin_before_the_bound_and_goes_on_when_the_lease_is_renewed() -> None:
    router = Machine(until=10.0)
    router.lead(0)
    assert router.machine.leads(0, 9.79)
    assert not router.machine.leads(0, 9.81)
    assert router.step(ev.LeaseHeld(A, 9.0), 11.0) == []
    assert ev.Hold(19.8) in router.step(ev.LeaseHeld(A, 20.0))
    assert router.machine.leads(0, router.now)


def test_a_renewal_of_an_earlier_life_renews_nothing() -> None:
    router = Machine(until=10.0)
    router.step(ev.LeaseLost(A), 1.0)
    router.step(ev.Registered(20))
    assert router.step(ev.LeaseHeld(A, 99.0)) == []
    assert not router.machine.leads(0, router.now)


def test_a_lost_lease_stops_everything_and_the_next_life_campaigns_like_anybody() -> None:
    router = Machine()
    router.lead(0)
    effects = router.step(ev.LeaseLost(A))
    assert effects[:2] == [ev.Hold(0.0), ev.Stop(0)]
    router.put(NODES + "a", None)
    router.revision = 19
    router.step(ev.Registered(20))
    router.step(ev.LeaseHeld(20, 100.0))
    effects = router.put(NODES + "a", NODE)
    wanted = ShardRecord("a", 20, 2, "taken")
    assert [decode(ShardRecord, claim.value or b"") for claim in claims(effects) if claim.key == "shards/0"] == [wanted]


def test_a_shard_is_not_taken_from_an_owner_of_whom_the_nodes_are_not_known_yet() -> None:
    router = Machine(shards=1)
    router.revision = 30
    router.put(f"{SHARDS}0", encode(ShardRecord("b", 25, 1, "claimed")))
    assert claims(router.step(ev.Tick(), 50.0)) == ()
    # Now they are, and it is not among them.
    router.revision = 40
    assert claimed(router.put(NODES + "c", NODE)) | claimed(router.step(ev.Tick(), 5.0)) == {"shards/0"}


def test_a_dead_owners_shards_are_claimed_at_once_by_whom_placement_wants_and_later_by_the_others() -> None:
    router = Machine(shards=8, nodes="abc")
    for shard in range(8):
        router.put(f"{SHARDS}{shard}", encode(ShardRecord("c", C, 1, "claimed")))
    effects = router.put(NODES + "c", None)
    mine = {f"shards/{shard}" for shard, name in enumerate(router.machine.plan()) if name == "a"}
    assert len(mine) == 4
    assert claimed(effects) == mine
    assert one(effects, ev.WakeAt).time == router.now + Settings().patience_s
    assert len(claimed(router.step(ev.Tick(), Settings().patience_s))) == 4


def test_a_claim_that_lost_is_tried_again_only_later() -> None:
    router = Machine(shards=1)
    claim = claims(router.step(ev.Tick(), SETTLE))[0]
    effects = router.step(ev.ClaimAnswered(claim, None))
    assert claims(effects) == ()
    assert one(effects, ev.WakeAt).time == router.now + Settings().retry_s
    assert claimed(router.step(ev.Tick(), Settings().retry_s)) == {"shards/0"}


def test_a_claim_that_lost_to_a_living_router_is_not_tried_again() -> None:
    router = Machine(shards=1, nodes="ab")
    router.put(f"{CORDONS}b", encode(CordonRecord(0)))
    claim = claims(router.step(ev.Tick(), SETTLE))[0]
    router.step(ev.ClaimAnswered(claim, ev.Lost(30, encode(ShardRecord("b", B, 1, "claimed")))))
    assert claims(router.step(ev.Tick(), 0.9)) == ()


def test_a_planned_move_pauses_drains_and_then_writes() -> None:
    router = Machine(nodes="ab")
    router.lead(0)
    claim = router.hand_over()
    assert ev.Stop(0) in router.step(ev.ClaimAnswered(claim, ev.Won(50)))
    # What the watch tells late changes nothing.
    late = encode(ShardRecord("a", A, 1, "taken"))
    assert router.step(ev.Changed(SHARDS, 40, (("shards/0", late, 40),))) == []


def test_a_hand_over_that_certainly_lost_goes_on_under_the_same_epoch() -> None:
    router = Machine(nodes="ab")
    router.lead(0)
    claim = router.hand_over()
    effects = router.step(ev.ClaimAnswered(claim, ev.Lost(claim.expected_revision, b"", alive=False)))
    assert ev.Resume(0, 1) in effects
    assert router.machine.leads(0, router.now)
    # And the same request is not served again and again.
    assert not any(isinstance(effect, ev.Pause) for effect in router.step(ev.Tick(), 1.0))


def test_a_hand_over_of_which_nothing_is_known_is_settled_by_a_claim_under_the_next_epoch() -> None:
    router = Machine(nodes="ab")
    router.lead(0)
    claim = router.hand_over()
    router.step(ev.ClaimAnswered(claim, None))
    assert not router.machine.leads(0, router.now)
    back = claims(router.step(ev.Tick(), Settings().retry_s))[0]
    assert back.expected_revision == claim.expected_revision
    assert decode(ShardRecord, back.value or b"") == ShardRecord("a", A, 2, "kept")
    assert ev.Open(0, 2) in router.step(ev.ClaimAnswered(back, ev.Won(60)))
    assert ev.Lead(0, 2) in router.step(ev.Opened(0, 2))


def test_a_hand_over_of_which_nothing_is_known_may_still_have_won() -> None:
    router = Machine(nodes="ab")
    router.lead(0)
    router.step(ev.ClaimAnswered(router.hand_over(), None))
    back = claims(router.step(ev.Tick(), Settings().retry_s))[0]
    lost = ev.Lost(55, encode(ShardRecord("b", B, 2, "handed")))
    assert ev.Stop(0) in router.step(ev.ClaimAnswered(back, lost))


def test_the_end_of_an_earlier_drain_does_not_count() -> None:
    router = Machine(nodes="ab")
    router.lead(0)
    router.put(f"{PINS}0", encode(PinRecord("b")))
    first = one(router.put(f"{MOVES}b", encode(MoveRecord(B, 0, 1))), ev.Drain)
    assert ev.Resume(0, 1) in router.step(ev.Tick(), Settings().drain_s)
    second = one(router.put(f"{MOVES}b", encode(MoveRecord(B, 0, 1))), ev.Drain)
    assert claims(router.step(ev.Drained(0, first.ticket))) == ()
    assert claimed(router.step(ev.Drained(0, second.ticket))) == {"shards/0"}


def test_a_drain_that_took_too_long_is_tried_again_soon() -> None:
    """The taker asked once, and waits."""
    router = Machine(nodes="ab")
    router.lead(0)
    router.put(f"{PINS}0", encode(PinRecord("b")))
    first = one(router.put(f"{MOVES}b", encode(MoveRecord(B, 0, 1))), ev.Drain)
    effects = router.step(ev.Tick(), Settings().drain_s)
    assert ev.Resume(0, 1) in effects
    assert one(effects, ev.WakeAt).time == router.now + Settings().retry_s
    effects = router.step(ev.Tick(), Settings().retry_s)
    assert ev.Pause(0) in effects
    assert one(effects, ev.Drain).ticket != first.ticket
    assert claimed(router.step(ev.Drained(0, one(effects, ev.Drain).ticket))) == {"shards/0"}


def test_a_leader_gives_one_shard_at_a_time() -> None:
    router = Machine(nodes="abc")
    router.lead(0)
    router.lead(1)
    router.put(f"{PINS}0", encode(PinRecord("b")))
    router.put(f"{PINS}1", encode(PinRecord("c")))
    assert ev.Pause(0) in router.put(f"{MOVES}b", encode(MoveRecord(B, 0, 1)))
    assert ev.Pause(1) not in router.put(f"{MOVES}c", encode(MoveRecord(C, 1, 1)))
    claim = claims(router.step(ev.Drained(0, 1)))[0]
    assert ev.Pause(1) in router.step(ev.ClaimAnswered(claim, ev.Won(70)))


def test_a_taker_that_dies_while_it_is_drained_gets_nothing() -> None:
    router = Machine(nodes="abc")
    router.lead(0)
    router.put(f"{PINS}0", encode(PinRecord("b")))
    router.put(f"{MOVES}b", encode(MoveRecord(B, 0, 1)))
    assert ev.Resume(0, 1) in router.put(NODES + "b", None)


def test_requests_that_placement_does_not_want_or_that_are_out_of_date_are_not_served() -> None:
    router = Machine(nodes="ab")
    router.lead(0, epoch=5)
    router.put(f"{PINS}0", encode(PinRecord("a")))
    for move in (MoveRecord(B, 0, 5), MoveRecord(B, 0, 4), MoveRecord(99, 0, 5)):
        assert not any(isinstance(effect, ev.Pause) for effect in router.put(f"{MOVES}b", encode(move)))


def test_a_taker_prepares_asks_and_opens_what_is_handed_to_it() -> None:
    router = Machine(shards=2, nodes="ab")
    for shard in range(2):
        router.put(f"{SHARDS}{shard}", encode(ShardRecord("b", B, 1, "claimed")))
    prepare = one(router.step(ev.Tick(), SETTLE), ev.Prepare)
    claim = claims(router.step(ev.Prepared(prepare.shard, 1)))[0]
    assert (claim.key, decode(MoveRecord, claim.value or b"")) == ("moves/a", MoveRecord(A, prepare.shard, 1))
    router.step(ev.ClaimAnswered(claim, ev.Won(40)))
    router.revision = 40
    effects = router.put(f"{SHARDS}{prepare.shard}", encode(ShardRecord("a", A, 2, "handed")))
    assert ev.Open(prepare.shard, 2) in effects
    assert ev.Lead(prepare.shard, 2) in router.step(ev.Opened(prepare.shard, 2))


def test_a_taker_that_is_not_served_gives_up_and_tries_again_later() -> None:
    router = Machine(shards=2, nodes="ab")
    for shard in range(2):
        router.put(f"{SHARDS}{shard}", encode(ShardRecord("b", B, 1, "claimed")))
    prepare = one(router.step(ev.Tick(), SETTLE), ev.Prepare)
    effects = router.step(ev.Tick(), Settings().take_s)
    assert ev.Forget(prepare.shard) in effects
    assert not any(isinstance(effect, ev.Prepare) for effect in effects)
    assert one(router.step(ev.Tick(), Settings().retry_s), ev.Prepare) == prepare


def test_a_log_that_is_away_is_asked_again() -> None:
    router = Machine()
    router.put(f"{SHARDS}0", encode(ShardRecord("a", A, 1, "taken")))
    assert one(router.step(ev.Refused(0, 1, None)), ev.WakeAt)
    assert ev.Open(0, 1) in router.step(ev.Tick(), Settings().retry_s)


def test_a_log_that_knows_a_higher_epoch_is_overtaken_by_compare_and_set() -> None:
    router = Machine()
    router.put(f"{SHARDS}0", encode(ShardRecord("a", A, 1, "taken")))
    claim = claims(router.step(ev.Refused(0, 1, 7)))[0]
    assert (claim.expected_revision, decode(ShardRecord, claim.value or b"").epoch) == (router.revision, 8)
    assert ev.Open(0, 8) in router.step(ev.ClaimAnswered(claim, ev.Won(90)))


def test_a_leader_that_the_log_refuses_stops_before_anything_else() -> None:
    router = Machine()
    router.lead(0)
    assert router.step(ev.Refused(0, 1, 2))[0] == ev.Stop(0)
    assert not router.machine.leads(0, router.now)


def test_while_the_directory_is_away_nothing_is_claimed_and_what_is_led_is_led_on() -> None:
    router = Machine(shards=2)
    router.lead(0)
    router.step(ev.DirectoryAway())
    assert claims(router.step(ev.Tick(), SETTLE + 5)) == ()
    assert router.machine.leads(0, router.now)
    assert claimed(router.step(ev.DirectoryBack())) == {"shards/1"}


def test_a_cordoned_router_claims_nothing_and_its_cordon_may_end_with_its_life() -> None:
    router = Machine(shards=1, nodes="ab")
    router.put(NODES + "b", None)
    router.put(f"{CORDONS}a", encode(CordonRecord(A)))
    assert claims(router.step(ev.Tick(), 10.0)) == ()
    router.step(ev.LeaseLost(A))
    router.put(NODES + "a", None)
    router.revision = 19
    router.step(ev.Registered(20))
    router.step(ev.LeaseHeld(20, 100.0))
    assert claimed(router.put(NODES + "a", NODE)) == {"shards/0"}


def test_operators_are_told_what_became_of_it() -> None:
    router = Machine(nodes="ab")
    claim = claims(router.step(ev.Move(1, "b", 7)))[0]
    assert (claim.key, decode(PinRecord, claim.value or b"")) == ("pins/1", PinRecord("b"))
    assert "under way" in one(router.step(ev.Move(1, "b", 8)), ev.Told).problem
    assert one(router.step(ev.ClaimAnswered(claim, ev.Won(30))), ev.Told) == ev.Told(7, "")
    claim = claims(router.step(ev.Move(1, None, 9)))[0]
    assert claim.value is None
    assert "somebody else" in one(router.step(ev.ClaimAnswered(claim, ev.Lost(31, None))), ev.Told).problem
    claim = claims(router.step(ev.Cordon("b", True, 10)))[0]
    assert "nothing is known" in one(router.step(ev.ClaimAnswered(claim, None)), ev.Told).problem


def test_operators_are_told_what_is_wrong() -> None:
    router = Machine(nodes="ab")
    assert one(router.step(ev.Move(5, "b", 1)), ev.Told).problem == "there is no shard 5: they are 0 to 1"
    assert one(router.step(ev.Move(0, "z", 2)), ev.Told).problem == "'z' is no router that takes shards: these are a, b"
    assert one(router.step(ev.Cordon("z", True, 3, leaving=True)), ev.Told).problem == "'z' is not there"
    assert one(router.step(ev.Move(0, None, 4)), ev.Told) == ev.Told(4, "")
    router.step(ev.DirectoryAway())
    assert "does not answer" in one(router.step(ev.Move(0, "b", 5)), ev.Told).problem


def test_a_key_that_cannot_be_read_is_left_alone_and_told_of() -> None:
    router = Machine(shards=1)
    assert "shards/0" in one(router.put(f"{SHARDS}0", b"?"), ev.Complain).text
    assert claims(router.step(ev.Tick(), 50.0)) == ()


def test_a_followed_shard_is_let_go_before_it_is_opened_and_followed_again_behind_its_stop() -> None:
    machine = Machine()
    machine.machine = Leadership("a", Settings(shards=2, region="eu", regions=frozenset({"us"})))
    nodes = {name: (encode(NodeRecord(1, "", region)), at) for name, region, at in (("a", "eu", A), ("b", "us", B))}
    led = {f"{SHARDS}{shard}": (encode(ShardRecord("b", B, 1, "taken")), 5) for shard in range(2)}
    for prefix in PREFIXES:
        items = {NODES + name: item for name, item in nodes.items()} if prefix == NODES else {}
        machine.step(ev.Snapshot(prefix, 10, led if prefix == SHARDS else items))
    effects = machine.step(ev.Registered(A))
    assert one(effects, ev.Follow) == ev.Follow(frozenset({0, 1}), {0: ("us", 1), 1: ("us", 1)})
    assert machine.machine.regions() == {"us"}
    effects = machine.put(f"{SHARDS}0", encode(ShardRecord("a", A, 2, "handed")))
    follow = one(effects, ev.Follow)
    assert follow.shards == {1}
    assert effects.index(follow) < effects.index(ev.Open(0, 2))
    effects = machine.put(f"{SHARDS}0", encode(ShardRecord("b", B, 3, "handed")))
    assert ev.Stop(0) in effects
    assert one(effects, ev.Follow).leaders == {0: ("us", 3), 1: ("us", 1)}
    machine.put(NODES + "b", None)
    assert machine.machine.regions() == frozenset()


def test_where_a_shard_was_led_last_is_known_until_it_is_led_here() -> None:
    router = Regional(2)
    assert router.machine.before(0) is None
    router.put(f"{SHARDS}0", encode(ShardRecord("b", B, 4, "taken")))
    assert router.machine.before(0) == ("us", 4)
    router.put(f"{SHARDS}0", encode(ShardRecord("a", A, 5, "handed")))
    router.step(ev.Refused(0, 5, None))
    assert router.machine.before(0) == ("us", 4), "its log was not open so far"
    router.step(ev.Opened(0, 5))
    assert router.machine.before(0) == ("eu", 5)
    router.put(f"{SHARDS}0", encode(ShardRecord("d", C + 1, 6, "taken")))
    router.put(NODES + "d", None)
    assert router.machine.before(0) == ("eu", 6)
    assert Machine().machine.before(0) is None, "where there are no regions"


class Regional(Machine):
    """Router a of region eu, beside b and c of us, and d of eu."""

    def __init__(self, shards: int) -> None:
        super().__init__(nodes="")
        self.machine = Leadership("a", Settings(shards=shards, region="eu", regions=frozenset({"us"})))
        regions = {"a": ("eu", A), "b": ("us", B), "c": ("us", C), "d": ("eu", C + 1)}
        nodes = {NODES + name: (encode(NodeRecord(1, "", region)), at) for name, (region, at) in regions.items()}
        for prefix in PREFIXES:
            self.step(ev.Snapshot(prefix, 10, nodes if prefix == NODES else {}))
        self.step(ev.Registered(A))
        self.step(ev.LeaseHeld(A, 100.0))

    def ask(self, taker: str, epoch: int, shard: int, number: int = 0) -> list[ev.Effect]:
        """A router is to have a shard, and asks for it."""
        self.put(f"{PINS}{shard}", encode(PinRecord(taker)))
        return self.put(MOVES + request_of(taker, number), encode(MoveRecord(epoch, shard, 1)))


MOST = Settings().far_moves_max


def test_some_shards_go_to_another_region_at_once_each_by_itself() -> None:
    router = Regional(MOST + 1)
    for shard in range(MOST + 1):
        router.lead(shard)
    tickets: dict[int, int] = {}
    for shard in range(MOST):
        taker, epoch = (("b", B), ("c", C))[shard % 2]
        effects = router.ask(taker, epoch, shard, shard // 2)
        assert ev.Pause(shard) in effects
        tickets[shard] = one(effects, ev.Drain).ticket
    assert not any(isinstance(effect, ev.Pause) for effect in router.ask("b", B, MOST, MOST))
    # The second is drained before the first, which is then not in time: only that goes on.
    claim = claims(router.step(ev.Drained(1, tickets[1])))[0]
    assert decode(ShardRecord, claim.value or b"") == ShardRecord("c", C, 2, "handed")
    others = {shard: claims(router.step(ev.Drained(shard, tickets[shard])))[0] for shard in range(2, MOST)}
    effects = router.step(ev.Tick(), Settings().drain_s)
    assert [effect for effect in effects if isinstance(effect, ev.Resume)] == [ev.Resume(0, 1)]
    assert ev.Pause(MOST) in effects, "there is room for it now"
    assert ev.Pause(0) not in effects, "its taker has to ask again"
    assert ev.Stop(1) in router.step(ev.ClaimAnswered(claim, ev.Won(150)))
    lost = ev.Lost(others[2].expected_revision, b"", alive=False)
    assert ev.Resume(2, 1) in router.step(ev.ClaimAnswered(others[2], lost))
    assert not any(isinstance(effect, ev.Pause) for effect in router.step(ev.Tick(), 0.01))


def test_a_move_within_a_region_goes_alone() -> None:
    router = Regional(3)
    for shard in range(3):
        router.lead(shard)
    first = one(router.ask("d", C + 1, 0), ev.Drain)
    assert not any(isinstance(effect, ev.Pause) for effect in router.ask("b", B, 1))
    claim = claims(router.step(ev.Drained(0, first.ticket)))[0]
    effects = router.step(ev.ClaimAnswered(claim, ev.Won(150)))
    assert ev.Pause(1) in effects
    assert not any(isinstance(effect, ev.Pause) for effect in router.ask("d", C + 1, 2, 1)), "nor beside one to another"


def test_a_taker_asks_for_some_shards_of_another_region_at_once() -> None:
    router = Regional(8 * MOST)
    for shard in range(8 * MOST):
        router.put(f"{SHARDS}{shard}", encode(ShardRecord("b", B, 1, "claimed")))
    prepares = [effect for effect in router.step(ev.Tick(), SETTLE) if isinstance(effect, ev.Prepare)]
    assert len(prepares) == MOST
    asked: dict[str, int] = {}
    for number, prepare in enumerate(prepares):
        claim = claims(router.step(ev.Prepared(*prepare)))[0]
        asked[claim.key] = decode(MoveRecord, claim.value or b"").shard
        router.step(ev.ClaimAnswered(claim, ev.Won(200 + number)))
    assert asked == {MOVES + request_of("a", number): one.shard for number, one in enumerate(prepares)}
    third = prepares[2].shard
    effects = router.put(f"{SHARDS}{third}", encode(ShardRecord("a", A, 2, "handed")))
    assert not any(isinstance(effect, ev.Prepare) for effect in effects), "it is not open yet"
    fourth = one(router.step(ev.Opened(third, 2)), ev.Prepare)
    claim = claims(router.step(ev.Prepared(*fourth)))[0]
    assert (claim.key, claim.expected_revision) == (MOVES + request_of("a", 2), 202), "the request that is free again"
    effects = router.step(ev.ClaimAnswered(claim, None))
    assert one(effects, ev.Forget) == ev.Forget(fourth.shard), "and only that one is given up"


def test_an_evacuated_region_gives_its_shards_away_and_gets_none() -> None:
    machine = Machine(nodes="")
    for name, region in (("a", "eu"), ("b", "us")):
        machine.machine.view.nodes.learn(name, encode(NodeRecord(1, "", region)), 20 + ord(name))
    machine.revision = 200
    machine.put(NODES + "c", encode(NodeRecord(1, "", "us")))
    assert set(machine.machine.plan()) <= {"a", "b", "c"}
    machine.put(REGIONS + "us", encode(RegionRecord("somebody", 1)))
    assert machine.machine.plan() == ["a", "a"]
    machine.put(REGIONS + "us", None)
    machine.put(REGIONS + "eu", encode(RegionRecord("somebody", 1)))
    assert not {"a"} & set(machine.machine.plan())
