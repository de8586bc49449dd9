"""The client's side of the protocol as a state machine: bodies and times in, bodies and outputs out; no I/O, no clock.

One `Protocol` lives as long as the session, over any number of connections:

idle ── connection_made: HELLO ──▶ greeting ── WELCOME ──▶ rejoining ── all channels answered ──▶ open
  ▲                                                                                                │
  └── connection_lost, from everywhere ◀── ended ◀── closing (FIN sent, waits for FIN_ACK) ◀── finish ┘

`ended` (a FIN came, or nothing more is to be expected) takes and sends nothing. `rejoining` is passed at once when the
session was resumed whole. Requests made before `open` wait for it, because a PUBLISH that overtakes its channel's JOIN
is refused.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import frames
from .acks import Acks
from .codec import Encoding, body_bytes, decode, encode
from .codes import BYE, CloseClass, close_class, is_request_only
from .errors import (
    Closed,
    HoldfastError,
    ProtocolViolation,
    RequestInterrupted,
    RequestRefused,
    RequestTimeout,
)
from .frames import FrameType, read_history
from .heartbeat import Heartbeat
from .kept import SessionState, Taken
from .left import Left
from .messages import Event, Message, Position
from .outputs import LEGAL, Answered, Delivered, Ended, Measured, Opened, Output, Phase
from .positions import Positions, reset_event
from .requests import Request, Requests

VERSION = 1
HELLO_TIMEOUT_S = 5.0
FIN_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 5.0
# Room for everything in a HELLO but the positions: session, resume token, names.
_HELLO_REST_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Identity:
    """Who we are in HELLO. `user` stands for a token where the gateway runs in development mode."""

    user: str | None = None
    client: str = "holdfast-python"


class Protocol:
    """See the module's text. After each call, take `sendable()` and `outputs()`, and come back at `deadline()`."""

    def __init__(self, identity: Identity, encoding: Encoding, state: SessionState | None = None) -> None:
        self._identity = identity
        self._encoding = encoding
        self.phase = Phase.IDLE
        self.positions = Positions()
        self.welcome: frames.Welcome | None = None
        self._requests = Requests(encoding)
        self._joined: set[str] = set()
        self._left = Left()
        self._taken = Taken()
        # Taken and not acknowledged when the connection went: it is said on the next one.
        self._unacknowledged: dict[str, Position] = {}
        # Positions at the time of a JOIN: a message that came before its REPLY is further than the REPLY says.
        self._before_join: dict[int, Position | None] = {}
        # Of each JOIN of our own: where the channel stood before, and whether we asked for what came since.
        self._rejoining: dict[int, tuple[Position | None, bool]] = {}
        self._hello_id = 0
        self._hello_token: str | None = None
        self._phase_deadline: float | None = None
        self._may_resume = False
        self._resuming = False
        self._heartbeat: Heartbeat | None = None
        self._acks: Acks | None = None
        self._sendable: list[bytes | str] = []
        self._outputs: list[Output] = []
        if state is not None:
            self._go_on(state)

    def _go_on(self, state: SessionState) -> None:
        """With a session from before: the first HELLO resumes it."""
        self.welcome = frames.Welcome(0, state.session, state.user, state.resume_token, "")
        self._may_resume = True
        self._joined.update(state.joined)
        self._left = Left(state.left)
        self._requests.bytes_max = self.welcome.max_frame_bytes
        for channel, position in state.positions.items():
            self.positions.set(channel, position)
            self._taken.stands(channel, position)

    # What the caller reads.

    def state(self) -> SessionState | None:
        """What a later process needs to go on; None without a session that could be resumed."""
        welcome = self.welcome
        if welcome is None or welcome.resume_token is None or not self._may_resume:
            return None
        positions = self._taken.over(self.positions.all())
        channels = (self.joined, positions, self._left.channels)
        return SessionState(welcome.session, welcome.resume_token, welcome.user, *channels)

    @property
    def can_resume(self) -> bool:
        """Whether the next HELLO asks for the session from before; it needs no token of the application's then."""
        return self._may_resume

    @property
    def joined(self) -> frozenset[str]:
        return frozenset(self._joined)

    @property
    def request_count(self) -> int:
        """Requests without an answer so far."""
        return len(self._requests)

    def sendable(self) -> list[bytes | str]:
        """Bodies to send, in order; they are the caller's from now on."""
        bodies, self._sendable = self._sendable, []
        return bodies

    def outputs(self) -> list[Output]:
        """What happened since the last call."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def deadline(self) -> float | None:
        """When `tick` has something to do at the latest, if nothing else happens."""
        candidates = [self._phase_deadline, self._requests.deadline()]
        # In CLOSING nothing is sent any more: a PING or an ACK that is due would make this the past for ever.
        if self._heartbeat is not None and self._acks is not None and self.phase is not Phase.CLOSING:
            candidates += [self._heartbeat.deadline(), self._acks.deadline()]
        return min((at for at in candidates if at is not None), default=None)

    # The connection's life.

    def start_afresh(self) -> None:
        """The gateway said that the session from before is over: the next HELLO asks for a new one."""
        self._may_resume = False

    def connection_made(self, now: float, token: str | None) -> None:
        """A transport is there: greet, and resume if there is what to resume."""
        self._move(Phase.GREETING)
        self._hello_token = token
        self._phase_deadline = now + HELLO_TIMEOUT_S
        self._greet(now, resume=self._may_resume)

    def connection_lost(self, closed: Closed) -> None:
        """The transport is gone. Requests that may be repeated wait for the next connection."""
        self._move(Phase.IDLE)
        self._sendable.clear()
        if self._acks is not None:
            self._unacknowledged = self._acks.pending()
        self._heartbeat = self._acks = self._phase_deadline = None
        self._rejoining.clear()
        self._left.connection_lost()
        for request in self._requests.connection_lost():
            if not request.own:
                self._answer(request.id, RequestInterrupted(f"{request.frame_type.name} was under way: {closed}"))

    def abandon(self, closed: Closed) -> None:
        """There will be no further connection: no request can be answered."""
        for request in self._requests.clear():
            if not request.own:
                self._answer(request.id, closed)

    def finish(self, now: float) -> None:
        """Leave for good: FIN, then `Ended` at its FIN_ACK or after the deadline. Nothing is sent after FIN."""
        if self.phase in (Phase.IDLE, Phase.CLOSING, Phase.ENDED):
            return
        self._flush_acks(now)
        self._send([FrameType.FIN, BYE, "bye", {}], now)
        self._move(Phase.CLOSING)
        self._phase_deadline = now + FIN_TIMEOUT_S

    def receive(self, body: bytes | str, now: float) -> None:
        """One body from the transport.

        Raises:
            ProtocolViolation: it is no frame of this protocol; the connection is to be dropped.
        """
        if self.phase is Phase.ENDED:
            return
        frame = frames.parse(decode(body))
        if self._heartbeat is not None:
            self._heartbeat.heard(now)
        if self.phase is Phase.GREETING and not isinstance(frame, frames.WHILE_GREETING):
            raise ProtocolViolation(f"{type(frame).__name__} before WELCOME")
        # One table would be shorter, but messages are nearly all there is: they come first.
        if isinstance(frame, frames.Delivery):
            self._on_message(frame)
        else:
            self._on_control(frame, now)

    def tick(self, now: float) -> None:
        """Do what is due: deadlines, ACK, PING."""
        for request in self._requests.expired(now):
            self._on_expired(request, now)
        if self._phase_deadline is not None and now >= self._phase_deadline:
            self._on_phase_deadline()
        elif self._heartbeat is not None and self.phase is not Phase.CLOSING:
            if self._heartbeat.is_lost(now):
                self._end(Closed(None, "nothing was heard from the gateway", CloseClass.RESUME))
            else:
                self._send_due(now)

    def pause_reading(self) -> None:
        """The application is slow and the transport is not read for a while: silence means nothing."""
        if self._heartbeat is not None:
            self._heartbeat.pause()

    def resume_reading(self, now: float) -> None:
        if self._heartbeat is not None:
            self._heartbeat.unpause(now)

    def measure(self, now: float) -> None:
        """Send PING now rather than with the next heartbeat; `Measured` is the answer."""
        if self._heartbeat is not None and self.phase is Phase.OPEN:
            self._send(self._heartbeat.ping(now), now)

    def taken(self, item: Message | Event, now: float) -> bool:
        """The application has this: a message will be acknowledged with the next batch.

        Returns:
            Whether `sendable` or `deadline` changed by it.
        """
        self._taken.take(item)
        if isinstance(item, Event):
            return False
        if self._acks is None or self.phase in (Phase.CLOSING, Phase.ENDED):
            self._unacknowledged[item.channel] = item.position
            return False
        before = self._acks.deadline()
        self._acks.take(item.channel, item.position, now)
        if self._acks.is_due(now):
            self._flush_acks(now)
        return self._acks.deadline() != before

    # Requests. Each returns its number; `Answered` carries it back.

    def join(self, channel: str, since: Position | None, now: float, timeout_s: float) -> int:
        """JOIN; answered by the `Position` from which messages come."""
        values = {} if since is None else {"since": list(since)}
        request = self._requests.make(FrameType.JOIN, channel, [values], frames.read_standing, now + timeout_s)
        if since is not None and channel not in self._joined:
            # So that a hole right after `since` is seen too.
            self.positions.set(channel, since)
        self._before_join[request.id] = self.positions.get(channel)
        self._left.joins(channel)
        return request.id

    def leave(self, channel: str, now: float, timeout_s: float) -> int:
        request = self._requests.make(FrameType.LEAVE, channel, [], frames.read_nothing, now + timeout_s)
        self._left.asks(channel)
        return request.id

    def publish(self, channel: str, data: Any, key: str | None, now: float, timeout_s: float) -> int:
        """PUBLISH; answered by the message's `Position`. With a key it is repeated over a reconnect."""
        return self._requests.make(
            FrameType.PUBLISH,
            channel,
            [data, {} if key is None else {"key": key}],
            lambda value: frames.read_position(value, "PUBLISH"),
            now + timeout_s,
            repeatable=key is not None,
        ).id

    def history(self, channel: str, values: dict[str, Any], now: float, timeout_s: float) -> int:
        """HISTORY; answered by `History`."""
        read, deadline = partial(read_history, channel), now + timeout_s
        return self._requests.make(FrameType.HISTORY, channel, [values], read, deadline).id

    def presence(self, channel: str, now: float, timeout_s: float) -> int:
        """PRESENCE; answered by `Presence`."""
        return self._requests.make(FrameType.PRESENCE, channel, [], frames.read_presence, now + timeout_s).id

    def refresh(self, token: str, now: float, timeout_s: float) -> int:
        """REFRESH; answered by when the token ends, seconds since 1970, or None."""
        read, deadline = self._on_refreshed, now + timeout_s
        request = self._requests.make(FrameType.REFRESH, token, [], read, deadline, repeatable=False)
        request.channel = "the session's token"  # in messages, where the token itself must not be
        return request.id

    def _on_refreshed(self, value: dict[str, Any]) -> int | None:
        self.welcome, expires = frames.read_refreshed(self.welcome, value)
        return expires

    def withdraw(self, request_id: int) -> None:
        """Nobody waits for this answer any more."""
        request = self._requests.pop(request_id)
        if request is not None:
            self._forget(request)

    def _forget(self, request: Request, code: int | None = None) -> None:
        """It came to nothing, and if to a refusal, with this code: the position expected of a JOIN does not stay."""
        if request.frame_type is FrameType.LEAVE:
            self._left.failed(request.id, request.channel, code)
        if self._before_join.pop(request.id, None) is not None and request.channel not in self._joined:
            self.positions.forget(request.channel)

    # Inside.

    def _move(self, phase: Phase) -> None:
        if phase is Phase.IDLE and self.phase is Phase.IDLE:
            return
        assert phase in LEGAL[self.phase], f"{self.phase} to {phase}"
        self.phase = phase

    def _send(self, frame: list[Any], now: float) -> None:
        self._send_body(encode(frame, self._encoding), now)

    def _send_body(self, body: bytes | str, now: float) -> None:
        assert self.phase is not Phase.CLOSING, "nothing is sent after FIN"
        self._sendable.append(body)
        if self._heartbeat is not None:
            self._heartbeat.sent(now)

    def _answer(self, request_id: int, result: Any | HoldfastError) -> None:
        self._outputs.append(Answered(request_id, result))

    def _deliver(self, item: Message | Event) -> None:
        self._outputs.append(Delivered(item))

    def _end(self, closed: Closed) -> None:
        self._move(Phase.ENDED)
        if self._acks is not None:
            self._unacknowledged = self._acks.pending()
        self._heartbeat = self._acks = self._phase_deadline = None
        self._outputs.append(Ended(closed))

    def _greet(self, now: float, resume: bool) -> None:
        self._resuming = resume
        self._hello_id = self._requests.next_id()
        # Of a new session the user's own channel: it would begin at the last ACK of any of the user's sessions.
        left_out: set[str] = set() if resume else self._joined
        positions = {name: list(one) for name, one in self.positions.all().items() if name not in left_out}
        room = 0 if self.welcome is None else self.welcome.max_frame_bytes - _HELLO_REST_BYTES
        fits = body_bytes(encode([positions], self._encoding)) <= room
        welcome, token = (self.welcome if resume else None), self._hello_token
        values = frames.hello_values(welcome, token, self._identity.user, positions if fits else None)
        self._send([FrameType.HELLO, self._hello_id, {"v": VERSION, "client": self._identity.client, **values}], now)

    def flush_requests(self, now: float) -> None:
        """Send the requests that wait, if the session is open; called after making one."""
        if self.phase is not Phase.OPEN:
            return
        for request in self._requests.unsent():
            request.sent = True
            self._send_body(request.body, now)

    def _flush_acks(self, now: float) -> None:
        frame = None if self._acks is None else self._acks.frame()
        if frame is not None:
            self._send(frame, now)

    def _send_due(self, now: float) -> None:
        if self._acks is not None and self._acks.is_due(now):
            self._flush_acks(now)
        if self._heartbeat is not None and self._heartbeat.is_due(now):
            self._send(self._heartbeat.ping(now), now)

    def _on_phase_deadline(self) -> None:
        if self.phase is Phase.CLOSING:
            self._end(Closed(BYE, "bye; the gateway did not confirm", CloseClass.STOP))
        else:
            self._end(Closed(None, "no WELCOME in time", CloseClass.RESUME))

    def _on_expired(self, request: Request, now: float) -> None:
        self._forget(request)
        if request.own:
            self._rejoin_refused(request, "no answer in time", now)
        else:
            self._answer(request.id, RequestTimeout(f"{request.frame_type.name} {request.channel}: no answer in time"))

    def _on_message(self, frame: frames.Delivery) -> None:
        if self._left.is_unheard(frame.channel):
            return
        accepted = self.positions.accept(frame.channel, frame.epoch, frame.offset)
        if accepted is None:
            return
        position, event = accepted
        if event is not None:
            self._deliver(event)
        message = Message(frame.channel, position.epoch, frame.offset, frame.data, frame.sender, frame.time)
        self._taken.queued(message)
        self._deliver(message)

    def _on_control(self, frame: frames.Frame, now: float) -> None:
        match frame:
            case frames.Reply():
                self._on_reply(frame, now)
            case frames.Error():
                self._on_error(frame, now)
            case frames.Ping():
                if self.phase is not Phase.CLOSING:
                    self._send([FrameType.PONG, frame.seq, frame.time], now)
            case frames.Pong():
                rtt_ms = None if self._heartbeat is None else self._heartbeat.round_trip_ms(frame, now)
                if rtt_ms is not None:
                    self._outputs.append(Measured(rtt_ms))
            case Event():
                if not self._left.is_unheard(frame.channel) and (frame.kind != "gap" or self._on_gap(frame)):
                    self._deliver(frame)
            case frames.Welcome():
                self._on_welcome(frame, now)
            case frames.Fin():
                self._on_fin(frame, now)
            case frames.FinAck():
                self._on_fin_ack()

    def _on_gap(self, event: Event) -> bool:
        """Whether it is news: one that was told before is said again after a new connection."""
        behind, held = self._taken.end_of_gap(event), self.positions.get(event.channel)
        last = event.details.get("to")
        if held is not None and isinstance(last, int) and last <= held.offset:
            return False
        if behind is not None and held is not None and held.offset < behind.offset:
            # Nothing is kept behind it: this is where the channel stands now, and what a resume goes on from.
            self.positions.set(event.channel, behind)
        else:
            self.positions.announce_gap(event.channel, last)
        return True

    def _on_fin(self, frame: frames.Fin, now: float) -> None:
        # Two FINs that crossed confirm each other: nothing may be sent after ours.
        if self.phase is Phase.CLOSING:
            self._on_fin_ack()
            return
        self._send([FrameType.FIN_ACK], now)
        by_range = close_class(frame.code)
        if self._resuming and self.phase is Phase.GREETING and is_request_only(frame.code):
            # Refused as a request but ended all the same: only the resuming is not served.
            by_range = CloseClass.FRESH
        class_ = CloseClass(frame.class_) if frame.class_ in set(CloseClass) else by_range
        self._end(Closed(frame.code, frame.reason, class_, frame.after_ms, frame.target))

    def _on_fin_ack(self) -> None:
        if self.phase is not Phase.CLOSING:
            raise ProtocolViolation("FIN_ACK without FIN")
        self._end(Closed(BYE, "bye", CloseClass.STOP))

    def _on_error(self, frame: frames.Error, now: float) -> None:
        if self.phase is Phase.GREETING and frame.request_id == self._hello_id:
            self._on_hello_refused(frame, now)
            return
        request = self._requests.pop(frame.request_id)
        if request is None:
            return
        self._forget(request, frame.code)
        if request.own:
            self._rejoin_refused(request, frame.message, now)
        else:
            self._answer(request.id, RequestRefused(frame.code, frame.message, frame.retry_after_ms))

    def _on_hello_refused(self, frame: frames.Error, now: float) -> None:
        """A resume that is not served is asked for afresh, on the same connection if that stays."""
        if is_request_only(frame.code) and self._resuming:
            self._greet(now, resume=False)
            return
        self._end(Closed(frame.code, frame.message, close_class(frame.code), frame.retry_after_ms))

    def _on_reply(self, frame: frames.Reply, now: float) -> None:
        if (request := self._requests.pop(frame.request_id)) is None:
            return
        answer = request.read(frame.value)
        if isinstance(answer, frames.Standing):
            self._on_joined(request, answer, now)
            answer = answer.position
        elif request.frame_type is FrameType.LEAVE and not self._left.answered(request.id, request.channel):
            self._on_left(request.channel)  # of what is left again that was done at WELCOME
        if not request.own:
            self._answer(request.id, answer)

    def _on_left(self, channel: str) -> None:
        self._joined.discard(channel)
        self.positions.forget(channel)
        self._taken.forget(channel)
        self._unacknowledged.pop(channel, None)
        if self._acks is not None:
            self._acks.forget(channel)

    def _on_joined(self, request: Request, standing: frames.Standing, now: float) -> None:
        channel = request.channel
        self._joined.add(channel)
        self._note(channel, standing)
        if request.own:
            self._rejoined(request, standing, now)
            return
        held = self.positions.get(channel)
        overtaken = held != self._before_join.pop(request.id, held)
        if held is None or (standing.outcome == "reset" and not overtaken):
            self.positions.set(channel, standing.position)
            self._taken.stands(channel, standing.position)

    def _note(self, channel: str, standing: frames.Standing) -> None:
        """Where a gap would end that reaches up to the channel's position."""
        if standing.outcome == "gap":
            self._taken.promised(channel, standing.position)

    # Coming back.

    def _on_welcome(self, frame: frames.Welcome, now: float) -> None:
        if self.phase is not Phase.GREETING:
            raise ProtocolViolation("WELCOME twice")
        self.welcome = frame
        self._requests.bytes_max = frame.max_frame_bytes
        self._may_resume = frame.resume_token is not None
        self._phase_deadline = None
        self._heartbeat = Heartbeat(now, frame.ping_s, frame.misses)
        self._acks = Acks(frame.ping_s)
        self._move(Phase.REJOINING)
        resumed = frame.resumed and self._resuming
        self._leave_again(frame.channels.keys(), resumed, now)
        held = self.positions.all()
        if resumed:
            for channel, position in self._unacknowledged.items():
                self._acks.take(channel, position, now)
        else:
            self.positions.clear()
            for channel in sorted(held.keys() - frame.channels.keys() - self._joined):
                # Received without joining; in a new session it may count from anywhere.
                self._deliver(reset_event(channel, None, held[channel]))
        for channel, standing in frame.channels.items():
            if not self._left.is_unheard(channel):
                self._restore(channel, standing, held.get(channel), resumed)
        for channel in sorted(self._joined - frame.channels.keys()):
            self._rejoin(channel, held.get(channel), now)
        self._send(self._heartbeat.ping(now), now)  # the first round trip is measured at once
        self._open_if_rejoined(now)

    def _leave_again(self, listed: Collection[str], resumed: bool, now: float) -> None:
        """The application is in no channel that it asked to leave, unless it waits for what it asked there before."""
        waiting, behind = self._requests.leaving()
        for channel in sorted(self._left.channels - behind):
            request = waiting.get(channel)
            if request is not None and channel in self._joined and channel not in listed:
                self._requests.pop(request.id)
                self._left.answered(request.id, channel)
                self._answer(request.id, None)
            self._on_left(channel)
            if resumed and channel in listed:
                read, deadline = frames.read_nothing, now + REQUEST_TIMEOUT_S
                request = request or self._requests.make(FrameType.LEAVE, channel, [], read, deadline, own=True)
                request.sent = True
                self._left.leaves_again(channel, request.id)
                self._send_body(request.body, now)
        if not resumed:
            self._left.begins_anew(behind)

    def _restore(self, channel: str, standing: frames.Standing, held: Position | None, resumed: bool) -> None:
        self._note(channel, standing)
        event = self.positions.restore(channel, standing, held, resumed)
        if event is not None:
            self._deliver(event)
        elif held is None and self.positions.get(channel) is not None:
            self._taken.stands(channel, standing.position)

    def _rejoin(self, channel: str, held: Position | None, now: float, ask_since: bool = True) -> None:
        values = {"since": list(held)} if ask_since and held is not None else {}
        deadline = now + REQUEST_TIMEOUT_S
        request = self._requests.make(FrameType.JOIN, channel, [values], frames.read_standing, deadline, own=True)
        request.sent = True
        self._rejoining[request.id] = (held, bool(values))
        if values and held is not None:
            # Replayed messages may come before the REPLY and are judged against what is held.
            self.positions.set(channel, held)
        self._send_body(request.body, now)

    def _rejoined(self, request: Request, standing: frames.Standing, now: float) -> None:
        before, asked_since = self._rejoining.pop(request.id)
        held = self.positions.get(request.channel)
        if held is None or (standing.outcome == "reset" and held == before):
            self.positions.set(request.channel, standing.position)
        if (standing.outcome == "reset" or not asked_since) and standing.position != before:
            self._deliver(reset_event(request.channel, standing.position, before))
        self._open_if_rejoined(now)

    def _rejoin_refused(self, request: Request, why: str, now: float) -> None:
        if request.frame_type is FrameType.LEAVE:
            return
        before, asked_since = self._rejoining.pop(request.id)
        if asked_since:  # perhaps it is only the replay that is not served: join where the channel is now
            self.positions.forget(request.channel)
            self._rejoin(request.channel, before, now, ask_since=False)
            return
        self._on_left(request.channel)
        self._deliver(Event(request.channel, "left", {"reason": why}))
        self._open_if_rejoined(now)

    def _open_if_rejoined(self, now: float) -> None:
        if self.phase is Phase.REJOINING and not self._rejoining:
            self._move(Phase.OPEN)
            self._outputs.append(Opened(self._resuming and self.welcome is not None and self.welcome.resumed))
            self.flush_requests(now)
