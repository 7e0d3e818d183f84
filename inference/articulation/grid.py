"""Sentences of the GRID corpus and the closures in them.

A file name spells its sentence: ``bbaf2n`` is "bin blue at f two now" (Cooke, Barker, Cunningham, Shao 2006).
Whisper's own aligner says when each word is spoken; lips are shut shortly after a word that begins with b, p or m has
begun there (the mesh shows them shut 40 to 120 ms later, most often).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference.articulation.curve import FPS
from inference.audio import Array

COMMANDS = {"b": "bin", "l": "lay", "p": "place", "s": "set"}
COLOURS = {"b": "blue", "g": "green", "r": "red", "w": "white"}
PREPOSITIONS = {"a": "at", "b": "by", "i": "in", "w": "with"}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = dict(zip("z123456789", NUMBERS, strict=True))
ADVERBS = {"a": "again", "n": "now", "p": "please", "s": "soon"}
NAME = re.compile(r"(?:^|_)([blps][bgrw][abiw][a-vx-z][z1-9][anps])$")

LABIAL = re.compile(r"^(?:b|m(?!$)|p(?![hnst]))", re.IGNORECASE)  #: spelling of a word that begins with closed lips
NO_LABIAL = re.compile(r"^[^bmpfvw]+$", re.IGNORECASE)  #: spelling of a word without any use of the lips
BEFORE_S, AFTER_S = 0.06, 0.20  #: around the begin of a word, where its closure is looked for


@dataclass(frozen=True)
class Spoken:
    """A word and when it is spoken, in seconds."""

    word: str
    start: float
    end: float


def sentence(name: str) -> list[str] | None:
    """The words that the name of a clip spells, e.g. ``gs1_bbaf2n``; None for other names."""
    found = NAME.search(name)
    if found is None:
        return None
    command, colour, preposition, letter, digit, adverb = list(found[1])
    return [
        COMMANDS[command],
        COLOURS[colour],
        PREPOSITIONS[preposition],
        letter.upper(),
        DIGITS[digit],
        ADVERBS[adverb],
    ]


class Aligner:
    """When each word of a known sentence is spoken, by Whisper's cross attention."""

    def __init__(self, whisper: Path) -> None:
        from faster_whisper import WhisperModel
        from faster_whisper.tokenizer import Tokenizer

        self._model: Any = WhisperModel(str(whisper), device="cpu", compute_type="int8", cpu_threads=1)
        self._tokenizer: Any = Tokenizer(self._model.hf_tokenizer, True, task="transcribe", language="en")

    def words(self, samples: Array, said: Sequence[str]) -> list[Spoken]:
        """Times in seconds; the first word begins where the aligner says, often too early."""
        features = self._model.feature_extractor(samples)[:, :3000]
        padding = max(0, 3000 - features.shape[1])
        features = np.pad(features, ((0, 0), (0, padding)), constant_values=float(features.min()))
        tokens = self._tokenizer.encode(" " + " ".join(said) + ".")
        found = self._model.find_alignment(
            self._tokenizer, [tokens], self._model.encode(features), [len(samples) // 160]
        )
        words = [Spoken(str(each["word"]).strip(), float(each["start"]), float(each["end"])) for each in found[0]]
        return [word for word in words if any(mark.isalnum() for mark in word.word)]

    def heard(self, samples: Array, language: str | None = None) -> list[Spoken]:
        """The words that Whisper itself hears."""
        segments, _ = self._model.transcribe(samples, language=language, beam_size=5, word_timestamps=True)
        return [
            Spoken(re.sub(r"[^\w']", "", word.word), float(word.start), float(word.end))
            for segment in segments
            for word in segment.words
        ]


def labial_windows(words: Sequence[Spoken]) -> list[slice]:
    """Frames in which the lips must meet; the first word is left out, its begin is uncertain."""
    return [_window(word.start) for word in words[1:] if LABIAL.match(word.word)]


def other_windows(words: Sequence[Spoken]) -> list[slice]:
    """As many frames each, in the middle of words that do not need the lips."""
    lead = (AFTER_S - BEFORE_S) / 2
    return [_window((word.start + word.end) / 2 - lead) for word in words[1:] if NO_LABIAL.match(word.word)]


def _window(start: float) -> slice:
    first = max(0, round((start - BEFORE_S) * FPS))
    return slice(first, first + round((AFTER_S + BEFORE_S) * FPS))
