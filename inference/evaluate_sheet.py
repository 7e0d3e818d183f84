"""Contact sheets of a lip-synced video for :mod:`inference.evaluate`: chosen moments, and the worst."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.base import EngineError
from inference.face import mesh
from inference.face.analysis import Decoding, TemplateAnalysis, analyse
from inference.face.model import FaceModel
from inference.lipsync.frames import loop
from inference.probe import VideoInfo, probe_video
from inference.video import read_frames

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

SIDE = 224  #: pixels of a face on a sheet
WHOLE, CLOSE = 1.25, 0.75  #: half of what it shows, eye distances
WORST, APART_S = 6, 0.2  #: frames shown by each measure; seconds between them


@dataclass(frozen=True)
class Measured:
    """The face in one video."""

    info: VideoInfo
    face: TemplateAnalysis

    @classmethod
    def of(cls, path: Path, model: FaceModel, ffmpeg: str | None) -> Measured:
        """Look at a video."""
        info = probe_video(path, ffmpeg=ffmpeg)
        return cls(info, analyse(info, model, limit=10**6, decoding=Decoding(ffmpeg=ffmpeg)))

    @property
    def opening(self) -> Array:
        """(T,) of the mouth, eye distances."""
        return self.face.openings

    @property
    def width(self) -> Array:
        """(T,) of the mouth, eye distances."""
        return self.face.widths


def moments(path: Path, shown: Measured, template: Measured | None, asked: Array, ffmpeg: str | None) -> None:
    """A picture of 24 moments: the template's face above, the video's below; time, openings asked (T,) and shown."""
    count, columns, side = min(len(asked), shown.face.frames), 8, SIDE
    chosen = np.unique(np.linspace(0, count - 1, 16).round().astype(int)).tolist()
    lively = np.argsort(-np.nan_to_num(asked[:count]), kind="stable")
    for k in lively.tolist():  # the widest mouths too
        if len(chosen) >= 24:
            break
        if all(abs(k - other) > shown.info.fps / 8 for other in chosen):
            chosen.append(k)
    chosen.sort()
    order = loop(count, template.face.frames) if template else np.zeros(count, np.int32)
    cells = []
    for k, frame, original in pairs(shown, template, order, set(chosen), ffmpeg):
        seen = shown.opening[k]
        label = f"{k / shown.info.fps:.1f}s ask {asked[k]:.2f} is {seen:.2f}"
        own = None if template is None else _face(original, template.face.points[order[k]], side)
        cells.append(_cell(_face(frame, shown.face.points[k], side), own, label))
    _write(path, cells, columns, "--sheet")


def worst(values: Array, fps: float) -> list[int]:
    """The WORST frames with the highest of (T,) values, a little apart; NaN and 0 are never among them."""
    chosen: list[int] = []
    for k in np.argsort(-np.nan_to_num(values), kind="stable").tolist():
        if len(chosen) == WORST or not values[k] > 0:
            break
        if all(abs(k - other) > fps * APART_S for other in chosen):
            chosen.append(k)
    return chosen


def worst_frames(
    path: Path, shown: Measured, template: Measured | None, values: Mapping[str, Array], ffmpeg: str | None
) -> None:
    """A picture with one row per measure: the video's lower faces that came out worst, below the template's.

    ``values`` (T,) say how bad each frame is by a measure.
    """
    count = shown.face.frames
    chosen = {name: worst(bad, shown.info.fps) for name, bad in values.items()}
    order = loop(count, template.face.frames) if template else np.zeros(count, np.int32)
    wanted = {k for frames in chosen.values() for k in frames}
    faces: dict[int, tuple[Frame, Frame | None]] = {}
    for k, frame, original in pairs(shown, template, order, wanted, ffmpeg) if wanted else ():
        own = None if template is None else _face(original, template.face.points[order[k]], SIDE, CLOSE)
        faces[k] = _face(frame, shown.face.points[k], SIDE, CLOSE), own
    cells = []
    for name, frames in chosen.items():
        row = [
            _cell(*faces[k], f"{name} {values[name][k]:.2f} at {k / shown.info.fps:.2f}s") for k in frames if k in faces
        ]
        while row and len(row) < WORST:
            row.append(np.zeros_like(row[0]))
        cells += row
    _write(path, cells or [np.zeros((SIDE, SIDE, 3), np.uint8)] * WORST, WORST, "--worst")


def _cell(shown: Frame, own: Frame | None, label: str) -> Frame:
    """A face, below the template's own, with a line of words."""
    cell = shown.copy() if own is None else np.vstack([own, shown])
    for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(cell, label, (4, cell.shape[0] - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.42, colour, width, cv2.LINE_AA)
    return np.asarray(np.pad(cell, ((0, 6), (0, 4), (0, 0))), np.uint8)


def _write(path: Path, cells: list[Frame], columns: int, option: str) -> None:
    while len(cells) % columns:
        cells.append(np.zeros_like(cells[0]))
    rows = [np.hstack(cells[at : at + columns]) for at in range(0, len(cells), columns)]
    if not cv2.imwrite(str(path), np.vstack(rows)):
        raise EngineError(f"{option}: {path} cannot be written", hint="name a .png in a folder that exists")


def pairs(
    shown: Measured, template: Measured | None, order: NDArray[np.int32], chosen: set[int], ffmpeg: str | None
) -> Iterator[tuple[int, Frame, Frame]]:
    """(number, frame of the video, frame of the template) for the chosen numbers, in order."""
    kept: dict[int, Frame] = {}
    if template is not None:
        wanted = {int(order[k]) for k in chosen}
        with read_frames(template.info, count=max(wanted) + 1, ffmpeg=ffmpeg) as frames:
            kept = {index: frame for index, frame in enumerate(frames) if index in wanted and _room(kept)}
    with read_frames(shown.info, count=max(chosen) + 1, ffmpeg=ffmpeg) as frames:
        for k, frame in enumerate(frames):
            if k in chosen and (template is None or int(order[k]) in kept):
                yield k, frame, kept.get(int(order[k]), frame)


def _room(kept: Mapping[int, Frame]) -> bool:
    return sum(frame.nbytes for frame in kept.values()) < 512 << 20


def _face(frame: Frame, points: mesh.Points, side: int, around: float = WHOLE) -> Frame:
    """The square round a face, scaled; the middle of the frame when there is none."""
    height, width = frame.shape[:2]
    if np.isfinite(points).all():
        unit = float(np.linalg.norm(points[mesh.EYE_CORNER_LEFT, :2] - points[mesh.EYE_CORNER_RIGHT, :2]))
        x, y = points[mesh.NOSE_BASE, :2]
        half = around * unit
    else:
        x, y, half = width / 2, height / 2, min(width, height) / 2
    matrix = np.array([[side / (2 * half), 0, side / 2 - x * side / (2 * half)], [0, side / (2 * half), 0]])
    matrix[1, 2] = side / 2 - y * side / (2 * half)
    return np.asarray(cv2.warpAffine(frame, matrix, (side, side), flags=cv2.INTER_AREA), np.uint8)
