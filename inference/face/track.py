"""One face through a stream of frames.

Detected and judged once, then looked for where it was in the frame before; when it is lost (score, shape) the
same frame is searched again. A face behind a hand or turned away keeps its place for a while, so that it is
taken up again rather than somebody else's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from inference.face.model import Detection, FaceModel, Frame, Landmarks, region_of_detection, region_of_points
from inference.face.plausible import Verdict, judge, still_there
from inference.video_params import Face

WAIT_FRAMES = 12  #: how long a lost face is waited for before the largest other one is taken up
WAIT_NAMED_FRAMES = 50  #: the same for a face that was named
NEAR = 1.5  #: and how far from its last place it may be, in sides of its last region
THOROUGH_EVERY = 10  #: while nothing is found, only each of these frames is searched for small faces too
BACK_FRAMES = 12  #: so far a found face is followed back: more than lie between two thorough searches
REFUSALS = 10  #: after so many frames in a row with an animal or the like …
JUDGE_EVERY = 5  #: … only each of these is judged: a judgement costs as much as four frames
MAX_CANDIDATES = 8  #: detections judged per frame, largest first


@dataclass(frozen=True)
class Choice:
    """Which face, where there are several: the ``index``-th by size, or the one nearest to a point."""

    index: int = 0  #: 0 = the largest
    point: tuple[float, float] | None = None  #: x, y in pixels; takes precedence

    @classmethod
    def of(cls, face: Face, scale: float) -> Choice:
        """The face that a job names, in a picture that is ``scale`` times as large as the one it means."""
        if face == "largest":
            return cls()
        if isinstance(face, int):
            return cls(index=face)
        return cls(point=(face[0] * scale, face[1] * scale))

    def pick(self, faces: list[Verdict]) -> Verdict | None:
        """One of the human faces of a frame; None when the index is beyond them."""
        if self.point is not None:
            x, y = self.point
            return min(faces, key=lambda face: _away(face.landmarks, x, y), default=None)
        by_size = sorted(faces, key=lambda face: face.landmarks.eye_distance, reverse=True)
        return by_size[self.index] if self.index < len(by_size) else None

    def __str__(self) -> str:
        if self.point is not None:
            return f"the face nearest to {self.point[0]:g},{self.point[1]:g}"
        return "the largest face" if self.index == 0 else f"face {self.index + 1} by size"


@dataclass
class Seen:
    """What searching came across, for messages."""

    frames: int = 0  #: frames looked at
    refused: int = 0  #: frames in which something like a face was no person's
    small: int = 0  #: frames in which a face was too small
    most: int = 0  #: most usable faces in one frame

    def describe(self) -> str:
        """What was seen, in words for a message; "" when there was nothing."""
        notes = []
        if self.most:
            notes.append(f"at most {self.most} at a time" if self.most > 1 else "only one")
        if self.refused:
            notes.append(f"what looked like one in {self.refused} is no human face")
        if self.small:
            notes.append(f"too small in {self.small}")
        return "; ".join(notes)


def find(
    model: FaceModel, bgr: Frame, choice: Choice | None = None, seen: Seen | None = None, thorough: bool = True
) -> Landmarks | None:
    """The chosen human face of one picture, its points settled; None when there is none."""
    faces = _humans(model, bgr, model.searches(bgr, thorough), seen if seen is not None else Seen())
    verdict = (choice or Choice()).pick(faces)
    return verdict.landmarks if verdict is not None else None


class Tracker:
    """Feed it the frames of one video in order."""

    def __init__(self, model: FaceModel, choice: Choice | None = None) -> None:
        self.model = model
        self.choice = choice or Choice()
        self.seen = Seen()
        self._last: Landmarks | None = None
        self._missing = 0  #: frames since it was last seen
        self._refusals = 0  #: frames in a row in which nobody was human

    def feed(self, bgr: Frame) -> Landmarks | None:
        """The face's points in this frame, or None where it is not to be seen."""
        self.seen.frames += 1
        followed, sure = None, 0.0
        if self._last is not None and self._missing == 0:
            followed = self.model.landmarks(bgr, region_of_points(self._last.points))
            sure = still_there(self.model, followed)
        if sure < 1:
            followed = self._search(bgr) or (followed if sure else None)
        if followed is None:
            self._missing += 1
            return None
        self._last, self._missing = followed, 0
        return followed

    def _search(self, bgr: Frame) -> Landmarks | None:
        wait = WAIT_FRAMES if self.choice == Choice() else WAIT_NAMED_FRAMES
        thorough = self._missing % THOROUGH_EVERY == 0 or self._missing == wait
        if self._refusals >= REFUSALS and self.seen.frames % JUDGE_EVERY:
            self.seen.refused += bool(self.model.detect(bgr))
            return None
        refused = self.seen.refused
        faces = _humans(self.model, bgr, self.model.searches(bgr, thorough), self.seen)
        self._refusals = self._refusals + 1 if self.seen.refused > refused else 0
        if self._last is not None and self._missing < wait:
            last = self._last.region
            again = [face for face in faces if _away(face.landmarks, last.x, last.y) < NEAR * last.side]
            nearest = min(again, key=lambda face: _away(face.landmarks, last.x, last.y), default=None)
            return nearest.landmarks if nearest is not None else None
        verdict = self.choice.pick(faces)
        return verdict.landmarks if verdict is not None else None


def before(model: FaceModel, frames: Iterable[Frame], landmarks: Landmarks) -> Iterator[Landmarks]:
    """A found face in the frames that came before, the last one first, as long as it is surely there."""
    for bgr in frames:
        landmarks = model.landmarks(bgr, region_of_points(landmarks.points))
        if still_there(model, landmarks) < 1:
            return
        yield landmarks


def _humans(model: FaceModel, bgr: Frame, searches: Iterable[list[Detection]], seen: Seen) -> list[Verdict]:
    """The usable human faces of the first search that finds human ones."""
    refused, human = False, list[Verdict]()
    for detections in searches:
        verdicts = [judge(model, bgr, region_of_detection(face)) for face in detections[:MAX_CANDIDATES]]
        human = [verdict for verdict in verdicts if verdict.human]
        refused |= bool(verdicts)
        if human:
            break
    usable: list[Verdict] = []
    for verdict in human:
        # Two detections may have settled on one face.
        place = verdict.landmarks.region
        if verdict.large_enough and all(
            _away(other.landmarks, place.x, place.y) > 0.3 * place.side for other in usable
        ):
            usable.append(verdict)
    seen.refused += refused and not human
    seen.small += bool(human) and not usable
    seen.most = max(seen.most, len(usable))
    return usable


def _away(landmarks: Landmarks, x: float, y: float) -> float:
    """Pixels from a point to the middle of a face."""
    return math.hypot(landmarks.region.x - x, landmarks.region.y - y)
