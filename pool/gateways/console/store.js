// The state of the pool, and the loop that polls it.

import { Refused, get, pause } from "./api.js";

const EVERY_MS = 1000;
const ENGINES_MS = 15_000;
const SHARE = 4; // a poll that took t is not repeated before 4 t have passed
const FEW = 200;
const ALL = 1000; // the limit of the gateway
export const HISTORY = 150; // polls kept per engine

export const store = {
  link: "connecting", // "connecting" | "live" | "lost" | "refused" | "token"
  trouble: "", // why the link is not live
  retryAt: 0, // ms since 1970, time of the next try
  status: null,
  engines: [],
  jobs: [],
  total: 0,
  listed: false, // whether `jobs` belongs to the current filter
  filter: { state: "", engine: "", query: "" },
  hits: new Set(), // ids of the jobs in which the gateway has found the query
  limit: FEW,
  history: new Map(), // engine -> numbers of waiting and running jobs
};

const listeners = new Set();
let wake = new AbortController();
let generation = 0; // of the filter: answers for an older filter are dropped
let enginesAt = 0;

/** Call `listener` after every change. */
export function subscribe(listener) {
  listeners.add(listener);
}

function notify() {
  for (const listener of listeners) listener(store);
}

/** Poll at once. */
export function refresh() {
  wake.abort();
}

export function setFilter(changes) {
  Object.assign(store.filter, changes);
  generation += 1;
  store.limit = FEW;
  store.listed = false;
  notify();
  refresh();
}

/** List more jobs, if there are more. */
export function listMore() {
  if (store.limit === ALL || store.total <= store.limit) return;
  store.limit = ALL;
  refresh();
}

export function schemaOf(name) {
  return store.engines.find((engine) => engine.name === name);
}

async function loadEngines() {
  const missing = store.engines.some((engine) => !engine.described) || !store.engines.length;
  if (Date.now() < enginesAt + (missing ? 2000 : ENGINES_MS)) return;
  store.engines = (await get("/engines")).engines;
  enginesAt = Date.now();
}

async function look() {
  const asked = generation;
  const { state, engine, query } = store.filter;
  const states = state === "queued" ? ["queued", "deferred", "held"] : [state]; // all waiting
  const [status, lists, hits] = await Promise.all([
    get("/status"),
    Promise.all(states.map((one) => list(one, engine))),
    Promise.all(query ? states.map((one) => list(one, engine, query)) : []),
    loadEngines(),
  ]);
  store.status = status;
  remember(status);
  if (asked !== generation) return;
  const total = lists.reduce((sum, one) => sum + one.total, 0);
  const found = hits.flatMap((one) => one.jobs);
  const jobs = [...new Map([...lists.flatMap((one) => one.jobs), ...found].map((job) => [job.id, job])).values()];
  store.hits = new Set(found.map((job) => job.id));
  Object.assign(store, { jobs, total, listed: true });
}

function list(state, engine, query = "") {
  const wanted = new URLSearchParams({ limit: String(store.limit) });
  for (const [key, value] of Object.entries({ state, engine, q: query })) if (value) wanted.set(key, value);
  return get(`/jobs?${wanted}`);
}

function remember(status) {
  for (const engine of status.engines) {
    const past = store.history.get(engine.name) ?? [];
    past.push(engine.queued + engine.held + engine.deferred + engine.running);
    store.history.set(engine.name, past.slice(-HISTORY));
  }
}

/** Poll while the page is open; rarely while it is hidden. */
export async function run() {
  document.addEventListener("visibilitychange", () => document.hidden || refresh());
  addEventListener("online", refresh);
  for (let failures = 0; ; ) {
    wake = new AbortController();
    const begun = performance.now();
    let wait = EVERY_MS;
    try {
      await look();
      failures = 0;
      Object.assign(store, { link: "live", trouble: "" });
      wait = Math.max(document.hidden ? 15 * EVERY_MS : EVERY_MS, SHARE * (performance.now() - begun));
    } catch (error) {
      if (!(error instanceof Refused)) console.error(error);
      failures += 1;
      wait = Math.max(1000 * Math.min(10, 2 ** (failures - 1)), 1000 * (error.retryAfterS ?? 0));
      const link = error.status === 401 ? "token" : error.status ? "refused" : "lost";
      Object.assign(store, { link, trouble: error.message, retryAt: Date.now() + wait });
    }
    notify();
    await pause(store.link === "token" ? 3_600_000 : wait, wake.signal);
  }
}
