"""Who of up to three people speaks when in ten seconds: where the voice changes, and where two talk at once.

The network of pyannote's segmentation-3.0: filters of the sinc family over the waveform (Ravanelli & Bengio 2018,
with the analytic pairs of Pariente et al. 2020), a bidirectional LSTM, and one class for each set of at most two of
three people (Plaquet & Bredin 2023, *Powerset multi-class cross entropy loss for neural speaker diarization*).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.audio import Array
from inference.base import EngineError

SAMPLE_RATE = 16_000
CHUNK = 10 * SAMPLE_RATE  #: samples at a time, what the network was trained on
STEP = 270  #: samples between two frames
FIRST = 495  #: sample in the middle of the first frame
#: The people of each class, as bits; the order is the network's.
SETS = (0b000, 0b001, 0b010, 0b100, 0b011, 0b101, 0b110)
FILTER = 251  #: samples of a filter
STRIDE = 10
LEAST_HZ = 50.0
NORMS = 1e-5


class Segmentation:
    """The network, for inference only."""

    def __init__(self, path: Path) -> None:
        """Load a checkpoint; EngineError where the file holds another network."""
        import torch

        self._torch = torch
        try:
            state = dict(torch.load(path, map_location="cpu", weights_only=True)["state_dict"])
            recurrent = {name[5:]: state.pop(name) for name in list(state) if name.startswith("lstm.")}
            self._lstm = torch.nn.LSTM(60, 128, 4, batch_first=True, bidirectional=True)
            self._lstm.load_state_dict(recurrent)
            self._lstm.eval()
            self._filters = self._sinc(
                state.pop("sincnet.conv1d.0.filterbank.low_hz_").abs() + LEAST_HZ,
                state.pop("sincnet.conv1d.0.filterbank.band_hz_").abs() + LEAST_HZ,
                state.pop("sincnet.conv1d.0.filterbank.window_"),
                state.pop("sincnet.conv1d.0.filterbank.n_"),
            )
            self._state = state
            with torch.inference_mode():
                self._classes(torch.zeros(1, CHUNK // 10))
        except Exception as error:
            raise EngineError(
                f"{path} holds no segmentation network: {type(error).__name__}: {error}",
                hint="python -m inference.weights install speaker-segmentation",
            ) from error

    def people(self, samples: Array) -> NDArray[np.uint8]:
        """Who speaks in each frame of up to ten seconds: bits 0 to 2, whose meaning holds for this call only.

        Frame k is centred on sample ``FIRST + k * STEP``.
        """
        with self._torch.inference_mode():
            classes = self._classes(self._torch.from_numpy(np.ascontiguousarray(samples))[None]).argmax(-1)[0]
        return np.asarray(np.array(SETS, np.uint8)[classes.numpy()], dtype=np.uint8)

    def _sinc(self, low: Any, width: Any, window: Any, times: Any) -> Any:
        """Band-pass filters in pairs a quarter of a wave apart: (80, 1, 251)."""
        torch = self._torch
        high = (low + width).clamp(LEAST_HZ, SAMPLE_RATE / 2)
        band = high - low
        sines = (torch.sin(high @ times) - torch.sin(low @ times)) / (times / 2) * window
        cosines = (torch.cos(low @ times) - torch.cos(high @ times)) / (times / 2) * window
        even = torch.cat((sines, 2 * band, sines.flip(1)), dim=1)
        odd = torch.cat((cosines, torch.zeros_like(band), -cosines.flip(1)), dim=1)
        return (torch.cat((even, odd)) / (2 * torch.cat((band, band))))[:, None]

    def _classes(self, sound: Any) -> Any:
        """Samples (n, samples) → log odds of each set, (n, frames, 7)."""
        functional = self._torch.nn.functional
        sound = self._normed(sound[:, None], "sincnet.wav_norm1d")
        sound = functional.conv1d(sound, self._filters, stride=STRIDE).abs_()
        for layer in range(3):
            if layer:
                name = f"sincnet.conv1d.{layer}"
                sound = functional.conv1d(sound, self._state[f"{name}.weight"], self._state[f"{name}.bias"])
            sound = functional.leaky_relu(self._normed(functional.max_pool1d(sound, 3), f"sincnet.norm1d.{layer}"))
        hidden, _ = self._lstm(sound.transpose(1, 2))
        for name in ("linear.0", "linear.1"):
            hidden = functional.leaky_relu(self._linear(hidden, name))
        return self._linear(hidden, "classifier")

    def _normed(self, sound: Any, name: str) -> Any:
        weight, bias = self._state[f"{name}.weight"], self._state[f"{name}.bias"]
        return self._torch.nn.functional.instance_norm(sound, weight=weight, bias=bias, eps=NORMS)

    def _linear(self, values: Any, name: str) -> Any:
        return self._torch.nn.functional.linear(values, self._state[f"{name}.weight"], self._state[f"{name}.bias"])
