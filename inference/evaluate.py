"""Measure a lip-synced video: ``python -m inference.evaluate --video OUT --template T --audio A``.

Judged by landmarks on the encoded file, as a viewer gets it:

    follows      correlation of the mouth's opening with what the sound asks of this face, and at which lag
    rest         movement of the opening from frame to frame while nobody speaks, share of the eye distance
    closures     share of the p, b and m at which the lips meet
    outside      PSNR against the template outside the face's lower half (after encoding, so never endless)
    looks        flicker, the seam round the mouth, likeness to the template's own frames; for a template that talks
                 how the renderer borrows its mouths: held too long, teeth stretched (:mod:`inference.evaluate_face`)
    offset       when picture and sound begin, and how far the sound lies behind the recording's
    duration     length of the video against the recording's

``--sheet`` writes a picture of frames beside the template's, ``--worst`` one of the frames that came out worst by each
measure, for eyes. Without ``--template`` what needs one is left out; a video that was not made by the ``mesh``
backend is judged against the same wish, and what is said of borrowed mouths is what ``mesh`` would do.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference import console, evaluate_face, evaluate_sheet, media, weights
from inference.base import EngineError
from inference.evaluate_sheet import Measured
from inference.face import mesh
from inference.face.model import FaceModel
from inference.lipsync import speech
from inference.lipsync.frames import Template, loop
from inference.lipsync.planes import to_bgr
from inference.lipsync.render.cast import Cast
from inference.lipsync.render.prepare import prepare
from inference.lipsync.render.tracks import Kind, Tracks, together
from inference.lipsync.render.tracks import follow as steadied
from inference.offsets import first_time, sound_offset

Array = NDArray[np.float32]

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
    "donor_held_frames": (0, 6),
    "teeth_stretched": (0, 0.02),
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
    flicker: float | None = None  #: grey levels, round the mouth in pauses
    flicker_nose: float | None = None  #: the same on the nose, for comparison
    seam: float | None = None  #: grey levels, round what is painted; of the worst twentieth of frames
    likeness: float | None = None  #: of the lower face to the most similar of the template's own, SSIM
    likeness_least: float | None = None  #: of the worst twentieth of frames
    donor_held_frames: int | None = None  #: the longest time one borrowed mouth is held while the opening moves
    donor_held: float | None = None  #: share of frames in which that is so
    teeth_stretch: float | None = None  #: height of borrowed teeth over their own, the 95th percentile
    teeth_stretched: float | None = None  #: share of the frames with teeth in which it is over 1.4
    worst: dict[str, list[float]] = field(default_factory=dict)  #: seconds of the worst frames by measure
    missed: list[str] = field(default_factory=list)  #: targets that are not reached

    def judge(self) -> None:
        """Fill in ``missed``."""
        for name, (low, high) in TARGETS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                self.missed.append(f"{name} {value:g} not in {low:g} … {high:g}")


def correlation(asked: Array, shown: Array, lag: int) -> float:
    """Of ``shown``, ``lag`` frames later, with ``asked``; over frames in which both are known."""
    count = min(len(asked), len(shown))
    one, other = asked[max(0, -lag) : count - max(0, lag)], shown[max(0, lag) : count - max(0, -lag)]
    good = np.isfinite(one) & np.isfinite(other)
    if good.sum() < 10 or one[good].std() < 1e-6 or other[good].std() < 1e-6:
        return 0.0
    return float(np.corrcoef(one[good], other[good])[0, 1])


def follow(report: Report, asked: speech.Asked, shown: Measured, person: NDArray[np.int32]) -> None:
    """How the mouth does what it is asked. ``person`` (T,) is who is shown: each has a width of her own."""
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
        wider = shown.width[:count] - asked.width[:count]
        width = shown.width[:count] - at_rest(wider, person[:count])
        report.width_r = round(correlation(asked.width[:count][speaking], width[speaking], 0), 4)
    closed = np.flatnonzero(asked.closed[:count] & (asked.voiced[:count] > speech.QUIET))
    if len(closed):
        # A landmarker may see lips meet one frame beside; a mouth that rests open needs its own measure.
        lowest = [np.nanmin(other[max(0, k - 1) : k + 2], initial=np.inf) for k in closed]
        floor = float(np.nanpercentile(other, 10)) + 0.01
        report.closures = round(float(np.mean(np.array(lowest) <= max(SHUT, floor))), 4)


def at_rest(wider: Array, person: NDArray[np.int32]) -> Array:
    """(T,) the width at rest of whoever is shown; ``wider`` (T,) is by how much mouths are wider than they shall be."""
    result: Array = np.full(len(wider), np.nan, np.float32)
    for who in np.unique(person):
        theirs = (person == who) & np.isfinite(wider)
        if theirs.any():
            result[person == who] = np.median(wider[theirs])
    return result


def pauses(asked: speech.Asked, fps: float) -> list[slice]:
    """The frames of each pause, without those at its ends in which the mouth settles."""
    count = len(asked.voiced)
    silent = asked.voiced < SILENCE
    edges = np.flatnonzero(np.diff(np.concatenate([[False], silent, [False]]).astype(np.int8)))
    margin = round(SETTLE_S * fps)
    return [
        slice(start + (margin if start else 0), stop - (margin if stop < count else 0))
        for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        if stop - start >= SILENCE_S * fps
    ]


def rest(report: Report, asked: speech.Asked, shown: Measured) -> None:
    """How still the mouth is in pauses."""
    steps: list[float] = []
    level: list[float] = []
    for pause in pauses(asked, report.fps):
        calm = shown.opening[pause]
        steps += np.abs(np.diff(calm))[np.isfinite(np.diff(calm))].tolist()
        level += calm[np.isfinite(calm)].tolist()
    if steps:
        report.rest_jitter = round(float(np.sqrt(np.mean(np.square(steps)))), 5)
        report.rest_opening = round(float(np.median(level)), 4)


@dataclass(frozen=True)
class Films:
    """A video and the template it was made from, frame by frame."""

    shown: Measured
    base: Measured | None
    people: tuple[Tracks, ...]  #: of the template, or of the video when there is none
    tracks: Tracks  #: of them all
    order: NDArray[np.int32]  #: (T,) the frame of ``tracks`` that each frame of the video shows
    ffmpeg: str | None

    @classmethod
    def of(cls, shown: Measured, base: Measured | None, model: FaceModel, ffmpeg: str | None) -> Films:
        """Of what was measured of both."""
        face, count = (base or shown).face, shown.face.frames
        order = loop(count, face.frames) if base else np.arange(count, dtype=np.int32)
        people = steadied(face, model.mesh.vertices)
        return cls(shown, base, people, together(people), order, ffmpeg)


def looks(report: Report, asked: speech.Asked, films: Films) -> dict[str, Array]:
    """What the pictures look like; per frame how bad it is, by measure."""
    shown, base, ffmpeg = films.shown, films.base, films.ffmpeg
    calm = np.zeros(report.frames, np.bool_)
    for pause in pauses(asked, report.fps):
        calm[pause] = True
    everything = np.arange(report.frames, dtype=np.int32)
    with Template(shown.info, report.frames, ffmpeg) as video:
        if base is None:
            pairs = ((planes, None) for planes in video.read(everything))
            seen = evaluate_face.look(pairs, films.tracks, films.order, calm=calm, opening=shown.opening, likeness=None)
        else:
            patch = evaluate_face.Patch(films.tracks, mesh.LIP_INNER, evaluate_face.FACE)
            likeness = evaluate_face.Likeness(patch, films.tracks.opening)
            wanted = np.array(sorted(likeness.wanted(films.tracks.found)), np.int32)
            with Template(base.info, base.face.frames, ffmpeg) as template:
                for index, planes in zip(wanted.tolist(), template.read(wanted), strict=True):
                    likeness.learn(planes[: base.info.height], index)
                seen = evaluate_face.look(
                    zip(video.read(everything), template.read(films.order), strict=True),
                    films.tracks,
                    films.order,
                    calm=calm,
                    opening=shown.opening,
                    likeness=likeness,
                )
    report.flicker, report.flicker_nose = _level(seen.flicker), _level(seen.flicker_nose)
    report.seam, report.likeness = _level(seen.seam, 0.95), _level(seen.likeness)
    report.likeness_least = _level(seen.likeness, 0.05)
    return {"flicker": seen.flicker, "seam": seen.seam, "likeness": 1 - seen.likeness}


def borrowed(report: Report, asked: speech.Asked, films: Films, model: FaceModel) -> dict[str, Array]:
    """How a template's own mouths are used, when it talks; per frame how bad it is, by measure."""
    base = films.base
    if base is None or all(person.kind is not Kind.TALKING for person in films.people):
        return {}
    everything = np.arange(base.face.frames, dtype=np.int32)
    with Template(base.info, base.face.frames, films.ffmpeg) as template:
        materials = prepare(films.people, template.read(everything), model, see=to_bgr)
    if not any(len(own.mouths) for own in materials):
        return {}
    cast = Cast(base.face, films.people, materials, model.mesh)
    script = cast.plan(lambda person: (asked.opening, asked.width), films.order)
    found = [
        evaluate_face.donors(cast.renderers[max(person, 0)], plan)
        for person, plan in zip(script.people, script.plans, strict=True)
    ]
    held, stretch = np.concatenate([of.held for of in found]), np.concatenate([of.stretch for of in found])
    report.donor_held_frames = int(np.nanmax(held, initial=0))
    report.donor_held = round(float(np.nanmean(held > 0)), 4)
    report.teeth_stretch = _level(stretch, 0.95)
    if report.teeth_stretch is not None:
        with_teeth = stretch[np.isfinite(stretch)]
        report.teeth_stretched = round(float((with_teeth > evaluate_face.STRETCHED).mean()), 4)
    return {"held": np.where(held > 0, held, np.nan), "stretch": stretch}


def _level(values: Array, quantile: float | None = None) -> float | None:
    """The mean or a quantile of those that are known."""
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    return round(float(known.mean() if quantile is None else np.quantile(known, quantile)), 3)


def outside(report: Report, shown: Measured, template: Measured, ffmpeg: str | None) -> None:
    """How far the rest of the picture is the template's."""
    order = loop(report.frames, template.face.frames)
    values = []
    for k, frame, original in evaluate_sheet.pairs(
        shown, template, order, set(range(0, report.frames, PSNR_EVERY)), ffmpeg
    ):
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


def evaluate(
    video: Path,
    audio: Path,
    template: Path | None,
    *,
    sheet_path: Path | None = None,
    worst_path: Path | None = None,
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
    shown = Measured.of(video, model, ffmpeg)
    base = Measured.of(template, model, ffmpeg) if template is not None else None
    face = (base or shown).face
    report = Report(str(video), shown.face.frames, shown.info.fps, shown.face.size, int(shown.face.found.sum()))
    heard = articulator.curve(samples)
    order = loop(report.frames, face.frames)
    asked = asked_of(heard, face, order, report.fps)
    follow(report, asked, shown, face.person[order])
    rest(report, asked, shown)
    if base is not None:
        outside(report, shown, base, ffmpeg)
    films = Films.of(shown, base, model, ffmpeg)
    bad = looks(report, asked, films) | borrowed(report, asked, films, model)
    for name, values in bad.items():
        report.worst[name] = [round(k / report.fps, 2) for k in evaluate_sheet.worst(values, report.fps)]
    timing(report, video, audio, len(samples) / media.SAMPLE_RATE, ffmpeg)
    report.judge()
    if sheet_path is not None:
        evaluate_sheet.moments(sheet_path, shown, base, asked.opening, ffmpeg)
    if worst_path is not None:
        evaluate_sheet.worst_frames(worst_path, shown, base, bad, ffmpeg)
    return report


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


def _print(report: Report) -> None:
    about: dict[str, Any] = asdict(report)
    missed, worst = about.pop("missed"), about.pop("worst")
    for name, value in about.items():
        if value is None:
            continue
        low, high = TARGETS.get(name, (None, None))
        wish = "" if low is None else f"   wanted {low:g} … {high:g}"
        print(f"{name:<24} {value}{wish}")
    for name, seconds in worst.items():
        print(f"{'worst ' + name:<24} at {', '.join(f'{moment:g} s' for moment in seconds)}")
    print("every target reached" if not missed else "MISSED: " + "; ".join(missed))


def main(argv: list[str] | None = None) -> int:
    """The command line; 0 when measured, 1 when something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m inference.evaluate", description="Measure a lip-synced video.")
    parser.add_argument("--video", type=Path, required=True, help="the finished video")
    parser.add_argument("--audio", type=Path, required=True, help="the recording it shall say")
    parser.add_argument("--template", type=Path, help="the video or picture it was made from")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="write frames beside the template's")
    parser.add_argument("--worst", type=Path, metavar="PNG", help="write the worst frames by each measure")
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
            worst_path=chosen.worst,
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
