"""The inside that an open mouth of the template shows itself: kept, and kept where it belongs.

Teeth are fixed to the head. Stretching them along with the lips is what makes a warped smile look wrong, so the
pixels between the lips stay in place, only their upper edge follows the upper lip, and the new contour cuts
them off. What opens below them is drawn. That holds for a mouth filled with teeth; of one that shows the dark
below them, the dark grows and shrinks (:mod:`rows`).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.lipsync.render import palette, rows
from inference.lipsync.render.between import Between, Goal, Own
from inference.lipsync.render.canvas import smoothstep, softened
from inference.lipsync.render.interior import Drawing
from inference.lipsync.render.warp import Box, Painter, around, maps

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

EDGE_BLUR = 0.007  #: eye distances over which it fades into the lips and into what is drawn below
RIM = 0.20, 0.012  #: the lower edge of what is kept: share of the gap, and eye distances, above the landmarks
DARK = 0.45  #: of :func:`filled`, below which a mouth shows the dark under its teeth
LINE, LINE_BELOW = 0.008, 0.035  #: half width of a drawn seam, eye distances; opening below which it sets in
LINE_REACH = 0.012, 0.030  #: eye distances beside it up to which the lips are drawn, and from which they are not
LINE_SHADE = 0.52, 0.52, 0.42  #: blue, green and red that lips take from each other where they meet
LINE_ENDS = 0.10  #: share of the mouth at each corner over which the seam sets in
LIP_AT = (0.25, 0.4, 0.55)  #: places between the inner and the outer edge of a lip at which its colour is taken
TOOTH = 0.35, 0.75  #: how far a pixel has the colour of teeth: none of it, all of it is kept
ROW = 0.35, 0.55  #: share of the mouth's width in which teeth are seen: specks, a row that can stand alone
TEETH = 0.6  #: light between the lips, of that on them, below which no teeth are there


def filled(frame: Frame, points: Array) -> float:
    """Light of the darkest line across the open mouth at ``points`` (V, 3; pixels) over that of the brightest.

    0 when even that is too dark for teeth.
    """
    upper, lower = points[mesh.LIP_INNER_UPPER[3:-3], :2], points[mesh.LIP_INNER_LOWER[3:-3], :2]
    share = np.linspace(0.2, 0.8, 7, dtype=np.float32)[:, None, None]
    at = (upper + share * (lower - upper)).astype(np.float32)
    gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
    lines = cv2.remap(gray, at[..., 0].copy(), at[..., 1].copy(), cv2.INTER_LINEAR).mean(axis=1)
    lip = (points[mesh.LIP_OUTER_LOWER[3:-3], :2] + lower).astype(np.float32) / 2
    if lines[:5].max() < TEETH * cv2.remap(gray, lip[:, 0].copy(), lip[:, 1].copy(), cv2.INTER_LINEAR).mean():
        return 0.0
    return float(lines.min() / max(float(lines.max()), 1.0))


def line(frame: Frame, lips: Array, goal: Array, unit: float, opening: float) -> Drawing | None:
    """The seam that lips have when they meet and that an open mouth could not supply; None when they do not.

    The lips go on to it in their own colours, over what is left of teeth, and are darker there as lips are that shade
    each other. ``lips`` (550, 3) are the pixels of ``frame`` where they are, ``goal`` (550, 3) where they meet.
    """
    strength = float(np.clip(1 - opening / LINE_BELOW, 0, 1))
    if strength <= 0:
        return None
    middle = (goal[mesh.LIP_INNER_UPPER, :2] + goal[mesh.LIP_INNER_LOWER, :2]) / 2
    box = around(middle, LINE_REACH[1] * unit + 2)
    axis = (middle[-1] - middle[0]) / max(float(np.linalg.norm(middle[-1] - middle[0])), 1e-3)
    along = (middle - middle[0]) @ axis
    if (np.diff(along) <= 0).any():  # a head turned so far aside that its mouth folds
        return None
    rows, columns = np.mgrid[: box.height, : box.width].astype(np.float32)
    x, y = columns + (box.x - middle[0, 0]), rows + (box.y - middle[0, 1])
    place = x * axis[0] + y * axis[1]
    bow = (middle - middle[0]) @ np.array([-axis[1], axis[0]])
    off = (y * axis[0] - x * axis[1] - np.interp(place, along, bow)) / unit  # below the seam, eye distances
    upper, lower = _lip_colours(frame, lips)

    def spread(colours: Array) -> Array:
        return np.stack([np.interp(place, along, colours[:, channel]) for channel in range(3)], axis=-1)

    below = smoothstep(off, -LINE, LINE)[..., None]
    bgr = spread(upper) * (1 - below) + spread(lower) * below
    shade = np.exp(-np.square(off / max(LINE, 0.5 / unit)))[..., None]
    bgr *= 1 - np.array(LINE_SHADE, np.float32) * shade
    ends = np.minimum(place - along[0], along[-1] - place) / max(float(along[-1]), 1.0)
    cover = (1 - smoothstep(np.abs(off), *LINE_REACH)) * smoothstep(ends, 0.0, LINE_ENDS) * np.float32(strength)
    return Drawing(box, np.asarray(bgr, np.float32), np.asarray(cover, np.float32))


def _lip_colours(frame: Frame, lips: Array) -> tuple[Array, Array]:
    """(11, 3) each: the colours of the upper and the lower lip from corner to corner, beside their inner edges."""
    found = []
    for inner, outer in ((mesh.LIP_INNER_UPPER, mesh.LIP_OUTER_UPPER), (mesh.LIP_INNER_LOWER, mesh.LIP_OUTER_LOWER)):
        share = np.array(LIP_AT, np.float32)[:, None, None]
        at = lips[inner, :2] + share * (lips[outer, :2] - lips[inner, :2])
        x, y = (np.ascontiguousarray(at[..., axis], np.float32) for axis in (0, 1))
        colours = cv2.remap(frame, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
        row = np.median(colours, axis=0)[None]
        found.append(cv2.GaussianBlur(row, (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE)[0])
    return np.asarray(found[0], np.float32), np.asarray(found[1], np.float32)


def take(
    painter: Painter, frame: Frame, places: tuple[Array, Array], contour: NDArray[np.floating], unit: float
) -> Drawing | None:
    """The inside of the mouth in ``frame`` as a layer for lips at their goal.

    ``places`` are source and goal, (550, 3) pixels each, ``contour`` (P, 2) is the inner edge of the lips at the goal.
    """
    source, goal = places
    box = around(contour, 3 * EDGE_BLUR * unit + 2).within(frame.shape[1], frame.shape[0])
    if box.empty:
        return None
    place = goal.copy()
    # Below, the inside ends where it ended before; between, it hangs from the upper lip.
    place[mesh.LIP_INNER_LOWER[1:-1]] = source[mesh.LIP_INNER_LOWER[1:-1]]
    painting = painter.paint(place, painter.mouth, box)
    x, y = maps(painting.sample(source), box)
    pixels = cv2.remap(frame, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    shape = (box.height, box.width)
    edge = place.copy()
    gap = source[mesh.LIP_INNER_LOWER, :2] - source[mesh.LIP_INNER_UPPER, :2]
    length = np.maximum(np.linalg.norm(gap, axis=1, keepdims=True), 1e-3)
    edge[mesh.LIP_INNER_LOWER, :2] -= gap * np.minimum(RIM[0] + RIM[1] * unit / length, 0.9)
    kept, inside = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    ring = edge[mesh.LIP_INNER, :2]
    for mask, outline in ((kept, ring), (inside, contour)):
        fixed = np.round((outline - [box.x, box.y]) * 16).astype(np.int32)
        cv2.fillPoly(mask, [fixed], 255, cv2.LINE_AA, 4)
    cover = cv2.GaussianBlur(np.minimum(kept, inside), (0, 0), max(EDGE_BLUR * unit, 0.4)).astype(np.float32)
    cover *= softened(painting.ids >= 0) / np.float32(255)
    return Drawing(box, pixels.astype(np.float32), cover)


def laid(between: Between, frame: Frame, source: Array, shape: Array, goal: Goal) -> Drawing | None:
    """The inside of the mouth in ``frame`` as a layer, row by row; None when the lips meet.

    ``source`` and ``shape`` (550, 3) are the unmoved face in pixels and in head coordinates.
    """
    room = between.room(goal, Box(0, 0, frame.shape[1], frame.shape[0]))
    if room is None:
        return None
    x, y = between.places(Own(source, rows.Gap.of(shape), rows.teeth(frame, source)), goal, room)
    pixels = cv2.remap(frame, x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return Drawing(room.box, np.asarray(pixels, np.float32), room.cover)


def teeth(frame: Frame, source: Array, contour: NDArray[np.floating], unit: float) -> Drawing | None:
    """The teeth that parted lips show in ``frame`` as a layer, where they are: nothing of them moves.

    ``source`` (550, 3) is the unmoved face in pixels, ``contour`` (P, 2) the inner edge of its lips where they go. None
    when they are out of sight.
    """
    ring = source[mesh.LIP_INNER, :2]
    box = around(ring, 3 * EDGE_BLUR * unit + 2).meet(around(contour, 2)).within(frame.shape[1], frame.shape[0])
    if box.empty:
        return None
    pixels = box.cut(frame).astype(np.float32)
    kept = np.full((box.height, box.width), 255, np.uint8)
    for outline in (ring, contour):
        mask = np.zeros_like(kept)
        cv2.fillPoly(mask, [np.round((outline - [box.x, box.y]) * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        kept = np.minimum(kept, mask)
    shown = np.clip((palette.enamel(pixels, palette.lips(frame, source)) - TOOTH[0]) / (TOOTH[1] - TOOTH[0]), 0, 1)
    cover = shown * kept.astype(np.float32) / np.float32(255)
    cover = cv2.GaussianBlur(cover, (0, 0), max(EDGE_BLUR * unit, 0.4))
    return Drawing(box, pixels, np.asarray(cover, np.float32))


def a_row(seen: Drawing, source: Array) -> float:
    """0 where what :func:`teeth` has found are specks … 1 where it is a row; ``source`` as there."""
    corners = source[mesh.LIP_INNER_UPPER[[0, -1]], :2]
    width = max(float(np.linalg.norm(corners[1] - corners[0])), 1.0)
    tall, wide = (float((seen.cover.max(axis=axis) > 0.5).sum()) for axis in (1, 0))
    return float(smoothstep(np.float32(max(tall, wide) / width), *ROW))
