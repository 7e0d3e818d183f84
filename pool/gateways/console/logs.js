// A dialog with the log of a worker or of the supervisor, as it grows.

import { get, getEvents } from "./api.js";
import { $, h, icon, mark, say } from "./dom.js";
import { bytes } from "./format.js";
import { number, t } from "./texts.js";
import { pause } from "./wire.js";

const MOST = 5000; // lines that are kept
const FIRST = 500;
const AGAIN_MS = 2000;
const NEAR = 24; // pixels from the end within which the view follows
const LEVEL = /^[^A-Z]{0,40}\b(TRACE|DEBUG|INFO|SUCCESS|WARN(?:ING)?|ERROR|CRITICAL|FATAL)\b/;
const RANKS = { TRACE: 0, DEBUG: 1, INFO: 2, SUCCESS: 2, WARN: 3, WARNING: 3, ERROR: 4, CRITICAL: 4, FATAL: 4 };

/** The rank of a line, 0 to 4; a line without a level, such as one of a traceback, has that of the line before. */
export function rankOf(line, before) {
  const found = LEVEL.exec(line);
  return found ? RANKS[found[1]] : before;
}

/** The dialog. Returns {open(name)}. */
export function makeLogs() {
  const dialog = $("logs");
  const lines = []; // {text, rank, node}
  let going = new AbortController();
  let name = "";
  let rank = 2;

  const which = h("select", { "aria-label": t("Log of"), onchange: () => follow(which.value) });
  const level = h("select", { "aria-label": t("Level"), onchange: () => filter() }, [["0", t("All lines")], ["3", t("Warnings and errors")], ["4", t("Errors only")]].map(([value, text]) => h("option", { value, text })));
  const find = h("input", { type: "search", placeholder: t("Find in the log"), "aria-label": t("Find in the log"), spellcheck: false, autocomplete: "off", oninput: () => filter() });
  const last = h("input", { type: "checkbox", checked: true, onchange: () => last.checked && toEnd() });
  const text = h("div", { class: "log mono", role: "log", tabindex: "0", "aria-label": t("Lines of the log"), "aria-live": "off" });
  const state = h("p", { class: "aside", role: "status" });
  dialog.append(
    h("header", {}, h("h2", { id: "logs-title", text: t("Logs") }), h("button", { type: "button", class: "icon", "aria-label": t("Close"), onclick: () => dialog.close() }, icon("close"))),
    h("div", { class: "log-tools" }, which, level, find, h("label", { class: "keep" }, last, h("span", { text: t("Follow") }))),
    text,
    state,
  );
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => going.abort());
  text.addEventListener("scroll", () => (last.checked = text.scrollHeight - text.scrollTop - text.clientHeight < NEAR), { passive: true });

  async function open(wanted) {
    if (!dialog.open) dialog.showModal();
    say(state, "");
    try {
      const { logs } = await get("/logs");
      which.replaceChildren(...logs.map((log) => h("option", { value: log.name, text: log.bytes ? `${log.name} (${bytes(log.bytes)})` : log.name })));
      const names = logs.map((log) => log.name);
      const first = names.includes(wanted) ? wanted : names.includes(name) ? name : names[0];
      if (first) follow(first);
      else say(state, t("There are no logs yet."));
    } catch (error) {
      say(state, error.message);
    }
  }

  async function follow(wanted) {
    going.abort();
    going = new AbortController();
    const { signal } = going;
    name = which.value = wanted;
    while (!signal.aborted) {
      lines.length = 0;
      text.replaceChildren();
      rank = 2;
      last.checked = true;
      tell();
      try {
        for await (const event of getEvents(`/logs/${encodeURIComponent(wanted)}?lines=${FIRST}`, signal)) {
          if (signal.aborted) return;
          if (event?.name === "lines") take(event.data);
        }
      } catch (error) {
        if (signal.aborted) return;
        say(state, `${error.message} ${t("Trying again …")}`);
      }
      await pause(AGAIN_MS, signal);
    }
  }

  function take({ lines: more, skipped }) {
    if (skipped) add(t("{size} of the log are not shown: it grows too fast", { size: bytes(skipped) }), 4);
    for (const line of more) add(line, (rank = rankOf(line, rank)));
    for (const gone of lines.splice(0, Math.max(0, lines.length - MOST))) gone.node.remove();
    tell();
    if (last.checked) toEnd();
  }

  function add(line, its) {
    const node = h("div", { text: line || " ", dataset: { rank: its } });
    const entry = { text: line.toLowerCase(), rank: its, node };
    node.hidden = !fits(entry);
    lines.push(entry);
    text.append(node);
  }

  const fits = (entry) => entry.rank >= Number(level.value) && entry.text.includes(find.value.trim().toLowerCase());

  function filter() {
    for (const entry of lines) entry.node.hidden = !fits(entry);
    tell();
    if (last.checked) toEnd();
  }

  function tell() {
    const seen = lines.reduce((sum, entry) => sum + !entry.node.hidden, 0);
    say(state, seen === lines.length ? t("{n} {n|line|lines}", { n: seen }) : t("{n} of {all} lines", { n: seen, all: number(lines.length) }));
    mark(text, "data-empty", !seen);
  }

  function toEnd() {
    text.scrollTop = text.scrollHeight;
  }

  return { open };
}
