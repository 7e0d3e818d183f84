"""Whose voice a channel holds where several microphones hear one person.

Where one channel follows another that is louder, it holds that one's voice: by wire, or through headphones and a room.
How much of it follows is the magnitude-squared coherence of the two (Carter, Knapp and Nuttall 1973, IEEE Transactions
on Audio and Electroacoustics 21, pages 337 to 344), each frequency by the power it has in the quieter one. It is the
same for any gain and any filter, and for a delay of some milliseconds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.audio import Array
from inference.media import SAMPLE_RATE

Indices = NDArray[np.int8]

SIZE = 1024  #: samples per spectrum, 64 ms: more than a delay between microphones
STEP = 512
AROUND = 15  #: spectra that a coherence is made of, half a second
LOUDER_DB = 8.0  #: how much louder a voice is where it is spoken than where it leaks; two that talk at once differ less
FOLLOWS = 0.5  #: of the power in a channel: from here on most of it comes from the louder one
FLOOR = AROUND * SIZE * SIZE * 2e-10  #: power that tells nothing: noise at −90 dBFS
_NOBODY = -1


class Crosstalk:
    """From which other channel each moment of each channel comes. Takes (samples, channels) block by block."""

    def __init__(self, channels: int) -> None:
        self._rest = np.zeros((0, channels), np.float32)
        self._sources: list[Indices] = []  # (spectra, channels) each, the first one whole where they are looked at

    def hear(self, block: Array) -> None:
        """Take what comes next; its last 0.3 s are judged with the block that follows."""
        sound = np.concatenate([self._rest, block])
        count = (len(sound) - SIZE) // STEP + 1
        if count < AROUND:
            self._rest = sound
            return
        judged = _judged(sound, count)
        if not self._sources:  # as the first of them, whose middle is a quarter of a second in
            judged = np.concatenate([judged[:1]] * (AROUND // 2) + [judged])
        self._sources.append(judged)
        self._rest = sound[(count - AROUND + 1) * STEP :]

    def source(self, channel: int, start: float, end: float) -> int | None:
        """The channel that a stretch of a channel comes from, times in seconds; None where it is its own."""
        if not self._sources:
            return None
        if len(self._sources) > 1:
            self._sources = [np.concatenate(self._sources)]
        (known,) = self._sources
        first, last = (int((at * SAMPLE_RATE - SIZE / 2) / STEP + 0.5) for at in (start, end))
        first = min(max(first, 0), len(known) - 1)
        found = known[first : max(last, first + 1), channel]
        heard = found[found != _NOBODY]
        if 2 * len(heard) <= len(found):
            return None
        return int(np.bincount(heard).argmax())


def _judged(sound: Array, count: int) -> Indices:
    """The channel that each channel follows, (spectra − AROUND + 1, channels); −1 where it is its own."""
    window = np.hanning(SIZE).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(sound, SIZE, axis=0)[::STEP][:count]
    spectra = np.fft.rfft(frames * window, axis=2).astype(np.complex64)  # (spectra, channels, frequencies)
    power = _around(np.square(np.abs(spectra)))
    level = power.sum(axis=2)
    loudest = level.argmax(axis=1)
    found = np.full(level.shape, _NOBODY, np.int8)
    for source in np.unique(loudest):
        for channel in range(level.shape[1]):
            quieter = level[:, channel] * 10 ** (LOUDER_DB / 10) < level[:, source]
            judged = (loudest == source) & quieter & (level[:, channel] > FLOOR)
            if not judged.any():
                continue
            together = np.square(np.abs(_around(spectra[:, source] * np.conj(spectra[:, channel]))[judged]))
            followed = together / np.maximum(power[judged, source], np.finfo(np.float32).tiny)
            follows = followed.sum(axis=1) >= FOLLOWS * level[judged, channel]
            found[np.flatnonzero(judged)[follows], channel] = source
    return found


def _around(values: NDArray[Any]) -> NDArray[Any]:
    """The sum of each AROUND spectra in a row."""
    summed = np.cumsum(values, axis=0, dtype=np.complex128 if np.iscomplexobj(values) else np.float64)
    summed[AROUND:] -= summed[:-AROUND].copy()
    return summed[AROUND - 1 :]
