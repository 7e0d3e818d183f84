"""A small picture to draw a mouth's inside on, which knows where its pixels lie along the axes of the head."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import pose
from inference.lipsync.render.warp import Box

Array = NDArray[np.float32]
Plane = NDArray[np.float64]


class Canvas:
    """The pixels of a box, and where they lie along the axes of an upright head."""

    def __init__(self, box: Box, head: pose.Pose) -> None:
        self.box, self.unit = box, float(head.scale[0])
        turn = head.rotation[0].astype(np.float64)
        across = turn[:2, 0] / max(float(np.hypot(turn[0, 0], turn[1, 0])), 1e-6)
        self.down = np.array([-across[1], across[0]])  #: (2,) direction in the picture
        self._axes = np.stack([across, self.down])
        #: (3, 2) head coordinates → pixels across and along
        self.turn = (self._axes @ turn[:2]).T * self.unit
        self._origin = self._axes @ head.translation[0, :2].astype(np.float64)

    def project(self, points: Plane) -> Plane:
        """(…, 3) head coordinates → (…, 2) pixels across and along, counted from the picture's corner."""
        return np.asarray(points @ self.turn + self._origin, np.float64)

    def lay(self, pixels: NDArray[np.floating]) -> Plane:
        """(…, 2) pixels of the picture → across and along."""
        return np.asarray(pixels @ self._axes.T, np.float64)

    def plane(self, by_across: float, by_along: float, start: float, rows: slice = slice(None)) -> Array:
        """(H, W) by_across · across + by_along · along + start, for some rows."""
        by_x, by_y = np.array([by_across, by_along]) @ self._axes
        x = (self.box.x + np.arange(self.box.width)) * by_x + start
        y = (self.box.y + np.arange(self.box.height)) * by_y
        return np.asarray(np.add.outer(y[rows].astype(np.float32), x.astype(np.float32)), np.float32)

    def rows(self, first: float = -np.inf, last: float = np.inf) -> slice:
        """The canvas rows that hold pixels between two places along the head."""
        by_x, by_y = self._axes[1]
        along = by_y * (self.box.y + np.arange(self.box.height)) + by_x * self.box.x
        other = along + by_x * (self.box.width - 1)
        hit = np.flatnonzero((np.maximum(along, other) > first) & (np.minimum(along, other) < last))
        return slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, 0)

    def fill(self, contour: NDArray[np.floating]) -> NDArray[np.uint8]:
        """(H, W) 255 inside a closed contour (P, 2) of picture pixels."""
        mask = np.zeros((self.box.height, self.box.width), np.uint8)
        inside = (contour - np.array([self.box.x, self.box.y])) * 16
        cv2.fillPoly(mask, [np.rint(inside).astype(np.int32)], 255, cv2.LINE_AA, 4)
        return mask

    def blur(self, mask: NDArray[np.uint8], sigma: float) -> Array:
        """(H, W) 0..1: a Gaussian of ``sigma`` eye distances; wide ones at a lower resolution."""
        pixels = max(sigma * self.unit, 0.3)
        if pixels < 5:
            return _share_of_white(cv2.GaussianBlur(mask, (0, 0), pixels))
        shrink = int(pixels // 2.5)
        size = (mask.shape[1], mask.shape[0])
        small = (max(1, size[0] // shrink), max(1, size[1] // shrink))
        tiny = cv2.resize(mask, small, interpolation=cv2.INTER_AREA).astype(np.float32)
        soft = cv2.GaussianBlur(tiny, (0, 0), pixels * small[0] / size[0], borderType=cv2.BORDER_CONSTANT)
        return _share_of_white(cv2.resize(soft, size, interpolation=cv2.INTER_LINEAR))


def _share_of_white(grey: cv2.typing.MatLike) -> Array:
    return np.asarray(grey * np.float32(1 / 255), np.float32)


def softened(mask: NDArray[np.bool_]) -> Array:
    """1 within a mask, 0 outside it, and smooth in its outermost pixels."""
    core = cv2.erode(mask.astype(np.float32), np.ones((3, 3), np.uint8))
    return np.asarray(cv2.GaussianBlur(core, (0, 0), 0.8) * mask, np.float32)


def smoothstep(value: NDArray[np.floating], low: float, high: float) -> Array:
    """0 up to ``low``, 1 from ``high``, without a kink."""
    t = np.clip((value - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def mirrored(grain: Array, height: int, width: int) -> Array:
    """(height, width) of a grain that goes on as its mirror image."""
    if grain.shape[0] >= height and grain.shape[1] >= width:
        return grain[:height, :width]
    down, right = max(0, height - grain.shape[0]), max(0, width - grain.shape[1])
    return np.asarray(cv2.copyMakeBorder(grain, 0, down, 0, right, cv2.BORDER_REFLECT_101)[:height, :width], np.float32)
