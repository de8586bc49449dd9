/** Which endpoint is tried when, and the race between them, on a virtual clock and fake sockets. */

import assert from "node:assert/strict";
import test from "node:test";

import {
  ASIDE_FIRST_MS, ASIDE_MOST_MS, ENDPOINT_TIMEOUT_MS, Endpoints, HEAD_START_MOST_MS, HEAD_START_MS, MEASURED_MS, TIE_MS,
} from "../../../client/js/holdfast-endpoints.mjs";
import { Line } from "./harness.mjs";

const [A, B, C] = ["wss://a.example/ws", "wss://b.example/ws", "wss://c.example/ws"];
const order = (endpoints, now, target) => endpoints.starts(now, target).map(({ url }) => url);

test("unknown ones begin together, the nearest then has a head start, and who is near is measured anew", () => {
  const endpoints = new Endpoints([A, B, C]);
  assert.deepEqual(endpoints.starts(0).map(({ after }) => after), [0, TIE_MS, TIE_MS]);
  endpoints.answered(B, 400, 1, true);
  assert.deepEqual(endpoints.starts(2).map(({ url, after }) => [url, after]), [[B, 0], [A, 800], [C, HEAD_START_MS]]);
  assert.deepEqual(order(endpoints, 1 + MEASURED_MS), [A, B, C]);
});

test("one that failed comes last for longer each time", () => {
  const endpoints = new Endpoints([A, B]);
  endpoints.failed(A, 0);
  assert.deepEqual(endpoints.starts(0), [{ url: B, after: 0 }, { url: A, after: HEAD_START_MS }]);
  assert.deepEqual(order(endpoints, ASIDE_FIRST_MS), [A, B]);
  endpoints.failed(A, 10);
  assert.deepEqual(order(endpoints, 10 + ASIDE_FIRST_MS), [B, A]);
  endpoints.answered(A, 5, 11, false);
  assert.deepEqual(order(endpoints, 11), [A, B]);
});

test("a target goes first, who named it last; none leads out of encryption, also no known one", () => {
  const endpoints = new Endpoints([A, B, "wss://c.example:7401/ws", "ws://d.example/ws"]);
  assert.equal(endpoints.target(C, A), "wss://c.example:7401/ws");
  assert.equal(endpoints.target("wss://new.example/ws", A), "wss://new.example/ws");
  for (const named of ["ws://d.example/ws", "ws://b.example/ws", "https://b.example", "", null, 7]) {
    assert.equal(endpoints.target(named, A), null);
  }
  endpoints.sentAway(A, 0);
  assert.deepEqual(order(endpoints, 0, B).slice(0, 2), [B, "wss://c.example:7401/ws"]);
  assert.equal(order(endpoints, 0, B).at(-1), A);
  assert.deepEqual(endpoints.starts(0, B)[1].after, HEAD_START_MOST_MS);
  assert.equal(order(endpoints, ASIDE_MOST_MS)[0], A);
});

test("HELLO is said on the winner alone, and the others are closed", async () => {
  const line = new Line({}, [A, B, C]);
  line.clock.advance(2 * TIE_MS);
  assert.deepEqual(line.sockets.map(({ url }) => url), [A, B, C]);
  line.sockets[1].welcome();
  const session = await line.connecting;
  assert.equal(session.endpoint, B);
  assert.deepEqual(line.sockets.map(({ closedWith }) => closedWith), [null, undefined, null]);
  assert.deepEqual(line.sockets.map(({ frames }) => frames.length > 0), [false, true, false]);
  assert.equal(line.sockets[0].onopen, null);
});

test("one that refuses gives way at once, one that is silent after its head start, and the session is resumed", async () => {
  const line = await Line.opened({}, {}, [A, B, C]);
  assert.equal(line.session.endpoint, A);
  line.socket.drop();
  line.clock.advance(250); // the back-off's
  assert.deepEqual(line.sockets.slice(1).map(({ url }) => url), [A]);
  line.socket.drop();
  assert.equal(line.socket.url, B);
  line.clock.advance(HEAD_START_MS - 1);
  assert.equal(line.socket.url, B);
  line.clock.advance(1);
  assert.equal(line.socket.url, C);
  line.socket.welcome({ resumed: true });
  assert.equal(line.socket.frames[0][2].session, "s1");
  assert.deepEqual([line.session.state, line.session.endpoint], ["open", C]);
  assert.equal(line.sockets.at(-2).closedWith, null);
});

test("one that opens and does not answer HELLO is left at once for the next, and the back-off comes after all", async () => {
  const line = await Line.opened({}, {}, [A, B]);
  line.socket.drop();
  line.clock.advance(250);
  line.socket.onopen({});
  line.clock.advance(5000);
  assert.equal(line.sockets.at(-2).closedWith, null);
  assert.equal(line.socket.url, B);
  line.socket.onopen({});
  line.clock.advance(5000);
  const tried = line.sockets.length;
  assert.equal(line.socket.closedWith, null);
  line.clock.advance(499);
  assert.equal(line.sockets.length, tried);
  line.clock.advance(1); // the second attempt's, of up to 1000 ms
  assert.equal(line.sockets.length, tried + 1);
});

test("one that speaks something else is left for the others of several, and alone is the end", async () => {
  const line = await Line.opened({}, {}, [A, B]);
  line.socket.drop();
  line.clock.advance(250);
  line.socket.onopen({});
  line.socket.give([99, "no gateway"]);
  assert.equal(line.session.state, "reconnecting");
  line.clock.advance(0);
  assert.equal(line.socket.url, B);
  line.socket.welcome({ resumed: true });
  assert.equal(line.session.state, "open");
  line.socket.give([99]);
  assert.equal(line.session.state, "closed");
  const alone = await Line.opened({}, {}, [A]);
  alone.socket.drop();
  alone.clock.advance(250);
  alone.socket.onopen({});
  alone.socket.give([99]);
  assert.equal(alone.session.state, "closed");
});

test("a HELLO of our own that comes late is resumed from, once", async () => {
  const line = await Line.opened({}, {}, [A, B]);
  line.socket.drop();
  line.clock.advance(250);
  line.socket.onopen({});
  line.clock.advance(5000);
  line.socket.welcome({ resumed: true });
  line.socket.give([14, 605, "resumed_elsewhere", { class: "stop" }]);
  assert.equal(line.session.state, "reconnecting");
  line.clock.advance(500);
  line.socket.welcome({ resumed: true });
  assert.equal(line.session.state, "open");
  line.socket.give([14, 605, "resumed_elsewhere", { class: "stop" }]);
  assert.equal(line.session.state, "closed");
});

test("FIN with target and after is obeyed, and refused when it leads out of encryption", async () => {
  const line = await Line.opened({}, {}, [A, B, C]);
  line.socket.give([14, 7, "moved", { class: "resume", after: 700, target: C }]);
  line.clock.advance(699);
  assert.equal(line.sockets.filter(({ url }) => url === C).length, 0);
  line.clock.advance(1);
  assert.equal(line.socket.url, C);
  line.socket.welcome({ resumed: true });
  line.socket.give([14, 7, "moved", { class: "resume", after: 10, target: "ws://b.example/ws" }]);
  line.clock.advance(10);
  assert.equal(line.socket.url, C);
});

test("leaving while they race closes all of them", async () => {
  const line = new Line({}, [A, B]);
  line.clock.advance(TIE_MS);
  line.clock.advance(10000 - TIE_MS);
  await assert.rejects(line.connecting, /not open in time/);
  assert.ok(line.sockets.every(({ closedWith }) => closedWith === null));
  assert.equal(line.clock.pending, 0);
});

test("an endpoint that does not open in time is given up", async () => {
  const line = await Line.opened({}, {}, [A, B]);
  line.socket.drop();
  line.clock.advance(250);
  line.clock.advance(ENDPOINT_TIMEOUT_MS + HEAD_START_MS);
  assert.ok(line.sockets.filter(({ url }) => url === B).every(({ closedWith }) => closedWith === null));
  assert.equal(line.session.state, "reconnecting");
});
