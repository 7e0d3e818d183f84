// Why a job failed: message, stage, attempt, how the process ended, its output, a hint.

import { h } from "./dom.js";
import { clockTime } from "./format.js";
import { key, t } from "./texts.js";

export const TITLES = {
  input: t("The input must change"),
  engine: t("The engine failed"),
  resource: t("Not enough memory, disk or device"),
  infrastructure: t("The pool or the machine failed"),
  timeout: t("The job timed out"),
  cancelled: t("The job was cancelled"),
  dependency: t("A job that it depends on did not complete"),
  expired: t("The job did not start in time"),
};

/** The failure of a job that is over, with all its attempts. */
export function drawFailure(failure) {
  const attempts = failure.attempts ?? [];
  const several = attempts.length > 1;
  return h(
    "section",
    { class: "failure", "aria-label": t("Why it failed") },
    h("h3", { text: TITLES[failure.kind] ?? failure.kind }),
    h("p", { class: "message", text: failure.message }),
    failure.hint ? h("p", { class: "hint" }, h("b", { text: t("Hint") }), failure.hint) : null,
    drawDetails(failure),
    several ? h("h4", { text: t("All {n} attempts", { n: attempts.length }) }) : null,
    several ? drawAttempts(attempts) : null,
  );
}

/** Failed attempts as a list of expandable items. */
export function drawAttempts(attempts) {
  const item = (failure) =>
    h(
      "li",
      { dataset: { attempt: failure.attempt } },
      h("details", {}, h("summary", {}, h("b", { text: t("Attempt {n}", { n: failure.attempt }) }), h("span", { class: "kind", text: failure.kind }), h("span", { class: "message", text: failure.message })), failure.hint ? h("p", { class: "hint" }, h("b", { text: t("Hint") }), failure.hint) : null, drawDetails(failure)),
    );
  return h("ol", { class: "attempts" }, attempts.map(item));
}

function drawDetails(failure) {
  const facts = [
    [key("Kind"), failure.kind],
    [key("Stage"), failure.stage],
    [key("Attempt"), failure.attempt ? String(failure.attempt) : ""],
    [key("Exception"), failure.exception],
    [key("Signal"), failure.signal],
    [key("Exit code"), failure.exit_code === undefined ? "" : String(failure.exit_code)],
    [key("Worker"), failure.worker],
    [key("At"), failure.at ? clockTime(failure.at / 1e6) : ""],
  ].filter(([, value]) => value);
  return h(
    "div",
    { class: "details" },
    h("dl", { class: "facts wide" }, facts.map(([name, value]) => h("div", { dataset: { fact: name } }, h("dt", { text: t(name) }), h("dd", { text: value })))),
    drawText("End of its output", failure.stderr_tail, true),
    drawText("Traceback", failure.traceback, false),
  );
}

function drawText(title, text, open) {
  if (!text) return null;
  return h("details", { class: "output", open }, h("summary", { text: title }), h("pre", { tabindex: "0", text }));
}
