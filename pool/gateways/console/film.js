// The video of a job while it is being made, and afterwards the whole one from where the viewer was.

import { jobPath, mediaAddress, pathAddress } from "./api.js";
import { h } from "./dom.js";
import { t } from "./texts.js";

/** A player of the stream of one attempt, which plays at once: with its sound where the browser lets it, else without. */
export function liveFilm(id, attempt) {
  const media = h("video", { controls: true, playsinline: true, "aria-label": t("The video so far") });
  const about = attempt > 1 ? t("So far, attempt {n}", { n: attempt }) : t("So far");
  const node = h("figure", { class: "file", dataset: { kind: "video", attempt } }, media, h("figcaption", { text: about }));
  let over = false;
  mediaAddress(pathAddress(`${jobPath(id)}/stream?attempt=${attempt}`)).then(
    (address) => {
      if (over) return;
      media.src = address;
      media.play().catch((error) => {
        if (over || error.name !== "NotAllowedError") return;
        media.muted = true;
        media.play().catch(() => {});
      });
    },
    () => node.remove(),
  );
  media.addEventListener("error", () => over || node.remove()); // the attempt failed; the next one has a stream of its own
  return {
    node,
    attempt,
    /** Where the viewer is: {time, playing, muted}. */
    get place() {
      return { time: media.currentTime, playing: !media.paused && !media.ended, muted: media.muted };
    },
    release() {
      over = true;
      media.pause();
      media.removeAttribute("src");
      media.load(); // ends the request
    },
  };
}

/** Let a player go on at a place of another. */
export function goOn(media, place) {
  media.addEventListener(
    "loadedmetadata",
    () => {
      media.currentTime = Math.min(place.time, media.duration || place.time);
      media.muted = place.muted;
      if (place.playing) media.play().catch(() => {});
    },
    { once: true },
  );
}
