"""One still head turned a little: a single remap per frame, with depth.

Every pixel of the picture gets a depth (the mesh inside the face, the plane of the ears beyond it) and a weight
(1 on the head, fading to 0 over the hair and background, down the neck and towards the edges of the
picture). A pose then moves a coarse grid of them; the inverse of that motion, found by fixed-point steps on the
grid and enlarged to full size, is what ``cv2.remap`` wants. Nothing is cut out, so nothing has to be
invented behind the head; that holds for turns of about 4°.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh, pose

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]  #: (H, W, 3) BGR

CELL = 1 / 18  #: eye distances between grid points, rounded to whole pixels …
CELL_LIMITS = (2, 16)  #: … within these
REACH = (2.7, 2.7, 4.3)  #: eye distances beside, above and below the head's origin that can move at all
STEPS = 3  #: fixed-point steps of the inverse; the error is then under .01 px
PIVOT = (0.0, 0.72, 0.30)  #: head coordinates of the joint the head turns on: low and far back

# In eye distances:
FULL, FADE = 0.35, 0.75  #: outside the oval the head moves fully so far, then not at all after so much more
CROWN = 0.55  #: above the brows distances count less, because there the head goes on under its hair
NECK = 1.0  #: below the jaw the motion fades at once, over this length
EDGE = 0.30  #: strip along the edges of the picture over which everything comes to rest
EAR_BLEND = 0.35  #: outside the oval the mesh's depth gives way to that of the ears over this
CHEST = (0.15, 0.75, 1.9, 1.0)  #: below the chin: breath sets in here, over this; dies out here, over this
SHOULDERS = (1.3, 1.0)  #: beside the chin: the same sideways
BROW_RAISE = 0.035  #: how far the brows go up at most
BROW_FADE = 0.30  #: of that motion over the forehead


@dataclass(frozen=True)
class Grid:
    """Points in the middle of square cells, where ``cv2.resize`` expects them."""

    left: int  #: pixels
    top: int
    columns: int
    rows: int
    cell: int  #: pixels

    def points(self) -> tuple[Array, Array]:
        """(rows, columns) x and y in pixels."""
        x = self.left + (np.arange(self.columns) + 0.5) * self.cell - 0.5
        y = self.top + (np.arange(self.rows) + 0.5) * self.cell - 0.5
        across, down = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
        return across, down

    def read(self, values: Array, x: Array, y: Array) -> Array:
        """The grid's ``values`` between its points, at pixels ``x`` and ``y``."""
        cell, half = np.float32(self.cell), np.float32(0.5)
        at_x = np.ascontiguousarray((x - np.float32(self.left) + half) / cell - half)
        at_y = np.ascontiguousarray((y - np.float32(self.top) + half) / cell - half)
        found = cv2.remap(values, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(found, np.float32)


@dataclass(frozen=True)
class Turned:
    """A head in a new pose."""

    moved: Array  #: (rows, columns, 2) pixels that each point of the grid goes
    pose: pose.Pose  #: the new pose itself
    grid: Grid

    def forward(self, points: Array) -> Array:
        """(P, 3) points of the still picture in pixels → where they are now; depths stay."""
        result: Array = points.copy()
        result[:, :2] += self.grid.read(self.moved, points[:, 0], points[:, 1]).reshape(-1, 2)
        return result


class PoseWarp:
    """The head of one picture of ``size`` (width, height): ``points`` (478, 3) pixels and its one pose."""

    def __init__(self, points: mesh.Points, at: pose.Pose, size: tuple[int, int]) -> None:
        self.width, self.height = size
        self._scale = float(at.scale[0])
        self._turn = at.rotation[0].astype(np.float64)
        self._place = at.translation[0].astype(np.float64)
        # How far a still face looks up or down is the landmarker's guess, so it has no say in the axes.
        yaw, _, roll = (float(angle) for angle in at.angles[0])
        self._axes = pose.rotation_of(0, 0, roll).astype(np.float64)
        self._joint = self._scale * (pose.rotation_of(yaw, 0, roll) @ np.array(PIVOT)) + self._place
        self.grid = self._laid()
        rows, columns = self.grid.rows, self.grid.columns
        self._x, self._y = self.grid.points()
        flat = self._upright(points)
        here = self._upright(np.stack([self._x, self._y], axis=2).reshape(-1, 2))
        outside = _distance(here, flat[mesh.OVAL]).reshape(rows, columns)
        edge = np.minimum.reduce([self._x, self._y, self.width - 1 - self._x, self.height - 1 - self._y])
        rest = _smoothstep(edge / (EDGE * self._scale))
        self.weight = (_head_weight(here, flat, outside) * rest).astype(np.float32)  #: (rows, columns) of the grid
        self._chest = (_chest_weight(here, flat).reshape(rows, columns) * rest).astype(np.float32)
        self._brow = (_brow_weight(here, flat).reshape(rows, columns) * rest).astype(np.float32)
        self._arm = self._arms(points, outside)
        self.share = np.maximum(self.weight, self._chest)  #: (rows, columns) of the head's motion, at most
        self.box = self._extent(self.share > 1e-3)  #: (left, top, right, bottom) pixels that can move
        self._base = (
            np.arange(self.box[0], self.box[2], dtype=np.float32)[None, :],
            np.arange(self.box[1], self.box[3], dtype=np.float32)[:, None],
        )

    def turned(self, angles: Array, breath: float = 0.0, brow: float = 0.0) -> Turned:
        """The head in another pose.

        ``angles`` are degrees of yaw, pitch, roll away from the picture's pose, ``breath`` eye distances the
        chest is up, ``brow`` 0..1.
        """
        turn = self._axes @ pose.rotation_of(*(float(angle) for angle in angles)) @ self._axes.T
        moved = self._arm @ (turn - np.eye(3))[:2].T.astype(np.float32)
        moved *= self.weight[..., None]
        lift = np.float32(breath * self._scale) * np.maximum(self._chest, 0.6 * self.weight)
        lift += np.float32(brow * BROW_RAISE * self._scale) * self._brow
        moved[..., 1] -= lift
        joint = self._joint + self._turn @ np.array([0, -0.6 * breath * self._scale, 0])
        place = joint + turn @ (self._place - self._joint)
        scale, rotation = np.array([self._scale], np.float32), (turn @ self._turn)[None].astype(np.float32)
        return Turned(moved, pose.Pose(scale, rotation, place[None].astype(np.float32)), self.grid)

    def maps(self, turned: Turned) -> tuple[Array, Array]:
        """(h, w) float32 x and y of the source, for the pixels of ``box``. Arrays of their own."""
        source = -turned.moved
        for _ in range(STEPS):
            source = -self.grid.read(turned.moved, self._x + source[..., 0], self._y + source[..., 1])
        size = (self.grid.columns * self.grid.cell, self.grid.rows * self.grid.cell)
        full = cv2.resize(source, size, interpolation=cv2.INTER_LINEAR)
        left, top, right, bottom = self.box
        field = full[top - self.grid.top : bottom - self.grid.top, left - self.grid.left : right - self.grid.left]
        return field[..., 0] + self._base[0], field[..., 1] + self._base[1]

    def spread(self, values: Array) -> Array:
        """(height, width) of the picture: (rows, columns) values of the grid enlarged, 0 outside it."""
        grid, result = self.grid, np.zeros((self.height, self.width), np.float32)
        full = cv2.resize(values, (grid.columns * grid.cell, grid.rows * grid.cell), interpolation=cv2.INTER_LINEAR)
        part = result[grid.top : grid.top + full.shape[0], grid.left : grid.left + full.shape[1]]
        part[:] = full[: part.shape[0], : part.shape[1]]
        return result

    def _laid(self) -> Grid:
        """A grid over what can move."""
        beside, above, below = (reach * self._scale for reach in REACH)
        cell = int(np.clip(round(self._scale * CELL), *CELL_LIMITS))
        x, y = float(self._place[0]), float(self._place[1])
        left, top = max(0, int(x - beside)), max(0, int(y - above))
        right, bottom = min(self.width, int(x + beside)), min(self.height, int(y + below))
        return Grid(left, top, max(1, -(-(right - left) // cell)), max(1, -(-(bottom - top) // cell)), cell)

    def _extent(self, moving: NDArray[np.bool_]) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) pixels of all cells that move and their neighbours."""
        rows, columns = np.flatnonzero(moving.any(axis=1)), np.flatnonzero(moving.any(axis=0))
        if not len(rows):
            return self.grid.left, self.grid.top, self.grid.left, self.grid.top
        cell, grid = self.grid.cell, self.grid
        left, top = grid.left + max(0, columns[0] - 1) * cell, grid.top + max(0, rows[0] - 1) * cell
        right, bottom = grid.left + int(columns[-1] + 2) * cell, grid.top + int(rows[-1] + 2) * cell
        right, bottom = (
            min(self.width, right, grid.left + grid.columns * cell),
            min(self.height, bottom, grid.top + grid.rows * cell),
        )
        return int(left), int(top), int(right), int(bottom)

    def _upright(self, pixels: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, ≥2) pixels → (N, 2) eye distances round the head's origin, roll taken out."""
        across = self._turn[:2, 0] / np.linalg.norm(self._turn[:2, 0])
        axes = np.stack([across, np.array([-across[1], across[0]])], axis=1)
        return np.asarray((pixels[:, :2] - self._place[:2]) @ axes / self._scale)

    def _arms(self, points: mesh.Points, outside: NDArray[np.float64]) -> Array:
        """(rows, columns, 3) pixels from the joint to the point of the head at each grid point."""
        depth = _depth_between(points, self._x, self._y, self.grid.cell)
        ears = float(points[[127, 234, 356, 454], 2].mean())
        blend = _smoothstep(outside / EAR_BLEND)
        level = (depth * (1 - blend) + ears * blend).astype(np.float32)
        sigma = 0.05 * self._scale / self.grid.cell
        soft = cv2.GaussianBlur(level, (0, 0), max(0.6, sigma), borderType=cv2.BORDER_REPLICATE)
        joint = self._joint
        return np.stack([self._x - joint[0], self._y - joint[1], soft - joint[2]], axis=2).astype(np.float32)


def _depth_between(points: mesh.Points, x: Array, y: Array, cell: int) -> Array:
    """(rows, columns) depth of the mesh in pixels, outside the face that of its nearest edge.

    By inverse distance over the nearest vertices: smooth, defined everywhere, and cheap on a grid.
    """
    depth = np.empty(x.shape, np.float32)
    flat, z = points[: mesh.VERTICES, :2], points[: mesh.VERTICES, 2]
    for row in range(x.shape[0]):
        square = ((x[row][:, None] - flat[None, :, 0]) ** 2 + (y[row][:, None] - flat[None, :, 1]) ** 2) / cell**2
        near = np.argpartition(square, 6, axis=1)[:, :6]
        share = 1 / (np.take_along_axis(square, near, axis=1) + 0.3)
        depth[row] = (share * z[near]).sum(axis=1) / share.sum(axis=1)
    return depth


def _head_weight(here: NDArray[np.float64], flat: NDArray[np.float64], outside: NDArray[np.float64]) -> Array:
    """(rows, columns) 1 on the head, 0 far from it."""
    brow = float(flat[np.concatenate([mesh.BROW_RIGHT, mesh.BROW_LEFT]), 1].min())
    high = here.copy()
    high[:, 1] = np.where(high[:, 1] < brow, brow + CROWN * (high[:, 1] - brow), high[:, 1])
    ring = flat[mesh.OVAL].copy()
    ring[:, 1] = np.where(ring[:, 1] < brow, brow + CROWN * (ring[:, 1] - brow), ring[:, 1])
    distance = _distance(high, ring).reshape(outside.shape)
    mouth, chin = float(flat[mesh.LIP_INNER_TOP, 1]), float(flat[mesh.CHIN, 1])
    below = _smoothstep((here[:, 1].reshape(outside.shape) - mouth) / max(chin - mouth, 1e-3))
    start = FULL * (1 - below)
    length = FADE + (NECK - FADE) * below
    return np.asarray(1 - _smoothstep((distance - start) / length), np.float32)


def _chest_weight(here: NDArray[np.float64], flat: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) the part of the body that breath lifts."""
    down = here[:, 1] - float(flat[mesh.CHIN, 1])
    side = np.abs(here[:, 0] - float(flat[mesh.CHIN, 0]))
    low, rise, high, fall = CHEST
    upright = _smoothstep((down - low) / rise) * (1 - _smoothstep((down - high) / fall))
    return upright * (1 - _smoothstep((side - SHOULDERS[0]) / SHOULDERS[1]))


def _brow_weight(here: NDArray[np.float64], flat: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) 1 along the brows, fading up the forehead, down to the lids and beside the temples."""
    brows = flat[np.concatenate([mesh.BROW_RIGHT, mesh.BROW_LEFT])]
    lids = flat[np.concatenate([mesh.EYE_RIGHT, mesh.EYE_LEFT])]
    brows = brows[np.argsort(brows[:, 0])]
    line = np.interp(here[:, 0], brows[:, 0], _running_mean(brows[:, 1]))
    lid = float(lids[:, 1].min())
    below = 1 - _smoothstep((here[:, 1] - line) / np.maximum(lid - line, 0.05))
    above = 1 - _smoothstep((line - 0.05 - here[:, 1]) / BROW_FADE)
    low, high = brows[0, 0], brows[-1, 0]
    aside = np.maximum(np.maximum(low - here[:, 0], here[:, 0] - high), 0)
    return below * above * (1 - _smoothstep(aside / 0.12))


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.convolve(np.pad(values, 2, mode="edge"), np.full(5, 0.2), mode="valid")


def _distance(here: NDArray[np.float64], ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N,) from points to a closed polygon, 0 inside."""
    result = np.full(len(here), np.inf)
    inside = np.zeros(len(here), bool)
    for a, b in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        edge = b - a
        share = np.clip(((here - a) @ edge) / max(float(edge @ edge), 1e-12), 0, 1)
        result = np.minimum(result, np.linalg.norm(here - a - share[:, None] * edge, axis=1))
        crosses = (a[1] > here[:, 1]) != (b[1] > here[:, 1])
        slope = edge[0] / edge[1] if edge[1] else 0.0
        inside ^= crosses & (here[:, 0] < a[0] + slope * (here[:, 1] - a[1]))
    result[inside] = 0
    return result


def _smoothstep(value: NDArray[np.floating]) -> NDArray[np.float64]:
    t = np.clip(np.asarray(value, np.float64), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float64)
