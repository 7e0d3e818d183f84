// The dialog that asks for the bearer token.

import { hasToken, useToken } from "./api.js";
import { $, h, say } from "./dom.js";
import { t } from "./texts.js";

/** The dialog. given(): called when a token was entered. */
export function makeToken(given) {
  const dialog = $("token");
  const input = h("input", { id: "token-input", type: "password", autocomplete: "off", spellcheck: false, required: true });
  const wrong = h("p", { class: "wrong", role: "alert", hidden: true });
  const form = h(
    "form",
    { method: "dialog" },
    h("p", { class: "aside", text: t("This gateway requires a token. It is kept until the browser is closed.") }),
    h("div", { class: "field" }, h("label", { for: "token-input", text: t("Bearer token") }), input),
    wrong,
    h("footer", {}, h("button", { type: "submit", class: "primary", text: t("Sign in") })),
  );
  dialog.append(h("header", {}, h("h2", { id: "token-title", text: t("Token required") })), form);
  dialog.addEventListener("cancel", (event) => event.preventDefault()); // the page is empty without a token
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
