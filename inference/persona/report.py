"""The part of a video that was held out, drawn by the mesh renderer alone and with the persona: both are measured.

Two tasks. Given the real frames' own openings and widths, how near do the pictures come (PSNR, gradient similarity, how
sharp, how steady)? And given the sound alone, over frames that show something else: does the mouth do what the real one
did (r of the opening at the best lag), and do lips meet where they must? Neither has seen these frames before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.articulation.curve import Articulation
from inference.face import measure, pose
from inference.face.model import FaceModel, region_of_points
from inference.lipsync import speech
from inference.lipsync.render.renderer import MeshRenderer
from inference.persona.asked import Scale
from inference.persona.examples import Examples
from inference.persona.model import Painter
from inference.persona.patch import Square
from inference.persona.subject import Subject

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

SHUT = 0.025  #: an opening up to this is a closed mouth, eye distances
MAX_LAG = 5  #: frames
STEADY = 170.0  #: the constant of gradient magnitude similarity for 8 bits (Xue et al. 2014)
BATCH = 32


@dataclass(frozen=True)
class Likeness:
    """How near pictures come to the real ones."""

    psnr_db: float  #: where a persona paints
    gradient_deviation: float  #: GMSD (Xue et al. 2014) on and round the lips; 0 is the same picture
    sharpness: float  #: of the lips, over that of the real ones
    jitter: float  #: change of the change from frame to frame, over that of the real ones


@dataclass(frozen=True)
class Speech:
    """What the mouth does with the sound."""

    opening_r: float  #: correlation with the opening of the real mouth, at the best lag
    closures: float | None  #: share of the p, b and m at which the lips meet; None without any


def likeness(shown: Frame, real: Frame, cover: Array, lips: Array) -> Likeness:
    """Of squares (N, SIDE, SIDE, 3) in a row; at least three."""
    off = ((shown.astype(np.float32) - real) ** 2).mean(axis=3)
    errors = np.maximum((off * cover).sum(axis=(1, 2)) / cover.sum(), 1e-2)
    one, other = (np.stack([cv2.cvtColor(p, cv2.COLOR_BGR2GRAY).astype(np.float32) for p in a]) for a in (shown, real))
    deviations = [_deviation(*pair, lips) for pair in zip(one, other, strict=True)]
    return Likeness(
        psnr_db=round(float((10 * np.log10(255**2 / errors)).mean()), 2),
        gradient_deviation=round(float(np.mean(deviations)), 4),
        sharpness=round(_detail(one, lips) / max(_detail(other, lips), 1e-6), 3),
        jitter=round(_change(one, lips) / max(_change(other, lips), 1e-6), 3),
    )


def _deviation(one: Array, other: Array, weights: Array) -> float:
    steep = [cv2.magnitude(cv2.Scharr(p, cv2.CV_32F, 1, 0), cv2.Scharr(p, cv2.CV_32F, 0, 1)) / 16 for p in (one, other)]
    alike = (2 * steep[0] * steep[1] + STEADY) / (steep[0] ** 2 + steep[1] ** 2 + STEADY)
    share = weights / weights.sum()
    mean = (alike * share).sum()
    return float(np.sqrt((share * (alike - mean) ** 2).sum()))


def _detail(pictures: Array, weights: Array) -> float:
    return float(np.sqrt(np.mean([(cv2.Laplacian(p, cv2.CV_32F) ** 2 * weights).mean() for p in pictures])))


def _change(pictures: Array, weights: Array) -> float:
    return float((np.abs(pictures[2:] - 2 * pictures[1:-1] + pictures[:-2]) * weights).mean())


class Judge:
    """Measures both on what was held out of one subject."""

    def __init__(
        self, subject: Subject, renderer: MeshRenderer, square: Square, scale: Scale, model: FaceModel
    ) -> None:
        """``renderer`` borrows from what is learned."""
        self._subject, self._renderer, self._square, self._scale = subject, renderer, square, scale
        self._model = model

    def alike(self, held: Examples, painter: Painter, lips: Array) -> dict[str, Likeness]:
        """Given the real shapes."""
        parts = [
            painter.painted(held.drawn[at : at + BATCH], held.asked[at : at + BATCH])
            for at in range(0, len(held), BATCH)
        ]
        cover = self._square.cover
        shown = {"mesh": held.drawn, "persona": np.concatenate(parts)}
        return {name: likeness(pictures, held.real, cover, lips) for name, pictures in shown.items()}

    def spoken(
        self, heard: Articulation, frames: Iterable[Frame], painter: Painter, tick: Callable[[int], None]
    ) -> dict[str, Speech]:
        """Given the sound of the whole video; ``frames`` are all its frames."""
        tracks, held = self._subject.tracks, self._subject.held
        count = len(held)
        way = speech.manner(tracks.opening[tracks.found], tracks.width[tracks.found], talks=True)
        asked = speech.asked(heard, way, tracks.frames, self._subject.fps)
        base = np.roll(held, count // 2)  # so that a frame's own mouth is no help
        plan = self._renderer.plan(asked.opening[held], asked.width[held], base)
        told = self._scale.inputs(plan.opening, plan.width + tracks.rest_width, tracks.pose.angles[base])
        over: dict[int, list[int]] = defaultdict(list)
        for k, index in enumerate(base.tolist()):
            over[index].append(k)
        shown = {name: np.full(count, np.nan, np.float32) for name in ("mesh", "persona")}
        for index, frame in enumerate(frames):
            tick(index)
            if index > int(base.max()):
                break
            for k in over[index]:
                head = tracks.pose.take(index)
                drawn = self._renderer.render(frame, index, plan.target(k))
                square = self._square.cut(drawn, head)
                painted: Frame = drawn.copy()
                self._square.lay(painted, painter.changes(square[None], told[k : k + 1])[0], head)
                for name, picture in (("mesh", drawn), ("persona", painted)):
                    shown[name][k] = self._opening(picture, index)
        real, voiced = tracks.opening[held], asked.voiced[held] > speech.QUIET
        closed = np.flatnonzero(asked.closed[held] & voiced)
        return {name: _speech(real, values, closed) for name, values in shown.items()}

    def _opening(self, picture: Frame, index: int) -> float:
        tracks = self._subject.tracks
        found = self._model.landmarks(picture, region_of_points(tracks.pixels(index))).points[None]
        return float(measure.mouth(pose.fit(found, tracks.own).to_head(found)).opening[0])


def _speech(real: Array, shown: Array, closed: NDArray[np.intp]) -> Speech:
    lags = range(-MAX_LAG, MAX_LAG + 1)
    r = max(correlation(real, shown, lag) for lag in lags)
    near = [float(shown[max(0, k - 1) : k + 2].min()) for k in closed]
    closures = round(float(np.mean([opening <= SHUT for opening in near])), 3) if near else None
    return Speech(round(r, 3), closures)


def correlation(one: Array, other: Array, lag: int) -> float:
    """Of (T,) values with others ``lag`` frames later."""
    count = len(one) - abs(lag)
    first, second = one[max(0, -lag) :][:count], other[max(0, lag) :][:count]
    if count < 10 or first.std() < 1e-6 or second.std() < 1e-6:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def written(subject: Subject, alike: dict[str, Likeness], spoken: dict[str, Speech]) -> dict[str, Any]:
    """The report as a result and a persona's file hold it."""
    measured = {name: {**asdict(alike[name]), **asdict(spoken[name])} for name in ("mesh", "persona")}
    return {
        "learned_frames": len(subject.learned),
        "held_out_frames": len(subject.held),
        "held_out_s": round(len(subject.held) / subject.fps, 2),
        **measured,
    }
