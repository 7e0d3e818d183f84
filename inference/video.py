"""Video in and out: what a file holds, its frames as a stream, and a writer.

``read_frames`` hands out what a viewer sees: rotation applied, square pixels, even sides, one constant rate
whatever the file's own timing, transparency on black, fields woven into frames, HLG and PQ tone-mapped to
BT.709. Frame k is the picture nearest to k / fps after the first one, and it is the same picture wherever
reading starts, so that results can be kept per frame number.

Frames cross the pipes as YUV 4:2:0 and are converted with the coefficients of BT.601 in both directions,
whatever the file declares. So a pixel nobody touched comes back exactly, and the writer passes on the file's
own declaration (:class:`Color`). While they are BGR, colours of HD video are a few per cent off; nothing
here looks at them that closely.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inference import media
from inference.base import InputError
from inference.encode import Color, Encoding, Overlay, VideoWriter, as_rate, nvenc_works
from inference.ffmpeg import Process
from inference.probe import VideoInfo, probe_video

__all__ = [
    "Color",
    "Encoding",
    "FrameReader",
    "Overlay",
    "VideoInfo",
    "VideoWriter",
    "as_rate",
    "nvenc_works",
    "probe_video",
    "read_frames",
]

Frame = NDArray[np.uint8]  #: (H, W, 3) BGR

SEEKABLE = ("mov,mp4", "matroska,webm")  #: formats in which ffmpeg lands where it was told to
SEEK_MARGIN_S = 0.5
#: high dynamic range to BT.709: linear light, white of 100 cd/m², its primaries; Möbius' curve bends highlights only
TONE_MAP = (
    ("zscale", {"transfer": "linear", "npl": 100}),
    ("format", {"pix_fmts": "gbrpf32le"}),
    ("zscale", {"primaries": "bt709"}),
    ("tonemap", {"tonemap": "mobius", "desat": 0}),
    ("zscale", {"transfer": "bt709", "matrix": "bt709", "range": "limited"}),
    ("format", {"pix_fmts": "yuv420p"}),
)


class FrameReader(Iterator[Frame]):
    """Frames of one video: an iterator, a context manager, and an ffmpeg that ends with either.

    Every frame is an array of its own, (H, W, 3) uint8 BGR. After the last one ``error`` holds what ffmpeg
    complained about, "" when it was content. Not for two threads at once.
    """

    def __init__(
        self,
        info: VideoInfo,
        *,
        size: tuple[int, int] | None = None,
        fps: float | None = None,
        start: int = 0,
        count: int | None = None,
        threads: int | None = None,
        ffmpeg: str | None = None,
    ) -> None:
        self.info = info
        self.width, self.height = size or (info.width, info.height)
        if self.width % 2 or self.height % 2 or min(self.width, self.height) < 2:
            raise ValueError(f"{self.width}×{self.height}: both sides must be even")
        if start < 0 or (count is not None and count < 0):
            raise ValueError(f"start {start}, count {count}: neither may be negative")
        self.fps = fps or info.fps
        self.frames = 0  #: handed out so far
        self.error = ""
        self._start = start
        self._left = count
        self._process = Process(self._arguments(as_rate(self.fps), threads, ffmpeg), "read")

    def _arguments(self, rate: Fraction, threads: int | None, ffmpeg: str | None) -> list[str]:
        import ffmpeg as builder

        info = self.info
        options: dict[str, Any] = {"protocol_whitelist": media.LOCAL_PROTOCOLS}
        if threads:
            options["threads"] = threads
        if info.decoder:
            options["vcodec"] = info.decoder
        seekable = info.container.startswith(SEEKABLE)
        at = info.start_s + float(self._start / rate)  # seconds after the container's start
        seek = at - SEEK_MARGIN_S - 3 / min(self.fps, info.fps)  # leaves frames for `fps` to choose from
        if self._start and seek > 0 and seekable:
            options["ss"] = f"{seek:.6f}"
            at -= float(options["ss"])
        picture = builder.input(f"file:{info.path}", **options)["V:0"]
        if info.interlaced:
            picture = picture.filter("bwdif", mode="send_frame", deint="interlaced")
        constant = {"fps": f"{rate.numerator}/{rate.denominator}"}
        if seekable:
            picture = picture.filter("fps", **constant, start_time=f"{at:.6f}")
        else:  # where seeking or the first time stamp cannot be trusted: from the first picture on, by counting
            picture = picture.filter("setpts", "PTS-STARTPTS").filter("fps", **constant)
            if self._start:
                picture = picture.filter("trim", start_frame=self._start)
        picture = picture.filter("setpts", "N")
        picture = self._scaled(picture)
        output: dict[str, Any] = {"format": "rawvideo", "pix_fmt": "yuv420p", "sws_flags": "bicubic"}
        if self._left is not None:
            output["vframes"] = max(1, self._left)
        arguments: list[str] = (
            builder.output(picture, "pipe:1", **output)
            .global_args("-nostdin", "-hide_banner", "-loglevel", "error")
            .compile(cmd=media.ffmpeg_binary(ffmpeg))
        )
        return arguments

    def _scaled(self, picture: Any) -> Any:
        """Crop to even sides, or scale, and convert to 8-bit 4:2:0; what is that already stays untouched."""
        info = self.info
        upright = info.source_size if info.rotation % 180 == 0 else info.source_size[::-1]
        convert: dict[str, Any] = {"out_range": "tv"}
        for name, options in TONE_MAP if info.hdr else ():
            picture = picture.filter(name, **options)
        if (self.width, self.height) == (upright[0] // 2 * 2, upright[1] // 2 * 2):
            if upright != (self.width, self.height):
                picture = picture.filter("crop", self.width, self.height, 0, 0, exact=1)
        else:
            shrinks = self.width < upright[0] / 2
            convert.update(w=self.width, h=self.height, flags="area" if shrinks else "bicubic")
        if info.alpha:
            picture = picture.filter("format", "gbrap").filter("premultiply", inplace=1)
        if info.rgb or info.alpha:
            convert["out_color_matrix"] = "bt601"
        return picture.filter("scale", **convert).filter("format", "yuv420p")

    def __iter__(self) -> FrameReader:
        return self

    def __next__(self) -> Frame:
        return np.asarray(cv2.cvtColor(self.read_planes(), cv2.COLOR_YUV2BGR_I420), np.uint8)

    def read_planes(self) -> NDArray[np.uint8]:
        """The next frame as it came: (H·3/2, W) uint8, Y above U above V. StopIteration after the last one."""
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

    def _ended(self) -> None:
        code = self._process.finish()
        self.error = self._process.said or (f"ffmpeg ended with exit code {code}" if code else "")
        self._process.close()
        if not self.frames and not self._start:
            raise InputError(
                f"video: no picture of {self.info.path} could be decoded ({self.error or 'no reason given'})",
                hint="check that the file plays, or convert it to H.264 in MP4",
            )

    def close(self) -> None:
        """End ffmpeg if it still runs; safe to call twice."""
        self._process.close()

    def __enter__(self) -> FrameReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_frames(
    path: str | Path | VideoInfo,
    *,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    start: int = 0,
    count: int | None = None,
    threads: int | None = None,
    ffmpeg: str | None = None,
) -> FrameReader:
    """Frames (H, W, 3) uint8 BGR of a file, or of what :func:`probe_video` said about it.

    ``size`` (width, height; even) scales, ``fps`` resamples in time, ``start`` and ``count`` are in frames at
    the rate of reading. ``threads`` limits the decoder.
    """
    info = path if isinstance(path, VideoInfo) else probe_video(path, ffmpeg=ffmpeg)
    return FrameReader(info, size=size, fps=fps, start=start, count=count, threads=threads, ffmpeg=ffmpeg)
