"""Stretches of speech packed into the windows a recogniser takes, and word times mapped back."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from inference.audio import Array
from inference.transcribe.words import Word
from inference.vad import SAMPLE_RATE, Stretch

WINDOW_S = 20.0  #: of the 30 s Whisper can take; measured faster and with fewer words passed over than 29
JOIN_S = 0.3  #: silence kept between two stretches that are further apart
UNHEARD_S = 1.0  #: speech this long without a word was passed over by the recogniser
MARGIN_S = 0.15  #: sound taken along on both sides of what was passed over
SLACK_S = 0.1  #: a word may reach this far beyond the speech that was detected


@dataclass(frozen=True)
class Piece:
    """One stretch inside a window; all in seconds."""

    offset: float  #: where its speech begins in the window
    start: float  #: where its speech begins in the recording
    length: float


@dataclass
class Window:
    """Up to ``WINDOW_S`` of speech, pauses shortened."""

    samples: Array
    pieces: list[Piece] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Length of the samples."""
        return len(self.samples) / SAMPLE_RATE

    @property
    def speech_s(self) -> float:
        """Seconds of speech in it, without the pauses."""
        return sum(piece.length for piece in self.pieces)

    @property
    def start(self) -> float:
        """Seconds from the beginning of the recording."""
        return self.pieces[0].start

    @property
    def end(self) -> float:
        """Where in the recording its speech ends, in seconds."""
        return self.pieces[-1].start + self.pieces[-1].length

    def halves(self) -> list[Window]:
        """The window cut in two at the pause nearest its middle; none when it holds a single stretch."""
        if len(self.pieces) < 2:
            return []
        gaps = [(a.offset + a.length + b.offset) / 2 for a, b in itertools.pairwise(self.pieces)]
        at = min(range(len(gaps)), key=lambda index: abs(gaps[index] - self.seconds / 2)) + 1
        return [self.part(0, at), self.part(at, len(self.pieces))]

    def part(self, first: int, last: int) -> Window:
        """The stretches from ``first`` up to before ``last`` as a window of their own, cut amid the pauses."""
        ends = [0.0, *((a.offset + a.length + b.offset) / 2 for a, b in itertools.pairwise(self.pieces)), self.seconds]
        begin, end = (int(ends[at] * SAMPLE_RATE) for at in (first, last))
        pieces = [replace(piece, offset=piece.offset - begin / SAMPLE_RATE) for piece in self.pieces[first:last]]
        return Window(self.samples[begin:end], pieces)

    def unheard(self, words: Sequence[Word]) -> list[Window]:
        """The speech of this window that got no words, as windows of its own.

        ``words`` with times in the recording. Detected speech holds no pauses to speak of, so a stretch of
        ``UNHEARD_S`` without a word was passed over.
        """
        spans = []
        for piece in self.pieces:
            at, end = piece.start, piece.start + piece.length
            said = [word for word in words if word.end > at and word.start < end]
            for word in said:
                spans.append((piece, at, word.start))
                at = max(at, word.spoken_until)
            spans.append((piece, at, end))
        return [self._cut(piece, start, end) for piece, start, end in spans if end - start >= UNHEARD_S]

    def _cut(self, piece: Piece, start: float, end: float) -> Window:
        shift = piece.offset - piece.start
        first = max(0, int((start + shift - MARGIN_S) * SAMPLE_RATE))
        last = int((end + shift + MARGIN_S) * SAMPLE_RATE)
        offset = start + shift - first / SAMPLE_RATE
        return Window(self.samples[first:last], [Piece(offset, start, end - start)])

    def place(self, words: Sequence[Word]) -> list[Word]:
        """The words with times in the recording instead of times in the window."""
        placed: list[Word] = []
        for word in words:
            piece = max(self.pieces, key=lambda piece: _closeness(piece, word))
            shift = piece.start - piece.offset
            low, high = piece.start - SLACK_S, piece.start + piece.length + SLACK_S
            floor = max(low, placed[-1].end if placed else 0.0, 0.0)
            start = min(max(word.start + shift, floor), max(high, floor))
            end = max(min(word.end + shift, high), start + 0.02)
            placed.append(Word(start, end, word.text, word.probability))
        return placed


def _closeness(piece: Piece, word: Word) -> float:
    """Seconds of the word inside the piece, or minus the seconds between them."""
    return min(word.end, piece.offset + piece.length) - max(word.start, piece.offset)


class Packer:
    """Collects stretches into windows; a window is handed out when the next stretch does not fit any more."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._limit = int(window_s * SAMPLE_RATE)
        self._parts: list[Array] = []
        self._length = 0
        self._pieces: list[Piece] = []
        self._end = 0

    @property
    def seconds(self) -> float:
        """Speech waiting in the open window."""
        return self._length / SAMPLE_RATE

    def add(self, stretch: Stretch) -> Window | None:
        """Take a stretch; the finished window if it did not fit in."""
        gap = min(max(stretch.start - self._end, 0), int(JOIN_S * SAMPLE_RATE)) if self._parts else 0
        full = self.flush() if self._length + gap + len(stretch.samples) > self._limit else None
        if self._parts and gap:
            self._parts.append(np.zeros(gap, np.float32))
            self._length += gap
        offset = self._length + stretch.speech_start - stretch.start
        length = stretch.speech_end - stretch.speech_start
        self._pieces.append(Piece(offset / SAMPLE_RATE, stretch.speech_start / SAMPLE_RATE, length / SAMPLE_RATE))
        self._parts.append(stretch.samples)
        self._length += len(stretch.samples)
        self._end = stretch.end
        return full

    def flush(self) -> Window | None:
        """The open window, if it holds anything."""
        if not self._parts:
            return None
        window = Window(np.concatenate(self._parts), self._pieces)
        self._parts, self._pieces, self._length = [], [], 0
        return window
