"""Frames in which something lies on the lower face: a hand, a cup, a microphone, a mask.

The landmarker goes on to see a mouth there, and one drawn on a hand is the worst of all results. Two signs tell:

* The skin from nose to chin, unwrapped through the mesh and without what changes slowly over it (light, shade), looks
  the same in all frames of a shot, whatever head and jaw do: it correlates with the usual look by .75 and more, a hand
  by .35 and less. In between, what comes slowly is a head that turns, and what comes at once is not.
* Lips have another colour than the skin round them, and a mask or a palm where they should be has not.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]
Look = NDArray[np.int8]  #: (cells,)

ROWS, COLUMNS = 40, 44
RIGHT, LEFT, TOP, BOTTOM = -0.42, 0.42, 0.20, 0.96  #: of the grid, in head coordinates
UNIT = 60.0  #: pixels of an eye distance that are enough to look at
DETAIL = 3.2  #: cells; what is wider than this is light
STRONGEST = 25  #: grey levels; what is stronger is an edge or a highlight and counts no more than this
OTHER = 0.40  #: correlation with the usual look below which something is before the face
UNUSUAL = 0.60  #: and below which it is when it came, or goes, at once
AT_ONCE = 0.60  #: correlation with the look a few frames ago that means so
STEP = 4  #: frames in which a hand comes
PALE = 3.0  #: lips that are nearer than this to the colour of the skin (CIE 1976 ΔE) are none
LEAST = 1.0  #: grey levels: skin without more detail than this says nothing
SAMPLED = 400  #: frames that are enough to know the usual look
FEW = 3  #: frames of a shot below which there is no usual look
MARGIN = 2  #: frames beside a covered one that are covered in part
BRIEF = 12  #: clear frames between covered ones that are too few to speak in


@dataclass(frozen=True)
class Sight:
    """What of one frame tells whether the mouth is covered, and whose face it is."""

    look: Look  #: (cells,) detail of the skin, grey levels
    lips: float  #: ΔE between lips, or the line between them, and skin
    colour: Array  #: (4,) a*, b* (CIE 1976) of the skin round the lips, and of the lips


class Skin:
    """Looks at the lower face in frames. Immutable."""

    def __init__(self, face: mesh.Mesh) -> None:
        flat = face.vertices[:, :2].astype(np.float32)
        y, x = np.meshgrid(np.linspace(TOP, BOTTOM, ROWS), np.linspace(RIGHT, LEFT, COLUMNS), indexing="ij")
        spots = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float32)
        self._corners, self._weights = _located(spots, face)
        outer, inner = (_inside(spots, flat[ring]) for ring in (mesh.LIP_OUTER, mesh.LIP_INNER))
        on_face = self._weights.any(axis=1)
        self._skin = on_face & (outer < -0.02)
        self._ring = on_face & (outer < -0.04) & (outer > -0.14)
        self._lips = (outer > 0.005) & (inner < 0)
        self._line = inner >= -0.005
        self._light = self._blur(self._skin.astype(np.float32))

    def see(self, frame: Frame, points: mesh.Points) -> Sight:
        """Look at a frame (H, W, 3) BGR whose landmarks (478, 3) are given in its pixels."""
        cells = self._unwrap(frame, points)
        gray = (cells @ np.array([0.114, 0.587, 0.299])).astype(np.float32)
        detail = (gray - self._blur(gray * self._skin) / np.maximum(self._light, 1e-3))[self._skin]
        look = np.clip(np.rint(4 * detail), -4 * STRONGEST, 4 * STRONGEST).astype(np.int8)
        lab = cv2.cvtColor((cells / 255).astype(np.float32)[None], cv2.COLOR_BGR2Lab)[0]
        skin, lips, line = (lab[part].mean(axis=0) for part in (self._ring, self._lips, self._line))
        apart = max(float(np.linalg.norm(part - skin)) for part in (lips, line))
        return Sight(look, apart, np.concatenate([skin[1:], lips[1:]]))

    def blank(self) -> Sight:
        """Of a frame without a face."""
        return Sight(np.zeros(int(self._skin.sum()), np.int8), 0.0, np.zeros(4, np.float32))

    def _unwrap(self, frame: Frame, points: mesh.Points) -> NDArray[np.uint8]:
        """(cells, 3) BGR of the grid, on a frame that is first shrunk to what is needed."""
        spots = np.einsum("nk,nkc->nc", self._weights, points[self._corners][..., :2])
        used = spots[self._weights.any(axis=1)]
        edge = np.array([frame.shape[1], frame.shape[0]])
        low = np.clip(np.floor(used.min(axis=0)).astype(int) - 2, 0, edge - 2)
        high = np.clip(np.ceil(used.max(axis=0)).astype(int) + 3, low + 2, edge)
        part = frame[low[1] : high[1], low[0] : high[0]]
        unit = float(np.linalg.norm(points[mesh.EYE_CORNER_LEFT, :2] - points[mesh.EYE_CORNER_RIGHT, :2]))
        shrink = min(1.0, UNIT / max(unit, 1.0))
        if shrink < 1:
            size = max(2, round(part.shape[1] * shrink)), max(2, round(part.shape[0] * shrink))
            part = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), np.uint8)
        at = (spots - low + 0.5) * np.array([part.shape[1], part.shape[0]]) / (high - low) - 0.5
        x, y = (np.ascontiguousarray(at[None, :, k], np.float32) for k in (0, 1))
        picked = cv2.remap(part, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(picked[0], np.uint8)

    @staticmethod
    def _blur(cells: Array) -> Array:
        return np.asarray(cv2.GaussianBlur(cells.reshape(ROWS, COLUMNS), (0, 0), DETAIL).ravel(), np.float32)


def covered(looks: Look, lips: Array, found: NDArray[np.bool_], shots: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(N,) True where something is before the mouth. looks: (N, cells), lips: (N,), both of ``Sight``; shots: (N,)
    the shot that each frame belongs to."""
    result = np.zeros(len(found), np.bool_)
    for shot in np.unique(shots[found]):
        frames = np.flatnonzero(found & (shots == shot))
        pale = lips[frames] < PALE
        result[frames] = pale | _unlike(looks[frames], ~pale)
    wide = result.copy()
    for shift in range(1, MARGIN + 1):
        same = shots[shift:] == shots[:-shift]
        wide[:-shift] |= result[shift:] & same
        wide[shift:] |= result[:-shift] & same
    for start, stop in _runs(~wide):
        if start > 0 and stop < len(wide) and stop - start < BRIEF and shots[start - 1] == shots[stop]:
            wide[start:stop] = True
    return np.asarray(wide & found, np.bool_)


def _unlike(looks: Look, plain: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of the frames of one shot, those that look unlike the usual. plain: frames that may tell what is usual."""
    own = np.flatnonzero(plain)
    if len(own) < FEW:
        return np.zeros(len(looks), np.bool_)
    sample = own[np.linspace(0, len(own) - 1, min(SAMPLED, len(own))).round().astype(int)]
    usual = normal(np.median(looks[sample], axis=0).astype(np.float32)[None])[0]
    alike, before = np.empty(len(looks), np.float32), np.ones(len(looks), np.float32)
    past: list[Array] = []
    for k, look in enumerate(looks):
        own_look = normal(look.astype(np.float32)[None])[0]
        alike[k] = float((own_look * usual).mean())
        past.append(own_look)
        if len(past) > STEP:
            before[k] = float((own_look * past.pop(0)).mean())
    result = alike < OTHER
    unusual = alike < UNUSUAL
    for start, stop in _runs(unusual):
        if (before[start : start + STEP + 1] < AT_ONCE).any() or (before[stop : stop + STEP + 1] < AT_ONCE).any():
            result[start:stop] = True
    return result


def normal(looks: Array) -> Array:
    """(N, cells) looks with mean 0 and variance 1, those without detail weaker."""
    looks = looks - looks.mean(axis=1, keepdims=True)
    return np.asarray(looks / np.maximum(looks.std(axis=1, keepdims=True), 4 * LEAST), np.float32)


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(start, stop) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _inside(spots: Array, ring: Array) -> Array:
    """(n,) how far each spot lies inside a closed ring of points; negative outside."""
    outline = np.ascontiguousarray(ring, np.float32)
    return np.array([cv2.pointPolygonTest(outline, (float(x), float(y)), True) for x, y in spots], np.float32)


def _located(spots: Array, face: mesh.Mesh) -> tuple[NDArray[np.int32], Array]:
    """(n, 3) the corners of the foremost triangle round each spot, and (n, 3) their shares; zeros for none."""
    corners, shares = np.zeros((len(spots), 3), np.int32), np.zeros((len(spots), 3), np.float32)
    nearest = np.full(len(spots), np.inf)
    for triangle in face.triangles:
        a, b, c = face.vertices[triangle, :2].astype(np.float64)
        sides = np.stack([b - a, c - a], axis=1)
        if abs(np.linalg.det(sides)) < 1e-9:
            continue
        two = (spots - a) @ np.linalg.inv(sides).T
        share = np.concatenate([1 - two.sum(axis=1, keepdims=True), two], axis=1)
        depth = share @ face.vertices[triangle, 2]
        better = (share.min(axis=1) >= -1e-6) & (depth < nearest)
        corners[better], shares[better], nearest[better] = triangle, share[better], depth[better]
    return corners, shares
