"""What a recogniser writes that nobody said, told by signals other than the text alone.

Language models go on where the sound ends: they repeat the last sentence in no time, write the credits of the
subtitles they were trained on, or say their own prompt. Such words take no time, are improbable, or stand where the
recogniser itself hears no speech.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from inference.transcribe.words import Word, join, segments

INSTANT_S = 0.045  #: nobody says several words in a row as fast as this each
INSTANT_RUN = 3  #: so many of them are no accident of the alignment; at the end of a window one less
REPEAT_SHARE = 0.35  #: a repeat that takes less than this share of the time of what it repeats was not said
REPEAT_LETTERS = 6
ECHO_LETTERS = 6  #: of the prompt, in a script without spaces …
ECHO_LATIN = 14  #: … and with them
PROBABLE = 0.5  #: mean probability per word of what may be the prompt, or credits, and was said
CREDIT_NO_SPEECH = 0.3  #: probability of no speech at which credits are not believed
RATE_LETTERS = 30.0  #: letters per second that nobody speaks
AGAIN_PROBABLE = 0.4  #: mean probability from which on a second hearing is believed

#: Sentences from the credits of subtitles and the ends of videos, without marks and in small letters.
CREDITS = re.compile(
    r"(请不吝)?点赞(订阅|转发|打赏|支持|关注)|明镜与点点|字幕(志愿者|由|組|组|提供|製作|制作|by)|amaraorg|中文字幕|谢谢(大家)?(观看|收看)"
    r"|感谢(大家)?(观看|收看|您的观看)|^thank(s|you)(somuch|verymuch)?for(watching|listening|viewing)|subscribetomychannel"
    r"|(pleasesubscribe|likeandsubscribe)|subtitles?(by|created|provided)|transcription(by|outsourcing)|castingwords"
    r"|untertitel(im|von|der|durch)|soustitr(es|age)|ご視聴ありがとう|시청해주셔서|subtítulos|субтитры"
)
_LETTERS = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class Dropped:
    """Words that were left out."""

    start: float  #: seconds
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.text!r} at {self.start:.1f} s was left out: {self.reason}"


def bare(text: str) -> str:
    """The letters and digits of a text, small."""
    return _LETTERS.sub("", text.lower())


def believable(
    words: Sequence[Word], prompt: str, no_speech: float, *, translated: bool = False
) -> tuple[list[Word], list[Dropped]]:
    """The words of one window that can have been said, and those that were left out.

    ``prompt`` stood before the text; ``no_speech`` is the recogniser's probability that there is none. The words of a
    translation may take no time: they are not those that were spoken.
    """
    dropped: list[Dropped] = []
    kept = _drop(list(words), _echoes(words, prompt), "it is the prompt", dropped)
    kept = _drop(kept, _repeats(kept), "it repeats what stands before it, in no time", dropped)
    if not translated:
        kept = _drop(kept, _instant(kept), "the words take no time", dropped)
    kept = _drop(kept, _credits(kept, no_speech), "it reads like the credits of subtitles", dropped)
    if not bare(join(kept)):
        kept = _drop(kept, [True] * len(kept), "it has neither letters nor digits", dropped)
    return kept, dropped


def heard_again(found: Sequence[Word], words: Sequence[Word], prompt: str) -> list[Word]:
    """Which words of a second hearing of a gap are new, given the words around it.

    None when they are improbable, hold some of the prompt, or repeat a number beside the gap. A number that was spelt
    out and then written as one word reaches to the end of the gap in which it is repeated.
    """
    if not found or _mean(found) < AGAIN_PROBABLE or any(_echoes(found, prompt)):
        return []
    before = next((word for word in reversed(words) if word.start <= found[0].start), None)
    after = next((word for word in words if word.start > found[0].start), None)
    if before is not None and _counts(found, before):
        before.end = max(before.end, found[-1].end)
        return []
    if after is not None and _counts(found, after):
        after.start = min(after.start, found[0].start)
        return []
    return [word for word in found if not any(_overlap(word, other) for other in words)]


def in_order(words: Sequence[Word], floor: float, least_s: float = 0.02) -> list[Word]:
    """The words by time, none before ``floor`` or before the end of the one before it."""
    ordered = sorted(words, key=lambda word: word.start)
    for word, following in itertools.pairwise(ordered):
        word.end = max(word.start + least_s, min(word.end, following.start))
    for word in ordered:
        length = max(word.end - word.start, least_s)
        word.start = max(word.start, floor)
        word.end = max(word.end, word.start + min(length, least_s))
        floor = word.end
    return ordered


def _overlap(word: Word, other: Word) -> bool:
    return other.start < (word.start + word.end) / 2 < other.spoken_until


def _counts(found: Sequence[Word], number: Word) -> bool:
    """Whether the numbers in some words are parts of another, in order."""
    parts = re.findall(r"\d+", join(found))
    return bool(parts) and re.search(".*".join(parts), re.sub(r"\D", "", number.text)) is not None


def _mean(words: Sequence[Word]) -> float:
    known = [word.probability for word in words if word.probability is not None]
    return sum(known) / len(known) if known else 1.0


def _drop(words: list[Word], out: Sequence[bool], reason: str, dropped: list[Dropped]) -> list[Word]:
    for lost, group in itertools.groupby(zip(words, out, strict=True), lambda pair: pair[1]):
        if lost:
            run = [word for word, _ in group]
            dropped.append(Dropped(run[0].start, join(run), reason))
    return [word for word, lost in zip(words, out, strict=True) if not lost]


def _echoes(words: Sequence[Word], prompt: str) -> list[bool]:
    """Runs of words that stand in the prompt and are improbable."""
    said, out, first = bare(prompt), [False] * len(words), 0
    while said and first < len(words):
        last = first
        while last < len(words) and bare(join(words[first : last + 1])) in said:
            last += 1
        text = bare(join(words[first:last]))
        least = ECHO_LATIN if text.isascii() else ECHO_LETTERS
        if len(text) >= least and _mean(words[first:last]) < PROBABLE:
            out[first:last] = [True] * (last - first)
        first = max(last, first + 1)
    return out


def _repeats(words: Sequence[Word]) -> list[bool]:
    """The end of the words where it says again, in a fraction of the time, what stands before it."""
    for count in range(len(words) // 2, 0, -1):
        tail, first = words[-count:], words[-2 * count : -count]
        text = bare(join(tail))
        if len(text) < REPEAT_LETTERS or text != bare(join(first)):
            continue
        if tail[-1].end - tail[0].start < REPEAT_SHARE * (first[-1].end - first[0].start):
            return [False] * (len(words) - count) + [True] * count
    return [False] * len(words)


def _instant(words: Sequence[Word]) -> list[bool]:
    out: list[bool] = []
    for instant, group in itertools.groupby(words, lambda word: word.end - word.start <= INSTANT_S):
        count = len(list(group))
        ends = len(out) + count == len(words)
        out += [instant and count >= INSTANT_RUN - ends] * count
    return out


def _credits(words: Sequence[Word], no_speech: float) -> list[bool]:
    out: list[bool] = []
    for run in segments(words):
        text = bare(join(run))
        rate = len(text) / max(run[-1].end - run[0].start, 0.01)
        doubtful = _mean(run) < PROBABLE or no_speech > CREDIT_NO_SPEECH or rate > RATE_LETTERS
        out += [doubtful and CREDITS.search(text) is not None] * len(run)
    return out
