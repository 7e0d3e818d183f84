// A film in fragments, played while its bytes come. A <video> does so by itself in Chromium; Firefox shows nothing of
// such a response before its end. So the page hands the bytes on (Media Source Extensions, W3C).

const HEADER_MOST = 1 << 20; // bytes before the first fragment
const KEEP_S = 10; // behind the viewer, when the browser has no room

/** The film cannot be fed to a player here: no Media Source Extensions, not MP4, or codecs that they do not take. */
export class Unfed extends Error {}

/**
 * Feed a response of fragmented MP4 to a player until its end. Throws Unfed before the player has a source; throws what
 * the connection throws when it breaks off.
 */
export async function feed(media, body, signal) {
  if (!("MediaSource" in globalThis)) throw new Unfed("no MediaSource");
  const reader = body.getReader();
  const { head, type } = await readHead(reader);
  if (!MediaSource.isTypeSupported(type)) throw new Unfed(type);
  const source = new MediaSource();
  const address = URL.createObjectURL(source);
  media.src = address;
  await happens(source, "sourceopen", signal).finally(() => URL.revokeObjectURL(address));
  const buffer = source.addSourceBuffer(type);
  await append(media, buffer, head, signal);
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    await append(media, buffer, value, signal);
  }
  source.endOfStream();
}

/** The bytes up to the end of the box `moov`, with what came behind it, and their media type. Throws Unfed. */
async function readHead(reader) {
  let head = new Uint8Array(0);
  while (head.length < HEADER_MOST) {
    const { value, done } = await reader.read();
    if (done) break;
    const longer = new Uint8Array(head.length + value.length);
    longer.set(head);
    longer.set(value, head.length);
    head = longer;
    if (head.length >= 8 && boxName(head, 4) !== "ftyp") break;
    const moov = boxes(head).find((box) => box.name === "moov")?.bytes;
    if (!moov) continue;
    keepDelay(moov);
    return { head, type: mediaType(moov) };
  }
  throw new Unfed("not MP4");
}

/** The whole boxes in some bytes, one after the other (ISO/IEC 14496-12), up to one whose size has 64 bits. */
function boxes(bytes) {
  const found = [];
  for (let start = 0; start + 8 <= bytes.length; ) {
    const size = view(bytes).getUint32(start);
    if (size < 8 || start + size > bytes.length) break;
    found.push({ name: boxName(bytes, start + 4), bytes: bytes.subarray(start, start + size) });
    start += size;
  }
  return found;
}

const view = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
const boxName = (bytes, at) => String.fromCharCode(...bytes.subarray(at, at + 4));
const inner = (bytes, name) => boxes(bytes.subarray(8)).find((box) => box.name === name)?.bytes ?? new Uint8Array(8);

/**
 * Show the delay of the sound's encoder, some hundredths of a second, in place of skipping it, and the picture as much
 * later. Firefox 153 takes a first packet that is skipped for a gap, and drops pictures until the next key frame.
 */
function keepDelay(moov) {
  const tracks = boxes(moov.subarray(8)).filter((box) => box.name === "trak");
  const edits = tracks.map(({ bytes }) => firstEdit(bytes)).filter(Boolean);
  const delay = Math.max(0, ...edits.filter((edit) => edit.handler === "soun").map((edit) => edit.skipped / edit.timescale));
  for (const { list, skipped, timescale } of edits) view(list).setInt32(20, Math.max(0, skipped - Math.round(delay * timescale)));
}

/** Where the one edit of a track begins, in units of its timescale; null without one that is understood here. */
function firstEdit(trak) {
  const [list, media] = [inner(inner(trak, "edts"), "elst"), inner(trak, "mdia")];
  const [header, handler] = [inner(media, "mdhd"), inner(media, "hdlr")];
  if (list.length < 28 || list[8] !== 0 || view(list).getUint32(12) !== 1 || header.length < 32 || handler.length < 20) return null;
  const skipped = view(list).getInt32(20);
  if (skipped < 0) return null;
  return { list, skipped, timescale: view(header).getUint32(header[8] ? 28 : 20), handler: boxName(handler, 16) };
}

/** The media type of a `moov`, with H.264's profile and level from its own box (RFC 6381); other codecs by their box. */
function mediaType(moov) {
  const codecs = [];
  for (let at = 0; at + 8 <= moov.length; at++) {
    const name = boxName(moov, at);
    if (name === "avcC") codecs.push(`avc1.${[...moov.subarray(at + 5, at + 8)].map((byte) => byte.toString(16).padStart(2, "0")).join("")}`);
    else if (name === "mp4a") codecs.push("mp4a.40.2");
    else if (name === "Opus") codecs.push("opus");
    else if (["hvc1", "hev1", "vp09", "av01"].includes(name)) codecs.push(name);
  }
  return `video/mp4; codecs="${codecs.join(", ")}"`;
}

/** Append bytes; where the browser has no room for them, let go of what was seen, and wait until more was. */
async function append(media, buffer, bytes, signal) {
  for (;;) {
    signal.throwIfAborted();
    try {
      buffer.appendBuffer(bytes);
      await happens(buffer, "updateend", signal);
      return skipGap(media);
    } catch (error) {
      if (error.name !== "QuotaExceededError") throw error;
    }
    const seen = media.currentTime - KEEP_S;
    if (buffer.buffered.length && buffer.buffered.start(0) < seen) {
      buffer.remove(0, seen);
      await happens(buffer, "updateend", signal);
    } else await happens(media, "timeupdate", signal);
  }
}

/** The first picture may begin behind 0, where the player would wait for it. */
function skipGap(media) {
  const { buffered } = media;
  if (buffered.length && media.currentTime < buffered.start(0)) media.currentTime = buffered.start(0);
}

/** The next event of a name. Throws the signal's reason when it aborts first. */
function happens(target, name, signal) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) return reject(signal.reason);
    const quit = () => reject(signal.reason);
    signal.addEventListener("abort", quit, { once: true });
    target.addEventListener(name, () => (signal.removeEventListener("abort", quit), resolve()), { once: true, signal });
  });
}
