"""From a video to pairs of squares: what the mesh renderer draws when asked for a frame's mouth, and that frame.

The renderer borrows mouths from the video itself. So that it draws as it will later, when it never has the very mouth
that is asked for, stretches of the video borrow from those beside them (cross-fitting), what is held out borrows from
what is learned, and half of the examples are drawn over another frame than their own, one with nearly the same pose.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from inference.face.analysis import TemplateAnalysis
from inference.face.model import FaceModel
from inference.face.people import Traits
from inference.lipsync.render.materials import Materials
from inference.lipsync.render.plan import Target
from inference.lipsync.render.prepare import prepare
from inference.lipsync.render.renderer import MeshRenderer
from inference.persona import identity
from inference.persona.asked import Scale
from inference.persona.network import INPUTS
from inference.persona.patch import SIDE, Square
from inference.persona.subject import Subject

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

MOST = 3000  #: pairs; of a longer video every second frame, or third
APART_S, ALIKE = 1.0, 2.0  #: between a frame and the one it is drawn over: at least seconds, at most degrees


@dataclass(frozen=True)
class Examples:
    """N pairs."""

    frame: NDArray[np.int64]  #: (N,) of the video
    drawn: Frame  #: (N, SIDE, SIDE, 3)
    real: Frame  #: (N, SIDE, SIDE, 3)
    asked: Array  #: (N, INPUTS)

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True)
class Sources:
    """What the renderer may borrow from."""

    learned: MeshRenderer  #: from all that is learned from
    folds: tuple[MeshRenderer, MeshRenderer]  #: from one half of it
    traits: Traits


def look(
    subject: Subject,
    analysis: TemplateAnalysis,
    frames: Iterable[Frame],
    model: FaceModel,
    tick: Callable[[int], None],
) -> Sources:
    """One pass over all frames of the video, (H, W, 3) BGR: the mouths that are borrowed, and whose face it is."""
    tracks = subject.tracks
    masks = []
    for keep in (np.ones(tracks.frames, np.bool_), subject.fold == 0, subject.fold == 1):
        mask = np.zeros(tracks.frames, np.bool_)
        mask[subject.learned] = True
        masks.append(mask & keep)
    sitter = identity.Sitter(analysis, subject.number, model.mesh)
    wanted = set(identity.chosen(analysis, subject.number).tolist())

    def seen() -> Iterable[Frame]:
        for index, frame in enumerate(frames):
            if index in wanted:
                sitter.see(index, frame)
            yield frame

    made: tuple[Materials, ...] = prepare([replace(tracks, found=mask) for mask in masks], seen(), model, tick=tick)
    whole, *halves = (MeshRenderer(tracks, materials, model.mesh) for materials in made)
    return Sources(whole, (halves[0], halves[1]), sitter.traits())


class Workshop:
    """Draws the pairs of one subject."""

    def __init__(self, subject: Subject, sources: Sources) -> None:
        self._subject, self._sources = subject, sources
        tracks = subject.tracks
        self.square = Square.of(tracks.mean)
        learned = subject.learned
        self.scale = Scale.of(tracks.opening[learned], tracks.width[learned], tracks.pose.angles[learned])
        self.lips = self.square.lips(tracks.mean)
        self.step = -(-len(learned) // MOST)

    def learned(self, frames: Iterable[Frame], tick: Callable[[int], None]) -> Examples:
        """The pairs to learn from; ``frames`` are all frames of the video."""
        subject = self._subject
        targets: dict[int, tuple[MeshRenderer, Target]] = {}
        wanted = subject.learned[:: self.step]
        for number in (0, 1):
            renderer = self._sources.folds[1 - number]
            targets |= self._targets(renderer, np.isin(np.arange(subject.tracks.frames), wanted), number)
        return self._gather(wanted, targets, self._under(wanted), frames, tick)

    def held(self, frames: Iterable[Frame], tick: Callable[[int], None]) -> Examples:
        """Those to judge by, each drawn over its own frame."""
        held = self._subject.held
        keep = np.isin(np.arange(self._subject.tracks.frames), held)
        return self._gather(held, self._targets(self._sources.learned, keep), held, frames, tick)

    def _targets(
        self, renderer: MeshRenderer, keep: NDArray[np.bool_], fold: int | None = None
    ) -> dict[int, tuple[MeshRenderer, Target]]:
        """What the renderer is to draw for each of the frames to keep, of one fold; planned for whole stretches."""
        tracks, result = self._subject.tracks, {}
        for shot in self._subject.shots:
            at = np.arange(shot.start, shot.stop)
            if fold is not None:
                at = at[self._subject.fold[at] == fold]
            for part in np.split(at, np.flatnonzero(np.diff(at) > 1) + 1):
                if not keep[part].any():
                    continue
                plan = renderer.plan(tracks.opening[part], tracks.width[part] - tracks.rest_width, part)
                result.update({int(i): (renderer, plan.target(k)) for k, i in enumerate(part) if keep[i]})
        return result

    def _under(self, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) the frame that each of the wanted ones is drawn over: every second time another."""
        tracks, fps = self._subject.tracks, self._subject.fps
        angles, learned = tracks.pose.angles, self._subject.learned
        result: NDArray[np.int64] = wanted.copy()
        for k in range(0, len(wanted), 2):
            index = int(wanted[k])
            others = learned[(tracks.shot[learned] == tracks.shot[index]) & (np.abs(learned - index) > APART_S * fps)]
            if len(others):
                off = np.abs(angles[others] - angles[index]).max(axis=1)
                best = int(off.argmin())
                if off[best] <= ALIKE:
                    result[k] = others[best]
        return result

    def _gather(
        self,
        wanted: NDArray[np.int64],
        targets: dict[int, tuple[MeshRenderer, Target]],
        under: NDArray[np.int64],
        frames: Iterable[Frame],
        tick: Callable[[int], None],
    ) -> Examples:
        shape = (len(wanted), SIDE, SIDE, 3)
        drawn, real = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        places = {int(index): k for k, index in enumerate(wanted)}
        over: dict[int, list[int]] = defaultdict(list)
        for k, index in enumerate(under):
            over[int(index)].append(k)
        last = int(max(wanted.max(), under.max()))
        poses = self._subject.tracks.pose
        for index, frame in enumerate(frames):
            tick(index)
            if index > last:
                break
            head = poses.take(index)
            if index in places:
                real[places[index]] = self.square.cut(frame, head)
            for k in over[index]:
                renderer, target = targets[int(wanted[k])]
                drawn[k] = self.square.cut(renderer.render(frame, index, target), head)
        return Examples(wanted, drawn, real, self.asked(wanted))

    def asked(self, wanted: NDArray[np.int64]) -> Array:
        """(N, INPUTS) what the network is told of some frames: their own shapes."""
        tracks = self._subject.tracks
        table = np.zeros((tracks.frames, INPUTS), np.float32)
        for shot in self._subject.shots:
            table[shot] = self.scale.inputs(tracks.opening[shot], tracks.width[shot], tracks.pose.angles[shot])
        return table[wanted]
