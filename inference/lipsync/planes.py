"""Frames on their way from the decoder to the encoder, as both have them: YUV 4:2:0 planes.

Painting wants BGR, but changes a tenth of a picture. So the planes of the template go straight through, and only
the box that was painted is converted back into them: that is faster, and the rest cannot change by rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from inference import encode
from inference.encode import Color, Overlay, VideoWriter
from inference.ffmpeg import Process
from inference.video import FrameReader

Frame = NDArray[np.uint8]  #: (H, W, 3) BGR
Planes = NDArray[np.uint8]  #: (H·3/2, W): Y, then U and V of half the size

#: x264 at the quality per byte of `veryfast` in 60 % of its time: `superfast`, but with its look into the future
SUPERFAST_MBTREE = "rc-lookahead=10:mbtree=1"


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


class SegmentWriter(VideoWriter):
    """A :class:`VideoWriter` of one segment: no sound, one thread, planes as well as frames."""

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        fps: float,
        *,
        crf: int,
        preset: str,
        encoder: str,
        color: Color,
        overlays: tuple[Overlay, ...],
        check: Callable[[], None],
        ffmpeg: str | None,
    ) -> None:
        if encoder == "nvenc" and not encode.nvenc_works(ffmpeg):
            super().__init__(
                path, width, height, fps,
                crf=crf, color=color, overlays=overlays, encoder=encoder, check=check, ffmpeg=ffmpeg,
            )  # fmt: skip
            return
        self.path = path
        self.width, self.height, self.frames = width, height, 0
        self.codec = "libx264"
        self.note = encode.nvenc_works(ffmpeg) if encoder == "nvenc" else ""
        self._check = check
        self._planes = np.empty((height * 3 // 2, width), np.uint8)
        quality: dict[str, object] = {"vcodec": self.codec, "crf": crf, "preset": preset, "threads": 1}
        if preset == "superfast":
            quality["x264-params"] = SUPERFAST_MBTREE
        picture = encode._picture(width, height, encode.as_rate(fps), overlays, color)
        self._process = Process(encode._command(picture, None, path, quality, None, ffmpeg), "write")

    def write_planes(self, planes: Planes) -> None:
        """Append one frame as planes; blocks while the encoder is behind."""
        if planes.shape != self._planes.shape:
            raise ValueError(f"planes {planes.shape} instead of {self._planes.shape}")
        if self._check is not None:
            self._check()
        left = memoryview(planes).cast("B")
        try:
            while left:
                left = left[self._process.stdin.write(left) :]
        except (BrokenPipeError, ValueError) as error:
            self._process.finish()
            raise self._failure() from error
        self.frames += 1


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
