/**
 * Which gateway to try when, and the race between them: the nearest that answers is taken, as in RFC 8305.
 *
 * A pass goes once over all endpoints. The nearest has a head start, the next one begins when that is over or when the
 * one before has failed. Where nothing is known, or what is known is old, all begin together, and the application's
 * order is worth TIE_MS a place. HELLO is said on the winner alone: a session never has two connections.
 *
 * @typedef {import("./holdfast.mjs").Clock} Clock
 * @typedef {import("./holdfast-wire.mjs").Closed} Closed
 */

import { Closed, ProtocolViolation, RESUMED_ELSEWHERE, acceptable, closeSocket, gone } from "./holdfast-wire.mjs";

/** Of two endpoints that are nearer to each other than this, the application's order decides. */
export const TIE_MS = 10;
/** RFC 8305 §5: the recommended delay between two attempts, and the longest. */
export const HEAD_START_MS = 250, HEAD_START_MOST_MS = 2000;
/** After this long, what is known of who is near is measured anew with the next reconnect. */
export const MEASURED_MS = 600_000;
/** For how long one that failed comes last; it doubles with each failure. */
export const ASIDE_FIRST_MS = 5000, ASIDE_MOST_MS = 600_000;
/** For one of several endpoints to open. */
export const ENDPOINT_TIMEOUT_MS = 5000;
/** For so long a HELLO that we gave up may still be taken by a gateway that stood still. */
export const GHOST_MS = 300_000;
const SMOOTHING = 0.5;
const DEFAULT_PORTS = { "ws:": 7401, "wss:": 7401, "tcp:": 7400, "tls:": 7400 };

/** Two ways to write one endpoint are one. */
function same(url) {
  try {
    const { protocol, hostname, port, pathname } = new URL(url);
    return `${protocol}//${hostname}:${port || DEFAULT_PORTS[protocol]}${pathname.replace(/\/+$/, "")}`;
  } catch {
    return String(url); // a browser takes relative ones
  }
}

function headStart(one) {
  return one.took === null ? HEAD_START_MS : Math.min(Math.max(HEAD_START_MS, 2 * one.took), HEAD_START_MOST_MS);
}

/** All endpoints of one session, and how near each was; times are given by the caller. */
export class Endpoints {
  #known = new Map(); #measuredAt = null;

  /** @param {string[]} urls in the application's order */
  constructor(urls) {
    for (const url of urls) {
      if (!this.#known.has(same(url))) this.#known.set(same(url), { url, took: null, failures: 0, aside: -Infinity });
    }
    if (!this.#known.size) throw new TypeError("name at least one endpoint");
  }

  get urls() { return [...this.#known.values()].map(({ url }) => url); }

  /** Where a FIN's `target` may send us from `here`; null: nowhere, it is passed over. A new one serves for this once. */
  target(named, here) {
    if (typeof named !== "string" || !acceptable(named, here)) return null;
    return this.#known.get(same(named))?.url ?? named;
  }

  /** Whether a pass that begins now goes by what is known, rather than measure it. */
  isMeasured(now) { return this.#measuredAt !== null && now < this.#measuredAt + MEASURED_MS; }

  /**
   * The rest of a pass, in order; `after` is the time after the one before began, unless that fails earlier.
   * @param {number} now @param {?string} target goes first, with the longest head start
   * @param {Set<string>} tried did not answer in this pass @returns {{url: string, after: number}[]}
   */
  starts(now, target = null, tried = new Set()) {
    const left = [...this.#known.values()].filter(({ url }) => !tried.has(url));
    const ready = left.filter(({ aside }) => aside <= now);
    // One that failed is better than none: the one that is set aside the shortest first.
    const aside = left.filter((one) => one.aside > now).sort((a, b) => a.aside - b.aside);
    const together = !this.isMeasured(now);
    if (!together) ready.sort((a, b) => (a.took ?? Number.MAX_VALUE) - (b.took ?? Number.MAX_VALUE));
    const ordered = [...ready, ...aside];
    const starts = ordered.map((one, place) => {
      if (place === 0) return { url: one.url, after: 0 };
      return { url: one.url, after: together && one.aside <= now ? TIE_MS : headStart(ordered[place - 1]) };
    });
    if (target === null || tried.has(target)) return starts;
    const rest = starts.filter(({ url }) => url !== target);
    if (rest.length) rest[0].after = HEAD_START_MOST_MS;
    return [{ url: target, after: 0 }, ...rest];
  }

  /** WELCOME came so long after the attempt had begun; `raced`: all had begun together, so nobody is nearer. */
  answered(url, took, now, raced) {
    const one = this.#known.get(same(url));
    if (!one) return;
    if (raced) {
      for (const other of this.#known.values()) other.took = null;
      this.#measuredAt = now;
    }
    const known = one.took ?? took;
    Object.assign(one, { took: known + SMOOTHING * (took - known), failures: 0, aside: -Infinity });
  }

  /** It did not answer, or does not serve us now: the others come first for a while. */
  failed(url, now) {
    const one = this.#known.get(same(url));
    if (!one) return;
    one.aside = now + Math.min(ASIDE_MOST_MS, ASIDE_FIRST_MS * 2 ** one.failures);
    one.failures += 1;
  }

  /** The gateway named another one: it does not want to be the first choice again soon. */
  sentAway(url, now) {
    const one = this.#known.get(same(url));
    if (one) one.aside = now + ASIDE_MOST_MS;
  }
}

/** A session's way through its endpoints. */
export class Dialer {
  #clock; #options; #tried = new Set(); #target = null; #race = null; #at = null; #welcomed = false; #raced = false;
  #ghostUntil = -Infinity;

  /** @param {string[]} urls @param {{WebSocket: any, openTimeoutMs: number}} options @param {Clock} clock */
  constructor(urls, options, clock) {
    this.endpoints = new Endpoints(urls);
    this.#options = options;
    this.#clock = clock;
  }

  /** Of the connection that there is or was last; before, the first endpoint's. */
  get url() { return this.#at?.url ?? this.endpoints.urls[0]; }

  /** One race. @param {(socket: any) => void} won @param {(closed: Closed) => void} lost none could be reached */
  dial(won, lost) {
    const now = this.#clock.now();
    this.#welcomed = false;
    this.#raced = !this.endpoints.isMeasured(now);
    const starts = this.endpoints.starts(now, this.#target, this.#tried);
    const most = starts.length > 1 ? ENDPOINT_TIMEOUT_MS : Infinity;
    const race = new Race(this.#clock, this.#options.WebSocket, Math.min(this.#options.openTimeoutMs, most));
    this.#race = race;
    race.run(starts, (runner, why) => {
      this.#race = null;
      for (const url of race.failed) {
        if (url === this.#target) this.#target = null;
        this.#tried.add(url);
        this.endpoints.failed(url, this.#clock.now());
      }
      if (!runner) return lost(why);
      this.#at = runner;
      return won(runner.socket);
    });
  }

  /** End a race that is under way. */
  cancel() {
    this.#race?.end();
    this.#race = null;
  }

  /** The connection of now is the session's: the pass is over. */
  welcomed() {
    if (this.#welcomed) return;
    const now = this.#clock.now();
    this.#welcomed = true;
    this.endpoints.answered(this.#at.url, now - this.#at.began, now, this.#raced);
    this.#tried.clear();
    this.#target = null;
  }

  /**
   * A connection, or a pass in which there was none (`dialed` false), is over. @param {Closed} closed
   * @returns {Closed} the same, or one to resume from: where a late HELLO of our own took the session over, and where
   *   what answered in the place of one of several gateways is none
   */
  ended(closed, dialed) {
    if (closed instanceof ProtocolViolation && !this.#welcomed && this.endpoints.urls.length > 1) {
      closed = new Closed(null, closed.reason, "resume");
    }
    const now = this.#clock.now();
    if (closed.code === RESUMED_ELSEWHERE && now < this.#ghostUntil) {
      this.#ghostUntil = -Infinity;
      return new Closed(closed.code, "an earlier HELLO of our own arrived late", "resume");
    }
    if (!dialed) return closed;
    const here = this.#at.url;
    if (!this.#welcomed && closed.class !== "stop") {
      this.#tried.add(here);
      this.endpoints.failed(here, now);
      if (closed.code === null) this.#ghostUntil = now + GHOST_MS;
    }
    this.#target = this.endpoints.target(closed.target, here);
    if (this.#target !== null && this.#target !== here) {
      this.endpoints.sentAway(here, now);
      this.#tried.delete(this.#target);
    }
    return closed;
  }

  /** Whether to go on at once with those that were not tried yet; else the pass is over, or we are told to wait. */
  nextInPass(closed) {
    const goesOn = !this.#welcomed && closed.class !== "stop" && closed.after === null && this.#tried.size > 0;
    if (goesOn && this.endpoints.urls.some((url) => !this.#tried.has(url))) return true;
    this.#tried.clear();
    return false;
  }
}

/** One race of sockets; `failed` are the URLs that could not be opened. */
class Race {
  #clock; #Socket; #timeoutMs; #waiting = []; #running = new Map(); #timer = null; #done = null; #why = null;
  failed = [];

  constructor(clock, Socket, timeoutMs) {
    this.#clock = clock;
    this.#Socket = Socket;
    this.#timeoutMs = timeoutMs;
  }

  run(starts, done) {
    this.#waiting = [...starts];
    this.#done = done;
    this.#next();
  }

  /** Close all that is not open yet; nothing of it counts any more. */
  end(winner = null) {
    this.#clock.clearTimeout(this.#timer);
    this.#waiting = [];
    for (const runner of this.#running.values()) {
      this.#clock.clearTimeout(runner.timer);
      if (runner === winner) continue;
      Object.assign(runner.socket, { onopen: null, onmessage: null, onclose: null, onerror: () => {} });
      closeSocket(runner.socket, null);
    }
    this.#running.clear();
  }

  #next() {
    this.#clock.clearTimeout(this.#timer);
    const start = this.#waiting.shift();
    if (start === undefined) return this.#running.size ? undefined : this.#finish(null, this.#why);
    let socket;
    try {
      socket = new this.#Socket(start.url);
    } catch (error) {
      this.failed.push(start.url);
      // The only address, and no socket takes it: that is the application's mistake, and stays one.
      const isOnly = this.failed.length === 1 && !this.#waiting.length && !this.#running.size;
      this.#why = new Closed(null, String(error?.message ?? error), isOnly ? "stop" : "resume");
      return this.#next();
    }
    const runner = { url: start.url, socket, began: this.#clock.now(), timer: null };
    this.#running.set(socket, runner);
    let failure = null;
    socket.onopen = () => this.#finish(runner, null);
    socket.onerror = (event) => { failure ??= event?.message || "the connection failed"; };
    socket.onclose = (event) => this.#drop(runner, failure ?? (event?.reason || "the connection was closed"));
    runner.timer = this.#clock.setTimeout(() => {
      closeSocket(socket, null);
      this.#drop(runner, "not connected in time");
    }, this.#timeoutMs);
    if (this.#waiting.length) this.#timer = this.#clock.setTimeout(() => this.#next(), this.#waiting[0].after);
    return undefined;
  }

  #drop(runner, why) {
    if (!this.#running.delete(runner.socket)) return;
    this.#clock.clearTimeout(runner.timer);
    Object.assign(runner.socket, { onopen: null, onmessage: null, onclose: null, onerror: () => {} });
    this.failed.push(runner.url);
    this.#why = gone(why);
    this.#next();
  }

  #finish(winner, why) {
    if (!this.#done) return;
    const done = this.#done;
    this.#done = null;
    this.end(winner);
    done(winner, why);
  }
}
