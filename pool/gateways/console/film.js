// The video of a job while it is being made, and afterwards the whole one from where the viewer was.

import { getBody, jobPath, mediaAddress, pathAddress } from "./api.js";
import { h } from "./dom.js";
import { feed, Unfed } from "./feed.js";
import { t } from "./texts.js";

/** A player of the stream of one attempt, which plays at once: with its sound where the browser lets it, else without. */
export function liveFilm(id, attempt) {
  const media = h("video", { controls: true, playsinline: true, "aria-label": t("The video so far") });
  const about = attempt > 1 ? t("So far, attempt {n}", { n: attempt }) : t("So far");
  const node = h("figure", { class: "file", dataset: { kind: "video", attempt } }, media, h("figcaption", { text: about }));
  const path = `${jobPath(id)}/stream?attempt=${attempt}`;
  const leaving = new AbortController();
  const { signal } = leaving;
  media.addEventListener("loadstart", start, { once: true, signal });
  play().catch(() => signal.aborted || node.remove()); // the attempt failed; the next one has a stream of its own
  media.addEventListener("error", () => node.remove(), { signal });

  async function play() {
    const fetched = new AbortController();
    signal.addEventListener("abort", () => fetched.abort());
    try {
      await feed(media, await getBody(path, fetched.signal), signal);
    } catch (error) {
      if (!(error instanceof Unfed)) throw error;
      fetched.abort();
      const address = await mediaAddress(pathAddress(path));
      if (!signal.aborted) media.src = address;
    }
  }

  function start() {
    media.play().catch((error) => {
      if (signal.aborted || error.name !== "NotAllowedError") return;
      media.muted = true;
      media.play().catch(() => {});
    });
  }

  return {
    node,
    attempt,
    /** Where the viewer is: {time, playing, muted}. */
    get place() {
      return { time: media.currentTime, playing: !media.paused && !media.ended, muted: media.muted };
    },
    release() {
      leaving.abort();
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
