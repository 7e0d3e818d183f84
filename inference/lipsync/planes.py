"""Frames on their way from the decoder to the encoder, as both have them: YUV 4:2:0 planes.

Painting wants BGR, but looks at a tenth of a picture. So the planes of the template go straight through, and only
the window that is looked at is converted, and what changed in it converted back: that is faster, and the rest
cannot change by rounding.
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
        return self.read_planes()


Window = tuple[int, int, int, int]  #: left, top, right, bottom, all even


def to_bgr(planes: Planes, window: Window | None = None) -> Frame:
    """(H, W, 3) of the whole frame or of a window in it."""
    if window is None:
        return np.asarray(cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_I420), np.uint8)
    left, top, right, bottom = window
    height = bottom - top
    part = np.empty((height * 3 // 2, right - left), np.uint8)
    part[:height] = planes[top:bottom, left:right]
    part[height:].reshape(2, height // 2, -1)[:] = _colours(planes, window)
    return np.asarray(cv2.cvtColor(part, cv2.COLOR_YUV2BGR_I420), np.uint8)


def with_changes(
    planes: Planes, before: Frame, after: Frame, at: tuple[int, int] = (0, 0), into: Planes | None = None
) -> Planes:
    """The planes as they look once ``before`` has become ``after``: only the box that differs is converted.

    Both are frames made of the planes, or a window of them whose first pixel lies at ``at`` (x, y; even). The
    result is written ``into`` an array that is used again and again, since fresh memory costs as much as the copy.
    """
    if after is before:
        return planes
    box = changed_box(before, after)
    if box is None:
        return planes
    left, top, right, bottom = box
    height = bottom - top
    part = np.empty((height * 3 // 2, right - left), np.uint8)
    encode.to_planes(np.ascontiguousarray(after[top:bottom, left:right]), part)
    result = np.empty_like(planes) if into is None else into
    result[:] = planes
    window = (left + at[0], top + at[1], right + at[0], bottom + at[1])
    result[window[1] : window[3], window[0] : window[2]] = part[:height]
    _colours(result, window)[:] = part[height:].reshape(2, height // 2, -1)
    return result


def _colours(planes: Planes, window: Window) -> Planes:
    """(2, h/2, w/2) view of U and V inside a window."""
    height, width = planes.shape[0] * 2 // 3, planes.shape[1]
    left, top, right, bottom = (side // 2 for side in window)
    return planes[height:].reshape(2, height // 2, width // 2)[:, top:bottom, left:right]


def changed_box(before: Frame, after: Frame) -> Window | None:
    """The part in which two frames differ; None when they do not."""
    height, width = before.shape[:2]
    # As one channel three times as wide, which is what boundingRect takes.
    x, y, across, down = cv2.boundingRect(cv2.absdiff(before.reshape(height, -1), after.reshape(height, -1)))
    if not across:
        return None
    left, right = x // 3, (x + across - 1) // 3 + 1
    return left // 2 * 2, y // 2 * 2, min(width, (right + 1) // 2 * 2), min(height, (y + down + 1) // 2 * 2)
