"""Whose face a video shows, so that a persona paints no other one's (:mod:`inference.face.people`)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.face.analysis import TemplateAnalysis
from inference.face.covered import Skin, normal
from inference.face.people import SAMPLED, Traits

Frame = NDArray[np.uint8]


def chosen(analysis: TemplateAnalysis, person: int, within: int | None = None) -> NDArray[np.int32]:
    """The frames of a person, numbered as in the analysis, that are enough to know the face by; of the first
    ``within`` clear ones, to be read quickly."""
    clear = np.flatnonzero(analysis.clear & (analysis.person == person))[:within]
    some = np.linspace(0, len(clear) - 1, min(SAMPLED, len(clear))).round().astype(int)
    return np.asarray(clear[some], np.int32)


class Sitter:
    """Gathers what one person looks like."""

    def __init__(self, analysis: TemplateAnalysis, person: int, face: mesh.Mesh) -> None:
        self._points, self._bones = analysis.points, analysis.shape[person][mesh.STABLE]
        self._skin = Skin(face)
        self._looks: list[NDArray[np.int8]] = []
        self._colours: list[NDArray[np.float32]] = []

    def see(self, index: int, frame: Frame) -> None:
        """Look at frame ``index`` of the video, (H, W, 3) BGR."""
        sight = self._skin.see(frame, self._points[index])
        self._looks.append(sight.look)
        self._colours.append(sight.colour)

    def see_all(self, frames: Iterable[tuple[int, Frame]]) -> Sitter:
        """Look at several."""
        for index, frame in frames:
            self.see(index, frame)
        return self

    def traits(self) -> Traits:
        """Of all frames that were seen; at least one."""
        look = normal(np.median(self._looks, axis=0).astype(np.float32)[None])[0]
        return Traits(look, np.asarray(self._bones, np.float32), np.median(self._colours, axis=0).astype(np.float32))
