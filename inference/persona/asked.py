"""What a frame shall show, as the network is told: openings and widths round it, and the head's pose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.persona.network import AROUND, INPUTS

Array = NDArray[np.float32]

ANGLE = 10.0  #: degrees that count as 1
FADE = 6.0  #: degrees beyond the poses that were learned over which a persona stops painting
MOST = 3.0  #: deviations, or angles, beyond which an input stays the same: nothing like it was learned


@dataclass(frozen=True)
class Scale:
    """How one person's mouth moves: mean and deviation of the opening and the width, eye distances; and the head."""

    mean: tuple[float, float]
    deviation: tuple[float, float]
    least: tuple[float, float]  #: yaw and pitch, degrees
    most: tuple[float, float]

    @classmethod
    def of(cls, opening: Array, width: Array, angles: Array) -> Scale:
        """Of N frames: (N,), (N,) and yaw, pitch and roll (N, 3)."""
        channels = [np.asarray(channel, np.float64) for channel in (opening, width)]
        mean, deviation = ((float(f(one)), float(f(other))) for f in (np.mean, np.std) for one, other in [channels])
        least, most = ((float(f(angles[:, 0])), float(f(angles[:, 1]))) for f in (np.min, np.max))
        return cls(mean, (max(deviation[0], 1e-3), max(deviation[1], 1e-3)), least, most)

    def share(self, angles: Array) -> Array:
        """(T,) how much is painted in T poses (yaw, pitch and roll; T, 3): 1 in those that were learned, 0 far off."""
        turned = np.asarray(angles)[:, :2]
        beyond = np.maximum(np.maximum(np.asarray(self.least) - turned, turned - np.asarray(self.most)), 0).max(axis=1)
        return np.asarray(np.clip(1 - beyond / FADE, 0, 1), np.float32)

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
