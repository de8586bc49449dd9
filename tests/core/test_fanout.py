"""Fan-out: memberships named by both sides, added and removed in any order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from core import records
from core._testing import Members
from core.ledger import Stats
from tests.core import wire

CHANNELS = [b"group:%d" % number for number in range(6)]


class MembersMachine(RuleBasedStateMachine):
    """Connections join, leave and go, against a dict of lists; each side must name the other's place."""

    def __init__(self) -> None:
        super().__init__()
        self.stats = Stats()
        self.tables = Members(self.stats)
        self.joined: dict[int, list[bytes]] = {}

    @rule(channel=st.sampled_from(CHANNELS))
    def connect(self, channel: bytes) -> None:
        conn = self.tables.connect(-1)
        assert conn not in self.joined
        assert self.tables.join(conn, channel) == 0
        self.joined[conn] = [channel]

    @precondition(lambda self: self.joined)
    @rule(data=st.data(), channels=st.lists(st.sampled_from(CHANNELS), max_size=6))
    def join(self, data: st.DataObject, channels: list[bytes]) -> None:
        conn = data.draw(st.sampled_from(sorted(self.joined)))
        for channel in channels:
            assert self.tables.join(conn, channel) == 0
            if channel not in self.joined[conn]:
                self.joined[conn].append(channel)

    @precondition(lambda self: self.joined)
    @rule(data=st.data(), channel=st.sampled_from(CHANNELS))
    def leave(self, data: st.DataObject, channel: bytes) -> None:
        conn = data.draw(st.sampled_from(sorted(self.joined)))
        # The first is the user's own channel, which stays as long as the session does.
        assert self.tables.leave(conn, channel) is (channel in self.joined[conn][1:])
        if channel in self.joined[conn][1:]:
            self.joined[conn].remove(channel)

    @precondition(lambda self: self.joined)
    @rule(data=st.data())
    def disconnect(self, data: st.DataObject) -> None:
        conn = data.draw(st.sampled_from(sorted(self.joined)))
        self.tables.disconnect(conn)
        del self.joined[conn]

    @invariant()
    def both_sides_agree(self) -> None:
        for channel in CHANNELS:
            expected = sorted(conn for conn, channels in self.joined.items() if channel in channels)
            found = self.tables.members(channel)
            assert (None if found is None else sorted(found)) == (expected or None)
        for conn, channels in self.joined.items():
            assert sorted(self.tables.channels(conn)) == sorted(channels)
            assert self.tables.channels(conn)[0] == channels[0]
        ledger = self.stats.read()["ledger"]
        assert ledger["membership_opened"] - ledger["membership_closed"] == sum(map(len, self.joined.values()))
        assert ledger["channel_opened"] - ledger["channel_closed"] == len(
            {c for cs in self.joined.values() for c in cs}
        )


MembersMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestMembers = MembersMachine.TestCase


def left(tables: Members) -> list[bytes]:
    """The channels that the router hears the end of in this turn."""
    return [one["name"] for one in wire.unpack(tables.said()) if one["kind"] == records.UNSUBSCRIBE]


def test_the_end_of_a_channel_that_found_no_room_is_said_again_until_it_does() -> None:
    stats = Stats()
    tables = Members(stats)
    conn = tables.connect(-1)
    for name in CHANNELS:
        tables.join(conn, name)
    tables.room(0)
    for name in CHANNELS[1:4]:
        assert tables.leave(conn, name)
    tables.room(8)
    tables.heartbeat()  # not enough for all of it: nothing is said in part
    assert left(tables) == []
    tables.room(1 << 20)
    assert tables.leave(conn, CHANNELS[4])
    tables.heartbeat()
    assert left(tables) == [CHANNELS[4], *CHANNELS[1:4]]
    tables.heartbeat()
    assert left(tables) == []  # and once is enough
    tables.disconnect(conn)
    ledger = stats.read()["ledger"]
    assert ledger["channel_opened"] == ledger["channel_closed"]
