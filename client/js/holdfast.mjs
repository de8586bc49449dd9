/**
 * The JavaScript client of Holdfast: protocol version 1, JSON over WebSocket, for browsers and Node.
 *
 * No dependencies and no build: this file and those that it imports. Time, timers, randomness and the WebSocket class
 * are options, so that tests run on a clock of their own and Node 18, which has no WebSocket, can be given one.
 *
 * @typedef {{epoch: number, offset: number}} Position
 * @typedef {{channel: string, epoch: number, offset: number, data: any, sender: ?string, time: ?number}} Message
 * @typedef {{channel: string, kind: string, details: Object<string, any>}} ChannelEvent
 *   The gateway's kinds are `joined`, `left`, `gap`, `expired`. This client adds `reset` (the position moved without
 *   common history), `gap` for offsets passed over unannounced, and `left` when a channel cannot be joined again.
 * @typedef {{sessions: {session: string, user: string}[], users: number, count: number}} Presence
 * @typedef {"connecting" | "open" | "reconnecting" | "closed"} State
 * @typedef {{now: () => number, setTimeout: Function, clearTimeout: Function, random: () => number}} Clock
 * @typedef {{encode: (frame: any[]) => any, decode: (body: any) => any}} Codec
 * @typedef {import("./holdfast-wire.mjs").Options} Options
 */

import { Dialer } from "./holdfast-endpoints.mjs";
import { Left } from "./holdfast-left.mjs";
import { ItemQueue, Pulse, Requests, backoffDelay, systemClock } from "./holdfast-pulse.mjs";
import {
  Closed, ERROR, EVENT, FIN, FIN_ACK, HELLO, HISTORY, JOIN, LEAVE, MESSAGE, PING, PONG, PRESENCE, PUBLISH, Positions,
  ProtocolViolation, REFRESH, REPLY, RequestRefused, WELCOME, byteLength, check, closeClass, closeSocket,
  closedByStatus, credentials, gone, isMap, isRequestOnly, isWhole, json, readFin, readHistory, readMessage,
  readPosition, readPresence, readRefreshed, readState, readWelcome, resetEvent, same,
} from "./holdfast-wire.mjs";

export {
  Closed, HoldfastError, Positions, ProtocolViolation, RequestInterrupted, RequestRefused, RequestTimeout, closeClass,
} from "./holdfast-wire.mjs";

export const VERSION = "0.1.0";
const BYE = 0, HELLO_TIMEOUT_MS = 5000, FIN_TIMEOUT_MS = 5000;
// Room for everything in a HELLO but the positions.
const HELLO_REST_BYTES = 8192;
const WHILE_GREETING = new Set([WELCOME, ERROR, PING, PONG, FIN, FIN_ACK]);

/** Connect, greet, and resolve to an open session. @param {string | string[]} url @param {Options} [options] */
export function connect(url, options = {}) {
  return Session.connect(url, options);
}

/**
 * A live session; made by `connect`. Listen with `on("message" | "event" | "state" | "rtt" | "close", fn)` or iterate:
 * `for await (const item of session)` gives messages and events (those have a `kind`), each once.
 */
export class Session {
  #dialer; #options; #clock; #codec; #socket = null; #listeners = new Map(); #queues = new Set();
  #requests; #joined = new Set(); #rejoining = new Map(); #positions = new Positions(); #left = new Left();
  #welcome = null; #mayResume = false; #resuming = false; #helloId = 0; #phase = "idle"; #attempt = 0; #leaving = false;
  #timer = null; #phaseTimer = null; #opening = null; #ended = null; #unacknowledged = {};
  /** @type {?Pulse} */
  #pulse = null;

  /** Use `connect`. */
  constructor(url, options) {
    this.#options = {
      reconnect: true, requestTimeoutMs: 5000, openTimeoutMs: 10000, backoffBaseMs: 500, backoffCapMs: 30000,
      queueMessages: 10000, WebSocket: globalThis.WebSocket, ...options,
    };
    if (!this.#options.WebSocket) throw new TypeError("no WebSocket here: give one as options.WebSocket");
    this.#clock = this.#options.clock ?? systemClock;
    this.#dialer = new Dialer([url].flat(), this.#options, this.#clock);
    this.#codec = this.#options.codec ?? json;
    this.#requests = new Requests(this.#clock, this.#codec, this.#options.requestTimeoutMs);
    /** @type {State} */
    this.state = "connecting";
    /** @type {?number} The last round trip, ms. */
    this.rttMs = null;
    /** @type {?Closed} Why the session ended. */
    this.closed = null;
    this.reconnectCount = 0;
    if (options.state) {
      this.#welcome = readState(options.state, this.#positions);
      this.#requests.bytesMax = this.#welcome.maxFrame;
      this.#mayResume = true;
      this.#joined = new Set(options.state.joined);
      this.#left = new Left(options.state.left);
    }
  }

  static connect(url, options) {
    return new Promise((resolve, reject) => {
      const session = new Session(url, options);
      const timer = session.#clock.setTimeout(() => {
        const last = session.#ended ? `: ${session.#ended.reason}` : "";
        session.#stop(new Closed(null, `not open in time${last}`, "stop"));
      }, session.#options.openTimeoutMs);
      session.#opening = (error) => {
        session.#clock.clearTimeout(timer);
        session.#opening = null;
        if (error) reject(error);
        else resolve(session);
      };
      session.#dial();
    });
  }

  get id() { return this.#welcome?.session ?? ""; }
  get user() { return this.#welcome?.user ?? ""; }
  /** The gateway's node that serves this session now. */
  get node() { return this.#welcome?.node ?? ""; }
  /** The URL of the connection that there is now, or was last. */
  get endpoint() { return this.#dialer.url; }
  get joined() { return new Set(this.#joined); }
  get droppedCount() { return this.#positions.droppedCount; }

  /** @returns {?Position} the last position received of a channel */
  position(channel) { return this.#positions.get(channel); }

  /** Listen; returns the function that stops it. @param {string} name @param {(value: any) => void} fn */
  on(name, fn) {
    if (!this.#listeners.has(name)) this.#listeners.set(name, new Set());
    this.#listeners.get(name).add(fn);
    return () => this.off(name, fn);
  }

  off(name, fn) { this.#listeners.get(name)?.delete(fn); }

  /**
   * Receive this channel's messages, from the returned position on, or from `since` as far as the log reaches.
   * @param {string} channel @param {{since?: Position, timeoutMs?: number}} [options] @returns {Promise<Position>}
   */
  async join(channel, { since, timeoutMs } = {}) {
    // So that a hole right after `since` is seen too.
    if (since && !this.#joined.has(channel)) this.#positions.held.set(channel, { ...since });
    const before = this.#positions.held.get(channel);
    try {
      return await this.#ask(JOIN, channel, [since ? { since: [since.epoch, since.offset] } : {}], timeoutMs, {
        read: (value) => this.#onJoined(channel, value, before),
      });
    } catch (error) {
      if (!this.#joined.has(channel)) this.#positions.held.delete(channel);
      throw error;
    }
  }

  /** Receive no more of this channel. */
  leave(channel, { timeoutMs } = {}) {
    const read = () => { if (!this.#left.answered(channel)) this.#onLeft(channel); };
    return this.#ask(LEAVE, channel, [], timeoutMs, { read, failed: (error) => this.#left.failed(channel, error) });
  }

  /**
   * Publish. With `key` (up to 64 bytes) the request survives a reconnect and is delivered once.
   * @param {string} channel @param {any} data @param {{key?: string, timeoutMs?: number}} [options]
   * @returns {Promise<Position>}
   */
  publish(channel, data, { key, timeoutMs } = {}) {
    const read = (value) => readPosition(value, "PUBLISH");
    return this.#ask(PUBLISH, channel, [data, key ? { key } : {}], timeoutMs, { read, repeatable: Boolean(key) });
  }

  /**
   * Past messages, oldest first; with `reverse` newest first, which is how to get the latest `limit` of them.
   * @param {string} channel
   * @param {{since?: Position, limit?: number, reverse?: boolean, timeoutMs?: number}} [options]
   * @returns {Promise<{messages: Message[], position: Position}>}
   */
  history(channel, { since, limit, reverse, timeoutMs } = {}) {
    const given = { since: since && [since.epoch, since.offset], limit, reverse };
    return this.#ask(HISTORY, channel, [given], timeoutMs, { read: (value) => readHistory(channel, value) });
  }

  /** Who is in a channel now. @returns {Promise<Presence>} */
  presence(channel, { timeoutMs } = {}) {
    return this.#ask(PRESENCE, channel, [], timeoutMs, { read: readPresence });
  }

  /** Give the live session a new token of the same user; resolves to when that ends, seconds since 1970, or null. */
  refresh(token, { timeoutMs } = {}) {
    const read = (value) => Object.assign(this.#welcome, readRefreshed(value)) && (value.expires ?? null);
    return this.#ask(REFRESH, token, [], timeoutMs, { read, repeatable: false });
  }

  /** Measure the round trip now rather than with the next heartbeat; the result comes as `rtt`. */
  ping() {
    if (this.#phase === "open") this.#send(this.#pulse.ping(this.#clock.now()));
  }

  /** What `connect({ state })` goes on with, elsewhere too, from what was delivered here; null without a session. */
  export() {
    if (!this.#mayResume) return null;
    const { session, resumeToken, user } = this.#welcome;
    const [joined, left, positions] = [[...this.#joined], this.#left.channels, this.#positions.all()];
    return { session, resume_token: resumeToken, user, joined, positions, left };
  }

  /** Let the connection go without a word; the session is over here, and `connect({ state })` goes on with it. */
  suspend() {
    const state = this.export();
    this.#leaving = true;
    this.#stop(new Closed(null, "suspended", "stop"));
    return state;
  }

  /** Say FIN, wait for its confirmation within a deadline, and close; the session is over. May be called twice. */
  close() {
    this.#leaving = true;
    if (this.#phase === "greeting" || this.#phase === "rejoining" || this.#phase === "open") {
      this.#flushAcks();
      this.#send([FIN, BYE, "bye", {}]);
      this.#phase = "closing";
      this.#after(FIN_TIMEOUT_MS, () => this.#end(new Closed(BYE, "bye; the gateway did not confirm", "stop")));
    } else if (this.#phase !== "closing") {
      this.#stop(new Closed(BYE, "bye", "stop"));
    }
    return this.closed ? Promise.resolve() : new Promise((resolve) => { this.on("close", () => resolve()); });
  }

  /** Messages and events from now on; ends when the session was closed here, throws when it ended otherwise. */
  [Symbol.asyncIterator]() {
    const queue = new ItemQueue(this.#options.queueMessages);
    this.#queues.add(queue);
    if (this.closed) queue.end(this.#leaving ? null : this.closed);
    return queue.iterate(() => this.#queues.delete(queue));
  }

  // Inside: the connection. Phases: idle, dialling, greeting, rejoining, open, closing (FIN sent).

  #dial() {
    this.#phase = "dialling";
    this.#dialer.dial((socket) => this.#dialed(socket), (closed) => this.#lost(closed));
  }

  #dialed(socket) {
    this.#socket = socket;
    let failure = null;
    socket.onmessage = (event) => this.#current(socket, () => this.#receive(event.data));
    socket.onerror = (event) => { failure ??= event?.message || "the connection failed"; };
    socket.onclose = (event) => this.#current(socket, () => this.#lost(closedByStatus(event, failure)));
    this.#after(this.#options.openTimeoutMs, () => this.#end(gone("not connected in time")));
    this.#current(socket, () => this.#greet(socket));
  }

  /** Run for the connection of now only: what an older one still says does not count, what is no frame ends it. */
  #current(socket, act) {
    if (socket !== this.#socket) return;
    try {
      act();
    } catch (error) {
      if (!(error instanceof Closed)) throw error;
      this.#end(error);
    }
  }

  async #greet(socket, resume = this.#mayResume) {
    let { token } = this.#options;
    if (!resume && typeof token === "function") {
      try {
        token = await token();
      } catch (error) {
        this.#current(socket, () => this.#end(new Closed(null, `no token: ${error?.message ?? error}`, "fresh")));
        return;
      }
      if (socket !== this.#socket) return;
    }
    this.#phase = "greeting";
    this.#resuming = resume;
    this.#helloId = this.#requests.nextId();
    this.#after(HELLO_TIMEOUT_MS, () => this.#end(gone("no WELCOME in time")));
    this.#send([HELLO, this.#helloId, { v: 1, client: `holdfast-js/${VERSION}`, ...this.#credentials(resume, token) }]);
  }

  #credentials(resume, token) {
    const positions = this.#positions.all();
    // Of a new session the user's own channel: it would begin at the last ACK of any of the user's sessions.
    if (!resume) for (const channel of this.#joined) delete positions[channel];
    const fits = byteLength(this.#codec.encode([positions])) <= (this.#welcome?.maxFrame ?? 0) - HELLO_REST_BYTES;
    return credentials(resume ? this.#welcome : null, { token, user: this.#options.user }, positions, fits);
  }

  #receive(body) {
    let frame;
    try {
      frame = this.#codec.decode(body);
    } catch (error) {
      throw new ProtocolViolation(`a body that cannot be read: ${error.message}`);
    }
    check(Array.isArray(frame) && isWhole(frame[0]), "a frame that is no array with a type");
    this.#pulse?.heard(this.#clock.now());
    check(this.#phase !== "greeting" || WHILE_GREETING.has(frame[0]), "a frame before WELCOME");
    switch (frame[0]) {
      case MESSAGE: return this.#onMessage(readMessage(frame));
      case REPLY: return this.#onReply(frame);
      case ERROR: return this.#onError(frame);
      case PING: return this.#phase === "closing" ? undefined : this.#send([PONG, frame[1] ?? 0, frame[2] ?? null]);
      case PONG: return this.#onPong(frame[1]);
      case EVENT: return this.#onEvent(frame);
      case WELCOME: return this.#onWelcome(frame);
      case FIN: return this.#onFin(frame);
      case FIN_ACK: return this.#onFinAck();
      default: throw new ProtocolViolation(`a frame of type ${frame[0]}, which a gateway does not send`);
    }
  }

  #send(frame) { this.#sendBody(this.#codec.encode(frame)); }

  #sendBody(body) {
    this.#pulse?.sent(this.#clock.now());
    this.#socket?.send(body);
  }

  #onMessage(message) {
    const { channel, epoch, offset } = message;
    const accepted = !this.#left.isUnheard(channel) && this.#positions.accept(channel, epoch, offset);
    if (!accepted) return;
    if (accepted.event) this.#deliver("event", accepted.event);
    this.#take(channel, offset);
    this.#deliver("message", { ...message, epoch: accepted.epoch });
  }

  #onEvent([, channel, kind, details = {}]) {
    check(typeof channel === "string" && typeof kind === "string" && isMap(details), "EVENT");
    const isNews = () => kind !== "gap" || this.#positions.announceGap(channel, details.to);
    if (this.#left.isUnheard(channel) || !isNews()) return;
    if (kind === "expired" && typeof this.#options.token === "function") this.#renew();
    this.#deliver("event", { channel, kind, details });
  }

  async #renew() {
    try { await this.refresh(await this.#options.token()); } catch { /* FIN follows, and a fresh start asks again */ }
  }

  #onPong(seq) {
    const rtt = this.#pulse?.roundTrip(seq, this.#clock.now()) ?? null;
    if (rtt !== null) this.#emit("rtt", this.rttMs = rtt);
  }

  #onReply([, id, value = {}]) {
    const request = this.#requests.pop(id);
    if (!request) return;
    try {
      check(isMap(value), "REPLY without a map");
      request.done(value);
    } catch (error) {
      request.fail(error);
      throw error;
    }
  }

  #onError([, id, code, message = "", options = {}]) {
    check(isWhole(id) && isWhole(code) && isMap(options), "ERROR");
    const after = options.retry_after ?? null;
    if (this.#phase !== "greeting" || id !== this.#helloId) {
      this.#requests.pop(id)?.fail(new RequestRefused(code, String(message), after));
    } else if (this.#resuming && isRequestOnly(code)) {
      this.#greet(this.#socket, false); // a resume that is not served is asked for afresh, on the same connection
    } else {
      throw new Closed(code, String(message), closeClass(code), after);
    }
  }

  #onFin(frame) {
    const closed = readFin(frame, this.#phase === "greeting" && this.#resuming);
    // Two FINs that crossed confirm each other: nothing may be sent after ours.
    if (this.#phase === "closing") return this.#onFinAck();
    this.#send([FIN_ACK]);
    throw closed;
  }

  #onFinAck() {
    check(this.#phase === "closing", "FIN_ACK without FIN");
    throw new Closed(BYE, "bye", "stop");
  }

  // Requests.

  #ask(type, channel, rest, timeoutMs, { read, repeatable = true, failed = () => {} }) {
    return new Promise((resolve, reject) => {
      if (this.closed) throw this.closed;
      const done = (value) => resolve(read(value));
      const fail = (error) => { failed(error); reject(error); };
      this.#requests.make(type, channel, rest, timeoutMs, { done, fail, repeatable });
      if (type === LEAVE) this.#left.asks(channel);
      if (type === JOIN) this.#left.joins(channel);
      this.#flushRequests();
    });
  }

  /** Requests wait for `open`: a PUBLISH that overtakes its channel's JOIN is refused. */
  #flushRequests() {
    if (this.#phase !== "open") return;
    for (const body of this.#requests.takeUnsent()) this.#sendBody(body);
  }

  #onJoined(channel, value, before) {
    const position = readPosition(value, "JOIN");
    const held = this.#positions.held.get(channel);
    this.#joined.add(channel);
    this.#positions.note(channel, { ...position, outcome: value.outcome });
    // A message that came before this REPLY is further than the REPLY says.
    if (!held || (value.outcome === "reset" && held === before)) this.#positions.held.set(channel, { ...position });
    return position;
  }

  #onLeft(channel) {
    this.#joined.delete(channel);
    this.#positions.held.delete(channel);
    this.#pulse?.forget(channel);
    delete this.#unacknowledged[channel];
  }

  // Coming back.

  #onWelcome([, , value]) {
    check(this.#phase === "greeting" && isMap(value), "WELCOME");
    this.#welcome = readWelcome(value);
    this.#requests.bytesMax = this.#welcome.maxFrame;
    this.#mayResume = this.#welcome.resumeToken !== null;
    const resumed = this.#resuming && this.#welcome.resumed;
    this.#resuming = resumed;
    this.#phase = "rejoining";
    this.#clock.clearTimeout(this.#phaseTimer);
    this.#restore(resumed);
    this.#pulse = new Pulse(this.#clock.now(), this.#welcome.pingMs, this.#welcome.misses);
    this.#pulse.carry(resumed ? this.#unacknowledged : {}, this.#clock.now());
    this.#send(this.#pulse.ping(this.#clock.now())); // the first round trip is measured at once
    this.#arm();
    this.#openIfRejoined();
  }

  #restore(resumed) {
    const channels = this.#leaveAgain(this.#welcome.channels, resumed);
    const before = new Map(this.#positions.held);
    for (const event of this.#positions.restore(channels, resumed, this.#joined)) this.#deliver("event", event);
    for (const channel of this.#joined) {
      if (!channels.has(channel)) this.#rejoin(channel, before.get(channel), true);
    }
  }

  /** The application is in no channel that it asked to leave, unless it waits for what it asked there before. */
  #leaveAgain(listed, resumed) {
    const { waiting, behind } = this.#requests.leaving();
    for (const channel of this.#left.channels.filter((one) => !behind.has(one))) {
      const request = waiting.get(channel);
      if (request && this.#joined.has(channel) && !listed.has(channel)) this.#requests.pop(request.id).done({});
      this.#onLeft(channel);
      if (!resumed || !listed.has(channel)) continue;
      this.#left.leavesAgain(channel);
      if (request) request.sent = true;
      this.#sendBody(request?.body ?? this.#requests.make(LEAVE, channel, [], undefined, {
        done: () => this.#left.answered(channel), fail: (error) => this.#left.failed(channel, error), own: true,
      }));
    }
    if (!resumed) this.#left.beginsAnew(behind);
    return new Map([...listed].filter(([channel]) => !this.#left.isUnheard(channel)));
  }

  #rejoin(channel, held, askSince) {
    const asked = askSince && held !== undefined;
    this.#rejoining.set(channel, held);
    if (asked) this.#positions.held.set(channel, held);
    else this.#positions.held.delete(channel);
    const body = this.#requests.make(JOIN, channel, [asked ? { since: [held.epoch, held.offset] } : {}], undefined, {
      own: true,
      repeatable: false,
      done: (value) => {
        const position = this.#onJoined(channel, value, held);
        if ((value.outcome === "reset" || !asked) && !same(position, held)) {
          this.#deliver("event", resetEvent(channel, position, held));
        }
        this.#rejoined(channel);
      },
      fail: (error) => {
        // Perhaps it is only the replay that is not served: join where the channel is now.
        if (asked) return this.#rejoin(channel, held, false);
        this.#onLeft(channel);
        this.#deliver("event", { channel, kind: "left", details: { reason: error.reason ?? error.message } });
        return this.#rejoined(channel);
      },
    });
    this.#sendBody(body);
  }

  #rejoined(channel) {
    this.#rejoining.delete(channel);
    this.#openIfRejoined();
  }

  #openIfRejoined() {
    if (this.#phase !== "rejoining" || this.#rejoining.size) return;
    this.#phase = "open";
    this.#attempt = 0;
    this.#dialer.welcomed();
    this.#setState("open");
    this.#opening?.(null);
    this.#flushRequests();
  }

  /** Close the connection of now; what comes of it afterwards does not count. */
  #end(closed) {
    const socket = this.#socket;
    this.#lost(closed);
    closeSocket(socket, closed.code);
  }

  #lost(why) {
    const closed = this.#dialer.ended(why, this.#socket !== null);
    this.#disconnect();
    this.#requests.interrupt(closed);
    this.#ended = closed;
    const more = this.#dialer.nextInPass(closed);
    if (this.#leaving || !(this.#options.reconnect || (more && this.#opening)) || closed.class === "stop") {
      this.#stop(closed);
      return;
    }
    if (closed.class === "fresh") this.#mayResume = false;
    if (this.state === "open") this.#setState("reconnecting");
    const delay = more ? 0 : backoffDelay(closed, this.#attempt, this.#options, this.#clock.random);
    this.#attempt += more ? 0 : 1;
    this.reconnectCount += 1;
    this.#after(delay, () => this.#dial());
  }

  #disconnect() {
    this.#dialer.cancel();
    this.#socket = null;
    this.#phase = "idle";
    this.#clock.clearTimeout(this.#timer);
    this.#clock.clearTimeout(this.#phaseTimer);
    if (this.#pulse) this.#unacknowledged = this.#pulse.ack()?.[1] ?? {};
    this.#pulse = null;
    this.#rejoining.clear();
    this.#left.connectionLost();
  }

  #stop(closed) {
    if (this.closed) return;
    const socket = this.#socket;
    this.#disconnect();
    if (socket) closeSocket(socket, closed.code);
    this.closed = closed;
    this.#requests.failAll(closed);
    this.#setState("closed");
    this.#opening?.(closed);
    this.#emit("close", closed);
    for (const queue of this.#queues) queue.end(this.#leaving ? null : closed);
  }

  // Heartbeat and acknowledgements.

  #after(ms, act) {
    this.#clock.clearTimeout(this.#phaseTimer);
    this.#phaseTimer = this.#clock.setTimeout(act, ms);
  }

  #arm() {
    this.#clock.clearTimeout(this.#timer);
    this.#timer = this.#clock.setTimeout(() => this.#tick(), Math.max(0, this.#pulse.deadline() - this.#clock.now()));
  }

  #tick() {
    if (this.#phase !== "open" && this.#phase !== "rejoining") return;
    const now = this.#clock.now();
    if (this.#pulse.isLost(now)) {
      this.#end(gone("nothing was heard from the gateway"));
      return;
    }
    if (this.#pulse.isAckDue(now)) this.#flushAcks();
    if (this.#pulse.isPingDue(now)) this.#send(this.#pulse.ping(now));
    this.#arm();
  }

  #take(channel, offset) {
    if (this.#phase === "closing") return;
    const now = this.#clock.now();
    if (this.#pulse.take(channel, offset, now)) this.#arm();
    if (this.#pulse.isAckDue(now)) this.#flushAcks();
  }

  #flushAcks() {
    const frame = this.#pulse?.ack();
    if (frame) this.#send(frame);
  }

  // To the application.

  #setState(state) {
    this.state = state;
    this.#emit("state", state);
  }

  #deliver(name, item) {
    for (const queue of this.#queues) queue.put(item);
    this.#emit(name, item);
  }

  #emit(name, value) {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        listener(value);
      } catch (error) {
        // A listener's fault is reported as its own and disturbs neither the session nor other listeners.
        queueMicrotask(() => { throw error; });
      }
    }
  }
}
