"""One vector per moment of speech: the GE2E speaker encoder (Wan et al. 2018, weights of Resemblyzer)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference import cuda
from inference.audio import Array, mel_filters, mel_spectrogram, raised
from inference.base import EngineError

SAMPLE_RATE = 16_000
MELS, HIDDEN, LAYERS = 40, 256, 3
N_FFT, HOP = 400, 160  #: samples: 25 ms windows every 10 ms
WINDOW_FRAMES = 160  #: 1.6 s, what the encoder was trained on
LEVEL_DBFS = -30.0  #: quieter speech is raised to this level, as in training
MIN_FRAMES = 40  #: less than 0.4 s of speech says nothing about the voice
BATCH = 32  #: windows per call of the encoder


class Voices:
    """What was heard so far: one vector per window of speech, 520 bytes each (14 MB for three hours)."""

    def __init__(self) -> None:
        self._starts: list[Array] = []
        self._ends: list[Array] = []
        self._vectors: list[NDArray[np.float16]] = []

    def add(self, starts: Array, ends: Array, vectors: NDArray[np.float16]) -> None:
        """Take windows from ``starts`` to ``ends`` (seconds) with their vectors (n, 256)."""
        self._starts.append(starts)
        self._ends.append(ends)
        self._vectors.append(vectors)

    def arrays(self) -> tuple[Array, Array, NDArray[np.float16]]:
        """Starts, ends and vectors of everything heard, in order of time."""
        if not self._starts:
            none = np.zeros(0, np.float32)
            return none, none, np.zeros((0, HIDDEN), np.float16)
        return np.concatenate(self._starts), np.concatenate(self._ends), np.concatenate(self._vectors)


class SpeakerEncoder:
    """The network: windows of speech in, unit vectors out; voices are compared by their dot product."""

    def __init__(self, path: Path, device: str = "cpu") -> None:
        import torch

        try:
            state = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
            self._lstm = torch.nn.LSTM(MELS, HIDDEN, LAYERS, batch_first=True)
            self._lstm.load_state_dict(_part(state, "lstm."))
            self._linear = torch.nn.Linear(HIDDEN, HIDDEN)
            self._linear.load_state_dict(_part(state, "linear."))
        except Exception as error:
            raise EngineError(
                f"{path} holds no GE2E speaker encoder: {error}",
                hint="python -m inference.weights install speaker-encoder",
            ) from error
        # CTranslate2 may know a GPU that this torch does not; the network is small.
        self._device = "cpu" if cuda.missing(device) else device
        self._lstm.to(self._device).eval()
        self._linear.to(self._device).eval()
        self._torch: Any = torch
        self._filters = mel_filters(SAMPLE_RATE, N_FFT, MELS)

    def listen(self, speech: Array, start_s: float, hop_s: float, voices: Voices) -> None:
        """Add the vectors of windows of 1.6 s, about one every ``hop_s``, over uninterrupted speech.

        ``start_s`` is where the speech begins in the recording. Speech shorter than a window gives one
        vector, shorter than 0.4 s none.
        """
        mels = mel_spectrogram(raised(speech, LEVEL_DBFS), self._filters, N_FFT, HOP)
        if len(mels) < MIN_FRAMES:
            return
        width = min(WINDOW_FRAMES, len(mels))
        count = 1 + round((len(mels) - width) / (hop_s * SAMPLE_RATE / HOP))
        firsts = np.linspace(0, len(mels) - width, count).round().astype(int)
        for at in range(0, count, BATCH):
            part = firsts[at : at + BATCH]
            vectors = self._encode(np.stack([mels[first : first + width] for first in part]))
            starts = (start_s + part * (HOP / SAMPLE_RATE)).astype(np.float32)
            voices.add(starts, starts + np.float32(width * HOP / SAMPLE_RATE), vectors)

    def _encode(self, mels: Array) -> NDArray[np.float16]:
        torch = self._torch
        with cuda.guarded(self._device, f"{len(mels)} windows of a voice"), torch.inference_mode():
            _, (hidden, _) = self._lstm(torch.from_numpy(mels).to(self._device))
            raw = torch.relu(self._linear(hidden[-1]))
            unit = raw / raw.norm(dim=1, keepdim=True).clamp_min(1e-6)
            return np.asarray(unit.cpu().numpy(), dtype=np.float16)


def _part(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
