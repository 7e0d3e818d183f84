"""Laying mouths of other frames into a frame, on its own geometry and in its own light."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.lipsync.render import rows
from inference.lipsync.render.basis import extend
from inference.lipsync.render.between import Between, Goal, Own, Room
from inference.lipsync.render.mouths import FEATHER, HULL, Mouths, hull_box
from inference.lipsync.render.plan import Weights
from inference.lipsync.render.tracks import Tracks
from inference.lipsync.render.warp import Box, Field, Painter, Painting, maps

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

COLOUR_SIGMA = 0.12  #: eye distances over which the light of the surrounding skin is carried inwards
EDGE_COUNTS = 10.0  #: by how much more the skin counts where the mouth fades out: there a step would be seen
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
        shapes = extend(tracks.shape[mouths.frame])
        self._points = tracks.pose.take(mouths.frame.astype(np.intp)).to_pixels(shapes)
        self._gaps = [rows.Gap.of(shape) for shape in shapes]
        self._between = Between(painter)

    def lay(self, picture: Frame, goal: Goal, weights: Weights, strength: float = 1.0) -> None:
        """Blend mouths into a picture in place, their lips where the goal has them."""
        box = hull_box(goal.pixels, goal.unit).within(picture.shape[1], picture.shape[0])
        if box.empty:
            return
        painting = self._painter.paint(goal.pixels, self._painter.moving, box)
        room = self._between.room(goal, box)
        donor = np.zeros((box.height, box.width, 3), np.float32)
        for mouth, share in weights:
            donor += np.float32(share) * self._fetch(mouth, painting, goal, room)
        cover = _feathered(goal.pixels[list(HULL), :2], box, goal.unit)
        part = box.cut(picture)
        base = part.astype(np.float32)
        donor += self._light(base, donor, cover, _Spot(box, goal.pixels[mesh.LIP_OUTER, :2], goal.unit))
        base += (donor - base) * (cover * np.float32(strength))[..., None]
        part[:] = np.clip(np.rint(base), 0, 255).astype(np.uint8)

    def between(self, mouth: int, goal: Goal) -> tuple[Array, Field] | None:
        """How far each pixel of a box lies between the goal's lips, 0..1, and where in a mouth's picture it comes from.

        None when the lips meet.
        """
        room = self._between.room(goal, hull_box(goal.pixels, goal.unit))
        return None if room is None else (room.cover, self._between.places(self._own(mouth), goal, room))

    def points(self, mouth: int) -> Array:
        """(550, 3) a mouth's points in its own picture, pixels."""
        return np.asarray(self._points[mouth] - [*self._mouths.origin[mouth], 0], np.float32)

    def _own(self, mouth: int) -> Own:
        return Own(self.points(mouth), self._gaps[mouth], self._mouths.teeth[mouth])

    def _fetch(self, mouth: int, painting: Painting, goal: Goal, room: Room | None) -> Array:
        x, y = self._mouths.origin[mouth].tolist()
        taken = self._taken(mouth, maps(painting.sample(self._points[mouth]), painting.box, (x, y)))
        if room is not None:
            inside = self._taken(mouth, self._between.places(self._own(mouth), goal, room))
            left, top = room.box.x - painting.box.x, room.box.y - painting.box.y
            part = taken[top : top + room.box.height, left : left + room.box.width]
            part += (inside - part) * room.cover[..., None]
        return taken

    def _taken(self, mouth: int, places: Field) -> Array:
        picture = self._mouths.pictures[mouth]
        return np.asarray(cv2.remap(picture, *places, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE), np.float32)

    def _light(self, base: Array, donor: Array, cover: Array, spot: _Spot) -> Array:
        """(H, W, 3) what to add to the donor so that its skin has the light of the picture's."""
        box, unit = spot.box, spot.unit
        small = (max(1, box.width // COARSE), max(1, box.height // COARSE))
        lips = np.zeros((box.height, box.width), np.uint8)
        hull = cv2.convexHull(np.round((spot.lips - [box.x, box.y]) * 16).astype(np.int32))
        cv2.fillConvexPoly(lips, hull, 1, cv2.LINE_8, 4)
        reach = 2 * max(1, round(LIPS_MARGIN * unit)) + 1
        skin = cover * (1 + EDGE_COUNTS * (1 - cover)) * (1 - cv2.dilate(lips, np.ones((reach, reach), np.uint8)))
        skin += np.float32(1e-4)
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
