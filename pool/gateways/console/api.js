// The gateway's API: the token, requests, uploads with progress, event streams.

const KEY = "filepool.token";
const COOKIE = "filepool_token"; // for requests that cannot send a header: images, audio, video, downloads
const TIMEOUT_MS = 20_000;
const COOKIE_SAFE = /^[\w!#$%&'*+\-.^`|~/=:@]+$/;

const ROOT = new URL("../", import.meta.url); // below a prefix when a proxy serves the gateway there

let token = sessionStorage.getItem(KEY) ?? "";

/** A failed request. status: of HTTP, 0 when there is no valid answer. data: the job, when one failed. */
export class Refused extends Error {
  constructor(status, message, retryAfterS = 0, data = null) {
    super(message);
    this.status = status;
    this.retryAfterS = retryAfterS;
    this.data = data;
  }
}

const at = (path) => new URL(path.slice(1), ROOT).href;

export const hasToken = () => token !== "";

/** Set the token; "" removes it. */
export function useToken(text) {
  token = text.trim();
  if (token) sessionStorage.setItem(KEY, token);
  else sessionStorage.removeItem(KEY);
  setCookie();
}

function setCookie() {
  const secure = location.protocol === "https:" ? "; Secure" : "";
  const life = token && COOKIE_SAFE.test(token) ? "" : "; Max-Age=0";
  document.cookie = `${COOKIE}=${life ? "" : token}; Path=${ROOT.pathname}; SameSite=Strict${secure}${life}`;
}
if (token) setCookie();

function headers(more = {}) {
  return token ? { ...more, Authorization: `Bearer ${token}` } : more;
}

/** Call a route; resolves to its JSON. Throws Refused with the server's message. */
export async function call(method, path, body = undefined, signal = undefined) {
  const limit = AbortSignal.timeout(TIMEOUT_MS);
  let answer;
  try {
    answer = await fetch(at(path), {
      method,
      headers: headers(body === undefined ? {} : { "Content-Type": "application/json" }),
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused(0, limit.aborted ? "the gateway does not answer" : "the gateway cannot be reached");
  }
  let found = null;
  try {
    found = await answer.json();
  } catch {
    if (answer.ok) throw new Refused(0, "the answer of the gateway is not valid JSON");
  }
  if (!answer.ok) throw refusal(answer.status, found, answer.headers.get("Retry-After"));
  return found;
}

export const get = (path, signal) => call("GET", path, undefined, signal);
export const jobPath = (id) => `/jobs/${encodeURIComponent(id)}`;

/** The URL of an uploaded file. */
export const uploadAddress = (id) => at(`/api/tempfile/download/${encodeURIComponent(id)}`);

function refusal(status, found, after) {
  const message = found?.error?.message || found?.message || `the gateway answered ${status}`;
  return new Refused(status, String(message), Number(after) || 0, found?.error?.data ?? null);
}

/** Upload one file. progress: called with 0…1. Resolves to {file_id, file_type, original_name}. */
export function upload(file, progress, signal) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("file", file, file.name || "recording");
    const request = new XMLHttpRequest(); // fetch reports no upload progress
    request.open("POST", at("/api/tempfile/upload"));
    for (const [key, value] of Object.entries(headers())) request.setRequestHeader(key, value);
    request.responseType = "json";
    request.upload.addEventListener("progress", (event) => {
      if (event.lengthComputable) progress(event.loaded / event.total);
    });
    request.addEventListener("load", () => {
      if (request.status === 200 && request.response?.file_id) resolve(request.response);
      else reject(refusal(request.status, request.response, request.getResponseHeader("Retry-After")));
    });
    request.addEventListener("error", () => reject(new Refused(0, `${file.name} could not be uploaded: the connection failed`)));
    request.addEventListener("abort", () => reject(new DOMException("stopped", "AbortError")));
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

/** A URL for <video src> and similar. Throws Refused; release a blob URL with `URL.revokeObjectURL`. */
export async function mediaAddress(address) {
  if (!token || COOKIE_SAFE.test(token)) {
    if (token) setCookie();
    return address;
  }
  const answer = await fetch(address, { headers: headers() });
  if (!answer.ok) throw refusal(answer.status, await answer.json().catch(() => null), null);
  return URL.createObjectURL(await answer.blob());
}

/** Whether a file exists, without fetching it. */
export async function exists(address) {
  try {
    return (await fetch(address, { method: "HEAD", headers: headers(), cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

/** Follow a job until its end. Calls `on(event, data)` for each event, `broken(true)` when the connection fails, `broken(false)` when it is back. */
export async function follow(id, on, broken, signal) {
  let last = "";
  for (let failures = 0; !signal.aborted; ) {
    try {
      const answer = await fetch(at(`${jobPath(id)}/events`), { headers: headers(last ? { "Last-Event-ID": last } : {}), signal, cache: "no-store" });
      if (answer.status === 204) return;
      if (!answer.ok) throw refusal(answer.status, await answer.json().catch(() => null), answer.headers.get("Retry-After"));
      broken(false);
      for await (const event of events(answer.body)) {
        failures = 0;
        if (event.id) last = event.id;
        on(event.name, event.data);
        if (event.name === "result") return;
      }
      throw new Refused(0, "the stream ended");
    } catch (error) {
      if (signal.aborted) return;
      if (error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
      failures += 1;
      if (failures > 1) broken(true);
      await pause(Math.min(8000, 400 * 2 ** failures), signal);
    }
  }
}

/** The server-sent events of a response body: {name, data, id}. */
async function* events(body) {
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
        const at = line.indexOf(": ");
        if (at > 0) fields[line.slice(0, at)] = line.slice(at + 2);
      }
      if (fields.data) yield { name: fields.event, data: JSON.parse(fields.data), id: fields.id };
    }
  }
}

/** Sleep until the time is over or the signal aborts. */
export function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
