"""What a frame shall show, as the network is told: openings and widths round it, and the head's pose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.persona.network import AROUND, INPUTS

Array = NDArray[np.float32]

ANGLE = 10.0  #: degrees that count as 1
MOST = 3.0  #: deviations, or angles, beyond which an input stays the same: nothing like it was learned


@dataclass(frozen=True)
class Scale:
    """How one person's mouth moves: mean and deviation of the opening and the width, eye distances."""

    mean: tuple[float, float]
    deviation: tuple[float, float]

    @classmethod
    def of(cls, opening: Array, width: Array) -> Scale:
        """Of (N,) frames."""
        channels = [np.asarray(channel, np.float64) for channel in (opening, width)]
        mean, deviation = ((float(f(one)), float(f(other))) for f in (np.mean, np.std) for one, other in [channels])
        return cls(mean, (max(deviation[0], 1e-3), max(deviation[1], 1e-3)))

    def inputs(self, opening: Array, width: Array, angles: Array) -> Array:
        """(T, INPUTS) for T consecutive output frames of one shot: openings (T,) and widths (T,) in eye distances,
        yaw, pitch and roll (T, 3) in degrees; the first and the last frame stand for those beyond them."""
        count = len(opening)
        channels = np.stack([opening, width], axis=1).astype(np.float64)
        table = (channels - self.mean) / self.deviation
        near = np.clip(np.arange(count)[:, None] + np.arange(-AROUND, AROUND + 1), 0, max(count - 1, 0))
        told = np.concatenate([table[near].reshape(count, -1), np.asarray(angles) / ANGLE], axis=1)
        assert told.shape == (count, INPUTS)
        return np.asarray(np.clip(told, -MOST, MOST), np.float32)
