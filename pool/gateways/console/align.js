// Words with their times, after a person has changed the text of a segment.

const SCRIPT = "\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}\\p{Script=Hangul}\\p{Script=Thai}";
const TOKEN = new RegExp(`[${SCRIPT}][^\\s\\p{L}\\p{N}]*|[^\\s${SCRIPT}]+`, "gu"); // a word, or one character of a script without spaces
const MOST = 250_000; // cells of the table; more words are aligned at their ends only

const tokens = (text) => text.match(TOKEN) ?? [];

/**
 * The words of `text`: those that were there keep their times and certainty; new ones share the time of those that they
 * replace, or of the pause that they are in, by their length. words: of the segment before; start, end: its times in seconds.
 */
export function realign(words, text, { start, end, speaker = null }) {
  const old = words.flatMap(split);
  const now = tokens(text);
  const pairs = match(old.map((word) => word.word), now);
  const found = [];
  let [from, at] = [0, 0];
  for (const [left, right] of [...pairs, [old.length, now.length]]) {
    const replaced = old.slice(from, left);
    const before = found.at(-1)?.end ?? start;
    const after = old[left]?.start ?? end;
    const span = replaced.length ? [Math.max(before, replaced[0].start), Math.max(before, replaced.at(-1).end)] : [before, Math.max(before, after)];
    found.push(...spread(now.slice(at, right), span, speaker));
    if (left < old.length) found.push(old[left]);
    [from, at] = [left + 1, right + 1];
  }
  return found.map((word) => ({ ...word, start: round(word.start), end: round(word.end) }));
}

const round = (seconds) => Math.round(seconds * 1000) / 1000;

/** A word of several tokens, such as 你好, as one each. */
function split(word) {
  const parts = tokens(word.word);
  if (parts.length < 2) return [word];
  return spread(parts, [word.start, word.end], word.speaker).map((part) => ({ ...part, probability: word.probability ?? null }));
}

/** New words in a span of time, each as long as its share of the characters. */
function spread(parts, [start, end], speaker) {
  const whole = parts.reduce((sum, part) => sum + part.length, 0) || 1;
  let done = 0;
  return parts.map((part) => {
    const first = start + ((end - start) * done) / whole;
    done += part.length;
    return { word: part, start: first, end: start + ((end - start) * done) / whole, probability: null, speaker: speaker ?? null };
  });
}

/** [place in one, place in other] of equal items, in order: a longest common subsequence. */
function match(one, other) {
  let [head, tail] = [0, 0];
  while (head < one.length && head < other.length && one[head] === other[head]) head += 1;
  while (tail < one.length - head && tail < other.length - head && one[one.length - 1 - tail] === other[other.length - 1 - tail]) tail += 1;
  const pairs = Array.from({ length: head }, (_, at) => [at, at]);
  const [a, b] = [one.slice(head, one.length - tail), other.slice(head, other.length - tail)];
  if (a.length * b.length <= MOST) {
    const best = Array.from({ length: a.length + 1 }, () => new Uint32Array(b.length + 1));
    for (let i = a.length - 1; i >= 0; i -= 1) for (let j = b.length - 1; j >= 0; j -= 1) best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    for (let [i, j] = [0, 0]; i < a.length && j < b.length; ) {
      if (a[i] === b[j]) pairs.push([head + i++, head + j++]);
      else if (best[i + 1][j] >= best[i][j + 1]) i += 1;
      else j += 1;
    }
  }
  for (let at = tail; at > 0; at -= 1) pairs.push([one.length - at, other.length - at]);
  return pairs;
}
