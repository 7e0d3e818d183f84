"""Frames on their way from the decoder to the encoder, as both have them: YUV 4:2:0 planes.

Painting wants BGR, but changes a tenth of a picture. So the planes of the template go straight through, and only
the box that was painted is converted back into them: that is faster, and the rest cannot change by rounding.
"""

from __future__ import annotations

import cv2
import numpy as np

from inference import encode
from inference.encode import Frame, Planes
from inference.video import FrameReader


class PlaneReader(FrameReader):
    """A :class:`FrameReader` that hands out planes; each is an array of its own."""

    def __next__(self) -> Planes:
        if self._left == 0 or self._process.closed:
            self.close()
            raise StopIteration
        planes = np.empty((self.height * 3 // 2, self.width), np.uint8)
        view = planes.data.cast("B")
        if self._process.read_into(view) < len(view):
            self._ended()
            raise StopIteration
        self.frames += 1
        if self._left is not None:
            self._left -= 1
        return planes


def to_bgr(planes: Planes) -> Frame:
    """(H, W, 3)."""
    return np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_I420), np.uint8)


def with_changes(planes: Planes, before: Frame, after: Frame) -> Planes:
    """The planes, from which ``before`` was made, as ``after`` looks: only the box that differs is converted."""
    if after is before:
        return planes
    box = changed_box(before, after)
    if box is None:
        return planes
    left, top, right, bottom = box
    height, columns = before.shape[:2]
    part = np.empty(((bottom - top) * 3 // 2, right - left), np.uint8)
    encode.to_planes(np.ascontiguousarray(after[top:bottom, left:right]), part)
    result = planes.copy()
    result[top:bottom, left:right] = part[: bottom - top]
    size = ((bottom - top) // 2, (right - left) // 2)
    colours = result[height:].reshape(2, height // 2, columns // 2)
    colours[:, top // 2 : bottom // 2, left // 2 : right // 2] = part[bottom - top :].reshape(2, *size)
    return result


def changed_box(before: Frame, after: Frame) -> tuple[int, int, int, int] | None:
    """Left, top, right, bottom, all even, of the part in which two frames differ; None when they do not."""
    height, width = before.shape[:2]
    # As one channel three times as wide, which is what boundingRect takes.
    x, y, across, down = cv2.boundingRect(cv2.absdiff(before.reshape(height, -1), after.reshape(height, -1)))
    if not across:
        return None
    left, right = x // 3, (x + across - 1) // 3 + 1
    return left // 2 * 2, y // 2 * 2, min(width, (right + 1) // 2 * 2), min(height, (y + down + 1) // 2 * 2)


def planes_of(frame: Frame) -> Planes:
    """The planes of a whole frame."""
    planes = np.empty((frame.shape[0] * 3 // 2, frame.shape[1]), np.uint8)
    encode.to_planes(frame, planes)
    return planes
