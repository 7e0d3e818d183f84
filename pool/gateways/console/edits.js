// The corrections of a transcript: kept by the gateway beside the result, which stays; here with undo.

import { call, get, jobPath } from "./api.js";

/** The corrections of one job. changed(): called after each change. failed(error): called when one cannot be kept. */
export function makeEdits(jobId, changed, failed) {
  let now = { version: 0, names: {}, segments: {} };
  const past = [];
  let writing = Promise.resolve();

  const path = `${jobPath(jobId)}/edits`;

  /** Keep the latest state; one write at a time. */
  function write() {
    writing = writing.then(async () => {
      try {
        const { version } = await call("PUT", path, now);
        now = { ...now, version }; // RACE: it may be another state than the one that was sent
      } catch (error) {
        failed(error);
        await load();
      }
    });
    return writing;
  }

  async function load() {
    now = await get(path);
    past.length = 0;
    changed();
  }

  function set(next) {
    past.push({ names: now.names, segments: now.segments });
    now = { ...now, ...next };
    changed();
    return write();
  }

  return {
    load,
    get any() {
      return Object.keys(now.names).length + Object.keys(now.segments).length > 0;
    },
    get canUndo() {
      return past.length > 0;
    },
    name: (speaker) => now.names[speaker] ?? "",
    rename(speaker, name) {
      const names = { ...now.names };
      if (name) names[speaker] = name;
      else delete names[speaker];
      return set({ names });
    },
    /** How a segment reads. words: with their times. */
    write: (number, text, words) => set({ segments: { ...now.segments, [number]: { text, words } } }),
    undo() {
      if (!past.length) return null;
      now = { ...now, ...past.pop() };
      changed();
      return write();
    },
    original: () => set({ names: {}, segments: {} }),
    /** The value of the job with the corrections. */
    applied(value) {
      const segments = value.segments.map((segment, at) => (now.segments[at] ? { ...segment, ...now.segments[at] } : segment));
      return { ...value, segments, text: segments.map((segment) => segment.text).join(" ") };
    },
  };
}
