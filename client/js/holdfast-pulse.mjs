/**
 * Everything about time and queues: a connection's pulse (heartbeat, round trip, acknowledgements), the wait before the
 * next connection, requests under way, and what an iteration has not taken yet. Times are given by the caller.
 *
 * @typedef {import("./holdfast.mjs").Clock} Clock
 */

import {
  ACK, HoldfastError, LEAVE, PING, REFRESH, RequestInterrupted, RequestTimeout, byteLength,
} from "./holdfast-wire.mjs";

const REMEMBERED_PINGS = 8;
// Beyond this, setTimeout fires at once.
const TIMER_MS_MAX = 2 ** 31 - 1;
// So many messages make a batch of their own; otherwise half a heartbeat's interval does.
const ACK_BATCH_MESSAGES = 256;

/** @type {Clock} */
export const systemClock = {
  now: () => performance.now(),
  setTimeout: (fn, ms) => setTimeout(fn, ms),
  clearTimeout: (timer) => clearTimeout(timer),
  random: Math.random,
};

/** `after` is already jittered by the gateway; where it is silent, exponential back-off with full jitter. */
export function backoffDelay(closed, attempt, { backoffBaseMs, backoffCapMs }, random) {
  const backoff = (exponent) => random() * Math.min(backoffCapMs, backoffBaseMs * 2 ** exponent);
  if (!Number.isFinite(closed.after)) return backoff(attempt);
  return Math.min(closed.after + (attempt > 0 ? backoff(attempt - 1) : 0), TIMER_MS_MAX);
}

/** One connection's heartbeat and what it has to acknowledge. Anything sent or received counts as life. */
export class Pulse {
  #pingMs; #silenceMs; #sentAt; #heardAt; #seq = 0; #pings = new Map(); #taken = {}; #takenCount = 0; #ackAt = null;

  constructor(now, pingMs, misses) {
    this.#pingMs = pingMs;
    this.#silenceMs = pingMs * misses;
    this.#sentAt = now;
    this.#heardAt = now;
  }

  sent(now) {
    this.#sentAt = now;
  }

  heard(now) {
    this.#heardAt = now;
  }

  isLost(now) {
    return now >= this.#heardAt + this.#silenceMs;
  }

  isPingDue(now) {
    return now >= this.#sentAt + this.#pingMs;
  }

  isAckDue(now) {
    return this.#takenCount >= ACK_BATCH_MESSAGES || (this.#ackAt !== null && now >= this.#ackAt);
  }

  /** When to look again. */
  deadline() {
    return Math.min(this.#sentAt + this.#pingMs, this.#heardAt + this.#silenceMs, this.#ackAt ?? Infinity);
  }

  /** The next PING frame. */
  ping(now) {
    this.#seq += 1;
    this.#pings.set(this.#seq, now);
    if (this.#pings.size > REMEMBERED_PINGS) this.#pings.delete(this.#pings.keys().next().value);
    return [PING, this.#seq, Math.floor(now)];
  }

  /** From our PING to its PONG, by our clock alone; null for a PONG of no PING that we remember. */
  roundTrip(seq, now) {
    const sentAt = this.#pings.get(seq);
    return this.#pings.delete(seq) ? Math.max(0, now - sentAt) : null;
  }

  /** A message reached the application; true if the deadline moved. */
  take(channel, offset, now) {
    this.#taken[channel] = offset;
    this.#takenCount += 1;
    if (this.#ackAt !== null) return false;
    this.#ackAt = now + this.#pingMs / 2;
    return true;
  }

  /** Offsets that reached the application over the connection before and were not acknowledged there. */
  carry(offsets, now) {
    for (const [channel, offset] of Object.entries(offsets)) this.take(channel, offset, now);
  }

  /** A channel that was left takes no more ACKs. */
  forget(channel) {
    delete this.#taken[channel];
  }

  /** The ACK for everything taken, null if there is nothing; the batch is empty afterwards. */
  ack() {
    const offsets = this.#taken;
    this.#taken = {};
    this.#takenCount = 0;
    this.#ackAt = null;
    return Object.keys(offsets).length ? [ACK, offsets] : null;
  }
}

/** Requests under way: numbered, each with a deadline, kept over a reconnect when repeating them does no harm. */
export class Requests {
  #clock; #codec; #timeoutMs; #byId = new Map(); #lastId = 0;

  constructor(clock, codec, timeoutMs) {
    this.#clock = clock;
    this.#codec = codec;
    this.#timeoutMs = timeoutMs;
    /** What the gateway takes. */
    this.bytesMax = Infinity;
  }

  nextId() {
    this.#lastId += 1;
    return this.#lastId;
  }

  /** Register a request; the body that is to be sent. */
  make(type, about, rest, timeoutMs = this.#timeoutMs, { done, fail, repeatable, own = false }) {
    const id = this.nextId();
    const body = this.#codec.encode([type, id, about, ...rest]);
    const most = this.bytesMax;
    if (byteLength(body) > most) throw new HoldfastError(`a request longer than ${most} bytes, the gateway's bound`);
    const channel = type === REFRESH ? "REFRESH" : about; // a token stands in no message
    const expired = () => this.pop(id)?.fail(new RequestTimeout(`${channel}: no answer in time`));
    const timer = this.#clock.setTimeout(expired, timeoutMs);
    this.#byId.set(id, { id, type, channel, body, done, fail, repeatable, own, sent: own, timer });
    return body;
  }

  /** The request, which is over now; undefined if it was over before. */
  pop(id) {
    const request = this.#byId.get(id);
    if (request) this.#clock.clearTimeout(request.timer);
    this.#byId.delete(id);
    return request;
  }

  /** Of each channel the LEAVE of which nothing else waits before it, and the channels where something does. */
  leaving() {
    const first = new Map();
    const behind = new Set();
    for (const request of this.#byId.values()) {
      if (!first.has(request.channel)) first.set(request.channel, request);
      if (request.type === LEAVE && first.get(request.channel).type !== LEAVE) behind.add(request.channel);
    }
    return { waiting: new Map([...first].filter(([, { type }]) => type === LEAVE)), behind };
  }

  /** The bodies that wait, in order; they count as sent from now on. */
  takeUnsent() {
    const waiting = [...this.#byId.values()].filter((request) => !request.sent);
    for (const request of waiting) request.sent = true;
    return waiting.map((request) => request.body);
  }

  /** What may not be sent twice fails, the rest waits for the next connection. */
  interrupt(closed) {
    for (const [id, request] of [...this.#byId]) {
      if (request.own) this.pop(id);
      else if (request.sent && !request.repeatable) this.pop(id).fail(new RequestInterrupted(closed.message));
      else request.sent = false;
    }
  }

  failAll(error) {
    for (const id of [...this.#byId.keys()]) this.pop(id).fail(error);
  }
}

/** What one iteration has not taken yet. A WebSocket cannot be told to wait, so the bound ends the iteration loudly. */
export class ItemQueue {
  #items = []; #most; #wake = () => {}; #ended = false; #error = null;

  constructor(most) {
    this.#most = most;
  }

  put(item) {
    if (this.#ended) return;
    if (this.#items.length < this.#most) this.#items.push(item);
    else this.end(new HoldfastError("the iteration fell behind: its queue is full"));
    this.#wake();
  }

  end(error) {
    this.#ended = true;
    this.#error ??= error;
    this.#wake();
  }

  async *iterate(release) {
    try {
      for (;;) {
        while (this.#items.length) yield this.#items.shift();
        if (this.#error) throw this.#error;
        if (this.#ended) return;
        await new Promise((resolve) => { this.#wake = resolve; });
      }
    } finally {
      release();
    }
  }
}
