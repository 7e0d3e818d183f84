"""Smoothing over time, for arrays whose first axis is frames; missing frames are NaN and stay so.

They look both ways and shift nothing: for recordings.
"""

from __future__ import annotations

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


def local_mean(values: NDArray[np.floating], shot: NDArray[np.integer], frames: int) -> NDArray[np.float64]:
    """(N, …) mean over the ``frames`` (odd) nearest frames of the same shot; ``shot`` (N,) rises at every cut.

    Missing frames have no part in it, and stay missing.
    """
    flat = np.asarray(values, np.float64).reshape(len(values), -1)
    result = np.full_like(flat, np.nan)
    missing = np.asarray(np.isnan(flat).any(axis=1), np.bool_)
    for index in np.flatnonzero(~missing).tolist():
        near = slice(max(0, index - frames // 2), index + frames // 2 + 1)
        same = np.asarray(shot[near] == shot[index], np.bool_) & ~missing[near]
        result[index] = flat[near][same].mean(axis=0)
    return result.reshape(np.shape(values))
