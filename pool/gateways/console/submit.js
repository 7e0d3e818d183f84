// New jobs: a form per engine, files dropped anywhere, uploads with progress.

import { call, jobPath, Refused, upload } from "./api.js";
import { $, h, icon, mark, say } from "./dom.js";
import { assign, fieldsOf, makeFields } from "./form.js";
import { rememberInputs } from "./memory.js";
import { t } from "./texts.js";

const LAST = "filepool.engine";
const AT_ONCE = 3; // parallel uploads

/** The dialog. actions: {engines(): [{name, schema, doc}], done(ids)}. */
export function makeSubmit(actions) {
  const dialog = $("submit");
  let engine = null;
  let form = null;
  let working = null; // AbortController while files are uploaded
  let again = null; // the job that is run again with changes, as GET /jobs/{id}/params gives it
  const heading = h("h2", { id: "submit-title" });
  const tabs = h("div", { class: "segments engines", role: "group", "aria-label": t("Engine") });
  const doc = h("p", { class: "aside" });
  const needed = h("div", { class: "fields" });
  const more = h("div", { class: "fields" });
  const folded = h("details", { class: "more" }, h("summary", { text: t("Options") }), more);
  const wrong = h("p", { class: "wrong", role: "alert", hidden: true });
  const bar = h("i");
  const meter = h("div", { class: "meter big", role: "progressbar", "aria-label": t("Upload"), "aria-valuemin": 0, "aria-valuemax": 100, hidden: true }, bar);
  const send = h("button", { type: "submit", class: "primary" });
  const leave = h("button", { type: "button", class: "quiet", text: t("Cancel"), onclick: () => dialog.close() });
  const body = h("form", { method: "dialog", novalidate: true }, tabs, doc, needed, folded, wrong, meter, h("footer", {}, leave, send));
  dialog.append(h("header", {}, heading, h("button", { type: "button", class: "icon", "aria-label": t("Close"), onclick: () => dialog.close() }, icon("close"))), body);
  dialog.addEventListener("close", () => working?.abort());
  dialog.addEventListener("click", (event) => event.target === dialog && !working && dialog.close());
  body.addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });

  /** Run a job again with changes. */
  function openAgain(origin) {
    const known = actions.engines().some((one) => one.name === origin.engine);
    if (!dialog.open) dialog.showModal();
    again = origin;
    pick(origin.engine);
    if (!known) return fail(t("The pool has no engine {name} any more.", { name: origin.engine }));
    for (const [key, value] of Object.entries(origin.params)) form.fill(key, value, origin.uploads[key]?.original_name ?? "");
    $("job-priority").value = origin.terms.priority || "";
    folded.open = Object.keys(origin.params).some((key) => more.querySelector(`[id="field-${CSS.escape(key)}"]`));
    const missing = Object.entries(origin.left_out).map(([key, why]) => `${key || t("all")} (${why})`);
    if (missing.length) fail(t("Give again: {list}", { list: missing.join(", ") }));
    ready();
  }

  let wanted = []; // the files with which it was opened

  function open(files = []) {
    again = null;
    wanted = files;
    const engines = actions.engines();
    const fitting = files.length ? engines.filter((one) => assign(fieldsOf(one.schema) ?? [], files)) : engines;
    const whole = fitting.filter((one) => complete(one, files));
    const last = engine?.name ?? localStorage.getItem(LAST);
    const choice = [whole, fitting, engines].find((list) => list.length) ?? [];
    if (!dialog.open) dialog.showModal();
    pick((choice.find((one) => one.name === last) ?? choice[0])?.name ?? "", files);
    if (files.length && !fitting.length) fail(t("No engine takes these files. Recordings, videos and pictures can be used."));
  }

  /** Whether these files fill all required file fields of an engine. */
  function complete(one, files) {
    const fields = fieldsOf(one.schema) ?? [];
    const found = assign(fields, files) ?? {};
    const needed = fields.filter((field) => field.required && field.kind === "file");
    return needed.length > 0 && needed.every((field) => found[field.key]);
  }

  function pick(name, files = []) {
    const engines = actions.engines();
    engine = engines.find((one) => one.name === name) ?? engines[0];
    fail("");
    say(heading, again ? t("Run again with changes") : t("New job"));
    tabs.hidden = again !== null;
    tabs.replaceChildren(...engines.map((one) => h("button", { type: "button", "aria-pressed": String(one === engine), text: one.name, onclick: () => pick(one.name) })));
    if (!engine) {
      say(doc, t("The pool has no engines."));
      send.disabled = true;
      return;
    }
    const fields = fieldsOf(engine.schema);
    say(doc, /^[^\n]*?[.!?](?=\s|$)|^[^\n]*/.exec(engine.doc ?? "")[0].replaceAll("``", ""));
    doc.hidden = !doc.textContent;
    form = fields ? makeFields(fields, ready) : plain(engine.described);
    needed.replaceChildren(...form.needed);
    more.replaceChildren(...form.more, ...jobFields());
    folded.open = false;
    const places = fields && files.length ? assign(fields, files) : null;
    for (const [key, chosen] of Object.entries(places ?? {})) form.put(key, chosen);
    ready();
    (needed.querySelector("input:not([type=file]), select, textarea") ?? needed.querySelector("input"))?.focus();
  }

  /** For an engine without a schema. */
  function plain(described) {
    const area = h("textarea", { id: "field-params", rows: 6, spellcheck: false, class: "mono", "aria-label": t("Parameters as JSON"), placeholder: "{ }", oninput: ready });
    const why = described ? t("This engine has no schema: give its parameters as a JSON object.") : t("The parameters of this engine are unknown until a worker has started once: give them as a JSON object.");
    const read = () => {
      const value = area.value.trim() ? JSON.parse(area.value) : {};
      if (typeof value !== "object" || value === null || Array.isArray(value)) throw new Error(t("A JSON object is expected: { … }"));
      return { params: value, files: {} };
    };
    const fill = (key, value) => (area.value = JSON.stringify({ ...read().params, [key]: value }, null, 2));
    return { needed: [h("div", { class: "field" }, h("label", { for: "field-params", text: t("Parameters") }), area, h("small", { text: why }))], more: [], put() {}, fill, missing: () => [], read };
  }

  function jobFields() {
    const field = (id, name, about, input) => h("div", { class: "field" }, h("label", { for: id, text: name }), input, h("small", { text: about }));
    return [
      field("job-priority", t("Priority"), t("higher runs first, −100 to 100"), h("input", { id: "job-priority", type: "number", min: -100, max: 100, step: 1, placeholder: "0" })),
      field("job-id", t("Id"), t("your id for the job; the same id again is the same job"), h("input", { id: "job-id", type: "text", placeholder: t("generated"), spellcheck: false })),
    ];
  }

  function ready() {
    const missing = form.missing();
    let jobs = 1;
    try {
      jobs = Math.max(1, ...Object.values(form.read().files).map((list) => list.length));
    } catch {
      // reported when the form is submitted
    }
    send.disabled = missing.length > 0 || working !== null;
    say(send, working ? t("Sending …") : jobs > 1 ? t("Submit {n} jobs", { n: jobs }) : t("Submit"));
    mark(send, "title", missing.length ? t("Still needed: {list}", { list: missing.join(", ") }) : null);
  }

  function fail(text) {
    wrong.hidden = !text;
    say(wrong, text);
  }

  async function submit() {
    if (working || !engine) return;
    fail("");
    const chosen = engine;
    const sent = [];
    try {
      const { params, files } = form.read();
      const own = { id: $("job-id").value.trim() || undefined, priority: Number($("job-priority").value) || 0 };
      working = new AbortController();
      ready();
      for (const inputs of combine(await uploadAll(files, working.signal))) {
        const given = Object.fromEntries(Object.entries(inputs).map(([key, file]) => [key, `tempfile:${file.file_id}`]));
        const body = { ...(again ? changes({ ...params, ...given }) : { params: { ...params, ...given } }), priority: own.priority, ...(own.id && !sent.length ? { id: own.id } : {}) };
        const job = await call("POST", again ? `${jobPath(again.id)}/rerun` : `/jobs/${encodeURIComponent(chosen.name)}`, body);
        rememberInputs(job.id, Object.fromEntries(Object.entries(inputs).map(([key, file]) => [key, { id: file.file_id, name: file.original_name, type: file.file_type }])));
        sent.push(job.id);
      }
      localStorage.setItem(LAST, chosen.name);
      working = null;
      dialog.close();
    } catch (error) {
      if (error.name !== "AbortError") fail(error instanceof Refused || error instanceof Error ? error.message : String(error));
    } finally {
      working = null;
      meter.hidden = true;
      ready();
      if (sent.length) actions.done(sent);
    }
  }

  /** What the form changes of the job that is run again. */
  function changes(params) {
    const old = again.params;
    const same = (key) => JSON.stringify(old[key]) === JSON.stringify(params[key]);
    return { params: Object.fromEntries(Object.entries(params).filter(([key]) => !same(key))), without: Object.keys(old).filter((key) => !(key in params)) };
  }

  /** Upload all files; resolves to {key: [uploaded]}. */
  async function uploadAll(files, signal) {
    const list = Object.entries(files).flatMap(([key, chosen]) => chosen.map((file) => ({ key, file, part: 0, result: null })));
    const whole = list.reduce((sum, item) => sum + item.file.size, 0) || 1;
    meter.hidden = list.length === 0;
    const show = () => {
      const part = list.reduce((sum, item) => sum + item.part * item.file.size, 0) / whole;
      bar.style.transform = `scaleX(${part})`;
      mark(meter, "aria-valuenow", Math.round(100 * part));
    };
    show();
    const queue = [...list];
    const work = async () => {
      for (let item = queue.shift(); item; item = queue.shift()) {
        const mine = item;
        mine.result = await upload(mine.file, (part) => ((mine.part = part), show()), signal);
      }
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    const found = {};
    for (const item of list) (found[item.key] ??= []).push(item.result);
    return found;
  }

  return {
    open,
    openAgain,
    /** Take the engines when they arrive after the dialog was opened. */
    update() {
      if (dialog.open && !engine && !again && actions.engines().length) open(wanted);
    },
  };
}

/** One map of inputs per job: a single file of a field goes into each. */
function combine(uploads) {
  const jobs = Math.max(1, ...Object.values(uploads).map((list) => list.length));
  return Array.from({ length: jobs }, (_, at) => Object.fromEntries(Object.entries(uploads).map(([key, list]) => [key, list[Math.min(at, list.length - 1)]])));
}

/** Call `open(files)` for files dropped anywhere on the page. */
export function acceptDrops(open) {
  const veil = $("dropping");
  const holds = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let depth = 0;
  const show = (value) => {
    depth = value;
    veil.hidden = depth <= 0 || $("submit").open;
  };
  addEventListener("dragenter", (event) => holds(event) && show(depth + 1));
  addEventListener("dragleave", (event) => holds(event) && show(depth - 1));
  addEventListener("dragover", (event) => holds(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!holds(event)) return;
    event.preventDefault();
    show(0);
    open([...event.dataTransfer.files]);
  });
}
