"""Laying mouths of other frames into a frame, on its own geometry and in its own light."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.lipsync.render.basis import extend
from inference.lipsync.render.mouths import FEATHER, HULL, Mouths, hull_box
from inference.lipsync.render.plan import Weights
from inference.lipsync.render.tracks import Tracks
from inference.lipsync.render.warp import Box, Painter, Painting, maps

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

COLOUR_SIGMA = 0.16  #: eye distances over which the light of the surrounding skin is carried inwards
LIPS_MARGIN = 0.03  #: eye distances round the lips that say nothing about the light
COARSE = 4  #: the light is compared at a quarter of the size


@dataclass(frozen=True)
class _Spot:
    """Where a mouth is laid."""

    box: Box
    lips: Array  #: (P, 2) outer edge of the lips, pixels
    unit: float  #: eye distance in pixels


class Transplanter:
    """Lays a template's own mouths into its frames."""

    def __init__(self, painter: Painter, mouths: Mouths, tracks: Tracks) -> None:
        self._painter, self._mouths = painter, mouths
        self._points = tracks.pose.take(mouths.frame.astype(np.intp)).to_pixels(extend(tracks.shape[mouths.frame]))

    def lay(self, picture: Frame, goal: Array, unit: float, weights: Weights, strength: float = 1.0) -> None:
        """Blend mouths into a picture in place, their lips at ``goal`` (550, 3; pixels)."""
        box = hull_box(goal, unit).within(picture.shape[1], picture.shape[0])
        if box.empty:
            return
        painting = self._painter.paint(goal, self._painter.moving, box)
        donor = np.zeros((box.height, box.width, 3), np.float32)
        for mouth, share in weights:
            donor += np.float32(share) * self._fetch(mouth, painting)
        cover = _feathered(goal[list(HULL), :2], box, unit)
        part = box.cut(picture)
        base = part.astype(np.float32)
        donor += self._light(base, donor, cover, _Spot(box, goal[mesh.LIP_OUTER, :2], unit))
        base += (donor - base) * (cover * np.float32(strength))[..., None]
        part[:] = np.clip(np.rint(base), 0, 255).astype(np.uint8)

    def _fetch(self, mouth: int, painting: Painting) -> Array:
        origin = self._mouths.origin[mouth]
        x, y = maps(painting.sample(self._points[mouth]), painting.box, (int(origin[0]), int(origin[1])))
        picture = cv2.remap(self._mouths.pictures[mouth], x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(picture, np.float32)

    def _light(self, base: Array, donor: Array, cover: Array, spot: _Spot) -> Array:
        """(H, W, 3) what to add to the donor so that its skin has the light of the picture's."""
        box, unit = spot.box, spot.unit
        small = (max(1, box.width // COARSE), max(1, box.height // COARSE))
        lips = np.zeros((box.height, box.width), np.uint8)
        hull = cv2.convexHull(np.round((spot.lips - [box.x, box.y]) * 16).astype(np.int32))
        cv2.fillConvexPoly(lips, hull, 1, cv2.LINE_8, 4)
        reach = 2 * max(1, round(LIPS_MARGIN * unit)) + 1
        skin = cover * (1 - cv2.dilate(lips, np.ones((reach, reach), np.uint8))) + np.float32(1e-4)
        weight = cv2.resize(skin, small, interpolation=cv2.INTER_AREA)
        difference = cv2.resize(base - donor, small, interpolation=cv2.INTER_AREA) * weight[..., None]
        sigma = max(COLOUR_SIGMA * unit / COARSE, 0.5)
        spread = cv2.GaussianBlur(difference, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
        weight = cv2.GaussianBlur(weight, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
        light = spread / np.maximum(weight, 1e-6)[..., None]
        return np.asarray(cv2.resize(light, (box.width, box.height), interpolation=cv2.INTER_LINEAR), np.float32)


def _feathered(contour: Array, box: Box, unit: float) -> Array:
    """(H, W) 1 well inside the convex hull of (P, 2) pixels, 0 outside it."""
    mask = np.zeros((box.height, box.width), np.float32)
    hull = cv2.convexHull(np.round((contour - [box.x, box.y]) * 16).astype(np.int32))
    cv2.fillConvexPoly(mask, hull, 1.0, cv2.LINE_8, 4)
    half = max(1, round(FEATHER * unit / 2))
    soft = cv2.erode(
        mask, np.ones((2 * half + 1, 2 * half + 1), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0
    )
    side = half // 2 * 2 + 1
    for _ in range(2):  # twice a box is nearly a smooth ramp
        soft = cv2.blur(soft, (side, side), borderType=cv2.BORDER_CONSTANT)
    return np.asarray(soft, np.float32)
