"""Cuts: where one shot of a video ends and the next begins, by its picture or by a face that leaps."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]
Array = NDArray[np.float32]

SIZE = (32, 18)
CHANGED = 12  #: grey levels that a part of the picture changes by at a cut
SHARE = 0.5  #: of its parts that do; people who move fast before a camera that stands still change .33
DETAIL = 2.0  #: parts of the picture; what is wider than this is light
LEAP = 2.0  #: eye distances that a face moves from one frame in which it is found to the next, when it is another
ALIKE = 0.6  #: correlation of the details above which only the light has changed; at cuts it is below .3


class Cuts:
    """Sees the frames of a video in their order."""

    def __init__(self) -> None:
        self._before: Array | None = None
        self._shots: list[int] = []

    def feed(self, frame: Frame) -> None:
        """The next frame, (H, W, 3) BGR."""
        small = cv2.cvtColor(cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
        gray = np.asarray(small, np.float32)
        shot = self._shots[-1] if self._shots else 0
        if self._before is not None and _cut(self._before, gray):
            shot += 1
        self._before = gray
        self._shots.append(shot)

    @property
    def shots(self) -> NDArray[np.int32]:
        """(N,) the shot of each frame, from 0."""
        return np.array(self._shots, np.int32)


def leaps(shots: NDArray[np.int32], eyes: Array) -> NDArray[np.int32]:
    """(N,) the shots, with one more beginning wherever the face leaps: somebody else's is followed from there on.

    ``eyes`` (N, 2, 2) are the outer eye corners in pixels, NaN without a face.
    """
    seen = np.flatnonzero(np.isfinite(eyes).all(axis=(1, 2)))
    centre, unit = eyes[seen].mean(axis=1), np.linalg.norm(eyes[seen, 0] - eyes[seen, 1], axis=1)
    far = np.linalg.norm(np.diff(centre, axis=0), axis=1) > LEAP * np.maximum(unit[1:], unit[:-1])
    begins = np.diff(shots, prepend=shots[:1]) > 0
    within = shots[seen[1:]] == shots[seen[:-1]]
    begins[seen[1:][far & within]] = True
    return np.asarray(np.cumsum(begins), np.int32)


def _cut(before: Array, now: Array) -> bool:
    if float((np.abs(now - before) > CHANGED).mean()) <= SHARE:
        return False
    return float((_details(before) * _details(now)).mean()) < ALIKE


def _details(gray: Array) -> Array:
    """Of a thumbnail, without light and contrast: mean 0, variance 1."""
    fine = gray - cv2.GaussianBlur(gray, (0, 0), DETAIL)
    return np.asarray((fine - fine.mean()) / max(float(fine.std()), 1.0), np.float32)
