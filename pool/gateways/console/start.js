// Examples for someone who has no job yet.

import { call, get } from "./api.js";
import { h } from "./dom.js";
import { t } from "./texts.js";

const ABOUT = {
  transcribe: [t("A recording becomes text"), t("Words with their times, and who says them")],
  lipsync: [t("A picture says a recording"), t("Lips that follow the sound, on a picture or a video")],
  portrait: [t("A portrait comes alive"), t("A picture that speaks, blinks and moves its head")],
};

/** The examples, as they are found. actions: {open(id), announce(text), toast(text, bad)}. */
export function drawExamples(actions) {
  const list = h("ul", { class: "examples", "aria-label": t("Examples") });
  get("/examples").then(
    ({ examples }) => list.replaceChildren(...examples.map((example) => drawExample(example, actions))),
    (error) => list.replaceChildren(h("li", { class: "aside", text: error.message })),
  );
  return list;
}

function drawExample({ name, files, missing }, actions) {
  const [title, about] = ABOUT[name] ?? [name, ""];
  const button = h("button", { type: "button", class: "quiet", text: t("Try it"), "aria-label": t("Try it: {name}", { name: title }), onclick: start });

  async function start() {
    button.disabled = true;
    try {
      const job = await call("POST", `/examples/${encodeURIComponent(name)}`);
      actions.announce(t("Job submitted"));
      actions.open(job.id);
    } catch (error) {
      actions.toast(error.message, true);
    } finally {
      button.disabled = false;
    }
  }

  return h("li", { dataset: { example: name } }, h("b", { text: title }), h("span", { text: about }), missing ? h("small", { text: t("Not here: {why}", { why: missing }) }) : h("small", { text: files.join(", ") }), missing ? null : button);
}
