"""A template's face through time, steady enough to paint on: smoothed poses and shapes in head coordinates."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from inference.face import filters, measure, mesh, pose

Array = NDArray[np.float32]

POSE_SIGMA, SHIFT_SIGMA = 1.0, 0.7  #: frames; rotation and scale, translation
TREMBLE = 0.0015, 0.004  #: eye distances between raw and smooth: all of it tremble, all of it movement
LIP_TREMBLE = 0.002, 0.006  #: likewise, of the lips' points
SHAPE_SIGMA_SILENT, SHAPE_SIGMA_TALKING = 2.0, 0.6  #: frames
SHUT = 0.035  #: an opening below this counts as a shut mouth
TALK_SPREAD = 0.055  #: between the 10th and 90th percentile of the opening of a face that talks
TALK_FRAMES = 25  #: fewer mouths than this are no choice
LOST_FADE = 4  #: frames over which the effect sets in after, and dies out before, a lost face


class Kind(enum.Enum):
    """What the mouth does in the template by itself."""

    SILENT = "silent"  #: shut all the time: the inside has to be drawn
    SMILING = "smiling"  #: open all the time, hardly moving: it shows an inside of its own
    TALKING = "talking"  #: moving: it holds real mouths for most shapes


class Analysis(Protocol):
    """What of an analysis is used (:class:`inference.face.analysis.TemplateAnalysis` has it)."""

    @property
    def points(self) -> NDArray[np.float32]:
        """(N, 478, 3) pixels."""
        ...

    @property
    def clear(self) -> NDArray[np.bool_]:
        """(N,) whether a frame shows the face, with nothing before its mouth."""
        ...

    @property
    def shot(self) -> NDArray[np.int32]:
        """(N,) from 0, rising."""
        ...

    @property
    def person(self) -> NDArray[np.int32]:
        """(N,) whose face a frame's shot shows, from 0; −1 in a shot without a clear one."""
        ...


@dataclass(frozen=True)
class Tracks:
    """Geometry of one person in N frames, in which others may be seen, too.

    Of ``shape``, ``pose``, ``opening`` and ``width`` only the rows of frames in ``found`` are this person's; other
    rows are NaN or somebody else's.
    """

    shape: Array  #: (N, 478, 3) smoothed, head coordinates
    pose: pose.Pose  #: smoothed
    found: NDArray[np.bool_]  #: (N,) frames that show this person's mouth
    strength: Array  #: (N,) 1; falls to 0 next to frames without the face in the same shot; 0 in other people's
    opening: Array  #: (N,) of the smoothed shape, eye distances
    width: Array  #: (N,)
    own: Array  #: (478, 3) the median shape, as the network gave it; what poses are fitted with
    mean: Array  #: (478, 3) the mean of the smoothed shapes
    kind: Kind
    shot: NDArray[np.int32]  #: (N,) the shot of each frame

    @property
    def points(self) -> Array:
        """(N, 478, 3) the shapes laid back into the picture, pixels; worked out anew at each call."""
        return self.pose.to_pixels(self.shape)

    def pixels(self, index: int) -> Array:
        """(478, 3) the same of one frame."""
        return np.asarray(self.pose.take(index).to_pixels(self.shape[index][None])[0], np.float32)

    @property
    def frames(self) -> int:
        """How many frames the template has."""
        return len(self.found)

    @property
    def rest_width(self) -> float:
        """The width of the mouth when it says nothing: of its most closed quarter, by the median."""
        return float(np.median(self.width[self._calm()]))

    @property
    def rest_opening(self) -> float:
        """The opening of the mouth when it says nothing, eye distances."""
        return float(np.median(self.opening[self._calm()]))

    def _calm(self) -> NDArray[np.intp]:
        seen = np.flatnonzero(self.found)
        return seen[np.argsort(self.opening[seen], kind="stable")[: max(1, len(seen) // 4)]]


def follow(analysis: Analysis, canonical: mesh.Points) -> tuple[Tracks, ...]:
    """The tracks of each person, by number; nothing is carried from one shot into the next.

    At least one frame of each must be clear. All share their large arrays.
    """
    count = len(analysis.clear)
    shape = np.full((count, mesh.POINTS, 3), np.nan, np.float32)
    placed = pose.nowhere(count)
    opening, width = (np.full(count, np.nan, np.float32) for _ in range(2))
    people = []
    for number in range(int(analysis.person.max()) + 1):
        theirs = analysis.person == number
        found = analysis.clear & theirs
        own = pose.median_shape(analysis.points[found], canonical)
        shots = [_span(theirs & (analysis.shot == shot)) for shot in np.unique(analysis.shot[theirs])]
        for shot in shots:
            raw = np.where(analysis.clear[shot, None, None], analysis.points[shot], np.nan).astype(np.float32)
            fitted = pose.fit(raw, own)
            shape[shot] = fitted.to_head(raw)
            placed.put(shot, fitted)
        kind = classify(measure.mouth(shape[found]).opening)
        sigma = SHAPE_SIGMA_TALKING if kind is Kind.TALKING else SHAPE_SIGMA_SILENT
        strength = np.zeros(count, np.float32)
        for shot in shots:
            shape[shot] = _calm(shape[shot], sigma)
            strength[shot] = beside(analysis.clear[shot])
        mean = np.asarray(shape[found].mean(axis=0), np.float32)
        for shot in shots:
            placed.put(shot, steady(placed.take(shot), mean))
            channels = measure.mouth(shape[shot])
            opening[shot], width[shot] = channels.opening, channels.width
        people.append(Tracks(shape, placed, found, strength, opening, width, own, mean, kind, analysis.shot))
    return tuple(people)


def together(people: tuple[Tracks, ...]) -> Tracks:
    """All people of a template as one, for measuring; the mean shape and the kind are those of the first."""
    found, strength = (np.max([getattr(one, name) for one in people], axis=0) for name in ("found", "strength"))
    return replace(people[0], found=found, strength=strength)


def _span(frames: NDArray[np.bool_]) -> slice:
    """The run of True."""
    at = np.flatnonzero(frames)
    return slice(int(at[0]), int(at[-1]) + 1)


def classify(opening: Array) -> Kind:
    """What a mouth does whose openings these are."""
    low, high = np.percentile(opening, [10, 90])
    if high - low > TALK_SPREAD and len(opening) >= TALK_FRAMES:
        return Kind.TALKING
    return Kind.SMILING if np.median(opening) > SHUT else Kind.SILENT


def steady(fitted: pose.Pose, mean: Array) -> pose.Pose:
    """A pose without the landmarker's tremble but with every real movement.

    Smoothing pulls a head that moves fast behind itself, and lips painted there slide over the face. So the
    smooth pose counts only where it stays within the tremble of the raw one.
    """
    calm = filters.smooth_pose(fitted, POSE_SIGMA, SHIFT_SIGMA)
    spots = mean[[mesh.NOSE_BASE, mesh.MOUTH_CORNER_RIGHT, mesh.MOUTH_CORNER_LEFT, mesh.CHIN]]
    apart = np.linalg.norm((fitted.to_pixels(spots) - calm.to_pixels(spots))[..., :2], axis=2).mean(axis=1)
    apart = filters.gaussian(apart / fitted.scale, 2.0)
    share = np.clip((apart - TREMBLE[0]) / (TREMBLE[1] - TREMBLE[0]), 0, 1)
    turn = calm.rotation + share[:, None, None] * (fitted.rotation - calm.rotation)
    good = np.isfinite(turn).all(axis=(1, 2))
    u, _, vt = np.linalg.svd(turn[good].astype(np.float64))
    turn[good] = u @ vt
    return pose.Pose(
        calm.scale + share * (fitted.scale - calm.scale),
        turn,
        calm.translation + share[:, None] * (fitted.translation - calm.translation),
    )


def _calm(head: Array, sigma: float) -> Array:
    """Shapes (N, 478, 3) smoothed over time, but as they were where the lips really moved.

    A lip that is taken for elsewhere than its pixels are is the worst error a warp can start from.
    """
    lips = np.concatenate([mesh.LIP_INNER, mesh.LIP_OUTER])
    apart = np.sqrt(((head[:, lips] - filters.gaussian(head[:, lips], sigma)) ** 2).sum(axis=2).mean(axis=1))
    share = np.clip((apart - LIP_TREMBLE[0]) / (LIP_TREMBLE[1] - LIP_TREMBLE[0]), 0, 1)[:, None, None]
    shape: Array = head.copy()
    # In parts: smoothing needs three times what it smooths, and long templates are large.
    for part in np.array_split(np.arange(head.shape[1]), 6):
        smooth = filters.gaussian(head[:, part], sigma)
        shape[:, part] = smooth + share * (head[:, part] - smooth)
    return shape


def beside(found: NDArray[np.bool_]) -> Array:
    """(N,) how far the effect is on: 0 without a face, rising over LOST_FADE frames beside a gap."""
    distance = np.full(len(found), LOST_FADE, np.float32)
    for lost in np.flatnonzero(~found):
        low, high = max(0, lost - LOST_FADE), min(len(found), lost + LOST_FADE + 1)
        distance[low:high] = np.minimum(distance[low:high], np.abs(np.arange(low, high) - lost))
    t = distance / LOST_FADE
    return np.asarray(t * t * (3 - 2 * t), np.float32)
