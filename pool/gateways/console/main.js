// The page: one store, three panes, dialogs, keyboard shortcuts.

import { call, hasToken, mediaAddress, useToken } from "./api.js";
import { $, h, icon, mark, say } from "./dom.js";
import { age } from "./format.js";
import { makeHistory } from "./history.js";
import { makeJob } from "./job.js";
import { makeList } from "./jobs.js";
import { listen } from "./keys.js";
import { makeLogs } from "./logs.js";
import { drawPool } from "./pool.js";
import { followJob, listMore, noteSeen, refresh, run, setFilter, store, subscribe, useNewToken } from "./store.js";
import { acceptDrops, makeSubmit } from "./submit.js";
import { nextLanguage, t, translate } from "./texts.js";
import { makeToken } from "./token.js";

const TOAST_MS = 6000;
const HASH = "#/job/";
const panes = document.querySelector(".panes");

function announce(text) {
  $("live").textContent = "";
  requestAnimationFrame(() => ($("live").textContent = text));
}

function toast(text, bad = false) {
  const node = h("p", { class: "toast", role: bad ? "alert" : "status", dataset: bad ? { bad: "" } : {} }, h("span", { text }), h("button", { type: "button", class: "icon", "aria-label": t("Dismiss"), onclick: () => node.remove() }, icon("close", 14)));
  $("toasts").append(node);
  setTimeout(() => node.remove(), bad ? 2 * TOAST_MS : TOAST_MS);
}

// ---- panes

const goTo = (id) => {
  if (location.hash === HASH + encodeURIComponent(id)) return route();
  location.hash = HASH + encodeURIComponent(id);
};
const list = makeList({ open: goTo, filter: setFilter, more: listMore, seen: noteSeen, submit: () => submit.open(), bulk, announce, toast });
const job = makeJob($("job"), { close: leave, go: goTo, follow: followJob, again: (origin) => submit.openAgain(origin), announce, toast, changed: refresh });
const submit = makeSubmit({
  engines: () => store.engines,
  done(ids) {
    refresh();
    if (ids.length === 1) goTo(ids[0]);
    else toast(t("{n} jobs are queued", { n: ids.length }));
    announce(ids.length === 1 ? t("Job submitted") : t("{n} jobs submitted", { n: ids.length }));
  },
});
const past = makeHistory();
const logs = makeLogs();
const token = makeToken(() => {
  useNewToken();
  route();
});

const AT_ONCE = 1000; // the limit of the gateway

/** Retry or cancel many jobs, or fetch their results, and say what could not be done. */
async function bulk(action, ids) {
  if (action === "files") return void fetchFiles(ids);
  const [done, refused] = [[], []];
  try {
    for (let at = 0; at < ids.length; at += AT_ONCE) {
      const answer = await call("POST", `/bulk/${action}`, { ids: ids.slice(at, at + AT_ONCE) });
      done.push(...answer.done);
      refused.push(...answer.refused);
    }
  } catch (error) {
    toast(error.message, true);
  }
  if (done.length) toast(action === "retry" ? t("{n} {n|job runs|jobs run} again", { n: done.length }) : t("{n} {n|job is|jobs are} being cancelled", { n: done.length }));
  tellRefused(refused);
  refresh();
}

/** Save the results of jobs as archives. */
async function fetchFiles(ids) {
  try {
    for (let at = 0; at < ids.length; at += AT_ONCE) {
      const archive = await call("POST", "/bulk/files", { ids: ids.slice(at, at + AT_ONCE) });
      tellRefused(archive.refused);
      if (archive.files) h("a", { href: await mediaAddress(new URL(archive.url, location.href).href), download: "filepool.zip" }).click();
    }
  } catch (error) {
    toast(error.message, true);
  }
}

function tellRefused(refused) {
  if (refused.length) toast(t("{n} {n|job|jobs} not: {why}", { n: refused.length, why: [...new Set(refused.map((one) => one.message))].slice(0, 3).join("; ") }), true);
}

function leave() {
  if (location.hash) history.pushState(null, "", location.pathname + location.search);
  route();
  $("rows").focus();
}

function route() {
  const id = location.hash.startsWith(HASH) ? decodeURIComponent(location.hash.slice(HASH.length)) : "";
  panes.toggleAttribute("data-job", id !== "");
  if (id && (id !== job.id || store.link === "connecting")) job.open(id);
  if (!id) job.close();
  list.setOpened(id);
  if (id) showTab("jobs");
}

function showTab(name) {
  panes.dataset.tab = name;
  for (const button of document.querySelectorAll("[data-tab][aria-pressed]")) mark(button, "aria-pressed", String(button.dataset.tab === name));
}

// ---- the bar

function drawTheme() {
  const theme = window.filepoolTheme.get();
  $("theme").replaceChildren(icon(theme));
  mark($("theme"), "aria-label", t("Theme: {name}", { name: { auto: t("system"), light: t("light"), dark: t("dark") }[theme] }));
}

function nextTheme() {
  window.filepoolTheme.next();
  drawTheme();
}

/** The sentence of a pool that is well. */
function healthy(status) {
  const sum = (key) => status.engines.reduce((total, engine) => total + engine[key], 0);
  return t("{ready} {ready|worker|workers} ready, {running} {running|job|jobs} running, {waiting} waiting", { ready: sum("serving"), running: sum("running"), waiting: sum("queued") + sum("held") + sum("deferred") });
}

let announced = "";

function drawHealth() {
  const { link, status } = store;
  const verdict = link === "live" ? (status.draining ? "degraded" : status.health.verdict) : link === "connecting" ? "connecting" : "lost";
  const words = { live: status?.draining ? t("Draining") : { ok: status && healthy(status), degraded: t("Degraded"), down: t("Pool down") }[verdict], connecting: t("Connecting …"), lost: t("Connection lost"), refused: t("Gateway error"), token: t("Token required") };
  mark($("health"), "data-verdict", verdict);
  say($("health-text"), words[link] || verdict);
  mark(document.body, "data-link", link);
  $("sign-out").hidden = !hasToken();
  drawNotice(verdict);
  const said = verdict === "ok" ? t("The pool is healthy") : `${words[link]}`;
  if (said !== announced && verdict !== "connecting") {
    if (announced) announce(said);
    announced = said;
  }
  const waiting = status?.engines.reduce((sum, engine) => sum + engine.running, 0) ?? 0;
  document.title = `${link === "lost" ? "⚠ " : waiting ? `(${waiting}) ` : ""}filepool`;
}

function drawNotice(verdict) {
  const notice = $("notice");
  const { link, status, trouble, retryAt } = store;
  const troubled = link === "lost" || link === "refused";
  const reasons = status?.health.reasons ?? [];
  notice.hidden = !troubled && !(link === "live" && (reasons.length || verdict === "down"));
  mark(notice, "data-kind", troubled || verdict === "down" ? "bad" : "warn");
  if (notice.hidden) {
    delete notice.dataset.key;
    return void notice.replaceChildren();
  }
  const lines = troubled ? [trouble] : reasons.length ? reasons : [status.health.sentence];
  const title = link === "lost" ? t("Connection lost") : link === "refused" ? t("The gateway answers with an error") : verdict === "down" ? t("The pool is down and needs an operator") : t("The pool is degraded");
  const key = [title, ...lines].join("\n");
  if (notice.dataset.key !== key) {
    notice.dataset.key = key;
    notice.replaceChildren(
      h("div", {}, h("b", { text: title }), h("ul", {}, lines.map((line) => h("li", { text: line }))), troubled ? h("p", { class: "aside" }) : null),
      ...(troubled ? [h("button", { type: "button", class: "quiet", text: t("Try now"), onclick: refresh })] : []),
    );
  }
  const next = notice.querySelector(".aside");
  if (next) say(next, t("The page shows the last known state. Accepted jobs go on. Next try in {time}.", { time: age((retryAt - Date.now()) / 1000) }));
}

subscribe(() => {
  drawHealth();
  if (store.link === "token") token.ask(store.trouble);
  drawPool($("pool"), store, {
    open: goTo,
    log: logs.open,
    history: past.open,
    filter(engine, state) {
      setFilter({ engine, state });
      showTab("jobs");
    },
  });
  list.update(store);
  submit.update();
  job.update(list.find(job.id));
  job.broken(store.link === "lost");
});

// ---- actions

$("new-job").prepend(icon("plus"));
$("new-job").addEventListener("click", () => submit.open());
$("theme").addEventListener("click", nextTheme);
$("help-open").append(icon("help"));
$("help-open").addEventListener("click", () => $("help").showModal());
$("sign-out").append(icon("key"));
$("sign-out").addEventListener("click", () => {
  useToken("");
  useNewToken();
});
for (const button of document.querySelectorAll("[data-tab][aria-pressed]")) button.addEventListener("click", () => showTab(button.dataset.tab));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawTheme);
addEventListener("hashchange", route);
addEventListener("popstate", route);
acceptDrops((files) => submit.open(files));

function move(by) {
  const id = list.move(by);
  if (id && job.id && matchMedia("(min-width: 1000px)").matches) goTo(id);
  $("rows").focus({ preventScroll: true });
}

function media() {
  const own = $("job").querySelector("[data-player] .toggle");
  const film = $("job").querySelector("video[controls], audio[controls]");
  if (own) own.click();
  else if (film) void (film.paused ? film.play() : film.pause());
}

/** Step through the frames of the film beside its template. */
function step(by) {
  $("job").querySelector(`.compare [data-step="${by}"]`)?.click();
}

function pickState(at) {
  document.querySelectorAll("#states button")[at]?.click();
}

listen([
  ["n", t("New job"), { n: () => submit.open() }],
  ["/", t("Find a job"), { "/": () => (showTab("jobs"), $("search").focus()) }],
  ["j k", t("Next and previous job; also ↓ and ↑"), { j: () => move(1), k: () => move(-1), ArrowDown: () => move(1), ArrowUp: () => move(-1) }],
  ["Enter", t("Open the job"), { Enter: () => list.cursor && goTo(list.cursor) }],
  ["x", t("Choose the job; then others, for all of them at once"), { x: () => list.choose() }],
  ["Esc", t("Drop the choice; close the job"), { Escape: () => list.chooseNone() || (job.id && leave()) }],
  ["Space", t("Play or pause"), { " ": media }],
  [", .", t("Previous and next frame, beside the template"), { ",": () => step(-1), ".": () => step(1) }],
  ["b", t("Show the video beside its template"), { b: () => $("job").querySelector("[data-compare]")?.click() }],
  ["r", t("Retry the job that failed or was cancelled"), { r: () => job.retry() }],
  ["e", t("Run the job again with changes"), { e: () => job.change() }],
  ["c", t("Cancel the job; press twice"), { c: () => job.askCancel() }],
  ["1 … 6", t("All, running, waiting, completed, failed, cancelled"), Object.fromEntries([1, 2, 3, 4, 5, 6].map((digit) => [String(digit), () => pickState(digit - 1)]))],
  ["h", t("History of the pool"), { h: past.open }],
  ["l", t("Logs of the workers and the supervisor"), { l: () => logs.open("") }],
  ["p", t("Switch between jobs and pool (narrow screen)"), { p: () => showTab(panes.dataset.tab === "pool" ? "jobs" : "pool") }],
  ["t", t("Theme: system, light, dark"), { t: nextTheme }],
  ["?", t("Show this list"), { "?": () => $("help").showModal() }],
]);

translate();
$("language").addEventListener("click", nextLanguage);
drawTheme();
drawHealth();
drawPool($("pool"), store, {});
route();
run(job.take);
