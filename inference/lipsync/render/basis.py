"""How a face moves when its mouth opens or spreads: two displacement fields over the mesh.

Head coordinates throughout (:mod:`inference.face.pose`): unit = the eye distance, x right, y down, z away.
``opening`` is the gap 13–14, ``width`` the distance 61–291. The table below is a least-squares fit of the
vertices on those two, over 17 people talking on camera (16 clips, head turned less than 16°), made symmetric.
Only the chin is not as measured: the landmarker follows it too little (.41 per 1.0 of opening), which would
squeeze the skin between lip and chin, so its rows are raised by a third.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh

Array = NDArray[np.float32]

OPENING_KNEE, OPENING_MAX = 0.17, 0.245  #: beyond this a warped mouth becomes a diamond over a long chin
FADE_TOP = (0.02, 0.30)  #: y between which the motion sets in, from the middle of the nose down
FADE_SIDE = (0.50, 0.74)  #: |x| between which it dies out towards the ears
SPARSE = 0.10  #: head units between the corners of the large triangles
RINGS = ((1.22, 0.55), (1.75, 0.0))  #: rings outside the face oval: radius, share of the oval's motion

# Right half and midline. Vertex: dx dy dz per 1.0 of opening, dx dy dz per 1.0 of width.
_TABLE: dict[int, tuple[float, ...]] = {
    # inner ring, corner to centre: upper, lower
    78: (0.03, 0.17, 0.16, -0.53, -0.40, 0.26),
    191: (-0.01, 0.04, 0.09, -0.47, -0.37, 0.22),
    80: (-0.01, -0.06, 0.02, -0.38, -0.32, 0.17),
    81: (-0.03, -0.14, -0.03, -0.26, -0.27, 0.13),
    82: (-0.03, -0.19, -0.05, -0.13, -0.23, 0.09),
    13: (0, -0.21, -0.06, 0, -0.22, 0.08),
    95: (0.02, 0.43, 0.23, -0.46, -0.30, 0.24),
    88: (0, 0.58, 0.25, -0.38, -0.26, 0.19),
    178: (-0.03, 0.68, 0.25, -0.26, -0.24, 0.15),
    87: (-0.03, 0.74, 0.25, -0.13, -0.23, 0.11),
    14: (0, 0.75, 0.25, 0, -0.22, 0.10),
    # outer ring: upper, lower
    61: (0, 0.16, 0.15, -0.50, -0.42, 0.25),
    185: (-0.06, 0.05, 0.10, -0.41, -0.37, 0.23),
    40: (-0.08, -0.02, 0.06, -0.32, -0.31, 0.17),
    39: (-0.08, -0.08, 0.01, -0.22, -0.24, 0.11),
    37: (-0.05, -0.11, -0.01, -0.11, -0.18, 0.09),
    0: (0, -0.12, -0.02, 0, -0.17, 0.10),
    146: (-0.07, 0.37, 0.23, -0.39, -0.37, 0.24),
    91: (-0.11, 0.55, 0.31, -0.27, -0.35, 0.16),
    181: (-0.12, 0.68, 0.35, -0.16, -0.36, 0.08),
    84: (-0.08, 0.77, 0.37, -0.07, -0.37, 0.0),
    17: (0, 0.80, 0.38, 0, -0.37, -0.02),
    # corners between the rings
    76: (0.01, 0.16, 0.15, -0.51, -0.42, 0.25),
    62: (0.02, 0.17, 0.16, -0.52, -0.41, 0.26),
    # round the lips
    57: (-0.02, 0.12, 0.16, -0.25, -0.35, 0.20),
    186: (-0.01, 0.06, 0.10, -0.25, -0.28, 0.20),
    92: (-0.03, 0.02, 0.06, -0.20, -0.22, 0.15),
    165: (-0.04, -0.01, 0.03, -0.14, -0.17, 0.08),
    167: (-0.03, -0.02, 0.02, -0.06, -0.11, 0.03),
    164: (0, -0.03, 0, 0, -0.09, 0.02),
    43: (-0.07, 0.26, 0.23, -0.19, -0.34, 0.20),
    106: (-0.11, 0.41, 0.32, -0.14, -0.32, 0.13),
    182: (-0.13, 0.57, 0.40, -0.09, -0.31, 0.04),
    83: (-0.09, 0.68, 0.46, -0.04, -0.32, -0.08),
    18: (0, 0.72, 0.48, 0, -0.32, -0.11),
    # cheeks and the fold beside the nose
    212: (0.02, 0.12, 0.16, -0.18, -0.28, 0.16),
    216: (0.04, 0.04, 0.09, -0.22, -0.23, 0.13),
    206: (0.01, 0.02, 0.06, -0.16, -0.16, 0.08),
    203: (-0.01, 0, 0.02, -0.11, -0.13, 0.03),
    205: (0.01, 0.03, 0.03, -0.15, -0.13, 0.03),
    207: (0.05, 0.05, 0.06, -0.20, -0.17, 0.08),
    187: (0.02, 0.03, 0.01, -0.17, -0.14, 0.08),
    214: (0.03, 0.14, 0.14, -0.16, -0.21, 0.13),
    213: (0.01, 0.05, 0.01, -0.14, -0.11, 0.10),
    # chin and jaw
    202: (-0.03, 0.24, 0.25, -0.12, -0.27, 0.16),
    204: (-0.07, 0.35, 0.34, -0.08, -0.25, 0.09),
    194: (-0.08, 0.50, 0.42, -0.07, -0.25, -0.01),
    201: (-0.06, 0.62, 0.48, -0.03, -0.26, -0.09),
    200: (0, 0.66, 0.50, 0, -0.28, -0.11),
    199: (0, 0.60, 0.50, 0, -0.25, -0.09),
    175: (0, 0.57, 0.48, 0, -0.24, -0.09),
    152: (0, 0.55, 0.46, 0, -0.25, -0.08),
    148: (-0.04, 0.51, 0.44, 0.02, -0.23, -0.07),
    176: (-0.05, 0.42, 0.40, 0.02, -0.19, -0.03),
    149: (-0.04, 0.32, 0.32, 0.01, -0.16, 0.02),
    150: (-0.02, 0.25, 0.23, -0.01, -0.13, 0.07),
    136: (0.01, 0.18, 0.12, -0.04, -0.11, 0.10),
    172: (0.02, 0.12, 0.03, -0.07, -0.07, 0.11),
    58: (0.01, 0.05, 0, -0.06, -0.03, 0.06),
    132: (0, 0, 0, 0, 0, 0),
}


@dataclass(frozen=True)
class Basis:
    """The two fields and the mesh they live on: 478 vertices and two rings of 36 beyond the face oval."""

    motion: Array  #: (2, 550, 3) per 1.0 of opening, of width
    reach: Array  #: (550,) 1 on lips and chin, 0 where nothing ever moves
    triangles: mesh.Index  #: (T, 3) into 550 vertices, mouth included
    in_mouth: NDArray[np.bool_]  #: (T,) the triangles that close the mouth
    on_lips: NDArray[np.bool_]  #: (T,) the triangles of the lips
    sparse: mesh.Index  #: (S, 3) fewer, larger triangles over all that moves, for where nothing fine matters

    def move(self, opening: float, width: float) -> Array:
        """(550, 3) displacement for a change of opening and width."""
        return np.asarray(np.float32(opening) * self.motion[0] + np.float32(width) * self.motion[1], np.float32)


def soften(opening: Array, top: float = OPENING_MAX, knee: float = OPENING_KNEE) -> Array:
    """Openings kept as they are up to ``knee`` and bent smoothly towards ``top`` beyond it; never below 0."""
    asked = np.maximum(np.asarray(opening, np.float32), 0)
    room = top - knee
    bent = knee + room * np.tanh((asked - knee) / room)
    return np.asarray(np.where(asked > knee, bent, asked), np.float32)


def extend(points: mesh.Points) -> Array:
    """(…, 478, 3) → (…, 550, 3): the face oval repeated outside itself, radially from the middle of the face."""
    oval = points[..., mesh.OVAL, :]
    centre = oval.mean(axis=-2, keepdims=True)
    rings = [centre + np.float32(radius) * (oval - centre) for radius, _ in RINGS]
    for ring in rings:
        ring[..., 2] = oval[..., 2]
    return np.concatenate([points, *rings], axis=-2).astype(np.float32)


@lru_cache(maxsize=2)
def build(face: mesh.Mesh) -> Basis:
    """The basis on a face mesh; takes about 50 ms, once per mesh."""
    known = dict(_TABLE)
    for vertex, row in _TABLE.items():
        other = int(face.mirror[vertex])
        if other != vertex:
            known[other] = tuple(v * s for v, s in zip(row, (-1, 1, 1, -1, 1, 1), strict=True))
    window = _window(face.vertices)
    table = np.zeros((mesh.POINTS, 7))
    table[list(known), :6] = list(known.values())
    lips_and_chin = [v for v in known if face.vertices[v, 1] > 0.36 and abs(face.vertices[v, 0]) < 0.34]
    table[lips_and_chin, 6] = 1
    fixed = set(np.flatnonzero(window == 0)) | set(range(mesh.VERTICES, mesh.POINTS))
    held = np.array(sorted(fixed | set(known)))
    reach_held = np.array(sorted(fixed | set(lips_and_chin)))
    smooth = np.concatenate([_harmonic(face, table[:, :6], held), _harmonic(face, table[:, 6:], reach_held)], axis=1)
    smooth *= window[:, None]
    rings = [share * smooth[mesh.OVAL] for _, share in RINGS]
    full = np.concatenate([smooth, *rings]).astype(np.float32)
    triangles, in_mouth = _triangles(face)
    lips = np.isin(triangles, np.concatenate([mesh.LIP_INNER, mesh.LIP_OUTER, _between(face)])).all(axis=1)
    motion = np.stack([full[:, :3], full[:, 3:6]])
    # Spreading alone must not part the lips.
    pair = (motion[1, mesh.LIP_INNER_UPPER] + motion[1, mesh.LIP_INNER_LOWER]) / 2
    motion[1, mesh.LIP_INNER_UPPER] = motion[1, mesh.LIP_INNER_LOWER] = pair
    sparse = _sparse(extend(face.vertices)[:, :2], triangles[full[triangles, 6].max(axis=1) > 0])
    return Basis(motion, full[:, 6].copy(), triangles, in_mouth, lips & ~in_mouth, sparse)


def _window(vertices: mesh.Points) -> NDArray[np.float64]:
    """(478,) 0 above the nose and towards the ears, 1 round the mouth."""
    down = _smoothstep(vertices[:, 1], *FADE_TOP)
    # Below the mouth the jaw line itself carries the motion, so the sides fade only beside the cheeks.
    below = _smoothstep(vertices[:, 1], 0.30, 0.62)
    side = 1 - _smoothstep(np.abs(vertices[:, 0]), *FADE_SIDE)
    return np.asarray(down * (side + (1 - side) * below), np.float64)


def _harmonic(face: mesh.Mesh, values: NDArray[np.float64], held: NDArray[np.int64]) -> NDArray[np.float64]:
    """(478, K) ``values`` where ``held``, elsewhere the weighted mean of the neighbours (by 1 / distance)."""
    edges = face.edges
    pull = 1 / np.maximum(np.linalg.norm(face.vertices[edges[:, 0]] - face.vertices[edges[:, 1]], axis=1), 1e-3)
    laplace = np.zeros((mesh.POINTS, mesh.POINTS))
    np.add.at(laplace, (edges[:, 0], edges[:, 1]), -pull)
    np.add.at(laplace, (edges[:, 1], edges[:, 0]), -pull)
    laplace[np.arange(mesh.POINTS), np.arange(mesh.POINTS)] = -laplace.sum(axis=1)
    free = np.setdiff1d(np.arange(mesh.VERTICES), held)
    result: NDArray[np.float64] = values.copy()
    result[free] = np.linalg.solve(laplace[np.ix_(free, free)], -laplace[np.ix_(free, held)] @ values[held])
    return result


def _between(face: mesh.Mesh) -> mesh.Index:
    """Vertices of the two rings between the inner and the outer lip ring."""
    ring = set(mesh.LIP_INNER.tolist()) | set(mesh.LIP_OUTER.tolist())
    touching = [set(pair) for pair in face.edges.tolist()]
    inner = {v for pair in touching for v in pair if pair & set(mesh.LIP_INNER.tolist())} - ring
    outer = {v for pair in touching for v in pair if pair & inner} - ring
    low, high = face.vertices[mesh.LIP_OUTER, 1].min(), face.vertices[mesh.LIP_OUTER, 1].max()
    wide = np.abs(face.vertices[mesh.LIP_OUTER, 0]).max()
    inside = [v for v in inner | outer if low < face.vertices[v, 1] < high and abs(face.vertices[v, 0]) < wide]
    return np.array(sorted(inside), np.int32)


def _triangles(face: mesh.Mesh) -> tuple[mesh.Index, NDArray[np.bool_]]:
    """Those of the mesh and two bands outside the oval; which of them close the mouth."""
    size = len(mesh.OVAL)
    bands = []
    circles: list[NDArray[np.integer]] = [
        mesh.OVAL,
        *(mesh.POINTS + k * size + np.arange(size) for k in range(len(RINGS))),
    ]
    for near, far in itertools.pairwise(circles):
        for k in range(size):
            a, b, c, d = near[k], near[(k + 1) % size], far[k], far[(k + 1) % size]
            bands += [(a, b, c), (b, d, c)]
    triangles = np.concatenate([face.triangles, np.array(bands, np.int32)])
    in_mouth = np.zeros(len(triangles), bool)
    in_mouth[: len(face.triangles)] = face.mouth_triangles
    return triangles, in_mouth


def _sparse(places: Array, triangles: mesh.Index) -> mesh.Index:
    """Delaunay's triangles over those corners of ``triangles`` that lie SPARSE apart, wound alike."""
    kept: list[int] = []
    for vertex in np.unique(triangles).tolist():
        if not kept or float(np.linalg.norm(places[kept] - places[vertex], axis=1).min()) >= SPARSE:
            kept.append(vertex)
    at = (places[kept] - places[kept].min(axis=0) + 1) * np.float32(100)
    plane = cv2.Subdiv2D((0, 0, *np.ceil(at.max(axis=0) + 100).astype(int).tolist()))
    for place in at:
        plane.insert(tuple(place.tolist()))
    corners = np.asarray(plane.getTriangleList(), np.float32).reshape(-1, 3, 1, 2)
    result = np.array(kept, np.int32)[np.linalg.norm(corners - at, axis=3).argmin(axis=2)]

    def turn(of: mesh.Index) -> NDArray[np.float32]:
        one, other = places[of[:, 1]] - places[of[:, 0]], places[of[:, 2]] - places[of[:, 0]]
        return np.asarray(one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0], np.float32)

    wrong = turn(result) * np.median(turn(triangles)) < 0
    result[wrong] = result[wrong][:, ::-1]
    return np.asarray(result, np.int32)


def _smoothstep(value: NDArray[np.floating], low: float, high: float) -> NDArray[np.float64]:
    t = np.clip((np.asarray(value, np.float64) - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t))
