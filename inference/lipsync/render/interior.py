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

FINE_UNTIL_PX = 110.0, 220.0  #: mouth widths up to which the inside is drawn at 3×, at 2×
DENSE = 8  #: contour points per mesh vertex
EDGE_BLUR = 0.0065  #: eye distances over which the inside fades into the lips
UPPER_EDGE = 0.030  #: of the upper teeth, below the closed seam
LOWER_EDGE = 0.004  #: of the lower teeth, below the closed seam with the mouth shut
JAW_FOLLOWS = 0.74  #: how far the lower teeth go down per opening
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

    def draw(self, target: Array, head: pose.Pose, opening: float, narrow: float, skin: Skin) -> Drawing | None:
        """The inside of lips at ``target`` (478+, 3; pixels), None when there is none to be seen.

        ``head`` holds one pose, ``opening`` the gap in eye distances, ``narrow`` by how much the mouth is
        narrower than at rest.
        """
        unit = float(head.scale[0])
        contour = np.concatenate(
            [self._spline @ target[mesh.LIP_INNER_UPPER, :2], (self._spline @ target[mesh.LIP_INNER_LOWER, :2])[::-1]]
        )
        gap = np.abs(target[mesh.LIP_INNER_UPPER, 1] - target[mesh.LIP_INNER_LOWER, 1]).max()
        if gap < 0.3:
            return None
        wide = float(np.linalg.norm(target[mesh.LIP_INNER_UPPER[0], :2] - target[mesh.LIP_INNER_UPPER[-1], :2]))
        fine = 3 if wide <= FINE_UNTIL_PX[0] else 2 if wide <= FINE_UNTIL_PX[1] else 1
        box = around(contour, 3 * EDGE_BLUR * unit + 2)
        canvas = _Canvas(box, fine, unit)
        down = head.rotation[0, :2, 1].astype(np.float64)
        down /= max(float(np.linalg.norm(down)), 1e-6)

        mask = canvas.fill(contour)
        shade = canvas.blur(canvas.fill(contour + down * (0.35 * SHADOW * unit)), SHADOW)
        shade *= mask  # a lip in shadow of nothing would glow
        light = _smoothstep(shade, 0.12, 0.92)
        level = skin.light
        hue = 1 + HUE * (skin.bgr / max(level, 1.0) / SKIN_BGR - 1)
        deep, flesh, tongue, shadow = (
            tone * hue * np.float32(level) for tone in (DEEP_BGR, FLESH_BGR, TONGUE_BGR, SHADOW_BGR)
        )
        bgr = deep + (flesh - deep) * (0.55 * (1 - light) ** 2)[..., None]
        self._tongue(canvas, bgr, light, head, opening, tongue)
        pursed = float(np.clip(narrow / PURSED, 0, 1))
        side = self._side_light(canvas, head, skin)
        tint = (1 - TEETH_TINT) + TEETH_TINT * skin.bgr / max(level, 1.0)
        for row, gain, edge, jaw in (
            (self._lower, LOWER_GAIN, LOWER_EDGE + JAW_FOLLOWS * opening + 0.03 * pursed, True),
            (self._upper, 1.0, UPPER_EDGE, False),
        ):
            self._teeth(
                canvas,
                bgr,
                row,
                edge,
                jaw,
                head,
                tint * (min(level * TEETH_GAIN, 235.0) * gain),
                shadow,
                light * (1 - 0.6 * pursed),
                side,
            )
        cover = canvas.blur(mask, EDGE_BLUR)
        bgr, cover = canvas.shrink(bgr), canvas.shrink(cover)
        if skin.grain.size:
            bgr += _tile(skin.grain, cover.shape)[..., None] * (0.35 + 0.65 * bgr[..., 1:2] / max(level, 1.0))
        return Drawing(box, np.clip(bgr, 0, 255), cover)

    def _side_light(self, canvas: _Canvas, head: pose.Pose, skin: Skin) -> Array:
        """(1, W) light from the side, as the cheeks have it."""
        centre = head.to_pixels(self._middle[None].astype(np.float32))[0, 0]
        across = (canvas.x - centre[0]) / max(self._half * float(head.scale[0]), 1.0)
        t = np.clip(0.5 + 0.5 * across, 0, 1)
        return np.asarray((skin.right * (1 - t) + skin.left * t)[None, :], np.float32)

    def _tongue(
        self, canvas: _Canvas, bgr: Array, light: Array, head: pose.Pose, opening: float, colour: Array
    ) -> None:
        rise = float(_smoothstep(np.float32(opening), 0.05, 0.16))
        if rise <= 0:
            return
        centre = self._middle + np.array([0, 0.02 + 0.80 * opening, BEHIND_LIP + 0.06])
        across, along = np.array([0.17, 0, 0.05]), np.array([0, 0.02 + 0.30 * opening, 0])
        ends = np.stack([centre, centre + across, centre + along])
        o, a, b = head.to_pixels(ends.astype(np.float32))[0, :, :2].astype(np.float64)
        turn = np.linalg.inv(np.stack([a - o, b - o], axis=1) + 1e-9 * np.eye(2)).astype(np.float32)
        x, y = canvas.x - np.float32(o[0]), canvas.y - np.float32(o[1])
        u = (turn[0, 0] * x)[None, :] + (turn[0, 1] * y)[:, None]
        v = (turn[1, 0] * x)[None, :] + (turn[1, 1] * y)[:, None]
        radius = np.sqrt(u * u + v * v)
        cover = (1 - _smoothstep(radius, 0.55, 1.05)) * rise
        groove = 1 - 0.22 * np.exp(-((u / 0.14) ** 2)) * (v < 0.4)
        tone = (0.35 + 0.45 * light) * groove
        bgr += (colour * tone[..., None] - bgr) * cover[..., None]

    def _teeth(
        self,
        canvas: _Canvas,
        bgr: Array,
        row: teeth.Row,
        edge: float,
        jaw: bool,
        head: pose.Pose,
        colour: Array,
        shadow: Array,
        light: Array,
        side: Array,
    ) -> None:
        """Lay one row over ``bgr``; ``edge`` is where its biting edge lies below the closed seam."""
        x, column = row.columns(0.36)
        points = np.zeros((2, len(x), 3), np.float32)
        points[..., 0] = self._middle[0] + x
        points[..., 1] = self._middle[1] + edge
        points[1, :, 1] += -0.1 if not jaw else 0.1
        points[..., 2] = self._middle[2] + BEHIND_LIP + teeth.CURVE * x * x
        pixels = head.to_pixels(points.reshape(1, -1, 3))[0].reshape(2, -1, 3).astype(np.float64)
        # Along the picture's x every column of the canvas meets the arch once (heads turned less than 45°).
        order = np.argsort(pixels[0, :, 0], kind="stable")
        at = pixels[0, order, 0]
        edge_y = np.interp(canvas.x, at, pixels[0, order, 1])
        # One texel towards the gums in canvas pixels: both shear (roll) and length.
        run = (pixels[1, order, :2] - pixels[0, order, :2]) * (teeth.CELL / 0.1)
        rise_y = np.interp(canvas.x, at, run[:, 1])
        lean_x = float(np.median(run[:, 0]))
        texel = np.interp(canvas.x, at, column[order], left=-1e4, right=1e4)
        per_pixel = np.gradient(texel, canvas.x)
        up = (canvas.y[:, None] - edge_y[None, :]) / np.where(np.abs(rise_y) < 1e-6, 1e-6, rise_y)[None, :]
        map_y = (row.edge - up).astype(np.float32)
        map_x = (texel[None, :] - up * lean_x * per_pixel[None, :]).astype(np.float32)
        # Above the texture's first row its crowns go on; beside it there is nothing.
        values = cv2.remap(row.texture, map_x, np.maximum(map_y, 0), cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
        lit = light * (values[..., 0] * side)
        bgr += (lit[..., None] * colour + (1 - light)[..., None] * shadow - bgr) * values[..., 1:2]


class _Canvas:
    """Pixels of a box at a multiple of its size."""

    def __init__(self, box: Box, fine: int, unit: float) -> None:
        self.box, self.fine, self.unit = box, fine, unit
        self.size = (box.width * fine, box.height * fine)
        #: picture coordinates of the canvas' pixel centres
        self.x = (np.arange(self.size[0], dtype=np.float32) + 0.5) / fine - 0.5 + box.x
        self.y = (np.arange(self.size[1], dtype=np.float32) + 0.5) / fine - 0.5 + box.y

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
