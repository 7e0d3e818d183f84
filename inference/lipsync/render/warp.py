"""Displacement fields over a part of a picture, from a mesh that has moved.

Each triangle is painted with its number where it lies in the output; a pixel then takes its triangle's affine
map to the source. Compared with splines this folds nowhere, keeps rigid parts rigid and costs 2 ms.
Far triangles are painted first, those turned away not at all, the mouth before the lips.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.lipsync.render.basis import Basis

Array = NDArray[np.float32]
Ids = NDArray[np.int32]
Field = tuple[Array, Array]  #: displacement in x and in y, (H, W) each, pixels

STILL_PX = 0.05  #: displacements below this leave a pixel as it is
SHIFT = 4  #: fractional bits of the coordinates handed to OpenCV
FLAT = 1e-3  #: twice the area in square pixels under which a triangle has no inside


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def empty(self) -> bool:
        return self.width < 2 or self.height < 2

    def cut(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The view of the picture inside the box."""
        return picture[self.y : self.y + self.height, self.x : self.x + self.width]

    def within(self, width: int, height: int) -> Box:
        """The part inside a picture of that size."""
        x, y = max(0, self.x), max(0, self.y)
        right, bottom = min(width, self.x + self.width), min(height, self.y + self.height)
        return Box(x, y, max(0, right - x), max(0, bottom - y))

    def grow(self, by: int) -> Box:
        return Box(self.x - by, self.y - by, self.width + 2 * by, self.height + 2 * by)


def around(points: Array, margin: float = 0.0) -> Box:
    """The smallest box round (P, 2) points, ``margin`` pixels wider on every side."""
    low = np.floor(points.min(axis=0) - margin).astype(int)
    high = np.ceil(points.max(axis=0) + margin).astype(int) + 1
    return Box(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1]))


class Painter:
    """Paints the triangles of one basis."""

    def __init__(self, basis: Basis) -> None:
        self.basis = basis
        moving = basis.reach[basis.triangles].max(axis=1) > 0
        #: triangles that can ever move
        self.moving = np.flatnonzero(moving)
        near_mouth = basis.reach[basis.triangles].min(axis=1) > 0.3
        self.near_mouth = np.flatnonzero(near_mouth)
        self.lips = np.flatnonzero(basis.on_lips | basis.in_mouth)
        self._layer = np.where(basis.in_mouth, 1.0, np.where(basis.on_lips, 2.0, 0.0)).astype(np.float32)

    def paint(self, target: Array, chosen: NDArray[np.intp], box: Box, step: int = 1) -> Ids:
        """(H, W) the triangle at each pixel of the box, −1 where there is none.

        ``target`` is (V, 3) pixels. With ``step`` 2 one value stands for 2×2 pixels, read at their middle.
        """
        ids = np.full((-(-box.height // step), -(-box.width // step)), -1, np.int32)
        triangles = self.basis.triangles[chosen]
        offset = np.array([box.x, box.y], np.float32) + np.float32((step - 1) / 2)
        flat = (target[:, :2] - offset) / np.float32(step)
        corners = flat[triangles]
        one, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        turned = one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]
        low, high = corners.min(axis=1), corners.max(axis=1)
        seen = (high[:, 0] >= 0) & (high[:, 1] >= 0) & (low[:, 0] < ids.shape[1]) & (low[:, 1] < ids.shape[0])
        seen &= (turned < 0) | (self._layer[chosen] == 1)
        depth = target[:, 2][triangles].mean(axis=1)
        order = np.flatnonzero(seen)
        order = order[np.lexsort((-depth[order], self._layer[chosen][order]))]
        fixed = np.round(corners * (1 << SHIFT)).astype(np.int32)
        for k in order.tolist():
            cv2.fillConvexPoly(ids, fixed[k], int(chosen[k]), cv2.LINE_8, SHIFT)
        return ids

    def sample(self, ids: Ids, target: Array, source: Array, box: Box, step: int = 1) -> Field:
        """Where each painted pixel comes from, minus where it is; 0 where nothing is painted.

        ``target`` and ``source`` are (V, 2 or 3) pixels of their own pictures.
        """
        table = self._affine(target, source, box)
        height, width = ids.shape
        x = (np.arange(width, dtype=np.float32) * step + np.float32((step - 1) / 2))[None, :]
        y = (np.arange(height, dtype=np.float32) * step + np.float32((step - 1) / 2))[:, None]
        planes = []
        for by_x, by_y, start in (table[:3], table[3:]):
            plane = by_x.take(ids, mode="wrap")  # −1 reads the last entry, which is zero
            plane *= x
            slope = by_y.take(ids, mode="wrap")
            slope *= y
            plane += slope
            plane += start.take(ids, mode="wrap")
            planes.append(plane)
        return planes[0], planes[1]

    def _affine(self, target: Array, source: Array, box: Box) -> Array:
        """(6, T + 1): dx = three rows · (x, y, 1), dy = three rows, x and y counted from the box; last column zero."""
        origin = np.array([box.x, box.y], np.float64)
        to = target[:, :2].astype(np.float64)[self.basis.triangles] - origin
        delta = (source[:, :2].astype(np.float64) - target[:, :2])[self.basis.triangles]
        one, other = to[:, 1] - to[:, 0], to[:, 2] - to[:, 0]
        area = one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]
        flat = np.abs(area) < FLAT
        area = np.where(flat, 1, area)
        first, second = delta[:, 1] - delta[:, 0], delta[:, 2] - delta[:, 0]
        # Inverse of the edge matrix: barycentric coordinates as linear functions of x and y.
        by_x = (first * other[:, 1:2] - second * one[:, 1:2]) / area[:, None]
        by_y = (second * one[:, 0:1] - first * other[:, 0:1]) / area[:, None]
        by_x[flat], by_y[flat] = 0, 0
        start = np.where(flat[:, None], delta.mean(axis=1), delta[:, 0] - by_x * to[:, 0, 0:1] - by_y * to[:, 0, 1:2])
        table = np.zeros((6, len(to) + 1), np.float32)
        table[0::3, :-1], table[1::3, :-1], table[2::3, :-1] = by_x.T, by_y.T, start.T
        return table


def maps(field: Field, box: Box, origin: tuple[int, int] = (0, 0)) -> Field:
    """The float32 maps that cv2.remap wants, for a source picture whose first pixel lies at ``origin``."""
    height, width = field[0].shape
    x = field[0] + np.arange(box.x - origin[0], box.x - origin[0] + width, dtype=np.float32)[None, :]
    y = field[1] + np.arange(box.y - origin[1], box.y - origin[1] + height, dtype=np.float32)[:, None]
    return x, y
