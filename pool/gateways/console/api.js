// The gateway's API: the token, requests, uploads with progress.

import { t } from "./texts.js";
import { at, events, Refused, refusal, ROOT } from "./wire.js";

export { Refused };

const KEY = "filepool.token";
const COOKIE = "filepool_token"; // for requests that cannot send a header: images, audio, video, downloads
const TIMEOUT_MS = 20_000;
const COOKIE_SAFE = /^[\w!#$%&'*+\-.^`|~/=:@]+$/;

let token = sessionStorage.getItem(KEY) ?? ofAnotherTab();

/** The token that was given in another tab of this browser, "" without one. */
function ofAnotherTab() {
  const found = document.cookie.split("; ").find((pair) => pair.startsWith(`${COOKIE}=`));
  const given = found?.slice(COOKIE.length + 1) ?? "";
  if (given) sessionStorage.setItem(KEY, given);
  return given;
}

export const hasToken = () => token !== "";
export const tokenText = () => token;

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
    throw new Refused(0, limit.aborted ? t("the gateway does not answer") : t("the gateway cannot be reached"));
  }
  let found = null;
  try {
    found = await answer.json();
  } catch {
    if (answer.ok) throw new Refused(0, t("the answer of the gateway is not valid JSON"));
  }
  if (!answer.ok) throw refusal(answer.status, found, answer.headers.get("Retry-After"));
  return found;
}

export const get = (path, signal) => call("GET", path, undefined, signal);
export const jobPath = (id) => `/jobs/${encodeURIComponent(id)}`;

/** The URL of a path of the gateway. */
export const pathAddress = at;

/** The URL of an uploaded file. */
export const uploadAddress = (id) => at(`/api/tempfile/download/${encodeURIComponent(id)}`);

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
    request.addEventListener("error", () => reject(new Refused(0, t("{name} could not be uploaded: the connection failed", { name: file.name }))));
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

/** Fetch a small file. Throws Refused. */
export async function getBlob(path) {
  const answer = await fetch(at(path), { headers: headers(), cache: "no-store" }).catch(() => {
    throw new Refused(0, t("the gateway cannot be reached"));
  });
  if (!answer.ok) throw refusal(answer.status, await answer.json().catch(() => null), null);
  return answer.blob();
}

/** The body of a response, as it comes, until the signal aborts. Throws Refused. */
export async function getBody(path, signal) {
  const answer = await fetch(at(path), { headers: headers(), signal, cache: "no-store" }).catch((error) => {
    throw signal.aborted ? error : new Refused(0, t("the gateway cannot be reached"));
  });
  if (!answer.ok) throw refusal(answer.status, await answer.json().catch(() => null), null);
  return answer.body;
}

/** The server-sent events of a route, until the signal aborts (wire.js). Throws Refused. */
export async function* getEvents(path, signal) {
  yield* events(await getBody(path, signal));
}

/** Whether a file exists, without fetching it. */
export async function exists(address) {
  try {
    return (await fetch(address, { method: "HEAD", headers: headers(), cache: "no-store" })).ok;
  } catch {
    return false;
  }
}
