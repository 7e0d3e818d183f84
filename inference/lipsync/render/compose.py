"""From displacement fields to pixels: the moved face, the light on it, and layers over it."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.lipsync.render.interior import Drawing, Skin
from inference.lipsync.render.warp import STILL_PX, Box, Field, Painter, around, maps

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

BOX_SIDE, BOX_UP, BOX_DOWN = 0.95, 0.62, 1.12  #: eye distances round the middle of the mouth that may change
FACET_BLUR = 0.030  #: eye distances; rounds the triangles' edges off, away from the lips
COARSE_FROM = 90.0  #: pixels between the eyes from which every fourth pixel is enough away from the lips
LIPS_MARGIN = 0.05  #: eye distances round the lips in which nothing is rounded
FINE, EDGE_MARGIN = 3, 0.02  #: places looked at per pixel and direction; eye distances round the mouth for that
EDGE_GAP = 0.05  #: eye distances between lips up to which their edges are seen
PARTS_PX = 0.7  #: pixels between two motions within a pixel from which it holds an edge
MOUTH_RIGHT, MOUTH_LEFT = (216, 206, 207, 212, 43), (436, 426, 427, 432, 273)  #: skin on either side
CHIN_SKIN = (18, 200, 201, 421)


def face_box(points: Array, unit: float, width: int, height: int) -> Box:
    """The part of a picture that rendering may touch, for (V, 3) points in pixels."""
    centre = points[mesh.LIP_INNER, :2].mean(axis=0)
    # A leaning head turns the box with it: take the upright box round the turned one.
    axis = points[mesh.EYE_CORNER_LEFT, :2] - points[mesh.EYE_CORNER_RIGHT, :2]
    axis = axis / max(float(np.linalg.norm(axis)), 1e-6)
    down = np.array([-axis[1], axis[0]])
    corners = [
        centre + unit * (across * axis + along * down)
        for across in (-BOX_SIDE, BOX_SIDE)
        for along in (-BOX_UP, BOX_DOWN)
    ]
    return around(np.array(corners)).within(width, height)


class Mover:
    """Moves the pixels of a face from where the mesh was to where it shall be."""

    def __init__(self, painter: Painter) -> None:
        self._painter = painter

    def move(
        self, frame: Frame, source: Array, target: Array, unit: float, lips: bool = True
    ) -> tuple[Box, Frame] | None:
        """The changed rectangle and its pixels, or None when nothing moves by more than STILL_PX.

        ``source`` and ``target`` are (550, 3) pixels, ``unit`` the eye distance in pixels. Without
        ``lips`` those come out roughly, for when they are painted over.
        """
        shift = np.abs(target[:, :2] - source[:, :2]).max(axis=1)
        far = shift > STILL_PX / 2
        if shift.max() < STILL_PX:
            return None
        height, width = frame.shape[:2]
        triangles = self._painter.basis.triangles
        touched = np.zeros(len(target), bool)
        touched[triangles[far[triangles].any(axis=1)]] = True
        box = around(np.concatenate([target[touched, :2], source[touched, :2]]), 2)
        box = box.meet(face_box(target, unit, width, height))
        if box.empty:
            return None
        field = self._field(source, target, unit, box, lips)
        moving = (np.maximum(np.abs(field[0]), np.abs(field[1])) >= STILL_PX).astype(np.uint8)
        left, top, across, down = cv2.boundingRect(moving)
        if not across:
            return None
        inner = slice(top, top + down), slice(left, left + across)
        box = Box(box.x + left, box.y + top, across, down)
        x, y = maps((field[0][inner], field[1][inner]), box)
        moved = np.asarray(cv2.remap(frame, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE), np.uint8)
        if lips:
            self._smooth_edges(frame, (source, target), unit, box, moved)
        result = box.cut(frame).copy()
        cv2.copyTo(moved, moving[inner], result)
        return box, result

    def _smooth_edges(self, frame: Frame, places: tuple[Array, Array], unit: float, box: Box, moved: Frame) -> None:
        """Mix, in place, the pixels of ``moved`` through which two parts of the lips part, of what is in each of them.

        A pixel takes the motion of one triangle; where the next one moves otherwise, edges would be staircases.
        """
        source, target = places
        gap = np.linalg.norm(target[mesh.LIP_INNER_UPPER, :2] - target[mesh.LIP_INNER_LOWER, :2], axis=1).max()
        if gap > EDGE_GAP * unit:  # what is seen in a mouth has a soft edge of its own
            return
        near = around(target[mesh.LIP_INNER, :2], EDGE_MARGIN * unit).meet(box)
        if near.empty:
            return
        middle = np.float32((FINE - 1) / 2)
        fine = Box(near.x * FINE, near.y * FINE, near.width * FINE, near.height * FINE)
        painting = self._painter.paint(target * FINE + middle, self._painter.near_mouth, fine)
        shift = painting.sample(source * FINE + middle)
        edge = np.zeros((near.height, near.width), np.bool_)
        for plane in shift:
            blocks = plane.reshape(near.height, FINE, near.width, FINE)
            edge |= (blocks.max(axis=(1, 3)) - blocks.min(axis=(1, 3))) > PARTS_PX * FINE
        if not edge.any():
            return
        x, y = ((plane - middle) / np.float32(FINE) for plane in maps(shift, fine))
        parts = cv2.remap(frame, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        mixed = cv2.resize(parts, (near.width, near.height), interpolation=cv2.INTER_AREA)
        rows = slice(near.y - box.y, near.y - box.y + near.height)
        columns = slice(near.x - box.x, near.x - box.x + near.width)
        moved[rows, columns][edge] = mixed[edge]

    def _field(self, source: Array, target: Array, unit: float, box: Box, lips: bool = True) -> Field:
        """Coarse and smooth over the face, fine and exact round the lips."""
        painter = self._painter
        step = 4 if unit > COARSE_FROM else 2
        coarse = painter.paint(target, painter.sparse if lips else painter.moving, box, step).sample(source)
        sigma = max(FACET_BLUR * unit / step, 0.5)
        field = [
            np.ascontiguousarray(_enlarged(_blur(plane, sigma), step)[: box.height, : box.width]) for plane in coarse
        ]
        margin = LIPS_MARGIN * unit
        ring = target[mesh.LIP_OUTER, :2]
        near = around(ring, 2.5 * margin).meet(box)
        if lips and not near.empty:
            exact = painter.paint(target, painter.near_mouth, near).sample(source)
            weight = _hull(ring, near, round(margin))
            rows, columns = (
                slice(near.y - box.y, near.y - box.y + near.height),
                slice(near.x - box.x, near.x - box.x + near.width),
            )
            for plane, precise in zip(field, exact, strict=True):
                part = plane[rows, columns]
                part += (precise - part) * weight
        return field[0], field[1]


def _blur(plane: Array, sigma: float) -> Array:
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE), np.float32)


def _enlarged(plane: Array, step: int) -> Array:
    return np.asarray(cv2.resize(plane, None, fx=step, fy=step), np.float32)


def _hull(points: Array, box: Box, reach: int) -> Array:
    """(H, W) 1 inside the convex hull of (P, 2) pixels, falling to 0 over ``2 · reach`` pixels outside it."""
    weight = np.zeros((box.height, box.width), np.float32)
    hull = cv2.convexHull(np.round((points - [box.x, box.y]) * 16).astype(np.int32))
    cv2.fillConvexPoly(weight, hull, 1.0, cv2.LINE_8, 4)
    side = 2 * max(1, reach) + 1
    wider = cv2.dilate(weight, np.ones((side, side), np.uint8))
    return np.asarray(cv2.blur(wider, (side, side), borderType=cv2.BORDER_CONSTANT), np.float32)


def skin(frame: Frame, points: Array, unit: float) -> Skin:
    """The light on the face round the mouth. ``points`` are (V, 3) pixels in this frame."""
    height, width = frame.shape[:2]
    radius = max(1, round(0.03 * unit))

    def mean(vertices: tuple[int, ...]) -> Array:
        found = []
        for x, y in points[list(vertices), :2]:
            box = Box(round(float(x)) - radius, round(float(y)) - radius, 2 * radius + 1, 2 * radius + 1)
            box = box.within(width, height)
            if not box.empty:
                found.append(cv2.mean(box.cut(frame))[:3])
        return np.asarray(np.mean(found, axis=0) if found else np.full(3, 110.0), np.float32)

    weights = np.array([0.114, 0.587, 0.299], np.float32)
    right, left, chin = mean(MOUTH_RIGHT), mean(MOUTH_LEFT), mean(CHIN_SKIN)
    colour = (right + left + chin) / 3
    light = max(float(colour @ weights), 1.0)
    return Skin(
        bgr=np.asarray(colour, np.float32),
        right=float(np.clip(right @ weights / light, 0.6, 1.3)),
        left=float(np.clip(left @ weights / light, 0.6, 1.3)),
        grain=_grain(frame, points, unit),
    )


def _grain(frame: Frame, points: Array, unit: float) -> Array:
    """(h, w) what is finer than about a pixel and a half in the skin of the chin."""
    height, width = frame.shape[:2]
    x, y = (float(v) for v in points[list(CHIN_SKIN), :2].mean(axis=0))
    box = Box(round(x - 0.16 * unit), round(y - 0.07 * unit), round(0.32 * unit), round(0.14 * unit))
    box = box.within(width, height)
    if box.width < 8 or box.height < 8:
        return np.zeros((0, 0), np.float32)
    gray = cv2.cvtColor(np.ascontiguousarray(box.cut(frame)), cv2.COLOR_BGR2GRAY).astype(np.float32)
    fine = gray - cv2.GaussianBlur(gray, (0, 0), 1.5)
    limit = 3 * float(fine.std()) + 0.5  # a mole or a hair is no grain
    return np.asarray(np.clip(fine, -limit, limit)[2:-2, 2:-2], np.float32)


def lay(picture: Frame, drawing: Drawing, share: float = 1.0) -> None:
    """Blend a drawing into a picture in place, the whole of it or only a share."""
    box = drawing.box
    inside = box.within(picture.shape[1], picture.shape[0])
    if inside.empty:
        return
    top, side = inside.y - box.y, inside.x - box.x
    rows, columns = slice(top, top + inside.height), slice(side, side + inside.width)
    cover = drawing.cover[rows, columns, None] * np.float32(share)
    part = inside.cut(picture)
    blended = part + (drawing.bgr[rows, columns] - part) * cover
    part[:] = np.clip(np.rint(blended), 0, 255).astype(np.uint8)
