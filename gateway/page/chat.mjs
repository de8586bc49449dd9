/** The chat page: two panes over the JavaScript client. Whatever comes from others is put in as text, never as HTML. */

import { connect } from "./holdfast.mjs";

const MESSAGES_SHOWN_MAX = 500;
const HISTORY_MESSAGES = 50;
const NEAR_BOTTOM_PX = 80;
const ROUND_TRIP_EVERY_MS = 5000;

const at = (id) => document.getElementById(id);
const time = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });

/**
 * What the gateway says of itself, once it has.
 * @type {?{development: boolean, ws_port: number, ws_path: string, tls?: boolean}}
 */
let info = null;
/** @type {?Promise<void>} */
let asking = null;
/** @type {?import("./holdfast.mjs").Session} */
let session = null;
let connecting = false;
/** @type {Map<string, {lines: any[], unread: number, presence: ?import("./holdfast.mjs").Presence}>} */
const groups = new Map();
let selected = null;

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function notice(text = "") {
  at("notice").textContent = text;
}

/** Run what a user asked for; what goes wrong is told where they look. */
async function attempt(action) {
  notice();
  try {
    await action();
  } catch (error) {
    notice(error instanceof Error ? error.message : String(error));
  }
}

// What the page knows from before: the address' fragment, then this window's storage. Two windows are two users.

function remembered(name) {
  const fragment = new URLSearchParams(location.hash.slice(1));
  return fragment.get(name) ?? sessionStorage.getItem(`holdfast.${name}`) ?? "";
}

function remember(name, value) {
  sessionStorage.setItem(`holdfast.${name}`, value);
  const fragment = new URLSearchParams(location.hash.slice(1));
  fragment.set(name, value);
  history.replaceState(null, "", `#${fragment}`);
}

function randomName() {
  const [number] = crypto.getRandomValues(new Uint32Array(1));
  const names = ["heron", "otter", "lark", "badger", "finch", "marten", "plover", "stoat"];
  return `${names[number % names.length]}-${(number >>> 8) % 10000}`;
}

function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const channelOf = (group) => (group.includes(":") ? group : `group:${group}`);
const nameOf = (channel) => channel.replace(/^group:/, "");

// Connection.

function gatewayUrl() {
  const scheme = (info.tls ?? location.protocol === "https:") ? "wss" : "ws";
  return `${scheme}://${location.hostname}:${info.ws_port}${info.ws_path}`;
}

async function connectAs(user) {
  connecting = true;
  showState("connecting");
  try {
    // Who presses early waits: its port may be any.
    await askInfo();
    const token = at("token").value;
    session = await connect(gatewayUrl(), token ? { token } : { user });
  } finally {
    connecting = false;
    showState(session?.state ?? "closed");
  }
  remember("user", user);
  session.on("state", showState);
  session.on("rtt", showRoundTrip);
  session.on("message", (message) => addLine(message.channel, message));
  session.on("event", onEvent);
  session.on("close", onClose);
  showRoundTrip(session.rttMs);
  at("user").value = session.user;
  for (const group of groups.values()) group.lines = [];
  await Promise.all([...groups.keys()].map(join));
}

function disconnect() {
  return session?.close();
}

function onClose(closed) {
  session = null;
  if (closed.code !== 0) notice(closed.message);
  showRoundTrip(null);
}

function onEvent(event) {
  addLine(event.channel, event);
  if (!groups.has(event.channel)) return;
  // What was missed may still be in the history.
  if (event.kind === "reset" || event.kind === "gap") attempt(() => refresh(event.channel));
  if (event.kind === "joined" || event.kind === "left") attempt(() => refreshMembers(event.channel));
}

function showState(state) {
  at("state").textContent = state;
  at("state").dataset.state = state;
  const isBusy = connecting || session !== null;
  at("connect").textContent = state === "closed" ? "Connect" : "Disconnect";
  at("connect").disabled = connecting;
  at("user").disabled = at("token").disabled = isBusy && state !== "closed";
  at("join").disabled = state !== "open";
  showSelected();
}

function showRoundTrip(ms) {
  at("rtt").textContent = ms === null ? "–" : `${ms.toFixed(1)} ms`;
}

// Groups.

async function join(channel) {
  if (!groups.has(channel)) groups.set(channel, { lines: [], unread: 0, presence: null });
  try {
    await session.join(channel);
  } catch (error) {
    if (groups.get(channel)?.lines.length === 0) groups.delete(channel);
    throw error;
  }
  select(selected ?? channel);
  await refresh(channel);
}

async function refresh(channel) {
  // From the end: the latest ones.
  const { messages } = await session.history(channel, { limit: HISTORY_MESSAGES, reverse: true });
  addHistory(channel, messages);
  await refreshMembers(channel);
}

async function leave(channel) {
  await session.leave(channel);
  groups.delete(channel);
  if (selected === channel) select(groups.keys().next().value ?? null);
  else showGroups();
}

async function refreshMembers(channel) {
  const group = groups.get(channel);
  if (!group || !session) return;
  group.presence = await session.presence(channel);
  if (channel === selected) showMembers();
}

function select(channel) {
  selected = channel;
  const group = groups.get(channel);
  if (group) group.unread = 0;
  at("title").textContent = group ? nameOf(channel) : "No group selected";
  showGroups();
  showMessages();
  showMembers();
  showSelected();
}

/** What may be pressed follows from the state and the selection. */
function showSelected() {
  const isUsable = session?.state === "open" && groups.has(selected);
  for (const id of ["text", "send", "refresh", "leave"]) at(id).disabled = !isUsable;
  at("leave").hidden = !groups.has(selected);
}

function showGroups() {
  at("no-groups").hidden = groups.size > 0;
  at("groups").replaceChildren(...[...groups].map(([channel, group]) => groupItem(channel, group)));
}

function groupItem(channel, group) {
  const button = element("button");
  button.type = "button";
  button.setAttribute("aria-current", String(channel === selected));
  button.addEventListener("click", () => {
    select(channel);
    attempt(() => refreshMembers(channel));
  });
  const unread = element("span", "unread", group.unread ? String(group.unread) : "");
  if (group.unread) unread.setAttribute("aria-label", `${group.unread} unread`);
  button.append(element("span", "", nameOf(channel)), unread);
  const item = element("li");
  item.append(button);
  return item;
}

function showMembers() {
  const presence = groups.get(selected)?.presence;
  at("member-count").textContent = String(presence?.count ?? 0);
  const users = [...new Set((presence?.sessions ?? []).map((member) => member.user))].sort();
  at("member-list").replaceChildren(...users.map((user) => element("li", "", user)));
}

// Messages.

function addLine(channel, line) {
  const group = groups.get(channel);
  if (!group || (!line.kind && group.lines.some((other) => isSame(line, other)))) return;
  group.lines.push(line);
  if (group.lines.length > MESSAGES_SHOWN_MAX) group.lines.shift();
  if (channel === selected) appendLine(line);
  else {
    group.unread += 1;
    showGroups();
  }
  // Somebody who was not there when the members were last asked for.
  const isKnown = group.presence?.sessions.some((member) => member.user === line.sender);
  if (isKnown === false && line.sender) attempt(() => refreshMembers(channel));
}

/** Histories and live messages overlap. */
function isSame(line, other) {
  return line.epoch === other.epoch && line.offset === other.offset;
}

/** Put a history together with what has come live since; both may hold the same messages. */
function addHistory(channel, messages) {
  const group = groups.get(channel);
  if (!group) return;
  const isEvent = (line) => Boolean(line.kind);
  const held = group.lines.filter((line) => !isEvent(line) && !messages.some((message) => isSame(line, message)));
  const merged = [...messages, ...held].sort((a, b) => a.epoch - b.epoch || a.offset - b.offset);
  for (const line of group.lines.filter(isEvent)) merged.splice(placeOf(line, merged), 0, line);
  group.lines = merged.slice(-MESSAGES_SHOWN_MAX);
  if (channel === selected) showMessages();
}

/** A gap stands where its messages would; other events come last. */
function placeOf({ kind, details }, lines) {
  const next = kind === "gap" ? lines.findIndex((line) => !line.kind && line.offset > details.to) : -1;
  return next < 0 ? lines.length : next;
}

function showMessages() {
  const list = at("messages");
  // A change of group is no news to be read out.
  list.setAttribute("aria-busy", "true");
  list.replaceChildren(...(groups.get(selected)?.lines ?? []).map(lineItem));
  list.removeAttribute("aria-busy");
  list.scrollTop = list.scrollHeight;
}

function appendLine(line) {
  const list = at("messages");
  const isAtBottom = list.scrollHeight - list.scrollTop - list.clientHeight < NEAR_BOTTOM_PX;
  list.append(lineItem(line));
  while (list.childElementCount > MESSAGES_SHOWN_MAX) list.firstElementChild.remove();
  if (isAtBottom || line.sender === session?.user) list.scrollTop = list.scrollHeight;
}

function lineItem(line) {
  return line.kind ? eventItem(line) : messageItem(line);
}

function eventItem({ kind, details }) {
  if (kind === "gap") {
    const { from, to, reason = "no reason given" } = details;
    const which = from === to ? `Message ${from} is` : `Messages ${from} to ${to} are`;
    return element("li", "event", `${which} not kept any more (${reason})`);
  }
  const words = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  const told = Object.entries(details).map(([name, value]) => `${name} ${words(value)}`);
  return element("li", "event", [kind, ...told].join(" · "));
}

function messageItem({ sender, time: sentAt, epoch, offset, data }) {
  const item = element("li", sender === session?.user ? "mine" : "");
  item.dataset.offset = String(offset);
  const about = element("div", "about");
  about.append(element("span", "sender", sender ?? "unknown"));
  if (Number.isFinite(sentAt)) {
    const stamp = element("time", "", time.format(new Date(sentAt)));
    stamp.dateTime = new Date(sentAt).toISOString();
    about.append(stamp);
  }
  const position = element("span", "position", `#${offset}`);
  position.title = `epoch ${epoch}, offset ${offset}`;
  about.append(position);
  item.append(about, element("p", "text", wordsOf(data)));
  return item;
}

/** What a person reads of a message: its text, whether it stands alone or in a map; anything else as it is written. */
function wordsOf(data) {
  const words = data?.text ?? data;
  return typeof words === "string" ? words : JSON.stringify(data);
}

async function send() {
  const text = at("text").value;
  if (!text.trim() || !selected) return;
  at("text").value = "";
  try {
    await session.publish(selected, { text }, { key: randomKey() });
  } catch (error) {
    // What was not sent is given back, unless something new has been typed.
    at("text").value ||= text;
    throw error;
  }
}

// Start.

function onSubmit(id, action) {
  at(id).addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(action);
  });
}

async function joinTyped() {
  const channel = channelOf(at("group").value.trim());
  remember("group", nameOf(channel));
  if (groups.has(channel)) select(channel);
  else {
    const before = selected;
    selected = null;
    await join(channel).catch((error) => {
      if (!groups.has(channel)) select(before);
      throw error;
    });
  }
  at("text").focus();
}

/** Ask once; what went wrong is asked again when somebody needs it. */
function askInfo() {
  asking ??= loadInfo().catch((error) => {
    asking = null;
    throw error;
  });
  return asking;
}

async function loadInfo() {
  const response = await fetch(new URL("api/info", document.baseURI), { signal: AbortSignal.timeout(5000) });
  if (!response.ok) throw new Error(`the gateway's page could not be told about the gateway: ${response.status}`);
  info = await response.json();
  at("gateway").textContent = `${info.node ?? ""} ${info.version ?? ""}${info.development ? " · development" : ""}`;
  at("token-field").hidden = info.development;
  at("user").required = info.development;
}

onSubmit("login", () => (session ? disconnect() : connectAs(at("user").value.trim())));
onSubmit("join-form", joinTyped);
onSubmit("composer", send);
at("leave").addEventListener("click", () => attempt(() => leave(selected)));
at("refresh").addEventListener("click", () => attempt(() => refreshMembers(selected)));
setInterval(() => { if (!document.hidden) session?.ping(); }, ROUND_TRIP_EVERY_MS);
addEventListener("pagehide", () => { disconnect(); });

at("user").value = remembered("user") || randomName();
at("group").value = remembered("group") || "lobby";
showGroups();
attempt(askInfo);
