// The right pane: one job, followed live until its end, then with its result or failure.

import { call, exists, get, jobPath, Refused, uploadAddress } from "./api.js";
import { armed, h, icon, mark, say, stateSign } from "./dom.js";
import { drawFailure, drawAttempts } from "./failure.js";
import { clockTime, duration, moment, OVER, stageLine, STATE_NAMES } from "./format.js";
import { goOn, liveFilm } from "./film.js";
import { inputsOf, nameOf, rememberInputs } from "./memory.js";
import { drawResult } from "./result.js";
import { key, t } from "./texts.js";
import { makeTimeline } from "./timeline.js";
import { liveTranscript } from "./transcript.js";

const LIST_MS = 5000; // older than this no list is, unless the gateway is very busy
const AGAIN = new Set(["failed", "cancelled"]);

/** The pane. actions: {close(), go(id), follow(id), again(origin), announce(text), toast(text, bad), changed()}. */
export function makeJob(pane, actions) {
  let id = "";
  let view = null;
  let overAt = 0; // when it was seen to be over
  let going = new AbortController();
  let dispose = () => {};
  let origin = null; // what it was submitted with
  const parts = build(pane, { close: () => actions.close(), cancel, retry, change, copy });

  function open(wanted) {
    leave();
    id = wanted;
    view = null;
    pane.hidden = false;
    parts.reset(id);
    load();
  }

  function leave() {
    going.abort();
    going = new AbortController();
    if (id) actions.follow("");
    parts.leave();
    dispose();
    dispose = () => {};
    id = "";
    view = origin = null;
  }

  function close() {
    leave();
    pane.hidden = true;
  }

  async function load() {
    const { signal } = going;
    try {
      const [now, submitted] = await Promise.all([get(jobPath(id), signal), get(`${jobPath(id)}/params`, signal).catch(() => null)]);
      origin = submitted;
      rememberUploads(origin);
      parts.origin(origin, id);
      show(now);
      if (OVER.has(view.state)) await finish(signal);
      else actions.follow(id);
    } catch (error) {
      if (!signal.aborted) missing(error);
    }
  }

  /** Take an event of the job that is followed (hub.js). */
  function take(message) {
    if (message.id !== id || !view || OVER.has(view.state)) return;
    const { signal } = going;
    if (message.kind === "gone") return void missing(message);
    const { event, data } = message;
    if (event === "status" || event === "progress") {
      const waits = data.status === "queued";
      const other = data.attempt !== view.attempt;
      const stages = data.stages ?? (other ? [] : view.stages);
      const stages_left_out = data.stages_left_out ?? (other ? 0 : view.stages_left_out);
      const started = (other ? null : view.started) ?? stages?.[0]?.at ?? null; // until the job is read again
      show({ ...view, status: data.status, percent: data.percent, message: data.message, attempt: data.attempt, state: waits ? "queued" : "running", stages, stages_left_out, started });
    } else if (event === "setback") setback(data.failure);
    else if (event === "notice" || event === "unavailable") parts.notice(data.message);
    else if (event === "partial") parts.partial(data.record, data.attempt);
    else if (event === "result") end(data, signal);
  }

  function setback(failure) {
    parts.setback(failure);
    const { attempt, kind, stage = "", message, worker = "", at, started = 0, stages: [more = 0, ...stages] = [] } = failure;
    const before = (view.tried ?? []).filter((one) => one.attempt < attempt);
    const ended = { attempt, kind, stage, message: message.split("\n")[0], worker, at: at / 1e6, started: started / 1e6, stages_left_out: more };
    show({ ...view, started: null, stages: [], tried: [...before, { ...ended, stages: stages.map(([status, since]) => ({ status, at: since / 1e6 })) }] });
  }

  function end(outcome, signal) {
    if (outcome.state === "unknown") return void load();
    actions.announce(t("Job {name}: {state}", { name: nameOf(outcome.id) || outcome.id, state: STATE_NAMES[outcome.state] }));
    actions.changed();
    show(outcome);
    settle(outcome, signal);
  }

  async function finish(signal) {
    if (view.state !== "completed") return settle(view, signal);
    await settle(await get(`${jobPath(id)}/result`, signal), signal);
  }

  async function settle(outcome, signal) {
    if (outcome.state === "completed") origin = await get(`${jobPath(id)}/params`, signal).catch(() => origin); // now it says which inputs are left
    if (signal.aborted) return;
    parts.after.replaceChildren();
    if (outcome.failure && outcome.state === "failed") parts.after.append(drawFailure(outcome.failure));
    const place = parts.place();
    if (outcome.state === "completed") dispose = drawResult(parts.after, outcome, origin?.inputs ?? {}, actions);
    const whole = parts.after.querySelector(".file video");
    if (place && whole) goOn(whole, place);
    if (outcome.state === "cancelled") parts.after.append(h("p", { class: "plain", text: t("The job was cancelled. Its partial output was removed.") }));
    parts.settled();
  }

  function show(now) {
    if (OVER.has(now.state) && !(view && OVER.has(view.state))) overAt = Date.now();
    view = now;
    parts.show(view);
  }

  function missing(error) {
    parts.after.replaceChildren(
      h("div", { class: "sorry" }, h("h3", { text: error.status === 404 ? t("There is no such job") : t("The job cannot be shown") }), h("p", { text: error.message }), h("button", { type: "button", class: "quiet", text: t("Try again"), onclick: () => open(id) })),
    );
    parts.settled();
  }

  async function cancel() {
    if (!view || OVER.has(view.state)) return;
    try {
      await call("DELETE", jobPath(id));
      parts.cancelling();
    } catch (error) {
      actions.toast(error instanceof Refused ? error.message : String(error), true);
    }
    actions.changed();
  }

  async function retry() {
    if (!AGAIN.has(view?.state)) return;
    const again = id;
    parts.retry.disabled = true; // each retry of a cancelled job is a new job
    try {
      const job = await call("POST", `${jobPath(again)}/retry`);
      actions.announce(t("The job runs again"));
      if (job.id !== again) actions.go(job.id);
      else if (id === again) open(again);
    } catch (error) {
      actions.toast(error instanceof Refused ? error.message : String(error), true);
    } finally {
      parts.retry.disabled = false;
    }
    actions.changed();
  }

  function change() {
    if (origin && origin.items === null) actions.again(origin);
  }

  async function copy() {
    await navigator.clipboard?.writeText(id).catch(() => {});
    actions.announce(t("Id copied"));
  }

  return {
    open,
    close,
    retry,
    change,
    take,
    /** Whether the stream of events is broken. */
    broken: (value) => parts.broken(value && view !== null && !OVER.has(view.state)),
    /** Press the Cancel button; the second press cancels. */
    askCancel: () => parts.cancel.hidden || parts.cancel.click(),
    get id() {
      return id;
    },
    /** Take the job's state from the list, which is a moment old: when it was retried elsewhere, follow it again. */
    update(listed) {
      if (!listed || !view || listed.id !== id || !OVER.has(view.state)) return;
      if (OVER.has(listed.state) ? listed.finished > view.finished : Date.now() > overAt + LIST_MS) open(id);
    },
    get over() {
      return view !== null && OVER.has(view.state);
    },
  };
}

function build(pane, on) {
  const sign = stateSign();
  const title = h("h2", { class: "title", tabindex: "-1" });
  const code = h("button", { type: "button", class: "id", title: t("Copy the id"), onclick: on.copy });
  const cancelling = armed(h("button", { type: "button", class: "quiet danger", text: t("Cancel") }), on.cancel);
  const cancel = cancelling.node;
  const retry = h("button", { type: "button", class: "primary", onclick: on.retry }, icon("retry"), t("Retry"));
  const change = h("button", { type: "button", class: "quiet", text: t("Run again …"), title: t("Run again with changes (e)"), onclick: on.change });
  const state = h("b", { class: "state" });
  const stage = h("span", { class: "stage" });
  const bar = h("i");
  const meter = h("div", { class: "meter big", role: "progressbar", "aria-label": t("Progress"), "aria-valuemin": 0, "aria-valuemax": 100 }, bar);
  const percent = h("span", { class: "percent" });
  const broken = h("p", { class: "aside warn", text: t("The connection is lost; the job goes on without this page."), hidden: true });
  const facts = h("dl", { class: "facts wide" });
  const inputs = h("ul", { class: "inputs" });
  const notices = h("ul", { class: "notices" });
  const setbacks = h("div", { class: "setbacks" });
  const live = h("div", { class: "live" });
  const after = h("div", { class: "after" });
  let shown = "";
  let film = null;
  const endFilm = () => {
    film?.release();
    film = null;
  };
  const watch = (stream, attempt) => {
    if (film?.attempt === attempt) return; // each new connection tells it again
    endFilm();
    if (stream.not_here) live.replaceChildren(h("p", { class: "plain", text: t("The video cannot be watched from here while it is made: {why}.", { why: stream.not_here }) }));
    else live.replaceChildren((film = liveFilm(shown, attempt)).node);
  };
  const given = h("div", { class: "given" });
  const timeline = makeTimeline();
  let transcript = null;
  const top = h("header", { class: "top" }, h("button", { type: "button", class: "icon", "aria-label": t("Close"), title: t("Close (Esc)"), onclick: on.close }, icon("close")), h("div", { class: "names" }, title, code), h("div", { class: "acts" }, cancel, change, retry));
  const going = h("div", { class: "status" }, h("div", { class: "standing" }, sign.node, state, stage, percent), meter);
  pane.replaceChildren(top, h("div", { class: "body" }, going, broken, inputs, notices, setbacks, live, after, facts, timeline.node, given));
  return {
    after,
    cancel,
    retry,
    leave: endFilm,
    /** Where the viewer of the stream is, null when nobody watches one. */
    place: () => film?.place ?? null,
    reset(id) {
      cancelling.calm();
      shown = id;
      say(title, nameOf(id) || id);
      code.replaceChildren(id, icon("copy", 13));
      mark(code, "aria-label", t("Copy the id {id}", { id }));
      say(state, "");
      say(stage, "");
      say(percent, "");
      sign.show("queued", 0);
      meter.hidden = cancel.hidden = change.hidden = retry.hidden = broken.hidden = true;
      bar.style.transform = "scaleX(0)";
      transcript = null;
      timeline.update(null);
      for (const part of [facts, inputs, notices, setbacks, live, after, given]) part.replaceChildren();
      after.append(h("div", { class: "ghost tall", "aria-hidden": "true" }));
      pane.querySelector(".body").scrollTop = 0;
    },
    /** Show what it was submitted with, null: not known. */
    origin(origin, id) {
      say(title, nameOf(id) || id);
      change.hidden = !origin || origin.items !== null;
      inputs.replaceChildren();
      drawInputs(inputs, id);
      given.replaceChildren(...(origin ? [drawOrigin(origin)] : []));
    },
    show(view) {
      const over = OVER.has(view.state);
      mark(pane, "data-state", view.state);
      sign.show(view.state, view.percent);
      say(state, STATE_NAMES[view.state]);
      say(stage, over ? summary(view) : view.state === "running" ? stageLine(view.status, view.message) : view.message);
      meter.hidden = view.state !== "running";
      mark(meter, "aria-valuenow", Math.round(view.percent));
      mark(meter, "aria-valuetext", stageLine(view.status, view.message));
      bar.style.transform = `scaleX(${view.percent / 100})`;
      say(percent, view.state === "running" ? `${Math.round(view.percent)} %` : "");
      cancel.hidden = over;
      retry.hidden = !AGAIN.has(view.state);
      drawFacts(facts, view);
      timeline.update(view);
      if (!over && after.querySelector(".ghost")) after.replaceChildren();
    },
    settled() {
      broken.hidden = true;
      cancelling.calm();
      endFilm();
      for (const part of [live, setbacks, notices]) part.replaceChildren();
    },
    cancelling() {
      say(stage, t("being cancelled …"));
    },
    broken: (value) => (broken.hidden = !value),
    notice: (text) => { // once, although each new connection sends it again
      if (![...notices.children].some((item) => item.textContent === text)) notices.append(h("li", { text }));
    },
    setback(failure) { // once, as each new connection sends it again
      if (setbacks.querySelector(`[data-attempt="${Number(failure.attempt)}"]`)) return;
      setbacks.replaceChildren(...(setbacks.childElementCount ? setbacks.children : [h("h3", { text: t("Attempts that failed") })]), drawAttempts([failure]));
    },
    partial(record, attempt) {
      if (record?.stream) return watch(record.stream, attempt);
      if (!transcript) live.replaceChildren((transcript = liveTranscript()).node);
      transcript.add(record, attempt);
    },
  };
}

/** One line about a job that is over. */
function summary(view) {
  const took = ranFor(view);
  return [view.engine, took && (view.state === "completed" ? t("in {time}", { time: took }) : t("after {time}", { time: took })), view.cached ? t("from the cache") : ""].filter(Boolean).join(" · ");
}

/** How long its last attempt took; "" of a job that ended while it waited. */
const ranFor = (view) => (view.started && view.finished - view.started >= 0.001 ? duration(view.finished - view.started) : "");

function drawFacts(facts, view) {
  const ran = ranFor(view);
  const waited = view.started && view.created ? duration(view.started - view.created) : "";
  const list = [
    [key("Engine"), OVER.has(view.state) ? "" : view.engine],
    [key("Submitted"), clockTime(view.created), moment(view.created)],
    [key("Waited"), waited],
    [key("Ran"), ran],
    [key("Attempt"), view.attempt > 1 && view.state !== "failed" ? String(view.attempt) : ""],
  ].filter(([, value]) => value);
  facts.replaceChildren(...list.map(([name, value, more]) => h("div", {}, h("dt", { text: t(name) }), h("dd", { text: value, title: more }))));
}

function drawOrigin(origin) {
  const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  const entries = Object.entries(origin.params).map(([key, value]) => [key, origin.uploads[key]?.original_name ?? text(value), ""]);
  const hidden = Object.entries(origin.left_out).map(([key, why]) => [key || "…", why, "hidden"]);
  const terms = Object.entries(origin.terms).filter(([, value]) => value !== null && value !== "" && !(Array.isArray(value) && !value.length)).map(([key, value]) => [key, text(value), "term"]);
  const list = [...entries, ...hidden, ...terms];
  if (origin.items !== null) list.unshift(["items", String(origin.items), "term"]);
  const item = ([name, value, kind]) => h("div", { dataset: { param: name, ...(kind ? { kind } : {}) } }, h("dt", { text: name }), h("dd", { text: value }));
  return h("section", { class: "params", "aria-label": t("Parameters") }, h("h3", { text: t("Parameters") }), list.length ? h("dl", { class: "facts" }, list.map(item)) : h("p", { class: "aside", text: t("None: all have their defaults.") }), origin.rerun_of ? h("p", { class: "aside" }, t("A changed copy of "), h("a", { href: `#/job/${encodeURIComponent(origin.rerun_of)}`, text: origin.rerun_of })) : null);
}

/** Keep the names of uploads of jobs that were submitted elsewhere, too. */
function rememberUploads(origin) {
  const uploads = Object.entries(origin?.uploads ?? {});
  if (!uploads.length || Object.keys(inputsOf(origin.id)).length) return;
  rememberInputs(origin.id, Object.fromEntries(uploads.map(([key, file]) => [key, { id: file.file_id, name: file.original_name, type: file.file_type }])));
}

async function drawInputs(inputs, id) {
  for (const [field, input] of Object.entries(inputsOf(id))) {
    const address = uploadAddress(input.id);
    const link = h("a", { href: address, download: input.name, title: `${field}: ${input.name}` }, icon("file"), h("span", { text: input.name }));
    inputs.append(h("li", { dataset: { type: input.type } }, link));
    if (!(await exists(address))) {
      link.removeAttribute("href");
      link.title = t("{name} is no longer kept", { name: input.name });
    }
  }
}
