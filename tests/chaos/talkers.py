"""Talkers: sessions written from the protocol page alone, as simple and as fast as Python allows, that tell the oracle
all that they say and hear.

TCP and MessagePack. A talker resumes with its positions, acknowledges, publishes again under its keys what was not
answered, and comes back at once. On demand it does what clients do in bad networks: it breaks its connection without a
word, comes back before the old connection is noticed, or resumes its session on two connections at once.
"""

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import Callable
from typing import Any

import jwt

from tests.chaos.endpoints import Place, sent_to, served
from tests.chaos.habits import Counts, Habits, Say
from tests.chaos.link import (
    ACK,
    AGAIN_S,
    BAD_TOKEN,
    ERROR,
    EVENT,
    FIN,
    FIN_ACK,
    HELLO,
    HISTORY,
    JOIN,
    LEAVE,
    MESSAGE,
    NOT_JOINED,
    PING,
    PONG,
    PUBLISH,
    RATE_LIMITED,
    REPLY,
    RESUMED_ELSEWHERE,
    SESSION_EXPIRED,
    WELCOME,
    Link,
    abort,
    retry_s,
    settles,
    within,
)
from tests.chaos.oracle import Oracle, Position, Reader

DIAL_S, WELCOME_S, ANSWER_S, SETTLE_S, LEAVE_S = 5.0, 15.0, 30.0, 30.0, 5.0
TOKEN_S = 86_400
PAGE = 100


class Talker:
    """One session of one user, and what it tells the oracle."""

    def __init__(self, oracle: Oracle, place: Place, name: str, seed: str, habits: Habits, secret: str = "") -> None:
        self.name, self.habits = name, habits
        self.counts = Counts()
        self.own = f"user:{name}"
        self.mates: list[str] = []
        """Channels of users to whom it whispers."""
        self.readers: dict[str, Reader] = {self.own: oracle.book(self.own).reader(name)}
        self.news = asyncio.Event()
        self.stopping = False
        self._oracle, self._place = oracle, place
        self._rng, self._session, self._token = random.Random(seed), "", ""
        claims = {"sub": name, "exp": int(time.time()) + TOKEN_S}
        self._fresh_token = jwt.encode(claims, secret, algorithm="HS256") if secret else ""
        self._link: Link | None = None
        self._last_link: Link | None = None  # where requests went last, open or not
        self._links: list[Link] = []
        self.evicted: list[Link] = []
        self._wanted: set[str] = set()
        self._leaving: set[str] = set()
        self._changed_s: dict[str, float] = {}
        self._begun_s = 0.0
        self._fresh: set[str] = set()
        """Channels that were joined or left just before a connection ended."""
        self._unsure: set[str] = set()
        """Channels of which a LEAVE was not answered: it may count."""
        self._left_s: dict[str, float] = {}
        """Since when channels are left, by the gateway's answer."""
        self._again: set[str] = set()
        """Channels that are left again, since WELCOME listed them: nothing of them is heard."""
        self._lacking: set[str] = set()
        """Channels that are to be joined again, from where it was."""
        self._sure: dict[str, int] = {}
        self._says: dict[str, Say] = {}
        self._requests: dict[int, Callable[[Link, list[Any]], None]] = {}
        self._last_request = self._said = self._unacknowledged = 0
        self._task: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self._later: set[asyncio.TimerHandle] = set()

    # ---- what a test asks of it

    def start(self) -> None:
        self._task = asyncio.create_task(self._live())

    def want(self, channel: str) -> None:
        """Join as soon as possible, and be a member over all returns."""
        self._wanted.add(channel)
        self._leaving.discard(channel)
        self._reader(channel)
        if self._link is not None:
            self._join(self._link, channel)

    def leave(self, channel: str) -> None:
        """Only with nothing under way there: it could not be published again."""
        under_way = any(say.channel == channel for say in self._says.values())
        if channel not in self._wanted or channel in self._lacking or under_way:
            return
        self._wanted.discard(channel)
        self._leaving.add(channel)
        if self._link is not None:
            self._leave(self._link, channel)

    def say(self, channel: str, *, keyed: bool = True) -> str:
        """Publish one more message; its content."""
        self._said += 1
        content = f"{self.name}-{self._said}"
        self._oracle.book(channel).publish(content, self.name)
        self._says[content] = say = Say(content, channel, keyed)
        self._send(say)
        return content

    def snap(self) -> None:
        """The connection breaks, without a word to either side's program."""
        abort(self._links)

    async def hurry(self, connections: int = 1) -> None:
        """Come back while the old connection is still there; with two, on both at once."""
        if not self._token:
            return
        links = [link for link in await asyncio.gather(*(self._dial() for _ in range(connections))) if link]
        for link in links:
            self._hello(link)
        await asyncio.gather(*(within(link.answered, WELCOME_S) for link in links))
        self.counts.at_once += sum(link.welcome is not None or link in self.evicted for link in links) > 1

    async def act(self) -> None:
        """One thing, by chance and habit."""
        habits, dice = self.habits, self._rng.randrange(100)
        channel = self._rng.choice(sorted(self.readers.keys() - {self.own}))
        if dice < habits.leaves:
            if channel in self._wanted:
                self.leave(channel)
            else:
                self.want(channel)
        elif dice < habits.leaves + habits.breaks:
            self.snap()
        elif dice < habits.leaves + habits.breaks + habits.hurries:
            await self.hurry()
        elif dice < habits.leaves + habits.breaks + habits.hurries + habits.doubles:
            await self.hurry(2)
        elif self.mates and self._rng.randrange(100) < habits.whispers:
            self.say(self._rng.choice(self.mates))
        elif channel in self._wanted and self.readers[channel].is_member:
            self.say(channel, keyed=self._rng.randrange(100) >= habits.unkeyed)
        await asyncio.sleep(self._rng.expovariate(1 / habits.pause_s))

    @property
    def is_settled(self) -> bool:
        """All answered, all heard, and a member of what it wants."""
        if self._says or self._link is None or len(self._links) != 1:
            return False
        if self._leaving or not all(self._is_in(channel) for channel in self._wanted):
            return False
        return not any(reader.misses() for reader in self.readers.values())

    def complaint(self) -> str:
        """Why it is not settled."""
        missing = {channel: reader.misses() for channel, reader in self.readers.items() if reader.misses()}
        absent = sorted(channel for channel in self._wanted if not self._is_in(channel))
        return (
            f"{self.name}: {len(self._links)} connections, open: {self._link is not None}, unanswered"
            f" {sorted(self._says)[:5]}, misses {missing}, no member of {absent}, leaves {sorted(self._leaving)}"
        )

    async def read(self, channel: str) -> None:
        """The whole HISTORY of a channel, page by page."""
        found: list[tuple[Position, str]] = []
        since: list[int] | None = None
        while True:
            page = await self._page(channel, since)
            found += page
            if not page:
                break
            since = list(page[-1][0])
        self._oracle.book(channel).history(self.name, found, complete=True)

    async def stop(self, *, bye: bool = True) -> None:
        """Say FIN and go; without `bye` it just goes."""
        self.stopping = True
        for handle in self._later:
            handle.cancel()
        link = self._link
        if bye and link is not None:
            link.send(FIN, 0, "bye", {})
            await within(link.ended, LEAVE_S)
        self.snap()
        self._gone.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=DIAL_S + WELCOME_S)

    # ---- its life

    async def _live(self) -> None:
        while not self.stopping:
            link = await self._dial()
            after_s = AGAIN_S
            if link is not None:
                self._hello(link)
                if not await within(link.answered, WELCOME_S):
                    link.abort()
                self._gone.clear()
                while self._links and not self.stopping:
                    await self._gone.wait()
                    self._gone.clear()
                after_s = max(AGAIN_S, self.habits.away_s, (link.fin or (0, 0))[1] / 1000)
            self.counts.returns += 1
            if not self.stopping:
                await asyncio.sleep(self._rng.uniform(0, after_s))

    async def _dial(self) -> Link | None:
        link = Link(self)
        host, port = self._place()
        try:
            async with asyncio.timeout(DIAL_S):
                await asyncio.get_running_loop().create_connection(lambda: link, host, port)
        except OSError:
            return None
        self._links.append(link)
        return link

    def _hello(self, link: Link) -> None:
        values: dict[str, Any] = {"v": 1} | ({"token": self._fresh_token} if self._fresh_token else {"user": self.name})
        if self._token:
            link.resuming = True
            self._fresh |= {channel for channel in self.readers if self._is_fresh(channel)}
            leaves_out = 100 if self._forgets(link) else self.habits.leaves_out
            held = {channel: reader.held for channel, reader in self.readers.items() if reader.is_member}
            stays = {channel: self._rng.randrange(100) >= leaves_out for channel in held}
            named = {channel: at for channel, at in held.items() if at is not None and stays[channel]}
            link.sure = dict(self._sure) if self.habits.acks_last else {}
            link.asked = {channel: -1 for channel in held} | {channel: at.offset for channel, at in named.items()}
            link.stands = dict(named)
            positions = {channel: list(position) for channel, position in named.items()}
            values = {"v": 1, "session": self._session, "token": self._token, "resume": positions}
        elif (own := self.readers[self.own].held) is not None:
            link.asked = {self.own: own.offset}
            values["resume"] = {self.own: list(own)}
        link.hello_s, link.hello_tick = time.monotonic(), self._oracle.tick
        self._ask(link, self._on_not_welcome, HELLO, values)

    def _is_fresh(self, channel: str) -> bool:
        changed_s = time.monotonic() - self._changed_s.get(channel, 0.0)
        return changed_s < self.habits.sure_s or channel in self._unsure

    def _may_lack(self, link: Link, channel: str) -> bool:
        """It left out what it had just joined, or what was changed over another connection since it said HELLO here."""
        return (channel in self._fresh or self._is_fresh(channel)) and link.asked.get(channel, -1) == -1

    def _forgets(self, link: Link) -> bool:
        """Its program died with its connection, if that was its only one, and knows what it acknowledged."""
        if self._rng.randrange(100) >= self.habits.forgets or self._links != [link] or self._fresh or self._lacking:
            return False
        if any(reader.is_member and reader.acked is None for reader in self.readers.values()):
            return False
        for reader in [one for one in self.readers.values() if one.is_member]:
            reader.begins_anew()
        self.counts.forgets += 1
        return True

    def _on_not_welcome(self, link: Link, frame: list[Any]) -> None:  # for now, or for ever: then it comes to no rest
        self._refused(frame[2])
        self._oracle.log("", self.name, f"is not welcome: {frame[2]} {frame[3]}", 0, "")
        link.abort()

    def lost(self, link: Link) -> None:
        """The connection is gone."""
        self._links = [other for other in self._links if other is not link]
        self._fresh |= {channel for channel in self.readers if self._is_fresh(channel)}
        if self._link is link:
            self._link = None
            others = [other for other in self._links if other.is_open]
            if others and others[-1].welcome_tick > link.welcome_tick:
                self._open_on(others[-1])
            else:
                abort(others)  # it had moved from these
        if not self._links:
            self._gone.set()
        self.news.set()

    # ---- what it hears

    def hear(self, link: Link, frame: list[Any]) -> None:
        kind = frame[0]
        if kind == MESSAGE:
            self._on_message(link, frame)
        elif kind in (REPLY, ERROR):
            answer = self._requests.pop(frame[1], None)
            if answer is not None:
                answer(link, frame)
            self.news.set()
        elif kind == PING:
            link.send(PONG, frame[1], frame[2])
        elif kind == WELCOME:
            self._on_welcome(link, frame[2])
        elif kind == EVENT and frame[1] not in self._again:
            if frame[2] == "gap" and (frame[1] in self.readers or not frame[1].startswith("global:")):
                details = frame[3]
                reader, first, last = self._reader(frame[1]), details.get("from"), details.get("to")
                if details.get("reason") == "recreated":
                    reader.recreated(first, last, Position(details["epoch"], details["offset"]))
                else:
                    reader.gap(first, last, details.get("reason"))
                self.news.set()
        elif kind == FIN:
            self._on_fin(link, frame)
        elif kind == FIN_ACK:
            link.close()

    def _on_message(self, link: Link, frame: list[Any]) -> None:
        _, channel, offset, content, options = frame
        if (channel.startswith("global:") and channel not in self.readers) or channel in self._again:
            return  # another cohort's, which everybody hears, or of what is left again
        publish = self._oracle.contents.get(content)
        if publish is not None:
            came: tuple[int, str, int, int] = (publish.tick, channel, offset, self._oracle.tick)
            link.latest = max(link.latest, came)
        if link is not self._last_link and not self._reader(channel).is_member:
            return  # it left over a later connection, of which this one's worker need not know yet: see `zombie`
        position = Position(options["epoch"], offset)
        if position <= link.stands.get(channel, Position(0, 0)):
            self._reader(channel).repeated(offset, f"and this connection stood at {link.stands[channel]}")
        elif link.asked.get(channel) == -1 and offset <= link.sure.get(channel, 0):
            self._reader(channel).repeated(offset, f"and was acknowledged up to {link.sure[channel]}")
        link.stands[channel] = position
        if self._reader(channel).received(position, content):
            self.news.set()
        self._unacknowledged += 1
        if self._unacknowledged >= self.habits.acks_every:
            self._unacknowledged = 0
            self._acknowledge(link)

    def _acknowledge(self, link: Link) -> None:
        said = {}
        for channel, reader in self.readers.items():
            offset = reader.acknowledges() if channel not in self._lacking else None
            if offset is not None:
                said[channel] = offset
        # The gateway takes no more than came over this connection.
        came = {channel for channel, at in link.stands.items() if said.get(channel) == at.offset}
        link.acked = (self._last_request, {channel: said[channel] for channel in came})
        link.send(ACK, said)

    def _on_fin(self, link: Link, frame: list[Any]) -> None:
        options = frame[3] if len(frame) > 3 else {}
        link.fin = (frame[1], options.get("after", 0))
        sent_to(self._place, options.get("target"))
        self._oracle.log("", self.name, f"is told FIN {frame[1]}", 0, "")
        if frame[1] == RESUMED_ELSEWHERE:
            self.evicted.append(link)
            self._look_for_zombies()
        elif link.welcome is None and frame[1] in (SESSION_EXPIRED, BAD_TOKEN):
            self.counts.expired += 1
            is_young = time.monotonic() - self._begun_s < self.habits.sure_s
            for reader in self.readers.values():
                if reader.is_member and not is_young:
                    reader.forgotten()
            self._session = self._token = ""
            self._sure = {}
        link.send(FIN_ACK)
        link.close()

    def _look_for_zombies(self) -> None:
        """Who was evicted heard nothing that was not even published when the newer connection was welcome. Newer is
        only what said HELLO after the older one's WELCOME: of two at once nobody here knows who came first. Nor does a
        router that was started since, until all workers have linked.
        """
        for old in self.evicted:
            tick, channel, offset, heard_tick = old.latest
            is_known = heard_tick > self._oracle.linked_tick
            for new in [one for one in self._links if is_known or one.welcome_tick > self._oracle.router_killed_tick]:
                if new.is_open and new.hello_tick > old.welcome_tick > 0 and tick > new.welcome_tick:
                    self._reader(channel).zombie(
                        offset, "came over the older connection, published after the newer's WELCOME"
                    )

    def _on_welcome(self, link: Link, values: dict[str, Any]) -> None:
        self._session, self._token = values["session"], values["resume_token"]
        listed = values["channels"]
        served(self._place)
        link.welcome_tick = self._oracle.tick
        link.welcome = {channel: Position(*entry[:2]) for channel, entry in listed.items()}
        begins = not values["resumed"]
        self._begun_s = time.monotonic() if begins else self._begun_s
        if link.resuming and begins:
            self._oracle.log("", self.name, "is welcome, but not resumed", 0, "")
        for channel, (epoch, offset, outcome) in listed.items():
            if channel in self.readers:
                self.counts.outcomes[outcome] = self.counts.outcomes.get(outcome, 0) + 1
                if begins and channel.startswith("global:"):  # they begin where they stand
                    self.readers[channel].joined(Position(epoch, offset))
                else:
                    self._stands(channel, Position(epoch, offset), outcome, link)
        for channel, reader in self.readers.items():
            if reader.is_member and channel not in listed:
                if channel in self._leaving:
                    self._left(channel)
                elif begins or channel in self._lacking or self._may_lack(link, channel):
                    self.counts.lacks += 1
                    self._lacking.add(channel)
                else:
                    reader.forgotten()
        self._lacking -= listed.keys()
        self._again &= listed.keys()
        self._fresh.clear()
        self._unsure.clear()
        self._look_for_zombies()
        self._open_on(link)
        link.answered.set()
        self.news.set()

    def _stands(self, channel: str, position: Position, outcome: str, link: Link) -> None:
        """WELCOME lists the channel."""
        reader = self.readers[channel]
        if reader.is_member:
            reader.resumed(position, outcome, link.asked.get(channel))
            return
        since_s = link.hello_s - self._left_s.get(channel, link.hello_s)
        if channel not in self._again and channel not in self._fresh and since_s > 0:
            if self.habits.returns_left:
                self.counts.unwanted += 1
            else:
                reader.unwanted(position, since_s)
            self._again.add(channel)
        if channel in self._again and channel not in self._wanted:
            self._leaving.add(channel)
            return
        self._again.discard(channel)
        # It joined, and the answer was lost: it is a member from a position that only the gateway knows.
        reader.joined(position if outcome == "live" else None)

    # ---- what it asks

    def _number(self) -> int:
        self._last_request += 1
        return self._last_request

    def _reader(self, channel: str) -> Reader:
        if channel not in self.readers:
            self.readers[channel] = self._oracle.book(channel).reader(self.name)
        return self.readers[channel]

    def _open_on(self, link: Link) -> None:
        """From now on requests go here; what was not answered elsewhere is asked again."""
        self._link = self._last_link = link
        self._requests.clear()
        for channel in sorted(self._wanted):
            if not self._is_in(channel):
                self._join(link, channel)
        for channel in sorted(self._leaving):
            if self.readers[channel].is_member or channel in self._again:
                self._leave(link, channel)
            else:
                self._leaving.discard(channel)
        for say in list(self._says.values()):
            if say.attempts and not say.keyed:
                del self._says[say.content]  # nobody will ever know
            else:
                self._send(say)

    def _join(self, link: Link, channel: str) -> None:
        """Anew, or from where it was if the gateway lacks it."""
        self._left_s.pop(channel, None)
        reader = self.readers[channel]
        since = reader.held if channel in self._lacking else None

        def on_answer(link: Link, frame: list[Any]) -> None:
            if frame[0] == ERROR:
                self._refused(frame[2])
                self._after(retry_s(frame), lambda: self._join_again(channel))
            elif not self._is_in(channel):
                self._changed_s[channel] = time.monotonic()
                self._sure.pop(channel, None)
                link.stands.pop(channel, None)
                self._again.discard(channel)
                position = Position(frame[2]["epoch"], frame[2]["offset"])
                if since is None:
                    reader.joined(position)
                else:
                    reader.resumed(position, frame[2]["outcome"], since.offset)
                self._lacking.discard(channel)
                for say in list(self._says.values()):
                    if say.channel == channel and (say.keyed or not say.attempts):  # else it is under way here
                        self._send(say)

        self._ask(link, on_answer, JOIN, channel, {} if since is None else {"since": list(since)})

    def _join_again(self, channel: str) -> None:
        if self._link is not None and channel in self._wanted and not self._is_in(channel):
            self._join(self._link, channel)

    def _leave(self, link: Link, channel: str) -> None:
        def on_answer(link: Link, frame: list[Any]) -> None:
            self._unsure.discard(channel)
            if frame[0] == REPLY or (frame[2] == NOT_JOINED and channel in self._again):
                self._changed_s[channel] = self._left_s[channel] = time.monotonic()
                self._left(channel)
            else:
                self._refused(frame[2])
                self._after(retry_s(frame), lambda: self._leave_again(channel))

        self._unsure.add(channel)
        self._ask(link, on_answer, LEAVE, channel)

    def _leave_again(self, channel: str) -> None:
        if self._link is not None and channel in self._leaving:
            self._leave(self._link, channel)

    def _left(self, channel: str) -> None:
        self._leaving.discard(channel)
        self._again.discard(channel)
        self._sure.pop(channel, None)
        self.readers[channel].left()
        self.news.set()

    def _send(self, say: Say) -> None:
        if self._link is None or not (say.channel.startswith("user:") or self._is_in(say.channel)):
            return
        say.attempts += 1
        options = {"key": say.content} if say.keyed else {}
        on_answer = functools.partial(self._on_said, say)
        self._ask(self._link, on_answer, PUBLISH, say.channel, say.content, options)

    def _is_in(self, channel: str) -> bool:
        """A member, by the gateway's account as well."""
        return self._reader(channel).is_member and channel not in self._lacking

    def _on_said(self, say: Say, link: Link, frame: list[Any]) -> None:
        book = self._oracle.book(say.channel)
        if frame[0] == REPLY:
            before, said = link.acked
            if frame[1] > before:
                self._sure |= said  # it went the same way before it
            self._says.pop(say.content, None)
            book.acknowledge(say.content, Position(frame[2]["epoch"], frame[2]["offset"]))
            return
        code = frame[2]
        self._refused(code)
        if 400 <= code < 600 and code != RATE_LIMITED and say.attempts == 1:
            self._says.pop(say.content, None)
            book.refuse(say.content, code)
        elif say.keyed:
            self._after(retry_s(frame), lambda: self._send_again(say))
        else:
            self._says.pop(say.content, None)  # nobody will ever know

    def _send_again(self, say: Say) -> None:
        if say.content in self._says:
            self._send(say)

    async def _page(self, channel: str, since: list[int] | None) -> list[tuple[Position, str]]:
        """One page of HISTORY; asked again until it is answered."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(ANSWER_S):
            while True:
                answer: asyncio.Future[list[Any]] = loop.create_future()
                options: dict[str, Any] = {"limit": PAGE} | ({} if since is None else {"since": since})
                if self._link is not None:
                    self._ask(self._link, settles(answer), HISTORY, channel, options)
                    with contextlib.suppress(TimeoutError):
                        frame = await asyncio.wait_for(answer, DIAL_S)
                        if frame[0] == REPLY:
                            return [(Position(one[4]["epoch"], one[2]), one[3]) for one in frame[2]["messages"]]
                await asyncio.sleep(AGAIN_S)

    def _ask(self, link: Link, answer: Callable[[Link, list[Any]], None], kind: int, *rest: Any) -> None:
        """A request whose answer matters only while no other connection has taken over."""
        number = self._number()
        self._requests[number] = answer
        link.send(kind, number, *rest)

    def _refused(self, code: int) -> None:
        self.counts.refusals[code] = self.counts.refusals.get(code, 0) + 1

    def _after(self, delay_s: float, act: Callable[[], Any]) -> None:
        def run() -> None:
            self._later.discard(handle)
            act()

        handle = asyncio.get_running_loop().call_later(delay_s, run)
        self._later.add(handle)
