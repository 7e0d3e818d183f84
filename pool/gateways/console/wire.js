// What pages and the shared worker have in common: addresses, refusals, server-sent events.

import { t } from "./texts.js";

export const ROOT = new URL("../", import.meta.url); // below a prefix when a proxy serves the gateway there

export const at = (path) => new URL(path.slice(1), ROOT).href;

/** A failed request. status: of HTTP, 0 when there is no valid answer. data: the job, when one failed. */
export class Refused extends Error {
  constructor(status, message, retryAfterS = 0, data = null) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
    this.data = data;
  }
}

/** The Refused of an answer that is not ok, and of its JSON, null without any. */
export function refusal(status, found, after) {
  const message = found?.error?.message || found?.message || t("the gateway answered {status}", { status });
  return new Refused(status, String(message), Number(after) || 0, found?.error?.data ?? null);
}

/** The server-sent events of a response body: {name, data, id}; null for a comment that keeps it open. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = { event: "message", data: "", id: "" };
      for (const line of block.split("\n")) {
        const colon = line.indexOf(": ");
        if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 2);
      }
      yield fields.data ? { name: fields.event, data: JSON.parse(fields.data), id: fields.id } : null;
    }
  }
}

/** Sleep until the time is over or the signal aborts. */
export function pause(ms, signal) {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
