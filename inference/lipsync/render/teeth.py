"""Teeth as a picture: one row of crowns unrolled along the dental arch, and where that arch lies in a head.

Sizes are those of average adults (Ash and Nelson, Wheeler's Dental Anatomy: crown widths of the upper row 8.5,
6.5, 7.5, 7, 7 and 10 mm from the middle outwards, of the lower row 5, 5.5, 7, 7 and 7 mm) over an outer eye
distance of 90 mm. No tooth is like its neighbour: incisors end flat, canines in a point, each row goes darker
along the arch as it turns away from the light, and the two sides differ a little.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Plane = NDArray[np.float64]

UNIT_MM = 90.0  #: millimetres per eye distance
CELL = 0.0016  #: eye distances per texel of the finest texture
CURVE = 1.9  #: depth of the arch behind its middle = CURVE · x²
REACH = 0.36  #: eye distances to either side of the middle for which teeth are placed
SOFT = 0.0030  #: eye distances over which an outline fades
DEEP_GAP = 0.34  #: light between two crowns, of that on a crown
GAP_FROM = 0.022  #: eye distances above the middle crowns' edge below which the dark between crowns ends
EDGE_ROOM = 0.018  #: eye distances of texture below the edge
NECK_BGR, TIP_BGR = (0.86, 0.95, 1.0), (1.0, 0.97, 0.94)  #: light at the neck, which is yellower, and at the edge


@dataclass(frozen=True)
class Tooth:
    """One crown, from the gums to its edge; eye distances."""

    width: float
    length: float
    above: float  #: how much shorter it ends than the middle ones
    point: float  #: 0 for a flat edge … 1 for a cusp
    light: float  #: of that on the middle ones


def _mm(width: float, length: float, above: float, point: float, light: float) -> Tooth:
    return Tooth(width / UNIT_MM, length, above, point, light)


UPPER = (
    _mm(8.6, 0.118, 0.000, 0.0, 1.00),
    _mm(6.7, 0.106, 0.0045, 0.1, 0.93),
    _mm(7.7, 0.116, 0.004, 0.8, 0.82),
    _mm(7.0, 0.098, 0.012, 0.6, 0.66),
    _mm(6.8, 0.090, 0.019, 0.5, 0.50),
    _mm(9.0, 0.085, 0.026, 0.3, 0.36),
)
LOWER = (
    _mm(5.2, 0.098, 0.000, 0.0, 1.00),
    _mm(5.8, 0.100, 0.001, 0.0, 0.96),
    _mm(6.8, 0.108, -0.003, 0.7, 0.84),
    _mm(7.0, 0.095, 0.006, 0.5, 0.66),
    _mm(7.0, 0.090, 0.011, 0.4, 0.50),
    _mm(9.0, 0.085, 0.014, 0.3, 0.36),
)
#: By how much one side differs from the other, tooth by tooth: length (eye distances), lean, light.
UNEVEN = ((0.0010, 0.00, 0.00), (-0.0022, 0.05, -0.04), (0.0018, -0.04, 0.03), (-0.002, 0.0, -0.03))


@dataclass(frozen=True)
class Row:
    """One row of teeth. Texture row 0 is at the gums; the edge of the middle crowns is at ``edge``."""

    texture: Array  #: (H, W, 4) light in blue, green and red, 0..1.1; cover 0..1
    cell: float  #: eye distances per texel
    edge: float  #: texels from the first row's middle to the biting edge
    columns: Plane  #: (A,) the texel column at each point of :func:`arch`

    def read(self, column: Array, up: Array) -> Array:
        """(h, w, 4) the texture at columns and texels towards the gums from the edge; nothing beyond its sides."""
        # Above the texture's first row its crowns go on.
        down = np.maximum(np.float32(self.edge) - up, 0)
        return np.asarray(
            cv2.remap(self.texture, column, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT), np.float32
        )


@lru_cache(maxsize=1)
def arch() -> Plane:
    """(A, 3) head coordinates along a row of teeth, from its middle."""
    x = np.linspace(-REACH, REACH, 97)
    return np.stack([x, np.zeros_like(x), CURVE * x * x], axis=1)


@lru_cache(maxsize=64)
def row(upper: bool, step: int) -> Row:
    """A row with texels of CELL · 2^(step / 4): the finest when step is 0."""
    texture = _drawn(UPPER if upper else LOWER)
    height, width = texture.shape[:2]
    tall = max(tooth.length for tooth in (UPPER if upper else LOWER))
    size = (max(8, round(width / 2 ** (step / 4))), max(4, round(height / 2 ** (step / 4))))
    if step > 0:
        texture = np.asarray(cv2.resize(texture, size, interpolation=cv2.INTER_AREA), np.float32)
    down, across = texture.shape[0] / height, texture.shape[1] / width
    # One texel size for both directions: they differ by less than a per cent, which nobody sees.
    x = arch()[:, 0]
    slope = 2 * CURVE * x
    along = (slope * np.sqrt(1 + slope**2) + np.arcsinh(slope)) / (4 * CURVE)  # length of the parabola CURVE·x²
    return Row(texture, CELL / across, tall / CELL * down - 0.5, along / CELL * across + texture.shape[1] / 2 - 0.5)


def step_for(pixel: float) -> int:
    """The step at which one texel is about as large as a pixel of ``pixel`` eye distances."""
    return max(0, round(4 * float(np.log2(max(pixel, CELL) / CELL))))


@lru_cache(maxsize=2)
def _drawn(teeth: tuple[Tooth, ...]) -> Array:
    span, tall = sum(tooth.width for tooth in teeth), max(tooth.length for tooth in teeth)
    columns, rows = 2 * round(span / CELL), round((tall + EDGE_ROOM) / CELL)
    s = (np.arange(columns) + 0.5 - columns / 2)[None, :] * CELL
    y = (np.arange(rows) + 0.5 - tall / CELL)[:, None] * CELL  # 0 at the biting edge, negative towards the gums
    along = np.abs(s)
    between = np.interp(along, np.cumsum([0, *(t.width for t in teeth)]), [1.0, *(t.light for t in teeth)])
    light = np.repeat((DEEP_GAP * between * np.ones_like(y))[..., None], 3, axis=2)
    # The dark between the crowns ends above their edges; how far these bow up, it does too.
    rise = np.interp(along, np.cumsum([0, *(t.width for t in teeth)]), [0.0, *(t.above for t in teeth)])
    cover = np.clip(0.5 - (y + rise + GAP_FROM) / (2 * SOFT), 0, 1)
    at = 0.0
    for number, tooth in enumerate(teeth):
        longer, lean, lighter = UNEVEN[min(number, len(UNEVEN) - 1)]
        for side in (-1, 1):
            odd = 0.5 * side
            centre, half = side * (at + tooth.width / 2), tooth.width / 2
            down = y + tooth.above - odd * longer
            u = (s - centre) / half * side  # −1 towards the middle, 1 towards the cheek
            u = u + lean * odd * side * (1 + down / tooth.length)
            inside = _crown(u, down, half, tooth)
            shade = _shade(u, 1 + down / tooth.length, side) * (tooth.light * (1 + odd * lighter))
            light += (shade - light) * inside[..., None]
            cover = np.maximum(cover, inside)
        at += tooth.width
    return np.concatenate([light, cover[..., None]], axis=2).astype(np.float32)


def _crown(u: NDArray[np.floating], y: NDArray[np.floating], half: float, tooth: Tooth) -> Plane:
    """Cover of one crown whose edge is at y 0: a box, narrower at the gums, its lower corners rounded."""
    up = np.clip(-y / tooth.length, 0, 1)
    # The corner towards the cheek is rounder, and a cusp is all corner.
    radius = half * (np.where(u > 0, 0.42, 0.24) + 0.30 * tooth.point)
    wide = half * (0.985 - 0.10 * np.clip((up - 0.25) / 0.75, 0, 1) ** 1.5)
    bow = half * (0.05 + 0.34 * tooth.point) * u**2
    dx = np.maximum(np.abs(u) * half - (wide - radius), 0)
    dy = np.maximum(y + radius + np.where(y > -0.8 * half, bow, 0), 0)
    return np.asarray(np.clip(0.5 - (np.hypot(dx, dy) - radius) / SOFT, 0, 1), np.float64)


def _shade(u: NDArray[np.floating], v: NDArray[np.floating], side: int) -> Plane:
    """(…, 3) light on a crown: u −1..1 towards the cheek, v 0 at the gums, 1 at the edge."""
    across = 1 - 0.13 * np.clip(u + 0.2, 0, 2) ** 2 - 0.30 * np.clip(np.abs(u) - 0.55, 0, 1) ** 1.5
    down = 0.84 + 0.20 * np.sin(np.pi * np.clip(v * 0.80 + 0.12, 0, 1)) - 0.10 * np.clip((v - 0.90) / 0.10, 0, 1)
    gleam = 0.06 * np.exp(-((u * side + 0.10) ** 2) / 0.10 - ((v - 0.60) ** 2) / 0.06)
    neck, tip = np.clip(1 - v / 0.55, 0, 1)[..., None], np.clip((v - 0.80) / 0.20, 0, 1)[..., None]
    tint = (1 + neck * (np.array(NECK_BGR) - 1)) * (1 + tip * (np.array(TIP_BGR) - 1))
    return np.asarray((across * down + gleam)[..., None] * tint, np.float64)
