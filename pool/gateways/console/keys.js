// Keyboard shortcuts, and a dialog that lists them.

import { $, h, icon } from "./dom.js";
import { t } from "./texts.js";

const TEXT = "input:not([type=range], [type=checkbox], [type=radio], [type=button], [type=file], [type=color]), textarea, [contenteditable]";
// What a control that has the focus does with keys itself.
const OWN = [
  ["select", () => true],
  ["input", (key) => key === " " || key === "Enter" || key.startsWith("Arrow")],
  ["button, a, summary, video, audio, [role=slider]", (key) => key === " " || key === "Enter"],
];

/** keys: [[keys as shown, description, {key: action}]]. Keys do nothing in a text field or while a dialog is open. */
export function listen(keys) {
  const actions = Object.assign({}, ...keys.map(([, , action]) => action));
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog[open]")) return;
    const held = event.target.closest?.(`${TEXT}, input, select`);
    if (held && event.key === "Escape") return void event.target.blur();
    if (held?.matches(TEXT) || OWN.some(([control, keeps]) => event.target.closest?.(control) && keeps(event.key))) return;
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  const dialog = $("help");
  dialog.append(
    h("header", {}, h("h2", { id: "help-title", text: t("Keyboard") }), h("button", { type: "button", class: "icon", "aria-label": t("Close"), onclick: () => dialog.close() }, icon("close"))),
    h("dl", { class: "keys", tabindex: "0" }, keys.map(([shown, what]) => h("div", {}, h("dt", {}, shown.split(" ").map((key) => h("kbd", { text: key }))), h("dd", { text: what })))),
  );
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}
