"""A template's face through time, steady enough to paint on: smoothed poses and shapes in head coordinates."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.face import measure, mesh, pose

Array = NDArray[np.float32]

POSE_SIGMA, SHIFT_SIGMA = 1.0, 0.7  #: frames; rotation and scale, translation
SHAPE_SIGMA_SILENT, SHAPE_SIGMA_TALKING = 2.0, 0.6  #: frames; 2.0 on a talking face costs r .96 → .89
SHUT = 0.035  #: an opening below this counts as a shut mouth
TALK_SPREAD = 0.055  #: between the 10th and 90th percentile of the opening of a face that talks
TALK_FRAMES = 40  #: fewer mouths than this are no choice
LOST_FADE = 4  #: frames over which the effect sets in after, and dies out before, a lost face


class Kind(enum.Enum):
    """What the mouth does in the template by itself."""

    SILENT = "silent"  #: shut all the time: the inside has to be drawn
    SMILING = "smiling"  #: open all the time, hardly moving: it shows an inside of its own
    TALKING = "talking"  #: moving: it holds real mouths for most shapes


@dataclass(frozen=True)
class Tracks:
    """Geometry of N frames. NaN where there is no face."""

    shape: Array  #: (N, 478, 3) smoothed, head coordinates
    points: Array  #: (N, 478, 3) the same laid back into the picture, pixels
    pose: pose.Pose  #: smoothed
    found: NDArray[np.bool_]  #: (N,)
    strength: Array  #: (N,) 1; falls to 0 next to frames without a face
    opening: Array  #: (N,) of the smoothed shape, eye distances
    width: Array  #: (N,)
    mean: Array  #: (478, 3) the mean shape
    kind: Kind

    @property
    def frames(self) -> int:
        return len(self.found)

    @property
    def rest_width(self) -> float:
        """The width of the mouth when it says nothing: of its most closed quarter, by the median."""
        return float(np.median(self.width[self._calm()]))

    @property
    def rest_opening(self) -> float:
        return float(np.median(self.opening[self._calm()]))

    def _calm(self) -> NDArray[np.intp]:
        seen = np.flatnonzero(self.found)
        return seen[np.argsort(self.opening[seen], kind="stable")[: max(1, len(seen) // 4)]]


def follow(points: mesh.Points, found: NDArray[np.bool_], canonical: mesh.Points) -> Tracks:
    """Tracks of raw landmarks (N, 478, 3) in pixels. At least one frame must be found."""
    raw = np.where(found[:, None, None], points, np.nan).astype(np.float32)
    own = pose.median_shape(raw, canonical)
    fitted = pose.fit(raw, own)
    head = fitted.to_head(raw)
    opening = measure.mouth(head).opening
    kind = classify(opening[found])
    sigma = SHAPE_SIGMA_TALKING if kind is Kind.TALKING else SHAPE_SIGMA_SILENT
    shape = smooth(head, found, sigma)
    steady = pose.Pose(
        smooth(fitted.scale, found, POSE_SIGMA),
        _orthogonal(smooth(fitted.rotation, found, POSE_SIGMA)),
        smooth(fitted.translation, found, SHIFT_SIGMA),
    )
    channels = measure.mouth(shape)
    return Tracks(
        shape=shape,
        points=steady.to_pixels(shape),
        pose=steady,
        found=found.copy(),
        strength=_strength(found),
        opening=channels.opening,
        width=channels.width,
        mean=np.asarray(shape[found].mean(axis=0), np.float32),
        kind=kind,
    )


def classify(opening: Array) -> Kind:
    """What a mouth does whose openings these are."""
    low, high = np.percentile(opening, [10, 90])
    if high - low > TALK_SPREAD and len(opening) >= TALK_FRAMES:
        return Kind.TALKING
    return Kind.SMILING if np.median(opening) > SHUT else Kind.SILENT


def smooth(values: Array, found: NDArray[np.bool_], sigma: float) -> Array:
    """Gaussian over the first axis that skips frames which are not found and never reaches across them."""
    if len(values) < 2 or sigma <= 0:
        return np.asarray(values, np.float32)
    reach = max(1, int(np.ceil(3 * sigma)))
    flat = np.where(found[:, None], values.reshape(len(values), -1), 0).astype(np.float32)
    total, weight = np.zeros_like(flat), np.zeros((len(values), 1), np.float32)
    run = np.cumsum(np.concatenate([[0], (~found).astype(np.int64)]))  # equal ends = no gap between
    for step in range(-reach, reach + 1):
        gain = np.float32(np.exp(-0.5 * (step / sigma) ** 2))
        to = np.arange(max(0, -step), min(len(values), len(values) - step))
        clear = (run[np.maximum(to, to + step) + 1] == run[np.minimum(to, to + step)])[:, None]
        total[to] += gain * clear * flat[to + step]
        weight[to] += gain * clear
    with np.errstate(invalid="ignore", divide="ignore"):
        result = total / weight
    result[~found] = np.nan
    return np.asarray(result.reshape(values.shape), np.float32)


def _orthogonal(rotation: Array) -> Array:
    """The nearest rotations to averaged ones."""
    good = np.isfinite(rotation).all(axis=(1, 2))
    result = rotation.copy()
    u, _, vt = np.linalg.svd(rotation[good].astype(np.float64))
    result[good] = u @ vt
    return result


def _strength(found: NDArray[np.bool_]) -> Array:
    """(N,) how far the effect is on: 0 without a face, rising over LOST_FADE frames beside a gap."""
    distance = np.full(len(found), LOST_FADE, np.float32)
    for lost in np.flatnonzero(~found):
        low, high = max(0, lost - LOST_FADE), min(len(found), lost + LOST_FADE + 1)
        distance[low:high] = np.minimum(distance[low:high], np.abs(np.arange(low, high) - lost))
    t = distance / LOST_FADE
    return np.asarray(t * t * (3 - 2 * t), np.float32)
