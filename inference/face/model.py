"""Pixels to faces: BlazeFace finds them, the mesh network puts 478 points on one of them.

Both networks come out of ``face_landmarker.task`` (MediaPipe, Google, Apache-2.0), run by OpenCV's own
TFLite reader. Geometry as published with them: 896 anchors on grids of 16×16 (2 each) and 8×8 (6 each)
over a picture of 128×128; face crops of 256×256, 1.5 times the extent of the face, turned upright by the eyes.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.base import EngineError
from inference.face import mesh

Frame = NDArray[np.uint8]  #: (H, W, 3) BGR

DETECTOR_SIDE = 128
LANDMARK_SIDE = 256
MIN_SCORE = 0.5  #: of a detection
MAX_OVERLAP = 0.3  #: intersection over union beyond which two detections are one face
REGION_SCALE = 1.5  #: side of the crop over the longer side of the face
DETECTOR, LANDMARKER = "face_detector.tflite", "face_landmarks_detector.tflite"


@dataclass(frozen=True)
class Detection:
    """A face as the detector sees it, in pixels of the frame."""

    box: tuple[float, float, float, float]  #: x, y of the upper left corner, width, height; may leave the frame
    score: float  #: 0..1; animals reach .99, so see :mod:`inference.face.plausible`
    keypoints: NDArray[np.float32]  #: (6, 2) right eye, left eye, nose tip, mouth, right ear, left ear

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle of the box, in the unit of the box."""
        return self.box[0] + self.box[2] / 2, self.box[1] + self.box[3] / 2

    @property
    def area(self) -> float:
        """Width × height of the box."""
        return self.box[2] * self.box[3]


@dataclass(frozen=True)
class Region:
    """The turned square of the frame that the mesh network looks at."""

    x: float  #: centre, pixels
    y: float
    side: float  #: pixels
    angle: float  #: radians, clockwise in the picture; 0 = upright

    def matrix(self, side: float = LANDMARK_SIDE) -> NDArray[np.float64]:
        """(2, 3) from pixels of the frame to pixels of a crop of ``side``; pixel centres at whole numbers."""
        scale = side / self.side
        cos, sin = scale * math.cos(self.angle), scale * math.sin(self.angle)
        half = (side - 1) / 2
        return np.array(
            [
                [cos, sin, half - cos * self.x - sin * self.y],
                [-sin, cos, half + sin * self.x - cos * self.y],
            ]
        )


@dataclass(frozen=True)
class Landmarks:
    """478 points on one face."""

    points: mesh.Points  #: (478, 3) float32 pixels of the frame; z at the same scale, smaller = nearer
    score: float  #: 0..1, the network's own belief that there is a face in the region
    region: Region  #: where it looked

    @property
    def eye_distance(self) -> float:
        """Pixels between the outer eye corners, in depth too."""
        corners = self.points[[mesh.EYE_CORNER_RIGHT, mesh.EYE_CORNER_LEFT]].astype(np.float64)
        return float(np.linalg.norm(corners[0] - corners[1]))


class FaceModel:
    """The two networks. Safe to share between threads, which then take turns."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.mesh = mesh.load(self.path)
        self.fingerprint = hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]  #: of the weights
        self._detector = _network(self.path, DETECTOR)
        self._landmarker = _network(self.path, LANDMARKER)
        self._lock = threading.Lock()  # OpenCV keeps a forward pass's state inside the network

    def detect(self, bgr: Frame, thorough: bool = False) -> list[Detection]:
        """What looks like a face in a frame, largest first: the first of the searches that finds anything."""
        return next((found for found in self.searches(bgr, thorough) if found), [])

    def searches(self, bgr: Frame, thorough: bool = False) -> Iterator[list[Detection]]:
        """What one search after the other finds in a frame, each largest first; each is made when it is asked for.

        The detector sees 128×128 pixels, so it misses faces under about a tenth of the frame's side, those that
        fill it, and those that stand on their heads. ``thorough`` looks again: at the frame with a border, at the
        frame upside down, at overlapping squares as high as the frame, at squares of half and a quarter of that
        (720p: 1, 1, 3, 21 and 98 passes of 3 ms more).
        """
        yield _by_size(self._detect_in(bgr, 0, 0))
        if not thorough:
            return
        height, width = bgr.shape[:2]
        edge = max(height, width) // 4
        wide = cv2.copyMakeBorder(bgr, edge, edge, edge, edge, cv2.BORDER_REPLICATE)
        yield _by_size(self._detect_in(np.asarray(wide, np.uint8), -edge, -edge))
        over = np.ascontiguousarray(bgr[::-1, ::-1])
        yield _by_size([_turned(face, width, height) for face in self._detect_in(over, 0, 0)])
        for side in (min(height, width) // part for part in (1, 2, 4)):
            tiles = [(x, y) for y in _starts(height, side) for x in _starts(width, side)]
            if side >= DETECTOR_SIDE // 2 and len(tiles) > 1:
                parts = [self._detect_in(bgr[y : y + side, x : x + side], x, y) for x, y in tiles]
                yield _by_size(_merge([face for part in parts for face in part]))

    def landmarks(self, bgr: Frame, region: Region) -> Landmarks:
        """The points of the face in a region: 7 ms on one core, whatever the size of the frame."""
        crop, matrix = cut(bgr, region)
        blob = cv2.dnn.blobFromImage(crop, 1 / 255, swapRB=True)
        with self._lock:
            self._landmarker.setInput(blob)
            raw, logit = self._landmarker.forward(["Identity", "Identity_1"])
        flat = raw.reshape(mesh.POINTS, 3).astype(np.float64)
        back = cv2.invertAffineTransform(matrix)
        points = np.empty((mesh.POINTS, 3), np.float32)
        points[:, :2] = flat[:, :2] @ back[:, :2].T + back[:, 2]
        points[:, 2] = flat[:, 2] * (region.side / LANDMARK_SIDE)
        return Landmarks(points, _sigmoid(float(logit.ravel()[0])), region)

    def _detect_in(self, bgr: Frame, left: int, top: int) -> list[Detection]:
        height, width = bgr.shape[:2]
        scale = DETECTOR_SIDE / max(height, width)
        small = cv2.resize(
            bgr,
            (max(1, round(width * scale)), max(1, round(height * scale))),
            interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
        )
        x0, y0 = (DETECTOR_SIDE - small.shape[1]) // 2, (DETECTOR_SIDE - small.shape[0]) // 2
        square = np.zeros((DETECTOR_SIDE, DETECTOR_SIDE, 3), np.uint8)
        square[y0 : y0 + small.shape[0], x0 : x0 + small.shape[1]] = small
        blob = cv2.dnn.blobFromImage(square, 1 / 127.5, mean=(127.5, 127.5, 127.5), swapRB=True)
        with self._lock:
            self._detector.setInput(blob)
            boxes, logits = self._detector.forward(["regressors", "classificators"])
        scores = logits.reshape(-1)
        keep = np.flatnonzero(scores > math.log(MIN_SCORE / (1 - MIN_SCORE)))
        anchors = _anchors()[keep]
        values = boxes.reshape(-1, 16)[keep].astype(np.float64)
        to_frame = np.array([width / small.shape[1], height / small.shape[0]])
        shift, origin = np.array([x0, y0]), np.array([left, top])
        faces = []
        for anchor, value, score in zip(anchors, values, scores[keep], strict=True):
            centre = (anchor * DETECTOR_SIDE + value[:2] - shift) * to_frame + origin
            size = value[2:4] * to_frame
            keypoints = (anchor * DETECTOR_SIDE + value[4:].reshape(6, 2) - shift) * to_frame + origin
            box = (*(centre - size / 2), *size)
            faces.append(Detection(box, _sigmoid(float(score)), keypoints.astype(np.float32)))
        return _merge(faces)


def region_of_detection(face: Detection) -> Region:
    """Where to look for the points of a detected face."""
    right, left = face.keypoints[0], face.keypoints[1]
    angle = math.atan2(left[1] - right[1], left[0] - right[0])
    return Region(*face.centre, REGION_SCALE * max(face.box[2], face.box[3]), angle)


def region_of_points(points: mesh.Points) -> Region:
    """Where to look in the next frame for a face whose points are known in this one."""
    flat = points[: mesh.VERTICES, :2].astype(np.float64)
    across = flat[mesh.EYE_CORNER_LEFT] - flat[mesh.EYE_CORNER_RIGHT]
    angle = math.atan2(across[1], across[0])
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    upright = flat @ turn
    low, high = upright.min(axis=0), upright.max(axis=0)
    centre = turn @ ((low + high) / 2)
    return Region(float(centre[0]), float(centre[1]), REGION_SCALE * float((high - low).max()), angle)


def _network(path: Path, member: str) -> Any:
    # OpenCV 5's default engine silently drops outputs of these networks, and reading from memory takes no
    # other; OpenCV 4 knows only one engine and no name for it.
    engine = {"engine": cv2.dnn.ENGINE_CLASSIC} if hasattr(cv2.dnn, "ENGINE_CLASSIC") else {}
    try:
        with tempfile.TemporaryDirectory(prefix="face-") as folder, zipfile.ZipFile(path) as archive:
            return cv2.dnn.readNetFromTFLite(archive.extract(member, folder), **engine)
    except (OSError, KeyError, zipfile.BadZipFile, cv2.error) as error:
        raise EngineError(
            f"{path} holds no {member} that can be loaded: {error}",
            hint="python -m inference.weights install face-landmarker",
        ) from error


def cut(bgr: Frame, region: Region) -> tuple[Frame, NDArray[np.float64]]:
    """A region as 256×256 pixels, and the (2, 3) matrix from the frame to it."""
    matrix = region.matrix()
    shrink = int(region.side / LANDMARK_SIDE)
    source, at = bgr, matrix
    if shrink >= 2:  # bilinear sampling would skip pixels: average blocks first
        reach = region.side * (abs(math.cos(region.angle)) + abs(math.sin(region.angle))) / 2 + shrink
        height, width = bgr.shape[:2]
        x0, y0 = max(0, int(region.x - reach)), max(0, int(region.y - reach))
        x1, y1 = min(width, int(region.x + reach) + 1), min(height, int(region.y + reach) + 1)
        x1, y1 = x0 + (x1 - x0) // shrink * shrink, y0 + (y1 - y0) // shrink * shrink
        if x1 > x0 and y1 > y0:
            size = ((x1 - x0) // shrink, (y1 - y0) // shrink)
            source = np.asarray(cv2.resize(bgr[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA), np.uint8)
            offset = (shrink - 1) / 2  # the centre of a block
            at = matrix.copy()
            at[:, 2] += matrix[:, :2] @ np.array([x0 + offset, y0 + offset])
            at[:, :2] *= shrink
    crop = cv2.warpAffine(
        source, at, (LANDMARK_SIDE, LANDMARK_SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(crop, np.uint8), matrix


@lru_cache(maxsize=1)
def _anchors() -> NDArray[np.float64]:
    """(896, 2) centres x, y in 0..1."""
    centres = []
    for cells, each in ((16, 2), (8, 6)):
        grid = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(grid, grid, indexing="ij")
        centres.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), each, axis=0))
    return np.concatenate(centres)


def _merge(faces: list[Detection]) -> list[Detection]:
    """One detection per face: the overlapping ones averaged, weighted by score (BlazeFace's own way)."""
    rest = sorted(faces, key=lambda face: face.score, reverse=True)
    merged = []
    while rest:
        best = rest[0]
        same = [face for face in rest if _overlap(best, face) > MAX_OVERLAP]
        rest = [face for face in rest if _overlap(best, face) <= MAX_OVERLAP]
        weights = np.array([face.score for face in same])
        weights /= weights.sum()
        box = weights @ np.array([face.box for face in same])
        keypoints = np.einsum("n,nij->ij", weights, np.array([face.keypoints for face in same]))
        merged.append(
            Detection(
                (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                best.score,
                keypoints.astype(np.float32),
            )
        )
    return merged


def _by_size(faces: list[Detection]) -> list[Detection]:
    return sorted(faces, key=lambda face: face.area, reverse=True)


def _turned(face: Detection, width: int, height: int) -> Detection:
    """A face of the frame upside down, in the frame."""
    x, y, wide, high = face.box
    keypoints = np.array([width - 1, height - 1], np.float32) - face.keypoints
    return Detection((width - 1 - x - wide, height - 1 - y - high, wide, high), face.score, keypoints)


def _overlap(one: Detection, other: Detection) -> float:
    """Intersection over the union; over the smaller one when that lies inside (tiles cut faces)."""
    ax, ay, aw, ah = one.box
    bx, by, bw, bh = other.box
    shared = max(0.0, min(ax + aw, bx + bw) - max(ax, bx)) * max(0.0, min(ay + ah, by + bh) - max(ay, by))
    if shared <= 0:
        return 0.0
    if one is other or shared > 0.7 * min(aw * ah, bw * bh):
        return 1.0
    return shared / (aw * ah + bw * bh - shared)


def _starts(length: int, side: int) -> list[int]:
    """Where squares of ``side`` begin so that they cover ``length`` with at least half overlap."""
    count = 1 + math.ceil((length - side) / (side / 2)) if length > side else 1
    return [round(step) for step in np.linspace(0, length - side, count)]


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-min(max(logit, -60.0), 60.0)))
