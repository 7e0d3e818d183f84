"""Measure a lip-synced video: ``python -m inference.evaluate --video OUT --template T --audio A``.

Judged by landmarks on the encoded file, as a viewer gets it:

    follows      correlation of the mouth's opening with what the sound asks of this face, and at which lag
    rest         movement of the opening from frame to frame while nobody speaks, share of the eye distance
    closures     share of the p, b and m at which the lips meet
    outside      PSNR against the template outside the face's lower half (after encoding, so never endless)
    offset       when picture and sound begin, and how far the sound lies behind the recording's
    duration     length of the video against the recording's

``--sheet`` writes a picture of frames beside the template's, for eyes. Without ``--template`` what needs one is
left out; a video that was not made by the ``mesh`` backend is judged against the same wish.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inference import console, media, weights
from inference.base import EngineError
from inference.face import mesh
from inference.face.analysis import Decoding, TemplateAnalysis, analyse
from inference.face.model import FaceModel
from inference.lipsync import speech
from inference.lipsync.frames import loop
from inference.offsets import first_time, sound_offset
from inference.probe import VideoInfo, probe_video
from inference.video import read_frames

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

MAX_LAG = 8  #: frames
SILENCE, SILENCE_S, SETTLE_S = 0.1, 0.4, 0.2  #: voicing, least length of a pause, what is left out at its ends
SHUT = 0.025  #: an opening up to this is a closed mouth, eye distances
PSNR_EVERY = 5  #: frames; PSNR of each n-th
REGION = (1.04, 0.70, 1.20)  #: eye distances round the mouth, to the sides, up and down, that may change
CORNER = 0.30  #: share of the picture's sides left out at the right corners, where marks may be

#: what is asked for: name, smallest, largest
TARGETS: Mapping[str, tuple[float, float]] = {
    "follows_r": (0.9, 1.0),
    "lag_frames": (-1, 1),
    "rest_jitter": (0.0, 0.005),
    "closures": (0.9, 1.0),
    "start_offset_ms": (-25, 25),
    "sound_offset_ms": (-25, 25),
    "duration_error_frames": (-1, 1),
}


@dataclass
class Report:
    """What was measured; None where it does not apply."""

    video: str
    frames: int
    fps: float
    size: tuple[int, int]
    frames_with_face: int
    follows_r: float | None = None  #: at the best lag
    follows_r_at_zero: float | None = None
    lag_frames: int | None = None  #: positive: the mouth is late
    gain: float | None = None  #: slope of measured over asked
    bias: float | None = None  #: measured minus asked, eye distances
    width_r: float | None = None
    opening_p95: float | None = None  #: eye distances
    rest_jitter: float | None = None
    rest_opening: float | None = None
    closures: float | None = None
    psnr_outside_db: float | None = None
    psnr_outside_least_db: float | None = None
    start_offset_ms: float | None = None  #: first picture minus first sound
    sound_offset_ms: float | None = None  #: sound of the video minus that of the recording
    duration_error_frames: float | None = None
    missed: list[str] = field(default_factory=list)  #: targets that are not reached

    def judge(self) -> None:
        """Fill in ``missed``."""
        for name, (low, high) in TARGETS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                self.missed.append(f"{name} {value:g} not in {low:g} … {high:g}")


class Measured:
    """The face in one video."""

    def __init__(self, path: Path, model: FaceModel, ffmpeg: str | None) -> None:
        self.info: VideoInfo = probe_video(path, ffmpeg=ffmpeg)
        self.face: TemplateAnalysis = analyse(self.info, model, limit=10**6, decoding=Decoding(ffmpeg=ffmpeg))

    @property
    def opening(self) -> Array:
        """(T,) of the mouth, eye distances."""
        return self.face.openings

    @property
    def width(self) -> Array:
        """(T,) of the mouth, eye distances."""
        return self.face.widths


def correlation(asked: Array, shown: Array, lag: int) -> float:
    """Of ``shown``, ``lag`` frames later, with ``asked``; over frames in which both are known."""
    count = min(len(asked), len(shown))
    one, other = asked[max(0, -lag) : count - max(0, lag)], shown[max(0, lag) : count - max(0, -lag)]
    good = np.isfinite(one) & np.isfinite(other)
    if good.sum() < 10 or one[good].std() < 1e-6 or other[good].std() < 1e-6:
        return 0.0
    return float(np.corrcoef(one[good], other[good])[0, 1])


def follow(report: Report, asked: speech.Asked, shown: Measured) -> None:
    """How the mouth does what it is asked."""
    by_lag = {lag: correlation(asked.opening, shown.opening, lag) for lag in range(-MAX_LAG, MAX_LAG + 1)}
    best = max(by_lag, key=lambda lag: (by_lag[lag], -abs(lag)))
    report.lag_frames, report.follows_r = best, round(by_lag[best], 4)
    report.follows_r_at_zero = round(by_lag[0], 4)
    count = min(len(asked.opening), len(shown.opening))
    one, other = asked.opening[:count], shown.opening[:count]
    good = np.isfinite(other)
    report.opening_p95 = round(float(np.percentile(other[good], 95)), 4)
    if one[good].std() > 1e-6:
        report.gain = round(float(np.polyfit(one[good], other[good], 1)[0]), 3)
    report.bias = round(float((other - one)[good].mean()), 4)
    speaking = good & (asked.voiced[:count] > speech.LOUD)
    if speaking.sum() > 10:
        report.width_r = round(correlation(asked.width[:count][speaking], shown.width[:count][speaking], 0), 4)
    closed = np.flatnonzero(asked.closed[:count] & (asked.voiced[:count] > speech.QUIET))
    if len(closed):
        # A landmarker may see lips meet one frame beside; a mouth that rests open needs its own measure.
        lowest = [np.nanmin(other[max(0, k - 1) : k + 2], initial=np.inf) for k in closed]
        floor = float(np.nanpercentile(other, 10)) + 0.01
        report.closures = round(float(np.mean(np.array(lowest) <= max(SHUT, floor))), 4)


def rest(report: Report, asked: speech.Asked, shown: Measured) -> None:
    """How still the mouth is in pauses."""
    fps, count = report.fps, min(len(asked.voiced), len(shown.opening))
    silent = asked.voiced[:count] < SILENCE
    edges = np.flatnonzero(np.diff(np.concatenate([[False], silent, [False]]).astype(np.int8)))
    steps: list[float] = []
    level: list[float] = []
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if stop - start < SILENCE_S * fps:
            continue
        margin = round(SETTLE_S * fps)
        calm = shown.opening[start + (margin if start else 0) : stop - (margin if stop < count else 0)]
        steps += np.abs(np.diff(calm))[np.isfinite(np.diff(calm))].tolist()
        level += calm[np.isfinite(calm)].tolist()
    if steps:
        report.rest_jitter = round(float(np.sqrt(np.mean(np.square(steps)))), 5)
        report.rest_opening = round(float(np.median(level)), 4)


def outside(report: Report, shown: Measured, template: Measured, ffmpeg: str | None) -> None:
    """How far the rest of the picture is the template's."""
    order = loop(report.frames, template.face.frames)
    values = []
    for k, frame, original in _pairs(shown, template, order, set(range(0, report.frames, PSNR_EVERY)), ffmpeg):
        keep = outside_mask(template.face.points[order[k]], frame.shape[1], frame.shape[0])
        apart = frame[keep].astype(np.float32) - original[keep]
        mean = float(np.mean(np.square(apart)))
        values.append(10 * np.log10(255**2 / max(mean, 1e-4)))
    if values:
        report.psnr_outside_db, report.psnr_outside_least_db = round(float(np.mean(values)), 2), round(min(values), 2)


def timing(report: Report, path: Path, audio: Path, seconds: float, ffmpeg: str | None) -> None:
    """When picture and sound begin, and how long they last."""
    picture, sound = first_time(path, "v:0", ffmpeg), first_time(path, "a:0", ffmpeg)
    if picture is not None and sound is not None:
        report.start_offset_ms = round(1000 * (picture - sound), 2)
    report.duration_error_frames = round(report.frames - seconds * report.fps, 2)
    if media.probe(path, "video", ffmpeg).has_audio:
        report.sound_offset_ms = sound_offset(path, audio, ffmpeg)


def sheet(path: Path, shown: Measured, template: Measured | None, asked: speech.Asked, ffmpeg: str | None) -> None:
    """A picture of 24 moments: the template's face above, the video's below, with time and openings."""
    count, columns, side = min(len(asked.opening), shown.face.frames), 8, 224
    chosen = np.unique(np.linspace(0, count - 1, 16).round().astype(int)).tolist()
    lively = np.argsort(-np.nan_to_num(asked.opening[:count]), kind="stable")
    for k in lively.tolist():  # the widest mouths too
        if len(chosen) >= 24:
            break
        if all(abs(k - other) > shown.info.fps / 8 for other in chosen):
            chosen.append(k)
    chosen.sort()
    order = loop(count, template.face.frames) if template else np.zeros(count, np.int32)
    cells = []
    for k, frame, original in _pairs(shown, template, order, set(chosen), ffmpeg):
        below = _face(frame, shown.face.points[k], side)
        cell = below if template is None else np.vstack([_face(original, template.face.points[order[k]], side), below])
        seen = shown.opening[k]
        label = f"{k / shown.info.fps:.1f}s ask {asked.opening[k]:.2f} is {seen:.2f}"
        cv2.putText(cell, label, (4, cell.shape[0] - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.putText(
            cell, label, (4, cell.shape[0] - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA
        )
        cells.append(np.pad(cell, ((0, 6), (0, 4), (0, 0))))
    while len(cells) % columns:
        cells.append(np.zeros_like(cells[0]))
    rows = [np.hstack(cells[at : at + columns]) for at in range(0, len(cells), columns)]
    if not cv2.imwrite(str(path), np.vstack(rows)):
        raise EngineError(f"--sheet: {path} cannot be written", hint="name a .png in a folder that exists")


def evaluate(
    video: Path,
    audio: Path,
    template: Path | None,
    *,
    sheet_path: Path | None = None,
    whisper: Path | None = None,
    articulation: Path | None = None,
    ffmpeg: str | None = None,
) -> Report:
    """Measure one video."""
    from inference.articulation import Articulator, head_path
    from inference.lipsync.mesh_backend import asked_of

    model = FaceModel(weights.find("face-landmarker/face_landmarker.task"))
    samples = media.read_audio(audio, ffmpeg)
    articulator = Articulator(weights.find_model("whisper-base", whisper), articulation or head_path())
    shown = Measured(video, model, ffmpeg)
    base = Measured(template, model, ffmpeg) if template is not None else None
    face = (base or shown).face
    report = Report(str(video), shown.face.frames, shown.info.fps, shown.face.size, int(shown.face.found.sum()))
    heard = articulator.curve(samples)
    asked = asked_of(heard, face.openings, face.widths, face.clear, frames=report.frames, fps=report.fps)
    follow(report, asked, shown)
    rest(report, asked, shown)
    if base is not None:
        outside(report, shown, base, ffmpeg)
    timing(report, video, audio, len(samples) / media.SAMPLE_RATE, ffmpeg)
    report.judge()
    if sheet_path is not None:
        sheet(sheet_path, shown, base, asked, ffmpeg)
    return report


def _pairs(
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


def outside_mask(points: mesh.Points, width: int, height: int) -> NDArray[np.bool_]:
    """(H, W) True where the picture must be the template's."""
    keep = np.ones((height, width), np.uint8)
    if np.isfinite(points).all():
        apart = points[mesh.EYE_CORNER_LEFT] - points[mesh.EYE_CORNER_RIGHT]
        # As long as the eyes are apart in depth too: a turned head is no smaller.
        across = apart[:2] * np.linalg.norm(apart) / max(float(np.linalg.norm(apart[:2])), 1e-6)
        down = np.array([-across[1], across[0]])
        middle = points[mesh.LIP_INNER, :2].mean(axis=0)
        side, up, low = REGION
        corners = [middle + x * across + y * down for x, y in ((-side, -up), (side, -up), (side, low), (-side, low))]
        left, top = np.maximum(np.floor(np.min(corners, axis=0)), 0).astype(int)
        right, bottom = np.ceil(np.max(corners, axis=0)).astype(int)
        keep[top:bottom, left:right] = 0  # upright, as the renderer's own
    edge = int((1 - CORNER) * width)
    keep[: int(0.12 * height), edge:] = keep[height - int(0.12 * height) :, edge:] = 0
    return keep.astype(bool)


def _face(frame: Frame, points: mesh.Points, side: int) -> Frame:
    """The square round a face, scaled; the middle of the frame when there is none."""
    height, width = frame.shape[:2]
    if np.isfinite(points).all():
        unit = float(np.linalg.norm(points[mesh.EYE_CORNER_LEFT, :2] - points[mesh.EYE_CORNER_RIGHT, :2]))
        x, y = points[mesh.NOSE_BASE, :2]
        half = 1.25 * unit
    else:
        x, y, half = width / 2, height / 2, min(width, height) / 2
    matrix = np.array([[side / (2 * half), 0, side / 2 - x * side / (2 * half)], [0, side / (2 * half), 0]])
    matrix[1, 2] = side / 2 - y * side / (2 * half)
    return np.asarray(cv2.warpAffine(frame, matrix, (side, side), flags=cv2.INTER_AREA), np.uint8)


def _print(report: Report) -> None:
    about: dict[str, Any] = asdict(report)
    missed = about.pop("missed")
    for name, value in about.items():
        if value is None:
            continue
        low, high = TARGETS.get(name, (None, None))
        wish = "" if low is None else f"   wanted {low:g} … {high:g}"
        print(f"{name:<24} {value}{wish}")
    print("every target reached" if not missed else "MISSED: " + "; ".join(missed))


def main(argv: list[str] | None = None) -> int:
    """The command line; 0 when measured, 1 when something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m inference.evaluate", description="Measure a lip-synced video.")
    parser.add_argument("--video", type=Path, required=True, help="the finished video")
    parser.add_argument("--audio", type=Path, required=True, help="the recording it shall say")
    parser.add_argument("--template", type=Path, help="the video or picture it was made from")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="write frames beside the template's")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--whisper", type=Path, help="folder of the Whisper model")
    parser.add_argument("--articulation", type=Path, help="file of the articulation head")
    parser.add_argument("--ffmpeg", help="ffmpeg program")
    chosen = parser.parse_args(argv)
    try:
        report = evaluate(
            media.require_file(chosen.video, "video"),
            media.require_file(chosen.audio),
            media.require_file(chosen.template, "template") if chosen.template else None,
            sheet_path=chosen.sheet,
            whisper=chosen.whisper,
            articulation=chosen.articulation,
            ffmpeg=chosen.ffmpeg,
        )
    except EngineError as error:
        print(f"error: {error}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
        return 1
    if chosen.json:
        print(json.dumps(asdict(report), indent=1))
    else:
        _print(report)
    return 0


if __name__ == "__main__":
    console.run(main)
