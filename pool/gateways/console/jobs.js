// The list of jobs: only visible rows exist, so a thousand jobs cost as much as twenty.

import { $, armed, h, mark, say, stateSign } from "./dom.js";
import { TITLES } from "./failure.js";
import { ago, duration, jobCount, OVER, STATE_NAMES, stageLine } from "./format.js";
import { nameOf } from "./memory.js";
import { drawExamples } from "./start.js";
import { number, t } from "./texts.js";

const STATES = ["", "running", "queued", "completed", "failed", "cancelled"];
const SPARE = 4; // rows above and below the visible ones
const ROW = 56;

/** The list. actions: {open(id), filter(changes), more(), seen(ids, atTop), submit(), bulk(action, ids), announce(text), toast(text, bad)}. */
export function makeList(actions) {
  const rows = $("rows");
  const space = h("div", { class: "space", role: "presentation" });
  const empty = h("div", { class: "empty", hidden: true });
  rows.append(space);
  rows.after(empty); // not within: a list box holds options only
  const choice = makeChoice({ paint, jobs: () => jobs, bulk: actions.bulk });
  const parts = [];
  let jobs = [];
  let slots = new Map();
  let opened = "";
  let cursor = "";
  let query = "";
  let latest = null;

  const buttons = STATES.map((state) => {
    const badge = h("span", { class: "n" });
    const node = h("button", { type: "button", "aria-pressed": "false", dataset: { state }, onclick: () => actions.filter({ state }) }, state ? STATE_NAMES[state] : t("All"), badge);
    return { state, node, badge };
  });
  $("states").append(...buttons.map((button) => button.node));
  $("engine").addEventListener("change", (event) => actions.filter({ engine: event.target.value }));
  $("since").addEventListener("change", (event) => actions.filter({ since: event.target.value }));
  $("search").addEventListener("input", (event) => {
    query = event.target.value.trim().toLowerCase();
    actions.filter({ query });
  });
  $("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && query) actions.open(jobs.length ? jobs[0].id : $("search").value.trim());
    if (event.key === "ArrowDown") rows.focus();
  });
  rows.addEventListener("scroll", paint, { passive: true });
  new ResizeObserver(paint).observe(rows);
  rows.addEventListener("click", (event) => {
    const id = event.target.closest("[data-job]")?.dataset.job;
    if (!id) return;
    const chooses = event.ctrlKey || event.metaKey || event.shiftKey || event.target.closest(".sign");
    if (chooses) choice.toggle(id, event.shiftKey ? cursor : "");
    else actions.open(id);
    cursor = id;
    paint();
  });

  function paint() {
    const first = Math.max(0, Math.floor(rows.scrollTop / ROW) - SPARE);
    const last = Math.min(jobs.length, Math.ceil((rows.scrollTop + rows.clientHeight) / ROW) + SPARE);
    space.style.height = `${jobs.length * ROW}px`;
    while (parts.length < last - first) {
      const part = makeRow();
      parts.push(part);
      space.append(part.node);
    }
    // A job keeps its row element while it is visible, so that its progress bar is animated.
    const free = new Map(parts.map((part) => [part.id, part]));
    const shown = jobs.slice(first, last);
    const taken = new Map();
    for (const job of shown) if (free.has(job.id)) taken.set(job.id, free.get(job.id));
    const idle = parts.filter((part) => !taken.has(part.id) || taken.get(part.id) !== part);
    shown.forEach((job, at) => {
      const part = taken.get(job.id) ?? idle.pop();
      part.update(job, first + at, jobs.length, slots.get(job.id), { opened: job.id === opened, chosen: choice.has(job.id) });
    });
    for (const part of idle) part.clear();
    const there = cursor && shown.some((job) => job.id === cursor);
    mark(rows, "aria-activedescendant", there ? `job-${cursor}` : null);
    for (const part of parts) mark(part.node, "data-cursor", Boolean(part.id) && part.id === cursor);
    actions.seen(new Set(shown.map((job) => job.id)), first === 0);
    if (last >= jobs.length - SPARE && jobs.length > rows.clientHeight / ROW) actions.more();
  }

  function update(store) {
    if (!store) return;
    latest = store;
    slots = new Map((store.status?.slots ?? []).filter((slot) => slot.job).map((slot) => [slot.job, slot]));
    const found = store.jobs.filter((job) => !query || store.hits.has(job.id) || job.id.toLowerCase().includes(query) || nameOf(job.id).toLowerCase().includes(query));
    jobs = found;
    choice.update();
    for (const button of buttons) {
      mark(button.node, "aria-pressed", String(button.state === store.filter.state));
      say(button.badge, figure(store, button.state));
    }
    options(store);
    const nothing = store.listed && !jobs.length;
    empty.hidden = !nothing;
    if (nothing) drawEmpty(store);
    rows.classList.toggle("stale", !store.listed);
    const unread = store.unread ? t("{jobs} still being read", { jobs: jobCount(store.unread) }) : "";
    say($("count"), store.listed ? [jobs.length ? counted(store) : "", unread].filter(Boolean).join(" · ") : "");
    paint();
  }

  function counted(store) {
    const shown = jobCount(jobs.length);
    if (store.complete || query) return store.complete ? shown : t("{jobs}, more below", { jobs: shown });
    return store.total === null || store.unread ? t("{jobs}, more below", { jobs: shown }) : t("{n} of {jobs}", { n: jobs.length, jobs: jobCount(store.total) });
  }

  /** The number of jobs in one state from the engines' counts, "" when they do not give it. */
  function figure(store, state) {
    const engines = (store.status?.engines ?? []).filter((engine) => !store.filter.engine || engine.name === store.filter.engine);
    const sum = (key) => engines.reduce((total, engine) => total + engine[key], 0);
    const value = state === "running" ? sum("running") : state === "queued" ? sum("queued") + sum("held") + sum("deferred") : state === "failed" ? sum("dead") : 0;
    return value ? number(value) : "";
  }

  function options(store) {
    const names = (store.status?.engines ?? []).map((engine) => engine.name);
    const select = $("engine");
    const present = [...select.options].slice(1).map((option) => option.value);
    if (present.join("\n") !== names.join("\n")) {
      for (const option of [...select.options].slice(1)) option.remove();
      select.append(...names.map((name) => h("option", { value: name, text: name })));
    }
    if (select.value !== store.filter.engine) select.value = store.filter.engine;
    if ($("since").value !== store.filter.since) $("since").value = store.filter.since;
  }

  function drawEmpty(store) {
    const filtered = store.filter.state || store.filter.engine || store.filter.since || query;
    const why = query ? t("Enter opens the job with this id, if there is one.") : t("No job has this state and engine, and is as young.");
    const wanted = filtered ? why : "first";
    if (empty.dataset.kind === wanted) return;
    empty.dataset.kind = wanted;
    empty.replaceChildren(
      ...(filtered
        ? [h("h2", { text: t("Nothing matches") }), h("p", { text: why }), h("button", { type: "button", class: "quiet", text: t("Show all jobs"), onclick: clear })]
        : [h("h2", { text: t("No jobs yet") }), h("p", { text: t("Drop a recording or a picture anywhere on this page, or fill in a form.") }), h("button", { type: "button", class: "primary", text: t("New job"), onclick: () => actions.submit() }), drawExamples(actions)]),
    );
  }

  function clear() {
    $("search").value = query = "";
    actions.filter({ state: "", engine: "", since: "", query });
  }

  return {
    update,
    clear,
    /** Mark the job that the right pane shows. */
    setOpened(id) {
      opened = id;
      if (id) cursor = id;
      paint();
    },
    get cursor() {
      return cursor;
    },
    /** Choose the job under the cursor for a bulk action, or drop it. */
    choose: () => cursor && choice.toggle(cursor),
    /** Drop the choice; whether there was one. */
    chooseNone: () => choice.clear(),
    find: (id) => latest?.jobs.find((job) => job.id === id),
    /** Move the cursor by `by` rows; returns the id of its job. */
    move(by) {
      if (!jobs.length) return "";
      const at = jobs.findIndex((job) => job.id === cursor);
      const next = Math.min(jobs.length - 1, Math.max(0, at < 0 ? 0 : at + by));
      cursor = jobs[next].id;
      const top = next * ROW;
      if (top < rows.scrollTop) rows.scrollTop = top;
      if (top + ROW > rows.scrollTop + rows.clientHeight) rows.scrollTop = top + ROW - rows.clientHeight;
      paint();
      return cursor;
    },
  };
}

/** The states of jobs with which something can be done. */
const FIT = { retry: (state) => state === "failed" || state === "cancelled", cancel: (state) => !OVER.has(state), files: (state) => state === "completed" };

/** Chosen jobs and what can be done to all of them. */
function makeChoice({ paint, jobs, bulk }) {
  const chosen = new Map(); // id -> the job as last listed
  const size = h("b");
  const retry = h("button", { type: "button", class: "quiet", onclick: () => act("retry") });
  const cancel = armed(h("button", { type: "button", class: "quiet danger" }), () => act("cancel"));
  const files = h("button", { type: "button", class: "quiet", onclick: () => act("files") });
  const all = h("button", { type: "button", class: "quiet", text: t("Choose all shown"), onclick: () => (jobs().forEach((job) => chosen.set(job.id, job)), update(), paint()) });
  const none = h("button", { type: "button", class: "quiet", text: t("Choose none"), onclick: () => clear() });
  const bar = h("div", { class: "bulk", role: "toolbar", "aria-label": t("Chosen jobs"), hidden: true }, size, retry, cancel.node, files, all, none);
  $("states").parentElement.append(bar);
  const fit = (action) => [...chosen.values()].filter((job) => FIT[action](job.state));

  function act(action) {
    const ids = fit(action).map((job) => job.id);
    clear();
    bulk(action, ids);
  }

  function update() {
    if (chosen.size) for (const job of jobs()) if (chosen.has(job.id)) chosen.set(job.id, job);
    bar.hidden = !chosen.size;
    say(size, t("{n} chosen", { n: chosen.size }));
    for (const [action, verb, show, button] of [["retry", t("Retry"), (text) => say(retry, text), retry], ["cancel", t("Cancel"), cancel.say, cancel.node], ["files", t("Download"), (text) => say(files, text), files]]) {
      const some = fit(action).length;
      show(`${verb} ${number(some)}`);
      button.hidden = !some;
    }
  }

  function clear() {
    const had = chosen.size > 0;
    chosen.clear();
    cancel.calm();
    update();
    paint();
    return had;
  }

  return {
    update,
    clear,
    has: (id) => chosen.has(id),
    /** Choose a job or drop it; with `from`, choose all between the two. */
    toggle(id, from = "") {
      const list = jobs();
      const [at, other] = [id, from || id].map((one) => list.findIndex((job) => job.id === one));
      if (at < 0) return;
      if (from && other >= 0) for (const job of list.slice(Math.min(at, other), Math.max(at, other) + 1)) chosen.set(job.id, job);
      else if (!chosen.delete(id)) chosen.set(id, list[at]);
      update();
      paint();
    },
  };
}

function makeRow() {
  const sign = stateSign();
  const name = h("span", { class: "title" });
  const line = h("span", { class: "line" });
  const engine = h("span", { class: "of" });
  const bar = h("i");
  const meter = h("span", { class: "meter" }, bar);
  const percent = h("span", { class: "percent" });
  const when = h("span", { class: "when" });
  const took = h("span", { class: "took" });
  const node = h("div", { class: "row", role: "option" }, sign.node, h("span", { class: "main" }, name, line), engine, h("span", { class: "going" }, meter, percent), took, when);
  const part = {
    node,
    id: "",
    clear() {
      part.id = "";
      node.hidden = true;
      node.removeAttribute("id"); // another row may get this job
      delete node.dataset.job;
    },
    update(job, at, size, slot, { opened, chosen }) {
      const fresh = part.id !== job.id;
      part.id = job.id;
      node.hidden = false;
      node.classList.toggle("fresh", fresh); // no animation from the value of another job
      node.id = `job-${job.id}`;
      node.dataset.job = job.id;
      node.style.transform = `translateY(${at * ROW}px)`;
      mark(node, "data-state", job.state);
      mark(node, "aria-selected", String(chosen));
      mark(node, "aria-current", opened ? "true" : null);
      mark(node, "aria-posinset", at + 1);
      mark(node, "aria-setsize", size);
      sign.show(job.state, job.percent);
      const files = nameOf(job.id);
      const reason = why(job);
      say(name, reason || files || job.id);
      mark(name, "data-id", !reason && !files);
      mark(node, "data-reason", Boolean(reason));
      say(line, [reason ? files || job.id : "", describe(job, slot)].filter(Boolean).join(" · "));
      say(engine, job.engine);
      const running = job.state === "running";
      meter.hidden = percent.hidden = !running;
      bar.style.transform = `scaleX(${job.percent / 100})`;
      say(percent, running ? `${Math.round(job.percent)} %` : "");
      say(took, job.started && job.finished > job.started ? duration(job.finished - job.started) : slot && running && slot.phase_s !== null ? duration(Math.floor(slot.phase_s)) : "");
      say(when, ago(OVER.has(job.state) ? job.finished : job.created));
    },
  };
  return part;
}

/** Why a job failed, or waits for another attempt: that is what its row says first. */
function why(job) {
  return job.state === "failed" ? job.reason || job.message : job.state === "running" || OVER.has(job.state) ? "" : job.reason;
}

function describe(job, slot) {
  if (job.state === "completed") return STATE_NAMES.completed;
  if (job.state === "failed") return [TITLES[job.kind] ?? job.kind, job.attempt > 1 ? t("attempt {n}", { n: job.attempt }) : ""].filter(Boolean).join(" · ");
  if (job.state === "cancelled") return STATE_NAMES.cancelled;
  if (job.state === "running") return [stageLine(job.status, job.message), job.attempt > 1 ? (job.reason ? t("attempt {n}, after: {reason}", { n: job.attempt, reason: job.reason }) : t("attempt {n}", { n: job.attempt })) : "", slot?.slot].filter(Boolean).join(" · ");
  return [STATE_NAMES[job.state], job.message, job.attempt && !OVER.has(job.state) ? t("attempt {n}", { n: job.attempt + 1 }) : ""].filter(Boolean).join(" · ");
}
