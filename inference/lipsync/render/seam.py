"""The line between shut lips: where a mouth has to open.

The landmarker's own line misses the visible one by up to .02 eye distances, and a mouth that opens beside its
seam shows a stripe of lip on the wrong side. So the darkest line along a strip round the landmarks is searched
by dynamic programming, on the mean of several frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.lipsync.render.tracks import Tracks

Array = NDArray[np.float32]

FRAMES = 24  #: frames looked at; more change nothing
COLUMNS, ROWS = 61, 61  #: samples along the mouth and across the strip
STRIP = 0.05  #: eye distances the strip reaches up and down
BEND = 1.2  #: cost of a slope, against a darkness of about 1 between lip and seam
STRAY = 0.25  #: cost of leaving the landmarks' line by the whole strip
FAINT = 0.08  #: contrast below which the landmarks are believed instead


def frames_wanted(tracks: Tracks) -> list[int]:
    """The template frames to hand to :func:`strip`: shut mouths, evenly spread."""
    seen = np.flatnonzero(tracks.found)
    calm = seen[tracks.opening[seen] <= np.quantile(tracks.opening[seen], 0.5)]
    spread = np.unique(np.linspace(0, len(calm) - 1, FRAMES).round().astype(int))
    return [int(frame) for frame in calm[spread]]


def from_strips(strips: Sequence[Array]) -> Array:
    """(11,) how far the seam lies below the landmarks' line at each pair of inner-ring vertices.

    ``strips`` come from :func:`strip`; without any the answer is zero.
    """
    if not strips:
        return np.zeros(len(mesh.LIP_INNER_UPPER), np.float32)
    offsets, contrast = _darkest(np.mean(strips, axis=0))
    pairs = np.linspace(0, COLUMNS - 1, len(mesh.LIP_INNER_UPPER))
    trust = float(np.clip(contrast / FAINT - 1, 0, 1))
    result = np.interp(pairs, np.arange(COLUMNS), offsets) * trust
    result[[0, -1]] *= 0.5  # the corners are soft folds, where the darkest line wanders off
    return np.asarray(result, np.float32)


def close(shape: Array, offsets: Array) -> Array:
    """A shape (…, 478+, 3) with both inner rings on the seam."""
    shut: Array = shape.copy()
    middle = (shape[..., mesh.LIP_INNER_UPPER, :] + shape[..., mesh.LIP_INNER_LOWER, :]) / 2
    middle[..., 1] += offsets
    shut[..., mesh.LIP_INNER_UPPER, :] = middle
    shut[..., mesh.LIP_INNER_LOWER, :] = middle
    return shut


def strip(picture: NDArray[np.uint8], tracks: Tracks, index: int) -> Array:
    """(ROWS, COLUMNS) luminance of the strip along the mouth, 1 = its mean."""
    head = tracks.shape[index]
    line = (head[mesh.LIP_INNER_UPPER] + head[mesh.LIP_INNER_LOWER]) / 2
    along = np.linspace(0, len(line) - 1, COLUMNS)
    curve = np.stack([np.interp(along, np.arange(len(line)), line[:, axis]) for axis in range(3)], axis=1)
    grid = np.repeat(curve[None], ROWS, axis=0).astype(np.float32)
    grid[..., 1] += np.linspace(-STRIP, STRIP, ROWS, dtype=np.float32)[:, None]
    pixels = tracks.pose.take(index).to_pixels(grid.reshape(1, -1, 3))[0].reshape(ROWS, COLUMNS, 3)
    values = cv2.remap(picture, pixels[..., 0], pixels[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    gray = cv2.cvtColor(values, cv2.COLOR_BGR2GRAY).astype(np.float32)
    return np.asarray(gray / max(float(gray.mean()), 1.0), np.float32)


def _darkest(mean: NDArray[np.floating]) -> tuple[Array, float]:
    """(COLUMNS,) offsets of the best path, and how much darker it is than the strip."""
    reach = np.linspace(-1, 1, ROWS)
    inward = 1 - np.abs(np.linspace(-1, 1, COLUMNS))  # 0 at the corners
    stray = STRAY * (1 + 3 * np.clip(1 - inward / 0.25, 0, 1))
    cost = mean + stray[None, :] * (reach**2)[:, None]
    step = BEND * (np.abs(np.arange(ROWS)[:, None] - np.arange(ROWS)[None, :]) / 3.0) ** 2 * 0.1
    best, back = cost[:, 0].copy(), np.zeros((ROWS, COLUMNS), int)
    for column in range(1, COLUMNS):
        total = best[:, None] + step
        back[:, column] = total.argmin(axis=0)
        best = total.min(axis=0) + cost[:, column]
    path = np.empty(COLUMNS, int)
    path[-1] = best.argmin()
    for column in range(COLUMNS - 1, 0, -1):
        path[column - 1] = back[path[column], column]
    middle = slice(COLUMNS // 5, -COLUMNS // 5)
    contrast = float(np.median(mean[:, middle]) - np.median(mean[path[middle], np.arange(COLUMNS)[middle]]))
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / 2.5) ** 2)
    offsets = np.convolve(np.pad(reach[path] * STRIP, 6, mode="edge"), kernel / kernel.sum(), mode="valid")
    return np.asarray(offsets, np.float32), contrast
