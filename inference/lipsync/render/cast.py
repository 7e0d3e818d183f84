"""All people of a template: each frame goes to the renderer of whoever its shot shows.

A cut ends everything: what is planned for one shot knows nothing of the next, and no mouth is another person's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.lipsync.render.materials import Materials
from inference.lipsync.render.plan import Plan, Target
from inference.lipsync.render.renderer import MeshRenderer
from inference.lipsync.render.tracks import Analysis, Tracks

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

Ask = Callable[[Tracks], tuple[Array, Array]]  #: a person → (T,) opening and (T,) width asked of all output frames


@dataclass(frozen=True)
class Script:
    """What T output frames show: one plan after the other, one for each shot that is shown."""

    frames: NDArray[np.int32]  #: (T,) template frame shown
    plans: tuple[Plan, ...]
    people: tuple[int, ...]  #: whom each is for; −1 nobody
    starts: NDArray[np.int64]  #: the output frame at which each begins

    def __len__(self) -> int:
        return len(self.frames)

    def target(self, k: int) -> Target:
        """Output frame ``k``."""
        at = int(np.searchsorted(self.starts, k, "right")) - 1
        return self.plans[at].target(k - int(self.starts[at]))


class Cast:
    """Renders one template. Safe to share between threads: nothing in it changes."""

    def __init__(
        self, analysis: Analysis, people: Sequence[Tracks], materials: Sequence[Materials], face: mesh.Mesh
    ) -> None:
        """``people`` and their ``materials`` by number, from :func:`tracks.follow` and :func:`prepare.prepare`."""
        self._person, self._shot = analysis.person, analysis.shot
        self.renderers = [MeshRenderer(*of, face) for of in zip(people, materials, strict=True)]

    def plan(self, ask: Ask, frames: NDArray[np.integer]) -> Script:
        """What to show at each of T output frames; ``frames`` (T,) is the template frame that each shows."""
        shown = np.asarray(frames, np.int32)
        starts = np.flatnonzero(np.diff(self._shot[shown], prepend=-1))
        asked = [ask(renderer.tracks) for renderer in self.renderers]
        plans, people = [], []
        for start, stop in zip(starts, [*starts[1:], len(shown)], strict=True):
            part = slice(int(start), int(stop))
            person = int(self._person[shown[start]])
            people.append(person)
            if person < 0:
                plans.append(Plan.idle(shown[part]))
                continue
            opening, width = asked[person]
            plans.append(self.renderers[person].plan(opening[part], width[part], shown[part], int(start)))
        return Script(shown, tuple(plans), tuple(people), starts)

    def window(self, index: int, width: int, height: int) -> tuple[int, int, int, int] | None:
        """Left, top, right, bottom (even) of what rendering frame ``index`` looks at; None where it does nothing."""
        person = int(self._person[index])
        return self.renderers[person].window(index, width, height) if person >= 0 else None

    def render(self, frame: Frame, index: int, target: Target, at: tuple[int, int] = (0, 0)) -> Frame:
        """As :meth:`MeshRenderer.render`."""
        person = int(self._person[index])
        return self.renderers[person].render(frame, index, target, at) if person >= 0 else frame
