"""One pass over a template that gathers the materials for rendering each person in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from inference.face.model import FaceModel
from inference.lipsync.render import calibrate, compose, mouths, own_inside, palette, rows, seam
from inference.lipsync.render.materials import Materials
from inference.lipsync.render.plan import Target
from inference.lipsync.render.renderer import MeshRenderer
from inference.lipsync.render.tracks import Kind, Tracks

Frame = NDArray[np.uint8]


def prepare(
    people: Sequence[Tracks],
    frames: Iterable[Frame],
    model: FaceModel,
    *,
    see: Callable[[Frame], Frame] = lambda frame: frame,
    budget: int = mouths.BUDGET,
    tick: Callable[[int], None] = lambda index: None,
) -> tuple[Materials, ...]:
    """The materials of each person in a template.

    ``frames`` are all its frames in order, (H, W, 3) BGR as they were analysed, or what ``see`` makes such frames
    of: few are looked at. One is held at a time, and some five more a person. ``budget`` limits the bytes kept of all
    mouths; ``tick`` is called with each frame's index.
    """
    seen = sum(int(tracks.found.sum()) for tracks in people)
    looks = [_Look(tracks, budget * int(tracks.found.sum()) // max(seen, 1)) for tracks in people]
    for index, raw in enumerate(frames):
        tick(index)
        if index >= people[0].frames:
            break
        looking = [look for look in looks if look.wants(index)]
        if looking:
            frame = see(raw)
            for look in looking:
                look.at(index, frame)
    return tuple(look.materials(model) for look in looks)


class _Look:
    """What is seen of one person: in which frames, and what for."""

    def __init__(self, tracks: Tracks, budget: int) -> None:
        self._tracks, self._budget = tracks, budget
        self._strips: list[NDArray[np.float32]] = []  # of seams
        self._full: list[float] = []  # how much of an open mouth shows teeth
        self._teeth: list[NDArray[np.float32] | None] = []  # their colour over the light of the skin
        self._probes: list[tuple[int, Frame]] = []
        self._collector = mouths.Collector(tracks)
        self._lines = set(seam.frames_wanted(tracks))
        seen = np.flatnonzero(tracks.found)
        calm = np.array(sorted(self._lines), np.int64) if self._lines else seen
        self._probed = set(calm[np.linspace(0, len(calm) - 1, calibrate.PROBES).round().astype(int)].tolist())
        self._mouths: set[int] | None = None  # known once the size of a frame is

    def wants(self, index: int) -> bool:
        """Whether there is something to look at in a frame."""
        if self._mouths is None:
            return bool(self._tracks.found[index])
        return index in self._mouths or index in self._lines or index in self._probed

    def at(self, index: int, frame: Frame) -> None:
        """Look at a frame."""
        tracks = self._tracks
        if self._mouths is None:
            wanted = mouths.frames_wanted(tracks, frame.shape[1], frame.shape[0], self._budget)
            self._mouths = set(wanted.tolist()) if tracks.kind is Kind.TALKING else set()
        if index in self._lines:
            self._strips.append(seam.strip(frame, tracks, index))
            points = tracks.pixels(index)
            self._full.append(own_inside.filled(frame, points))
            colour = rows.colour(frame, points)
            light = compose.skin(frame, points, float(tracks.pose.scale[index])).light
            self._teeth.append(None if colour is None else np.asarray(colour / light, np.float32))
        if index in self._probed:
            self._probes.append((index, frame.copy()))
        if index in self._mouths:
            self._collector.add(index, frame)

    def materials(self, model: FaceModel) -> Materials:
        """Of all that was seen."""
        tracks = self._tracks
        materials = Materials(
            seam=seam.from_strips(self._strips),
            mouths=self._collector.mouths(),
            white=_white(self._probes, tracks),
            enamel=self._enamel(),
            filled=not self._full or float(np.median(self._full)) > own_inside.DARK,
        )
        if tracks.kind is Kind.TALKING and len(materials.mouths):
            return materials  # their own mouths measure as they are
        renderer = MeshRenderer(tracks, materials, model.mesh)
        tables = calibrate.calibrate(
            self._probes,
            lambda frame, index, opening, width: renderer.render(frame, index, Target(opening, width)),
            tracks,
            model,
        )
        return replace(materials, calibration=tables)

    def _enamel(self) -> NDArray[np.float32]:
        """(3,) the colour of teeth that most frames show, over the light of the skin; zeros when most show none."""
        shown = [colour for colour in self._teeth if colour is not None]
        if 2 * len(shown) <= len(self._teeth):
            return np.zeros(3, np.float32)
        return np.asarray(np.median(shown, axis=0), np.float32)


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
