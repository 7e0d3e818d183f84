"""What the articulation model says about a stretch of sound. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.audio import Array

FPS = 25.0  #: frames per second; frame k covers k / 25 … (k + 1) / 25 s
CHANNELS = ("opening", "width", "lip_height", "protrusion", "jaw")  #: as in ``inference.face.measure``

Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Articulation:
    """A mouth that says something, T frames of it.

    A channel is in standard deviations of a person who speaks, zero being that person's mean while speaking. In
    silence all of them go to the value of a mouth at rest. Predictions vary less than people do: ``spread`` says
    how much, and :meth:`rescaled` puts it right.
    """

    channels: Mapping[str, Array]  #: each (T,)
    closed: Flags  #: (T,) the lips meet, as for p, b and m
    voiced: Array  #: (T,) 0 nobody speaks … 1 somebody does; runs a little ahead and behind, as mouths do
    spread: Mapping[str, float]  #: standard deviation of the prediction over the real one, held-out speakers
    rest: Mapping[str, float]  #: the channels of a mouth at rest
    fps: float = FPS

    def __len__(self) -> int:
        return len(self.voiced)

    def rescaled(self, share: float = 1.0) -> Articulation:
        """With the spread of a real person (``share`` 1) or a part of the way there; rest stays where it is.

        Scaled is what the head says while somebody speaks, and then led to rest as it was before; the mean while
        speaking is kept, so the way from rest to speech grows on the far side only.
        """
        scaled = {}
        for name, values in self.channels.items():
            factor = (1.0 / max(self.spread[name], 0.1)) ** share
            resting = (1.0 - factor) * (1.0 - self.voiced) * self.rest[name]
            scaled[name] = np.asarray(factor * values + resting, dtype=np.float32)
        return Articulation(scaled, self.closed, self.voiced, self.spread, self.rest, self.fps)


def head_path() -> Path:
    """The weights that come with the project."""
    return Path(__file__).resolve().parent / "weights" / "head.npz"


def join(parts: list[Articulation]) -> Articulation:
    """One after the other; at least one."""
    first = parts[0]
    channels = {name: np.concatenate([part.channels[name] for part in parts]) for name in first.channels}
    return Articulation(
        channels,
        np.concatenate([part.closed for part in parts]),
        np.concatenate([part.voiced for part in parts]),
        first.spread,
        first.rest,
        first.fps,
    )
