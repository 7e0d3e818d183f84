// Asking for the bearer token, when the server wants one.

import { hasToken, useToken } from "./api.js";
import { $, h, say } from "./dom.js";

/** The dialog. given(): a token was typed. */
export function makeToken(given) {
  const dialog = $("token");
  const input = h("input", { id: "token-input", type: "password", autocomplete: "off", spellcheck: false, required: true });
  const wrong = h("p", { class: "wrong", role: "alert", hidden: true });
  const form = h(
    "form",
    { method: "dialog" },
    h("p", { class: "aside", text: "This gateway serves only those who have its token. It is kept until this tab is closed." }),
    h("div", { class: "field" }, h("label", { for: "token-input", text: "Bearer token" }), input),
    wrong,
    h("footer", {}, h("button", { type: "submit", class: "primary", text: "Go in" })),
  );
  dialog.append(h("header", {}, h("h2", { id: "token-title", text: "A token is needed" })), form);
  dialog.addEventListener("cancel", (event) => event.preventDefault()); // nothing is behind it
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    useToken(input.value);
    input.value = "";
    dialog.close();
    given();
  });
  return {
    ask(message) {
      if (dialog.open) return;
      wrong.hidden = !hasToken();
      say(wrong, hasToken() ? message : "");
      for (const other of document.querySelectorAll("dialog[open]")) other.close();
      dialog.showModal();
      input.focus();
    },
  };
}
