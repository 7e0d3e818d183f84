// When a job was submitted, which attempts and stages it had, when it ended.

import { h, mark } from "./dom.js";
import { clockTime, duration, moment, OVER, STATE_NAMES, stageLine } from "./format.js";
import { t } from "./texts.js";

/** The moments of a job in order: {at, kind, text}. kind: "submitted", "begun", "stage", "failed", or the state in which it ended. */
export function momentsOf(view) {
  const found = [{ at: view.created, kind: "submitted", text: t("Submitted") }];
  for (const one of view.tried ?? []) {
    if (OVER.has(view.state) && one.attempt === view.attempt) continue; // its end is that of the job
    found.push(...begun(one.attempt, one));
    const where = one.stage ? t("Attempt {n} failed in {stage}: {message}", { n: one.attempt, stage: one.stage, message: one.message }) : t("Attempt {n} failed: {message}", { n: one.attempt, message: one.message });
    found.push({ at: one.at, kind: "failed", text: where });
  }
  if (view.started && view.state !== "queued") found.push(...begun(Math.max(1, view.attempt), view));
  if (OVER.has(view.state)) found.push({ at: view.finished, kind: view.state, text: STATE_NAMES[view.state] });
  return found.filter((one) => one.at);
}

/** Where an attempt begins, and its stages. */
function begun(attempt, { started, stages = [], stages_left_out: more = 0 }) {
  const first = started ? [{ at: started, kind: "begun", text: t("Attempt {n} began", { n: attempt }) }] : [];
  const told = (n) => (more && n === stages.length - 1 ? t("{n} later stages are not listed", { n: more }) : "");
  return [...first, ...stages.map(({ status, at }, n) => ({ at, kind: "stage", text: stageLine(status, told(n)) }))];
}

/** How long from a moment to the next one. */
const lasted = (moments, at) => duration(Math.max(0, moments[at + 1].at - moments[at].at));

/** How long a stage lasted; of another moment, how long it came after the one before. */
function beside(moments, at) {
  if (moments[at].kind === "stage") return at + 1 < moments.length ? { text: lasted(moments, at), title: t("how long it lasted") } : {};
  return at ? { text: `+${lasted(moments, at - 1)}`, title: t("after the moment before") } : {};
}

/** The timeline. Returns {node, update(view)}. */
export function makeTimeline() {
  const bar = h("div", { class: "spans", "aria-hidden": "true" });
  const list = h("ol", {});
  const node = h("section", { class: "timeline", "aria-label": t("Timeline"), hidden: true }, h("h3", { text: t("Timeline") }), bar, list);
  let drawn = "";
  return {
    node,
    update(view) {
      const moments = view ? momentsOf(view) : [];
      const now = JSON.stringify(moments);
      node.hidden = moments.length < 2;
      if (now === drawn) return;
      drawn = now;
      const [begin, end] = [moments[0]?.at ?? 0, moments.at(-1)?.at ?? 0];
      list.replaceChildren(...moments.map((one, at) => h("li", { dataset: { kind: one.kind } }, h("time", { text: clockTime(one.at), title: moment(one.at) }), h("span", { class: "text", text: one.text }), h("small", beside(moments, at)))));
      bar.hidden = !(end > begin);
      bar.replaceChildren(
        ...moments.slice(1).map((one, at) => {
          const span = h("i", { dataset: { kind: one.kind, after: moments[at].kind }, title: `${moments[at].text}: ${lasted(moments, at)}` });
          span.style.flexGrow = String(Math.max(0.004, (one.at - moments[at].at) / (end - begin || 1)));
          return span;
        }),
      );
      mark(node, "data-moments", moments.length);
    },
  };
}
