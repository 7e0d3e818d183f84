// One event stream for all tabs: a browser opens six connections to an address at most, over all of its tabs.
//
// A tab says what it wants: {kind: "want", token, lists: [queries], job, hidden}; "now": connect again at once; "bye".
// It gets {kind: "link", link, trouble, retryAt}, "status", "engines", "list" {query, body}, "job" {id, event, data},
// "gone" {id, status, message}, and "pong" after each want. Tabs with the same token share a stream.

import { key } from "./texts.js";
import { at, events, pause, Refused, refusal } from "./wire.js";

const CALM_MS = 60; // wants of this long become one request
const SILENT_MS = 45_000; // the gateway says something every 10 s
const GONE_MS = 150_000; // a tab that has said nothing for so long is closed; hidden tabs have one timer a minute
const HIDDEN_S = 15; // between two looks at the pool while nobody sees them

/** The hub. connect(port): a tab has come. */
export function makeHub() {
  const lines = new Map(); // token -> its stream
  const tabs = new Set();

  function connect(port) {
    const tab = { port, want: { token: null, lists: [], job: "", hidden: false }, last: "", over: false, line: null, seen: Date.now() };
    tabs.add(tab);
    port.onmessage = ({ data }) => {
      tab.seen = Date.now();
      if (data.kind === "bye") leave(tab);
      else if (data.kind === "now") tab.line?.now();
      else if (data.kind === "want") wish(tab, data);
      for (const other of tabs) if (other.seen < Date.now() - GONE_MS) leave(other);
    };
  }

  function wish(tab, want) {
    tabs.add(tab);
    if (want.job !== tab.want.job || want.follow !== tab.want.follow) [tab.last, tab.over] = ["", false];
    tab.want = want;
    let line = lines.get(want.token);
    if (!line) lines.set(want.token, (line = makeLine(want.token)));
    if (tab.line !== line) {
      release(tab);
      tab.line = line;
      line.join(tab);
    }
    line.change();
    tab.port.postMessage({ kind: "pong" });
  }

  function release(tab) {
    const line = tab.line;
    tab.line = null;
    if (line?.leave(tab)) lines.delete(line.token);
  }

  function leave(tab) {
    tabs.delete(tab);
    release(tab);
  }

  return { connect };
}

/** The stream of one token and the tabs that it feeds. */
function makeLine(token) {
  const tabs = new Set();
  const lists = new Map(); // query -> its latest body
  let link = { kind: "link", link: "connecting", trouble: "", retryAt: 0 };
  let [status, engines] = [null, null];
  let going = new AbortController();
  let asked = null; // what the open stream was asked for
  let timer = 0;
  let running = false;

  const tell = (message) => tabs.forEach((tab) => tab.port.postMessage(message));

  function show(next) {
    link = { kind: "link", trouble: "", retryAt: 0, ...next };
    tell(link);
  }

  /** What all tabs want together. */
  function gather() {
    const seen = [...tabs].filter((tab) => !tab.want.hidden);
    const followers = [...tabs].filter((tab) => tab.want.job && !tab.over);
    return { lists: [...new Set(seen.flatMap((tab) => tab.want.lists))], followers, everyS: seen.length ? 1 : HIDDEN_S };
  }

  const same = (one, other) => one && one.everyS === other.everyS && other.lists.every((query) => one.lists.includes(query)) && other.followers.every((tab) => one.followers.some((known, place) => known === tab && one.ids[place] === `${tab.want.job}/${tab.want.follow}`));

  function change() {
    if (!running) return void run();
    if (link.link === "token") return; // another token is another stream
    clearTimeout(timer);
    timer = setTimeout(() => same(asked, gather()) || going.abort("again"), asked ? CALM_MS : 0);
  }

  function address(wanted) {
    const query = new URLSearchParams();
    for (const list of wanted.lists) query.append("list", list);
    for (const tab of wanted.followers) query.append("job", tab.last ? `${tab.want.job}@${tab.last}` : tab.want.job);
    query.set("every_s", String(wanted.everyS));
    return at(`/live?${query}`);
  }

  async function run() {
    running = true;
    await pause(CALM_MS);
    for (let failures = 0; tabs.size; ) {
      going = new AbortController();
      const { signal } = going;
      const wanted = gather();
      asked = { ...wanted, ids: wanted.followers.map((tab) => `${tab.want.job}/${tab.want.follow}`) };
      let [heard, wait] = [false, 0];
      let watch = 0;
      const listen = () => {
        clearTimeout(watch);
        watch = setTimeout(() => going.abort("silent"), SILENT_MS);
      };
      try {
        listen();
        const answer = await fetch(address(wanted), { headers: token ? { Authorization: `Bearer ${token}` } : {}, signal, cache: "no-store" });
        if (!answer.ok) throw refusal(answer.status, await answer.json().catch(() => null), answer.headers.get("Retry-After"));
        for await (const event of events(answer.body)) {
          listen();
          if (!event) continue;
          [heard, failures] = [true, 0];
          deliver(event, wanted);
        }
        if (!heard) throw new Refused(0, key("the gateway ended the stream"));
      } catch (error) {
        if (signal.reason === "again") failures = 0;
        else if (error.status >= 400 || !heard) {
          failures += 1;
          wait = Math.max(1000 * Math.min(10, 2 ** (failures - 1)), 1000 * (error.retryAfterS ?? 0));
          const name = error.status === 401 ? "token" : error.status ? "refused" : "lost";
          const trouble = error.status ? error.message : signal.reason === "silent" ? key("the gateway does not answer") : key("the gateway cannot be reached");
          show({ link: name, trouble, retryAt: Date.now() + wait });
          if (name === "token") wait = 3_600_000; // until a tab has another one
        }
      } finally {
        clearTimeout(watch);
      }
      asked = null;
      if (wait) {
        going = new AbortController();
        await pause(wait, going.signal);
      }
    }
    running = false;
  }

  function deliver({ name, data, id }, wanted) {
    if (link.link !== "live") show({ link: "live" });
    if (name === "status") tell((status = { kind: "status", status: data }));
    if (name === "engines") tell((engines = { kind: "engines", engines: data.engines }));
    if (name === "list") {
      const { of, ...body } = data;
      const query = wanted.lists[of];
      const message = { kind: "list", query, body };
      lists.set(query, message);
      for (const tab of tabs) if (tab.want.lists.includes(query)) tab.port.postMessage(message);
    }
    if (name === "job" || name === "gone") {
      const tab = wanted.followers[data.of];
      if (!tabs.has(tab) || asked.ids[data.of] !== `${tab.want.job}/${tab.want.follow}`) return;
      if (name === "gone") tab.over = true;
      if (name === "job" && data.event === "result") tab.over = true;
      tab.last = data.id || tab.last;
      tab.port.postMessage({ ...data, kind: name, id: tab.want.job });
    }
  }

  return {
    token,
    change,
    /** Connect again at once, for what has changed just now. */
    now: () => going.abort("again"),
    join(tab) {
      tabs.add(tab);
      tab.port.postMessage(link);
      for (const message of [status, engines, ...tab.want.lists.map((query) => lists.get(query))]) if (message) tab.port.postMessage(message);
    },
    /** Forget a tab; whether it was the last one. */
    leave(tab) {
      tabs.delete(tab);
      if (!tabs.size) going.abort("again");
      else change();
      const wanted = new Set([...tabs].flatMap((one) => one.want.lists));
      for (const query of lists.keys()) if (!wanted.has(query)) lists.delete(query);
      return tabs.size === 0;
    },
  };
}
