"""The ``mesh`` backend: our own articulation model and renderer, nothing but what is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inference import media, weights
from inference.face.model import FaceModel
from inference.lipsync import speech
from inference.lipsync.frames import Frame
from inference.lipsync.render.plan import Plan
from inference.portrait import motion
from inference.portrait.animate import Animator
from inference.portrait.params import Options
from inference.portrait.work import Work

MEASURED, HEARD = 0.05, 0.15  #: share of all work that is done once the face is measured, the sound understood


class MeshBackend:
    """Articulation and renderer, loaded once."""

    generative = False

    def __init__(self, options: Options, device: str, model: FaceModel) -> None:
        from inference.articulation import Articulator, head_path

        whisper = weights.find_model("whisper-base", options.whisper)
        self._head = options.articulation or head_path()
        self._whisper = whisper
        self._articulator: Any = Articulator(whisper, self._head, device=device)
        self._model = model

    def prepare(
        self, work: Work, scratch: Path, check: Callable[[], None], progress: Callable[[float], None]
    ) -> tuple[Callable[[int, int], Painter], float]:
        """What paints output frames start to stop, and which share of all work is done by then."""
        animator = Animator(work.reference.picture, work.reference.points, self._model)
        progress(MEASURED)
        heard = self._articulator.curve(work.samples).rescaled()
        progress(HEARD)
        # A still face shows nothing of how its owner talks, so it talks as most people do.
        mouth = speech.asked(heard, speech.TYPICAL, work.frames, work.job.fps)
        plan = animator.plan(mouth.opening, mouth.width)
        loud = motion.loudness(work.samples, media.SAMPLE_RATE, work.job.fps, work.frames)
        moves = motion.generate(work.frames, work.job.fps, work.seed, loud).scaled(work.job.motion)
        return (lambda start, stop: Painter(animator, plan, moves)), HEARD

    def check_length(self, frames: int) -> None:
        """Any length will do."""

    def files(self) -> list[Path]:
        """Every file of weights in use."""
        return [*sorted(self._whisper.glob("*.bin")), Path(self._head)]

    def settings(self) -> dict[str, object]:
        """The options that shape a video."""
        return {"backend": "mesh"}

    def warmup(self) -> None:
        """A second of silence, so that the first job meets no first-call cost."""
        self._articulator.curve(np.zeros(media.SAMPLE_RATE, np.float32))

    def close(self) -> None:
        """Free the models."""
        self._articulator = None


class Painter:
    """Paints frames of one segment; what it is given of the template does not interest it."""

    batch = 1

    def __init__(self, animator: Animator, plan: Plan, moves: motion.Motion) -> None:
        self._animator, self._plan, self._moves = animator, plan, moves

    def paint(self, frames: Sequence[Frame], outputs: Sequence[int]) -> list[Frame]:
        """(H, W, 3) each: the pictures of some output numbers."""
        return [self._animator.frame(self._plan, self._moves, k) for k in outputs]
