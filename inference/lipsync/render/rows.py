"""What lies between the lips of a borrowed mouth, row by row, laid between lips that are further or less apart.

Teeth are rigid: the upper ones stand still in the head, the lower ones on the jaw (Wu et al., *Model-Based Teeth
Reconstruction*, 2016). So rows that show teeth keep their height, and the dark between the two rows grows or shrinks.
Where that is not enough the lips and the upper teeth cover what does not fit, as they do in a real mouth.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from inference.face import mesh
from inference.lipsync.render.palette import GREY, enamel, lips

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]

ROWS = 16  #: between the lips
COLUMNS = np.linspace(2.5, 7.5, 11)  #: where they are looked at, in pairs of lip points from the right corner
MIDDLE = slice(3, 8)  #: pairs of lip points whose distance is the gap
SOFTEST, HARDEST = (
    1.0,
    0.04,
)  #: how willingly the height of a row changes that shows no teeth, and one that shows nothing else
SHRINK = 0.85  #: share of a soft row's height that may go
TOOTHED = 0.3  #: share of what lies between the lips that is teeth, from which these are believed
WELL_LIT = 0.7  #: share of teeth that are darker than those by which their colour is judged
SEEN = 0.12  #: share of teeth in a row from which it counts
ACROSS = 0.6, 1.35  #: how much narrower or wider than its own a mouth may be for its teeth to keep their width
FOLLOWED, COVERED = 0.5, 0.15  #: how far the edge of the upper lip is believed; share of the gap it may cover at most


@dataclass(frozen=True)
class Gap:
    """Between two lips."""

    height: float  #: eye distances, in the middle
    top: float  #: y of the upper lip's edge, head coordinates
    width: float  #: eye distances between the corners

    @classmethod
    def of(cls, shape: Array) -> Gap:
        """Of a face (478+, 3) in head coordinates."""
        upper, lower = shape[mesh.LIP_INNER_UPPER[MIDDLE]], shape[mesh.LIP_INNER_LOWER[MIDDLE]]
        apart = np.linalg.norm(lower - upper, axis=1)
        corners = shape[mesh.LIP_INNER_UPPER[[0, -1]]]
        width = float(np.linalg.norm(corners[1] - corners[0]))
        return cls(max(float(apart.mean()), 1e-4), float(upper[:, 1].mean()), max(width, 1e-3))


def teeth(picture: Frame, points: Array) -> Array:
    """(ROWS,) how much of each row between the lips is teeth, 0..1, from the upper lip down.

    ``points`` (V, 3) are pixels of the picture.
    """
    return np.asarray(enamel(_between(picture, points), lips(picture, points)).mean(axis=1), np.float32)


def colour(picture: Frame, points: Array) -> Array | None:
    """(3,) BGR of the best lit teeth that are seen between the lips; None when they are less than TOOTHED of that."""
    seen = _between(picture, points)
    teeth = seen[enamel(seen, lips(picture, points)) > 0.5]
    if len(teeth) <= TOOTHED * seen[..., 0].size:
        return None
    light = teeth @ GREY
    return np.asarray(np.median(teeth[light >= np.quantile(light, WELL_LIT)], axis=0), np.float32)


def _between(picture: Frame, points: Array) -> Array:
    """(ROWS, COLUMNS, 3) of a picture."""
    ends = [
        np.stack([np.interp(COLUMNS, np.arange(len(ring)), points[ring, axis]) for axis in (0, 1)], axis=1)
        for ring in (mesh.LIP_INNER_UPPER, mesh.LIP_INNER_LOWER)
    ]
    share = ((np.arange(ROWS) + 0.5) / ROWS)[:, None, None]
    at = (ends[0] + share * (ends[1] - ends[0])).astype(np.float32)
    seen = cv2.remap(picture, at[..., 0].copy(), at[..., 1].copy(), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(seen, np.float32)


def softness(shown: Array) -> Array:
    """(…, ROWS) how willingly rows change their height that show that much teeth."""
    return np.asarray(HARDEST + (SOFTEST - HARDEST) * (1 - np.clip(shown, 0, 1)) ** 2, np.float32)


def stretch(shown: Array, own: Array, asked: Array) -> Array:
    """(T, M) how much higher than their own the teeth of M mouths get when they are shown T gaps high, at least 1.

    ``shown`` is (M, ROWS), ``own`` (M,) and ``asked`` (T,) are gaps. 1 where there are no teeth.
    """
    soft = softness(shown)
    hard = np.where(shown > SEEN, soft, 0).sum(axis=1) / np.maximum((shown > SEEN).sum(axis=1), 1)
    grows = np.maximum(asked[:, None] / np.maximum(own, 1e-3) - 1, 0)
    return np.asarray(1 + grows * hard / soft.mean(axis=1), np.float32)


def places(shown: Array, own: Gap, goal: Gap) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Heights between the lips as they shall be, 0..1, rising, and where each lies between the mouth's own lips."""
    edges = np.linspace(0, 1, ROWS + 1)
    soft = softness(shown).astype(np.float64)
    # The upper lip slides over teeth that stand still.
    covered = float(np.clip(FOLLOWED * (goal.top - own.top) / own.height, 0, COVERED))
    start = np.maximum(edges[:-1], covered)
    height = np.maximum(edges[1:] - start, 0) * own.height
    start = np.minimum(start, edges[1:])
    lacks = goal.height - float(height.sum())
    by = lacks / max(float((soft * height).sum()), 1e-9)
    height *= 1 + max(by, -SHRINK) * soft
    # Below the upper teeth what still is too much is covered by them, and the rest by the lower lip.
    split = _below_upper_teeth(shown)
    for row in (*range(split, ROWS), *range(split - 1, -1, -1)):
        over = float(height.sum()) - goal.height
        if over <= 0:
            break
        cut = min(over, float(height[row]))
        share = cut / max(float(height[row]), 1e-9)
        if row >= split:
            start[row] += share * (edges[row + 1] - start[row])
        else:
            edges[row + 1] -= share * (edges[row + 1] - start[row])
        height[row] -= cut
    ends = np.cumsum(height)
    at = np.stack([ends - height, ends], axis=1).ravel() / goal.height
    return at, np.stack([start, edges[1:]], axis=1).ravel()


def across(column: Array, own: Gap, goal: Gap) -> Array:
    """Where pairs of lip points (…,), 0..10, of the goal lie among the mouth's own: as far from the middle.

    What a narrower mouth has no room for goes in its corners.
    """
    half = np.float32((len(mesh.LIP_INNER_UPPER) - 1) / 2)
    off = np.clip(column / half - 1, -1, 1)
    rate = np.float32(np.clip(goal.width / own.width, *ACROSS))
    return np.asarray(half * (1 + off * (rate + (1 - rate) * off * off)), np.float32)


def _below_upper_teeth(shown: Array) -> int:
    """The first row below the upper teeth; 0 when there are none, ROWS when there is nothing below them."""
    upper = shown[: ROWS * 5 // 8]
    if float(upper.max()) < SEEN:
        return 0
    top = int(upper.argmax())
    below = np.flatnonzero(shown[top:] < 0.5 * shown[top])
    return top + int(below[0]) if len(below) else ROWS
