"""The inside of a mouth that a template never shows: dark, tongue and two rows of teeth.

Drawn inside the lips' contour and lit from the face's own skin. The upper teeth belong to the head and the lower
ones to the jaw, so both stay where they are while lips slide over them. Everything is a smooth function of pose,
opening and width: nothing flickers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh, pose
from inference.lipsync.render import teeth
from inference.lipsync.render.canvas import Canvas, mirrored, smoothstep
from inference.lipsync.render.palette import GREY, Palette, palette
from inference.lipsync.render.warp import Box, around

Array = NDArray[np.float32]

PER_PIXEL = 4  #: entries of tables over the places across the head
DENSE = 8  #: contour points per mesh vertex
EDGE_BLUR = 0.0065  #: eye distances over which the inside fades into the lips
UPPER_EDGE = 0.030  #: of the upper teeth, below the closed seam
LOWER_EDGE = 0.008  #: of the lower teeth, below the closed seam with the mouth shut
JAW_FOLLOWS = 0.74  #: how far the lower teeth go down per opening
BEHIND_LIP = 0.105  #: depth of the front teeth behind the lips
LOWER_GAIN = 0.70
SHADOW, OVERHANG = 0.030, 0.0105  #: eye distances over which the lips shade the inside; by how much the upper one more
TONGUE_FROM = 0.03, 0.12  #: openings from which the tongue is seen, and from which the whole of it
TONGUE_WIDE = 0.18  #: half of its width, eye distances
TONGUE_LIGHT, TONGUE_SHADED = 1.10, 0.66  #: light on it, in the open and beside the lips
CORNER, CORNER_LIGHT = 0.34, 0.12  #: share of the half mouth that its corner darkens; light left in the corner
ENAMEL_MOST = np.float32(250)
CROWN = 1.12  #: colour of enamel over that of teeth as they look, which are shaded
PURSED = 0.09  #: a mouth narrower by this hides its teeth in shadow


@dataclass(frozen=True)
class Skin:
    """Light round the mouth, per frame."""

    bgr: Array  #: (3,) mean colour, 0..255
    right: float  #: luminance on the picture's left side of the mouth over the mean
    left: float
    grain: Array  #: (h, w) high-pass of the skin's luminance, zero mean; may be empty

    @property
    def light(self) -> float:
        """Luminance 0..255."""
        return float(self.bgr @ GREY)


@dataclass(frozen=True)
class Mouth:
    """A mouth that is to be drawn."""

    opening: float  #: the gap, eye distances
    narrow: float = 0.0  #: eye distances that it is narrower than at rest
    upper: float = 1.0  #: how visible the upper teeth are, 0..1


@dataclass(frozen=True)
class Drawing:
    """A drawn inside, ready to be laid over a picture."""

    box: Box  #: where; may leave the picture
    bgr: Array  #: (H, W, 3) 0..255
    cover: Array  #: (H, W) 0..1


class Interior:
    """Draws insides for one face."""

    def __init__(self, shut: mesh.Points, white: Array | None = None, enamel: Array | None = None) -> None:
        """``shut`` (478, 3): the person's shape with both inner lip rings on the seam, head coordinates.

        ``white`` (3,) is what the picture calls white (:func:`palette.white`), ``enamel`` (3,) the colour of the
        person's teeth over the light of the skin, where it is known.
        """
        self._enamel = enamel
        line = shut[mesh.LIP_INNER_UPPER]
        self._middle = line[len(line) // 2].astype(np.float64)
        self._white = white
        self._spline = _catmull_rom(len(mesh.LIP_INNER_UPPER), DENSE)
        #: (A, 3) where the row of teeth runs, head coordinates, were its edge on the seam
        self._arch = self._middle + teeth.arch() + np.array([0, 0, BEHIND_LIP])

    def palette(self, skin: Skin) -> Palette:
        """The colours in which this mouth is drawn."""
        colours = palette(skin.bgr, self._white)
        if self._enamel is None:
            return colours
        return replace(colours, enamel=np.minimum(self._enamel * np.float32(CROWN * skin.light), ENAMEL_MOST))

    def contour(self, target: Array) -> NDArray[np.float64]:
        """(P, 2) the closed inner edge of lips at ``target`` (478+, 3; pixels), as a smooth curve.

        Where they are pressed on each other there is nothing between them.
        """
        upper, lower = target[mesh.LIP_INNER_UPPER, :2], target[mesh.LIP_INNER_LOWER, :2]
        across = upper[-1] - upper[0]
        pressed = (lower - upper) @ np.array([-across[1], across[0]], np.float32) < 0
        middle = (upper + lower)[pressed] / 2
        upper, lower = upper.copy(), lower.copy()
        upper[pressed] = lower[pressed] = middle
        return np.concatenate([self._spline @ upper, (self._spline @ lower)[::-1]])

    def draw(self, target: Array, head: pose.Pose, mouth: Mouth, skin: Skin) -> Drawing | None:
        """The inside of lips at ``target`` (478+, 3; pixels), None when there is none to be seen.

        ``head`` holds one pose.
        """
        unit = float(head.scale[0])
        contour = self.contour(target)
        upper, lower = np.split(contour, 2)
        if np.linalg.norm(upper - lower[::-1], axis=1).max() < 0.3:
            return None
        canvas = Canvas(around(contour, 3 * EDGE_BLUR * unit + 2), head)
        mask = canvas.fill(contour)
        # A lip that shades nothing would glow.
        light = canvas.blur(canvas.fill(contour + canvas.down * (OVERHANG * unit)), SHADOW)
        light = smoothstep(light * mask, 0.12 * 255, 0.92 * 255)
        colours = self.palette(skin)
        dark = 1 - light
        dark *= dark * np.float32(0.55)
        planes = [dark * gain + deep for deep, gain in zip(colours.deep, colours.flesh - colours.deep, strict=True)]
        self._tongue(canvas, planes, light, mouth.opening, colours.tongue)
        pursed = float(np.clip(mouth.narrow / PURSED, 0, 1))
        paint = _Enamel(
            colours.enamel,
            colours.shadow,
            light * np.sqrt(light) * np.float32(1 - 0.6 * pursed),  # narrow gaps look dark, not grey
            np.sort(canvas.lay(target[mesh.LIP_INNER_UPPER[[0, -1]], :2])[:, 0]),
            (skin.right, skin.left),
            colours.chroma,
        )
        below = LOWER_EDGE + JAW_FOLLOWS * mouth.opening + 0.03 * pursed
        self._teeth(canvas, planes, _Jaw(upper=False, edge=below, gain=LOWER_GAIN), paint)
        if mouth.upper > 0:
            self._teeth(canvas, planes, _Jaw(upper=True, edge=UPPER_EDGE, visible=mouth.upper), paint)
        cover = canvas.blur(mask, EDGE_BLUR)
        bgr = np.asarray(cv2.merge(_grained(planes, skin, cover.shape)), np.float32)
        return Drawing(canvas.box, np.clip(bgr, 0, 255, out=bgr), cover)

    def _tongue(self, canvas: Canvas, planes: list[Array], light: Array, opening: float, colour: Array) -> None:
        rise = float(smoothstep(np.float32(opening), *TONGUE_FROM))
        if rise <= 0:
            return
        centre = self._middle + np.array([0, 0.02 + 0.64 * opening, BEHIND_LIP + 0.06])
        axes = np.array([[TONGUE_WIDE, 0, 0.05], [0, 0.02 + 0.40 * opening, 0]])
        o = canvas.project(centre)
        near = canvas.rows(first=float(o[1] - 1.1 * np.linalg.norm((axes @ canvas.turn)[:, 1])))
        if near.start == near.stop:
            return
        turn = np.linalg.inv((axes @ canvas.turn).T + 1e-9 * np.eye(2))
        shift = turn @ o
        u = canvas.plane(turn[0, 0], turn[0, 1], -shift[0], near)
        v = canvas.plane(turn[1, 0], turn[1, 1], -shift[1], near)
        u *= u
        cover = (1 - smoothstep(np.asarray(cv2.sqrt(u + v * v), np.float32), 0.35, 1.1)) * np.float32(rise)
        groove = np.float32(1) - np.float32(0.14) * (v < 0.4) / np.square(1 + u * np.float32(0.6 / 0.14**2))
        groove *= np.float32(TONGUE_SHADED) + np.float32(TONGUE_LIGHT - TONGUE_SHADED) * light[near]
        for plane, tone in zip(planes, colour, strict=True):
            plane[near] += (groove * tone - plane[near]) * cover

    def _teeth(self, canvas: Canvas, planes: list[Array], jaw: _Jaw, paint: _Enamel) -> None:
        """Lay one row over the planes."""
        row = teeth.row(jaw.upper, teeth.step_for(1 / canvas.unit))
        at, level = canvas.project(self._arch + np.array([0, jaw.edge, 0])).T
        # One texel towards the gums, in pixels across and along.
        lean, rise = canvas.turn[1] * (row.cell * (-1 if jaw.upper else 1))
        if abs(rise) < 1e-6:
            return
        # Only rows of the canvas that the teeth can reach: the rest costs as much.
        slack = 0.03 * canvas.unit
        near = canvas.rows(last=level.max() + slack) if jaw.upper else canvas.rows(first=level.min() - slack)
        across, along = canvas.plane(1, 0, 0, near), canvas.plane(0, 1, 0, near)
        if not across.size:
            return
        # Tables over the place across the head, instead of interpolating each pixel.
        low = float(across.min())
        steps = np.arange(low, float(across.max()) + 1, 1 / PER_PIXEL)
        if at[0] > at[-1]:  # a head that is turned by more than a right angle
            at, level = at[::-1], level[::-1]
        texel = np.interp(steps, at, row.columns, left=-1e4, right=1e4).astype(np.float32)
        edges = np.interp(steps, at, level).astype(np.float32)
        shine = (paint.over(steps) * jaw.gain).astype(np.float32)
        place = (across - np.float32(low)) * np.float32(PER_PIXEL)
        cell = place.astype(np.int32)
        up = (along - edges.take(cell)) * np.float32(1 / rise)
        place -= up * (np.float32(lean) * np.float32(PER_PIXEL))
        moved = np.clip(place, 0, len(steps) - 1, out=place).astype(np.int32)
        *crowns, cover = (np.asarray(plane, np.float32) for plane in cv2.split(row.read(texel.take(moved), up)))
        crowns = _coloured(crowns, paint.chroma)
        light = paint.light[near]
        dark = 1 - light
        light = light * shine.take(cell)
        cover *= np.float32(jaw.visible)
        for plane, crown, colour, shadow in zip(planes, crowns, paint.colour, paint.shadow, strict=True):
            part = plane[near]
            crown *= light * colour
            crown += dark * shadow
            crown -= part
            crown *= cover
            part += crown


@dataclass(frozen=True)
class _Jaw:
    """Where one row of teeth stands."""

    upper: bool
    edge: float  #: eye distances that its biting edge lies below the closed seam
    gain: float = 1.0  #: light on it
    visible: float = 1.0


@dataclass(frozen=True)
class _Enamel:
    """How teeth are lit."""

    colour: Array  #: (3,) in full light
    shadow: Array  #: (3,) in none
    light: Array  #: (H, W) 0..1
    corners: NDArray[np.float64]  #: (2,) where the mouth's corners lie across the head, pixels, rising
    sides: tuple[float, float]  #: light on the cheeks beside them
    chroma: float  #: 0 in a grey picture … 1

    def over(self, across: NDArray[np.float64]) -> NDArray[np.float64]:
        """Light at places across the head: from the sides as the cheeks have it, and lost in the mouth's corners."""
        middle, half = self.corners.mean(), max(float(self.corners[1] - self.corners[0]) / 2, 1.0)
        t = (across - middle) / half
        inward = np.clip((1 - np.abs(t)) / CORNER, 0, 1)
        falls = CORNER_LIGHT + (1 - CORNER_LIGHT) * inward * inward * (3 - 2 * inward)
        return np.asarray(np.interp(t, (-1, 1), self.sides) * falls, np.float64)


def _coloured(crowns: list[Array], chroma: float) -> list[Array]:
    """Planes of blue, green and red with less colour: 0 grey … 1 as they are."""
    if chroma >= 1:
        return crowns
    grey = sum(crown * share for crown, share in zip(crowns, GREY, strict=True))
    return [grey + (crown - grey) * np.float32(chroma) for crown in crowns]


def _grained(planes: list[Array], skin: Skin, shape: tuple[int, ...]) -> list[Array]:
    """Planes with the grain of the skin round them, weaker where they are dark."""
    if not skin.grain.size:
        return planes
    grain = mirrored(skin.grain, shape[0], shape[1])
    grain = grain * (planes[1] * np.float32(0.65 / max(skin.light, 1.0)) + np.float32(0.35))
    return [plane + grain for plane in planes]


def _catmull_rom(count: int, dense: int) -> NDArray[np.float64]:
    """((count − 1) · dense + 1, count) weights that turn points into a smooth curve through them."""
    rows = []
    for step in range((count - 1) * dense + 1):
        k, t = min(step // dense, count - 2), 0.0
        t = step / dense - k
        weights = np.zeros(count)
        for shift, weight in zip(
            (-1, 0, 1, 2),
            (
                (-t + 2 * t**2 - t**3) / 2,
                (2 - 5 * t**2 + 3 * t**3) / 2,
                (t + 4 * t**2 - 3 * t**3) / 2,
                (-(t**2) + t**3) / 2,
            ),
            strict=True,
        ):
            if k + shift < 0:  # before the first point: go straight on
                weights[0] += 2 * weight
                weights[1] -= weight
            elif k + shift >= count:
                weights[-1] += 2 * weight
                weights[-2] -= weight
            else:
                weights[k + shift] += weight
        rows.append(weights)
    return np.array(rows)
