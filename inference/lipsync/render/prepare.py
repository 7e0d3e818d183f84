"""One pass over a template that gathers the materials for rendering it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from inference.face import pose
from inference.face.model import FaceModel
from inference.lipsync.render import calibrate, compose, mouths, own_inside, palette, rows, seam
from inference.lipsync.render.materials import Materials
from inference.lipsync.render.plan import Target
from inference.lipsync.render.renderer import Analysis, MeshRenderer
from inference.lipsync.render.tracks import Kind, Tracks, follow

Frame = NDArray[np.uint8]


def prepare(
    analysis: Analysis,
    frames: Iterable[Frame],
    model: FaceModel,
    *,
    see: Callable[[Frame], Frame] = lambda frame: frame,
    budget: int = mouths.BUDGET,
    tick: Callable[[int], None] = lambda index: None,
) -> Materials:
    """The materials of a template.

    ``frames`` are all its frames in order, (H, W, 3) BGR as they were analysed, or what ``see`` makes such frames
    of: few are looked at. One is held at a time, and some five more. ``budget`` limits the bytes kept of its
    mouths; ``tick`` is called with each frame's index.
    """
    tracks = follow(analysis.points, analysis.clear, model.mesh.vertices)
    looking = _Pass(tracks, budget)
    own = mouths.collect(looking.through(frames, see, tick), tracks)
    materials = Materials(
        seam=seam.from_strips(looking.strips),
        mouths=own,
        white=_white(looking.probes, tracks),
        enamel=looking.enamel,
        filled=not looking.full or float(np.median(looking.full)) > own_inside.DARK,
    )
    if tracks.kind is Kind.TALKING and len(own):
        return materials  # their own mouths measure as they are
    renderer = MeshRenderer(analysis, materials, model.mesh)
    shape = pose.median_shape(np.where(analysis.clear[:, None, None], analysis.points, np.nan), model.mesh.vertices)
    tables = calibrate.calibrate(
        looking.probes,
        lambda frame, index, opening, width: renderer.render(frame, index, Target(opening, width)),
        analysis.points,
        shape,
        model,
    )
    return replace(materials, calibration=tables)


class _Pass:
    """One pass over the frames: which of them are looked at for what, and what was seen."""

    def __init__(self, tracks: Tracks, budget: int) -> None:
        self.strips: list[NDArray[np.float32]] = []  #: of seams
        self.full: list[float] = []  #: how much of an open mouth shows teeth
        self.teeth: list[NDArray[np.float32] | None] = []  #: their colour over the light of the skin
        self.probes: list[tuple[int, Frame]] = []
        self._tracks, self._budget = tracks, budget
        self._lines = set(seam.frames_wanted(tracks))
        seen = np.flatnonzero(tracks.found)
        calm = np.array(sorted(self._lines), np.int64) if self._lines else seen
        self._probed = set(calm[np.linspace(0, len(calm) - 1, calibrate.PROBES).round().astype(int)].tolist())
        self._mouths: set[int] = set()
        self._wanted: set[int] | None = None  # known, as the mouths are, once the size of a frame is

    def through(
        self, frames: Iterable[Frame], see: Callable[[Frame], Frame], tick: Callable[[int], None]
    ) -> Iterator[tuple[int, Frame]]:
        """The frames whose own mouths are of use, with their numbers."""
        for index, raw in enumerate(frames):
            tick(index)
            if index >= self._tracks.frames:
                break
            if self._wanted is not None and index not in self._wanted:
                continue
            frame = see(raw)
            if self._wanted is None:
                self._mouths = self._mouths_wanted(frame)
                self._wanted = self._mouths | self._lines | self._probed
            self._look(index, frame)
            if index in self._mouths:
                yield index, frame

    @property
    def enamel(self) -> NDArray[np.float32]:
        """(3,) the colour of teeth that most frames show, over the light of the skin; zeros when most show none."""
        shown = [colour for colour in self.teeth if colour is not None]
        if 2 * len(shown) <= len(self.teeth):
            return np.zeros(3, np.float32)
        return np.asarray(np.median(shown, axis=0), np.float32)

    def _mouths_wanted(self, frame: Frame) -> set[int]:
        kept = mouths.frames_wanted(self._tracks, frame.shape[1], frame.shape[0], self._budget)
        return set(kept.tolist()) if self._tracks.kind is Kind.TALKING else set()

    def _look(self, index: int, frame: Frame) -> None:
        if index in self._lines:
            self.strips.append(seam.strip(frame, self._tracks, index))
            points = self._tracks.pixels(index)
            self.full.append(own_inside.filled(frame, points))
            colour = rows.colour(frame, points)
            light = compose.skin(frame, points, float(self._tracks.pose.scale[index])).light
            self.teeth.append(None if colour is None else np.asarray(colour / light, np.float32))
        if index in self._probed:
            self.probes.append((index, frame.copy()))


def _white(probes: list[tuple[int, Frame]], tracks: Tracks) -> NDArray[np.float32]:
    """(3,) what a template calls white, by the median of a few frames."""
    if not probes:
        return np.ones(3, np.float32)
    found = []
    for index, frame in probes:
        points = tracks.pixels(index)
        skin = compose.skin(frame, points, float(tracks.pose.scale[index]))
        found.append(palette.white(frame, points, skin.bgr))
    return np.asarray(np.median(found, axis=0), np.float32)
