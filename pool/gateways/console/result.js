// The result of a job: its files with players, a transcript, and the value.

import { mediaAddress } from "./api.js";
import { makeCompare } from "./compare.js";
import { h, icon, saveText } from "./dom.js";
import { bytes, title } from "./format.js";
import { t } from "./texts.js";
import { drawTranscript, isTranscript } from "./transcript.js";

const KINDS = { video: /\.(mp4|m4v|webm|mov|mkv)$/i, audio: /\.(wav|mp3|m4a|flac|ogg|opus|aac)$/i, image: /\.(png|jpe?g|webp|gif|avif)$/i };
const MOST_SHOWN = 20_000; // characters of a value that are shown; the download has all

/** Draw into `parent`. inputs: of the job, {key: {name, kind, url}}. Returns a function that releases players and blobs. */
export function drawResult(parent, outcome, inputs, actions) {
  const releases = [];
  const release = (call) => releases.push(call);
  const files = outcome.files ?? [];
  const films = files.filter((file) => kindOf(file.name) === "video");
  const template = Object.values(inputs).find((input) => input.kind === "video") ?? Object.values(inputs).find((input) => input.kind === "image");
  for (const file of files) parent.append(drawFile(file, file === films[0] ? template : null, outcome.value, release, actions));
  const transcript = isTranscript(outcome.value);
  if (transcript) parent.append(drawTranscript(outcome, inputs, release, actions));
  const warnings = outcome.value?.warnings;
  if (Array.isArray(warnings) && warnings.length) parent.append(h("ul", { class: "notices" }, warnings.map((text) => h("li", { text: String(text) }))));
  if (outcome.value !== null && outcome.value !== undefined) parent.append(drawValue(outcome, transcript, files.length > 0));
  return () => releases.forEach((call) => call());
}

function kindOf(name) {
  return Object.keys(KINDS).find((kind) => KINDS[kind].test(name)) ?? "";
}

/** template: what it can be compared with, if anything. value: of the job. */
function drawFile(file, template, value, release, actions) {
  const kind = kindOf(file.name);
  const save = h("a", { class: "save", href: file.url, download: file.save_as, title: file.sha256 ? `SHA-256 ${file.sha256}` : undefined }, icon("download"), h("span", { text: file.save_as }), h("small", { text: bytes(file.size) }));
  const frame = h("figure", { class: "file", dataset: { kind } });
  const film = kind ? media(kind, file, release, actions) : null;
  const caption = h("figcaption", { class: "saves" }, save);
  if (film) frame.append(film);
  if (film && template) caption.append(besides(film, template, value, release, actions));
  frame.append(caption);
  return frame;
}

/** The button that shows a video beside its template, and takes it away again. */
function besides(film, template, value, release, actions) {
  let shown = null;
  const button = h("button", { type: "button", class: "quiet", "aria-pressed": "false", dataset: { compare: "" }, title: t("Beside the template (b)"), onclick: turn }, icon("beside"), t("Beside the template"));

  function turn() {
    const [playing, time] = [!film.paused, film.currentTime];
    if (shown) {
      shown.release();
      shown.node.replaceWith(film);
      film.controls = true;
      shown = null;
    } else {
      const place = film.nextSibling;
      const parent = film.parentElement;
      shown = makeCompare(film, template, value, actions);
      parent.insertBefore(shown.node, place);
    }
    if (film.currentTime !== time) film.currentTime = time;
    if (playing) film.play().catch(() => {}); // moving it has paused it
    button.setAttribute("aria-pressed", String(shown !== null));
  }

  release(() => shown?.release());
  return button;
}

function media(kind, file, release, actions) {
  const tag = { video: "video", audio: "audio", image: "img" }[kind];
  const props = kind === "image" ? { alt: file.name } : { controls: true, preload: "metadata", playsinline: true, "aria-label": file.name };
  const node = h(tag, props);
  const failed = () => node.isConnected && actions.toast(t("{name} cannot be played in this browser: download it.", { name: file.name }), true);
  node.addEventListener("error", failed);
  mediaAddress(file.url).then((address) => {
    node.src = address;
    release(() => {
      node.removeEventListener("error", failed);
      if (kind !== "image") node.pause();
      node.removeAttribute("src");
      if (address.startsWith("blob:")) URL.revokeObjectURL(address);
    });
  }, (error) => actions.toast(error.message, true));
  return node;
}

function drawValue(outcome, folded, plain) {
  const { value } = outcome;
  const text = JSON.stringify(value, null, 2) ?? "";
  const shown = text.length > MOST_SHOWN ? `${text.slice(0, MOST_SHOWN)}\n… ${t("{size} in total: download it", { size: bytes(text.length) })}` : text;
  const flat = typeof value === "object" && !Array.isArray(value) && !folded;
  const facts = flat ? Object.entries(value).filter(([, item]) => item !== null && typeof item !== "object") : [];
  return h(
    "section",
    { class: "value" },
    facts.length && plain ? h("dl", { class: "facts wide" }, facts.map(([key, item]) => h("div", {}, h("dt", { text: title(key) }), h("dd", { text: String(item) })))) : null,
    h("details", { open: !folded && !plain }, h("summary", { text: t("Value") }), h("pre", { tabindex: "0", text: shown })),
    h("button", { type: "button", class: "save", onclick: () => saveText(`${outcome.id}.json`, text, "application/json") }, icon("download"), h("span", { text: `${outcome.id}.json` })),
  );
}
