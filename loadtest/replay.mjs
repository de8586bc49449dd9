/**
 * The JavaScript members of `replay.py`: one session a group, which sends its share of the lines and tells what it hears.
 *
 * First line on standard input: {tcp, ws, round, groups: {group: [line, …]}}. Then each `go` sends the next `round` lines
 * of each group, and `end` closes. On standard output, one JSON array a line: ["joined", group, epoch, offset],
 * ["heard", group, [[epoch, offset, sender, line], …]], ["event", group, kind], ["closed", group, dropped].
 */

import readline from "node:readline";

import { connect } from "../client/js/holdfast.mjs";
import { connectTcp } from "../client/js/holdfast-tcp.mjs";

const WINDOW = 64;
const say = (...words) => process.stdout.write(`${JSON.stringify(words)}\n`);

/** WebSocket and JSON where Node has a WebSocket (22 and later), TCP and MessagePack else and for every other group. */
function dial({ tcp, ws }, number) {
  const options = { user: `js-${number}`, reconnect: false };
  return globalThis.WebSocket && number % 2 === 0 ? connect(ws, options) : connectTcp(tcp, options);
}

class Member {
  #session; #group; #lines; #sent = 0; #heard = [];

  static async open(config, group, number) {
    const member = new Member();
    member.#group = group;
    member.#lines = config.groups[group];
    const session = member.#session = await dial(config, number);
    session.on("message", (message) => member.#hear(message));
    session.on("event", ({ kind }) => say("event", group, kind));
    const { epoch, offset } = await session.join(group);
    say("joined", group, epoch, offset);
    return member;
  }

  #hear({ epoch, offset, sender, data }) {
    // What one piece of input brought is told in one line.
    if (this.#heard.length === 0) setImmediate(() => say("heard", this.#group, this.#heard.splice(0)));
    this.#heard.push([epoch, offset, sender, data]);
  }

  async send(count) {
    const end = Math.min(this.#lines.length, this.#sent + count);
    while (this.#sent < end) {
      const part = this.#lines.slice(this.#sent, Math.min(end, this.#sent + WINDOW));
      this.#sent += part.length;
      await Promise.all(part.map((line) => this.#session.publish(this.#group, line)));
    }
  }

  async close() {
    await this.#session.close();
    say("closed", this.#group, this.#session.droppedCount);
  }
}

const input = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const config = JSON.parse((await input.next()).value);
const members = await Promise.all(Object.keys(config.groups).map((group, number) => Member.open(config, group, number)));
for await (const word of input) {
  if (word === "end") break;
  await Promise.all(members.map((member) => member.send(config.round)));
}
await Promise.all(members.map((member) => member.close()));
process.exit(0);
