// A transcript with its recording: the current word is highlighted, a click on a word plays from there.

import { exists, mediaAddress, uploadAddress } from "./api.js";
import { h, icon, saveText } from "./dom.js";
import { clock, duration, srtClock } from "./format.js";
import { inputsOf } from "./memory.js";
import { makePlayer } from "./player.js";
import { t } from "./texts.js";

const COLOURS = 6;
const HANDS_OFF_MS = 4000; // no automatic scrolling for this long after the reader has scrolled

export function isTranscript(value) {
  return Array.isArray(value?.segments) && value.segments.every(isSegment) && typeof value.text === "string";
}

function isSegment(record) {
  return typeof record?.start === "number" && typeof record?.end === "number" && typeof record?.text === "string";
}

/** Segments as they arrive while the job runs; other partial results as JSON. */
export function liveTranscript() {
  const list = h("ol", { class: "said" });
  const node = h("section", { class: "transcript" }, h("h3", { text: t("So far") }), list);
  let of = 0;
  return {
    node,
    add(record, attempt) {
      if (attempt > of) list.replaceChildren();
      of = attempt;
      const said = isSegment(record);
      list.append(h("li", { class: "part" }, said ? h("span", { class: "at", text: clock(record.start) }) : null, h("p", { text: said ? record.text : JSON.stringify(record) })));
    },
  };
}

/** The whole transcript, with a player if the recording is available. */
export function drawTranscript(outcome, release, actions) {
  const { value } = outcome;
  const names = speakers(value);
  const colour = (name) => (names.indexOf(name) < 0 ? null : names.indexOf(name) % COLOURS);
  const words = [];
  const segments = value.segments.map((segment, at) => drawSegment(segment, value.segments[at - 1], words, names, colour));
  const said = h("ol", { class: "said", tabindex: "-1" }, segments.map((segment) => segment.node));
  const place = h("div", { class: "place" });
  const base = (nameless(outcome) || outcome.id).replace(/\.[^.]*$/, "");
  const node = h(
    "section",
    { class: "transcript", "aria-label": t("Transcript") },
    place,
    h("div", { class: "about" }, legend(value, names, colour), h("p", { class: "aside", text: [value.language, duration(value.duration_s), t("{n} {n|word|words}", { n: words.length })].filter(Boolean).join(" · ") })),
    value.segments.length ? said : h("p", { class: "plain", text: t("This recording has no speech.") }),
    h("div", { class: "saves" }, save(`${base}.txt`, () => asText(value)), save(`${base}.srt`, () => asSrt(value, names.length > 1))),
  );
  attach(outcome, place, { value, colour, said, segments, words }, release, actions);
  return node;
}

function nameless(outcome) {
  return Object.values(inputsOf(outcome.id))[0]?.name ?? "";
}

function speakers(value) {
  const listed = Array.isArray(value.speakers) ? value.speakers.map(String) : [];
  return [...new Set([...listed, ...value.segments.map((segment) => segment.speaker).filter(Boolean).map(String)])];
}

function called(name, names) {
  const number = /^spk(\d+)$/.exec(name);
  return number ? t("Speaker {n}", { n: Number(number[1]) + 1 }) : name || (names.length ? t("Unknown speaker") : "");
}

function legend(value, names, colour) {
  if (names.length < 2) return null;
  const spoken = (name) => value.segments.filter((segment) => segment.speaker === name).reduce((sum, segment) => sum + segment.end - segment.start, 0);
  return h("ul", { class: "legend" }, names.map((name) => h("li", { dataset: { speaker: colour(name) } }, h("i", { class: "dot" }), called(name, names), h("small", { text: duration(Math.round(spoken(name))) }))));
}

function drawSegment(segment, before, words, names, colour) {
  const text = h("p");
  const first = words.length;
  spread(segment, text, words);
  const turn = names.length > 1 && segment.speaker && segment.speaker !== before?.speaker;
  const node = h(
    "li",
    { class: "part", dataset: segment.speaker && names.length > 1 ? { speaker: colour(segment.speaker) } : {} },
    h("button", { type: "button", class: "at", "aria-label": t("Play from {time}", { time: clock(segment.start) }), text: clock(segment.start), dataset: { seek: segment.start } }),
    h("div", {}, turn ? h("b", { class: "who", text: called(segment.speaker, names) }) : null, text),
  );
  return { node, start: segment.start, end: segment.end, speaker: segment.speaker, first, last: words.length };
}

/** Append the text of a segment with each word in an element. Works for scripts without spaces, too. */
function spread(segment, parent, words) {
  let at = 0;
  const pieces = [];
  for (const word of segment.words ?? []) {
    const found = segment.text.indexOf(word.word, at);
    if (found < 0 || !word.word) continue;
    if (found > at) pieces.push(segment.text.slice(at, found));
    const node = h("span", { class: "w", text: word.word, dataset: { seek: word.start } });
    if (word.probability !== null && word.probability < 0.5) node.classList.add("unsure");
    words.push({ node, start: word.start, end: word.end });
    pieces.push(node);
    at = found + word.word.length;
  }
  parent.append(...pieces, segment.text.slice(at));
}

/** Attach the recording: the file that this browser uploaded, else a file that the reader chooses. */
async function attach(outcome, place, script, release, actions) {
  const input = Object.values(inputsOf(outcome.id)).find((one) => one.type !== "image");
  const kept = input ? uploadAddress(input.id) : "";
  if (input && (await exists(kept))) {
    const address = await mediaAddress(kept);
    return play(place, address, input.type === "video", script, release, actions);
  }
  const chooser = h("input", { type: "file", accept: "audio/*,video/*", "aria-label": t("Choose the recording") });
  chooser.addEventListener("change", () => {
    const [file] = chooser.files;
    if (file) play(place, URL.createObjectURL(file), file.type.startsWith("video/"), script, release, actions);
  });
  const why = input ? t("{name} is no longer stored here.", { name: input.name }) : t("The recording was not uploaded from this browser.");
  place.replaceChildren(h("label", { class: "chooser" }, icon("play"), h("span", {}, h("b", { text: t("Choose the recording to read along") }), h("small", { text: why })), chooser));
}

function play(place, address, seen, script, release, actions) {
  const { value, colour, said, segments, words } = script;
  const parts = segments.map((segment) => ({ ...segment, colour: segment.speaker ? colour(segment.speaker) : null }));
  let current = { word: null, part: null };
  let touched = 0;
  const moved = (time) => {
    const part = at(segments, time, 0.4);
    const word = part ? at(words.slice(part.first, part.last), time, 0.25) : null;
    if (word?.node !== current.word) {
      current.word?.classList.remove("now");
      word?.node.classList.add("now");
    }
    if (part?.node !== current.part) {
      current.part?.classList.remove("now");
      part?.node.classList.add("now");
      if (part && Date.now() > touched + HANDS_OFF_MS) part.node.scrollIntoView({ block: "nearest", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    }
    current = { word: word?.node ?? null, part: part?.node ?? null };
  };
  const player = makePlayer({ address, seen, parts, length: value.duration_s, moved, broken: () => actions.toast("This browser cannot play the recording.", true) });
  for (const kind of ["wheel", "touchmove"]) said.addEventListener(kind, () => (touched = Date.now()), { passive: true });
  said.addEventListener("click", (event) => {
    const seek = event.target.closest("[data-seek]")?.dataset.seek;
    if (seek === undefined || String(getSelection())) return;
    touched = 0;
    player.seek(Number(seek), true);
  });
  said.classList.add("follows");
  place.replaceChildren(player.node);
  release(() => {
    player.release();
    if (address.startsWith("blob:")) URL.revokeObjectURL(address);
  });
}

/** The item of a sorted list at a time, by binary search; it counts until `slack` seconds after its end. */
function at(list, time, slack) {
  let [low, high] = [0, list.length - 1];
  while (low <= high) {
    const middle = (low + high) >> 1;
    if (list[middle].start <= time + 0.005) low = middle + 1;
    else high = middle - 1;
  }
  const found = list[high];
  return found && time < found.end + slack ? found : null;
}

function save(name, make) {
  return h("button", { type: "button", class: "save", onclick: () => saveText(name, make()) }, icon("download"), h("span", { text: name }));
}

function asText(value) {
  return `${value.segments.map((segment) => `[${srtClock(segment.start).slice(0, 8)}] ${segment.speaker ? `${segment.speaker}: ` : ""}${segment.text}`).join("\n")}\n`;
}

function asSrt(value, named) {
  const line = (segment) => `${named && segment.speaker ? `${segment.speaker}: ` : ""}${segment.text.replaceAll("-->", "→").replace(/\s+/g, " ")}`;
  return value.segments.map((segment, at) => `${at + 1}\n${srtClock(segment.start)} --> ${srtClock(segment.end)}\n${line(segment)}\n`).join("\n");
}
