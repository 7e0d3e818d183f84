"""What lies between lips, laid between those of another face or another moment: teeth keep their size."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.lipsync.render import rows
from inference.lipsync.render.canvas import softened
from inference.lipsync.render.warp import Box, Field, Painter, Patch, around, maps

Array = NDArray[np.float32]

ROOM = 1.5, 4.0  #: pixels between the lips from which their inside is laid row by row, and it alone
BLUR = 0.006  #: eye distances over which what is between the lips fades into them


@dataclass(frozen=True)
class Goal:
    """A face as it shall be."""

    pixels: Array  #: (550, 3)
    shape: Array  #: (550, 3) the same, head coordinates
    contour: Array  #: (P, 2) the inner edge of its lips, pixels
    unit: float  #: eye distance in pixels


@dataclass(frozen=True)
class Own:
    """A mouth whose inside is taken."""

    points: Array  #: (550, 3) pixels of its picture
    gap: rows.Gap
    teeth: Array  #: (ROWS,) :func:`rows.teeth`


@dataclass(frozen=True)
class Room:
    """What lies between the lips of a goal."""

    box: Box
    cover: Array  #: (H, W) 0..1
    column: Array  #: (H, W) which pair of lip points is above and below, 0..10
    height: Array  #: (H, W) 0 at the upper lip … 1 at the lower one


class Between:
    """Finds the pixels between lips, and where they come from."""

    def __init__(self, painter: Painter) -> None:
        self._painter = painter
        strips, self._ruler = _ruler()
        self._strips = Patch(strips, np.ones(len(strips), np.int64))

    def room(self, goal: Goal, within: Box) -> Room | None:
        """The part of a box between the lips; None when they meet."""
        box = around(goal.contour, 3 * BLUR * goal.unit + 2).meet(within)
        if box.empty:
            return None
        mask = np.zeros((box.height, box.width), np.uint8)
        ring = np.round((goal.contour - [box.x, box.y]) * 16).astype(np.int32)
        cv2.fillPoly(mask, [ring], 255, cv2.LINE_AA, 4)
        if not mask.any():
            return None
        painting = self._painter.paint(goal.pixels, self._strips, box)
        column, height = maps(painting.sample(self._ruler), box)
        cover = cv2.GaussianBlur(mask, (0, 0), max(BLUR * goal.unit, 0.4)).astype(np.float32)
        cover *= softened(painting.ids >= 0) / np.float32(255)
        # Where the lips nearly meet there is no room for rows, and their own pixels do.
        upper, lower = goal.pixels[mesh.LIP_INNER_UPPER, :2], goal.pixels[mesh.LIP_INNER_LOWER, :2]
        room = (np.linalg.norm(lower - upper, axis=1) - ROOM[0]) / (ROOM[1] - ROOM[0])
        cover *= np.interp(column, np.arange(len(room)), np.clip(room, 0, 1)).astype(np.float32)
        return Room(box, cover, column, height)

    def places(self, own: Own, goal: Goal, room: Room) -> Field:
        """Where each pixel of a room comes from in a mouth's picture."""
        shown = rows.Gap.of(goal.shape)
        shall, place = rows.places(own.teeth, own.gap, shown)
        down = np.interp(room.height, shall, place).astype(np.float32)
        column = rows.across(room.column, own.gap, shown)
        pairs = np.arange(len(mesh.LIP_INNER_UPPER))
        planes = []
        for axis in (0, 1):
            upper, lower = (
                np.interp(column, pairs, own.points[ring, axis]).astype(np.float32)
                for ring in (mesh.LIP_INNER_UPPER, mesh.LIP_INNER_LOWER)
            )
            planes.append(upper + down * (lower - upper))
        return planes[0], planes[1]


def _ruler() -> tuple[mesh.Index, Array]:
    """Triangles (T, 3) from each pair of lip points to the next, and their (550, 2) pair and height for measuring."""
    upper, lower = mesh.LIP_INNER_UPPER, mesh.LIP_INNER_LOWER
    triangles = []
    for k in range(len(upper) - 1):
        halves = (upper[k], upper[k + 1], lower[k]), (upper[k + 1], lower[k + 1], lower[k])
        triangles += [corners for corners in halves if len(set(corners)) == 3]
    ruler = np.zeros((mesh.POINTS + 2 * len(mesh.OVAL), 2), np.float32)
    ruler[lower] = np.stack([np.arange(len(lower)), np.ones(len(lower))], axis=1)
    ruler[upper] = np.stack([np.arange(len(upper)), np.zeros(len(upper))], axis=1)
    ruler[upper[[0, -1]], 1] = 0.5  # both lips end in the corners
    return np.array(triangles, np.int32), ruler
