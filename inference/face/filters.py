"""Smoothing over time, for arrays whose first axis is frames; missing frames are NaN and stay so.

The gaussian looks both ways and shifts nothing: for recordings. The one-euro filter (Casiez, Roussel, Vogel
2012) looks back only, steady when slow and quick when fast: for streams.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from inference.face.pose import Pose


def gaussian(values: NDArray[np.floating], sigma: float) -> NDArray[np.float32]:
    """Gaussian mean over frames, ``sigma`` in frames; weights of missing frames go to the others.

    Values on both sides of a gap of missing frames do not mix when it is longer than 3 sigma.
    """
    flat = np.asarray(values, np.float32).reshape(len(values), -1)
    if sigma <= 0 or len(flat) < 2:
        return np.array(values, np.float32)
    present = np.asarray(np.isfinite(flat).all(axis=1), np.bool_)
    reach = max(1, math.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    filled = np.where(present[:, None], flat, 0).astype(np.float32)
    total = np.zeros_like(filled)
    weight = np.zeros(len(flat), np.float32)
    for step, share in zip(range(-reach, reach + 1), kernel.astype(np.float32), strict=True):
        to, of = slice(max(0, -step), len(flat) - max(0, step)), slice(max(0, step), len(flat) - max(0, -step))
        if to.start >= to.stop:
            continue
        total[to] += share * filled[of]
        weight[to] += share * present[of]
    smooth = np.full_like(flat, np.nan)
    smooth[present] = total[present] / weight[present, None]
    return smooth.reshape(np.shape(values))


def one_euro(
    values: NDArray[np.floating], fps: float, min_cutoff: float = 1.5, beta: float = 0.3, d_cutoff: float = 1.0
) -> NDArray[np.float32]:
    """One-euro filter; ``min_cutoff`` in Hz at rest, ``beta`` in Hz per unit and second of movement.

    With values in eye distances the defaults take the landmarks' own tremble and leave speech alone. Starts
    anew after missing frames.
    """
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    out = np.full(flat.shape, np.nan)
    held: NDArray[np.float64] | None = None
    speed = np.zeros(flat.shape[1])
    for frame, value in enumerate(flat):
        if not np.isfinite(value).all():
            held = None
            continue
        if held is None:
            held, speed = value.copy(), np.zeros_like(value)
        else:
            speed = speed + _share(np.full_like(value, d_cutoff), fps) * ((value - held) * fps - speed)
            held = held + _share(min_cutoff + beta * np.abs(speed), fps) * (value - held)
        out[frame] = held
    return out.reshape(np.shape(values)).astype(np.float32)


def fill_gaps(values: NDArray[np.floating], longest: int) -> NDArray[np.float32]:
    """Bridge runs of up to ``longest`` missing frames by straight lines; ends are not extended."""
    flat = np.array(values, np.float32).reshape(len(values), -1)
    present = np.flatnonzero(np.isfinite(flat).all(axis=1))
    for before, after in itertools.pairwise(present):
        if 1 < after - before <= longest + 1:
            share = (np.arange(before + 1, after) - before)[:, None] / np.float32(after - before)
            flat[before + 1 : after] = flat[before] + share * (flat[after] - flat[before])
    return flat.reshape(np.shape(values))


def smooth_pose(pose: Pose, sigma: float, translation_sigma: float | None = None) -> Pose:
    """A pose smoothed by gaussians, in frames; turns are averaged as matrices and made turns again."""
    turn = gaussian(pose.rotation, sigma)
    good = np.isfinite(turn).all(axis=(1, 2))
    if good.any():
        u, _, vt = np.linalg.svd(turn[good].astype(np.float64))
        u[:, :, 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
        turn[good] = u @ vt
    shift = gaussian(pose.translation, sigma if translation_sigma is None else translation_sigma)
    return Pose(gaussian(pose.scale, sigma), turn, shift)


def _share(cutoff: NDArray[np.float64], fps: float) -> NDArray[np.float64]:
    """How much of the new value a first-order low-pass takes."""
    return np.asarray(1 / (1 + fps / (2 * math.pi * cutoff)))
