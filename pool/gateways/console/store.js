// The state of the pool and the jobs that are shown: the live stream, and pages of older jobs.

import { get, tokenText } from "./api.js";
import { hear, lookNow, wish } from "./shared.js";
import { t } from "./texts.js";
import { makeWalk } from "./walk.js";

const FEW = 200; // jobs of the live list
const HISTORY_MS = 1000;
const RENEW_MS = 5000; // older jobs that are seen
const TYPING_MS = 150;
const WAITING = ["queued", "deferred", "held"];
export const HISTORY = 150; // values kept per engine

export const store = {
  link: "connecting", // "connecting" | "live" | "lost" | "refused" | "token"
  trouble: "", // why the link is not live
  retryAt: 0, // ms since 1970, time of the next try
  status: null,
  engines: [],
  jobs: [],
  total: null, // of all jobs of the filter, null: not known
  listed: false, // whether `jobs` belongs to the current filter
  complete: false, // whether there are no more
  unread: 0, // jobs that the gateway has still to read
  filter: { state: "", engine: "", query: "", since: "" },
  hits: new Set(), // ids of the jobs in which the gateway has found the query
  history: new Map(), // engine -> numbers of waiting and running jobs
};

const listeners = new Set();
const bodies = new Map(); // query -> the live list
let asked = { all: "", hits: "" };
let seen = new Set();
let atTop = true;
let historyAt = 0;
let typing = 0;
const walk = makeWalk(get, () => (collect(), notify()));

/** Call `listener` after every change. */
export function subscribe(listener) {
  listeners.add(listener);
}

function notify() {
  for (const listener of listeners) listener(store);
}

/** Look at once. */
export const refresh = lookNow;

export function setFilter(changes) {
  const typed = "query" in changes && Object.keys(changes).length === 1;
  Object.assign(store.filter, changes);
  store.listed = false;
  clearTimeout(typing);
  typing = setTimeout(ask, typed ? TYPING_MS : 0);
  notify();
}

/** Load older jobs, if there are any. */
export function listMore() {
  if (store.listed && !store.complete) walk.more();
}

/** Note which jobs are seen, so that older ones among them stay up to date. */
export function noteSeen(ids, top) {
  [seen, atTop] = [ids, top];
}

let follow = 0;

/** Follow the events of a job from the first one; "" for none. */
export function followJob(id) {
  wish({ job: id, follow: (follow += 1) });
}

/** Use the token that was given or removed. */
export function useNewToken() {
  store.link = "connecting";
  wish({ token: tokenText() });
  lookNow(); // the same token may be tried again
}

function queryOf(text) {
  const { state, engine, since } = store.filter;
  const wanted = new URLSearchParams();
  for (const one of state === "queued" ? WAITING : state ? [state] : []) wanted.append("state", one);
  for (const [key, value] of Object.entries({ engine, since, q: text })) if (value) wanted.set(key, value);
  return wanted.toString();
}

function ask() {
  const { query } = store.filter;
  const limited = (text) => `${queryOf(text)}${queryOf(text) ? "&" : ""}limit=${FEW}`;
  asked = { all: limited(""), hits: query ? limited(query) : "" };
  walk.reset(queryOf(query));
  for (const known of bodies.keys()) if (known !== asked.all && known !== asked.hits) bodies.delete(known);
  wish({ token: tokenText(), lists: Object.values(asked).filter(Boolean) });
  collect();
  notify();
}

/** Put the live list and the older jobs together. */
function collect() {
  const all = bodies.get(asked.all);
  const hits = bodies.get(asked.hits);
  if (!all || (asked.hits && !hits)) return;
  const found = hits?.jobs ?? [];
  const head = [...new Map([...(hits ? found : []), ...all.jobs].map((job) => [job.id, job])).values()];
  const beyond = walk.beyond(head);
  const body = hits ?? all;
  const rest = body.next === undefined ? body.total > body.jobs.length || body.unread : body.next !== "" || body.unread;
  store.hits = new Set([...found, ...(hits ? beyond : [])].map((job) => job.id));
  Object.assign(store, { jobs: [...head, ...beyond], total: body.total ?? null, unread: walk.complete ? 0 : body.unread, listed: true, complete: walk.begun ? walk.complete : !rest });
}

function take(query, body) {
  const before = bodies.get(query)?.jobs ?? [];
  bodies.set(query, body);
  if (query !== (asked.hits || asked.all)) return;
  const now = new Set(body.jobs.map((job) => job.id));
  walk.left(before.filter((job) => !now.has(job.id)), atTop);
}

function remember(status) {
  if (performance.now() < historyAt) return;
  historyAt = performance.now() + HISTORY_MS * 0.9;
  for (const engine of status.engines) {
    const past = store.history.get(engine.name) ?? [];
    past.push(engine.queued + engine.held + engine.deferred + engine.running);
    store.history.set(engine.name, past.slice(-HISTORY));
  }
}

/** Begin. job(message): called with the events of the job that is followed (hub.js). */
export function run(job) {
  hear((message) => {
    if (message.kind === "job" || message.kind === "gone") return void job(message);
    if (message.kind === "pong") return;
    if (message.kind === "link") Object.assign(store, { link: message.link === "live" && !store.status ? store.link : message.link, trouble: t(message.trouble), retryAt: message.retryAt });
    if (message.kind === "status") {
      Object.assign(store, { status: message.status, link: "live" });
      remember(message.status);
    }
    if (message.kind === "engines") store.engines = message.engines;
    if (message.kind === "list") {
      take(message.query, message.body);
      collect();
    }
    notify();
  });
  ask();
  setInterval(() => {
    if (!document.hidden && store.link === "live" && walk.begun) walk.renew(seen);
  }, RENEW_MS);
  setInterval(() => store.link === "lost" && notify(), 1000); // counts down to the next try
}
