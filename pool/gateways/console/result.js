// The result of a job: its files with players, a transcript, and the value.

import { mediaAddress } from "./api.js";
import { h, icon, saveText } from "./dom.js";
import { bytes, title } from "./format.js";
import { t } from "./texts.js";
import { drawTranscript, isTranscript } from "./transcript.js";

const KINDS = { video: /\.(mp4|m4v|webm|mov|mkv)$/i, audio: /\.(wav|mp3|m4a|flac|ogg|opus|aac)$/i, image: /\.(png|jpe?g|webp|gif|avif)$/i };
const MOST_SHOWN = 20_000; // characters of a value that are shown; the download has all

/** Draw into `parent`; returns a function that releases players and blobs. */
export function drawResult(parent, outcome, actions) {
  const releases = [];
  const release = (call) => releases.push(call);
  const files = outcome.files ?? [];
  for (const file of files) parent.append(drawFile(file, release, actions));
  const transcript = isTranscript(outcome.value);
  if (transcript) parent.append(drawTranscript(outcome, release, actions));
  const warnings = outcome.value?.warnings;
  if (Array.isArray(warnings) && warnings.length) parent.append(h("ul", { class: "notices" }, warnings.map((text) => h("li", { text: String(text) }))));
  if (outcome.value !== null && outcome.value !== undefined) parent.append(drawValue(outcome, transcript, files.length > 0));
  return () => releases.forEach((call) => call());
}

function kindOf(name) {
  return Object.keys(KINDS).find((kind) => KINDS[kind].test(name)) ?? "";
}

function drawFile(file, release, actions) {
  const kind = kindOf(file.name);
  const save = h("a", { class: "save", href: file.url, download: file.name, title: file.sha256 ? `SHA-256 ${file.sha256}` : undefined }, icon("download"), h("span", { text: file.name }), h("small", { text: bytes(file.size) }));
  const frame = h("figure", { class: "file", dataset: { kind } });
  if (kind) frame.append(media(kind, file, release, actions));
  frame.append(h("figcaption", {}, save));
  return frame;
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
