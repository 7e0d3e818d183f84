"""Lids that close and eyes that look: what happens inside two small rectangles of the still picture.

An eye is taken apart in its own coordinates, u along the line of its corners and v down across it, both in eye
distances: the upper lid's edge, the lower lid's edge, and the skin above, which unrolls between crease
and lashes as the lid comes down (a blink hides the eye behind skin that was folded away; stretching the whole
lid down instead drags the crease along). The lash line moves as one piece. Edges are blended over about one pixel,
so a lid moves smoothly even where a frame moves it by a fraction of a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.portrait.texture import Texture

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

UPPER_SHARE = 0.92  #: of the gap that the upper lid closes; the lower lid does the rest
UNROLL = (0.0, 0.046, 0.085, 0.140, 0.22)  #: heights above the lid's edge, eye distances …
FOLLOWS = (1.0, 1.0, 0.50, 0.12, 0.0)  #: … and how far the skin there goes along; lashes as one piece
UNDER = 0.004  #: eye distances below the edge that belong to it
PAST = 0.014  #: eye distances that the upper lid goes past the lower one's line, which is drawn a little high
EASE = 0.040  #: eye distances over which the motion dies out round the corners
LOWER_FADE = 0.10  #: eye distances below the lower lid over which the skin follows it
SLIP, SLIP_WIDE = 0.040, 0.070  #: the outer corner goes down with the lashes beyond it: how far, how wide
BESIDE = 0.16  #: eye distances beyond the corners that belong to the rectangle
SHADE, SHADE_DEPTH = 0.30, 0.030  #: how dark the lid's shadow on the eye gets, how far it reaches
LASHES, LASH_WIDTH = 0.45, 0.013  #: how dark a shut eye's lash line gets, half its width in eye distances
LEVELS, CELLS = 12, 128  #: size of the table that inverts the unrolling
EYEBALL = 0.135  #: eye distances, radius of the eye (12 mm of 90)
IRIS = 0.065  #: eye distances, half of its width


@dataclass(frozen=True)
class _Eye:
    centre: NDArray[np.float64]  #: (2,) pixels
    axes: NDArray[np.float64]  #: (2, 2) rows: u and v directions per pixel, in eye distances
    half: float  #: half the distance of the corners, eye distances
    upper: NDArray[np.float64]  #: polynomial of v over u / half
    lower: NDArray[np.float64]
    iris: float  #: u of the iris
    deepest: float  #: largest gap
    reach: NDArray[np.float64]  #: (K,) u …
    drop: NDArray[np.float64]  #: … and how far the upper lid goes down there when it shuts


@dataclass(frozen=True)
class Look:
    """What the eyes do."""

    shut: float  #: 0 as in the picture … 1 shut
    yaw: float  #: degrees away from where they look in the picture
    pitch: float


@dataclass(frozen=True)
class _Spot:
    """Pixels to be made: where they lie in the picture, and in the coordinates of an eye; (h, w) each."""

    eye: _Eye
    picture: Texture
    x: Array
    y: Array
    u: Array
    v: Array

    @classmethod
    def of(cls, eye: _Eye, picture: Texture, places: tuple[Array, Array]) -> _Spot:
        x, y = places
        axes = eye.axes.astype(np.float32)
        dx, dy = x - np.float32(eye.centre[0]), y - np.float32(eye.centre[1])
        return cls(eye, picture, x, y, axes[0, 0] * dx + axes[0, 1] * dy, axes[1, 0] * dx + axes[1, 1] * dy)

    def sample(self, down: Array, along: Array | None = None) -> Array:
        """The picture ``down`` and ``along`` (h, w; eye distances) of each place, float32."""
        back = np.linalg.inv(self.eye.axes).astype(np.float32)
        map_x, map_y = self.x + back[0, 1] * down, self.y + back[1, 1] * down
        if along is not None:
            map_x, map_y = map_x + back[0, 0] * along, map_y + back[1, 0] * along
        return self.picture.read(map_x, map_y).astype(np.float32)


class Eyes:
    """Both eyes of one picture. ``points`` (478, 3) pixels, ``unit`` the eye distance in pixels."""

    def __init__(self, points: mesh.Points, unit: float) -> None:
        self._unit = unit
        self._eyes = [
            _measure(points, ring, iris, unit)
            for ring, iris in ((mesh.EYE_RIGHT, mesh.IRIS_RIGHT[0]), (mesh.EYE_LEFT, mesh.IRIS_LEFT[0]))
        ]
        self._heights = np.linspace(0, UNROLL[-1] + 0.25, CELLS)
        self._follows = _monotone(self._heights)

    def boxes(self, grow: float, lids: bool = True) -> list[tuple[int, int, int, int]]:
        """(left, top, right, bottom) pixels in the still picture, ``grow`` pixels larger on every side.

        Without ``lids`` only the eye between them.
        """
        found = []
        for eye in self._eyes:
            u, up, down = eye.half, eye.deepest, eye.deepest
            if lids:
                u, up, down = u + BESIDE, up + UNROLL[-1], down + LOWER_FADE
            corners = np.array([[-u, -up], [u, -up], [u, down], [-u, down]]) @ np.linalg.inv(eye.axes).T + eye.centre
            low, high = corners.min(axis=0) - grow, corners.max(axis=0) + grow
            found.append((int(low[0]), int(low[1]), int(np.ceil(high[0])) + 1, int(np.ceil(high[1])) + 1))
        return found

    def render(self, which: int, picture: Texture, places: tuple[Array, Array], look: Look) -> Frame:
        """(h, w, 3) pixels of eye ``which`` (0 right, 1 left) at the places x, y (h, w) of the still picture."""
        eye, dtype, shut = self._eyes[which], np.float32, look.shut
        spot = _Spot.of(eye, picture, places)
        u, v = spot.u, spot.v
        along = np.clip(u / dtype(eye.half), -1, 1)
        top = _polynomial(eye.upper, along)
        gap = np.maximum(_polynomial(eye.lower, along) - top, 0)
        whole = np.interp(u, eye.reach, eye.drop).astype(dtype)  # of the upper lid's edge when shut
        drop, rise = dtype(shut) * whole, dtype(shut) * (gap + dtype(PAST) * (1 - along * along) - whole)
        edge, floor = top + drop, top + gap - rise
        across = dtype(1 / self._unit)  # one pixel

        result = _ball(spot, along, top, gap, look)
        if shut > 0:
            depth = np.clip((v - edge) / dtype(SHADE_DEPTH), 0, None)
            result = result * (1 - dtype(SHADE * min(1.0, 2 * shut)) * np.exp(-depth))[..., None]
            below = spot.sample(rise * np.clip(1 - (v - floor) / dtype(LOWER_FADE), 0, 1))
            result = _over(result, below, _ramp(v - floor, across))
            height = np.maximum(edge - v, 0)
            source = np.where(v > edge, v - drop, top - self._folded(height, drop))
            above = spot.sample(source - v)
            result = _over(result, above, _ramp(edge + dtype(UNDER * min(1.0, 3 * shut)) - v, across))
            # Painters leave lashes out, and a shut eye without a line looks stuck; dark lashes hardly change.
            line = np.exp(-(((v - edge) / dtype(LASH_WIDTH)) ** 2)) * np.clip(1 - (u / dtype(eye.half)) ** 4, 0, 1)
            result *= (1 - dtype(LASHES * shut * shut) * line)[..., None]
        return np.asarray(np.clip(result + dtype(0.5), 0, 255), np.uint8)

    def _folded(self, height: Array, drop: Array) -> Array:
        """(h, w) height above the open lid's edge of what lies ``height`` above the edge that came down by ``drop``."""
        most = max(float(drop.max()), 1e-6)
        table = np.empty((LEVELS, CELLS), np.float32)
        for level, share in enumerate(np.linspace(0, most, LEVELS)):
            table[level] = np.interp(self._heights, self._heights + share * (1 - self._follows), self._heights)
        column = height * np.float32((CELLS - 1) / self._heights[-1])
        row = drop * np.float32((LEVELS - 1) / most)
        found = cv2.remap(table, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        # Beyond the table the skin keeps its place: height − drop above the open edge.
        return np.where(height > self._heights[-1] - most, height - drop, found)


def _ball(spot: _Spot, along: Array, top: Array, gap: Array, look: Look) -> Array:
    """The eye itself, its iris shifted; skin outside the lids stays where it is."""
    eye, u, v = spot.eye, spot.u, spot.v
    side, up = (float(np.sin(np.radians(angle))) * EYEBALL for angle in (look.yaw, look.pitch))
    if abs(side) + abs(up) < 1e-4:
        return spot.sample(np.float32(0) * v)
    # Full shift across the iris, none at the corners; down and up it is cut off at the lids.
    reach = np.clip((np.abs(u - eye.iris) - IRIS) / max(eye.half - IRIS, 0.02), 0, 1)
    window = (1 - reach * reach * (3 - 2 * reach)) * (1 - along**4)
    margin = np.float32(0.012)
    inside = _ramp(v - top - margin, margin) * _ramp(top + gap - margin - v, margin)
    inside = np.asarray(window * inside, np.float32)
    return spot.sample(inside * np.float32(up), -inside * np.float32(side))


def _measure(points: mesh.Points, ring: mesh.Index, iris: int, unit: float) -> _Eye:
    outer, inner = points[ring[0], :2].astype(np.float64), points[ring[8], :2].astype(np.float64)
    right, left = (outer, inner) if outer[0] < inner[0] else (inner, outer)
    across = left - right
    half = float(np.linalg.norm(across)) / 2 / unit
    direction = across / np.linalg.norm(across)
    axes = np.stack([direction, np.array([-direction[1], direction[0]])]) / unit
    centre = (left + right) / 2

    def lid(vertices: mesh.Index) -> NDArray[np.float64]:
        local = (points[vertices, :2] - centre) @ axes.T
        s = local[:, 0] / half
        # (1 − s²) times a parabola: meets the corners exactly and cannot wave.
        basis = np.stack([(1 - s**2) * s**power for power in range(3)], axis=1)
        factors = np.linalg.lstsq(basis, local[:, 1], rcond=None)[0]
        return np.asarray(np.polynomial.polynomial.polymul([1, 0, -1], factors), np.float64)

    upper, lower = lid(ring[9:]), lid(ring[1:8])
    reach = np.linspace(-half - BESIDE, half + BESIDE, 129)
    s = np.clip(reach / half, -1, 1)
    gap = np.maximum(np.polynomial.polynomial.polyval(s, lower) - np.polynomial.polynomial.polyval(s, upper), 0)
    # A motion that ended at the corners would leave a hook where lashes go on beyond them.
    drop = _smoothed(UPPER_SHARE * gap + PAST * (1 - s**2), EASE / (reach[1] - reach[0]))
    corner = half if outer[0] > inner[0] else -half
    drop += SLIP * np.exp(-(((reach - corner) / SLIP_WIDE) ** 2))
    pupil = float(((points[iris, :2] - centre) @ axes.T)[0])
    return _Eye(centre, axes, half, upper, lower, pupil, float(max(gap.max(), 1e-3)), reach, drop)


def _monotone(heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far skin at these heights follows the lid: FOLLOWS, smoothed, never rising."""
    smooth = _smoothed(np.interp(heights, UNROLL, FOLLOWS), 0.008 / (heights[1] - heights[0]))
    return np.where(heights <= UNROLL[1] * 0.6, 1.0, smooth)


def _smoothed(values: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return np.convolve(np.pad(values, reach, mode="edge"), kernel / kernel.sum(), mode="valid")


def _polynomial(factors: NDArray[np.float64], s: Array) -> Array:
    result = np.full_like(s, np.float32(factors[-1]))
    for factor in factors[-2::-1]:
        result *= s
        result += np.float32(factor)
    return result


def _ramp(distance: Array, width: np.float32) -> Array:
    """0 below −width/2, 1 above width/2."""
    return np.asarray(np.clip(distance / width + np.float32(0.5), 0, 1), np.float32)


def _over(under: Array, layer: Array, cover: Array) -> Array:
    return np.asarray(under + (layer - under) * cover[..., None], np.float32)
