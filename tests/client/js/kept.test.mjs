/** Coming back over a replay or a gap, and going on elsewhere from what was delivered. */

import assert from "node:assert/strict";
import test from "node:test";

import { Line, message } from "./harness.mjs";

const gap = (from, to) => [13, "group:x", "gap", { from, to, reason: "trimmed" }];

/** The connection breaks and the session is resumed; the HELLO. */
function back(line, channels, values = {}) {
  line.socket.drop();
  line.clock.advance(250);
  line.socket.welcome({ resumed: true, channels, ...values });
  return line.socket.of(0)[0][2];
}

test("what is replayed of a channel of unknown position is delivered", async () => {
  const line = await Line.opened();
  back(line, { "group:x": [1, 7, "replayed"] });
  line.socket.give(message(6), message(7), message(8));
  assert.deepEqual(line.items, [6, 7, 8]);
});

test("a new session drops what the one before had of its user's channel", async () => {
  const line = await Line.opened({}, { channels: { "user:ann": [1, 0, "live"] } });
  line.socket.give(message(1, 1, "user:ann"), message(2, 1, "user:ann"));
  line.socket.give([14, 201, "session_expired", {}]);
  line.clock.advance(250);
  line.socket.welcome({ session: "s2", channels: { "user:ann": [1, 3, "replayed"] } });
  for (const offset of [1, 2, 3]) line.socket.give(message(offset, 1, "user:ann"));
  assert.deepEqual(line.items, [1, 2, 3]);
});

test("a gap up to the position told is where the channel stands, and is told once", async () => {
  const line = await Line.opened();
  await line.join("group:x", 1, 4);
  back(line, { "group:x": [3, 9, "gap"] });
  line.socket.give(gap(5, 9));
  const hello = back(line, { "group:x": [3, 9, "live"] });
  assert.deepEqual(hello.resume, { "group:x": [3, 9] });
  line.socket.give(gap(5, 9), message(10, 3));
  assert.deepEqual(line.items, [{ kind: "gap", from: 5, to: 9, reason: "trimmed" }, 10]);
});

test("what was not acknowledged is acknowledged on the next connection, but not to a new session", async () => {
  const line = await Line.opened();
  await line.join("group:x");
  line.socket.give(message(1), message(2));
  back(line, { "group:x": [1, 2, "live"] });
  line.clock.advance(15_000);
  assert.deepEqual(line.socket.of(10), [[10, { "group:x": 2 }]]);
  line.socket.give(message(3));
  back(line, {}, { resumed: false, session: "s2" });
  line.clock.advance(15_000);
  assert.deepEqual(line.socket.of(10), []);
});

test("a suspended session goes on elsewhere", async () => {
  const line = await Line.opened();
  await line.join("group:x");
  line.socket.give(message(1), message(2));
  const state = JSON.parse(JSON.stringify(line.session.suspend()));
  assert.equal(line.session.state, "closed");
  assert.deepEqual(line.socket.of(14), []);
  const other = new Line({ state });
  other.socket.welcome({ resumed: true, channels: { "group:x": [1, 3, "replayed"] } });
  other.session = await other.connecting;
  const items = [];
  other.session.on("message", ({ offset }) => items.push(offset));
  const hello = other.socket.of(0)[0][2];
  assert.deepEqual([hello.session, hello.token, hello.resume], ["s1", "r1", { "group:x": [1, 2] }]);
  other.socket.give(message(2), message(3));
  assert.deepEqual(items, [3]);
  assert.deepEqual([...other.session.joined], ["group:x"]);
});

test("what was not exported is refused", async () => {
  const line = new Line();
  line.socket.welcome();
  await line.connecting;
  const bad = new Line({ state: { session: 1 } });
  await assert.rejects(bad.connecting, TypeError);
});
