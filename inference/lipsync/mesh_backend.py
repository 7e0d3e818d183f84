"""The ``mesh`` backend: our own articulation model and renderer, nothing but what is installed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference import weights
from inference.articulation.curve import Articulation
from inference.audio import Array
from inference.encode import Frame, Planes
from inference.face.analysis import TemplateAnalysis
from inference.face.model import FaceModel
from inference.kept import Shelf, locked, recall
from inference.lipsync import speech
from inference.lipsync.finish import Finish, finishing
from inference.lipsync.frames import ahead
from inference.lipsync.params import Options
from inference.lipsync.pipeline import Painter
from inference.lipsync.planes import to_bgr, with_changes
from inference.lipsync.render import materials as stored
from inference.lipsync.render import tracks
from inference.lipsync.render.cast import Cast, Script
from inference.lipsync.render.materials import Materials
from inference.lipsync.render.prepare import prepare
from inference.lipsync.render.tracks import Kind, Tracks
from inference.lipsync.score import Score, hear
from inference.lipsync.work import Work


class MeshBackend:
    """Articulation and renderer, loaded once."""

    def __init__(self, options: Options, device: str, model: FaceModel) -> None:
        from inference.articulation import Articulator, head_path

        self._whisper = weights.find_model("whisper-base", options.whisper)
        self._head = Path(options.articulation or head_path())
        self._articulator = Articulator(self._whisper, self._head, device=device)
        self._model, self._device = model, device
        self._keep = options.cache_mb << 19  #: bytes of materials on disk

    def painter(self, work: Work) -> Callable[[int, int], Painter]:
        """What paints output frames start to stop; the mouth is worked out while the template is looked at."""
        with ThreadPoolExecutor(1, thread_name_prefix="articulation") as pool:
            fps, heard = work.info.fps, self._articulator.listen(work.samples)
            first = Score.FIRST if work.watched and work.persona is None else None
            listening: Future[None] = pool.submit(hear, heard, first, fps, work.stop)
            people = tracks.follow(work.analysis, self._model.mesh.vertices)
            cast = Cast(work.analysis, people, self._materials(work, people), self._model.mesh)
            listening.result()
        work.check()

        def plan(articulation: Articulation, frames: int) -> Script:
            def ask(person: Tracks) -> tuple[Array, Array]:
                opening, width = person.opening[person.found], person.width[person.found]
                way = speech.manner(opening, width, talks=person.kind is Kind.TALKING)
                asked = speech.asked(articulation, way, frames, fps)
                return asked.opening, asked.width

            return cast.plan(ask, work.order[:frames])

        for told in _short(people, work.analysis.fps):
            work.warn(told)
        score = Score(heard, plan, len(work.order), fps, work.stop)
        finish = None if work.persona is None else finishing(work, cast, score.whole(), self._model, self._device)
        score.script(0)
        return lambda start, stop: MeshPainter(cast, work.order, score, finish)

    def _materials(self, work: Work, people: Sequence[Tracks]) -> tuple[Materials, ...]:
        """What rendering needs to know of each person, from the cache or by one pass over the template's frames."""
        folder = work.cache / "materials"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{_key(work.analysis, self._model)}.npz"
        known = recall(path, stored.load)
        if known is not None:
            return known
        with locked(path.with_suffix(".lock"), work.check):
            known = recall(path, stored.load)  # made by somebody else while we waited
            if known is not None:
                return known
            made = self._look(work, people)
            stored.save(made, path)
        Shelf(folder, self._keep).prune()
        return made

    def _look(self, work: Work, people: Sequence[Tracks]) -> tuple[Materials, ...]:
        everything = np.arange(work.analysis.frames, dtype=np.int32)

        def tick(index: int) -> None:
            work.check()
            work.looked(index + 1)

        with ahead(work.template.read(everything), work.info) as frames:
            return prepare(people, frames, self._model, see=to_bgr, tick=tick)

    def files(self) -> list[Path]:
        """Every file of weights in use."""
        return [*sorted(self._whisper.glob("*.bin")), self._head]

    def warmup(self) -> None:
        """A second of silence, so that the first job meets no first-call cost."""
        self._articulator.curve(np.zeros(16_000, np.float32))

    def close(self) -> None:
        """Nothing to end."""


class MeshPainter:
    """Paints one segment (a :class:`inference.lipsync.pipeline.Painter`)."""

    batch = 1

    def __init__(self, cast: Cast, order: NDArray[np.int32], score: Score, finish: Finish | None = None) -> None:
        self._cast, self._order, self._score, self._finish = cast, order, score, finish
        self._buffer: Planes | None = None

    def paint(self, frames: Sequence[Frame], outputs: Sequence[int]) -> list[Frame]:
        """(H, W, 3) each: the finished frames of some output numbers."""
        return [self._drawn(frame, k, (0, 0)) for frame, k in zip(frames, outputs, strict=True)]

    def paint_planes(self, planes: Planes, output: int) -> Planes:
        """One frame of which only the window round the mouth is converted, to BGR and back."""
        index = int(self._order[output])
        window = self._cast.window(index, planes.shape[1], planes.shape[0] * 2 // 3)
        if window is None:
            return planes
        before, at = to_bgr(planes, window), window[:2]
        after = self._drawn(before, output, at)
        if self._buffer is None:
            self._buffer = np.empty_like(planes)
        return with_changes(planes, before, after, at, self._buffer)

    def _drawn(self, frame: Frame, k: int, at: tuple[int, int]) -> Frame:
        """A frame, or the part of it that begins at ``at``, with the mouth of output frame ``k``."""
        drawn = self._cast.render(frame, int(self._order[k]), self._score.script(k).target(k), at)
        return drawn if self._finish is None else self._finish.laid(drawn, k, at)


def asked_of(articulation: Articulation, face: TemplateAnalysis, order: NDArray[np.int32], fps: float) -> speech.Asked:
    """What an articulation asks of a template's people at output frames that show its frames ``order``; for measuring
    afterwards whether it was done."""
    whole: speech.Asked | None = None
    for person in range(max(1, int(face.person.max()) + 1)):
        seen = face.clear & (face.person == person)
        opening, width = face.openings[seen], face.widths[seen]
        talks = bool(seen.any()) and tracks.classify(opening) is Kind.TALKING
        own = speech.asked(articulation, speech.manner(opening, width, talks), len(order), fps)
        theirs = face.person[order] == person
        whole = own if whole is None else whole.where(theirs, own)
    assert whole is not None
    return whole


def _short(people: Sequence[Tracks], fps: float) -> Iterator[str]:
    """Who moves the lips, but too briefly to learn mouths from, in words."""
    for person in people:
        at = np.flatnonzero(person.found)
        low, high = np.percentile(person.opening[at], [10, 90])
        if len(at) < tracks.TALK_FRAMES and high - low > tracks.TALK_SPREAD:
            yield (
                f"video: who talks at {at[0] / fps:.1f}–{(at[-1] + 1) / fps:.1f} s is seen in {len(at)} frames, fewer "
                f"than the {tracks.TALK_FRAMES} that a mouth is learned from; it is drawn"
            )


def _key(analysis: TemplateAnalysis, model: FaceModel) -> str:
    """Stands for the template's content: its landmarks, which no other content has to the last bit."""
    about = f"{stored.VERSION} {analysis.width}×{analysis.height} {analysis.fps} {model.fingerprint}"
    sha = hashlib.sha256(about.encode())
    sha.update(np.ascontiguousarray(analysis.points).data)
    for rows in (analysis.clear, analysis.shot, analysis.person):
        sha.update(np.ascontiguousarray(rows).data)
    return sha.hexdigest()[:32]
