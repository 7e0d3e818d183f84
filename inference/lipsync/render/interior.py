"""The inside of a mouth that a template never shows: dark, tongue and two rows of teeth.

Drawn at up to three times the output's size inside the lips' contour and lit from the face's own skin. The
upper teeth belong to the head and the lower ones to the jaw, so both stay where they are while lips slide over
them. Everything is a smooth function of pose, opening and width: nothing flickers.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh, pose
from inference.lipsync.render import teeth
from inference.lipsync.render.warp import Box, around

Array = NDArray[np.float32]

FINE_UNTIL_PX = 60.0, 160.0  #: mouth widths up to which the inside is drawn at 3×, at 2×
DENSE = 8  #: contour points per mesh vertex
EDGE_BLUR = 0.0065  #: eye distances over which the inside fades into the lips
UPPER_EDGE = 0.030  #: of the upper teeth, below the closed seam
LOWER_EDGE = 0.008  #: of the lower teeth, below the closed seam with the mouth shut
JAW_FOLLOWS = 0.74  #: how far the lower teeth go down per opening
REACH = 0.36  #: eye distances to either side of the middle for which teeth are placed
BEHIND_LIP = 0.105  #: depth of the front teeth behind the lips
TEETH_GAIN, TEETH_TINT = 1.28, 0.30  #: light over that of the skin (real ones: 1.35–1.49); share of the skin's colour
LOWER_GAIN = 0.70
SHADOW = 0.030  #: eye distances over which the lips shade the inside
PURSED = 0.09  #: a mouth narrower by this hides its teeth in shadow
DEEP_BGR = np.float32([0.10, 0.095, 0.21])  #: of the skin's light
SHADOW_BGR = np.float32([0.16, 0.15, 0.28])  #: of teeth in the dark
FLESH_BGR = np.float32([0.36, 0.33, 0.62])
SKIN_BGR, HUE = np.float32([0.76, 0.95, 1.22]), 0.7  #: ordinary skin over its light; how far its hue rules the inside
TONGUE_BGR = np.float32([0.50, 0.46, 0.82])


@dataclass(frozen=True)
class Skin:
    """Light round the mouth, per frame."""

    bgr: Array  #: (3,) mean colour, 0..255
    right: float  #: luminance on the picture's left side of the mouth over the mean
    left: float
    grain: Array  #: (h, w) high-pass of the skin's luminance, zero mean; may be empty

    @property
    def light(self) -> float:
        return float(self.bgr @ np.float32([0.114, 0.587, 0.299]))


@dataclass(frozen=True)
class Drawing:
    """A drawn inside, ready to be laid over a picture."""

    box: Box  #: where; may leave the picture
    bgr: Array  #: (H, W, 3) 0..255
    cover: Array  #: (H, W) 0..1


class Interior:
    """Draws insides for one face."""

    def __init__(self, shut: mesh.Points) -> None:
        """``shut`` (478, 3): the person's shape with both inner lip rings on the seam, head coordinates."""
        line = shut[mesh.LIP_INNER_UPPER]
        self._middle = line[len(line) // 2].astype(np.float64)
        self._upper, self._lower = teeth.upper(), teeth.lower()
        self._spline = _catmull_rom(len(mesh.LIP_INNER_UPPER), DENSE)
        self._half = float(abs(line[-1, 0] - line[0, 0]) / 2)

    def contour(self, target: Array) -> NDArray[np.float64]:
        """(P, 2) the closed inner edge of lips at ``target`` (478+, 3; pixels), as a smooth curve."""
        upper, lower = target[mesh.LIP_INNER_UPPER, :2], target[mesh.LIP_INNER_LOWER, :2]
        return np.concatenate([self._spline @ upper, (self._spline @ lower)[::-1]])

    def draw(
        self, target: Array, head: pose.Pose, opening: float, narrow: float, skin: Skin, upper: float = 1.0
    ) -> Drawing | None:
        """The inside of lips at ``target`` (478+, 3; pixels), None when there is none to be seen.

        ``head`` holds one pose, ``opening`` the gap in eye distances, ``narrow`` by how much the mouth is
        narrower than at rest, ``upper`` how visible the upper teeth are.
        """
        unit = float(head.scale[0])
        contour = self.contour(target)
        gap = np.abs(target[mesh.LIP_INNER_UPPER, 1] - target[mesh.LIP_INNER_LOWER, 1]).max()
        if gap < 0.3:
            return None
        wide = float(np.linalg.norm(target[mesh.LIP_INNER_UPPER[0], :2] - target[mesh.LIP_INNER_UPPER[-1], :2]))
        fine = 3 if wide <= FINE_UNTIL_PX[0] else 2 if wide <= FINE_UNTIL_PX[1] else 1
        canvas = _Canvas(around(contour, 3 * EDGE_BLUR * unit + 2), fine, head)
        mask = canvas.fill(contour)
        shade = canvas.blur(canvas.fill(contour + canvas.down * (0.35 * SHADOW * unit)), SHADOW)
        light = _smoothstep(shade * mask, 0.12, 0.92)  # a lip that shades nothing would glow

        level = skin.light
        hue = np.float32(level) * (1 + HUE * (skin.bgr / max(level, 1.0) / SKIN_BGR - 1))
        deep = DEEP_BGR * hue
        bgr = deep + (FLESH_BGR * hue - deep) * (0.55 * (1 - light) ** 2)[..., None]
        self._tongue(canvas, bgr, light, opening, TONGUE_BGR * hue)
        pursed = float(np.clip(narrow / PURSED, 0, 1))
        enamel = ((1 - TEETH_TINT) + TEETH_TINT * skin.bgr / max(level, 1.0)) * min(level * TEETH_GAIN, 235.0)
        paint = _Enamel(enamel, SHADOW_BGR * hue, light * (1 - 0.6 * pursed), self._side_light(canvas, skin))
        below = LOWER_EDGE + JAW_FOLLOWS * opening + 0.03 * pursed
        self._teeth(canvas, bgr, self._lower, below, paint, LOWER_GAIN)
        if upper > 0:
            self._teeth(canvas, bgr, self._upper, UPPER_EDGE, paint, 1.0, upper)
        cover = canvas.blur(mask, EDGE_BLUR)
        bgr, cover = canvas.shrink(bgr), canvas.shrink(cover)
        if skin.grain.size:
            bgr += _tile(skin.grain, cover.shape)[..., None] * (0.35 + 0.65 * bgr[..., 1:2] / max(level, 1.0))
        return Drawing(canvas.box, np.clip(bgr, 0, 255), cover)

    def _side_light(self, canvas: _Canvas, skin: Skin) -> Array:
        """(H, W) light from the side, as the cheeks have it."""
        middle = canvas.project(self._middle[None])[0, 0]
        t = np.clip(0.5 + 0.5 * (canvas.across - middle) / np.float32(max(self._half * canvas.unit, 1.0)), 0, 1)
        return np.asarray(np.float32(skin.right) + np.float32(skin.left - skin.right) * t, np.float32)

    def _tongue(self, canvas: _Canvas, bgr: Array, light: Array, opening: float, colour: Array) -> None:
        rise = float(_smoothstep(np.float32(opening), 0.05, 0.16))
        if rise <= 0:
            return
        centre = self._middle + np.array([0, 0.02 + 0.80 * opening, BEHIND_LIP + 0.06])
        across, along = np.array([0.17, 0, 0.05]), np.array([0, 0.02 + 0.30 * opening, 0])
        o, a, b = canvas.project(np.stack([centre, centre + across, centre + along])).astype(np.float64)
        turn = np.linalg.inv(np.stack([a - o, b - o], axis=1) + 1e-9 * np.eye(2)).astype(np.float32)
        x, y = canvas.across - np.float32(o[0]), canvas.along - np.float32(o[1])
        u, v = turn[0, 0] * x + turn[0, 1] * y, turn[1, 0] * x + turn[1, 1] * y
        u *= u
        cover = (1 - _smoothstep(np.sqrt(u + v * v), 0.35, 1.1)) * np.float32(rise)
        groove = 1 - np.float32(0.22) * np.exp(u * np.float32(-1 / 0.14**2)) * (v < 0.4)
        bgr += (colour * ((0.35 + 0.45 * light) * groove)[..., None] - bgr) * cover[..., None]

    def _teeth(
        self,
        canvas: _Canvas,
        bgr: Array,
        row: teeth.Row,
        edge: float,
        paint: _Enamel,
        gain: float,
        visible: float = 1.0,
    ) -> None:
        """Lay one row over ``bgr``; ``edge`` is how far below the closed seam its biting edge lies."""
        gums = -1.0 if row is self._upper else 1.0
        x, column = row.columns(REACH)
        points = np.zeros((2, len(x), 3))
        points[..., 0] = self._middle[0] + x
        points[..., 1] = self._middle[1] + edge
        points[1, :, 1] += gums * teeth.CELL  # one texel towards the gums
        points[..., 2] = self._middle[2] + BEHIND_LIP + teeth.CURVE * x * x
        flat = canvas.project(points.reshape(-1, 3)).reshape(2, -1, 2).astype(np.float64)
        order = np.argsort(flat[0, :, 0], kind="stable")  # rising anyway while the head is turned less than 45°
        at, level = flat[0, order, 0], flat[0, order, 1]
        rise = flat[1, order] - flat[0, order]
        # Only rows of the canvas that the teeth can reach: the rest costs as much.
        slack = 0.02 * canvas.unit
        near = (
            canvas.rows(level.max() + slack, above=True) if gums < 0 else canvas.rows(level.min() - slack, above=False)
        )
        across, along = canvas.across[near], canvas.along[near]
        if not across.size:
            return
        # Tables over the place across the head, four entries per canvas pixel, instead of interpolating each pixel.
        low = float(across.min())
        steps = np.arange(low, float(across.max()) + 1, 0.25 / canvas.fine)
        per = np.float32(4 * canvas.fine)
        texel = np.interp(steps, at, column[order], left=-1e4, right=1e4).astype(np.float32)
        edges = np.interp(steps, at, level).astype(np.float32)
        rises = np.interp(steps, at, np.where(np.abs(rise[:, 1]) < 1e-6, 1e-6, rise[:, 1])).astype(np.float32)
        cell = ((across - np.float32(low)) * per).astype(np.int32)
        up = (along - edges.take(cell)) / rises.take(cell)
        map_y = np.maximum(np.float32(row.edge) - up, 0)  # above the texture's first row its crowns go on
        lean = np.float32(np.median(rise[:, 0]))
        moved = np.clip((across - up * lean - np.float32(low)) * per, 0, len(steps) - 1).astype(np.int32)
        values = cv2.remap(row.texture, texel.take(moved), map_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        part, light = bgr[near], paint.light[near]
        light = light * np.sqrt(light)  # narrow gaps look dark, not grey
        lit = (light * values[..., 0] * paint.side[near])[..., None] * (paint.colour * np.float32(gain))
        lit += (1 - light)[..., None] * paint.shadow
        part += (lit - part) * (values[..., 1:2] * np.float32(visible))


@dataclass(frozen=True)
class _Enamel:
    """How teeth are lit."""

    colour: Array  #: (3,) in full light
    shadow: Array  #: (3,) in none
    light: Array  #: (H, W) 0..1
    side: Array  #: (H, W) about 1


class _Canvas:
    """Pixels of a box at a multiple of its size, and where they lie along the axes of an upright head."""

    def __init__(self, box: Box, fine: int, head: pose.Pose) -> None:
        self.box, self.fine, self.unit = box, fine, float(head.scale[0])
        self.size = (box.width * fine, box.height * fine)
        self._head = head
        axis = head.rotation[0, :2, 0].astype(np.float64)
        axis /= max(float(np.linalg.norm(axis)), 1e-6)
        #: directions in the picture, (2,)
        self.right, self.down = axis, np.array([-axis[1], axis[0]])
        x = (np.arange(self.size[0], dtype=np.float32) + 0.5) / fine - 0.5 + box.x
        y = (np.arange(self.size[1], dtype=np.float32) + 0.5) / fine - 0.5 + box.y
        turn = np.stack([self.right, self.down]).astype(np.float32)
        #: (H, W) pixels along them from the picture's corner
        self.across = (turn[0, 0] * x)[None, :] + (turn[0, 1] * y)[:, None]
        self.along = (turn[1, 0] * x)[None, :] + (turn[1, 1] * y)[:, None]

    def project(self, points: NDArray[np.floating]) -> Array:
        """(P, 3) head coordinates → (P, 2) in pixels across and along."""
        pixels = self._head.to_pixels(points.astype(np.float32)[None])[0, :, :2]
        return np.asarray(pixels @ np.stack([self.right, self.down], axis=1).astype(np.float32), np.float32)

    def rows(self, limit: float, above: bool) -> slice:
        """The canvas rows that hold pixels above (or below) a place along the head."""
        ends = np.sort(self.along[:, [0, -1]], axis=1)
        hit = np.flatnonzero(ends[:, 0] < limit if above else ends[:, 1] > limit)
        return slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, 0)

    def fill(self, contour: NDArray[np.floating]) -> Array:
        """(H, W) 1 inside a closed contour (P, 2) of picture pixels."""
        mask = np.zeros(self.size[::-1], np.uint8)
        inside = (contour - [self.box.x, self.box.y] + 0.5) * self.fine - 0.5
        cv2.fillPoly(mask, [np.round(inside * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        return np.asarray(mask, np.float32) / np.float32(255)

    def blur(self, image: Array, sigma: float) -> Array:
        """Gaussian of ``sigma`` eye distances; wide ones at a lower resolution."""
        pixels = sigma * self.unit * self.fine
        if pixels < 5:
            return np.asarray(cv2.GaussianBlur(image, (0, 0), max(pixels, 0.3)), np.float32)
        shrink = int(pixels // 2.5)
        small = (max(1, self.size[0] // shrink), max(1, self.size[1] // shrink))
        tiny = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        tiny = cv2.GaussianBlur(tiny, (0, 0), pixels * small[0] / self.size[0], borderType=cv2.BORDER_CONSTANT)
        return np.asarray(cv2.resize(tiny, self.size, interpolation=cv2.INTER_LINEAR), np.float32)

    def shrink(self, image: Array) -> Array:
        size = (self.box.width, self.box.height)
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.float32)


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


def _tile(grain: Array, shape: tuple[int, ...]) -> Array:
    """The grain mirrored until it fills a shape."""
    more = [(0, max(0, size - have)) for size, have in zip(shape, grain.shape, strict=True)]
    return np.asarray(np.pad(grain, more, mode="reflect")[: shape[0], : shape[1]], np.float32)


def _smoothstep(value: NDArray[np.floating], low: float, high: float) -> Array:
    t = np.clip((value - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)
