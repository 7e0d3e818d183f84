"""One vector per moment of speech, and where the voice changes or two talk at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference import cuda
from inference.audio import Array, raised
from inference.base import EngineError
from inference.memory import keep_few_kernels
from inference.transcribe.campplus import MELS, CamPlusPlus
from inference.transcribe.segmentation import CHUNK, FIRST, STEP, Segmentation

SAMPLE_RATE = 16_000
WINDOW_S = 1.2  #: of speech per vector
HOP_S = 0.6  #: about, between two windows
LEAST_S = 0.4  #: less speech says nothing about the voice
LEAST_OVERLAP_S = 0.25
#: Log mel energy that the loud moments above 4.6 kHz lie below those under 3.2 kHz where a telephone cut them off.
NARROW = 7.0
LOW_BAND, HIGH_BAND = slice(8, 50), slice(63, 80)  #: mel bands: 0.3 to 3.2 kHz, 4.6 to 8 kHz
LEVEL_DBFS = -26.0  #: quieter speech is raised to this level
BATCH = 16  #: windows per call of the encoder
FRAME, HOP = 400, 160  #: samples: 25 ms every 10 ms


@dataclass(frozen=True)
class Span:
    """Samples of a stretch, ``start`` to ``end``, in which one voice is heard and does not change."""

    start: int
    end: int


@dataclass
class Voices:
    """What was heard so far of one recording: 400 bytes per window of speech (14 MB in three hours at most)."""

    starts: list[float] = field(default_factory=list)  #: seconds
    ends: list[float] = field(default_factory=list)
    spans: list[int] = field(default_factory=list)  #: windows of the same number were said in one breath
    narrow: list[bool] = field(default_factory=list)  #: windows without what is above 4 kHz, as on a telephone
    vectors: list[NDArray[np.float16]] = field(default_factory=list)  #: of unit length
    overlaps: list[tuple[float, float]] = field(default_factory=list)  #: seconds in which several speak

    def state(self) -> dict[str, Any]:
        """All of it, small enough for a checkpoint."""
        return {
            "starts": np.array(self.starts, np.float64),
            "ends": np.array(self.ends, np.float64),
            "spans": np.array(self.spans, np.int64),
            "narrow": np.array(self.narrow, np.bool_),
            "vectors": np.array(self.vectors, np.float16),
            "overlaps": self.overlaps,
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Voices:
        """What :meth:`state` gave."""
        plain = {key: state[key].tolist() for key in ("starts", "ends", "spans", "narrow")}
        overlaps = [(start, end) for start, end in state["overlaps"]]
        return cls(**plain, vectors=list(state["vectors"]), overlaps=overlaps)


class SpeakerEncoder:
    """Windows of speech in, unit vectors out; voices are compared by their dot product."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        """Load the weights of CAM++; EngineError where the file holds another network."""
        keep_few_kernels()
        import kaldi_native_fbank
        import torch

        # CTranslate2 may know a GPU that this torch does not; the network is small.
        self._device = "cpu" if cuda.missing(device) else device
        try:
            self._network = CamPlusPlus(torch.load(path, map_location="cpu", weights_only=True), self._device)
            with torch.inference_mode():
                self._network(torch.zeros(1, 40, MELS, device=self._device))
        except Exception as error:
            raise EngineError(
                f"{path} holds no CAM++ speaker encoder: {type(error).__name__}: {error}",
                hint="python -m inference.weights install speaker-encoder",
            ) from error
        self._torch: Any = torch
        self._kaldi: Any = kaldi_native_fbank
        self._settings: Any = kaldi_native_fbank.FbankOptions()
        self._settings.frame_opts.samp_freq = SAMPLE_RATE
        self._settings.frame_opts.dither = 0.0
        self._settings.mel_opts.num_bins = MELS

    def encode(self, mels: Array, windows: Sequence[tuple[int, int]]) -> NDArray[np.float16]:
        """First and last samples of windows of one length in speech of one voice → unit vectors (n, 192)."""
        torch = self._torch
        frames = [first // HOP for first, _ in windows]
        width = min(1 + (windows[0][1] - windows[0][0] - FRAME) // HOP, len(mels))
        found = []
        with cuda.guarded(self._device, f"{len(mels) / 100:.0f} s of a voice"), torch.inference_mode():
            sound = torch.from_numpy(mels - mels.mean(axis=0))[None].to(self._device)
            sound = self._network.head(sound)[0]
            for at in range(0, len(frames), BATCH):
                part = torch.stack([sound[:, first : first + width] for first in frames[at : at + BATCH]])
                found.append(self._network.vectors(part))
            raw = torch.cat(found)
            unit = raw / raw.norm(dim=1, keepdim=True).clamp_min(1e-6)
            return np.asarray(unit.cpu().numpy(), dtype=np.float16)

    def mels(self, sound: Array) -> Array:
        """Kaldi's log mel energies: (frames, 80), a frame of 25 ms every 10 ms."""
        bank = self._kaldi.OnlineFbank(self._settings)
        bank.accept_waveform(SAMPLE_RATE, raised(sound, LEVEL_DBFS))
        bank.input_finished()
        return np.stack([bank.get_frame(index) for index in range(bank.num_frames_ready)]).astype(np.float32)


class Listener:
    """Encoder and segmentation, loaded; hears one stretch of speech at a time."""

    def __init__(self, encoder: SpeakerEncoder, segmentation: Segmentation) -> None:
        self._encoder, self._segmentation = encoder, segmentation

    def listen(self, speech: Array, start_s: float, voices: Voices) -> None:
        """Add what there is to hear in uninterrupted speech that begins at ``start_s`` of the recording."""
        spans, overlaps = self._parts(speech)
        voices.overlaps += [(start_s + part.start / SAMPLE_RATE, start_s + part.end / SAMPLE_RATE) for part in overlaps]
        number = voices.spans[-1] + 1 if voices.spans else 0
        for at, span in enumerate(spans):
            windows = list(windows_over(span.end - span.start))
            mels = self._encoder.mels(speech[span.start : span.end])
            voices.vectors += list(self._encoder.encode(mels, windows))
            voices.narrow += [_is_narrow(mels)] * len(windows)
            begin = start_s + span.start / SAMPLE_RATE
            voices.spans += [number + at] * len(windows)
            voices.starts += [begin + first / SAMPLE_RATE for first, _ in windows]
            voices.ends += [begin + last / SAMPLE_RATE for _, last in windows]

    def _parts(self, speech: Array) -> tuple[list[Span], list[Span]]:
        """Where one voice is heard and does not change, and where several are."""
        spans: list[Span] = []
        overlaps: list[Span] = []
        count = -(-len(speech) // CHUNK)
        edges = np.linspace(0, len(speech), count + 1).round().astype(int)
        for begin, end in itertools.pairwise(edges.tolist()):
            piece = speech[begin:end]
            if len(piece) < LEAST_S * SAMPLE_RATE:
                continue
            people = self._segmentation.people(piece)
            for first, last, who in _runs(people, len(piece)):
                part = Span(begin + first, begin + last)
                if who & (who - 1):
                    if last - first >= LEAST_OVERLAP_S * SAMPLE_RATE:
                        overlaps.append(part)
                elif last - first >= LEAST_S * SAMPLE_RATE:
                    spans.append(part)
        return spans, overlaps


def _is_narrow(mels: Array) -> bool:
    """Whether everything above 4 kHz is missing."""
    low, high = (np.percentile(mels[:, band].mean(axis=1), 90) for band in (LOW_BAND, HIGH_BAND))
    return bool(low - high > NARROW)


def _runs(people: NDArray[np.uint8], length: int) -> Iterator[tuple[int, int, int]]:
    """Runs of frames with the same people, as samples; frames in which nobody speaks go on with who spoke before."""
    spoken = np.flatnonzero(people)
    if not len(spoken):
        yield 0, length, 1
        return
    latest = np.maximum.accumulate(np.where(people > 0, np.arange(len(people)), spoken[0]))
    filled = people[latest]
    edges = [0, *(np.flatnonzero(np.diff(filled)) + 1).tolist(), len(filled)]
    for first, last in itertools.pairwise(edges):
        begin = 0 if first == 0 else FIRST + first * STEP - STEP // 2
        end = length if last == len(filled) else FIRST + last * STEP - STEP // 2
        yield begin, min(end, length), int(filled[first])


def windows_over(length: int) -> Iterator[tuple[int, int]]:
    """First and last samples of windows over so many samples, evenly spread; one where there are few."""
    width = min(int(WINDOW_S * SAMPLE_RATE), length // HOP * HOP)
    count = 1 + math.ceil((length - width) / (HOP_S * SAMPLE_RATE) - 0.25)
    for first in np.linspace(0, (length - width) // HOP, count).round().astype(int).tolist():
        yield first * HOP, first * HOP + width
