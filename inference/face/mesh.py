"""The face mesh of 478 points: triangles, canonical shape, and which point is what.

Vertices 0–467 are the canonical face model that comes inside ``face_landmarker.task``
(``geometry_pipeline_metadata_landmarks.binarypb``, Google, Apache-2.0); 468–477 are two irises, centre and
four points each, which that model does not hold and which are added here at their anatomical place.
"Right" and "left" are the person's own; the person's right eye lies at smaller x in a picture that is not
mirrored. Index groups follow the connections published with MediaPipe's face mesh.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.base import EngineError

Points = NDArray[np.float32]  #: (478, 3), or (N, 478, 3) for frames
Index = NDArray[np.int32]

POINTS = 478
VERTICES = 468  #: without the irises
METADATA = "geometry_pipeline_metadata_landmarks.binarypb"
IRIS_RADIUS_CM = 0.585  #: half of the visible iris, nearly the same in all adults


def _index(*numbers: int) -> Index:
    array = np.array(numbers, np.int32)
    array.setflags(write=False)
    return array


# Rings run from the person's right mouth corner along the upper lip to the left one and back below.
LIP_INNER_UPPER = _index(78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LIP_INNER_LOWER = _index(78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308)
LIP_OUTER_UPPER = _index(61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291)
LIP_OUTER_LOWER = _index(61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)
LIP_INNER = _index(*LIP_INNER_UPPER, *LIP_INNER_LOWER[-2:0:-1])  #: closed ring of 20
LIP_OUTER = _index(*LIP_OUTER_UPPER, *LIP_OUTER_LOWER[-2:0:-1])  #: closed ring of 20

# Rings from the outer eye corner along the lower lid to the inner one and back above.
EYE_RIGHT = _index(33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
EYE_LEFT = _index(263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
BROW_RIGHT = _index(46, 53, 52, 65, 55, 70, 63, 105, 66, 107)
BROW_LEFT = _index(276, 283, 282, 295, 285, 300, 293, 334, 296, 336)
IRIS_RIGHT = _index(468, 469, 470, 471, 472)  #: centre, then towards image right, up, left, down
IRIS_LEFT = _index(473, 474, 475, 476, 477)
OVAL = _index(
    10,
    338,
    297,
    332,
    284,
    251,
    389,
    356,
    454,
    323,
    361,
    288,
    397,
    365,
    379,
    378,
    400,
    377,
    152,
    148,
    176,
    149,
    150,
    136,
    172,
    58,
    132,
    93,
    234,
    127,
    162,
    21,
    54,
    103,
    67,
    109,
)  #: closed ring of 36 from the top of the forehead, clockwise in the picture
STABLE = _index(
    33,
    133,
    263,
    362,  # eye corners
    6,
    168,
    197,
    195,
    5,
    122,
    351,
    196,
    419,  # bridge of the nose
    8,
    9,
    55,
    285,
    70,
    300,
    46,
    276,  # between and at the ends of the brows
    127,
    356,
    162,
    389,
    21,
    251,
    234,
    454,  # temples
    10,
    67,
    297,
    151,
    109,
    338,  # forehead
)  #: points that speech and expressions hardly move

EYE_CORNER_RIGHT, EYE_CORNER_LEFT = 33, 263  #: outer corners; their distance is the unit of head coordinates
MOUTH_CORNER_RIGHT, MOUTH_CORNER_LEFT = 61, 291
LIP_TOP, LIP_INNER_TOP, LIP_INNER_BOTTOM, LIP_BOTTOM = 0, 13, 14, 17
NOSE_TIP, NOSE_BASE, CHIN, FOREHEAD = 1, 2, 152, 10


@dataclass(frozen=True, eq=False)
class Mesh:
    """The canonical face. Arrays are read-only."""

    vertices: Points  #: (478, 3) head coordinates of an average face with the mouth shut
    uv: NDArray[np.float32]  #: (468, 2) texture coordinates, 0..1
    triangles: Index  #: (898, 3) vertex numbers; irises belong to none
    mirror: Index  #: (478,) the vertex on the other side of the face
    weights: NDArray[np.float32]  #: (478,) how much MediaPipe's own pose fit trusts a vertex; mostly 0

    @property
    def edges(self) -> Index:
        """(E, 2) every edge of the triangles once, smaller vertex first."""
        pairs = np.concatenate([self.triangles[:, [0, 1]], self.triangles[:, [1, 2]], self.triangles[:, [2, 0]]])
        return np.unique(np.sort(pairs, axis=1), axis=0).astype(np.int32)

    @property
    def mouth_triangles(self) -> NDArray[np.bool_]:
        """(898,) True for the triangles that close the mouth: all three vertices on the inner lip ring."""
        return np.asarray(np.isin(self.triangles, LIP_INNER).all(axis=1), np.bool_)


@lru_cache(maxsize=4)
def load(task: str | Path) -> Mesh:
    """The mesh out of a ``face_landmarker.task`` file; raises EngineError when it holds none."""
    try:
        with zipfile.ZipFile(task) as archive:
            data = archive.read(METADATA)
        vertices, uv, triangles, weights = _decode(data)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, IndexError, struct.error) as error:
        raise EngineError(
            f"{task} holds no face mesh that can be read: {error}",
            hint="python -m inference.weights install face-landmarker",
        ) from error
    unit = float(np.linalg.norm(vertices[EYE_CORNER_RIGHT] - vertices[EYE_CORNER_LEFT]))
    vertices = np.concatenate([vertices, _iris(vertices, EYE_RIGHT), _iris(vertices, EYE_LEFT)])
    mirrored = vertices * np.array([-1, 1, 1], np.float32)
    mirror = np.linalg.norm(vertices[:, None] - mirrored[None], axis=2).argmin(axis=1).astype(np.int32)
    # The file measures centimetres with y up and z towards the camera.
    head = (vertices / unit * np.array([1, -1, -1])).astype(np.float32)
    for array in (head, uv, triangles, mirror, weights):
        array.setflags(write=False)
    return Mesh(head, uv, triangles, mirror, weights)


def _iris(vertices: NDArray[np.float32], eye: Index) -> NDArray[np.float32]:
    """(5, 3) centre, right, up, left, down (as in the picture) of an iris in the middle of an eye ring."""
    centre = vertices[eye].mean(axis=0)
    steps = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0]])
    return np.asarray(centre + steps * IRIS_RADIUS_CM, np.float32)


def _decode(
    data: bytes,
) -> tuple[NDArray[np.float32], NDArray[np.float32], Index, NDArray[np.float32]]:
    """Vertices (468, 3) cm, uv, triangles, weights (478,) out of MediaPipe's GeometryPipelineMetadata message.

    GeometryPipelineMetadata: 1 = Mesh3d, 2 = repeated {1 landmark_id, 2 weight}.
    Mesh3d: 3 = repeated float, five per vertex (x y z u v), 4 = repeated uint32, three per triangle.
    """
    buffer: list[float] = []
    indices: list[int] = []
    weights = np.zeros(POINTS, np.float32)
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            for inner, item in _fields(value):
                if inner == 3:
                    buffer += struct.unpack(f"<{len(item) // 4}f", item) if isinstance(item, bytes) else ()
                elif inner == 4:
                    indices += [item] if isinstance(item, int) else _varints(item)
        elif field == 2 and isinstance(value, bytes):
            basis = dict(_fields(value))
            weight = basis.get(2)
            if isinstance(weight, bytes):
                weights[int(basis.get(1, 0))] = struct.unpack("<f", weight)[0]
    table = np.array(buffer, np.float32).reshape(-1, 5)
    triangles = np.array(indices, np.int32).reshape(-1, 3)
    if len(table) != VERTICES or not len(triangles) or triangles.max() >= VERTICES:
        raise ValueError(f"{len(table)} vertices and {len(triangles)} triangles instead of 468 and 898")
    return np.ascontiguousarray(table[:, :3]), np.ascontiguousarray(table[:, 3:]), triangles, weights


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and raw values of one protocol buffer message: varints as int, the rest as bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"unknown wire type {kind}")
        yield key >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _varints(data: bytes) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values
