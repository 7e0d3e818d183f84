// A result beside the picture or video that it was made from: one play head, single frames, a lens on the same place.

import { mediaAddress } from "./api.js";
import { h, icon, mark, say } from "./dom.js";
import { makePlayer } from "./player.js";
import { number, t } from "./texts.js";

const FPS = 25; // of results that do not say it
const FAR_S = 0.08; // a template that is this far off while it plays is set, not left to catch up
const LENS = { x: 50, y: 58, size: 24 }; // per cent of the picture; a mouth is a little below the middle of a face
const SIDE = 320; // pixels of a lens
const CELLS = 48; // a side of the grid on which the pictures are compared
const APART = 24; // of 255: cells that differ by more were changed, not only encoded again
const MOST_APART = 0.25; // of the cells: more is another moment, not a mouth

/** The frame of a template that an output frame is made from: 0 1 … n−1 n−2 … 1 0 1 …, as lip-sync repeats it. */
export function looped(frame, length) {
  if (!(length > 1)) return 0;
  const phase = frame % (2 * length - 2);
  return phase < length ? phase : 2 * length - 2 - phase;
}

/**
 * A view of the video `film` with the template beside it. template: {name, kind, url}. value: of the job: fps, frames,
 * template_frames and shown, the part of a picture that is seen, are used when they are there.
 * Returns {node, release()}; `film` is a part of `node`, without controls of its own.
 */
export function makeCompare(film, template, value, actions) {
  const fps = value?.fps > 0 ? value.fps : FPS;
  const still = template.kind === "image";
  const original = still ? h("img", { alt: template.name }) : h("video", { preload: "auto", playsinline: true, muted: true, "aria-label": template.name });
  const zoom = makeLens(original, film, still ? value?.shown : null, () => draw());
  let open = true;
  let address = "";
  let waiting = 0; // the seek that comes after the one that is going on

  film.controls = false;
  const player = makePlayer({ media: film, parts: [], length: value?.duration_s ?? 0, moved: () => follow(), broken: () => {}, fps, frames: value?.frames });
  const side = (name, node) => h("figure", { class: "side" }, node, h("figcaption", { text: name }));
  const node = h("div", { class: "compare" }, h("div", { class: "pair" }, side(t("Template"), original), side(t("Result"), film)), player.node, zoom.node);

  /** Put the template where the result is. */
  function follow() {
    if (!still && original.readyState) {
      const length = value?.template_frames ?? Math.round((original.duration || 0) * fps);
      const frame = player.frame(film.currentTime);
      const wanted = looped(frame, length);
      const forward = looped(frame + 1, length) > wanted;
      const time = (wanted + 0.5) / fps;
      original.playbackRate = film.playbackRate;
      if (!film.paused && forward) {
        if (Math.abs(original.currentTime - time) > FAR_S) seek(time);
        if (original.paused) original.play().catch(() => {});
      } else {
        original.pause();
        if (Math.abs(original.currentTime - time) > 0.25 / fps) seek(time);
      }
    }
    draw();
  }

  function seek(time) {
    waiting = time;
    if (!original.seeking) original.currentTime = time;
  }

  function draw() {
    if (open) zoom.draw();
  }

  original.addEventListener("seeked", () => {
    if (!film.paused || Math.abs(original.currentTime - waiting) < 0.25 / fps) draw();
    else original.currentTime = waiting;
  });
  // RACE: "seeked" may come before the frame does
  for (const video of [original, film]) {
    const shown = () => {
      if (!open) return;
      draw();
      video.requestVideoFrameCallback?.(shown);
    };
    video.requestVideoFrameCallback?.(shown);
  }
  for (const kind of ["loadeddata", "load"]) original.addEventListener(kind, follow);
  film.addEventListener("loadeddata", follow);
  mediaAddress(template.url).then(
    (found) => {
      address = found;
      if (open) original.src = found;
    },
    (error) => actions.toast(error.message, true),
  );
  return {
    node,
    step: player.step,
    release() {
      open = false;
      player.release();
      if (!still) original.pause();
      original.removeAttribute("src");
      if (address.startsWith("blob:")) URL.revokeObjectURL(address);
    },
  };
}

/** Two enlarged parts, of the same place in both pictures. shown: [x, y, width, height] of the template that is seen. */
function makeLens(template, film, shown, changed) {
  const spot = { ...LENS };
  const grid = h("canvas", { width: CELLS, height: CELLS }).getContext("2d", { willReadFrequently: true });
  let chosen = false; // whether somebody has put the lens to a place
  const canvases = [template, film].map(() => h("canvas", { width: SIDE, height: SIDE, "aria-hidden": "true" }));
  const ranges = [
    ["x", t("Across"), 0, 100],
    ["y", t("Down"), 0, 100],
    ["size", t("Width of the lens"), 4, 100],
  ].map(([key, label, min, max]) => {
    const input = h("input", { type: "range", min, max, step: 1, value: spot[key], oninput: () => ((spot[key] = Number(input.value)), (chosen ||= key !== "size"), tell(), changed()) });
    const said = h("output", {});
    return { key, input, said, node: h("label", {}, h("span", { text: label }), input, said) };
  });
  const node = h("details", { class: "lens", open: true, ontoggle: changed }, h("summary", { text: t("Lens") }), h("div", { class: "pair" }, canvases), h("div", { class: "ranges" }, ranges.map((range) => range.node)), h("p", { class: "aside", text: t("A click or a drag on one of the pictures puts the lens there.") }));

  function tell() {
    for (const { key, input, said } of ranges) {
      input.value = spot[key];
      say(said, `${number(spot[key])} %`);
      mark(input, "aria-valuetext", `${number(spot[key])} %`);
    }
  }

  /** Put the middle of the lens to a place of a picture, from a pointer. */
  function put(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const percent = (at, from, length) => Math.round(Math.max(0, Math.min(100, (100 * (at - from)) / length)));
    chosen = true;
    spot.x = percent(event.clientX, box.left, box.width);
    spot.y = percent(event.clientY, box.top, box.height);
    tell();
    changed();
  }

  for (const picture of [template, film]) {
    picture.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      picture.setPointerCapture(event.pointerId);
      put(event);
    });
    picture.addEventListener("pointermove", (event) => picture.hasPointerCapture(event.pointerId) && put(event));
  }
  tell();

  /** The part of a picture that both show: [x, y, width, height] in pixels, null before it is loaded. */
  function partOf(picture) {
    const [width, height] = [picture.videoWidth ?? picture.naturalWidth, picture.videoHeight ?? picture.naturalHeight];
    if (!width || !height) return null;
    return picture === template && Array.isArray(shown) && shown.length === 4 ? shown : [0, 0, width, height];
  }

  /** The middle of what differs between the pictures, {x, y} in per cent; null when that is nothing, or nearly all. */
  function changedPlace() {
    const [before, after] = [template, film].map((picture) => {
      grid.drawImage(picture, ...partOf(picture), 0, 0, CELLS, CELLS);
      return grid.getImageData(0, 0, CELLS, CELLS).data;
    });
    let [count, across, down] = [0, 0, 0];
    for (let cell = 0; cell < CELLS * CELLS; cell += 1) {
      const apart = Math.max(...[0, 1, 2].map((part) => Math.abs(before[4 * cell + part] - after[4 * cell + part])));
      if (apart <= APART) continue;
      count += 1;
      across += (cell % CELLS) + 0.5;
      down += Math.floor(cell / CELLS) + 0.5;
    }
    if (!count || count > MOST_APART * CELLS * CELLS) return null;
    return { x: Math.round((100 * across) / count / CELLS), y: Math.round((100 * down) / count / CELLS) };
  }

  return {
    node,
    draw() {
      if (!node.open) return;
      if (!chosen && film.paused && partOf(template) && partOf(film)) {
        Object.assign(spot, changedPlace()); // follows the mouth
        tell();
      }
      [template, film].forEach((picture, at) => {
        const part = partOf(picture);
        if (!part) return;
        const edge = (spot.size / 100) * part[2];
        const left = part[0] + (spot.x / 100) * part[2] - edge / 2;
        const top = part[1] + (spot.y / 100) * part[3] - edge / 2;
        const pen = canvases[at].getContext("2d");
        pen.clearRect(0, 0, SIDE, SIDE);
        pen.imageSmoothingEnabled = false; // pixels are what one looks for
        pen.drawImage(picture, left, top, edge, edge, 0, 0, SIDE, SIDE);
      });
    },
  };
}
