"""One pass over a template that gathers the materials for rendering it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from inference.face import pose
from inference.face.model import FaceModel
from inference.lipsync.render import calibrate, compose, hidden, mouths, own_inside, palette, seam
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
    tracks = follow(analysis.points, analysis.found, model.mesh.vertices)
    lines = set(seam.frames_wanted(tracks))
    seen = np.flatnonzero(tracks.found)
    calm = np.array(sorted(lines), np.int64) if lines else seen
    probe_at = set(calm[np.linspace(0, len(calm) - 1, calibrate.PROBES).round().astype(int)].tolist())
    strips: list[NDArray[np.float32]] = []
    full: list[float] = []
    probes: list[tuple[int, Frame]] = []
    wanted: set[int] | None = None
    looks: dict[int, NDArray[np.float32]] = {}
    looked = set(seen[seen % hidden.EVERY == 0].tolist()) if tracks.kind is Kind.SILENT else set()

    def passing() -> Iterator[tuple[int, Frame]]:
        nonlocal wanted
        for index, raw in enumerate(frames):
            tick(index)
            if index >= tracks.frames:
                break
            if not (wanted is None or index in wanted or index in lines or index in probe_at or index in looked):
                continue
            frame = see(raw)
            if wanted is None:
                kept = mouths.frames_wanted(tracks, frame.shape[1], frame.shape[0], budget)
                wanted = set(kept.tolist()) if tracks.kind is Kind.TALKING else set()
            if index in looked:
                looks[index] = hidden.seen(frame, tracks, index)
            if index in lines:
                strips.append(seam.strip(frame, tracks, index))
                full.append(own_inside.filled(frame, tracks.pixels(index)))
            if index in probe_at:
                probes.append((index, frame.copy()))
            if index in wanted:
                yield index, frame

    own = mouths.collect(passing(), tracks)
    materials = Materials(
        seam=seam.from_strips(strips),
        mouths=own,
        white=_white(probes, tracks),
        hidden=hidden.hidden(looks, tracks.frames),
        filled=not full or float(np.median(full)) > own_inside.DARK,
    )
    if tracks.kind is Kind.TALKING and len(own):
        return materials  # their own mouths measure as they are
    renderer = MeshRenderer(analysis, materials, model.mesh)
    shape = pose.median_shape(np.where(analysis.found[:, None, None], analysis.points, np.nan), model.mesh.vertices)
    tables = calibrate.calibrate(
        probes,
        lambda frame, index, opening, width: renderer.render(frame, index, Target(opening, width)),
        analysis.points,
        shape,
        model,
    )
    return replace(materials, calibration=tables)


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
