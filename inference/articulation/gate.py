"""Silence and closures: from the head's logits to when a mouth moves and when its lips meet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from inference.audio import Array

QUIET, HEARD = 0.0015, 0.004  #: amplitude at the usual level (speech is 0.1): nothing below, all above
AHEAD, BEHIND = 3, 2  #: frames by which a mouth moves before the voice begins and after it has ended
APPROACH = 12  #: frames before that, over which it leaves its rest: people part their lips to breathe in
BRIDGE = 6  #: frames: a shorter gap in the voice is a stop consonant or a breath, not a pause
EDGE = np.array([0.25, 0.5, 0.25])  #: smooths the edges of the voicing
REACH = 2 * (BRIDGE // 2) + AHEAD + APPROACH + len(EDGE) // 2  #: frames ahead that the voicing of a frame depends on


def voicing(logit: Array, loudness: Array) -> Array:
    """(T,) 0..1 from the logits of speech (T,) and the amplitudes of frames of 20 ms (about 2 T)."""
    count = len(logit)
    if not count:
        return np.zeros(0, np.float32)
    padded = np.zeros(2 * count, np.float32)
    padded[: len(loudness)] = loudness[: 2 * count]
    amplitude = padded.reshape(count, 2).max(axis=1)
    audible = np.clip((amplitude - QUIET) / (HEARD - QUIET), 0.0, 1.0)
    spoken = sigmoid(logit) * audible
    spoken = -_largest(-_largest(spoken, BRIDGE // 2, BRIDGE // 2), BRIDGE // 2, BRIDGE // 2)
    spoken = _approached(_largest(spoken, BEHIND, AHEAD))
    smooth = np.convolve(np.pad(spoken, 1, mode="edge"), EDGE, mode="valid")
    return np.asarray(np.clip(smooth, 0.0, 1.0), dtype=np.float32)


def delivered(channels: Array, voiced: Array, rest: Array) -> Array:
    """(T, channels) as they are while somebody speaks, at ``rest`` (channels,) while nobody does."""
    return np.asarray(rest + voiced[:, None] * (channels - rest), dtype=np.float32)


def closures(logit: Array, opening: Array, voiced: Array, close_at: float) -> NDArray[np.bool_]:
    """(T,) where the lips meet: closure at least as likely as ``close_at`` while somebody speaks."""
    return np.asarray((sigmoid(logit) >= close_at) & (voiced > 0.3), dtype=np.bool_)


def sigmoid(logit: Array) -> Array:
    """Logits → probabilities."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logit, -30.0, 30.0))), dtype=np.float32)


def _approached(voiced: Array) -> Array:
    """With a straight rise of ``APPROACH`` frames before each increase."""
    risen = voiced
    for frames in range(1, APPROACH + 1):
        later = np.concatenate([voiced[frames:], np.full(min(frames, len(voiced)), voiced[-1])])
        risen = np.maximum(risen, later * (1.0 - frames / (APPROACH + 1)))
    return risen


def _largest(values: Array, before: int, after: int) -> Array:
    """The largest value from ``before`` frames earlier to ``after`` frames later; edges repeated."""
    padded = np.pad(values, (before, after), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, before + after + 1)
    return np.asarray(windows.max(axis=1), values.dtype)
