// A media player: play button, single frames, a track with the turns of the speakers, time, speed.

import { h, icon, mark, say } from "./dom.js";
import { clock } from "./format.js";
import { t } from "./texts.js";

const SPEEDS = [1, 1.25, 1.5, 2, 0.75];

/**
 * A player of one recording. seen: it has video. parts: {start, end, colour} for the track, in seconds.
 * length: seconds, used until the metadata is loaded. moved(time): called as it plays. broken(): called when it cannot be played.
 * media: an element that is shown elsewhere, in place of one for `address`. fps: of a film, whose frames can be stepped
 * through; frames: how many it has, if that is known.
 */
export function makePlayer({ address, seen, parts, length, moved, broken, media: given = null, fps = 0, frames = 0 }) {
  const media = given ?? h("video", { preload: "metadata", playsinline: true, hidden: !seen, src: address, "aria-label": t("Recording") });
  const toggle = h("button", { type: "button", class: "toggle", "aria-label": t("Play"), title: t("Play (space)") }, icon("play", 18));
  const time = h("span", { class: "time", text: "0:00" });
  const whole = h("span", { class: "time whole", text: clock(length) });
  const speed = h("button", { type: "button", class: "speed", text: "1×", "aria-label": t("Speed {n}", { n: 1 }) });
  const blocks = h("div", { class: "blocks", "aria-hidden": "true" });
  const head = h("i", { class: "head" });
  const track = h("div", { class: "track", role: "slider", tabindex: "0", "aria-label": t("Position"), "aria-valuemin": 0, "aria-valuemax": Math.round(length || 0), "aria-valuenow": 0 }, blocks, head);
  const steps = fps ? [-1, 1].map((by) => h("button", { type: "button", class: "icon step", dataset: { step: by }, "aria-label": by < 0 ? t("Previous frame") : t("Next frame"), title: by < 0 ? t("Previous frame (,)") : t("Next frame (.)"), onclick: () => step(by) }, icon(by < 0 ? "back" : "forward"))) : [];
  const count = fps ? h("span", { class: "time frame" }) : null;
  const node = h("div", { class: "player", dataset: { player: "" } }, given ? null : media, h("div", { class: "controls" }, toggle, steps, time, track, whole, count, speed));
  let seconds = length || 0;
  let frame = 0;

  const show = () => {
    const now = media.currentTime;
    say(time, clock(now));
    if (count) say(count, t("frame {n}", { n: frameAt(now) }));
    head.style.left = `${seconds ? Math.min(100, (100 * now) / seconds) : 0}%`;
    mark(track, "aria-valuemax", Math.round(seconds));
    mark(track, "aria-valuenow", Math.round(now));
    mark(track, "aria-valuetext", t("{time} of {all}", { time: clock(now), all: clock(seconds) }));
    moved(now);
  };
  const run = () => {
    show();
    frame = media.paused ? 0 : requestAnimationFrame(run);
  };
  const playing = () => {
    toggle.replaceChildren(icon(media.paused ? "play" : "pause", 18));
    mark(toggle, "aria-label", media.paused ? t("Play") : t("Pause"));
    if (!media.paused && !frame) run();
  };
  const start = () => media.play().catch(() => {});
  const seek = (to, play = false) => {
    media.currentTime = Math.max(0, Math.min(seconds || to, to));
    show();
    if (play) start();
  };

  const last = () => Math.max(0, (frames || Math.round(seconds * fps)) - 1);
  const frameAt = (now) => Math.min(last(), Math.floor(now * fps + 0.001)); // at its end a film shows its last frame
  const step = (by) => {
    media.pause();
    seek((Math.max(0, Math.min(last(), frameAt(media.currentTime) + by)) + 0.5) / fps); // in the middle of a frame
  };

  const heard = new AbortController(); // the media may outlive its player
  const on = (kinds, listener) => kinds.forEach((kind) => media.addEventListener(kind, listener, { signal: heard.signal }));
  on(["play", "pause", "ended"], playing);
  on(["timeupdate", "seeked"], show);
  on(["loadedmetadata"], () => {
    if (Number.isFinite(media.duration)) seconds = media.duration;
    say(whole, clock(seconds));
    drawBlocks();
    show();
  });
  on(["error"], () => media.getAttribute("src") && broken());
  toggle.addEventListener("click", () => (media.paused ? start() : media.pause()));
  speed.addEventListener("click", () => {
    media.playbackRate = SPEEDS[(SPEEDS.indexOf(media.playbackRate) + 1) % SPEEDS.length];
    say(speed, `${media.playbackRate}×`);
    mark(speed, "aria-label", t("Speed {n}", { n: media.playbackRate }));
  });
  const to = (event) => {
    const box = track.getBoundingClientRect();
    seek(seconds * Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)));
  };
  track.addEventListener("pointerdown", (event) => {
    track.setPointerCapture(event.pointerId);
    to(event);
  });
  track.addEventListener("pointermove", (event) => track.hasPointerCapture(event.pointerId) && to(event));
  track.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 5, ArrowUp: 5, ArrowLeft: -5, ArrowDown: -5, PageUp: 30, PageDown: -30, Home: -seconds, End: seconds }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    seek(media.currentTime + step);
  });

  function drawBlocks() {
    const most = 600; // more than there are pixels would not show
    const step = Math.ceil(parts.length / most);
    blocks.replaceChildren(
      ...parts.filter((_, at) => at % step === 0).map((part) => {
        const block = h("i", { dataset: part.colour === null ? {} : { speaker: part.colour } });
        block.style.left = `${(100 * part.start) / seconds}%`;
        block.style.width = `${Math.max(0.2, (100 * (part.end - part.start)) / seconds)}%`;
        return block;
      }),
    );
  }
  if (Number.isFinite(media.duration)) seconds = media.duration;
  if (seconds) drawBlocks();
  if (given) {
    say(whole, clock(seconds));
    playing();
    show();
  }
  return {
    node,
    seek,
    step,
    /** The number of the frame at a time. */
    frame: frameAt,
    release() {
      cancelAnimationFrame(frame);
      heard.abort();
      if (given) return;
      media.pause();
      media.removeAttribute("src");
      media.load();
    },
  };
}
