// A transcript with its recording: the current word is highlighted, a click on a word plays from there.

import { realign } from "./align.js";
import { getBlob, jobPath, mediaAddress } from "./api.js";
import { h, icon, saveBlob, saveText } from "./dom.js";
import { makeEdits } from "./edits.js";
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

/** The whole transcript, with a player if the recording is one of the job's inputs that are left; it can be corrected. */
export function drawTranscript(outcome, inputs, release, actions) {
  const original = outcome.value;
  const names = speakers(original);
  const colour = (name) => (names.indexOf(name) < 0 ? null : names.indexOf(name) % COLOURS);
  const words = [];
  const segments = [];
  const said = h("ol", { class: "said", tabindex: "-1" });
  const place = h("div", { class: "place" });
  const about = h("div", { class: "about" });
  const base = (nameless(outcome) || Object.values(inputs).find((one) => one.kind !== "image")?.name || outcome.id).replace(/\.[^.]*$/, "");
  const edits = makeEdits(outcome.id, draw, (error) => actions.toast(error.message, true));
  const called = (name) => edits.name(name) || plainName(name, names);
  const node = h("section", { class: "transcript", "aria-label": t("Transcript") }, place);
  let value = original;
  let editing = false;

  const edit = h("button", { type: "button", class: "quiet", "aria-pressed": "false", onclick: () => turn(!editing) }, icon("pen", 14), t("Edit"));
  const undo = h("button", { type: "button", class: "quiet", hidden: true, onclick: () => edits.undo() }, icon("undo", 14), t("Undo"));
  const back = h("button", { type: "button", class: "quiet", hidden: true, text: t("Back to the original"), onclick: () => edits.original() });
  const find = h("input", { type: "search", placeholder: t("Find in the transcript"), "aria-label": t("Find in the transcript"), spellcheck: false, autocomplete: "off", oninput: () => mark(0), onkeydown: (event) => event.key === "Enter" && mark(event.shiftKey ? -1 : 1) });
  const hits = h("small", { "aria-live": "polite" });
  let hit = -1;

  function turn(on) {
    editing = on;
    edit.setAttribute("aria-pressed", String(on));
    draw();
  }

  function draw() {
    value = edits.applied(original);
    words.length = 0;
    segments.splice(0, segments.length, ...value.segments.map((segment, at) => drawSegment(segment, { at, before: value.segments[at - 1], words, names, colour, called, rewrite: editing ? rewrite : null })));
    said.replaceChildren(...segments.map((segment) => segment.node));
    about.replaceChildren(legend(value, names, colour, called, editing ? edits.rename : null) ?? "", h("p", { class: "aside", text: [value.language, duration(value.duration_s), t("{n} {n|word|words}", { n: words.length }), edits.any ? t("corrected") : ""].filter(Boolean).join(" · ") }));
    undo.hidden = !edits.canUndo;
    back.hidden = !editing || !edits.any;
    mark(0);
  }

  /** Put a field in place of the text of a segment. */
  function rewrite(at) {
    const { text, node: part } = segments[at];
    const field = h("textarea", { rows: 2, "aria-label": t("Text from {time}", { time: clock(segments[at].start) }), value: value.segments[at].text, spellcheck: true });
    let done = false;
    const finish = (keep) => {
      if (done) return;
      done = true;
      const now = field.value.replace(/\s+/g, " ").trim();
      if (keep && now !== value.segments[at].text) edits.write(at, now, realign(value.segments[at].words ?? [], now, value.segments[at]));
      else if (field.isConnected) field.replaceWith(text);
      if (keep !== "left") said.querySelectorAll(".pen")[at]?.focus({ preventScroll: true });
    };
    field.addEventListener("keydown", (event) => {
      if (event.isComposing) return; // the Enter of an input method
      if (event.key === "Escape" || (event.key === "Enter" && !event.shiftKey)) {
        event.preventDefault();
        event.stopPropagation();
        finish(event.key === "Enter");
      }
    });
    field.addEventListener("blur", () => setTimeout(() => finish("left"))); // later: it may be in the middle of being removed
    text.replaceWith(field);
    part.scrollIntoView({ block: "nearest" });
    field.focus();
  }

  /** Mark the segments that have the text that is looked for; step: go to the next (1) or previous (-1) one. */
  function mark(step) {
    const wanted = find.value.trim().toLowerCase();
    const found = segments.filter((segment, at) => wanted && value.segments[at].text.toLowerCase().includes(wanted));
    for (const segment of segments) segment.node.classList.toggle("hit", found.includes(segment));
    hits.textContent = wanted ? t("{n} found", { n: found.length }) : "";
    if (!step) hit = -1;
    else if (found.length) {
      hit = (hit + step + found.length) % found.length;
      found[hit].node.scrollIntoView({ block: "center" });
    }
  }

  const turns = () => value.segments.map((segment, at) => ({ ...segment, first: segment.speaker !== value.segments[at - 1]?.speaker }));
  // cut as the engine says; what was corrected, or came without cues, is a cue a segment
  const cues = () => turns().flatMap((segment, at) => {
    const cut = segment.text === original.segments[at].text && segment.cues?.length ? segment.cues : [{ ...segment, text: segment.text.replace(/\s+/g, " ") }];
    const name = names.length > 1 && segment.first && segment.speaker ? `${edits.name(segment.speaker) || segment.speaker}: ` : "";
    return cut.map((cue, number) => ({ start: cue.start, end: cue.end, text: `${number ? "" : name}${cue.text.replaceAll("-->", "→")}` }));
  });
  node.append(
    about,
    value.segments.length ? h("div", { class: "tools-row" }, edit, undo, back, find, hits) : "",
    value.segments.length ? said : h("p", { class: "plain", text: t("This recording has no speech.") }),
    h(
      "div",
      { class: "saves" },
      save(`${base}.txt`, () => `${value.segments.map((segment) => `[${srtClock(segment.start).slice(0, 8)}] ${segment.speaker ? `${edits.name(segment.speaker) || segment.speaker}: ` : ""}${segment.text}`).join("\n")}\n`),
      save(`${base}.srt`, () => cues().map((cue, at) => `${at + 1}\n${srtClock(cue.start)} --> ${srtClock(cue.end)}\n${cue.text}\n`).join("\n")),
      save(`${base}.vtt`, () => `WEBVTT\n\n${cues().map((cue) => `${srtClock(cue.start, ".")} --> ${srtClock(cue.end, ".")}\n${cue.text}\n`).join("\n")}`),
      h("button", { type: "button", class: "save", onclick: () => getBlob(`${jobPath(outcome.id)}/transcript?format=docx`).then((blob) => saveBlob(`${base}.docx`, blob), (error) => actions.toast(error.message, true)) }, icon("download"), h("span", { text: `${base}.docx` })),
      save(`${base}.md`, () => `# ${base}\n${turns().map((segment) => `${segment.first ? `\n**${called(segment.speaker) || "…"}** (${clock(segment.start)})\n\n` : ""}${segment.text}\n`).join("")}`),
    ),
  );
  draw();
  edits.load().catch((error) => actions.toast(error.message, true));
  attach(outcome, inputs, place, { value, colour, said, segments, words }, release, actions).catch((error) => actions.toast(error.message, true));
  return node;
}

function nameless(outcome) {
  return Object.values(inputsOf(outcome.id))[0]?.name ?? "";
}

function speakers(value) {
  const listed = Array.isArray(value.speakers) ? value.speakers.map(String) : [];
  return [...new Set([...listed, ...value.segments.map((segment) => segment.speaker).filter(Boolean).map(String)])];
}

function plainName(name, names) {
  const number = /^spk(\d+)$/.exec(name);
  return number ? t("Speaker {n}", { n: Number(number[1]) + 1 }) : name || (names.length ? t("Unknown speaker") : "");
}

/** rename(speaker, name): when names can be changed, else null. */
function legend(value, names, colour, called, rename) {
  if (names.length < 2 && !(rename && names.length)) return null;
  const spoken = (name) => value.segments.filter((segment) => segment.speaker === name).reduce((sum, segment) => sum + segment.end - segment.start, 0);
  const label = (name) => {
    if (!rename) return called(name);
    return h("input", { type: "text", value: called(name), maxlength: 200, "aria-label": t("Name of {name}", { name: plainName(name, names) }), onchange: (event) => rename(name, event.target.value.trim() === plainName(name, names) ? "" : event.target.value.trim()), onkeydown: (event) => event.key === "Enter" && event.target.blur() });
  };
  return h("ul", { class: "legend" }, names.map((name) => h("li", { dataset: { speaker: colour(name) } }, h("i", { class: "dot" }), label(name), h("small", { text: duration(Math.round(spoken(name))) }))));
}

/** rewrite(at): when the text can be changed, else null. */
function drawSegment(segment, { at, before, words, names, colour, called, rewrite }) {
  const text = h("p");
  const first = words.length;
  spread(segment, text, words);
  const turn = names.length > 1 && segment.speaker && segment.speaker !== before?.speaker;
  const pen = rewrite ? h("button", { type: "button", class: "pen", "aria-label": t("Edit from {time}", { time: clock(segment.start) }), onclick: () => rewrite(at) }, icon("pen", 13)) : null;
  const node = h(
    "li",
    { class: "part", dataset: segment.speaker && names.length > 1 ? { speaker: colour(segment.speaker) } : {} },
    h("button", { type: "button", class: "at", "aria-label": t("Play from {time}", { time: clock(segment.start) }), text: clock(segment.start), dataset: { seek: segment.start } }),
    h("div", {}, turn ? h("b", { class: "who", text: called(segment.speaker) }) : null, text),
    pen,
  );
  return { node, text, start: segment.start, end: segment.end, speaker: segment.speaker, first, last: words.length };
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

/** Attach the recording: an input of the job, else a file that the reader chooses. */
async function attach(outcome, inputs, place, script, release, actions) {
  const input = Object.values(inputs).find((one) => one.kind !== "image");
  if (input) return play(place, await mediaAddress(input.url), input.kind === "video", script, release, actions);
  const gone = Object.values(inputsOf(outcome.id)).find((one) => one.type !== "image");
  const chooser = h("input", { type: "file", accept: "audio/*,video/*", "aria-label": t("Choose the recording") });
  chooser.addEventListener("change", () => {
    const [file] = chooser.files;
    if (file) play(place, URL.createObjectURL(file), file.type.startsWith("video/"), script, release, actions);
  });
  const why = gone ? t("{name} is no longer stored here.", { name: gone.name }) : t("The recording cannot be fetched from the server.");
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
