"""The square of a face that a persona looks at and paints: upright, of one size, laid by the head's pose."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.face.pose import Pose
from inference.lipsync.render.mouths import HULL
from inference.lipsync.render.warp import Box, around

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

SIDE = 128  #: pixels
MARGIN = 0.10  #: eye distances of skin round what is painted
JAW = 0.12  #: eye distances by which the skin under the lips may lie lower than in the mean shape
FEATHER = 0.09  #: eye distances over which the painting fades
SHARP = 0.45  #: sigma of the blur before a picture is shrunk, per pixel of it that becomes one


@dataclass(frozen=True)
class Square:
    """Where the square lies on one person's head."""

    skin: Array  #: (P, 3) the points of ``mouths.HULL`` of the mean shape, head coordinates

    @classmethod
    def of(cls, mean: mesh.Points) -> Square:
        """For the mean shape (478, 3) of a person, head coordinates."""
        return cls(np.asarray(mean[list(HULL)], np.float32))

    @cached_property
    def _place(self) -> tuple[float, float, float]:
        """The middle, x and y, and half of the side, eye distances."""
        low, high = self.skin[:, :2].min(axis=0), self.skin[:, :2].max(axis=0)
        return 0.0, float(low[1] + high[1]) / 2, float((high - low).max()) / 2 + MARGIN

    @cached_property
    def _flat(self) -> NDArray[np.float64]:
        """(3, P) the skin's pixels → the affine map from head coordinates that fits them best."""
        flat = np.column_stack([self.skin[:, :2].astype(np.float64), np.ones(len(self.skin))])
        return np.asarray(np.linalg.pinv(flat), np.float64)

    def at(self, head: Array) -> Array:
        """(…, 2) head coordinates → pixels of the square."""
        x, y, half = self._place
        return np.asarray(((head[..., :2] - [x, y]) / half + 1) * SIDE / 2 - 0.5, np.float32)

    def matrix(self, head: Pose) -> NDArray[np.float64]:
        """(2, 3) from pixels of the square to pixels of the picture, for one pose."""
        x, y, half = self._place
        step = 2 * half / SIDE
        inner = np.array([[step, 0, x - half + step / 2], [0, step, y - half + step / 2], [0, 0, 1]])
        pixels = head.to_pixels(self.skin)[0, :, :2].astype(np.float64)
        return np.asarray((self._flat @ pixels).T @ inner, np.float64)

    def cut(self, picture: Frame, head: Pose) -> Frame:
        """(SIDE, SIDE, 3) what a picture (H, W, 3) shows there."""
        matrix = self.matrix(head)
        box = _box(matrix).within(picture.shape[1], picture.shape[0])
        if box.empty:
            return np.zeros((SIDE, SIDE, 3), np.uint8)
        part, scale = box.cut(picture), float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
        if scale > 1:
            part = np.asarray(cv2.GaussianBlur(part, (0, 0), SHARP * scale), np.uint8)
        shifted = matrix - np.array([[0, 0, box.x], [0, 0, box.y]])
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        return np.asarray(
            cv2.warpAffine(part, shifted, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8
        )

    def lay(self, picture: Frame, change: Array, head: Pose) -> None:
        """Add a change (SIDE, SIDE, 3; grey levels) to a picture in place; it must be 0 at the edges."""
        matrix = self.matrix(head)
        box = _box(matrix).within(picture.shape[1], picture.shape[0])
        if box.empty:
            return
        shifted = matrix - np.array([[0, 0, box.x], [0, 0, box.y]])
        laid = cv2.warpAffine(change, shifted, (box.width, box.height), flags=cv2.INTER_LINEAR)
        part = box.cut(picture)
        part[:] = np.clip(np.rint(part + laid), 0, 255).astype(np.uint8)

    @cached_property
    def cover(self) -> Array:
        """(SIDE, SIDE) 1 where a persona paints, fading to 0 in the skin round the mouth and at the square's edges."""
        lower = np.array([0, JAW, 0], np.float32) * (self.skin[:, 1:2] > np.median(self.skin[:, 1]))
        low = self.skin + lower
        hull = cv2.convexHull(np.round(self.at(low) * 16).astype(np.int32))
        mask = np.zeros((SIDE, SIDE), np.float32)
        cv2.fillConvexPoly(mask, hull, 1.0, cv2.LINE_8, 4)
        reach = max(1, round(FEATHER / (2 * self._place[2]) * SIDE))
        mask[[0, -1]] = mask[:, [0, -1]] = 0
        inner = cv2.erode(mask, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8), borderValue=0)
        return np.asarray(cv2.GaussianBlur(inner, (0, 0), reach / 2.5), np.float32)

    def lips(self, mean: mesh.Points) -> Array:
        """(SIDE, SIDE) 1 on the lips of a mean shape (478, 3) and between them, fading round them."""
        hull = cv2.convexHull(np.round(self.at(mean[mesh.LIP_OUTER]) * 16).astype(np.int32))
        mask = np.zeros((SIDE, SIDE), np.float32)
        cv2.fillConvexPoly(mask, hull, 1.0, cv2.LINE_8, 4)
        return np.asarray(cv2.GaussianBlur(mask, (0, 0), SIDE / 32), np.float32)


def _box(matrix: NDArray[np.float64]) -> Box:
    """Round the square in the picture."""
    corners = np.array([[0, 0, 1], [SIDE - 1, 0, 1], [0, SIDE - 1, 1], [SIDE - 1, SIDE - 1, 1]])
    return around(corners @ matrix.T, 3)
