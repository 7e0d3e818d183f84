"""What a landmarker sees of what was drawn: each template answers a little differently, so ask it first.

A few frames of the template are rendered with known openings and widths and tracked again. The tables that come
out, read backwards, say what to draw for a mouth that shall measure so much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from inference.face import measure, pose
from inference.face.model import FaceModel, region_of_points
from inference.lipsync.render.tracks import Tracks

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

OPENINGS = (0.0, 0.02, 0.04, 0.07, 0.11, 0.16, 0.21, 0.25)
WIDTHS = (-0.09, -0.045, 0.045, 0.09)
WIDTH_AT = 0.10  #: opening at which widths are tried
PROBES = 3  #: template frames tried
GAIN_LIMITS = (0.7, 1.7)  #: of the correction; what lies outside is a mistaken measurement
MIN_SLOPE = 0.25  #: rise of a measured table below which it is not believed


@dataclass(frozen=True)
class Calibration:
    """Two tables, asked → drawn. The neutral one changes nothing."""

    asked_opening: Array = field(default_factory=lambda: np.array([0, 1], np.float32))
    drawn_opening: Array = field(default_factory=lambda: np.array([0, 1], np.float32))
    width_gain: float = 1.0
    width_drift: float = 0.0  #: how much wider than asked a mouth measures per opening
    spread_opens: float = 0.0  #: by which share of itself an opening measures larger per width

    def drive(self, opening: Array, width: Array) -> tuple[Array, Array]:
        """What to draw so that it measures (T,) ``opening`` and ``width``."""
        drawn = np.interp(opening, self.asked_opening, self.drawn_opening) / (1 + self.spread_opens * width)
        spread = (width - self.width_drift * opening) * self.width_gain
        return np.asarray(drawn, np.float32), np.asarray(spread, np.float32)

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Arrays for numpy's savez."""
        return {
            "asked_opening": self.asked_opening,
            "drawn_opening": self.drawn_opening,
            "width_response": np.array([self.width_gain, self.width_drift, self.spread_opens], np.float32),
        }

    @classmethod
    def load(cls, arrays: dict[str, NDArray[np.generic]]) -> Calibration:
        """From what ``arrays`` gave; KeyError when some are missing."""
        return cls(
            np.asarray(arrays["asked_opening"], np.float32),
            np.asarray(arrays["drawn_opening"], np.float32),
            *np.asarray(arrays["width_response"], np.float32).tolist(),
        )


def calibrate(
    probes: Sequence[tuple[int, Frame]],
    draw: Callable[[Frame, int, float, float], Frame],
    tracks: Tracks,
    model: FaceModel,
) -> Calibration:
    """The calibration of a person in a template.

    ``probes`` are (frame index, frame); ``draw`` renders one with an opening and a width.
    """
    if not probes:
        return Calibration()

    def see(frame: Frame, index: int) -> NDArray[np.float64]:
        found = model.landmarks(frame, region_of_points(tracks.pixels(index))).points
        head = pose.fit(found[None], tracks.own).to_head(found[None])
        channels = measure.mouth(head)
        return np.array([channels.opening[0], channels.width[0]], np.float64)

    opened, spread, rest = [], [], []
    for index, frame in probes:
        still = see(draw(frame, index, 0.0, 0.0), index)
        opened.append([see(draw(frame, index, opening, 0.0), index) - still * [0, 1] for opening in OPENINGS])
        spread.append([see(draw(frame, index, WIDTH_AT, width), index) for width in WIDTHS])
        rest.append(still)
    seen = np.median(opened, axis=0)
    measured = np.maximum.accumulate(seen[:, 0]) + 1e-4 * np.arange(len(OPENINGS))
    drawn = np.array(OPENINGS)
    asked_opening, drawn_opening = Calibration().asked_opening, Calibration().drawn_opening
    if measured[-1] - measured[0] > MIN_SLOPE * (drawn[-1] - drawn[0]):
        grid = np.linspace(0, 0.26, 27)
        # Beyond the largest opening tried go on at its ratio; below the smallest measured one stay shut.
        table = np.interp(grid, measured, drawn)
        over = grid > measured[-1]
        table[over] = drawn[-1] + (grid[over] - measured[-1])
        under = grid < measured[0]
        table[under] = 0
        low, high = GAIN_LIMITS
        table = np.clip(table, low * grid - 0.01, high * grid + 0.01)
        table[0] = 0
        asked_opening, drawn_opening = grid.astype(np.float32), np.maximum.accumulate(table).astype(np.float32)
    answer = np.median(spread, axis=0)
    slope = float(np.polyfit(WIDTHS, answer[:, 1], 1)[0])
    more = np.polyfit(WIDTHS, answer[:, 0], 1)
    # Widths were drawn as they are, but will be drawn multiplied by the gain.
    gain = float(np.clip(1 / max(slope, MIN_SLOPE), *GAIN_LIMITS))
    drift = float(np.clip(np.polyfit(drawn, seen[:, 1], 1)[0], -0.3, 0.3))
    spread_opens = float(np.clip(gain * more[0] / max(float(more[1]), MIN_SLOPE * WIDTH_AT), -2.5, 2.5))
    return Calibration(asked_opening, drawn_opening, gain, drift, spread_opens)
