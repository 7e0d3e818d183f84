"""Frames of a talking head out of one still picture.

Each output pixel is read from the picture once: where the turned head takes it from, where the moved mouth takes
that from, one sample. The inside of the mouth is then drawn in the pose it is seen in, and the eyes are laid
over theirs. Pixels outside the head's reach are the picture's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.face.model import FaceModel
from inference.lipsync.render import compose
from inference.lipsync.render.basis import soften
from inference.lipsync.render.inside import Start
from inference.lipsync.render.plan import Plan
from inference.lipsync.render.prepare import prepare
from inference.lipsync.render.renderer import MeshRenderer
from inference.lipsync.render.tracks import follow
from inference.lipsync.render.warp import Box, around
from inference.portrait import motion
from inference.portrait.blink import Eyes, Look
from inference.portrait.pose_warp import PoseWarp, Turned
from inference.portrait.texture import Texture

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]  #: (H, W, 3) BGR

LOOK = 0.25  #: degrees of gaze below which the eyes are left alone
STAYS = 2e-3  #: share of the head's motion below which a pixel is the picture's own
OPENING_MOST, OPENING_KNEE = 0.38, 0.26  #: of the mouth's width: how far it really opens, bent from the second on
NARROWS, NARROWS_FROM = 0.14, 0.04  #: by how much a mouth gets narrower per opening, and the opening from which on
SMILE_NARROWS = 14.0  #: likewise, more for each eye distance that its corners lie above its middle
BELIEF = 0.6  #: of what the calibration wants to add to an opening


@dataclass(frozen=True)
class Still:
    """The one face of one picture, in the form rendering takes analyses of videos."""

    points: mesh.Points  #: (1, 478, 3) pixels
    clear: NDArray[np.bool_]  #: (1,)
    shot: NDArray[np.int32]  #: (1,)
    person: NDArray[np.int32]  #: (1,)


class Animator:
    """Makes frames of one picture. Safe to share between threads: nothing in it changes."""

    def __init__(self, picture: Frame, points: mesh.Points, model: FaceModel) -> None:
        """``picture`` (H, W, 3) with even sides, ``points`` (478, 3) of its face in pixels. About 0.4 s."""
        first = np.zeros(1, np.int32)
        people = follow(Still(points[None].astype(np.float32), np.ones(1, bool), first, first), model.mesh.vertices)
        (tracks,), (materials,) = people, prepare(people, [picture], model)
        mouth = MeshRenderer(tracks, materials, model.mesh)
        self.picture = picture
        self._mouth = mouth
        head = tracks.pose.take(0)
        self.unit = float(head.scale[0])  #: eye distance in pixels
        self.warp = PoseWarp(tracks.points[0], head, (picture.shape[1], picture.shape[0]))
        self._eyes = Eyes(tracks.points[0], self.unit)
        self._start = Start.of(tracks.shape[0], float(tracks.opening[0]), mouth.materials.seam, mouth.parted)
        self._source = head.to_pixels(self._start.shape[None])[0]
        self._head = head
        self._skin = compose.skin(picture, self._source, self.unit)
        self._texture = Texture(picture)
        left, top, right, bottom = self.warp.box
        self._stays = np.asarray(self.warp.spread(self.warp.share) < STAYS, np.uint8)[top:bottom, left:right]

    def plan(self, opening: Array, width: Array) -> Plan:
        """Asked openings and widths (T,), eye distances from rest, as what is to be drawn for them."""
        # A mouth that stays as wide as it was in a picture grins when it opens.
        line = self._start.shape[mesh.LIP_INNER_UPPER, 1]
        smile = max(0.0, float(line[len(line) // 2] - line[[0, -1]].mean()))
        narrower = np.maximum(opening - NARROWS_FROM, 0) * np.float32(NARROWS + SMILE_NARROWS * smile)
        asked = self._mouth.plan(opening, width - narrower, np.zeros(len(opening), np.int32))
        # The landmarker sees painted mouths open half as far as they are; correcting all of that tears them.
        excess = np.maximum(asked.opening - soften(opening), 0)
        drawn, wide = asked.opening - np.float32(1 - BELIEF) * excess, float(self._mouth.tracks.width[0])
        return replace(asked, opening=soften(drawn, OPENING_MOST * wide, OPENING_KNEE * wide))

    def frame(self, mouth: Plan, moves: motion.Motion, k: int) -> Frame:
        """Output frame ``k``, (H, W, 3), an array of its own."""
        target = mouth[k]
        turned = self.warp.turned(moves.angles[k], motion.BREATH * float(moves.breath[k]), float(moves.brow[k]))
        x, y = self.warp.maps(turned)
        goal, tucked = self._goals(target.opening, target.width)
        meets = self._start.meets(target.opening)
        map_x, map_y = self._with_mouth(tucked, turned, x, y, meets)
        left, top, right, bottom = self.warp.box
        result: Frame = self.picture.copy()
        part = self._texture.read(map_x, map_y)
        cv2.copyTo(self.picture[top:bottom, left:right], self._stays, part)
        result[top:bottom, left:right] = part
        yaw, pitch = (float(angle) for angle in moves.gaze[k])
        self._lay_eyes(result, (x, y), turned, Look(float(moves.blink[k]), yaw, pitch))
        seen = turned.forward(goal)
        own = turned.forward(self._source)
        for share, layer in self._mouth.inside.layers(
            self._start,
            (own, seen),
            turned.pose,
            (target.opening, target.width),
            skin=self._skin,
            picture=lambda: self._turned_mouth(own, (x, y)),
        ):
            compose.lay(result, layer, share)
        return result

    def _turned_mouth(self, own: Array, maps: tuple[Array, Array]) -> Frame:
        """(H, W, 3) the turned picture round its unmoved mouth at ``own`` (550, 3); elsewhere nothing of use."""
        left, top, right, bottom = self.warp.box
        box = around(own[mesh.LIP_OUTER, :2], 0.1 * self.unit).meet(Box(left, top, right - left, bottom - top))
        frame = np.empty_like(self.picture)
        if not box.empty:
            rows, columns = slice(box.y - top, box.y - top + box.height), slice(box.x - left, box.x - left + box.width)
            box.cut(frame)[:] = self._texture.read(*(plane[rows, columns] for plane in maps))
        return frame

    def _goals(self, opening: float, width: float) -> tuple[Array, Array]:
        """(550, 3) pixels of the still picture where the mesh shall be, and where its pixels go."""
        moved = self._start.moved(self._mouth.basis, opening, width)
        goal, tucked = (self._head.to_pixels(shape[None])[0] for shape in (moved, self._start.tucked(moved)))
        return np.asarray(goal, np.float32), np.asarray(tucked, np.float32)

    def _with_mouth(self, goal: Array, turned: Turned, x: Array, y: Array, meets: bool) -> tuple[Array, Array]:
        """The maps of the turned head led on through the moved mouth."""
        shift = np.abs(goal[:, :2] - self._source[:, :2]).max(axis=1)
        if float(shift.max()) < 0.02:
            return x, y
        height, width = self.picture.shape[:2]
        touched = shift > 0.01
        triangles = self._mouth.basis.triangles
        corners = triangles[touched[triangles].any(axis=1)].ravel()
        box = around(np.concatenate([goal[corners, :2], self._source[corners, :2]]), 2).within(width, height)
        box = box.meet(compose.face_box(goal, self.unit, width, height))
        if box.empty:
            return x, y
        field = self._mouth._mover._field(self._source, goal, self.unit, box)
        # Where that box lies once the head is turned, in the maps' own rectangle.
        across, down = np.meshgrid(np.linspace(box.x, box.x + box.width, 9), np.linspace(box.y, box.y + box.height, 9))
        rim = np.stack([across.ravel(), down.ravel(), np.zeros(81)], axis=1).astype(np.float32)
        seen = around(turned.forward(rim), 3)
        left, top, right, bottom = self.warp.box
        seen = seen.meet(Box(left, top, right - left, bottom - top))
        if seen.empty:
            return x, y
        rows = slice(seen.y - top, seen.y - top + seen.height)
        columns = slice(seen.x - left, seen.x - left + seen.width)
        at_x, at_y = x[rows, columns] - np.float32(box.x), y[rows, columns] - np.float32(box.y)
        map_x, map_y = x.copy(), y.copy()
        # Halfway between the motions of two lips that meet lies what was between them: teeth.
        how = cv2.INTER_NEAREST if meets else cv2.INTER_LINEAR
        for plane, into in zip(field, (map_x, map_y), strict=True):
            into[rows, columns] += cv2.remap(plane, at_x, at_y, how, borderMode=cv2.BORDER_CONSTANT)
        return map_x, map_y

    def _lay_eyes(self, result: Frame, maps: tuple[Array, Array], turned: Turned, look: Look) -> None:
        if look.shut <= 0 and max(abs(look.yaw), abs(look.pitch)) < LOOK:
            return
        left, top, right, bottom = self.warp.box
        for which, eye in enumerate(self._eyes.boxes(2, look.shut > 0)):
            rim = np.array([[eye[i], eye[j], 0] for i in (0, 2) for j in (1, 3)], np.float32)
            seen = around(turned.forward(rim), 1).meet(Box(left, top, right - left, bottom - top))
            if seen.empty:
                continue
            rows = slice(seen.y - top, seen.y - top + seen.height)
            columns = slice(seen.x - left, seen.x - left + seen.width)
            places = maps[0][rows, columns], maps[1][rows, columns]
            seen.cut(result)[:] = self._eyes.render(which, self._texture, places, look)
