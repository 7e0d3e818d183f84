"""What a job is made of once everything about it is known, and what a backend must be able to do with it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from inference import media
from inference.audio import Array
from inference.lipsync.pipeline import Painter
from inference.portrait.params import Params
from inference.portrait.reference import Reference


@dataclass(frozen=True)
class Work:
    """One video to make."""

    job: Params
    reference: Reference
    samples: Array  #: 16 kHz mono, exactly as long as the video
    frames: int
    seed: int


class Backend(Protocol):
    """What turns a face and a voice into frames: ``mesh_backend`` and ``echomimic_backend``."""

    generative: bool  #: whether `steps` and `cfg` mean something

    def prepare(
        self, work: Work, scratch: Path, check: Callable[[], None], progress: Callable[[float], None]
    ) -> tuple[Callable[[int, int], Painter], float]:
        """What paints output frames start to stop, and which share of all work is done by then, 0..1."""
        ...

    def check_length(self, frames: int) -> None:
        """Raise InputError when a video would be too long."""
        ...

    def files(self) -> list[Path]:
        """Every file of weights in use."""
        ...

    def settings(self) -> dict[str, object]:
        """The options that shape a video."""
        ...

    def warmup(self) -> None:
        """Run every model once."""
        ...

    def close(self) -> None:
        """Free the models."""
        ...


def frames_of(job: Params, seconds: float) -> tuple[int, list[str]]:
    """How many frames the video has, and what to say when that is not the sound's own length."""
    own = max(1, math.ceil(seconds * job.fps - 1e-3))
    if job.frames_num is None or job.frames_num == own:
        return own, []
    length = job.frames_num / job.fps
    if job.frames_num < own:
        return job.frames_num, [f"audio of {seconds:.2f} s cut to {length:.2f} s ({job.frames_num} frames)"]
    return job.frames_num, [f"audio of {seconds:.2f} s followed by silence up to {length:.2f} s"]


def fitted(samples: Array, frames: int, fps: float) -> Array:
    """Samples cut, or filled up with silence, to the length of the video."""
    count = round(frames / fps * media.SAMPLE_RATE)
    if len(samples) >= count:
        return samples[:count]
    return np.concatenate([samples, np.zeros(count - len(samples), np.float32)])


def seed_of(job: Params, job_id: str) -> int:
    """The seed of a job. A retry must give the same video, so even a free choice depends on the job alone."""
    if job.seed is None:
        return 0
    if job.seed >= 0:
        return job.seed
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:4], "big")
