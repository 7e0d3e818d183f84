// A dialog with the history of the pool: how many jobs ended, how long they waited and ran, as a chart and as a table.

import { get } from "./api.js";
import { $, h, icon, mark, s, say } from "./dom.js";
import { clockTime, duration, jobCount } from "./format.js";
import { number, t } from "./texts.js";

const WIDTH = 720;
const HEIGHT = 120;
const AGAIN_MS = 10_000;
const SPANS = [["6h", t("Last 6 hours")], ["24h", t("Last 24 hours")], ["7d", t("Last 7 days")], ["14d", t("Last 14 days")]];
const STATES = ["completed", "failed", "cancelled"];

/** The dialog. Returns {open()}. */
export function makeHistory() {
  const dialog = $("history");
  let timer = 0;
  let found = null;
  const span = h("select", { "aria-label": t("Time"), onchange: load }, SPANS.map(([value, text]) => h("option", { value, text })));
  span.value = "24h";
  const engine = h("select", { "aria-label": t("Engine"), onchange: () => draw() }, h("option", { value: "", text: t("All engines") }));
  const state = h("p", { class: "aside", role: "status" });
  const body = h("div", { class: "history", tabindex: "0", role: "region", "aria-label": t("History") });
  dialog.append(
    h("header", {}, h("h2", { id: "history-title", text: t("History") }), h("button", { type: "button", class: "icon", "aria-label": t("Close"), onclick: () => dialog.close() }, icon("close"))),
    h("div", { class: "log-tools" }, span, engine),
    body,
    state,
  );
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => clearTimeout(timer));

  async function load() {
    clearTimeout(timer);
    try {
      found = await get(`/stats?since=${span.value}`);
      draw();
    } catch (error) {
      say(state, error.message);
    }
    if (dialog.open) timer = setTimeout(load, AGAIN_MS);
  }

  function draw() {
    const names = [...new Set(found.stretches.map((one) => one.engine))].sort();
    const present = [...engine.options].slice(1).map((option) => option.value);
    if (present.join("\n") !== names.join("\n")) {
      const chosen = engine.value;
      for (const option of [...engine.options].slice(1)) option.remove();
      engine.append(...names.map((name) => h("option", { value: name, text: name })));
      engine.value = names.includes(chosen) ? chosen : "";
    }
    const rows = gather(found, engine.value);
    const ended = rows.filter((row) => row.all);
    const total = ended.reduce((sum, row) => sum + row.all, 0);
    say(state, [t("{jobs} ended", { jobs: jobCount(total) }), found.unread ? t("{jobs} still being read", { jobs: jobCount(found.unread) }) : ""].filter(Boolean).join(" · "));
    mark(body, "data-empty", !total);
    body.replaceChildren(
      chart(t("Jobs that ended"), rows, STATES.map((name) => [name, (row) => row[name]]), number),
      chart(t("Mean wait and run"), rows, [["wait", (row) => row.wait_s], ["run", (row) => row.run_s]], duration),
      table(ended),
    );
  }

  return {
    open() {
      if (!dialog.open) dialog.showModal();
      load();
    },
  };
}

/** A row for each stretch of time, those without jobs, too; of one engine, or of all ("") put together. */
export function gather({ begin, step_s: step, stretches }, engine, now = Date.now() / 1000) {
  const rows = new Map();
  for (let at = begin; at <= now; at += step) rows.set(at, { at, all: 0, completed: 0, failed: 0, cancelled: 0, ran: 0, wait_s: 0, run_s: 0, wait_most_s: 0, run_most_s: 0 });
  for (const one of stretches) {
    const row = rows.get(one.at);
    if (!row || (engine && one.engine !== engine)) continue;
    const ran = row.ran + one.ran;
    for (const key of ["wait_s", "run_s"]) row[key] = ran ? (row[key] * row.ran + one[key] * one.ran) / ran : 0;
    for (const key of ["wait_most_s", "run_most_s"]) row[key] = Math.max(row[key], one[key]);
    for (const name of STATES) row[name] += one[name];
    row.ran = ran;
    row.all += one.completed + one.failed + one.cancelled;
  }
  return [...rows.values()];
}

/** Bars that stand on each other. The table says the same to those who do not see them. */
function chart(title, rows, parts, say) {
  const sums = rows.map((row) => parts.reduce((sum, [, value]) => sum + value(row), 0));
  const most = Math.max(...sums, 0);
  const step = WIDTH / Math.max(1, rows.length);
  const bars = [];
  rows.forEach((row, at) => {
    let top = HEIGHT;
    for (const [name, value] of parts) {
      const tall = most ? (value(row) / most) * HEIGHT : 0;
      if (!tall) continue;
      top -= tall;
      bars.push(s("rect", { x: (at * step + step * 0.1).toFixed(2), y: top.toFixed(2), width: (step * 0.8).toFixed(2), height: tall.toFixed(2), "data-part": name }));
    }
  });
  const names = { completed: t("Completed"), failed: t("Failed"), cancelled: t("Cancelled"), wait: t("Waited"), run: t("Ran") };
  return h(
    "figure",
    { class: "chart", "aria-hidden": "true" },
    h("figcaption", {}, h("b", { text: title }), h("span", { text: most ? t("at most {most}", { most: say(most) }) : "" }), parts.map(([name]) => h("span", { class: "mark", dataset: { part: name }, text: names[name] }))),
    s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" }, ...bars),
    h("div", { class: "ends" }, h("span", { text: clockTime(rows[0]?.at) }), h("span", { text: t("now") })),
  );
}

function table(rows) {
  const columns = [
    [t("From"), (row) => clockTime(row.at)],
    [t("Completed"), (row) => number(row.completed)],
    [t("Failed"), (row) => number(row.failed)],
    [t("Cancelled"), (row) => number(row.cancelled)],
    [t("Mean wait"), (row) => (row.ran ? duration(row.wait_s) : "")],
    [t("Longest wait"), (row) => (row.ran ? duration(row.wait_most_s) : "")],
    [t("Mean run"), (row) => (row.ran ? duration(row.run_s) : "")],
    [t("Longest run"), (row) => (row.ran ? duration(row.run_most_s) : "")],
  ];
  if (!rows.length) return h("p", { class: "plain", text: t("No job has ended in this time.") });
  return h("table", {}, h("caption", { class: "unseen", text: t("History") }), h("thead", {}, h("tr", {}, columns.map(([name]) => h("th", { scope: "col", text: name })))), h("tbody", {}, [...rows].reverse().map((row) => h("tr", {}, columns.map(([, value], at) => h(at ? "td" : "th", at ? { text: value(row) } : { scope: "row", text: value(row) }))))));
}
