"""Whether 478 points lie on a human face.

The detector takes animals for faces (a dog scores up to .99) and the mesh network then lays its mesh over them
with confidence. Two things give it away:

* *shape*: in head coordinates, 50 points that neither speech nor expression moves lie elsewhere than on people
  (nose too short and too high, face too wide);
* *agreement*: of a picture and its mirror image the network makes the same human face, but two different
  animals, since it has to guess.

One number is made of both, the logarithm of the odds, fitted to frames of 22 people (each judged by the average
of the other 21) and to variants of one dog. Medians measured: people +14.7 (lowest +2.5, a head rolled 25° and
turned 30° in motion blur), with the mouth hidden +12.5, blurred +9, as a painting +10; the dog −3.6, highest
−2.4. Landscapes and textures mostly fail by the network's own score already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from inference.face import mesh, pose
from inference.face.model import FaceModel, Frame, Landmarks, Region, cut, region_of_points

MIN_SCORE = 0.9  #: of the mesh network; people reach 1 − 1e-5, textures rarely .9
MIN_MARGIN = 0.0
SURE_MARGIN = 8.0  #: from here on nobody asks whether the face stands on its head; at 0° such a one reached 2.8
MIN_EYES = 16.0  #: pixels between the outer eye corners; under that a mouth is a smudge of 9 pixels
SURE_SCORE, SURE_SHAPE = 0.99, 0.10  #: while a face is followed; eye distances
KEEP_SCORE, KEEP_SHAPE = 0.5, 0.15  #: likewise, when searching anew finds nothing better
SETTLE = 2  #: passes after which points and region agree

#: vertex and place, in head coordinates, on the average of 22 people as this network sees them; the middle
#: of the face first, then the person's right half, of which the left one is the mirror image
AVERAGE = (
    (1, 0.000, 0.133, -0.833),
    (2, 0.000, 0.220, -0.658),
    (4, 0.000, 0.057, -0.855),
    (5, 0.000, -0.037, -0.825),
    (6, 0.000, -0.263, -0.635),
    (8, 0.000, -0.450, -0.585),
    (9, 0.000, -0.553, -0.597),
    (10, 0.000, -0.941, -0.513),
    (151, 0.000, -0.756, -0.560),
    (168, 0.000, -0.353, -0.582),
    (195, 0.000, -0.113, -0.758),
    (197, 0.000, -0.184, -0.694),
    (21, -0.745, -0.583, -0.018),
    (33, -0.500, -0.310, -0.331),
    (46, -0.617, -0.456, -0.377),
    (48, -0.204, 0.119, -0.653),
    (50, -0.551, 0.081, -0.411),
    (55, -0.146, -0.464, -0.563),
    (67, -0.394, -0.900, -0.421),
    (70, -0.657, -0.490, -0.315),
    (98, -0.180, 0.202, -0.565),
    (109, -0.212, -0.934, -0.494),
    (116, -0.714, -0.104, -0.194),
    (122, -0.064, -0.246, -0.607),
    (127, -0.796, -0.246, 0.236),
    (129, -0.225, 0.124, -0.521),
    (133, -0.195, -0.291, -0.392),
    (162, -0.781, -0.431, 0.126),
    (196, -0.061, -0.170, -0.678),
    (205, -0.451, 0.180, -0.472),
    (234, -0.789, -0.071, 0.283),
)


@dataclass(frozen=True)
class Verdict:
    """How much a mesh looks like a person's."""

    landmarks: Landmarks  #: settled
    shape: float  #: distance from the average face, eye distances
    disagreement: float  #: between the picture and its mirror image, eye distances
    margin: float  #: logarithm of the odds for a person; 0 is undecided

    @property
    def human(self) -> bool:
        """Whether score and shape are those of a human face."""
        return self.landmarks.score >= MIN_SCORE and self.margin >= MIN_MARGIN

    @property
    def large_enough(self) -> bool:
        """Whether the eyes are far enough apart for the mesh to be trusted."""
        return self.landmarks.eye_distance >= MIN_EYES


def judge(model: FaceModel, bgr: Frame, region: Region) -> Verdict:
    """Settle the points of the face in ``region`` and judge them: four passes of the network, or eight.

    What is no sure face is judged upside down too, and the likelier of the two is taken.
    """
    upright = _judged(model, bgr, region)
    if upright.human and upright.margin >= SURE_MARGIN:
        return upright
    over = _judged(model, bgr, Region(region.x, region.y, region.side, region.angle + math.pi))
    return max(upright, over, key=lambda verdict: (verdict.human, verdict.margin))


def _judged(model: FaceModel, bgr: Frame, region: Region) -> Verdict:
    landmarks = model.landmarks(bgr, region)
    for _ in range(SETTLE):
        landmarks = model.landmarks(bgr, region_of_points(landmarks.points))
    # Only the region is mirrored, not the frame.
    crop, there = cut(bgr, landmarks.region)
    width = crop.shape[1]
    mirrored = model.landmarks(np.ascontiguousarray(crop[:, ::-1]), Region((width - 1) / 2, (width - 1) / 2, width, 0))
    points = mirrored.points.copy()
    points[:, 0] = width - 1 - points[:, 0]
    points = points[model.mesh.mirror]
    average, index = reference(model.mesh)
    both = np.stack([_in_crop(landmarks, there), points])
    shape, other = pose.fit(both, average, index).to_head(both)
    away = _rms(shape[index] - average[index])
    apart = _rms(shape[: mesh.VERTICES] - other[: mesh.VERTICES])
    margin = -33.77 - 7.79 * math.log(max(away, 1e-6)) - 3.92 * math.log(max(apart, 1e-6))
    return Verdict(landmarks, away, apart, margin)


def still_there(model: FaceModel, landmarks: Landmarks) -> float:
    """Whether a face that was judged before is still followed: 1 surely, 0.5 perhaps, 0 no; costs nearly nothing."""
    average, index = reference(model.mesh)
    points = landmarks.points[None]
    head = pose.fit(points, average, index).to_head(points)[0]
    away = _rms(head[index] - average[index])
    if landmarks.score >= SURE_SCORE and away < SURE_SHAPE:
        return 1.0
    return 0.5 if landmarks.score >= KEEP_SCORE and away < KEEP_SHAPE else 0.0


@lru_cache(maxsize=4)
def reference(canonical: mesh.Mesh) -> tuple[mesh.Points, mesh.Index]:
    """(478, 3) the average face, of which only the vertices of the index (50) are filled in."""
    average = np.full((mesh.POINTS, 3), np.nan, np.float32)
    for vertex, *place in AVERAGE:
        average[canonical.mirror[vertex]] = np.array(place) * [-1, 1, 1]
        average[vertex] = place
    return average, np.flatnonzero(np.isfinite(average[:, 0])).astype(np.int32)


def _in_crop(landmarks: Landmarks, matrix: NDArray[np.float64]) -> mesh.Points:
    """Points of the frame in the pixels of a crop, z at its scale."""
    scale = math.hypot(matrix[0, 0], matrix[0, 1])
    flat = landmarks.points[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([flat, landmarks.points[:, 2:] * scale], axis=1).astype(np.float32)


def _rms(apart: NDArray[np.float32]) -> float:
    return float(np.sqrt((apart.astype(np.float64) ** 2).sum(axis=1).mean()))
