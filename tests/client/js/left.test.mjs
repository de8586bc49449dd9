/** A resumed session that still has a channel which was left: it is left again, and nothing is heard of it. */

import assert from "node:assert/strict";
import test from "node:test";

import { RequestRefused, RequestTimeout } from "../../../client/js/holdfast.mjs";
import { Left, REMEMBERED_MAX } from "../../../client/js/holdfast-left.mjs";
import { Line, message } from "./harness.mjs";

const LISTED = { "group:x": [1, 9, "replayed"] };
const JOIN = 6, LEAVE = 7, PUBLISH = 8;

/** The connection breaks and comes back; the requests that the client sends at once. */
function back(line, channels = {}, values = {}, wait = 250) {
  if (line.socket.closedWith === undefined) line.socket.drop();
  line.clock.advance(wait);
  line.socket.welcome({ resumed: true, channels, ...values });
  return line.socket.frames.filter(([type]) => [JOIN, LEAVE, PUBLISH].includes(type));
}

const types = (frames) => frames.map(([type]) => type);

/** A session that was in its channel up to offset 7 and has left it. */
async function left(answered = true) {
  const line = await Line.opened();
  await line.join("group:x", 1, 7);
  line.leaving = line.session.leave("group:x");
  line.leaving.catch(() => {});
  if (answered) {
    line.answer(LEAVE, {});
    await line.leaving;
  }
  return line;
}

test("what was left is left again before the session is open", async () => {
  const line = await left();
  const opened = [];
  line.session.on("state", (state) => opened.push([state, line.socket.of(LEAVE).length]));
  assert.deepEqual(back(line, LISTED).map((frame) => frame[2]), ["group:x"]);
  assert.deepEqual(opened, [["reconnecting", 1], ["open", 1]]);
  assert.equal(line.session.joined.size, 0);
  assert.equal(line.session.position("group:x"), null);
});

test("nothing is delivered of it up to the answer", async () => {
  for (const outcome of ["live", "replayed", "gap", "reset"]) {
    const line = await left();
    assert.deepEqual(types(back(line, { "group:x": [2, 9, outcome] })), [LEAVE]);
    line.socket.give(message(8), [13, "group:x", "gap", { from: 9, to: 9 }], [13, "group:x", "joined", {}]);
    line.answer(LEAVE, {});
    assert.deepEqual(line.items, []);
    assert.equal(line.session.position("group:x"), null);
    line.clock.advance(60_000);
    assert.deepEqual(line.socket.of(10), [], "nothing of it is acknowledged");
    line.session.close();
  }
});

test("it is left again each time that it is listed, and other channels go on", async () => {
  const line = await left();
  for (let time = 0; time < 3; time += 1) assert.deepEqual(types(back(line, LISTED)), [LEAVE]);
  assert.deepEqual(back(line), []);
  assert.deepEqual(types(back(line, LISTED)), [LEAVE]);
  await line.join("group:y");
  line.socket.give(message(8), message(1, 1, "group:y"));
  assert.deepEqual(line.items, [1]);
});

test("a channel that was joined again is taken back", async () => {
  const line = await left();
  await line.join("group:x", 1, 7);
  assert.deepEqual(back(line, LISTED), []);
  line.socket.give(message(8), message(9));
  assert.deepEqual(line.items, [8, 9]);
});

test("a join behind a leave counts before either is answered", async () => {
  const line = await left(false);
  line.session.join("group:x").catch(() => {});
  assert.deepEqual(types(back(line, LISTED)), [LEAVE, JOIN]);
  line.socket.give(message(8));
  assert.deepEqual(line.items, [8]);
});

test("a join while it is left again begins behind the answer", async () => {
  const line = await left();
  back(line, LISTED);
  const joining = line.session.join("group:x", { since: { epoch: 1, offset: 7 } });
  line.socket.give(message(8));
  line.answer(LEAVE, {});
  line.answer(JOIN, { epoch: 1, offset: 9, outcome: "replayed" });
  await joining;
  line.socket.give(message(8), message(9));
  assert.deepEqual(line.items, [8, 9]);
  assert.deepEqual([...line.session.joined], ["group:x"]);
});

test("a new session forgets what was left", async () => {
  const line = await left();
  line.socket.give([14, 201, "session_expired", {}]);
  assert.deepEqual(back(line, {}, { resumed: false, session: "s2" }), []);
  assert.deepEqual(back(line, LISTED), []);
  line.socket.give(message(9));
  assert.deepEqual(line.items, [9]);
});

test("a leave without an answer is asked again at once and answered", async () => {
  const line = await left(false);
  assert.deepEqual(types(back(line, LISTED)), [LEAVE]);
  line.socket.give(message(8));
  line.answer(LEAVE, {});
  assert.equal(await line.leaving, undefined);
  assert.deepEqual(line.items, []);
  assert.equal(line.session.joined.size, 0);
});

test("a leave without an answer is done when the channel is not listed", async () => {
  for (const values of [{}, { resumed: false, session: "s2" }]) {
    const line = await left(false);
    assert.deepEqual(back(line, {}, values), []);
    await line.leaving;
    assert.equal(line.session.joined.size, 0);
    assert.deepEqual(line.items, []);
  }
});

test("a leave that came to its deadline is still what was wanted", async () => {
  const line = await left(false);
  line.clock.advance(5000);
  await assert.rejects(line.leaving, RequestTimeout);
  assert.deepEqual(types(back(line, LISTED)), [LEAVE]);
  assert.equal(line.session.joined.size, 0);
});

test("what was asked before a leave comes before it", async () => {
  const line = await Line.opened();
  await line.join("group:x", 1, 7);
  line.session.publish("group:x", "bye", { key: "key" });
  line.session.leave("group:x");
  assert.deepEqual(types(back(line, LISTED)), [PUBLISH, LEAVE]);
  line.socket.give(message(8));
  line.answer(PUBLISH, { epoch: 1, offset: 10 });
  line.answer(LEAVE, {});
  assert.deepEqual(line.items, [8]);
  assert.deepEqual(types(back(line, LISTED)), [LEAVE]);
});

test("who was refused to leave has not left, and a second leave takes nothing from the first", async () => {
  const line = await left();
  for (const channel of ["user:ann", "group:x"]) {
    const refused = line.session.leave(channel);
    line.refuse(LEAVE, 402, "not_joined");
    await assert.rejects(refused, RequestRefused);
  }
  const frames = back(line, { ...LISTED, "user:ann": [1, 1, "replayed"] });
  assert.deepEqual(frames.map((frame) => frame[2]), ["group:x"]);
  line.socket.give(message(1, 1, "user:ann"));
  assert.deepEqual(line.items, [1]);
});

test("without an answer nothing is heard of it until it is joined", async () => {
  for (const answer of ["refused", "nothing"]) {
    const line = await left();
    back(line, LISTED);
    if (answer === "refused") line.refuse(LEAVE, 5, "unavailable");
    else line.clock.advance(5000);
    line.socket.give(message(8));
    assert.deepEqual(line.items, []);
    await line.join("group:x", 1, 9);
    line.socket.give(message(10));
    assert.deepEqual(line.items, [10]);
    line.session.close();
  }
});

test("another process leaves it again too", async () => {
  const line = await left();
  const state = JSON.parse(JSON.stringify(line.session.suspend()));
  assert.deepEqual(state.left, ["group:x"]);
  const other = new Line({ state });
  other.socket.welcome({ resumed: true, channels: LISTED });
  await other.connecting;
  assert.deepEqual(other.socket.of(LEAVE).map((frame) => frame[2]), ["group:x"]);
});

test("the oldest are forgotten when there are too many", () => {
  const memory = new Left();
  for (let number = 0; number < REMEMBERED_MAX + 2; number += 1) memory.asks(`group:${number}`);
  assert.equal(memory.channels.length, REMEMBERED_MAX);
  assert.equal(memory.channels[0], "group:2");
});
