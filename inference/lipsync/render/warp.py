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

from inference.face import mesh
from inference.lipsync.render.basis import Basis

Array = NDArray[np.float32]
Ids = NDArray[np.int32]
Field = tuple[Array, Array]  #: displacement in x and in y, (H, W) each, pixels

STILL_PX = 0.05  #: displacements below this leave a pixel as it is
SHIFT = 4  #: fractional bits of the coordinates handed to OpenCV
FLAT_PX = 0.35  #: height of a triangle under which its affine map means nothing


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels."""

    x: int
    y: int
    width: int
    height: int

    @property
    def empty(self) -> bool:
        """Whether it holds less than two pixels in a direction."""
        return self.width < 2 or self.height < 2

    def cut(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The view of the picture inside the box."""
        return picture[self.y : self.y + self.height, self.x : self.x + self.width]

    def within(self, width: int, height: int) -> Box:
        """The part inside a picture of that size."""
        x, y = max(0, self.x), max(0, self.y)
        right, bottom = min(width, self.x + self.width), min(height, self.y + self.height)
        return Box(x, y, max(0, right - x), max(0, bottom - y))

    def meet(self, other: Box) -> Box:
        """The part that two boxes share."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        right = min(self.x + self.width, other.x + other.width)
        bottom = min(self.y + self.height, other.y + other.height)
        return Box(x, y, max(0, right - x), max(0, bottom - y))

    def grow(self, by: int) -> Box:
        """``by`` pixels wider on every side."""
        return Box(self.x - by, self.y - by, self.width + 2 * by, self.height + 2 * by)


def around(points: NDArray[np.floating], margin: float = 0.0) -> Box:
    """The smallest box round (P, 2) points, ``margin`` pixels wider on every side."""
    low = np.floor(points.min(axis=0) - margin).astype(int)
    high = np.ceil(points.max(axis=0) + margin).astype(int) + 1
    return Box(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1]))


@dataclass(frozen=True)
class Patch:
    """Some triangles of a mesh."""

    triangles: mesh.Index  #: (T, 3)
    layer: NDArray[np.int64]  #: (T,) 0 skin, 1 what closes the mouth, seen from both sides, 2 lips


class Painter:
    """Paints the triangles of one basis."""

    def __init__(self, basis: Basis) -> None:
        self.basis = basis
        triangles, reach = basis.triangles, basis.reach[basis.triangles]
        layer = np.where(basis.in_mouth, 1, np.where(basis.on_lips, 2, 0))
        #: triangles that can ever move, the same coarsely, those near the lips, those that close the mouth
        self.moving, self.near_mouth, self.mouth = (
            Patch(triangles[chosen], layer[chosen])
            for chosen in (reach.max(axis=1) > 0, reach.min(axis=1) > 0.3, basis.in_mouth)
        )
        self.sparse = Patch(basis.sparse, np.zeros(len(basis.sparse), np.int64))

    def paint(self, target: Array, patch: Patch, box: Box, step: int = 1) -> Painting:
        """Which triangle of the patch lies at each pixel of the box.

        ``target`` is (V, 3) pixels. With ``step`` 2 one value stands for 2×2 pixels, read at their middle.
        """
        ids = np.full((-(-box.height // step), -(-box.width // step)), -1, np.int32)
        offset = np.array([box.x, box.y], np.float32) + np.float32((step - 1) / 2)
        corners = ((target[:, :2] - offset) / np.float32(step))[patch.triangles]
        one, other = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        seen = (one[:, 0] * other[:, 1] < one[:, 1] * other[:, 0]) | (patch.layer == 1)
        seen &= (corners.max(axis=1) >= 0).all(axis=1) & (corners.min(axis=1) < ids.shape[::-1]).all(axis=1)
        order = np.flatnonzero(seen)
        depth = target[:, 2][patch.triangles[order]].sum(axis=1)
        order = order[np.lexsort((-depth, patch.layer[order]))]
        fixed = np.rint(corners[order] * np.float32(1 << SHIFT)).astype(np.int32)
        fill, line = cv2.fillConvexPoly, cv2.LINE_8
        for corner, number in zip(fixed, order.tolist(), strict=True):
            fill(ids, corner, number, line, SHIFT)
        return Painting(box, step, ids, patch.triangles, target)


@dataclass(frozen=True)
class Painting:
    """Triangles painted over a box."""

    box: Box
    step: int
    ids: Ids  #: (H, W) row of ``triangles``, −1 where there is none
    triangles: mesh.Index  #: (T, 3)
    target: Array  #: (V, 2 or 3) pixels

    def sample(self, source: Array) -> Field:
        """Where each pixel comes from, minus where it is; 0 where nothing is painted.

        ``source`` is (V, 2 or 3) pixels of a picture of its own.
        """
        table = self._affine(source)
        height, width = self.ids.shape
        middle = np.float32((self.step - 1) / 2)
        x = (np.arange(width, dtype=np.float32) * self.step + middle)[None, :]
        y = (np.arange(height, dtype=np.float32) * self.step + middle)[:, None]
        planes = []
        for by_x, by_y, start in (table[:3], table[3:]):
            plane = by_x.take(self.ids, mode="wrap")  # −1 reads the last entry, which is zero
            plane *= x
            slope = by_y.take(self.ids, mode="wrap")
            slope *= y
            plane += slope
            plane += start.take(self.ids, mode="wrap")
            planes.append(plane)
        return planes[0], planes[1]

    def _affine(self, source: Array) -> Array:
        """(6, T + 1): dx = three rows · (x, y, 1), dy = three rows, x and y counted from the box; last column zero."""
        origin = np.array([self.box.x, self.box.y], np.float64)
        to = (self.target[:, :2] - origin)[self.triangles]
        delta = (source[:, :2].astype(np.float64) - self.target[:, :2])[self.triangles]
        one, other = to[:, 1] - to[:, 0], to[:, 2] - to[:, 0]
        area = one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]
        longest = np.maximum(np.abs(one).max(axis=1), np.abs(other).max(axis=1))
        flat = np.abs(area) < FLAT_PX * np.maximum(longest, 1)
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
