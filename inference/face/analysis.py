"""Everything about the face in a template video, computed once and kept by the video's content.

About 13 ms per 720p frame on one core, 6 KB per frame on disk and 8 in memory. Frames are numbered as
:func:`inference.video.read_frames` hands them out.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference import video
from inference.base import InputError
from inference.face import measure, mesh
from inference.face.covered import Sight, Skin, covered
from inference.face.model import FaceModel, Frame
from inference.face.people import Seen, people
from inference.face.pose import Pose, fit, median_shape, nowhere
from inference.face.shots import Cuts, leaps
from inference.face.track import BACK_FRAMES, Choice, Tracker, before
from inference.kept import Shelf, locked, recall
from inference.probe import VideoInfo

VERSION = 5  #: of the file format and of whatever shapes the numbers; raise it when either changes
MAX_FRAMES = 15_000  #: of a template are looked at: 10 min at 25 fps; the rest is not used
FEW_FRAMES = 3_000  #: enough for sound up to this long: then only so much of a long template is looked at
ANALYSIS_SIDE = 1920  #: larger frames are scaled down to be looked at
SHORT_TRACK = 3  #: a face in fewer frames in a row is taken for a mistake


@dataclass(frozen=True, eq=False)
class TemplateAnalysis:
    """The face in N frames. Rows of frames without it are NaN. Arrays are read-only."""

    width: int  #: of the frames that the points refer to
    height: int
    fps: float
    complete: bool  #: False when the video goes on behind the last frame
    points: mesh.Points  #: (N, 478, 3) pixels, as the network gave them: not smoothed
    found: NDArray[np.bool_]  #: (N,)
    covered: NDArray[np.bool_]  #: (N,) something is before the mouth
    shot: NDArray[np.int32]  #: (N,) from 0
    person: NDArray[np.int32]  #: (N,) whom a frame's shot shows, from 0; −1 where no mouth is to be seen in it
    score: NDArray[np.float32]  #: (N,) of the mesh network, 0..1
    shape: mesh.Points  #: (P, 478, 3) the median shape of each person, head coordinates
    scale: NDArray[np.float32]  #: (N,) pose, see :class:`inference.face.pose.Pose`
    rotation: NDArray[np.float32]  #: (N, 3, 3)
    translation: NDArray[np.float32]  #: (N, 3)
    channels: NDArray[np.float32]  #: (N, 5) in the order of ``measure.CHANNELS``
    eyes: NDArray[np.float32]  #: (N, 2) openness of the right and left eye

    @property
    def frames(self) -> int:
        """How many frames were looked at."""
        return len(self.found)

    @property
    def clear(self) -> NDArray[np.bool_]:
        """(N,) whether a frame shows the mouth: a face, and nothing before it."""
        return self.found & ~self.covered

    @property
    def cut_off(self) -> NDArray[np.bool_]:
        """(N,) whether the frame ends before the mouth does."""
        lips = self.points[:, mesh.LIP_OUTER, :2]
        return np.asarray(((lips < 0) | (lips >= self.size)).any(axis=(1, 2)), np.bool_)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the video in pixels."""
        return self.width, self.height

    @property
    def pose(self) -> Pose:
        """Of every frame; NaN without a face."""
        return Pose(self.scale, self.rotation, self.translation)

    @cached_property
    def head(self) -> mesh.Points:
        """(N, 478, 3) the points in head coordinates."""
        return self.pose.to_head(self.points)

    @property
    def openings(self) -> NDArray[np.float32]:
        """(N,) gap between the inner lips in eye distances."""
        return self.channels[:, measure.CHANNELS.index("opening")]

    @property
    def widths(self) -> NDArray[np.float32]:
        """(N,) distance of the mouth corners in eye distances."""
        return self.channels[:, measure.CHANNELS.index("width")]

    def save(self, path: str | Path) -> None:
        """Write an .npz in one step: it is there whole or not at all."""
        target = Path(path)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                arrays: dict[str, Any] = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
                np.savez(stream, version=np.asarray(VERSION), **arrays)
            os.chmod(name, 0o644)
            os.replace(name, target)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @staticmethod
    def load(path: str | Path) -> TemplateAnalysis:
        """Read what ``save`` wrote. Raises ValueError when it is something else, or of another version."""
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                if int(stored["version"]) != VERSION:
                    raise ValueError(f"{path} is of version {int(stored['version'])}, not {VERSION}")
                arrays = {field.name: stored[field.name] for field in fields(TemplateAnalysis)}
        except (KeyError, EOFError, zipfile.BadZipFile, TypeError) as error:
            raise ValueError(f"{path} is no template analysis: {error}") from error
        return _analysis(**arrays)


@dataclass(frozen=True)
class Decoding:
    """How the frames of a video are read."""

    fps: float | None = None  #: frames per second; None: the video's own rate
    threads: int | None = None  #: of the decoder
    ffmpeg: str | None = None


DEFAULT = Decoding()


def analyse(
    path: str | Path | VideoInfo,
    model: FaceModel,
    progress: Callable[[int, int], None] | None = None,
    *,
    choice: Choice | None = None,
    limit: int = MAX_FRAMES,
    check: Callable[[], None] | None = None,
    decoding: Decoding = DEFAULT,
) -> TemplateAnalysis:
    """Follow the chosen face through the first ``limit`` frames of a video.

    ``progress(done, expected)`` and ``check()`` are called for every frame; ``check`` may raise to stop.
    Raises :class:`InputError`, naming the file and how many frames were looked at, when no human face is in it.
    """
    info = path if isinstance(path, VideoInfo) else video.probe_video(path, ffmpeg=decoding.ffmpeg)
    rate = decoding.fps or info.fps
    expected = max(1, min(limit, round(info.duration_s * rate)))
    shrink = max(1.0, max(info.width, info.height) / ANALYSIS_SIDE)
    size = (round(info.width / shrink / 2) * 2, round(info.height / shrink / 2) * 2)
    tracker = Tracker(model, _scaled(choice, size[0] / info.width, size[1] / info.height))

    def tell(done: int) -> None:
        if check is not None:
            check()
        if progress is not None:
            progress(done, max(expected, done))

    # One frame more than allowed tells whether the video goes on.
    threads, ffmpeg = decoding.threads, decoding.ffmpeg
    with video.read_frames(info, size=size, fps=rate, count=limit + 1, threads=threads, ffmpeg=ffmpeg) as frames:
        seen = _followed(itertools.islice(frames, limit), tracker, Skin(model.mesh), tell)
        complete = next(frames, None) is None
    points = seen.points
    found = _long_enough(np.asarray(np.isfinite(points[:, 0, 0]), np.bool_))
    points[~found] = np.nan
    if not found.any():
        raise InputError(_nobody(info.path, tracker), hint="use a template in which a face is well to be seen")
    if size != (info.width, info.height):
        _enlarge(points, info.width / size[0], info.height / size[1])
    shots = leaps(seen.shots, points[:, [mesh.EYE_CORNER_RIGHT, mesh.EYE_CORNER_LEFT], :2])
    hidden = covered(seen.looks, seen.lips, found, shots)
    faces = Seen(points, seen.looks, seen.colours)
    person = people(faces, found & ~hidden, shots, model.mesh.vertices)
    shape, pose = _posed(points, found, person, model.mesh.vertices)
    head = pose.to_head(points)
    return _analysis(
        width=info.width,
        height=info.height,
        fps=rate,
        complete=complete,
        points=points,
        found=found,
        covered=hidden,
        shot=shots,
        person=person,
        score=seen.scores * found,
        shape=shape,
        scale=pose.scale,
        rotation=pose.rotation,
        translation=pose.translation,
        channels=measure.mouth(head).table,
        eyes=measure.eyes_open(head),
    )


def cached(
    shelf: Shelf,
    path: str | Path | VideoInfo,
    model: FaceModel,
    progress: Callable[[int, int], None] | None = None,
    *,
    choice: Choice | None = None,
    frames: int | None = None,
    check: Callable[[], None] | None = None,
    decoding: Decoding = DEFAULT,
) -> TemplateAnalysis:
    """``analyse``, or its result from an earlier time, kept on ``shelf`` by the content of the video.

    ``frames`` is how many are going to be used; of a long template only as much as needed is looked at, in two
    steps (3,000 and 15,000), so that what comes out does not depend on earlier jobs. Two processes that want
    the same analysis at once share one: the second waits, calling ``check``. A damaged file is made again. The
    analyses used last stay, as many as the shelf holds.
    """
    info = path if isinstance(path, VideoInfo) else video.probe_video(path, ffmpeg=decoding.ffmpeg)
    rate = decoding.fps or info.fps
    limit = FEW_FRAMES if frames is not None and frames <= FEW_FRAMES else MAX_FRAMES
    if info.duration_s * rate <= FEW_FRAMES:
        limit = FEW_FRAMES
    about = f"{VERSION} {model.fingerprint} {video.as_rate(rate)} {choice or Choice()} {limit}"
    name = f"{_digest(info.path, check)}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"
    shelf.folder.mkdir(parents=True, exist_ok=True)
    kept = shelf.folder / f"{name}.npz"
    known = recall(kept, TemplateAnalysis.load)
    if known is not None:
        return known
    with locked(kept.with_suffix(".lock"), check):
        known = recall(kept, TemplateAnalysis.load)  # made by somebody else while we waited
        if known is not None:
            return known
        made = analyse(info, model, progress, choice=choice, limit=limit, check=check, decoding=decoding)
        made.save(kept)
    shelf.prune()
    return made


def _analysis(**arrays: Any) -> TemplateAnalysis:
    plain = {name: convert(arrays[name]) for name, convert in _PLAIN.items()}
    for name, array in arrays.items():
        if name not in plain:
            array.setflags(write=False)
    return TemplateAnalysis(**{**arrays, **plain})


_PLAIN = {"width": int, "height": int, "fps": float, "complete": bool}


@dataclass(frozen=True)
class _Seen:
    """What was seen of N frames."""

    points: mesh.Points  #: (N, 478, 3), NaN without a face
    scores: NDArray[np.float32]  #: (N,), 0 without
    looks: NDArray[np.int8]  #: (N, cells), of the skin
    lips: NDArray[np.float32]  #: (N,)
    colours: NDArray[np.float32]  #: (N, 4)
    shots: NDArray[np.int32]  #: (N,)


def _followed(frames: Iterable[Frame], tracker: Tracker, skin: Skin, tell: Callable[[int], None]) -> _Seen:
    """``tell`` is called with each count.

    A face that is found is followed back into the last frames in which it was missed.
    """
    rows: list[mesh.Points] = []
    scores: list[float] = []
    sights: list[Sight] = []
    cuts = Cuts()
    missing = np.full((mesh.POINTS, 3), np.nan, np.float32)
    missed: deque[Frame] = deque(maxlen=BACK_FRAMES)
    for frame in frames:
        cuts.feed(frame)
        landmarks = tracker.feed(frame)
        if landmarks is None:
            missed.append(frame)
        else:
            for back, earlier in enumerate(before(tracker.model, reversed(missed), landmarks), 1):
                rows[-back], scores[-back] = earlier.points, earlier.score
                sights[-back] = skin.see(missed[-back], earlier.points)
            missed.clear()
        rows.append(missing if landmarks is None else landmarks.points)
        scores.append(0.0 if landmarks is None else landmarks.score)
        sights.append(skin.blank() if landmarks is None else skin.see(frame, landmarks.points))
        tell(len(rows))
    return _Seen(
        points=np.stack(rows),
        scores=np.array(scores, np.float32),
        looks=np.stack([sight.look for sight in sights]),
        lips=np.array([sight.lips for sight in sights], np.float32),
        colours=np.stack([sight.colour for sight in sights]),
        shots=cuts.shots,
    )


def _posed(
    points: mesh.Points, found: NDArray[np.bool_], person: NDArray[np.int32], canonical: mesh.Points
) -> tuple[mesh.Points, Pose]:
    """The shape of each person, and the poses of all frames; of frames in which nobody is known, by one for all."""
    pose, shapes = nowhere(len(points)), []
    for number in np.unique(person[found]):
        theirs = found & (person == number)
        shapes.append(median_shape(points[theirs], canonical))
        pose.put(theirs, fit(points[theirs], shapes[-1]))
    return np.stack(shapes[-1 - int(person.max()) :]), pose


def _long_enough(found: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without the runs that are too short to be more than a mistake; videos of a few frames are taken as they are."""
    if len(found) <= 2 * SHORT_TRACK:
        return found
    keep = np.array(found, np.bool_)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], found, [False]]).astype(np.int8)))
    for start, end in zip(edges[::2], edges[1::2], strict=True):
        if end - start < SHORT_TRACK:
            keep[start:end] = False
    return keep


def _nobody(path: Path, tracker: Tracker) -> str:
    count = tracker.seen.frames
    looked = "1 frame was looked at" if count == 1 else f"{count} frames were looked at"
    notes = tracker.seen.describe()
    wanted = "a human face" if tracker.choice == Choice() else str(tracker.choice)
    return f"video: {path} does not show {wanted} ({looked}{'; ' + notes if notes else ''})"


def _scaled(choice: Choice | None, x: float, y: float) -> Choice | None:
    if choice is None or choice.point is None:
        return choice
    return Choice(choice.index, (choice.point[0] * x, choice.point[1] * y))


def _enlarge(points: mesh.Points, x: float, y: float) -> None:
    """Pixels of the small frame → of the large one, in place; pixel centres are at whole numbers."""
    points[..., 0] = (points[..., 0] + 0.5) * x - 0.5
    points[..., 1] = (points[..., 1] + 0.5) * y - 0.5
    points[..., 2] *= (x + y) / 2


def _digest(path: Path, check: Callable[[], None] | None) -> str:
    """SHA-256 of the content, half of it as hex."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            sha.update(block)
            if check is not None:
                check()
    return sha.hexdigest()[:32]
