// The left pane: every engine with its queue and the workers in its slots; of a cluster also its nodes.

import { h, keyed, mark, s, say } from "./dom.js";
import { age, bytes, duration, word } from "./format.js";
import { nameOf } from "./memory.js";
import { HISTORY } from "./store.js";
import { key, number, t } from "./texts.js";

const STARTING = new Set(["booting", "loading", "warming"]);
const WIDTH = 240;
const HEIGHT = 28;

/** Draw the pane. actions: {filter(engine, state), open(jobId), log(slot), history()}. */
export function drawPool(pane, store, actions) {
  const { status } = store;
  if (!status) {
    if (!pane.childElementCount) pane.append(...[0, 1].map(() => h("div", { class: "engine ghost", "aria-hidden": "true" })));
    return;
  }
  for (const ghost of pane.querySelectorAll(".ghost")) ghost.remove();
  const engines = status.engines.map((engine) => ({
    ...engine,
    slots: status.slots.filter((slot) => slot.engine === engine.name),
    past: store.history.get(engine.name) ?? [],
  }));
  const cluster = status.cluster ? [{ part: "cluster", cluster: status.cluster, nodes: status.nodes }] : [];
  const make = (item) => (item.part ? makeCluster() : item.name ? makeEngine(item, actions) : makeFoot(actions));
  keyed(pane, [...engines, ...cluster, status], (item) => (item.part ? "/cluster" : item.name ?? ""), make, (part, item) => part.update(item));
}

function makeEngine(engine, actions) {
  const ready = h("span", { class: "ready" });
  const figures = ["queued", "running", "dead"].map((kind) => {
    const figureOf = h("b");
    const label = { queued: t("waiting"), running: t("running"), dead: t("failed") };
    const state = { queued: "queued", running: "running", dead: "failed" }[kind];
    const node = h("button", { type: "button", class: "figure", dataset: { kind }, onclick: () => actions.filter(engine.name, state) }, figureOf, h("span", { text: label[kind] }));
    return { kind, figureOf, node, label: label[kind] };
  });
  const base = s("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1 });
  const line = s("polyline", { class: "line" });
  const area = s("polygon", { class: "area" });
  const spark = s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" }, base, area, line);
  const note = h("p", { class: "aside" });
  const slots = h("ul", { class: "slots" });
  const name = h("button", { type: "button", class: "name", text: engine.name, title: t("Show only its jobs"), onclick: () => actions.filter(engine.name, "") });
  const node = h("section", { class: "engine", "aria-label": t("Engine {name}", { name: engine.name }), dataset: { engine: engine.name } }, h("header", {}, h("h2", {}, name), ready), h("div", { class: "figures" }, figures.map((figure) => figure.node)), spark, note, slots);
  return {
    node,
    update(now) {
      say(ready, now.configured ? t("{n} of {all} ready", { n: now.serving, all: now.workers }) : t("not configured"));
      mark(ready, "data-short", now.configured && now.serving < now.workers);
      for (const figure of figures) {
        const value = figure.kind === "queued" ? now.queued + now.held + now.deferred : now[figure.kind];
        say(figure.figureOf, number(value));
        mark(figure.node, "data-zero", value === 0);
        mark(figure.node, "aria-label", t("{n} {what}: show them", { n: value, what: figure.label }));
      }
      draw(now.past, line, area);
      mark(spark, "data-flat", !now.past.some(Boolean));
      const parts = [];
      if (now.oldest_wait_s >= 2) parts.push(t("longest wait {time}", { time: age(now.oldest_wait_s) }));
      if (now.deferred) parts.push(t("{n} scheduled", { n: now.deferred }));
      if (now.held) parts.push(t("{n} held for other jobs", { n: now.held }));
      say(note, parts.join(" · "));
      note.hidden = !parts.length;
      keyed(slots, now.slots, (slot) => slot.slot, (slot) => makeSlot(slot, actions), (part, slot) => part.update(slot));
    },
  };
}

function draw(past, line, area) {
  const most = Math.max(1, ...past);
  const step = WIDTH / (HISTORY - 1);
  const begin = WIDTH - (past.length - 1) * step; // the latest value is at the right edge
  const points = past.map((value, at) => `${(begin + at * step).toFixed(1)},${(HEIGHT - 2 - (value / most) * (HEIGHT - 4)).toFixed(1)}`);
  mark(line, "points", points.join(" "));
  mark(area, "points", `${begin.toFixed(1)},${HEIGHT} ${points.join(" ")} ${WIDTH},${HEIGHT}`);
}

/** The state of a slot as one of "bad", "warn", "busy", "idle", for its colour. */
export function mood(slot) {
  if (["benched", "off"].includes(slot.seat) || slot.seat === "orphaned") return "bad";
  if (slot.trouble) return "warn";
  if (STARTING.has(slot.phase) || slot.seat === "waiting" || !slot.phase) return "warn";
  return slot.phase === "busy" ? "busy" : slot.phase === "idle" ? "idle" : "warn";
}

function makeSlot(slot, actions) {
  const phase = h("span", { class: "phase" });
  const memory = h("span", { class: "memory" });
  const what = h("span", { class: "what" });
  const bar = h("i");
  const meter = h("span", { class: "meter", hidden: true }, bar);
  const facts = h("dl", { class: "facts" });
  const open = h("button", { type: "button", class: "link", hidden: true, text: t("Open its job"), onclick: () => actions.open(open.dataset.job) });
  const log = h("button", { type: "button", class: "link", text: t("Show its log"), hidden: Boolean(slot.node), onclick: () => actions.log(slot.slot) });
  const summary = h("summary", {}, h("i", { class: "dot" }), h("span", { class: "slot", text: slot.slot }), phase, memory, what, meter);
  const node = h("li", { class: "seat", dataset: { slot: slot.slot } }, h("details", {}, summary, facts, open, log));
  return {
    node,
    update(now) {
      const busy = now.phase === "busy";
      mark(node, "data-mood", mood(now));
      say(phase, word(now.seat === "running" ? now.phase || "starting" : now.seat));
      say(memory, bytes(now.rss_bytes));
      memory.hidden = !now.rss_bytes;
      const job = now.job ? nameOf(now.job) || now.job : "";
      const idle = [now.jobs_done ? t("{n} {n|job|jobs} done", { n: now.jobs_done }) : t("no job yet"), now.restarts ? t("{n} {n|restart|restarts}", { n: now.restarts }) : ""].filter(Boolean).join(" · ");
      say(what, now.trouble.replace(/^(benched|off): /, "") || (busy ? job : now.phase === "idle" ? idle : now.phase_s !== null && now.phase !== "" ? t("for {time}", { time: age(now.phase_s) }) : now.why));
      meter.hidden = !busy;
      bar.style.transform = `scaleX(${(now.percent ?? 0) / 100})`;
      open.hidden = !now.job || Boolean(now.node); // a node has ids of its own
      open.dataset.job = now.job;
      const list = [
        [key("Node"), now.node],
        [key("Job"), now.job],
        [key("Stage"), now.stage && now.percent !== null ? `${now.stage} · ${Math.round(now.percent)} %` : now.stage],
        [key("Trouble"), now.trouble],
        [key("Error"), now.error ? [now.error.stage, now.error.message].filter(Boolean).join(": ") : ""],
        [key("Hint"), now.error?.hint ?? ""],
        [key("Restarts"), now.restarts ? String(now.restarts) : t("none")],
        [key("Last ended"), now.last_death],
        [key("Next start"), now.next_start_s !== null ? t("in about {time}", { time: age(now.next_start_s) }) : ""],
        [key("In phase for"), now.phase_s !== null ? age(now.phase_s) : ""],
        [key("Silent for"), busy && now.silent_s >= 5 ? age(now.silent_s) : ""],
        [key("Jobs done"), String(now.jobs_done)],
        [key("Memory"), [bytes(now.rss_bytes), now.gpu_bytes ? `${bytes(now.gpu_bytes)} GPU` : ""].filter(Boolean).join(" · ")],
        [key("Device"), now.device],
        [key("Process"), now.pid ? `${now.pid}${now.worker ? ` (${now.worker})` : ""}` : ""],
      ].filter(([, value]) => value);
      keyed(facts, list, ([name]) => name, ([name]) => makeFact(name), (part, [, value]) => say(part.value, value));
    },
  };
}

function makeCluster() {
  const state = h("span", { class: "ready" });
  const note = h("p", { class: "aside" });
  const list = h("ul", { class: "slots" });
  const node = h("section", { class: "engine", "aria-label": t("Nodes of the cluster") }, h("header", {}, h("h2", { text: t("Nodes") }), state), note, list);
  return {
    node,
    update({ cluster, nodes }) {
      const well = cluster.connected && !cluster.trouble;
      say(state, well ? t("{n} {n|node|nodes}", { n: nodes.length }) : t("not connected"));
      mark(state, "data-short", !well);
      const parts = [cluster.trouble, cluster.full, cluster.waiting ? t("{n} {n|job|jobs} sent and not begun", { n: cluster.waiting }) : ""].filter(Boolean);
      say(note, parts.join(" · "));
      note.hidden = !parts.length;
      keyed(list, nodes, (one) => one.name, (one) => makeNode(one), (part, one) => part.update(one));
    },
  };
}

function makeNode(node) {
  const phase = h("span", { class: "phase" });
  const ready = h("span", { class: "memory" });
  const what = h("span", { class: "what" });
  const facts = h("dl", { class: "facts" });
  const summary = h("summary", {}, h("i", { class: "dot" }), h("span", { class: "slot", text: node.name }), phase, ready, what);
  const item = h("li", { class: "seat", dataset: { node: node.name } }, h("details", {}, summary, facts));
  return {
    node: item,
    update(now) {
      const engines = Object.entries(now.engines).sort(([one], [other]) => (one < other ? -1 : 1));
      const sum = (key) => engines.reduce((total, [, engine]) => total + engine[key], 0);
      const troubles = engines.filter(([, engine]) => engine.trouble).map(([name, engine]) => `${name}: ${engine.trouble}`);
      mark(item, "data-mood", now.draining || troubles.length ? "warn" : sum("busy") ? "busy" : "idle");
      say(phase, now.draining ? t("draining") : sum("busy") ? t("{n} busy", { n: sum("busy") }) : sum("serving") ? t("idle") : t("not ready"));
      say(ready, `${sum("serving")}/${sum("slots")}`);
      say(what, troubles.join("; ") || engines.map(([name]) => name).join(", "));
      const list = [
        [key("Host"), now.host],
        [key("Labels"), now.labels.join(", ")],
        [key("Jobs"), String(now.jobs)],
        ...engines.map(([name, engine]) => [name, [t("{n} busy, {ready} of {all} ready", { n: engine.busy, ready: engine.serving, all: engine.slots }), engine.waiting ? t("{n} waiting", { n: engine.waiting }) : ""].filter(Boolean).join(", ")]),
        [key("Version"), now.version],
        [key("Seen"), t("{time} ago", { time: age(now.seen_s) })],
      ].filter(([, value]) => value);
      keyed(facts, list, ([name]) => name, ([name]) => makeFact(name), (part, [, value]) => say(part.value, value));
    },
  };
}

function makeFact(name) {
  const value = h("dd");
  return { node: h("div", { dataset: { fact: name } }, h("dt", { text: t(name) }), value), value };
}

function makeFoot(actions) {
  const facts = h("p", {});
  const node = h("div", { class: "foot" }, h("button", { type: "button", class: "link", text: t("History of the pool"), onclick: () => actions.history() }), facts);
  return {
    node,
    update(status) {
      const parts = [t("{size} free", { size: bytes(status.free_bytes) })];
      if (status.dropped) parts.push(t("{n} dropped {n|file|files} in in/", { n: status.dropped }));
      if (status.quarantined) parts.push(t("{n} in quarantine", { n: status.quarantined }));
      if (status.supervisor) parts.push(t("serving for {time}", { time: duration(Math.round((status.at - status.supervisor.started) / 1e6)) }));
      if (status.supervisor?.version) parts.push(t("version {version}", { version: status.supervisor.version }));
      say(facts, parts.join(" · "));
    },
  };
}
