/** The JavaScript session on a virtual clock and fake sockets. */

import assert from "node:assert/strict";
import test from "node:test";

import {
  Closed, ProtocolViolation, RequestInterrupted, RequestTimeout, closeClass,
} from "../../../client/js/holdfast.mjs";
import { json } from "../../../client/js/holdfast-wire.mjs";
import { Line, anyValue, message, seeded } from "./harness.mjs";

test("greets, opens, and measures a round trip at once", async () => {
  const line = new Line();
  line.socket.welcome();
  const session = await line.connecting;
  const [hello, ping] = line.socket.frames;
  assert.deepEqual(hello, [0, 1, { v: 1, client: "holdfast-js/0.1.0", user: "ann" }]);
  assert.deepEqual([session.state, session.id, session.user, session.node], ["open", "s1", "ann", "n"]);
  const measured = [];
  session.on("rtt", (ms) => measured.push(ms));
  line.clock.advance(25);
  line.socket.give([5, ping[1], 0], [5, ping[1], 0], [5, 99, 0]);
  assert.deepEqual(measured, [25]);
});

test("requests carry what was asked and resolve to what was answered", async () => {
  const line = await Line.opened();
  assert.deepEqual(await line.join("group:x", 2, 7), { epoch: 2, offset: 7 });
  const publishing = line.session.publish("group:x", { a: 1 }, { key: "k" });
  assert.deepEqual(line.socket.of(8)[0].slice(2), ["group:x", { a: 1 }, { key: "k" }]);
  line.answer(8, { epoch: 2, offset: 8 });
  assert.deepEqual(await publishing, { epoch: 2, offset: 8 });
  const history = line.session.history("group:x", { since: { epoch: 1, offset: 2 }, limit: 3 });
  assert.deepEqual(line.socket.of(11)[0].slice(2), ["group:x", { since: [1, 2], limit: 3 }]);
  line.answer(11, { messages: [message(1), [2, "b", { from: "bob" }], { offset: 3, data: "c" }], epoch: 1, offset: 3 });
  const past = (await history).messages.map(({ offset, data, sender }) => [offset, data, sender]);
  assert.deepEqual(past, [[1, 1, null], [2, "b", "bob"], [3, "c", null]]);
  const presence = line.session.presence("group:x");
  line.answer(12, { sessions: [{ session: "s1", user: "ann" }, { session: "s2", user: "ann" }] });
  assert.deepEqual([(await presence).users, (await presence).count], [1, 2]);
  const leaving = line.session.leave("group:x");
  line.answer(7, {});
  await leaving;
  assert.equal(line.session.joined.size, 0);
});

test("refusals, deadlines and the frame bound", async () => {
  const line = await Line.opened({}, { max_frame: 1000 });
  const refused = line.session.publish("group:x", 1);
  line.refuse(8, 403, "rate_limited", { retry_after: 250 });
  await assert.rejects(refused, { name: "RequestRefused", code: 403, retryAfter: 250 });
  const late = line.session.publish("group:x", 1, { timeoutMs: 100 });
  line.clock.advance(100);
  await assert.rejects(late, RequestTimeout);
  await assert.rejects(line.session.publish("group:x", "é".repeat(500)), /longer than 1000 bytes/);
});

test("duplicates are dropped, holes and new histories reported", async () => {
  const line = await Line.opened();
  await line.join("group:x");
  line.socket.give(message(1), message(1), message(2, 2), message(3, 1), message(2, 3), message(5, 3), message(4, 3));
  const reset = { kind: "reset", epoch: 3, offset: 1, held: [2, 2] };
  const gap = { kind: "gap", from: 3, to: 4, reason: "unannounced" };
  assert.deepEqual(line.items, [1, 2, reset, 2, gap, 5]);
  assert.equal(line.session.droppedCount, 3);
});

test("an announced gap is reported once", async () => {
  const line = await Line.opened();
  await line.join("group:x");
  line.socket.give([13, "group:x", "gap", { from: 1, to: 4 }], message(5), message(8));
  const own = { kind: "gap", from: 6, to: 7, reason: "unannounced" };
  assert.deepEqual(line.items, [{ kind: "gap", from: 1, to: 4 }, 5, own, 8]);
});

test("any order of arrival is delivered once and growing", async () => {
  for (let seed = 1; seed <= 200; seed += 1) {
    const random = seeded(seed);
    const line = await Line.opened();
    const seen = [];
    line.session.on("message", ({ epoch, offset }) => seen.push(epoch * 1000 + offset));
    const upTo = (most) => 1 + Math.floor(random() * most);
    for (let n = 0; n < 30; n += 1) line.socket.give(message(upTo(8), upTo(3)));
    assert.deepEqual(seen, [...new Set(seen)].sort((a, b) => a - b), `seed ${seed}`);
    assert.equal(seen.length + line.session.droppedCount, 30, `seed ${seed}`);
    line.session.close();
  }
});

test("a message before the answer to JOIN counts", async () => {
  const line = await Line.opened();
  const joining = line.session.join("group:x");
  line.socket.give(message(6));
  line.answer(6, { epoch: 1, offset: 7, outcome: "live" });
  line.socket.give(message(7));
  await joining;
  assert.deepEqual(line.items, [6, 7]);
});

test("pings go out in silence only, the gateway's are answered, and its silence ends the connection", async () => {
  const line = await Line.opened();
  line.clock.advance(20_000);
  line.session.presence("group:x").catch(() => {});
  line.clock.advance(29_000);
  assert.deepEqual(line.socket.frames.map((frame) => frame[0]), [12]);
  line.socket.give([4, 7, 123]);
  assert.deepEqual(line.socket.frames.at(-1), [5, 7, 123]);
  line.clock.advance(30_000);
  assert.deepEqual(line.socket.frames.at(-1).slice(0, 2), [4, 2]);
  line.clock.advance(59_999);
  assert.equal(line.session.state, "open");
  line.clock.advance(1);
  assert.equal(line.session.state, "reconnecting");
  assert.equal(line.socket.closedWith, null);
});

test("acknowledges in batches, within a heartbeat", async () => {
  const line = await Line.opened();
  await line.join("group:x");
  line.socket.give(message(1), message(2));
  line.clock.advance(29_999);
  assert.deepEqual(line.socket.of(10), [[10, { "group:x": 2 }]]);
  for (let offset = 3; offset <= 258; offset += 1) line.socket.give(message(offset));
  assert.deepEqual(line.socket.of(10).at(-1), [10, { "group:x": 258 }]);
});

test("resumes with its positions and takes the replay once", async () => {
  const line = await Line.opened({}, { channels: { "user:ann": [1, 0, "live"] } });
  await line.join("group:x");
  line.socket.give(message(1));
  const states = [];
  line.session.on("state", (state) => states.push(state));
  line.socket.drop();
  // Full jitter: half of the first bound with this clock's randomness.
  line.clock.advance(249);
  assert.equal(line.sockets.length, 1);
  line.clock.advance(1);
  line.socket.welcome({ resumed: true, channels: { "group:x": [1, 3, "replayed"], "user:ann": [1, 0, "live"] } });
  const [hello] = line.socket.of(0);
  assert.deepEqual(hello[2].resume, { "user:ann": [1, 0], "group:x": [1, 1] });
  assert.deepEqual([hello[2].session, hello[2].token, hello[2].user], ["s1", "r1", undefined]);
  line.socket.give(message(1), message(2), message(3));
  assert.deepEqual(line.items, [1, 2, 3]);
  assert.deepEqual(states, ["reconnecting", "open"]);
  assert.deepEqual(line.socket.of(6), []);
});

test("a resumed session that lacks one of its channels joins it again from where it was", async () => {
  const line = await Line.opened({}, { max_frame: 8192 }); // no room for positions: HELLO leaves them out
  await line.join("group:x", 1, 7);
  line.socket.drop();
  line.clock.advance(250);
  line.socket.welcome({ resumed: true, channels: {} });
  assert.deepEqual(line.socket.of(0)[0][2].resume, {});
  assert.deepEqual(line.socket.of(6)[0].slice(2), ["group:x", { since: [1, 7] }]);
  line.answer(6, { epoch: 2, offset: 8, outcome: "replayed" });
  line.socket.give(message(8, 2));
  assert.deepEqual(line.items, [8]);
  assert.deepEqual([line.session.state, line.session.id], ["open", "s1"]);
});

test("a refused resume starts afresh on the same connection and says what was reset", async () => {
  const line = await Line.opened({}, { channels: { "user:ann": [1, 0, "live"] } });
  await line.join("group:x", 1, 4);
  line.socket.drop();
  line.clock.advance(250);
  const publishing = line.session.publish("group:x", "waits");
  line.socket.onopen({});
  line.refuse(0, 406, "bad_request");
  assert.equal(line.socket.of(0)[1][2].user, "ann");
  assert.deepEqual(line.socket.of(0)[1][2].resume, { "user:ann": [1, 0] });
  const channels = { "user:ann": [1, 0, "live"] };
  line.socket.give([1, line.socket.of(0)[1][1], { session: "s2", user: "ann", channels }]);
  assert.deepEqual(line.socket.of(6)[0][3], { since: [1, 4] });
  line.refuse(6, 406, "bad_request");
  assert.deepEqual(line.socket.of(6)[1][3], {});
  assert.equal(line.socket.of(8).length, 0);
  line.answer(6, { epoch: 1, offset: 9, outcome: "live" });
  assert.deepEqual(line.items, [{ kind: "reset", epoch: 1, offset: 9, held: [1, 4] }]);
  line.answer(8, { epoch: 1, offset: 10 });
  await publishing;
  assert.equal(line.session.id, "s2");
});

test("a channel that cannot be joined again is reported as left", async () => {
  const line = await Line.opened();
  await line.join("group:x", 1, 4);
  line.socket.drop();
  line.clock.advance(250);
  line.socket.welcome({ resumed: false });
  line.refuse(6, 400, "not_allowed");
  line.refuse(6, 400, "not_allowed");
  assert.deepEqual(line.items, [{ kind: "left", reason: "not_allowed" }]);
  assert.equal(line.session.state, "open");
});

test("a FIN is confirmed and obeyed; a token is asked for before each fresh start only", async () => {
  let tokens = 0;
  const line = new Line({ token: async () => `token-${(tokens += 1)}` });
  line.socket.onopen({});
  await new Promise(setImmediate);
  assert.equal(line.socket.of(0)[0][2].token, "token-1");
  line.socket.give([1, 1, { session: "s1", user: "ann", resume_token: "r1" }]);
  await line.connecting;
  line.socket.give([14, 1, "draining", { class: "resume", after: 1500, target: "ws://other:1/ws" }]);
  assert.deepEqual([line.sockets[0].frames.at(-1), line.sockets[0].closedWith], [[15], 4001]);
  line.clock.advance(1499);
  assert.equal(line.sockets.length, 1);
  line.clock.advance(1);
  assert.equal(line.socket.url, "ws://other:1/ws");
  line.socket.welcome({ resumed: true });
  assert.equal(line.socket.of(0)[0][2].token, "r1");
  line.socket.give([14, 200, "token_expired", {}]);
  line.clock.advance(250);
  assert.equal(line.socket.url, "ws://gateway:7401/ws");
  line.socket.onopen({});
  await new Promise(setImmediate);
  assert.deepEqual([line.socket.of(0)[0][2].token, line.socket.of(0)[0][2].session], ["token-2", undefined]);
});

test("a resume that is refused for its token goes on afresh with the client's own", async () => {
  const line = new Line({ token: "my own" });
  line.socket.onopen({});
  await new Promise(setImmediate);
  line.socket.give([1, 1, { session: "s1", user: "ann", resume_token: "r1" }]);
  await line.connecting;
  line.socket.drop();
  line.clock.advance(250);
  line.socket.onopen({});
  assert.equal(line.socket.of(0)[0][2].token, "r1");
  line.socket.give([14, 201, "session_expired", { class: "fresh" }]);
  line.clock.advance(1000);
  assert.equal(line.sockets.length, 3);
  line.socket.onopen({});
  await new Promise(setImmediate);
  assert.deepEqual([line.socket.of(0)[0][2].token, line.socket.of(0)[0][2].session], ["my own", undefined]);
});

test("a token that is about to end is refreshed, and what resumes is the new one", async () => {
  let tokens = 0;
  const line = new Line({ token: async () => `token-${(tokens += 1)}` });
  line.socket.onopen({});
  await new Promise(setImmediate);
  line.socket.give([1, 1, { session: "s1", user: "ann", resume_token: "r1" }]);
  const session = await line.connecting;
  line.socket.give([13, "user:ann", "expired", { after: 30000 }]);
  await new Promise(setImmediate);
  assert.deepEqual(line.socket.of(16).map((frame) => frame.slice(2)), [["token-2"]]);
  line.refuse(16, 602, "bad_token");
  const refreshing = session.refresh("token-3");
  line.answer(16, { expires: 1793494800, resume_token: "r2" });
  assert.equal(await refreshing, 1793494800);
  const late = session.refresh("a secret token");
  line.clock.advance(5000);
  await assert.rejects(late, (error) => error instanceof RequestTimeout && !/secret/.test(error.message));
  line.socket.drop();
  line.clock.advance(250);
  line.socket.onopen({});
  await new Promise(setImmediate);
  assert.equal(line.socket.of(0)[0][2].token, "r2");
});

test("stop is stop, and the close status says as much as a FIN", async () => {
  const byFin = (socket) => socket.give([14, 603, "banned", {}]);
  const byStatus = (socket) => socket.onclose({ code: 4603, reason: "banned" });
  for (const end of [byFin, byStatus]) {
    const line = await Line.opened();
    const pending = line.session.presence("group:x");
    let told = null;
    line.session.on("close", (closed) => { told = closed; });
    end(line.socket);
    assert.deepEqual([told.code, told.reason, told.class, line.session.state], [603, "banned", "stop", "closed"]);
    await assert.rejects(pending, Closed);
    await assert.rejects(line.session.publish("group:x", 1), Closed);
    line.clock.advance(1e9);
    assert.equal(line.sockets.length, 1);
    assert.equal(line.clock.pending, 0);
  }
});

test("an unkeyed publish is interrupted, a keyed one repeated", async () => {
  const line = await Line.opened();
  await line.join("group:x");
  const unkeyed = line.session.publish("group:x", 1);
  const keyed = line.session.publish("group:x", 2, { key: "k" });
  line.socket.drop();
  await assert.rejects(unkeyed, RequestInterrupted);
  line.clock.advance(250);
  line.socket.welcome({ resumed: true, channels: { "group:x": [1, 0, "live"] } });
  assert.deepEqual(line.socket.of(8).map((frame) => frame[3]), [2]);
  line.answer(8, { epoch: 1, offset: 1 });
  assert.deepEqual(await keyed, { epoch: 1, offset: 1 });
});

test("close says FIN, waits for its confirmation up to a deadline, and leaves no timer", async () => {
  const confirmed = (line) => line.socket.give([15]);
  const unconfirmed = (line) => line.clock.advance(5000);
  const crossed = (line) => line.socket.give([14, 1, "draining"]);
  for (const confirm of [confirmed, unconfirmed, crossed]) {
    const line = await Line.opened();
    await line.join("group:x");
    const closing = line.session.close();
    assert.deepEqual(line.socket.frames.at(-1), [14, 0, "bye", {}]);
    line.socket.give([4, 1, 1], message(1));
    assert.deepEqual(line.socket.frames.at(-1), [14, 0, "bye", {}]);
    confirm(line);
    await closing;
    await line.session.close();
    assert.deepEqual([line.session.state, line.session.closed.code, line.socket.closedWith], ["closed", 0, 4000]);
    assert.equal(line.clock.pending, 0);
  }
});

test("close between two connections ends the waiting", async () => {
  const line = await Line.opened();
  line.socket.drop();
  await line.session.close();
  line.clock.advance(1e9);
  assert.equal(line.sockets.length, 1);
});

test("connect gives up at its deadline and does not try again without reconnect", async () => {
  const line = new Line();
  line.clock.advance(10_000);
  await assert.rejects(line.connecting, /not open in time/);
  assert.equal(line.clock.pending, 0);
  const once = new Line({ reconnect: false });
  once.socket.drop();
  await assert.rejects(once.connecting, Closed);
  assert.equal(once.sockets.length, 1);
});

test("what is no frame ends the session", async () => {
  const again = '[1,1,{"session":"s","user":"u"}]';
  for (const body of ["", "{}", "[]", "[99]", '["x"]', "[9,1,1,1]", '[9,"g:x",0,1]', again, "[15]", "[14]"]) {
    const line = await Line.opened();
    line.socket.onmessage({ data: body });
    assert.ok(line.session.closed instanceof ProtocolViolation, body);
  }
});

test("any value is a frame or a violation", async () => {
  for (let seed = 1; seed <= 300; seed += 1) {
    const random = seeded(seed);
    const line = await Line.opened({ reconnect: false });
    for (let n = 0; n < 10 && !line.session.closed; n += 1) {
      const rest = Array.from({ length: Math.floor(random() * 5) }, () => anyValue(random, 3));
      line.socket.onmessage({ data: json.encode([Math.floor(random() * 18), ...rest]) });
    }
    line.session.close();
    line.clock.advance(5000);
    assert.ok(line.session.closed instanceof Closed, `seed ${seed}`);
  }
});

test("iteration gives messages and events in order and ends with the session", async () => {
  const line = await Line.opened();
  await line.join("group:x");
  const iteration = line.session[Symbol.asyncIterator]();
  line.socket.give(message(1), message(3));
  const seen = [];
  const reading = (async () => {
    for await (const item of { [Symbol.asyncIterator]: () => iteration }) seen.push(item.kind ?? item.offset);
  })();
  line.session.close();
  line.socket.give([15]);
  await reading;
  assert.deepEqual(seen, [1, "gap", 3]);
});

test("iteration throws what ended the session, and when it falls behind", async () => {
  const line = await Line.opened({ queueMessages: 2 });
  await line.join("group:x");
  const slow = line.session[Symbol.asyncIterator]();
  line.socket.give(message(1), message(2), message(3));
  assert.deepEqual([(await slow.next()).value.offset, (await slow.next()).value.offset], [1, 2]);
  await assert.rejects(slow.next(), /fell behind/);
  const other = line.session[Symbol.asyncIterator]();
  line.socket.give([14, 604, "kicked"]);
  await assert.rejects(other.next(), /604: kicked/);
});

test("JSON has no whitespace and carries bytes", () => {
  const bytes = { a: "é", b: new Uint8Array([255]), c: Buffer.from([1]) };
  assert.equal(json.encode([9, bytes]), '[9,{"a":"é","b":{"$bin":"/w=="},"c":{"$bin":"AQ=="}}]');
  for (let seed = 1; seed <= 100; seed += 1) {
    const value = [anyValue(seeded(seed))];
    assert.deepEqual(json.decode(json.encode(value)), value, `seed ${seed}`);
  }
});

test("a number's range is its class", () => {
  const classes = [0, 1, 199, 200, 399, 400, 600, 4321].map(closeClass);
  assert.deepEqual(classes, ["stop", "resume", "resume", "fresh", "fresh", "stop", "stop", "stop"]);
});
