/** Just enough of a WebSocket (RFC 6455, whole text messages) for Node before 22, which has none of its own. */

import { randomBytes } from "node:crypto";
import http from "node:http";

const TEXT = 1, CLOSE = 8, PING = 9, PONG = 10;

export class SmallWebSocket {
  #socket = null; #received = Buffer.alloc(0); #closed = { code: 1006, reason: "" };
  onopen = null; onmessage = null; onerror = null; onclose = null;

  constructor(url) {
    const { hostname, port, pathname } = new URL(url);
    const headers = {
      Connection: "Upgrade", Upgrade: "websocket", "Sec-WebSocket-Version": "13",
      "Sec-WebSocket-Key": randomBytes(16).toString("base64"),
    };
    const request = http.get({ hostname, port, path: pathname, headers });
    const failed = (error) => { this.onerror?.(error); this.onclose?.(this.#closed); };
    request.on("upgrade", (_, socket, head) => this.#open(socket, head));
    request.on("response", (answer) => { answer.resume(); failed(new Error(`answered ${answer.statusCode}`)); });
    request.on("error", failed);
  }

  #open(socket, head) {
    this.#socket = socket;
    socket.setNoDelay(true);
    socket.on("data", (chunk) => this.#onData(chunk));
    socket.on("error", (error) => this.onerror?.(error));
    socket.on("close", () => this.onclose?.(this.#closed));
    this.onopen?.({});
    if (head.length) this.#onData(head);
  }

  send(text) {
    this.#write(TEXT, Buffer.from(text));
  }

  close(code = 1000, reason = "") {
    const body = Buffer.alloc(2);
    body.writeUInt16BE(code);
    this.#write(CLOSE, Buffer.concat([body, Buffer.from(reason)]));
    this.#socket?.end();
  }

  /** One frame, masked as a client has to. */
  #write(kind, payload) {
    const size = payload.length;
    const head = size < 126 ? [0x80 | kind, 0x80 | size] : [0x80 | kind, 0x80 | 126, size >> 8, size & 255];
    const mask = randomBytes(4);
    const masked = payload.map((byte, at) => byte ^ mask[at & 3]);
    this.#socket?.write(Buffer.concat([Buffer.from(head), mask, masked]));
  }

  #onData(chunk) {
    this.#received = Buffer.concat([this.#received, chunk]);
    for (let frame = this.#next(); frame; frame = this.#next()) this.#onFrame(frame);
  }

  /** The next whole frame, or null. A server sends without mask. */
  #next() {
    const data = this.#received;
    if (data.length < 2) return null;
    const short = data[1] & 127;
    const start = short < 126 ? 2 : short === 126 ? 4 : 10;
    if (data.length < start) return null;
    const size = short < 126 ? short : short === 126 ? data.readUInt16BE(2) : Number(data.readBigUInt64BE(2));
    if (data.length < start + size) return null;
    this.#received = data.subarray(start + size);
    return { kind: data[0] & 15, payload: data.subarray(start, start + size) };
  }

  #onFrame({ kind, payload }) {
    if (kind === TEXT) this.onmessage?.({ data: payload.toString() });
    else if (kind === PING) this.#write(PONG, payload);
    else if (kind === CLOSE) {
      this.#closed = { code: payload.length > 1 ? payload.readUInt16BE(0) : 1005, reason: payload.toString("utf8", 2) };
      this.#write(CLOSE, payload);
      this.#socket.end();
    }
  }
}
