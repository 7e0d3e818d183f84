"""From what is said to how far a mouth shall be open: the articulation, in this face's own measure.

The articulation counts in standard deviations of a person. How far one deviation is differs from face to face:
a template that talks shows it itself, for one that does not the usual is taken. Values are carried from the
articulation's 25 frames a second to the video's rate, and closures put in last, since any averaging after
them would leave the lips of a p, b or m apart.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from inference.articulation.curve import Articulation

Array = NDArray[np.float32]

OPENING_LIMITS = ((0.05, 0.12), (0.035, 0.075))  #: of a template's own mean and spread, eye distances
WIDTH_SPREAD_LIMITS = (0.015, 0.045)
LEAST_REST = 0.5  #: a mouth at rest is taken to be at least so many spreads more closed than a speaking one
QUIET, LOUD = 0.15, 0.45  #: voicing below which nobody speaks, and from which somebody does


@dataclass(frozen=True)
class Manner:
    """How one person talks; eye distances."""

    opening_mean: float = 0.075  #: while speaking
    opening_spread: float = 0.054
    width_spread: float = 0.025


TYPICAL = Manner()  #: medians over 17 people


@dataclass(frozen=True)
class Asked:
    """What T output frames shall show."""

    opening: Array  #: (T,) gap between the inner lips, eye distances
    width: Array  #: (T,) wider than at rest, eye distances
    closed: NDArray[np.bool_]  #: (T,) lips that must meet
    voiced: Array  #: (T,) 0..1

    def where(self, frames: NDArray[np.bool_], other: Asked) -> Asked:
        """The same with ``other`` at some of the frames."""
        pairs = [(getattr(self, row.name), getattr(other, row.name)) for row in fields(self)]
        return Asked(*(np.where(frames, new, old).astype(old.dtype) for old, new in pairs))


def manner(opening: Array, width: Array, talks: bool) -> Manner:
    """How the person of a template talks, from the (N,) openings and widths of its frames with a face."""
    if not talks:
        return TYPICAL
    (low, high), (least, most) = OPENING_LIMITS
    moving = opening > np.percentile(opening, 10) + 0.01  # without the pauses
    chosen = opening[moving] if moving.sum() >= 25 else opening
    spread = float(np.clip(np.std(chosen), least, most))
    wide = float(np.clip(np.std(width), *WIDTH_SPREAD_LIMITS))
    return Manner(float(np.clip(np.mean(chosen), low, high)), spread, wide)


def asked(heard: Articulation, way: Manner, frames: int, fps: float) -> Asked:
    """The articulation as openings and widths of ``frames`` output frames at ``fps``.

    A mouth at rest is shut and as wide as it is; above their mean openings grow by the person's own spread.
    """
    count = len(heard)
    if not count:
        nothing = np.zeros(frames, np.float32)
        return Asked(nothing, nothing, np.zeros(frames, bool), nothing)
    at = (np.arange(frames) + 0.5) / fps * heard.fps - 0.5  # middle of each output frame, in frames of the articulation

    def resampled(values: NDArray[np.floating]) -> Array:
        return np.asarray(np.interp(at, np.arange(count), values), np.float32)

    lively = heard.rescaled()
    open_by = resampled(lively.channels["opening"])
    below = way.opening_mean / max(LEAST_REST, -heard.rest["opening"])  # per deviation, so that rest is shut
    opening = way.opening_mean + open_by * np.where(open_by < 0, below, way.opening_spread)
    width = way.width_spread * (resampled(lively.channels["width"]) - np.float32(heard.rest["width"]))
    closed = _carried(heard.closed, at, heard.fps, fps)
    opening = np.where(closed, 0, np.maximum(opening, 0))
    return Asked(opening.astype(np.float32), width.astype(np.float32), closed, resampled(heard.voiced))


def _carried(flags: NDArray[np.bool_], at: NDArray[np.floating], of: float, to: float) -> NDArray[np.bool_]:
    """Flags at the output's rate: each one that is set shows in at least one output frame."""
    nearest = np.clip(np.round(at).astype(int), 0, len(flags) - 1)
    result = flags[nearest]
    times = (np.flatnonzero(flags) + 0.5) / of
    result[np.clip((times * to).astype(int), 0, len(at) - 1)] = True
    return np.asarray(result, np.bool_)
