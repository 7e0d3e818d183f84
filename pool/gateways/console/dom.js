// Elements from data. Data from the server becomes text, never markup: nothing here parses HTML.

import { t } from "./texts.js";

const SVG = "http://www.w3.org/2000/svg";

/** Create an element. props: class, text, dataset, on… handlers, properties such as `value`; all others are attributes. */
export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "class") node.className = value;
    else if (key === "text") node.textContent = value;
    else if (key === "dataset") Object.assign(node.dataset, value);
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (["value", "checked", "disabled", "hidden", "open", "required", "muted"].includes(key)) node[key] = value;
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** Create an SVG element. */
export function s(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
  node.append(...children);
  return node;
}

export const $ = (id) => document.getElementById(id);

/** Set text only when it changes, so that selections survive and screen readers stay silent. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Set an attribute only when it changes; null removes it. */
export function mark(node, key, value) {
  if (value === null || value === false) node.removeAttribute(key);
  else if (node.getAttribute(key) !== String(value)) node.setAttribute(key, String(value));
}

/** Make the children of `parent` match `items`, in order: created once per key, then updated in place. */
export function keyed(parent, items, key, make, update) {
  const known = parent.keyedParts ?? (parent.keyedParts = new Map());
  const wanted = new Set();
  let before = null;
  for (const item of items) {
    const name = key(item);
    if (wanted.has(name)) continue;
    wanted.add(name);
    let part = known.get(name);
    if (!part) known.set(name, (part = make(item)));
    update(part, item);
    const next = before ? before.nextSibling : parent.firstChild;
    if (next !== part.node) parent.insertBefore(part.node, next);
    before = part.node;
  }
  for (const [name, part] of known) {
    if (wanted.has(name)) continue;
    part.node.remove();
    known.delete(name);
  }
}

const SURE_MS = 4000; // how long a button waits for the confirming press

/** A button that acts at the second press. Returns {node, say(text), calm()}. */
export function armed(node, act) {
  let [text, timer] = [node.textContent, 0];
  const calm = () => {
    clearTimeout(timer);
    timer = 0;
    say(node, text);
    delete node.dataset.sure;
  };
  node.addEventListener("click", () => {
    if (timer) {
      calm();
      act();
      return;
    }
    say(node, t("Really cancel?"));
    node.dataset.sure = "";
    timer = setTimeout(calm, SURE_MS);
  });
  return {
    node,
    calm,
    say(now) {
      text = now;
      if (!timer) say(node, text);
    },
  };
}

const PATHS = {
  plus: "M8 3.5v9M3.5 8h9",
  close: "M4.5 4.5l7 7M11.5 4.5l-7 7",
  back: "M9.5 3.5L5 8l4.5 4.5",
  forward: "M6.5 3.5L11 8l-4.5 4.5",
  beside: "M2.5 3.5h4.7v9H2.5zM8.8 3.5h4.7v9H8.8z",
  help: "M5.4 5.6a2.6 2.6 0 1 1 3.9 2.2C8.4 8.3 8 8.9 8 9.9M8 12.7v.1",
  auto: "M8 2.4a5.6 5.6 0 1 0 0 11.2a5.6 5.6 0 0 0 0-11.2",
  light: "M8 5.4a2.6 2.6 0 1 1 0 5.2 2.6 2.6 0 0 1 0-5.2M8 1.6v1.3M8 13.1v1.3M1.6 8h1.3M13.1 8h1.3M3.5 3.5l.9.9M11.6 11.6l.9.9M3.5 12.5l.9-.9M11.6 4.4l.9-.9",
  dark: "M13.2 9.6A5.6 5.6 0 0 1 6.4 2.8a5.6 5.6 0 1 0 6.8 6.8z",
  key: "M9.8 9.2a3.3 3.3 0 1 0-3-3L2.6 10.4v2.9h2.5v-1.7h1.7V9.9l.9-.9c.6.2 1.3.3 2.1.2zM10.6 5.4v.1",
  file: "M4 2.2h5l3 3v8.6H4zM9 2.2v3h3",
  download: "M8 2.5v7.2M4.9 7L8 10l3.1-3M3 13.2h10",
  copy: "M5.8 5.8h7v7h-7zM10.2 5.8V3.2h-7v7h2.6",
  retry: "M12.9 8a4.9 4.9 0 1 1-1.5-3.5M12.9 2.2v2.7h-2.7",
  play: "M5.5 3.6l7 4.4-7 4.4z",
  pause: "M5.6 3.6v8.8M10.4 3.6v8.8",
  pen: "M3 13l.7-2.8 7.2-7.2 2.1 2.1-7.2 7.2zM9.6 4.3l2.1 2.1",
  undo: "M3.2 6.2h6a3.4 3.4 0 0 1 0 6.8H6.4M5.8 3.4L3 6.2 5.8 9",
  upload: "M8 10.4V3M4.9 5.8L8 2.8l3.1 3M3 13.2h10",
};

const SOLID = { play: PATHS.play, auto: "M8 2.4a5.6 5.6 0 0 1 0 11.2z" };

/** A line icon of 16 × 16. */
export function icon(name, size = 16) {
  return s(
    "svg",
    { viewBox: "0 0 16 16", width: size, height: size, "aria-hidden": "true", class: "glyph" },
    s("path", { d: SOLID[name] ?? "M0 0", fill: "currentColor" }),
    s("path", { d: PATHS[name], fill: "none", stroke: "currentColor", "stroke-width": 1.4, "stroke-linecap": "round", "stroke-linejoin": "round" }),
  );
}

const ROUND = 2 * Math.PI * 5.5;

/** The icon of a job's state: a ring that fills while the job runs. Returns {node, show(state, percent)}. */
export function stateSign() {
  const track = s("circle", { cx: 8, cy: 8, r: 5.5, class: "track" });
  const arc = s("circle", { cx: 8, cy: 8, r: 5.5, class: "arc", transform: "rotate(-90 8 8)" });
  const figure = s("path", { class: "figure" });
  const node = s("svg", { viewBox: "0 0 16 16", width: 16, height: 16, class: "sign", "aria-hidden": "true" }, track, arc, figure);
  const figures = { completed: "M5.4 8.2l1.8 1.8 3.4-3.8", failed: "M6 6l4 4M10 6l-4 4", cancelled: "M5.8 8h4.4", held: "M6.2 5.4v5.2M9.8 5.4v5.2", deferred: "M8 5.4V8l1.7 1.2" };
  return {
    node,
    show(state, percent) {
      mark(node, "data-state", state);
      const part = state === "running" ? Math.max(0.03, percent / 100) : 0;
      mark(arc, "stroke-dasharray", `${(part * ROUND).toFixed(2)} ${ROUND.toFixed(2)}`);
      mark(figure, "d", figures[state] ?? "M8 8");
    },
  };
}

/** Save a text as a file. */
export function saveText(name, text, type = "text/plain") {
  saveBlob(name, new Blob([text], { type: `${type};charset=utf-8` }));
}

/** Save a blob as a file. */
export function saveBlob(name, blob) {
  const address = URL.createObjectURL(blob);
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
