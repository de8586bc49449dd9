/**
 * What is on the wire, and what it means: frame types, codes, errors, JSON, the reading of frames, and which messages
 * are new. No socket and no clock here; the session is in holdfast.mjs.
 *
 * @typedef {import("./holdfast.mjs").Position} Position
 * @typedef {import("./holdfast.mjs").ChannelEvent} ChannelEvent
 * @typedef {import("./holdfast.mjs").Presence} Presence
 * @typedef {import("./holdfast.mjs").Clock} Clock
 * @typedef {import("./holdfast.mjs").Codec} Codec
 * @typedef {Object} Options
 * @property {string} [user] who to be, where the gateway runs in development mode
 * @property {string | (() => string | Promise<string>)} [token] asked for again before each fresh start, and when the
 *   token is about to end
 * @property {any} [WebSocket] the class to use in place of the global one
 * @property {Codec} [codec] in place of JSON
 * @property {boolean} [reconnect] come back on its own as the gateway says; true unless told otherwise
 * @property {number} [requestTimeoutMs] each request's deadline, 5000
 * @property {number} [openTimeoutMs] for all of `connect`, 10000
 * @property {number} [backoffBaseMs] the first wait is a random time up to this, 500; doubles each time
 * @property {number} [backoffCapMs] no wait of ours is longer, 30000
 * @property {SessionState} [state] resume this session, from `export` or `suspend`
 * @property {number} [queueMessages] received and not taken by an iteration, 10000
 * @property {Clock} [clock]
 */

export const HELLO = 0, WELCOME = 1, REPLY = 2, ERROR = 3, PING = 4, PONG = 5, JOIN = 6, LEAVE = 7, PUBLISH = 8;
export const MESSAGE = 9, ACK = 10, HISTORY = 11, PRESENCE = 12, EVENT = 13, FIN = 14, FIN_ACK = 15;
export const REFRESH = 16;

export const RESUMED_ELSEWHERE = 605;

const STATUS_BASE = 4000;

/** The root of this client's errors. */
export class HoldfastError extends Error {
  constructor(message) {
    super(message);
    this.name = new.target.name;
  }
}

/** The session or its connection has ended. `class` says how to come back: `resume`, `fresh` or `stop`. */
export class Closed extends HoldfastError {
  constructor(code, reason, cls, after = null, target = null) {
    super(`closed ${code === null ? "without a code" : `with code ${code}`}: ${reason || "no reason given"} (${cls})`);
    Object.assign(this, { code, reason, class: cls, after, target });
  }
}

/** The other side sent what is no frame of this protocol; the same again will fail again. */
export class ProtocolViolation extends Closed {
  constructor(what) {
    super(null, what, "stop");
  }
}

/** The gateway answered ERROR. */
export class RequestRefused extends HoldfastError {
  constructor(code, message, retryAfter = null) {
    super(`refused with code ${code}: ${message}`);
    Object.assign(this, { code, reason: message, retryAfter });
  }
}

/** No answer came within the deadline. */
export class RequestTimeout extends HoldfastError {}

/** The connection went away before the answer; a publish without a key is not sent twice on its own. */
export class RequestInterrupted extends HoldfastError {}

/** What a code means by its number's range, so that codes unknown today are understood too. */
export function closeClass(code) {
  if (code >= 1 && code < 200) return "resume";
  return code >= 200 && code < 400 ? "fresh" : "stop";
}

function toBase64(bytes) {
  let characters = "";
  for (const byte of bytes) characters += String.fromCharCode(byte);
  return btoa(characters);
}

/** JSON as the protocol has it: no whitespace, bytes as {"$bin": base64}. */
export const json = {
  /** @param {any[]} frame */
  encode(frame) {
    // `this[key]`: a Buffer has a toJSON, which ran before.
    return JSON.stringify(frame, function (key, value) {
      return this[key] instanceof Uint8Array ? { $bin: toBase64(this[key]) } : value;
    });
  },
  /** @param {string} body */
  decode(body) {
    return JSON.parse(body, (key, value) => {
      const isBinary = value !== null && typeof value === "object" && typeof value.$bin === "string";
      if (!isBinary || Object.keys(value).length !== 1) return value;
      return Uint8Array.from(atob(value.$bin), (character) => character.charCodeAt(0));
    });
  },
};

export const isRequestOnly = (code) => code >= 400 && code < 600;

export const isMap = (value) => value !== null && typeof value === "object" && !Array.isArray(value);

export function check(holds, what) {
  if (!holds) throw new ProtocolViolation(what);
}

export const isWhole = (value, least = 0) => Number.isSafeInteger(value) && value >= least;

export function readPosition(value, what) {
  check(isMap(value) && isWhole(value.epoch) && isWhole(value.offset), `${what} without a position`);
  return { epoch: value.epoch, offset: value.offset };
}

export function readMessage(frame) {
  const [, channel, offset, data, options = {}] = frame;
  check(typeof channel === "string" && isWhole(offset, 1) && isMap(options) && frame.length > 3, "MESSAGE");
  check(options.epoch === undefined || isWhole(options.epoch), "MESSAGE epoch");
  const { epoch = null, from: sender = null, time = null } = options;
  return { channel, epoch, offset, data, sender, time };
}

/** A past message may be the frame, the frame without type and channel, or a map. */
function readPastMessage(channel, epoch, entry) {
  let frame = entry;
  if (isMap(entry)) frame = [MESSAGE, channel, entry.offset, entry.data, entry];
  else if (!(entry?.[0] === MESSAGE && typeof entry[1] === "string")) frame = [MESSAGE, channel, ...(entry ?? [])];
  const message = readMessage(frame);
  return { ...message, epoch: message.epoch ?? epoch };
}

export function readHistory(channel, value) {
  const position = readPosition(value, "HISTORY");
  check(Array.isArray(value.messages ?? []), "HISTORY messages");
  return { messages: (value.messages ?? []).map((entry) => readPastMessage(channel, position.epoch, entry)), position };
}

/** @returns {Presence} */
export function readPresence(value) {
  const sessions = value.sessions ?? [];
  check(Array.isArray(sessions) && sessions.every(isMap), "PRESENCE sessions");
  const users = Array.isArray(value.users) ? value.users.length : value.users;
  const counted = new Set(sessions.map((member) => member.user)).size;
  return { sessions, users: users ?? counted, count: value.count ?? sessions.length };
}

export function resetEvent(channel, position, held) {
  const { epoch = null, offset = null } = position ?? {};
  return { channel, kind: "reset", details: { epoch, offset, held: held ? [held.epoch, held.offset] : null } };
}

export const same = (a, b) => a?.epoch === b?.epoch && a?.offset === b?.offset;

/**
 * Which messages are new. A position is (epoch, offset); offsets grow by one and go on across epochs when the log
 * survived. Held already or of a deposed sequencer (lower epoch): dropped. A hole: `gap`. A higher epoch that counts
 * from an earlier point: `reset`, since what was held beyond it is not this channel's history any more.
 */
export class Positions {
  #promised = new Map();

  constructor() {
    /** @type {Map<string, Position & {announcedTo?: number}>} */
    this.held = new Map();
    this.droppedCount = 0;
  }

  /** @returns {?Position} */
  get(channel) {
    const held = this.held.get(channel);
    return held ? { epoch: held.epoch, offset: held.offset } : null;
  }

  /** Where a gap would end that reaches up to the channel's position. */
  note(channel, { epoch, offset, outcome }) {
    if (outcome === "gap") this.#promised.set(channel, { epoch, offset });
  }

  /** The gateway tells of a gap; false when it told before, as after a new connection. */
  announceGap(channel, lastMissing) {
    const [held, promised] = [this.held.get(channel), this.#promised.get(channel)];
    if (!held || !isWhole(lastMissing)) return true;
    if (lastMissing <= held.offset) return false;
    // Nothing is kept behind it: this is where the channel stands now, and what a resume goes on from.
    if (promised?.offset === lastMissing) this.held.set(channel, { ...promised });
    else held.announcedTo = Math.max(held.announcedTo ?? 0, lastMissing);
    return true;
  }

  /** Take what WELCOME says of each channel. @returns {ChannelEvent[]} what to tell of it */
  restore(channels, resumed, joined) {
    const before = new Map(this.held);
    const events = [];
    if (!resumed) this.held.clear();
    for (const [channel, position] of channels) {
      const held = before.get(channel);
      const follows = position.outcome === "replayed" || position.outcome === "gap";
      this.note(channel, position);
      // It goes on from where the gateway knows it to be: the first that comes tells where.
      if (!held && follows) continue;
      // In a new session what follows starts at the user's last ACK, which is never after what is held.
      const goesOn = held && (resumed || (follows && held.offset <= position.offset));
      if (goesOn && position.outcome !== "reset") {
        this.held.set(channel, held);
        continue;
      }
      this.held.set(channel, { epoch: position.epoch, offset: position.offset });
      // Where nothing was said before and nothing is now, only the epoch is another one.
      if (held && !same(held, position) && (held.offset || position.offset)) events.push(resetEvent(channel, position, held));
    }
    for (const [channel, held] of resumed ? [] : before) {
      // Received without joining; in a new session it may count from anywhere.
      if (!channels.has(channel) && !joined.has(channel)) events.push(resetEvent(channel, null, held));
    }
    return events;
  }

  /** As a HELLO and an export have them. @returns {Object<string, [number, number]>} */
  all() {
    return Object.fromEntries([...this.held].map(([channel, { epoch, offset }]) => [channel, [epoch, offset]]));
  }

  /** @returns {?{epoch: number, event: ?ChannelEvent}} null: to be dropped */
  accept(channel, givenEpoch, offset) {
    const held = this.held.get(channel);
    const epoch = givenEpoch ?? held?.epoch ?? 0;
    if (held && (epoch < held.epoch || (epoch === held.epoch && offset <= held.offset))) {
      this.droppedCount += 1;
      return null;
    }
    this.held.set(channel, { epoch, offset });
    return { epoch, event: held ? this.#passedOver(channel, held, epoch, offset) : null };
  }

  #passedOver(channel, held, epoch, offset) {
    if (offset <= held.offset) return resetEvent(channel, { epoch, offset: offset - 1 }, held);
    const first = Math.max(held.offset, held.announcedTo ?? 0) + 1;
    if (offset <= first) return null;
    return { channel, kind: "gap", details: { from: first, to: offset - 1, reason: "unannounced" } };
  }
}

/**
 * A session from before, as `Session.export` gave it: a secret, since it holds the resume token.
 *
 * @typedef {{session: string, resume_token: string, user: string, joined: string[],
 *   positions: Object<string, [number, number]>, left?: string[]}} SessionState
 * @param {SessionState} state @param {Positions} positions @returns what a WELCOME would have said of it
 */
export function readState(state, positions) {
  const { session, resume_token: resumeToken, user, joined, positions: given, left = [] } = state;
  const isGood = [session, resumeToken, user].every((text) => typeof text === "string") && isMap(given);
  if (!isGood || ![joined, left].every(Array.isArray)) throw new TypeError("options.state is no exported session");
  for (const [channel, [epoch, offset]] of Object.entries(given)) positions.held.set(channel, { epoch, offset });
  return { session, resumeToken, user, node: "", maxFrame: 65536 };
}

export function readWelcome(value) {
  const { session, user, resume_token: resumeToken = null, node = "", ping = 30, misses = 3 } = value;
  check(typeof session === "string" && typeof user === "string", "WELCOME without session and user");
  check(Number.isFinite(ping) && ping > 0 && isWhole(misses, 1) && isMap(value.channels ?? {}), "WELCOME");
  const channels = new Map();
  for (const [channel, listed] of Object.entries(value.channels ?? {})) {
    check(Array.isArray(listed), "WELCOME channels");
    const [epoch, offset, outcome = "live"] = listed;
    channels.set(channel, { ...readPosition({ epoch, offset }, channel), outcome });
  }
  const resumed = value.resumed === true;
  const maxFrame = value.max_frame ?? 65536;
  return { session, user, resumeToken, node, pingMs: ping * 1000, misses, maxFrame, resumed, channels };
}

/**
 * Who says HELLO: the session of this WELCOME, or a new one.
 * @param {?{session: string, resumeToken: ?string}} welcome @param {?string} [token] @param {?string} [user]
 * @param {Object<string, [number, number]>} positions @param {boolean} fits whether a frame has room for them
 */
export function credentials(welcome, { token, user }, positions, fits) {
  if (welcome) {
    const held = { session: welcome.session, token: welcome.resumeToken };
    // Without positions every channel stands at its last ACK; what comes twice then is dropped here. With them the
    // session is in no other channel: the gateway needs nothing that it may not be able to read now.
    return fits ? { ...held, resume: positions, whole: true } : { ...held, resume: {} };
  }
  const more = fits && Object.keys(positions).length ? { resume: positions } : {};
  return token !== undefined ? { token, ...more } : { user, ...more };
}

/** What a FIN says; `resuming`: it may refuse as a request what resumes, and another session may be had. */
export function readFin([, code, reason = "", options = {}], resuming) {
  check(isWhole(code) && isMap(options), "FIN");
  const byRange = resuming && isRequestOnly(code) ? "fresh" : closeClass(code);
  const cls = ["resume", "fresh", "stop"].includes(options.class) ? options.class : byRange;
  return new Closed(code, reason, cls, options.after ?? null, options.target ?? null);
}

/** What REFRESH changes of WELCOME. */
export function readRefreshed({ expires = null, resume_token: resumeToken }) {
  check(expires === null || Number.isFinite(expires), "REFRESH without the time when the token ends");
  check(resumeToken === undefined || typeof resumeToken === "string", "REFRESH with a resume token that is none");
  return resumeToken === undefined ? {} : { resumeToken };
}

/** An end without a word of the protocol: come back and resume. */
export const gone = (reason) => new Closed(null, reason, "resume");

/** A close status of 4000 + number says as much as a FIN without options. */
export function closedByStatus(event, failure) {
  const code = (event?.code ?? 0) - STATUS_BASE;
  if (code < 0) return gone(failure ?? (event?.reason || "the connection was closed"));
  return new Closed(code, event.reason, closeClass(code));
}

export function closeSocket(socket, code) {
  if (!socket) return;
  try {
    if (code === null || code > 999) socket.close();
    else socket.close(STATUS_BASE + code);
  } catch {
    // A socket that cannot be closed any more is what was wanted.
  }
}

export function byteLength(body) {
  // Exact only where it matters: a character is three bytes at most.
  return typeof body === "string" ? new TextEncoder().encode(body).length : body.length;
}

/** A gateway may send us elsewhere, but not from an encrypted connection to one in the clear. */
export function acceptable(target, url) {
  try {
    const [there, here] = [new URL(target).protocol, new URL(url).protocol];
    return there === here || (there === "wss:" && here === "ws:") || (there === "tls:" && here === "tcp:");
  } catch {
    return false;
  }
}
