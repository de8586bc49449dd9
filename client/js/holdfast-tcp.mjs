/**
 * TCP for Node: a socket with WebSocket's interface that carries length-prefixed MessagePack, and that encoding.
 *
 *     import { connectTcp } from "./holdfast-tcp.mjs";
 *     const session = await connectTcp("tcp://127.0.0.1:7400", { user: "alice" });
 *
 * It needs no WebSocket, so it works in Node 18 without any package.
 */

import net from "node:net";
import tls from "node:tls";

import { connect } from "./holdfast.mjs";

const DEFAULT_PORT = 7400;
// A bound against nonsense only: an answer to HISTORY may be longer than the gateway's max_frame.
const FRAME_BYTES_MAX = 16 * 1024 * 1024;
const DEPTH_MAX = 512;

/**
 * Like `connect`, over `tcp://` or `tls://`. @param {string} url @param {import("./holdfast.mjs").Options} [options]
 */
export function connectTcp(url, options = {}) {
  return connect(url, { WebSocket: TcpSocket, codec: msgpack, ...options });
}

/** The part of WebSocket's interface that a session uses. */
export class TcpSocket {
  #socket; #received = Buffer.alloc(0); #failure = null;
  onopen = null; onmessage = null; onerror = null; onclose = null;

  constructor(url) {
    const { protocol, hostname, port } = new URL(url);
    if (protocol !== "tcp:" && protocol !== "tls:") throw new TypeError(`${url}: write tcp:// or tls://`);
    // URL keeps the brackets of an IPv6 address, sockets do not take them.
    const host = hostname.replace(/^\[|\]$/g, "");
    const address = { host, port: Number(port || DEFAULT_PORT), noDelay: true };
    const secure = protocol === "tls:";
    this.#socket = secure ? tls.connect({ ...address, servername: net.isIP(host) ? "" : host }) : net.connect(address);
    this.#socket.on(secure ? "secureConnect" : "connect", () => this.onopen?.({}));
    this.#socket.on("data", (chunk) => this.#onData(chunk));
    this.#socket.on("error", (error) => { this.#failure = error.message; this.onerror?.(error); });
    this.#socket.on("close", () => this.onclose?.({ code: 1006, reason: this.#failure ?? "" }));
  }

  /** @param {Uint8Array} body */
  send(body) {
    const length = Buffer.alloc(4);
    length.writeUInt32BE(body.length);
    this.#socket.cork();
    this.#socket.write(length);
    this.#socket.write(body);
    this.#socket.uncork();
  }

  close() {
    this.#socket.end();
    // What the other side does not close in time is closed here; the timer alone keeps no process alive.
    const timer = setTimeout(() => this.#socket.destroy(), 2000);
    timer.unref();
    this.#socket.once("close", () => clearTimeout(timer));
  }

  #onData(chunk) {
    this.#received = this.#received.length ? Buffer.concat([this.#received, chunk]) : chunk;
    let start = 0;
    while (this.#received.length - start >= 4) {
      const length = this.#received.readUInt32BE(start);
      if (length > FRAME_BYTES_MAX) {
        this.#socket.destroy(new Error(`a frame of ${length} bytes`));
        return;
      }
      if (this.#received.length - start < 4 + length) break;
      this.onmessage?.({ data: this.#received.subarray(start + 4, start + 4 + length) });
      start += 4 + length;
    }
    this.#received = this.#received.subarray(start);
  }
}

/** MessagePack as the protocol uses it: no extension types. */
export const msgpack = {
  /** @param {any} value @returns {Uint8Array} */
  encode(value) {
    const parts = [];
    write(parts, value, 0);
    return Buffer.concat(parts);
  },
  /** @param {Uint8Array} body */
  decode(body) {
    const reader = new Reader(body);
    const value = reader.read(0);
    if (reader.at !== body.length) throw new Error("bytes after the value");
    return value;
  },
};

function head(parts, type, size, value) {
  const buffer = Buffer.alloc(1 + size);
  buffer[0] = type;
  if (size) buffer.writeUIntBE(value, 1, size);
  parts.push(buffer);
}

/** The head of a value with a length: the short form if there is one, then the 8, 16 and 32 bit forms. */
function lengthHead(parts, length, [fix, fixMax, type8, type16, type32]) {
  if (length <= fixMax) head(parts, fix | length, 0, 0);
  else if (type8 && length < 0x100) head(parts, type8, 1, length);
  else if (length < 0x10000) head(parts, type16, 2, length);
  else head(parts, type32, 4, length);
}

const STRING = [0xa0, 31, 0xd9, 0xda, 0xdb];
const BINARY = [0, -1, 0xc4, 0xc5, 0xc6];
const ARRAY = [0x90, 15, 0, 0xdc, 0xdd];
const MAP = [0x80, 15, 0, 0xde, 0xdf];

function write(parts, value, depth) {
  if (depth > DEPTH_MAX) throw new TypeError("a value nested too deeply");
  if (value === null || value === undefined) head(parts, 0xc0, 0, 0);
  else if (typeof value === "boolean") head(parts, value ? 0xc3 : 0xc2, 0, 0);
  else if (typeof value === "number") writeNumber(parts, value);
  else if (typeof value === "string") writeBytes(parts, Buffer.from(value, "utf8"), STRING);
  else if (value instanceof Uint8Array) writeBytes(parts, Buffer.from(value), BINARY);
  else if (Array.isArray(value)) writeArray(parts, value, depth);
  else if (typeof value === "object") writeMap(parts, value, depth);
  else throw new TypeError(`${typeof value} has no place in MessagePack`);
}

function writeBytes(parts, bytes, forms) {
  lengthHead(parts, bytes.length, forms);
  parts.push(bytes);
}

function writeArray(parts, values, depth) {
  lengthHead(parts, values.length, ARRAY);
  for (const value of values) write(parts, value, depth + 1);
}

function writeMap(parts, map, depth) {
  // Like JSON: what is undefined is left out.
  const entries = Object.entries(map).filter(([, value]) => value !== undefined);
  lengthHead(parts, entries.length, MAP);
  for (const [key, value] of entries) {
    writeBytes(parts, Buffer.from(key, "utf8"), STRING);
    write(parts, value, depth + 1);
  }
}

function writeNumber(parts, value) {
  if (!Number.isSafeInteger(value) || Object.is(value, -0)) {
    const buffer = Buffer.alloc(9);
    buffer[0] = 0xcb;
    buffer.writeDoubleBE(value, 1);
    parts.push(buffer);
  } else if (value >= 0) writeUnsigned(parts, value);
  else writeNegative(parts, value);
}

function writeUnsigned(parts, value) {
  if (value < 0x80) head(parts, value, 0, 0);
  else if (value < 0x100) head(parts, 0xcc, 1, value);
  else if (value < 0x10000) head(parts, 0xcd, 2, value);
  else if (value < 0x100000000) head(parts, 0xce, 4, value);
  else writeWide(parts, 0xcf, value);
}

function writeNegative(parts, value) {
  if (value >= -0x20) head(parts, 0x100 + value, 0, 0);
  else if (value >= -0x80) head(parts, 0xd0, 1, 0x100 + value);
  else if (value >= -0x8000) head(parts, 0xd1, 2, 0x10000 + value);
  else if (value >= -0x80000000) head(parts, 0xd2, 4, 0x100000000 + value);
  else writeWide(parts, 0xd3, value);
}

function writeWide(parts, type, value) {
  const buffer = Buffer.alloc(9);
  buffer[0] = type;
  buffer.writeBigUInt64BE(BigInt.asUintN(64, BigInt(value)), 1);
  parts.push(buffer);
}

/** Reads one value after another; what is cut short or unknown is an Error. */
class Reader {
  #bytes; at = 0;

  constructor(body) {
    this.#bytes = Buffer.from(body.buffer, body.byteOffset, body.length);
  }

  read(depth) {
    if (depth > DEPTH_MAX) throw new Error("a value nested too deeply");
    const type = this.#unsigned(1);
    if (type < 0x80) return type;
    if (type < 0x90) return this.#map(type & 0x0f, depth);
    if (type < 0xa0) return this.#array(type & 0x0f, depth);
    if (type < 0xc0) return this.#string(type & 0x1f);
    if (type >= 0xe0) return type - 0x100;
    return this.#readLong(type, depth);
  }

  #readLong(type, depth) {
    switch (type) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: case 0xc5: case 0xc6: return new Uint8Array(this.#take(this.#unsigned(2 ** (type - 0xc4))));
      case 0xca: return this.#take(4).readFloatBE();
      case 0xcb: return this.#take(8).readDoubleBE();
      case 0xcc: case 0xcd: case 0xce: return this.#unsigned(2 ** (type - 0xcc));
      case 0xcf: return narrow(this.#take(8).readBigUInt64BE());
      case 0xd0: case 0xd1: case 0xd2: return this.#signed(2 ** (type - 0xd0));
      case 0xd3: return narrow(this.#take(8).readBigInt64BE());
      case 0xd9: case 0xda: case 0xdb: return this.#string(this.#unsigned(2 ** (type - 0xd9)));
      case 0xdc: case 0xdd: return this.#array(this.#unsigned(2 ** (type - 0xdb)), depth);
      case 0xde: case 0xdf: return this.#map(this.#unsigned(2 ** (type - 0xdd)), depth);
      default: throw new Error(`MessagePack type 0x${type.toString(16)} is not used here`);
    }
  }

  #take(length) {
    if (this.#bytes.length - this.at < length) throw new Error("cut short");
    this.at += length;
    return this.#bytes.subarray(this.at - length, this.at);
  }

  #unsigned(size) {
    return this.#take(size).readUIntBE(0, size);
  }

  #signed(size) {
    return this.#take(size).readIntBE(0, size);
  }

  #string(length) {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(this.#take(length));
  }

  #array(length, depth) {
    const values = [];
    for (let index = 0; index < length; index += 1) values.push(this.read(depth + 1));
    return values;
  }

  #map(length, depth) {
    const entries = [];
    for (let index = 0; index < length; index += 1) entries.push([String(this.read(depth + 1)), this.read(depth + 1)]);
    // fromEntries defines properties, so that a key "__proto__" is data like any other.
    return Object.fromEntries(entries);
  }
}

/** A number where it is exact, else a BigInt. */
function narrow(value) {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
