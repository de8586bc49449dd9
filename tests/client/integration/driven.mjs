/**
 * The JavaScript client on a lead: connects to argv[2] as argv[3], takes one call a line, and prints all that happens.
 *
 * In: `{"call": "join", "args": […]}`. Out, a line each: `{"answer": …}` or `{"refused": …}` in the calls' order, and
 * `{"message": …}`, `{"event": …}`, `{"state": …}`, `{"closed": …}` as they come.
 */

import { createInterface } from "node:readline";

import { connect } from "../../../client/js/holdfast.mjs";
import { connectTcp } from "../../../client/js/holdfast-tcp.mjs";
import { SmallWebSocket } from "./small_websocket.mjs";

const [url, user] = process.argv.slice(2);
const tell = (what) => console.log(JSON.stringify(what));
const told = ({ code, reason, message }) => ({ code, reason, message });

const options = { user, token: process.env.HOLDFAST_TOKEN, backoffBaseMs: 50, backoffCapMs: 200 };
const session = await (url.startsWith("tcp:")
  ? connectTcp(url.split(","), options)
  : connect(url.split(","), { ...options, WebSocket: globalThis.WebSocket ?? SmallWebSocket }));
session.on("message", (message) => tell({ message }));
session.on("event", (event) => tell({ event }));
session.on("state", (state) => tell({ state, endpoint: session.endpoint }));
session.on("close", (closed) => tell({ closed: told(closed) }));
tell({ opened: { id: session.id, user: session.user, endpoint: session.endpoint } });

for await (const line of createInterface({ input: process.stdin })) {
  const { call, args } = JSON.parse(line);
  try {
    tell({ answer: (await session[call](...args)) ?? null });
  } catch (error) {
    tell({ refused: told(error) });
  }
}
