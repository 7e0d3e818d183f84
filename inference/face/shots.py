"""Cuts: where one shot of a video ends and the next begins."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]

SIZE = (32, 18)
CHANGED = 12  #: grey levels that a part of the picture changes by at a cut
SHARE = 0.5  #: of its parts that do; people who move fast before a camera that stands still change .33


class Cuts:
    """Sees the frames of a video in their order."""

    def __init__(self) -> None:
        self._before: NDArray[np.int16] | None = None
        self._shots: list[int] = []

    def feed(self, frame: Frame) -> None:
        """The next frame, (H, W, 3) BGR."""
        small = cv2.cvtColor(cv2.resize(frame, SIZE, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
        gray = np.asarray(small, np.int16)
        shot = self._shots[-1] if self._shots else 0
        if self._before is not None and float((np.abs(gray - self._before) > CHANGED).mean()) > SHARE:
            shot += 1
        self._before = gray
        self._shots.append(shot)

    @property
    def shots(self) -> NDArray[np.int32]:
        """(N,) the shot of each frame, from 0."""
        return np.array(self._shots, np.int32)
