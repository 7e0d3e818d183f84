"""The ``mesh`` backend: our own articulation model and renderer, nothing but what is installed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
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
from inference.lipsync.frames import ahead
from inference.lipsync.params import Options
from inference.lipsync.pipeline import Painter
from inference.lipsync.planes import to_bgr, with_changes
from inference.lipsync.render import materials as stored
from inference.lipsync.render.materials import Materials
from inference.lipsync.render.plan import Plan
from inference.lipsync.render.prepare import prepare
from inference.lipsync.render.renderer import MeshRenderer
from inference.lipsync.render.tracks import Kind
from inference.lipsync.work import Work


class MeshBackend:
    """Articulation and renderer, loaded once."""

    def __init__(self, options: Options, device: str, model: FaceModel) -> None:
        from inference.articulation import Articulator, head_path

        self._whisper = weights.find_model("whisper-base", options.whisper)
        self._head = Path(options.articulation or head_path())
        self._articulator = Articulator(self._whisper, self._head, device=device)
        self._model = model
        self._keep = options.cache_mb << 19  #: bytes of materials on disk

    def painter(self, work: Work) -> Callable[[int, int], Painter]:
        """What paints output frames start to stop; the mouth is worked out while the template is looked at."""
        with ThreadPoolExecutor(1, thread_name_prefix="articulation") as pool:
            heard: Future[Articulation] = pool.submit(self._articulator.curve, work.samples)
            materials = self._materials(work)
            renderer = MeshRenderer(work.analysis, materials, self._model.mesh)
            articulation = heard.result()
        work.check()
        tracks = renderer.tracks
        way = speech.manner(tracks.opening[tracks.found], tracks.width[tracks.found], talks=tracks.kind is Kind.TALKING)
        asked = speech.asked(articulation, way, len(work.order), work.info.fps)
        plan = renderer.plan(asked.opening, asked.width, work.order)
        return lambda start, stop: MeshPainter(renderer, plan)

    def _materials(self, work: Work) -> Materials:
        """What the renderer needs to know of the template, from the cache or by one pass over its frames."""
        folder = work.cache / "materials"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{_key(work.analysis, self._model)}.npz"
        known = recall(path, Materials.load)
        if known is not None:
            return known
        with locked(path.with_suffix(".lock"), work.check):
            known = recall(path, Materials.load)  # made by somebody else while we waited
            if known is not None:
                return known
            made = self._look(work)
            made.save(path)
        Shelf(folder, self._keep).prune()
        return made

    def _look(self, work: Work) -> Materials:
        everything = np.arange(work.analysis.frames, dtype=np.int32)

        def tick(index: int) -> None:
            work.check()
            work.looked(index + 1)

        with ahead(work.template.read(everything), work.info) as frames:
            return prepare(work.analysis, frames, self._model, see=to_bgr, tick=tick)

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

    def __init__(self, renderer: MeshRenderer, plan: Plan) -> None:
        self._renderer, self._plan = renderer, plan
        self._buffer: Planes | None = None

    def paint(self, frames: Sequence[Frame], outputs: Sequence[int]) -> list[Frame]:
        """(H, W, 3) each: the finished frames of some output numbers."""
        plan = self._plan
        return [
            self._renderer.render(frame, int(plan.frames[k]), plan.target(k))
            for frame, k in zip(frames, outputs, strict=True)
        ]

    def paint_planes(self, planes: Planes, output: int) -> Planes:
        """One frame of which only the window round the mouth is converted, to BGR and back."""
        index = int(self._plan.frames[output])
        window = self._renderer.window(index, planes.shape[1], planes.shape[0] * 2 // 3)
        if window is None:
            return planes
        before, at = to_bgr(planes, window), window[:2]
        after = self._renderer.render(before, index, self._plan.target(output), at)
        if self._buffer is None:
            self._buffer = np.empty_like(planes)
        return with_changes(planes, before, after, at, self._buffer)


def asked_of(
    articulation: Articulation, opening: Array, width: Array, found: NDArray[np.bool_], *, frames: int, fps: float
) -> speech.Asked:
    """What an articulation asks of a template's face; for measuring afterwards whether it was done."""
    from inference.lipsync.render.tracks import classify

    talks = classify(opening[found]) is Kind.TALKING
    return speech.asked(articulation, speech.manner(opening[found], width[found], talks), frames, fps)


def _key(analysis: TemplateAnalysis, model: FaceModel) -> str:
    """Stands for the template's content: its landmarks, which no other content has to the last bit."""
    about = f"{stored.VERSION} {analysis.width}×{analysis.height} {analysis.fps} {model.fingerprint}"
    sha = hashlib.sha256(about.encode())
    sha.update(np.ascontiguousarray(analysis.points).data)
    sha.update(analysis.clear.tobytes())
    return sha.hexdigest()[:32]
