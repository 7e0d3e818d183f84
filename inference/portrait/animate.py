"""Frames of a talking head out of one still picture.

Each output pixel is read from the picture once: where the turned head takes it from, where the moved mouth takes
that from, one sample. The inside of the mouth is then drawn in the pose it is seen in, and the eyes are laid
over theirs. Pixels outside the head's reach are the picture's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.face.model import FaceModel
from inference.lipsync.render import compose, own_inside, seam
from inference.lipsync.render.basis import extend, soften
from inference.lipsync.render.interior import TEETH_TINT, Drawing
from inference.lipsync.render.plan import Plan
from inference.lipsync.render.prepare import prepare
from inference.lipsync.render.renderer import MeshRenderer
from inference.lipsync.render.tracks import SHUT
from inference.lipsync.render.warp import Box, around
from inference.portrait import motion
from inference.portrait.blink import Eyes
from inference.portrait.pose_warp import PoseWarp, Turned
from inference.portrait.texture import Texture

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]  #: (H, W, 3) BGR

GREY = np.float32([0.114, 0.587, 0.299])  #: luminance of BGR
COLOURED = 0.10  #: spread of the skin's channels over its light, from which a picture counts as coloured
LOOK = 0.25  #: degrees of gaze below which the eyes are left alone
WHITE = 0.85  #: how far the white of the eyes rules the colour of drawn teeth
WHITE_LIMITS = (0.55, 1.04)
STAYS = 2e-3  #: share of the head's motion below which a pixel is the picture's own
OPENING_MOST, OPENING_KNEE = 0.38, 0.26  #: of the mouth's width: how far it really opens, bent from the second on
PRESS = 0.018  #: eye distances by which lips that are open in the picture are pressed on each other to shut them
BELIEF = 0.6  #: of what the calibration wants to add to an opening


@dataclass(frozen=True)
class Still:
    """The one face of one picture, in the form rendering takes analyses of videos."""

    points: mesh.Points  #: (1, 478, 3) pixels
    found: NDArray[np.bool_]  #: (1,)


class Animator:
    """Makes frames of one picture. Safe to share between threads: nothing in it changes."""

    def __init__(self, picture: Frame, points: mesh.Points, model: FaceModel) -> None:
        """``picture`` (H, W, 3) with even sides, ``points`` (478, 3) of its face in pixels. About 0.4 s."""
        still = Still(points[None].astype(np.float32), np.ones(1, bool))
        mouth = MeshRenderer(still, prepare(still, [picture], model), model.mesh)
        self.picture = picture
        self._mouth = mouth
        tracks = mouth.tracks
        head = tracks.pose.take(0)
        self.unit = float(head.scale[0])  #: eye distance in pixels
        self.warp = PoseWarp(tracks.points[0], head, (picture.shape[1], picture.shape[0]))
        self._eyes = Eyes(tracks.points[0], self.unit)
        shape = tracks.shape[0]
        self._ajar = float(np.clip((tracks.opening[0] - SHUT / 2) / (SHUT / 2), 0, 1))
        shape = shape + (1 - self._ajar) * (seam.close(shape, mouth.materials.seam) - shape)
        self._start = extend(shape)
        self._gap = self._ajar * float(tracks.opening[0])  # what is open in the picture already
        self._source = head.to_pixels(self._start[None])[0]
        self._head = head
        self._skin = compose.skin(picture, self._source, self.unit)
        self._white = _white(picture, tracks.points[0], self._skin.bgr)
        self._colour = float(np.clip(np.ptp(self._skin.bgr) / max(self._skin.light, 1.0) / COLOURED, 0, 1))
        self._texture = Texture(picture)
        left, top, right, bottom = self.warp.box
        self._stays = np.asarray(self.warp.spread(self.warp.share) < STAYS, np.uint8)[top:bottom, left:right]

    def plan(self, opening: Array, width: Array) -> Plan:
        """Asked openings and widths (T,), eye distances from rest, as what is to be drawn for them."""
        asked = self._mouth.plan(opening, width, np.zeros(len(opening), np.int32))
        # The landmarker sees painted mouths open half as far as they are; correcting all of that tears them.
        excess = np.maximum(asked.opening - soften(opening), 0)
        drawn, wide = asked.opening - np.float32(1 - BELIEF) * excess, float(self._mouth.tracks.width[0])
        return replace(asked, opening=soften(drawn, OPENING_MOST * wide, OPENING_KNEE * wide))

    def frame(self, mouth: Plan, moves: motion.Motion, k: int) -> Frame:
        """Output frame ``k``, (H, W, 3), an array of its own."""
        target = mouth[k]
        turned = self.warp.turned(moves.angles[k], motion.BREATH * float(moves.breath[k]), float(moves.brow[k]))
        x, y = self.warp.maps(turned)
        goal = self._goal(target.opening, target.width)
        pressed = self._press(target.opening) > 0
        map_x, map_y = self._with_mouth(goal, turned, x, y, pressed)
        left, top, right, bottom = self.warp.box
        result = self.picture.copy()
        part = self._texture.read(map_x, map_y)
        cv2.copyTo(self.picture[top:bottom, left:right], self._stays, part)
        result[top:bottom, left:right] = part
        self._lay_eyes(result, x, y, turned, float(moves.blink[k]), moves.gaze[k])
        seen = turned.forward(goal)
        for share, layer in self._insides(seen, turned, target.opening, target.width, (x, y)):
            if layer is not None:
                compose.lay(result, layer, share)
        return result

    def _insides(
        self, seen: Array, turned: Turned, opening: float, width: float, maps: tuple[Array, Array]
    ) -> Iterator[tuple[float, Drawing | None]]:
        """What is to be seen between the lips at ``seen`` (550, 3), in the pose they are seen in, with shares.

        The same layers as :class:`MeshRenderer` lays over a template that is open already.
        """
        ajar, filled, interior = self._ajar, self._mouth.materials.filled, self._mouth._interior
        if ajar < 1 or filled:
            drawn = interior.draw(seen, turned.pose, opening, -width, self._skin, upper=1 - ajar)
            yield 1.0, self._tinted(drawn, self._white)
        if ajar > 0 and filled:
            own = turned.forward(self._source)
            frame = self._turned_mouth(own, maps)
            yield ajar, own_inside.take(self._mouth._painter, frame, own, seen, interior.contour(seen), self.unit)
        if ajar > 0:
            yield ajar, self._tinted(own_inside.line(seen, self.unit, opening, self._skin.light))

    def _tinted(self, drawn: Drawing | None, factors: Array | float = 1.0) -> Drawing | None:
        """A drawing in the colours of this picture: grey in a grey one."""
        if drawn is None:
            return None
        bgr = drawn.bgr * np.float32(factors)
        if self._colour < 1:
            light = (bgr @ GREY)[..., None]
            bgr = light + np.float32(self._colour) * (bgr - light)
        return replace(drawn, bgr=bgr)

    def _turned_mouth(self, own: Array, maps: tuple[Array, Array]) -> Frame:
        """(H, W, 3) the turned picture round its unmoved mouth at ``own`` (550, 3); elsewhere nothing of use."""
        left, top, right, bottom = self.warp.box
        box = _meet(around(own[mesh.LIP_OUTER, :2], 0.1 * self.unit), Box(left, top, right - left, bottom - top))
        frame = np.empty_like(self.picture)
        if not box.empty:
            rows, columns = slice(box.y - top, box.y - top + box.height), slice(box.x - left, box.x - left + box.width)
            box.cut(frame)[:] = self._texture.read(*(plane[rows, columns] for plane in maps))
        return frame

    def _goal(self, opening: float, width: float) -> Array:
        """(550, 3) pixels of the still picture where the mesh shall be."""
        moved = self._start + self._mouth.basis.move(opening - self._gap - self._press(opening), width)
        return self._head.to_pixels(moved[None])[0]

    def _press(self, opening: float) -> float:
        """Eye distances by which lips overlap: landmarks of open lips lie a little outside them."""
        return PRESS * self._ajar * max(0.0, 1 - opening / own_inside.LINE_BELOW)

    def _with_mouth(self, goal: Array, turned: Turned, x: Array, y: Array, pressed: bool) -> tuple[Array, Array]:
        """The maps of the turned head led on through the moved mouth."""
        shift = np.abs(goal[:, :2] - self._source[:, :2]).max(axis=1)
        if float(shift.max()) < 0.02:
            return x, y
        height, width = self.picture.shape[:2]
        touched = shift > 0.01
        triangles = self._mouth.basis.triangles
        corners = triangles[touched[triangles].any(axis=1)].ravel()
        box = around(np.concatenate([goal[corners, :2], self._source[corners, :2]]), 2).within(width, height)
        box = _meet(box, compose.face_box(goal, self.unit, width, height))
        if box.empty:
            return x, y
        field = self._mouth._mover._field(self._source, goal, self.unit, box)
        # Where that box lies once the head is turned, in the maps' own rectangle.
        across, down = np.meshgrid(np.linspace(box.x, box.x + box.width, 9), np.linspace(box.y, box.y + box.height, 9))
        rim = np.stack([across.ravel(), down.ravel(), np.zeros(81)], axis=1).astype(np.float32)
        seen = around(turned.forward(rim), 3)
        left, top, right, bottom = self.warp.box
        seen = _meet(seen, Box(left, top, right - left, bottom - top))
        if seen.empty:
            return x, y
        rows = slice(seen.y - top, seen.y - top + seen.height)
        columns = slice(seen.x - left, seen.x - left + seen.width)
        at_x, at_y = x[rows, columns] - np.float32(box.x), y[rows, columns] - np.float32(box.y)
        map_x, map_y = x.copy(), y.copy()
        # Halfway between the motions of two lips that meet lies what was between them: teeth.
        how = cv2.INTER_NEAREST if pressed else cv2.INTER_LINEAR
        for plane, into in zip(field, (map_x, map_y), strict=True):
            into[rows, columns] += cv2.remap(plane, at_x, at_y, how, borderMode=cv2.BORDER_CONSTANT)
        return map_x, map_y

    def _lay_eyes(self, result: Frame, x: Array, y: Array, turned: Turned, shut: float, gaze: Array) -> None:
        look = (float(gaze[0]), float(gaze[1]))
        if shut <= 0 and max(abs(look[0]), abs(look[1])) < LOOK:
            return
        left, top, right, bottom = self.warp.box
        for which, eye in enumerate(self._eyes.boxes(2, shut > 0)):
            rim = np.float32([[eye[i], eye[j], 0] for i in (0, 2) for j in (1, 3)])
            seen = _meet(around(turned.forward(rim), 1), Box(left, top, right - left, bottom - top))
            if seen.empty:
                continue
            rows = slice(seen.y - top, seen.y - top + seen.height)
            columns = slice(seen.x - left, seen.x - left + seen.width)
            seen.cut(result)[:] = self._eyes.render(
                self._texture, x[rows, columns], y[rows, columns], which, shut, look
            )


def _white(picture: Frame, points: mesh.Points, skin: Array) -> Array:
    """(3,) factors that turn ordinary teeth into those of this picture, by the white of its eyes.

    In a photograph they are near 1; under the varnish of a painting white is yellow.
    """
    found = []
    for ring, iris in ((mesh.EYE_RIGHT, mesh.IRIS_RIGHT), (mesh.EYE_LEFT, mesh.IRIS_LEFT)):
        mask = np.zeros(picture.shape[:2], np.uint8)
        cv2.fillPoly(mask, [np.round(points[ring, :2]).astype(np.int32)], 255)
        radius = np.linalg.norm(points[iris[1:], :2] - points[iris[0], :2], axis=1).mean()
        centre = (round(float(points[iris[0], 0])), round(float(points[iris[0], 1])))
        cv2.circle(mask, centre, round(1.15 * float(radius)), 0, cv2.FILLED)
        found.append(picture[mask > 0].astype(np.float32))
    pixels = np.concatenate(found)
    if len(pixels) < 24:
        return np.ones(3, np.float32)
    light = np.maximum(pixels @ GREY, 1)
    pixels, light = pixels[light >= np.median(light)], light[light >= np.median(light)]
    blue = pixels[:, 0] / light  # lids and veins are redder than the white between them
    tint = np.median((pixels / light[:, None])[blue >= np.quantile(blue, 0.6)], axis=0)
    usual = (1 - TEETH_TINT) + TEETH_TINT * skin / max(float(skin @ GREY), 1.0)
    factors = np.clip((tint / usual) ** WHITE, *WHITE_LIMITS)
    return np.asarray(factors / float(factors @ GREY), np.float32)


def _meet(one: Box, other: Box) -> Box:
    x, y = max(one.x, other.x), max(one.y, other.y)
    right = min(one.x + one.width, other.x + other.width)
    bottom = min(one.y + one.height, other.y + other.height)
    return Box(x, y, max(0, right - x), max(0, bottom - y))
