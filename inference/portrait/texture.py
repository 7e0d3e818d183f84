"""The still picture as something to read between its pixels, sharp and fast.

A warped picture is read at places between pixels, where one cubic sample of the picture itself loses fine detail,
a different share at each place. So the picture is enlarged once, and then read by straight lines: in a third of the
time, and closer to the original.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Frame = NDArray[np.uint8]  #: (H, W, 3) BGR

FINE = 2  #: times the size of the picture, at which it is kept …
FINE_PIXELS = 4_000_000  #: … unless the picture has more pixels than this
SHARPEN = 0.22  #: gives back what reading takes away, on average over positions
SIGMA = 0.8  #: pixels; of what is sharpened


class Texture:
    """One picture. Safe to share between threads: nothing in it changes."""

    def __init__(self, picture: Frame) -> None:
        """``picture`` (H, W, 3)."""
        exact: NDArray[np.float32] = picture.astype(np.float32)
        exact += np.float32(SHARPEN) * (exact - cv2.GaussianBlur(exact, (0, 0), SIGMA))
        self._scale = FINE if picture.shape[0] * picture.shape[1] <= FINE_PIXELS else 1
        if self._scale > 1:
            larger = cv2.resize(exact, None, fx=self._scale, fy=self._scale, interpolation=cv2.INTER_LANCZOS4)
            exact = np.asarray(larger, np.float32)
        self._pixels = np.asarray(np.clip(np.rint(exact), 0, 255), np.uint8)

    def read(self, x: Array, y: Array) -> Frame:
        """(h, w, 3) the picture at (h, w) places in pixels; outside it the nearest edge."""
        if self._scale == 1:
            return _remap(self._pixels, x, y, cv2.INTER_CUBIC)
        scale, middle = np.float32(self._scale), np.float32((self._scale - 1) / 2)
        return _remap(self._pixels, x * scale + middle, y * scale + middle, cv2.INTER_LINEAR)


def _remap(pixels: Frame, x: Array, y: Array, how: int) -> Frame:
    return np.asarray(cv2.remap(pixels, x, y, how, borderMode=cv2.BORDER_REPLICATE), np.uint8)
