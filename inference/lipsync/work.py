"""What a job is made of once everything about it is known, and what a backend must be able to do with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inference.audio import Array
from inference.face.analysis import TemplateAnalysis
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
    check: Callable[[], None]  #: raises when the job was cancelled; call it often
    looked: Callable[[int], None]  #: tells how many of the template's frames were looked at again


class Backend(Protocol):
    """What turns a face and a voice into frames: ``mesh`` and ``wav2lip``."""

    def painter(self, work: Work) -> Callable[[int, int], Painter]:
        """What paints the output frames from start to stop; called in the threads of the segments."""
        ...

    def files(self) -> list[Path]:
        """Every file of weights in use."""
        ...

    def warmup(self) -> None:
        """Run every model once."""
        ...
