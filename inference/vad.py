"""Where somebody speaks: silero-vad over a stream.

The detector is fed blocks as they are decoded and hands out finished stretches of speech with their
samples. It keeps the samples of the open stretch only, so its memory is bounded by ``max_stretch_s``
whatever the length of the recording.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference.audio import Array

SAMPLE_RATE = 16_000
FRAME = 512  #: samples per probability (32 ms), fixed by the model
CONTEXT = 64  #: samples of the previous frame that the model wants to see
MAX_FRAMES = 512  #: frames per model call


@dataclass(frozen=True)
class VadSettings:
    """When sound counts as speech."""

    threshold: float = 0.5  #: speech begins above this probability …
    release: float = 0.35  #: … and ends below this one
    min_speech_s: float = 0.2  #: shorter blips are dropped
    min_silence_s: float = 0.3  #: shorter pauses do not end a stretch
    lead_s: float = 0.5  #: sound kept before each stretch …
    pad_s: float = 0.3  #: … and after it, at most min_silence_s
    max_stretch_s: float = 24.0  #: longer speech is cut at its quietest moment


@dataclass(frozen=True)
class Stretch:
    """Uninterrupted speech."""

    start: int  #: first sample of ``samples`` in the recording
    samples: Array  #: with padding
    speech_start: int  #: first and one past the last sample of the speech itself
    speech_end: int

    @property
    def end(self) -> int:
        """Sample behind the last one, counted from the beginning of the recording."""
        return self.start + len(self.samples)

    @property
    def speech(self) -> Array:
        """The samples without the padding."""
        return self.samples[self.speech_start - self.start : self.speech_end - self.start]


class SileroModel:
    """The network: samples in, one probability per 32 ms out. Loaded once, shared by all jobs."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = options.intra_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        self._session: Any = onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def run(self, frames: Array, hidden: Array, cell: Array) -> tuple[Array, Array, Array]:
        """Probabilities of (n, CONTEXT + FRAME) samples and the state after them."""
        wanted = ["speech_probs", "hn", "cn"]
        probabilities, hidden, cell = self._session.run(wanted, {"input": frames, "h": hidden, "c": cell})
        return probabilities.reshape(-1), hidden, cell


class SpeechDetector:
    """Finds the stretches of one recording: ``feed`` each block, then ``finish``."""

    def __init__(self, model: SileroModel, settings: VadSettings | None = None) -> None:
        self._model = model
        self._set = settings or VadSettings()
        self._hidden = np.zeros((1, 1, 128), np.float32)
        self._cell = np.zeros((1, 1, 128), np.float32)
        self._context = np.zeros(CONTEXT, np.float32)
        self._rest = np.zeros(0, np.float32)  # samples that do not fill a frame yet
        self._audio: list[Array] = []  # frames kept, from sample _base on
        self._base = 0
        self._frame = 0  # number of the next frame
        self._probabilities: list[float] = []  # of the open stretch, from frame _opened on
        self._opened: int | None = None
        self._quiet_from: int | None = None
        self._missing = 0  # samples added to fill the last frame
        self._last_end = 0  # no stretch begins before the end of the one before
        self.peak = 0.0  #: loudest sample so far

    def feed(self, block: Array) -> Iterator[Stretch]:
        """Take the next block of any size; yield the stretches that end in it."""
        if len(block):
            self.peak = max(self.peak, float(np.max(np.abs(block))))
        samples = np.concatenate((self._rest, block)) if len(self._rest) else block
        whole = len(samples) // FRAME * FRAME
        self._rest = samples[whole:].copy()
        frames = samples[:whole].reshape(-1, FRAME)
        for first in range(0, len(frames), MAX_FRAMES):
            part = frames[first : first + MAX_FRAMES]
            for frame, probability in zip(part, self._probabilities_of(part), strict=True):
                self._audio.append(frame)
                yield from self._step(float(probability))
                self._frame += 1

    def finish(self) -> Iterator[Stretch]:
        """Yield what was still open at the end of the recording."""
        if len(self._rest):
            self._missing = FRAME - len(self._rest)
            yield from self.feed(np.zeros(self._missing, np.float32))
        if self._opened is not None:
            yield from self._close(self._quiet_from if self._quiet_from is not None else self._frame)

    def _probabilities_of(self, frames: Array) -> Array:
        contexts = np.concatenate((self._context[None], frames[:-1, -CONTEXT:]))
        self._context = frames[-1, -CONTEXT:].copy()
        probabilities, self._hidden, self._cell = self._model.run(
            np.concatenate((contexts, frames), axis=1), self._hidden, self._cell
        )
        return probabilities

    def _step(self, probability: float) -> Iterator[Stretch]:
        now, settings = self._frame, self._set
        if self._opened is None:
            if probability < settings.threshold:
                self._forget(now + 1 - _frames(settings.lead_s))
                return
            self._opened, self._quiet_from, self._probabilities = now, None, []
        self._probabilities.append(probability)
        if probability >= settings.threshold:
            self._quiet_from = None
        elif probability < settings.release and self._quiet_from is None:
            self._quiet_from = now
        if self._quiet_from is not None and now - self._quiet_from >= _frames(settings.min_silence_s):
            yield from self._close(self._quiet_from)
        elif now - self._opened >= _frames(settings.max_stretch_s):
            yield from self._cut()

    def _close(self, end: int) -> Iterator[Stretch]:
        """The stretch ends before frame ``end``."""
        assert self._opened is not None
        opened, self._opened, self._quiet_from, self._probabilities = self._opened, None, None, []
        if end - opened >= _frames(self._set.min_speech_s):
            yield self._take(opened, end, end + _frames(self._set.pad_s))
        self._forget(self._frame + 1 - _frames(self._set.lead_s))

    def _cut(self) -> Iterator[Stretch]:
        """The stretch is too long: end it at the least likely frame of its second half and go on."""
        assert self._opened is not None
        half = len(self._probabilities) // 2
        cut = self._opened + half + int(np.argmin(self._probabilities[half:]))
        yield self._take(self._opened, cut, cut)
        self._probabilities = self._probabilities[cut - self._opened :]
        self._opened = cut
        if self._quiet_from is not None and self._quiet_from < cut:
            self._quiet_from = None
        self._forget(cut)

    def _take(self, opened: int, end: int, padded_end: int) -> Stretch:
        base = self._base // FRAME
        first = max(opened - _frames(self._set.lead_s), base, self._last_end)
        samples = np.concatenate(self._audio[first - base : padded_end - base])
        self._last_end = first + len(samples) // FRAME
        if self._last_end > self._frame:  # the recording is over: give back what was added to fill its last frame
            samples = samples[: len(samples) - self._missing]
        speech_end = min(end * FRAME, first * FRAME + len(samples))
        return Stretch(first * FRAME, samples, opened * FRAME, speech_end)

    def _forget(self, frame: int) -> None:
        """Drop the sound before ``frame``."""
        drop = frame - self._base // FRAME
        if drop > 0:
            del self._audio[:drop]
            self._base += drop * FRAME


def _frames(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE / FRAME)
