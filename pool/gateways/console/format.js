// Numbers and times as text.

import { LOCALE, t } from "./texts.js";

const [S, MIN, H, D] = [t("s"), t("min"), t("h"), t("d")]; // units of time

/** 0.4 s, 12 s, 3 min 20 s, 2 h 5 min, 3 d. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "";
  if (seconds < 0.0005) return t("under 1 ms");
  if (seconds < 1) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} ${S}`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} ${S}`;
  if (whole < 3600) return whole % 60 ? `${Math.floor(whole / 60)} ${MIN} ${whole % 60} ${S}` : `${whole / 60} ${MIN}`;
  const minutes = Math.round(whole / 60);
  if (minutes < 48 * 60) return minutes % 60 ? `${Math.floor(minutes / 60)} ${H} ${minutes % 60} ${MIN}` : `${minutes / 60} ${H}`;
  return `${Math.floor(minutes / 1440)} ${D}`;
}

/** A duration in whole seconds, for counters: its digits do not flicker. */
export function age(seconds) {
  const whole = Math.max(0, Math.round(seconds ?? 0));
  return whole < 10 ? `${whole} ${S}` : duration(whole);
}

export function bytes(count) {
  if (!count) return "";
  const units = ["B", "KB", "MB", "GB", "TB"];
  const step = Math.min(units.length - 1, Math.floor(Math.log10(count) / 3));
  const value = count / 1000 ** step;
  return `${value >= 100 || step === 0 ? Math.round(value) : value.toFixed(1)} ${units[step]}`;
}

/** A past time: "now", "3 min ago", after 20 hours the date. seconds: since 1970. */
export function ago(seconds, now = Date.now() / 1000) {
  if (!seconds) return "";
  const past = now - seconds;
  if (past < 5) return t("now");
  if (past < 60) return t("{time} ago", { time: `${Math.floor(past / 5) * 5} ${S}` });
  if (past < 3600) return t("{time} ago", { time: `${Math.floor(past / 60)} ${MIN}` });
  if (past < 20 * 3600) return t("{time} ago", { time: `${Math.floor(past / 3600)} ${H}` });
  return new Date(seconds * 1000).toLocaleDateString(LOCALE, { month: "short", day: "numeric" });
}

export function moment(seconds) {
  return seconds ? new Date(seconds * 1000).toLocaleString(LOCALE, { dateStyle: "medium", timeStyle: "medium" }) : "";
}

/** The time of day, with the date unless it is today. */
export function clockTime(seconds) {
  if (!seconds) return "";
  const then = new Date(seconds * 1000);
  const time = then.toLocaleTimeString(LOCALE, { timeStyle: "medium" });
  return then.toDateString() === new Date().toDateString() ? time : `${then.toLocaleDateString(LOCALE, { month: "short", day: "numeric" })}, ${time}`;
}

/** 1:02:03 or 4:05. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds || 0));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (value) => String(value).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/** 00:00:04,050, the format of SRT; of VTT with mark ".". */
export function srtClock(seconds, mark = ",") {
  const ms = Math.round(Math.max(0, seconds) * 1000);
  const pad = (value, width) => String(value).padStart(width, "0");
  return `${pad(Math.floor(ms / 3600000), 2)}:${pad(Math.floor(ms / 60000) % 60, 2)}:${pad(Math.floor(ms / 1000) % 60, 2)}${mark}${pad(ms % 1000, 3)}`;
}

export const jobCount = (n) => t("{n} {n|job|jobs}", { n });

/** A parameter's key as a label: "batch_size_s" → "Batch size (s)". */
export function title(key) {
  const words = key.replace(/_s$/, " (s)").replace(/_mb$/, " (MB)").replaceAll("_", " ").trim();
  return words ? words[0].toUpperCase() + words.slice(1) : key;
}

export const STATE_NAMES = {
  queued: t("Waiting"),
  held: t("Waiting for other jobs"),
  deferred: t("Scheduled"),
  running: t("Running"),
  completed: t("Completed"),
  failed: t("Failed"),
  cancelled: t("Cancelled"),
};
export const OVER = new Set(["completed", "failed", "cancelled"]);

const STATUS_NAMES = { queued: t("waiting"), processing: t("processing"), downloading: t("downloading"), face_detecting: t("looking at the face"), inference: t("inference"), merging_audio: t("merging audio") };

/** The status and the message of a job as one line. */
export function stageLine(status, message) {
  const label = STATUS_NAMES[status] ?? String(status ?? "").replaceAll("_", " ");
  return [label, message].filter(Boolean).join(" · ");
}

const WORDS = { idle: t("idle"), busy: t("busy"), booting: t("booting"), loading: t("loading"), warming: t("warming"), starting: t("starting"), stopping: t("stopping"), waiting: t("waiting"), benched: t("benched"), off: t("off"), orphaned: t("orphaned"), draining: t("draining") };

/** The phase of a worker, in the language of the page; another word as it is. */
export const word = (name) => WORDS[name] ?? name;
