// The page's end of the stream that all tabs share; where there are no shared workers, a stream of its own.

const NAME = "filepool.1"; // another one when the messages change
const PING_MS = 20_000;
const SILENT_MS = 60_000; // then the worker is gone

const listeners = new Set();
let want = null;
let port = null;
let heard = 0;
let shared = typeof SharedWorker !== "undefined";

/** Call `listener` with each message of the hub (hub.js). */
export function hear(listener) {
  listeners.add(listener);
}

/** Say what this tab wants: {token, lists, job, follow, hidden}. */
export function wish(changes) {
  want = { token: "", lists: [], job: "", follow: 0, hidden: document.hidden, ...want, ...changes, kind: "want" };
  if (!port) connect();
  port.postMessage(want);
}

/** Look again at once. */
export function lookNow() {
  port?.postMessage({ kind: "now" });
}

function connect() {
  heard = Date.now();
  port = shared ? sharedPort() : ownPort();
  port.onmessage = ({ data }) => {
    heard = Date.now();
    for (const listener of listeners) listener(data);
  };
}

function sharedPort() {
  try {
    const worker = new SharedWorker(new URL("worker.js", import.meta.url), { type: "module", name: NAME });
    worker.addEventListener("error", alone);
    return worker.port;
  } catch {
    shared = false;
    return ownPort();
  }
}

function ownPort() {
  const { port1, port2 } = new MessageChannel();
  import("./hub.js").then(({ makeHub }) => makeHub().connect(port2));
  return port1;
}

/** The shared worker cannot be used here. */
function alone() {
  if (!shared) return;
  shared = false;
  connect();
  if (want) port.postMessage(want);
}

setInterval(() => {
  if (!want) return;
  if (heard < Date.now() - SILENT_MS && !document.hidden) connect();
  port.postMessage(want);
}, PING_MS);
document.addEventListener("visibilitychange", () => want && wish({ hidden: document.hidden }));
addEventListener("online", lookNow);
addEventListener("pagehide", () => port?.postMessage({ kind: "bye" }));
addEventListener("pageshow", (event) => event.persisted && want && wish({ hidden: false }));
