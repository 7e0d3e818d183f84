"""A job's script, made as far as it is asked for: who waits for the first second waits for what is said in it.

The recording is heard window after window, and at each stage all that was heard is planned. A plan of more is the same
to the last bit in the frames that a stage counts as final, so how far a job was asked for changes no frame of it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from inference.articulation import FPS, Articulation, Listening
from inference.lipsync.render.cast import Script
from inference.lipsync.render.mouths import BLOCK, LEAD, OVERLAP
from inference.lipsync.render.plan import REACH
from inference.memory import give_back

MORE = 4  #: times as many blocks are planned at each stage, as it plans all that came before once more

Planner = Callable[[Articulation, int], Script]  #: what was heard, the number of output frames → their script


def hear(heard: Listening, frames: int | None, fps: float, check: Callable[[], None]) -> None:
    """Listen until so many output frames at ``fps`` are known, or to all. ``check`` is called between windows."""
    while frames is None or _known(heard, fps) < frames:
        check()
        if not heard.more():
            break
    give_back()


class Score:
    """The script of a job's output frames. Several threads may ask it."""

    FIRST = LEAD + OVERLAP + 1  #: output frames that must be known for the first stage

    def __init__(self, heard: Listening, plan: Planner, frames: int, fps: float, check: Callable[[], None]) -> None:
        """``frames`` is how many there are, ``fps`` their rate."""
        self._heard, self._plan, self._frames, self._fps, self._check = heard, plan, frames, fps, check
        self._lock = threading.Lock()
        self._blocks = 0  #: of the next stage, beyond the first one
        self._script: Script | None = None
        self._final = 0  #: frames of it

    def script(self, k: int) -> Script:
        """One in which output frame ``k`` is final."""
        with self._lock:
            while self._script is None or k >= self._final:
                self._script = self._stage()
            return self._script

    def whole(self) -> Script:
        """One in which all frames are."""
        return self.script(self._frames - 1)

    def _stage(self) -> Script:
        edge = LEAD + BLOCK * self._blocks
        self._blocks = MORE * self._blocks + 1
        hear(self._heard, edge + OVERLAP + 1, self._fps, self._check)
        known = self._frames
        self._final = known
        if self._heard.settled is not None:
            known = min(known, int(_known(self._heard, self._fps)))
            self._final = min(known, edge - REACH)
        return self._plan(self._heard.articulation(), known)


def _known(heard: Listening, fps: float) -> float:
    """Output frames of which both frames of the articulation beside their middle are settled."""
    if heard.settled is None:
        return math.inf
    return max(0, math.floor((heard.settled - 0.5) / FPS * fps - 0.5) + 1)
