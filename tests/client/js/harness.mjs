/** A clock that is advanced and a WebSocket without a network: what happens in these tests happens in one order. */

import { connect } from "../../../client/js/holdfast.mjs";

export class VirtualClock {
  #now = 1000; #timers = new Map(); #next = 1;
  random = () => 0.5;

  now = () => this.#now;

  setTimeout = (act, ms) => {
    this.#timers.set(this.#next, { at: this.#now + Math.max(0, ms), act });
    return this.#next++;
  };

  clearTimeout = (id) => this.#timers.delete(id);

  get pending() {
    return this.#timers.size;
  }

  /** Let time pass, firing timers in order. */
  advance(ms) {
    const end = this.#now + ms;
    for (let fired = 0; ; fired += 1) {
      if (fired > 10_000) throw new Error("timers that never end");
      const due = [...this.#timers].filter(([, timer]) => timer.at <= end).sort(([, a], [, b]) => a.at - b.at)[0];
      if (!due) break;
      this.#timers.delete(due[0]);
      this.#now = due[1].at;
      due[1].act();
    }
    this.#now = end;
  }
}

/** A session on fake sockets: `sockets` are the connections, newest last; frames are arrays on both sides. */
export class Line {
  sockets = [];
  clock = new VirtualClock();
  items = [];

  constructor(options = {}, url = "ws://gateway:7401/ws") {
    const line = this;
    class FakeSocket {
      frames = []; closedWith = undefined;
      constructor(url) {
        this.url = url;
        line.sockets.push(this);
      }
      send(body) { this.frames.push(JSON.parse(body)); }
      close(code) { this.closedWith = code ?? null; }
      give(...frames) { for (const frame of frames) this.onmessage({ data: JSON.stringify(frame) }); }
      of(type) { return this.frames.filter((frame) => frame[0] === type); }
      drop() { this.onclose({ code: 1006, reason: "" }); }
      welcome(values = {}) {
        this.onopen({});
        const [, id] = this.frames[0];
        const given = { session: "s1", user: "ann", resume_token: "r1", node: "n", ping: 30, misses: 3, channels: {} };
        this.give([1, id, { ...given, ...values }]);
      }
    }
    const given = { user: "ann", WebSocket: FakeSocket, clock: this.clock, ...options };
    this.connecting = connect(url, given);
  }

  get socket() {
    return this.sockets.at(-1);
  }

  static async opened(options = {}, welcome = {}, url = undefined) {
    const line = new Line(options, url);
    line.socket.welcome(welcome);
    line.session = await line.connecting;
    line.session.on("message", (message) => line.items.push(message.offset));
    line.session.on("event", ({ kind, details }) => line.items.push({ kind, ...details }));
    line.socket.frames.length = 0;
    return line;
  }

  async join(channel, epoch = 1, offset = 0) {
    const joining = this.session.join(channel);
    this.answer(6, { epoch, offset, outcome: "live" });
    return joining;
  }

  /** Answer the last request of this type. */
  answer(type, value) {
    this.socket.give([2, this.socket.of(type).at(-1)[1], value]);
  }

  refuse(type, code, message, options = {}) {
    this.socket.give([3, this.socket.of(type).at(-1)[1], code, message, options]);
  }
}

export const message = (offset, epoch = 1, channel = "group:x") => [9, channel, offset, offset, { epoch }];

/** A small generator of random numbers (mulberry32): one seed, one run. */
export function seeded(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Any value that both encodings carry. */
export function anyValue(random, depth = 0) {
  const pick = Math.floor(random() * (depth > 3 ? 7 : 9));
  const size = Math.floor(random() * 5);
  switch (pick) {
    case 0: return null;
    case 1: return random() < 0.5;
    case 2: return Math.floor((random() - 0.5) * 2 ** (random() * 54));
    case 3: return (random() - 0.5) * 1e9;
    case 4: return [..."aé你😀\u0000".repeat(size * size)].slice(0, Math.floor(random() * 300)).join("");
    case 5: return Uint8Array.from({ length: Math.floor(random() * 600) }, () => random() * 256);
    case 6: return Math.floor((random() - 0.5) * 600);
    case 7: return Array.from({ length: size * 5 }, () => anyValue(random, depth + 1));
    default: {
      const entries = Array.from({ length: size * 5 }, (_, n) => [`k${n}`, anyValue(random, depth + 1)]);
      return Object.fromEntries(entries);
    }
  }
}
