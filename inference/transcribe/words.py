"""Words with times, whose they are, and how they make segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from inference.audio import Array

SENTENCE_ENDS = ".!?。！？…"
CLOSERS = "\"'”’)]}»」』"
#: Words that end in a full stop without ending a sentence.
ABBREVIATIONS = frozenset(
    [
        "mr",
        "mrs",
        "ms",
        "dr",
        "prof",
        "st",
        "jr",
        "sr",
        "vs",
        "etc",
        "no",
        "vol",
        "fig",
        "gen",
        "col",
        "sgt",
        "capt",
        "lt",
        "rev",
        "hon",
        "mt",
        "e.g",
        "i.e",
        "a.m",
        "p.m",
        "u.s",
        "u.k",
        "inc",
        "ltd",
        "co",
    ]
)
PAUSE_S = 0.3  #: between words; people change speakers here rather than within a phrase
LONG_PAUSE_S = 1.5  #: ends a segment even in the middle of a sentence
MAX_SEGMENT_S = 30.0
LONG_WORD_S = 1.5  #: most of what one word takes

#: Cost of a change of speaker, in units of cosine similarity per word (own voice about 0.27 above others).
SWITCH_AT_PAUSE = 0.08
SWITCH_IN_PHRASE = 0.6
REACH_S = 0.8  #: a word without a vector of its own listens this far around


@dataclass
class Word:
    """One word as recognised. ``text`` keeps its leading space where the script has them."""

    start: float  #: seconds
    end: float
    text: str
    probability: float | None  #: None where the recogniser gives none
    speaker: int | None = None
    language: str | None = None  #: code; None where it was not found out

    @property
    def spoken_until(self) -> float:
        """Seconds; a word that seems to last long stands for itself only a while, unless it is a number or spelt."""
        bare = "".join(mark for mark in self.text if mark.isalnum())
        spelt = any(mark.isdigit() for mark in bare) or (len(bare) > 1 and bare.isupper())
        return self.end if spelt else min(self.end, self.start + LONG_WORD_S)

    def record(self) -> dict[str, object]:
        """The word as it stands in the result."""
        return {
            "start": round(self.start, 2),
            "end": round(self.end, 2),
            "word": self.text.strip(),
            "speaker": speaker_name(self.speaker),
            "probability": None if self.probability is None else round(self.probability, 3),
        }


def stored(words: Sequence[Word]) -> list[list[Any]]:
    """The words as lists, for a checkpoint."""
    return [[word.start, word.end, word.text, word.probability, word.speaker, word.language] for word in words]


def speaker_name(speaker: int | None) -> str | None:
    """``spk0`` for 0; None for nobody in particular."""
    return None if speaker is None else f"spk{speaker}"


def ends_sentence(text: str) -> bool:
    """Whether a word such as ``Mr.`` or ``country.”`` ends a sentence."""
    bare = text.strip().rstrip(CLOSERS)
    if not bare or bare[-1] not in SENTENCE_ENDS:
        return False
    if bare[-1] != ".":
        return True
    stem = bare[:-1].lower().lstrip("\"'“‘(")
    return not (stem in ABBREVIATIONS or (len(stem) == 1 and stem.isalpha() and stem != "i"))


def segments(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Runs of words of one speaker in one language: a sentence each, cut at long pauses and when they grow too long."""
    run: list[Word] = []
    for word in words:
        if run and (
            word.speaker != run[-1].speaker
            or word.language != run[-1].language
            or ends_sentence(run[-1].text)
            or word.start - run[-1].end > LONG_PAUSE_S
            or word.end - run[0].start > MAX_SEGMENT_S
        ):
            yield run
            run = []
        run.append(word)
    if run:
        yield run


def segment_record(run: Sequence[Word]) -> dict[str, object]:
    """One segment as it stands in the result."""
    return {
        "start": round(run[0].start, 2),
        "end": round(max(word.end for word in run), 2),
        "text": join(run),
        "speaker": speaker_name(run[0].speaker),
        "language": run[0].language,
        "words": [word.record() for word in run],
    }


def join(words: Sequence[Word]) -> str:
    """The words as running text."""
    return "".join(word.text for word in words).strip()


def assign_speakers(words: Sequence[Word], starts: Array, ends: Array, similarity: Array) -> None:
    """Set each word's speaker: the most likely path through all of them (Viterbi).

    ``similarity`` (windows, speakers) says how much each window of speech sounds like each speaker;
    ``starts`` and ``ends`` are the windows' times in seconds, in order. Changing costs little at a pause or
    after a sentence, much within a phrase. Speakers come out numbered by order of appearance in the text.
    """
    if not words:
        return
    heard = _heard(words, starts, ends, similarity)
    people = similarity.shape[1]
    came_from = np.zeros((len(words), people), dtype=np.int16)
    score = heard[0]
    for at in range(1, len(words)):
        before = words[at - 1]
        pause = words[at].start - before.end >= PAUSE_S or ends_sentence(before.text)
        switched = int(np.argmax(score))
        best_switch = score[switched] - (SWITCH_AT_PAUSE if pause else SWITCH_IN_PHRASE)
        stay = score >= best_switch
        came_from[at] = np.where(stay, np.arange(people), switched)
        score = np.where(stay, score, best_switch) + heard[at]
    path = [int(np.argmax(score))]
    for at in range(len(words) - 1, 0, -1):
        path.append(int(came_from[at][path[-1]]))
    order: dict[int, int] = {}
    for word, speaker in zip(words, reversed(path), strict=True):
        word.speaker = order.setdefault(speaker, len(order))


def _heard(words: Sequence[Word], starts: Array, ends: Array, similarity: Array) -> Array:
    """How much each word sounds like each speaker: windows around its middle, the closest counting most."""
    centres = (starts + ends) / 2
    heard = np.zeros((len(words), similarity.shape[1]), dtype=np.float32)
    for at, word in enumerate(words):
        middle = (word.start + word.end) / 2
        first, last = np.searchsorted(centres, (middle - 2 * REACH_S, middle + 2 * REACH_S))
        near = slice(int(first), int(last))
        outside = np.maximum(0.0, np.maximum(starts[near] - middle, middle - ends[near]))
        weight = np.maximum(0.0, 1.0 - np.abs(centres[near] - middle) / (2 * REACH_S)) * (outside <= REACH_S)
        weight = np.where(outside > 0, weight * 0.1, weight)  # windows that hold the word outvote neighbours
        total = float(weight.sum())
        if total > 0:
            heard[at] = weight @ similarity[near] / total
    return heard
