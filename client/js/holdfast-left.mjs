/**
 * The channels that were left in a session. WELCOME may still list them: a LEAVE holds for a resume once it is stored.
 *
 * What is listed although it was left is left again, and up to then nothing is heard of it. A LEAVE counts from when it
 * was asked; only a refusal takes that back, and a JOIN that is asked later.
 */

import { RequestRefused } from "./holdfast-wire.mjs";

// Beyond so many the oldest are forgotten.
export const REMEMBERED_MAX = 4096;
const NOT_JOINED = 402;

/** The memory of a session, and of a connection what is not heard over it. */
export class Left {
  // In the order of leaving, and whether that was answered.
  #answered; #unheard = new Set(); #again = new Set();

  /** @param {string[]} [channels] */
  constructor(channels = []) {
    this.#answered = new Map(channels.map((channel) => [channel, true]));
  }

  get channels() { return [...this.#answered.keys()]; }

  /** LEAVE is asked. */
  asks(channel) {
    const was = this.#answered.get(channel) ?? false;
    this.#answered.delete(channel);
    this.#answered.set(channel, was);
    if (this.#answered.size > REMEMBERED_MAX) this.#answered.delete(this.#answered.keys().next().value);
  }

  /** LEAVE was done; whether it was to leave the channel again. */
  answered(channel) {
    if (this.#answered.has(channel)) this.#answered.set(channel, true); // else it was asked to be joined meanwhile
    this.#unheard.delete(channel);
    return this.#again.delete(channel);
  }

  /**
   * LEAVE was refused, or had no answer: all the same nothing is heard of what was to be left, unless the session is
   * not in there, or JOIN was asked meanwhile.
   */
  failed(channel, error) {
    const code = error instanceof RequestRefused ? error.code : null;
    if (code !== null && this.#answered.get(channel) === false) this.#answered.delete(channel);
    const again = this.#again.delete(channel);
    if (again && (code === NOT_JOINED || !this.#answered.has(channel))) this.#unheard.delete(channel);
  }

  /** JOIN is asked; what comes before the answer to a LEAVE that is under way is still not its. */
  joins(channel) {
    this.#answered.delete(channel);
    if (!this.#again.has(channel)) this.#unheard.delete(channel);
  }

  /** Another session, in which these are still to be left. @param {Set<string>} keeps */
  beginsAnew(keeps) {
    for (const channel of this.channels) if (!keeps.has(channel)) this.#answered.delete(channel);
  }

  connectionLost() {
    this.#unheard.clear();
    this.#again.clear();
  }

  leavesAgain(channel) {
    this.#unheard.add(channel);
    this.#again.add(channel);
  }

  isUnheard(channel) { return this.#unheard.has(channel); }
}
