/** MessagePack and real sockets: the TCP client against the gateway at HOLDFAST_TEST_TCP, another implementation's. */

import assert from "node:assert/strict";
import net from "node:net";
import test from "node:test";

import { connectTcp, msgpack } from "../../../client/js/holdfast-tcp.mjs";
import { anyValue, seeded } from "./harness.mjs";

const url = process.env.HOLDFAST_TEST_TCP;

test("what is encoded is decoded, and anything cut short is refused", () => {
  for (let seed = 1; seed <= 200; seed += 1) {
    const value = anyValue(seeded(seed));
    const body = msgpack.encode(value);
    assert.deepEqual(msgpack.decode(body), value, `seed ${seed}`);
    for (let length = 0; length < Math.min(body.length, 50); length += 1) {
      assert.throws(() => msgpack.decode(body.subarray(0, length)), `seed ${seed}`);
    }
  }
});

test("numbers at every limit survive", () => {
  const powers = [7, 8, 15, 16, 31, 32, 52].map((bits) => 2 ** bits);
  const limits = powers.flatMap((power) => [power - 1, power, -power, -power - 1]);
  for (const value of [...limits, 0, -0, -32, -33, 1.5, Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER, 1e300]) {
    assert.ok(Object.is(msgpack.decode(msgpack.encode(value)), value), String(value));
  }
});

test("a key named __proto__ is data", () => {
  const value = msgpack.decode(msgpack.encode(JSON.parse('{"__proto__":1}')));
  assert.deepEqual(Object.keys(value), ["__proto__"]);
});

test("values come back from another implementation as they were, in order", async () => {
  const session = await connectTcp(url, { user: "js" });
  const received = [];
  session.on("message", (message) => received.push(message));
  await session.join("group:values");
  const random = seeded(7);
  const values = Array.from({ length: 200 }, () => anyValue(random));
  await Promise.all(values.map((value) => session.publish("group:values", value)));
  const { messages } = await session.history("group:values", { limit: 5, reverse: true });
  await session.close();
  assert.deepEqual(received.map((message) => message.data), values);
  assert.deepEqual(received.map((message) => message.offset), values.map((_, index) => index + 1));
  assert.deepEqual(messages.map((message) => message.data), values.slice(-5).reverse());
  assert.deepEqual([session.state, session.closed.code, session.user], ["closed", 0, "js"]);
});

test("nobody listening is said within the deadline", async () => {
  const server = net.createServer().listen(0, "127.0.0.1");
  await new Promise((resolve) => { server.once("listening", resolve); });
  const { port } = server.address();
  await new Promise((resolve) => { server.close(resolve); });
  await assert.rejects(connectTcp(`tcp://127.0.0.1:${port}`, { reconnect: false }), /ECONNREFUSED/);
});

test("a connection that is cut comes back by itself", async () => {
  const sockets = [];
  const [, host, port] = /tcp:\/\/(.*):(\d+)/.exec(url);
  const relay = net.createServer((near) => {
    const far = net.connect(Number(port), host);
    sockets.push(near);
    near.on("error", () => {}).on("close", () => far.destroy());
    far.on("error", () => {}).on("close", () => near.destroy());
    near.pipe(far).pipe(near);
  });
  relay.listen(0, "127.0.0.1");
  await new Promise((resolve) => { relay.once("listening", resolve); });
  const session = await connectTcp(`tcp://127.0.0.1:${relay.address().port}`, { user: "js", backoffBaseMs: 10 });
  await session.join("group:relay");
  const back = new Promise((resolve) => { session.on("state", (state) => { if (state === "open") resolve(); }); });
  sockets[0].destroy();
  await back;
  assert.deepEqual([...session.joined], ["group:relay"]);
  assert.equal((await session.publish("group:relay", "again")).offset, 1);
  await session.close();
  await new Promise((resolve) => { relay.close(resolve); });
});
