"""Teeth as a picture: one row of crowns unrolled along the dental arch, and where that arch lies in a head.

Sizes are those of average adults (Ash and Nelson, Wheeler's Dental Anatomy: crown widths of the upper row 8.5,
6.5, 7.5, 7, 7 and 10 mm from the middle outwards, of the lower row 5, 5.5, 7, 7 and 7 mm) over an outer eye
distance of 90 mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

UNIT_MM = 90.0  #: millimetres per eye distance
CELL = 0.0016  #: eye distances per texel
CURVE = 1.9  #: depth of the arch behind its middle = CURVE · x²
GAP = 0.52  #: light between two crowns, of that on a crown
SOFT = 0.0035  #: eye distances over which an outline fades

UPPER_MM, LOWER_MM = (8.6, 6.7, 7.7, 7.0, 6.8, 9.0), (5.2, 5.8, 6.8, 7.0, 7.0, 9.0)
UPPER_LENGTH, LOWER_LENGTH = (0.118, 0.104, 0.116, 0.098, 0.09, 0.085), (0.098, 0.1, 0.108, 0.095, 0.09, 0.085)
UPPER_STEP = (0.0, 0.005, 0.002, 0.007, 0.011, 0.014)  #: how much shorter the edge ends than the middle one's
LOWER_STEP = (0.0, 0.0, -0.004, 0.004, 0.008, 0.01)


@dataclass(frozen=True)
class Row:
    """One row of teeth. Texture row 0 is at the gums; the edge of the middle crowns is at ``edge``."""

    texture: Array  #: (H, W, 2) light 0..1.1 and cover 0..1
    edge: float  #: texels from the first row to the biting edge
    span: float  #: eye distances along the arch from the middle to the last texel

    def columns(self, reach: float, count: int = 129) -> tuple[Array, Array]:
        """For ``count`` even steps of x in ±reach (head coordinates): x itself and the texel column there."""
        x = np.linspace(-reach, reach, count, dtype=np.float64)
        # Length of the parabola CURVE·x² from its middle.
        slope = 2 * CURVE * x
        arc = (slope * np.sqrt(1 + slope**2) + np.arcsinh(slope)) / (4 * CURVE)
        return x.astype(np.float32), ((arc + self.span) / CELL).astype(np.float32)


@lru_cache(maxsize=1)
def upper() -> Row:
    return _row(UPPER_MM, UPPER_LENGTH, UPPER_STEP, round_by=0.30)


@lru_cache(maxsize=1)
def lower() -> Row:
    return _row(LOWER_MM, LOWER_LENGTH, LOWER_STEP, round_by=0.30)


def _row(widths_mm: tuple[float, ...], lengths: tuple[float, ...], steps: tuple[float, ...], round_by: float) -> Row:
    widths = [width / UNIT_MM for width in widths_mm]
    span, tall, below = sum(widths), max(lengths), 0.014
    columns = 2 * int(span / CELL) + 1
    rows = int((tall + below) / CELL)
    s = (np.arange(columns) - columns // 2)[None, :] * CELL
    y = (np.arange(rows) - tall / CELL)[:, None] * CELL  # 0 at the biting edge, negative towards the gums
    light = np.full((rows, columns), GAP)
    cover = np.where(y < -0.016, 1.0, 0.0) * np.ones_like(s)  # the shadow between the crowns, not below them
    cover = _fade(cover, y, -0.016)
    at = 0.0
    for width, length, step in zip(widths, lengths, steps, strict=True):
        for side in (-1, 1):
            centre, half = side * (at + width / 2), width / 2
            inside = _crown(s - centre, y + step, half, length, round_by)
            shade = _shade((s - centre) / half, 1 + (y + step) / length, side)
            light = light * (1 - inside) + shade * inside
            cover = np.maximum(cover, inside)
        at += width
    texture = np.stack([light, cover], axis=-1).astype(np.float32)
    return Row(texture, float(tall / CELL), columns // 2 * CELL)


def _fade(cover: NDArray[np.float64], y: NDArray[np.float64], end: float) -> NDArray[np.float64]:
    return np.clip((end - y) / (2 * SOFT) + 0.5, 0, 1) * np.ones_like(cover)


def _crown(
    s: NDArray[np.float64], y: NDArray[np.float64], half: float, length: float, round_by: float
) -> NDArray[np.float64]:
    """Cover of one crown whose edge is at y 0: a box, narrower at the gums, its lower corners rounded."""
    up = np.clip(-y / length, 0, 1)
    wide = half * (0.985 - 0.05 * np.clip((up - 0.35) / 0.65, 0, 1) ** 1.5)
    radius = round_by * half
    dx = np.maximum(np.abs(s) - (wide - radius), 0)
    dy = np.maximum(y + radius, 0)
    # Incisal edges bow a little: the middle of a crown reaches furthest.
    bow = 0.05 * half * (s / half) ** 2
    outside = np.hypot(dx, np.maximum(dy + np.where(dy > 0, bow, 0), 0)) - radius
    return np.clip(0.5 - outside / SOFT, 0, 1)


def _shade(u: NDArray[np.float64], v: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Light on a crown: u −1..1 across, v 0 at the gums, 1 at the edge."""
    across = 1 - 0.16 * np.abs(u) ** 3 - 0.03 * u * side
    down = 0.90 + 0.14 * np.sin(np.pi * np.clip(v * 0.85 + 0.05, 0, 1)) - 0.10 * np.clip((v - 0.86) / 0.14, 0, 1)
    gleam = 0.05 * np.exp(-((u + 0.15) ** 2) / 0.10 - ((v - 0.55) ** 2) / 0.05)
    return across * down + gleam
