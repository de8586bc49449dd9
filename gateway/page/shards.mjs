/** Who leads and follows which shard, as the admin API tells it. What it tells is put in as text, never as HTML. */

const EVERY_MS = 2000;
const DEADLINE_MS = 5000;
const TOKEN = "holdfast.admin-token";
const NONE = "–";

const at = (id) => document.getElementById(id);

/**
 * What is shown: the answer of /api/shards.
 * @type {?{node: string, reachable: ?boolean, unled: number, routers: any[], gateways: any[], shards: any[], regions: any[]}}
 */
let shown = null;
let shownText = "";
let asking = false;
let timer = 0;

function notice(text = "") {
  at("notice").textContent = text;
}

// Asking.

/** Ask anew, and again from time to time; without the right token, once somebody gives one. */
async function refresh() {
  if (asking) return;
  asking = true;
  clearTimeout(timer);
  try {
    if (!(await ask())) return;
    notice();
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    notice(shown ? `${why}; this is how it was last known` : why);
  } finally {
    asking = false;
  }
  timer = setTimeout(() => { if (!document.hidden) refresh(); }, EVERY_MS);
}

/** Whether we may ask; what is told is shown. */
async function ask() {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const url = new URL("../api/shards", document.baseURI);
  const response = await fetch(url, { headers, signal: AbortSignal.timeout(DEADLINE_MS) });
  const text = await response.text();
  if (response.status === 401) {
    askToken(token ? "that is not the admin token" : "");
    return false;
  }
  if (!response.ok) throw new Error(messageOf(text) ?? `the node answered ${response.status}`);
  at("login").hidden = true;
  if (text !== shownText) {
    shownText = text;
    shown = JSON.parse(text);
    show();
  }
  return true;
}

function messageOf(text) {
  try {
    return JSON.parse(text).message;
  } catch {
    return null;
  }
}

function askToken(why) {
  sessionStorage.removeItem(TOKEN);
  at("all").hidden = true;
  at("login").hidden = false;
  at("token").focus();
  notice(why);
}

// Showing.

const number = (value) => ({ text: String(value), name: "number" });
const ofRegions = (value) => ({ ...(typeof value === "object" ? value : { text: value }), regions: true });
const rate = (value) => number(value === null ? NONE : value.toLocaleString("en", { maximumFractionDigits: 1 }));

function show() {
  const { node, shards, routers, regions } = shown;
  at("all").hidden = false;
  at("all").dataset.regions = String(regions.length > 0);
  at("node").textContent = node;
  at("summary").textContent = summary();
  fill("regions", regions.map(regionRow));
  fill("routers", routers.map(routerRow));
  const regionOf = new Map(routers.map(({ name, region }) => [name, region]));
  const wanted = at("only").checked ? shards.filter(isNews) : shards;
  fill("shards", wanted.map((shard) => shardRow(shard, regionOf)));
}

function fill(id, rows) {
  at(id).tBodies[0].replaceChildren(...rows.map(rowElement));
}

function rowElement({ state = "", cells }) {
  const row = document.createElement("tr");
  row.dataset.state = state;
  for (const cell of cells) {
    const { text, name = "", regions = false } = typeof cell === "object" ? cell : { text: cell };
    const made = document.createElement("td");
    made.className = [name, regions ? "of-regions" : ""].join(" ").trim();
    made.textContent = text;
    row.append(made);
  }
  return row;
}

function summary() {
  const { reachable, shards, unled, gateways } = shown;
  if (reachable === null) return `This node is alone: it has no directory, and its router leads all ${shards.length} shards.`;
  const moving = shards.filter(isMoving).length;
  const parts = [`${shards.length} shards, ${unled} without a leader, ${moving} on their way`];
  parts.push(`workers at ${gateways.map(({ name }) => name).join(", ") || "no node"}`);
  if (!reachable) parts.push("the directory does not answer: this is how it was last known");
  return `${parts.join("; ")}.`;
}

function regionRow(one) {
  const behind = one.behind ? `${one.follows} (${one.behind} behind)` : one.follows;
  const counts = [one.routers, one.gateways, one.leads, one.wanted, behind].map(number);
  const state = one.evacuated || one.breakers_open ? "warn" : "";
  return { state, cells: [one.name, ...counts, number(lagOf(one)), breakerOf(one), stateOf(one)] };
}

/** Batches, and for how long. */
function lagOf({ lag_entries: entries, lag_seconds: seconds }) {
  if (entries === null) return NONE;
  return entries ? `${entries} (${seconds.toFixed(1)} s)` : "0";
}

function breakerOf({ breakers, breakers_open: open }) {
  if (!breakers) return NONE;
  if (!open) return "closed";
  return open < breakers ? `open at ${open} of ${breakers}` : "open";
}

function stateOf({ evacuated, since_ms: since, by }) {
  if (!evacuated) return "serves";
  return since === null ? "evacuated" : `evacuated since ${new Date(since).toISOString()} by ${by || "nobody known"}`;
}

function routerRow(one) {
  const away = shown.regions.some(({ name, evacuated }) => evacuated && name === one.region);
  const state = one.leaving ? "leaving" : one.cordoned ? "cordoned" : away ? "region evacuated" : "takes shards";
  return {
    state: one.cordoned || one.leaving ? "warn" : "",
    cells: [
      one.name,
      ofRegions(one.region || NONE),
      number(one.leads),
      number(one.wanted),
      ofRegions(number(one.follows)),
      rate(one.load),
      state,
    ],
  };
}

const isMoving = ({ leader, wanted }) => leader !== null && leader !== wanted;
const isBehind = ({ router, lag_entries: entries }) => router === null || entries > 0;

function isNews(one) {
  const { leader, pinned, followers } = one;
  return leader === null || pinned !== null || isMoving(one) || Object.values(followers).some(isBehind);
}

function shardRow(one, regionOf) {
  const moves = isMoving(one) ? [`to ${one.wanted ?? "nobody"}`] : [];
  if (one.pinned !== null) moves.push(`pinned at ${one.pinned}`);
  const followers = Object.entries(one.followers).map(
    ([region, follower]) => `${region}: ${follower.router ?? "nobody"}, ${lagOf(follower)}`,
  );
  return {
    state: one.leader === null ? "bad" : isMoving(one) ? "warn" : "",
    cells: [
      number(one.shard),
      one.leader ?? "nobody",
      ofRegions(regionOf.get(one.leader) || NONE),
      number(one.epoch),
      rate(one.load),
      moves.join(", "),
      ofRegions(followers.join("; ") || NONE),
    ],
  };
}

// Start.

at("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, at("token").value.trim());
  at("token").value = "";
  refresh();
});
at("only").addEventListener("change", () => { if (shown) show(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && at("login").hidden) refresh(); });
refresh();
