// The keyboard: one letter per deed, and a page that lists them.

import { $, h, icon } from "./dom.js";

/** keys: [[keys as shown, what it does, {key: deed}]]. Nothing happens while somebody types or a dialog is open. */
export function listen(keys) {
  const deeds = Object.assign({}, ...keys.map(([, , deed]) => deed));
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector("dialog[open]")) return;
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (typing && event.key !== "Escape") return;
    if (typing) return void event.target.blur();
    // A button in focus keeps its own keys.
    if ([" ", "Enter"].includes(event.key) && event.target.closest?.("button, a, summary, video, audio, [role=slider]")) return;
    const deed = deeds[event.key];
    if (!deed) return;
    event.preventDefault();
    deed();
  });
  const dialog = $("help");
  dialog.append(
    h("header", {}, h("h2", { id: "help-title", text: "Keyboard" }), h("button", { type: "button", class: "icon", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"))),
    h("dl", { class: "keys" }, keys.map(([shown, what]) => h("div", {}, h("dt", {}, shown.split(" ").map((key) => h("kbd", { text: key }))), h("dd", { text: what })))),
  );
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
}
