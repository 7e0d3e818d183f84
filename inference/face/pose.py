"""Where a head is and how it is turned, and its points as if it looked straight ahead.

A pose is a similarity: pixels = scale · R · head + translation, in three dimensions under weak perspective
(the mesh network's z has the scale of its x and y). It is fitted on points that speech does not move
(``mesh.STABLE``) against the person's own median shape, because against an average face every turn of the head
would leak into the shape. Angles: yaw > 0 = the nose points to larger x, pitch > 0 = the nose points up,
roll > 0 = the head leans clockwise in the picture; all in degrees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.face import mesh

Array = NDArray[np.float64]
MEDIAN_FRAMES = 500
ROUNDS = 3  #: of fitting all frames to the median and taking the median again; it moves < 1e-4 after two


@dataclass(frozen=True)
class Pose:
    """Poses of N frames; NaN where there was no face."""

    scale: NDArray[np.float32]  #: (N,) pixels per eye distance
    rotation: NDArray[np.float32]  #: (N, 3, 3) from head to picture directions
    translation: NDArray[np.float32]  #: (N, 3) pixels, where the head's origin lies

    def to_head(self, points: mesh.Points) -> mesh.Points:
        """(N, P, 3) pixels → head coordinates."""
        turned = (points - self.translation[:, None]) @ self.rotation
        return np.asarray(turned / self.scale[:, None, None], np.float32)

    def to_pixels(self, head: mesh.Points) -> mesh.Points:
        """(N, P, 3) or (P, 3) head coordinates → (N, P, 3) pixels."""
        if head.ndim == 2:
            head = np.broadcast_to(head, (len(self.scale), *head.shape))
        turned = head @ self.rotation.transpose(0, 2, 1)
        return np.asarray(turned * self.scale[:, None, None] + self.translation[:, None], np.float32)

    @property
    def angles(self) -> NDArray[np.float32]:
        """(N, 3) yaw, pitch, roll in degrees."""
        return angles_of(self.rotation)

    def take(self, index: int | slice | NDArray[np.intp]) -> Pose:
        """The poses of some frames."""
        chosen = np.arange(len(self.scale))[index].reshape(-1)
        return Pose(self.scale[chosen], self.rotation[chosen], self.translation[chosen])

    def put(self, frames: slice | NDArray[np.bool_], poses: Pose) -> None:
        """Write the poses of some frames; for arrays of one's own (:func:`nowhere`)."""
        self.scale[frames], self.rotation[frames] = poses.scale, poses.rotation
        self.translation[frames] = poses.translation


def nowhere(count: int) -> Pose:
    """N poses that are yet to be known: NaN."""
    shapes = ((count,), (count, 3, 3), (count, 3))
    return Pose(*(np.full(shape, np.nan, np.float32) for shape in shapes))


def fit(points: mesh.Points, shape: mesh.Points, index: mesh.Index = mesh.STABLE) -> Pose:
    """The poses (N) that lay ``shape`` (478, 3; head coordinates) best onto ``points`` (N, 478, 3; pixels).

    Least squares over ``index`` (Umeyama 1991), so the result is exact and needs no start. Frames whose
    points are NaN get NaN.
    """
    count = len(points)
    scale = np.full(count, np.nan, np.float32)
    rotation = np.full((count, 3, 3), np.nan, np.float32)
    translation = np.full((count, 3), np.nan, np.float32)
    good = np.isfinite(points[:, index]).all(axis=(1, 2))
    if good.any():
        target = points[good][:, index].astype(np.float64)
        source = shape[index].astype(np.float64)
        to, of = target.mean(axis=1), source.mean(axis=0)
        centred = source - of
        spread = float((centred**2).sum())
        u, singular, vt = np.linalg.svd(np.einsum("npi,pj->nij", target - to[:, None], centred))
        sign = np.ones_like(singular)
        sign[:, 2] = np.sign(np.linalg.det(u @ vt))
        turn = (u * sign[:, None, :]) @ vt
        size = (singular * sign).sum(axis=1) / spread
        scale[good], rotation[good] = size, turn
        translation[good] = to - size[:, None] * (turn @ of)
    return Pose(scale, rotation, translation)


def median_shape(points: mesh.Points, canonical: mesh.Points, index: mesh.Index = mesh.STABLE) -> mesh.Points:
    """A person's own shape (478, 3) in head coordinates from all frames with a face (N, 478, 3; pixels).

    It is turned as the canonical face is and scaled to an eye distance of exactly 1. Long videos are
    thinned to about 500 frames.
    """
    found = np.flatnonzero(np.isfinite(points[:, index]).all(axis=(1, 2)))
    if not len(found):
        raise ValueError("no frame with a face")
    some = points[found[:: max(1, len(found) // MEDIAN_FRAMES)]]
    shape = np.asarray(canonical, np.float32)
    for _ in range(ROUNDS):
        own = np.median(fit(some, shape, index).to_head(some), axis=0).astype(np.float32)
        # The median of a head that never faces the camera keeps a trace of its turn: lay it on the canonical one.
        shape = fit(own[None], canonical, index).to_head(own[None])[0]
        shape = shape / np.float32(np.linalg.norm(shape[mesh.EYE_CORNER_LEFT] - shape[mesh.EYE_CORNER_RIGHT]))
    return np.asarray(shape, np.float32)


def angles_of(rotation: NDArray[np.floating]) -> NDArray[np.float32]:
    """(N, 3, 3) → (N, 3) yaw, pitch, roll in degrees; rotation = Rz(roll) · Rx · Ry."""
    # With x right, y down and z away, the head's forward direction is (0, 0, −1).
    forward = -rotation[:, :, 2]
    yaw = np.arctan2(forward[:, 0], -forward[:, 2])
    pitch = np.arcsin(np.clip(-forward[:, 1], -1, 1))
    roll = np.arctan2(rotation[:, 1, 0], rotation[:, 1, 1])
    return np.asarray(np.degrees(np.stack([yaw, pitch, roll], axis=1)), np.float32)


def rotation_of(yaw: float, pitch: float, roll: float) -> NDArray[np.float32]:
    """(3, 3) the turn by three angles in degrees; the inverse of :func:`angles_of`."""
    y, p, r = (float(np.radians(angle)) for angle in (yaw, pitch, roll))
    # Columns: where the head's right, down and away directions point in the picture.
    forward = np.array([np.sin(y) * np.cos(p), -np.sin(p), -np.cos(y) * np.cos(p)])
    away = -forward
    # `down` is orthogonal to `away`; roll is read from rows 1 of the first two columns.
    level = np.cross(np.array([0.0, 1.0, 0.0]), away)
    level /= np.linalg.norm(level)
    upright = np.cross(away, level)
    # right = cos(t) level + sin(t) upright, down = -sin(t) level + cos(t) upright; level has no y part.
    right = np.cos(r) * level + np.sin(r) * upright
    down = -np.sin(r) * level + np.cos(r) * upright
    return np.asarray(np.stack([right, down, away], axis=1), np.float32)
