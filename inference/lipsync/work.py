"""What a job is made of once everything about it is known, and what a backend must be able to do with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from inference.audio import Array
from inference.base import Context
from inference.encode import Encoding
from inference.face.analysis import TemplateAnalysis
from inference.join import Part
from inference.lipsync.frames import Template
from inference.lipsync.pipeline import Painter
from inference.video import VideoInfo


@dataclass(frozen=True)
class Work:
    """One video to make."""

    info: VideoInfo  #: of the template
    analysis: TemplateAnalysis
    template: Template  #: its frames
    order: NDArray[np.int32]  #: (T,) the template frame of every output frame
    samples: Array  #: (N,) what is said, 16 kHz mono
    cache: Path  #: a folder that outlives jobs
    check: Callable[[], None]  #: raises when the job was cancelled; call it often, before painting
    stop: Callable[[], None]  #: the same while painting, in any thread
    looked: Callable[[int], None]  #: tells how many of the template's frames were looked at again
    warn: Callable[[str], None]  #: adds to the warnings of the result
    watched: bool = False  #: somebody waits for the first second
    persona: Path | None = None  #: file of the mouth to paint with (:mod:`inference.persona`); ``mesh`` alone can


@dataclass(frozen=True)
class Shot:
    """One video to make by a backend that needs nothing of ours but the files."""

    audio: Path
    video: Path
    info: VideoInfo  #: of the template
    seconds: float  #: of the audio
    context: Context
    encoding: Callable[[int, int, float], Encoding]  #: of frames of that width, height and rate
    begin: Callable[[str, str], None]  #: a step begins: its status and a message
    part: Callable[[int, int], None]  #: so many of so many frames are there
    check: Callable[[], None]  #: raises when the job was cancelled; call it often
    picture: Path  #: where it goes, without sound


@dataclass(frozen=True)
class Picture:
    """A finished picture, without sound."""

    parts: list[Part]
    width: int  #: pixels
    height: int
    fps: float
    frames: int
    codec: str
    about: dict[str, Any]  #: more of the result
    prepared: float  #: when the first frame could be made, in seconds of the monotonic clock
    warnings: tuple[str, ...] = ()


class Backend(Protocol):
    """What turns a voice and a template into frames: a :class:`Brush` or a :class:`Camera`."""

    def warmup(self) -> None:
        """Run every model once."""
        ...

    def close(self) -> None:
        """Free the models."""
        ...


@runtime_checkable
class Brush(Backend, Protocol):
    """A backend that paints over the frames of a template whose face was followed: ``mesh`` and ``wav2lip``."""

    def files(self) -> list[Path]:
        """Every file of weights in use."""
        ...

    def painter(self, work: Work) -> Callable[[int, int], Painter]:
        """What paints the output frames from start to stop; called in the threads of the segments."""
        ...


@runtime_checkable
class Camera(Backend, Protocol):
    """A backend that makes the whole picture by itself: ``heygem``."""

    def shoot(self, shot: Shot) -> Picture:
        """Make one video."""
        ...

    def fingerprint(self) -> str:
        """Changes with what it makes its picture with."""
        ...
