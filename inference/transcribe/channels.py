"""What a telephone, a codec or a room does to every voice, taken out of the encoder's vectors.

The same words through several channels move a vector along a few directions, whoever speaks. Without these directions
a person who goes on by telephone stays nearer to himself (nuisance attribute projection: Campbell, Sturim, Reynolds,
*Support Vector Machines using GMM Supervectors for Speaker Verification*, IEEE Signal Processing Letters 13, 2006).
They belong to one encoder, the installed one. ``python -m inference.study_channels`` found them on 70 readers of
LibriSpeech (CC BY 4.0) in six channels.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from inference.audio import Array

FILE = Path(__file__).with_name("channels.npy")


@lru_cache(maxsize=1)
def directions() -> Array:
    """Orthogonal unit vectors of CAM++ zh-en: (2, 192)."""
    return np.asarray(np.load(FILE, allow_pickle=False), np.float32)


def without_channel(vectors: Array) -> Array:
    """Vectors (n, 192) less what the channel does, of unit length again."""
    return projected(vectors, directions())


def projected(vectors: Array, out: Array) -> Array:
    """Vectors (n, d) without their part along orthogonal unit vectors (k, d), of unit length."""
    rest = vectors - vectors @ out.T @ out
    return np.asarray(rest / np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-6), np.float32)
