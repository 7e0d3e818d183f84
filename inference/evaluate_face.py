"""How a lip-synced face looks, in numbers: what the landmarks of its mouth do not tell.

Of the encoded pictures, their luminance, in patches that stand still on the head:

    flicker    second difference over time while nobody speaks, by its root mean square. The warping error of Lai et
               al., *Learning Blind Video Temporal Consistency* (2018), with the head's pose in place of an optical
               flow, and second in place of first differences: what moves evenly is no flicker
    seam       step of the light across the edge of the borrowed mouth, less the step that the template has there; the
               term of Agarwala et al., *Interactive Digital Photomontage* (2004), averaged along the edge
    likeness   of the lower face to the most similar of the template's own: SSIM of Wang et al., *Image Quality
               Assessment* (2004)

Of the renderer's plan for a template that talks, whose mouths are borrowed as in Bregler, Covell and Slaney, *Video
Rewrite* (1997):

    held       frames for which one borrowed mouth is shown while the opening that is asked for moves
    stretch    height of its teeth over their own: teeth are rigid, the upper ones to the skull and the lower ones to
               the jaw (Wu et al., *Model-Based Teeth Reconstruction*, 2016)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.encode import Planes
from inference.face import mesh
from inference.lipsync.render import mouths, palette
from inference.lipsync.render.plan import Plan
from inference.lipsync.render.renderer import MeshRenderer
from inference.lipsync.render.tracks import Tracks

Array = NDArray[np.float32]

SIDE = 96  #: pixels of a patch
MOUTH, FACE, NOSE = (
    0.34,
    0.52,
    0.13,
)  #: half the side of a patch round the mouth, the lower face and the nose, eye distances
REFERENCES, NEAREST = 160, 8  #: template frames kept to be compared with; those whose opening is nearest are
EDGE_INSIDE, EDGE_OUTSIDE, EDGE_POINTS, EDGE_SMOOTH = 0.12, 0.03, 120, 9  #: eye distances; points along the edge
EDGE_OUTLINE, EDGE_LIPS = 0.06, 0.08  #: eye distances from the outline and the lips within which light steps anyway
HELD, MOVED = 4, 0.03  #: frames from which a mouth is held; eye distances that the asked opening moves meanwhile
STRETCHED = 1.4  #: height of teeth over their own from which they look like rubber
LEAST_TEETH = 12, 0.10  #: pixels, and share of what lies between the lips


@dataclass(frozen=True)
class Looks:
    """Of T output frames; NaN where it does not apply."""

    flicker: Array  #: (T,) grey levels, round the mouth
    flicker_nose: Array  #: (T,) the same on the nose, which nobody paints: grain, and what the encoder does
    seam: Array  #: (T,) grey levels
    likeness: Array  #: (T,) −1..1


@dataclass(frozen=True)
class Donors:
    """The borrowed mouths of T output frames; NaN where it does not apply."""

    held: Array  #: (T,) length of the stretch in which the mouth of a frame is held, frames
    stretch: Array  #: (T,) height of the teeth over their own


class Patch:
    """Upright pictures of one part of a head, whatever its pose."""

    def __init__(self, tracks: Tracks, vertices: mesh.Index, half: float) -> None:
        centre = tracks.mean[vertices].mean(axis=0)
        corners = centre + half * np.array([[-1, -1, 0], [1, -1, 0], [-1, 1, 0]], np.float32)
        self._places = tracks.pose.to_pixels(corners.astype(np.float32))[..., :2]

    def cut(self, light: NDArray[np.uint8], index: int) -> Array:
        """(SIDE, SIDE) of a frame's luminance (H, W)."""
        to = np.array([[0, 0], [SIDE - 1, 0], [0, SIDE - 1]], np.float32)
        matrix = cv2.getAffineTransform(to, self._places[index].astype(np.float32))
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        cut = cv2.warpAffine(light, matrix, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(cut, np.float32)


class Likeness:
    """How much lower faces are like a template's own."""

    def __init__(self, patch: Patch, opening: Array) -> None:
        self._patch, self._opening = patch, opening
        self._own: dict[int, Array] = {}

    def wanted(self, found: NDArray[np.bool_]) -> set[int]:
        """The template frames to hand to :meth:`learn`."""
        seen = np.flatnonzero(found)
        return set(seen[np.linspace(0, len(seen) - 1, min(REFERENCES, len(seen))).round().astype(int)].tolist())

    def learn(self, light: NDArray[np.uint8], index: int) -> None:
        """One frame of the template."""
        self._own[index] = self._patch.cut(light, index)

    def of(self, light: NDArray[np.uint8], index: int, opening: float) -> float:
        """Of an output frame in the pose of template frame ``index``; NaN when there is nothing to compare with."""
        if not self._own or not np.isfinite(opening):
            return float("nan")
        shown = self._patch.cut(light, index)
        known = np.array(list(self._own))
        nearest = known[np.argsort(np.abs(self._opening[known] - opening), kind="stable")[:NEAREST]]
        return max(ssim(shown, self._own[int(k)]) for k in nearest)


def ssim(one: Array, other: Array) -> float:
    """Mean structural similarity of two pictures of 0..255, with Wang's window and constants."""

    def mean(values: Array) -> Array:
        return np.asarray(cv2.GaussianBlur(values, (11, 11), 1.5), np.float32)

    small, smaller = np.float32((0.01 * 255) ** 2), np.float32((0.03 * 255) ** 2)
    first, second = mean(one), mean(other)
    spread, wide = mean(one * one) - first * first, mean(other * other) - second * second
    both = mean(one * other) - first * second
    light = (2 * first * second + small) / (first * first + second * second + small)
    return float((light * (2 * both + smaller) / (spread + wide + smaller)).mean())


class Edge:
    """The step of the light across the edge of a borrowed mouth."""

    def __init__(self, tracks: Tracks) -> None:
        self._tracks = tracks

    def step(self, shown: NDArray[np.uint8], own: NDArray[np.uint8], index: int) -> float:
        """Grey levels by which ``shown`` steps otherwise than the template's ``own`` frame, on average.

        The outline of a turned head beside its mouth is no seam, and lips that move are none: NaN when nothing is left.
        """
        points, unit = self._tracks.pixels(index), float(self._tracks.pose.scale[index])
        hull = cv2.convexHull(points[list(mouths.HULL), :2].astype(np.float32))[:, 0]
        ring = np.concatenate([hull, hull[:1]])
        along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(ring, axis=0), axis=1))])
        at = np.linspace(0, along[-1], EDGE_POINTS, endpoint=False)
        edge = np.stack([np.interp(at, along, ring[:, axis]) for axis in (0, 1)], axis=1)
        inward = hull.mean(axis=0) - edge
        inward *= unit / np.linalg.norm(inward, axis=1, keepdims=True)
        places = np.stack([edge + EDGE_INSIDE * inward, edge - EDGE_OUTSIDE * inward]).astype(np.float32)
        steps = [_at(picture, places[0]) - _at(picture, places[1]) for picture in (shown, own)]
        outline, lips = (cv2.convexHull(points[some, :2].astype(np.float32)) for some in (slice(None), mesh.LIP_OUTER))
        within = _depth(outline, places[1]) > EDGE_OUTLINE * unit
        beside = _depth(lips, places[0]) < -EDGE_LIPS * unit
        skin = (within & beside).astype(np.float32)
        off, known = (_along(values) for values in ((steps[0] - steps[1]) * skin, skin))
        if not (known > 0.5).any():
            return float("nan")
        return float(np.abs(off / np.maximum(known, 0.5))[known > 0.5].mean())


def look(
    pictures: Iterable[tuple[Planes, Planes | None]],
    tracks: Tracks,
    order: NDArray[np.int32],
    *,
    calm: NDArray[np.bool_],
    opening: Array,
    likeness: Likeness | None,
) -> Looks:
    """Look at T output frames, given as planes with the template's own frame, in order.

    ``tracks`` are those of the template, or of the video when there is none, and ``order`` (T,) says which of its
    frames each output frame shows. ``calm`` (T,) is where nobody speaks, ``opening`` (T,) what the video shows.
    """
    total = len(order)
    mouth, nose = Patch(tracks, mesh.LIP_INNER, MOUTH), Patch(tracks, np.array([mesh.NOSE_TIP], np.int32), NOSE)
    edge = Edge(tracks)
    flicker, still, seam, alike = (np.full(total, np.nan, np.float32) for _ in range(4))
    before: list[tuple[Array, Array] | None] = [None, None]
    for k, (shown, own) in enumerate(pictures):
        index = int(order[k])
        now = None
        if tracks.found[index]:
            light = _light(shown)
            now = mouth.cut(light, index), nose.cut(light, index)
            one, other = before
            if calm[max(0, k - 2) : k + 1].all() and one is not None and other is not None:
                flicker[k - 1], still[k - 1] = (_rms(a - 2 * b + c) for a, b, c in zip(one, other, now, strict=True))
            if own is not None:
                seam[k] = edge.step(light, _light(own), index)
            if likeness is not None:
                alike[k] = likeness.of(light, index, float(opening[k]))
        before = [before[1], now]
    return Looks(flicker, still, seam, alike)


def donors(renderer: MeshRenderer, plan: Plan) -> Donors:
    """Of the mouths that a plan borrows."""
    held, stretch = (np.full(len(plan), np.nan, np.float32) for _ in range(2))
    main = np.where(plan.blend > 0.5, plan.mouths[:, 1], plan.mouths[:, 0])
    edges = np.flatnonzero(np.concatenate([[True], np.diff(main) != 0, [True]]))
    for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        moved = float(np.ptp(plan.opening[start:stop]))
        held[start:stop] = stop - start if stop - start >= HELD and moved >= MOVED else 0
    for k in range(len(plan)):
        if main[k] >= 0 and renderer.tracks.found[plan.frames[k]]:
            stretch[k] = stretched(renderer, plan, k)
    held[main < 0] = np.nan
    return Donors(held, stretch)


def stretched(renderer: MeshRenderer, plan: Plan, k: int) -> float:
    """The height of the teeth of output frame ``k`` over their own, by the median; NaN when none are seen."""
    tracks, index, target = renderer.tracks, int(plan.frames[k]), plan.target(k)
    mouth = max(target.pictures, key=lambda pair: pair[1])[0]
    head = tracks.pose.take(index)
    _, goal = renderer.with_own_lips(index, target, head)
    between = renderer.transplant.between(mouth, goal)
    if between is None:
        return float("nan")
    cover, (x, y) = between
    picture = renderer.materials.mouths.pictures[mouth]
    seen = np.asarray(cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE), np.float32)
    lips = palette.lips(picture, renderer.transplant.points(mouth))
    inside = (cover > 0.5) & (cv2.erode(cover, np.ones((3, 3), np.uint8)) > 0)  # rates need neighbours
    teeth = (palette.enamel(seen, lips) > 0.5) & inside
    if teeth.sum() < max(LEAST_TEETH[0], LEAST_TEETH[1] * float(inside.sum())):
        return float("nan")
    down = head.rotation[0, :2, 1] / np.linalg.norm(head.rotation[0, :2, 1])
    rates = [np.tensordot(down[::-1], np.gradient(plane), 1) for plane in (x, y)]
    length = np.hypot(*rates)[teeth]  # pixels of the donor per pixel of the picture
    own = float(tracks.pose.scale[renderer.materials.mouths.frame[mouth]])
    return float(own / goal.unit / max(float(np.median(length)), 1e-3))


def _light(planes: Planes) -> NDArray[np.uint8]:
    return np.asarray(planes[: planes.shape[0] * 2 // 3], np.uint8)


def _depth(outline: NDArray[np.floating | np.integer], places: Array) -> Array:
    """(N,) how far places (N, 2) lie inside a closed line, pixels; negative outside."""
    return np.array([cv2.pointPolygonTest(outline, place, True) for place in places.astype(float).tolist()], np.float32)


def _along(values: Array) -> Array:
    """The mean over EDGE_SMOOTH neighbours on a closed line (N,)."""
    padded = np.pad(values, EDGE_SMOOTH // 2, mode="wrap")
    return np.asarray(np.convolve(padded, np.full(EDGE_SMOOTH, 1 / EDGE_SMOOTH), "valid"), np.float32)


def _at(light: NDArray[np.uint8], places: Array) -> Array:
    found = cv2.remap(
        light, places[:, 0].copy(), places[:, 1].copy(), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(found, np.float32).ravel()  # OpenCV 4 gives a column, 5 a row


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
