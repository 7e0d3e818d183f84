"""The level of speech, so that a whispering and a shouting recording look alike to the encoder."""

from __future__ import annotations

import numpy as np

from inference.audio import Array

RATE = 16_000
FRAME = 320  #: samples, 20 ms
TARGET = 0.1  #: level that speech is brought to (about −20 dB below full scale while it lasts)
MOST_GAIN = 30.0  #: times; beyond this there is nothing but noise to be raised


class Level:
    """How loud the loud parts are, over everything heard so far: frames weigh by their own amplitude.

    Pauses hardly count, so a minute of silence around a sentence does not make the sentence louder.
    """

    def __init__(self) -> None:
        self._squares = 0.0
        self._cubes = 0.0

    def hear(self, samples: Array) -> None:
        """Take in more of the recording."""
        amplitude = rms(samples).astype(np.float64)
        self._squares += float((amplitude**2).sum())
        self._cubes += float((amplitude**3).sum())

    @property
    def gain(self) -> float:
        """What brings speech to the usual level; 1 for digital silence."""
        if self._squares <= 0.0 or self._cubes <= 0.0:
            return 1.0
        return float(min(TARGET * self._squares / self._cubes, MOST_GAIN))


def levelled(samples: Array) -> Array:
    """The same sound at the usual level."""
    level = Level()
    level.hear(samples)
    return np.asarray(samples * np.float32(level.gain), dtype=np.float32)


def rms(samples: Array) -> Array:
    """Amplitude of each whole or started 20 ms."""
    count = -(-len(samples) // FRAME)
    padded = np.zeros(count * FRAME, np.float32)
    padded[: len(samples)] = samples
    return np.asarray(np.sqrt(np.mean(np.square(padded.reshape(count, FRAME)), axis=1)), dtype=np.float32)
