"""Frames to a file: H.264 in MP4, playable while it still downloads. Sound is added when segments are joined.

One ffmpeg takes the frames from a pipe and the corner pictures from their files, and writes yuv420p with
``+faststart``. Its stderr's last lines are in every error; it is killed when the work is
cancelled, when an exception leaves the ``with`` block and when the writer is garbage-collected.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from inference import media
from inference.base import EngineError, InputError, ResourceError
from inference.ffmpeg import Process
from inference.live import both, early

Frame = NDArray[np.uint8]  #: (H, W, 3) BGR
Planes = NDArray[np.uint8]  #: (H·3/2, W): Y, then U and V of half the size

RATES = tuple(Fraction(n * 1000, 1001) for n in (24, 30, 48, 60, 120)) + tuple(
    Fraction(n) for n in (10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120)
)
MARGIN = 10  #: pixels between a corner picture and the edges
AAC: Mapping[str, object] = {"acodec": "aac", "audio_bitrate": "192k"}
AAC_MONO: Mapping[str, object] = {"acodec": "aac", "audio_bitrate": "96k"}  #: as good, at half the cost
#: keys that MP4 stores by itself; for others the muxer must be told to
MP4_KEYS = frozenset(("title", "artist", "album", "date", "comment", "genre", "copyright", "description", "synopsis"))
#: names of conversion matrices, by which the colours are told from other notes
MATRICES = frozenset(
    ("bt709", "smpte170m", "bt470bg", "smpte240m", "fcc", "bt2020nc", "bt2020c", "ycgco", "gbr", "unknown")
)
#: x264 in little more than half the time of `veryfast`, for files a fifth to a third larger: `superfast`, but with its
#: look into the future, which makes them about half as large as without
SUPERFAST_MBTREE = "rc-lookahead=10:mbtree=1:weightp=0:bframes=1"
#: What ffmpeg says when the GPU takes no further session, or has no memory for it.
NVENC_FULL = re.compile(r"OpenEncodeSessionEx failed|out of memory", re.IGNORECASE)
#: BGR → U, V of BT.601, limited range, plus offset
_CHROMA = np.array([[0.439216, -0.290993, -0.148223, 128.0], [-0.071427, -0.367788, 0.439216, 128.0]])


@dataclass(frozen=True)
class Color:
    """What a file declares about its colours, in ffmpeg's words; "" = nothing."""

    matrix: str = ""
    primaries: str = ""
    transfer: str = ""

    @staticmethod
    def parse(notes: str) -> Color:
        """From the bracket behind a pixel format: ``tv, bt709, progressive`` or ``pc, bt470bg/unknown/unknown``."""
        for note in notes.split(","):
            parts = note.strip().split("/")
            if parts[0] in MATRICES and len(parts) in (1, 3):  # one name stands for all three
                return Color(*("" if part in ("unknown", "gbr") else part for part in (parts * 3)[:3]))
        return Color()


SD = Color("smpte170m", "bt709", "bt709")  #: what the conversion here really makes of true BGR
HD = Color("bt709", "bt709", "bt709")
CRF_RAISED = "crf: 0 is lossless, which browsers do not play; the best that they do, 1, is used"  #: a warning
BEST_CRF = 1  #: 0 is lossless: a profile of H.264 that browsers do not play, and "automatic" to the GPU's encoder


@dataclass(frozen=True)
class Overlay:
    """A picture (PNG with transparency, or any other) laid over every frame in a corner."""

    path: Path
    corner: str  #: "upper left", "upper right", "lower left" or "lower right"
    what: str = "overlay"  #: what error messages call it


def as_rate(fps: float) -> Fraction:
    """Frames per second as the exact fraction that is meant: 29.97 is 30000/1001."""
    nearest = min(RATES, key=lambda rate: abs(float(rate) - fps))
    return nearest if abs(float(nearest) - fps) < 5e-4 * fps else Fraction(fps).limit_denominator(1001)


@dataclass(frozen=True)
class Encoding:
    """How pictures are encoded.

    ``width`` and ``height`` are pixels, both even, ``fps`` frames per second. ``encoder`` "nvenc" uses the GPU's
    encoder when it works and the processor otherwise. With ``threads=1`` the same frames give the same bytes on
    every machine.
    """

    width: int
    height: int
    fps: float
    crf: int = 18  #: 0 lossless … 51
    preset: str = "veryfast"  #: of x264
    encoder: str = "cpu"  #: or "nvenc"
    color: Color = SD  #: what the template declared (``VideoInfo.color``)
    overlays: Sequence[Overlay] = ()
    threads: int | None = None
    growing: bool = (
        False  #: write it in fragments that can be read at once (:mod:`inference.live`); the frames are the same
    )
    ffmpeg: str | None = None

    def __post_init__(self) -> None:
        if self.width % 2 or self.height % 2 or min(self.width, self.height) < 2:
            raise ValueError(f"{self.width}×{self.height}: both sides must be even")
        if self.encoder not in ("cpu", "nvenc"):
            raise ValueError(f"encoder {self.encoder!r}: cpu or nvenc")

    def codec(self) -> tuple[str, str]:
        """Name of the encoder to use, and why it is not the one asked for ("" when it is)."""
        if self.encoder == "cpu":
            return "libx264", ""
        note = nvenc_works(self.ffmpeg)
        return ("libx264" if note else "h264_nvenc"), note

    def options(self, codec: str) -> dict[str, object]:
        """ffmpeg's output options for that encoder."""
        chosen: dict[str, object] = {"vcodec": codec, "crf": self.crf, "preset": self.preset}
        if codec == "h264_nvenc":
            chosen = {"vcodec": codec, "cq": self.crf, "preset": "p4", "rc": "vbr", "video_bitrate": 0}
        elif self.preset == "superfast":
            chosen["x264-params"] = SUPERFAST_MBTREE
        return chosen | ({"threads": self.threads} if self.threads else {})


class VideoWriter:
    """A context manager that takes frames in order.

    The file at ``path`` is whole when the ``with`` block has ended without an error, and gone otherwise. The
    name needs no particular ending. ``codec`` says which encoder is used, ``note`` why it is not the one asked
    for. ``check`` is called at every frame and while waiting for the end, and may raise.
    """

    def __init__(
        self,
        path: str | Path,
        encoding: Encoding,
        check: Callable[[], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.width, self.height = encoding.width, encoding.height
        self.frames = 0  #: written so far
        self.codec, self.note = encoding.codec()
        self._check = check
        self._planes = np.empty((self.height * 3 // 2, self.width), np.uint8)
        if not self.path.absolute().parent.is_dir():
            raise InputError(f"output: the folder {self.path.absolute().parent} does not exist", hint="create it")
        codecs = encoding.options(self.codec)
        arguments = command(
            _picture(encoding), None, self.path, codecs, growing=encoding.growing, ffmpeg=encoding.ffmpeg
        )
        self._process = Process(arguments, "write")

    def write(self, frame: Frame) -> None:
        """Append one frame, (H, W, 3) uint8 BGR; blocks while the encoder is behind."""
        if frame.shape != (self.height, self.width, 3) or frame.dtype != np.uint8:
            raise ValueError(f"frame {frame.shape} {frame.dtype} instead of ({self.height}, {self.width}, 3) uint8")
        if self._check is not None:
            self._check()
        to_planes(frame, self._planes)
        self._send(self._planes)

    def write_planes(self, planes: Planes) -> None:
        """Append one frame as planes, (H·3/2, W) uint8; blocks while the encoder is behind."""
        if planes.shape != self._planes.shape or planes.dtype != np.uint8:
            raise ValueError(f"planes {planes.shape} {planes.dtype} instead of {self._planes.shape} uint8")
        if self._check is not None:
            self._check()
        self._send(planes)

    def _send(self, planes: Planes) -> None:
        left = planes.data.cast("B")
        try:
            while left:
                left = left[self._process.stdin.write(left) :]
        except (BrokenPipeError, ValueError) as error:
            self._process.finish()
            raise self._failure() from error
        self.frames += 1

    def close(self) -> None:
        """Finish the file; :class:`EngineError` with ffmpeg's own words when it failed."""
        try:
            code = self._process.finish(self._check)
            if code != 0 or not self.path.is_file():
                raise self._failure()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """End ffmpeg at once and remove the file."""
        self._process.close()
        for path in (self.path, early(self.path)):
            path.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _failure(self) -> EngineError:
        found = failure(self._process, f"{self.path} after {self.frames} frames")
        if self.codec == "h264_nvenc" and NVENC_FULL.search(str(found)):
            # It worked when it was tried: the GPU encodes only so many at once, and has only so much memory.
            return ResourceError(str(found), hint='fewer workers on this GPU, or "encoder": "cpu" in the options')
        return found


def to_planes(frame: Frame, planes: Planes) -> None:
    """BGR (H, W, 3) → I420 (H·3/2, W), in place: BT.601, limited range; exact for frames that came from such.

    The colour of 2×2 pixels is their mean; OpenCV alone would take that of the upper left one, which is faster
    and leaves jagged colour edges in pictures that were not 4:2:0 before.
    """
    cv2.cvtColor(frame, cv2.COLOR_BGR2YUV_I420, dst=planes)
    height, width = frame.shape[:2]
    half = cv2.resize(frame, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    chroma = cv2.transform(half, _CHROMA)
    rows = planes[height:].reshape(2, height // 2, width // 2)
    rows[0], rows[1] = chroma[..., 0], chroma[..., 1]


@lru_cache(maxsize=4)
def nvenc_works(ffmpeg: str | None = None) -> str:
    """ "" when this machine's GPU encodes H.264 with this ffmpeg, else why not; tried once per process."""
    command = [
        media.ffmpeg_binary(ffmpeg),
        *("-nostdin", "-hide_banner", "-loglevel", "error", "-f", "lavfi", "-i", "color=size=256x256:rate=25"),
        *("-frames:v", "3", "-c:v", "h264_nvenc", "-f", "null", "-"),
    ]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvenc: {error}"
    if done.returncode == 0:
        return ""
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return "nvenc: " + (re.sub(r"^\[[^\]]*\] ", "", lines[0]) if lines else f"exit code {done.returncode}")


def _picture(encoding: Encoding) -> Any:
    import ffmpeg as builder

    width, height, color = encoding.width, encoding.height, encoding.color
    rate = as_rate(encoding.fps)
    picture = builder.input(
        "pipe:0",
        format="rawvideo",
        pix_fmt="yuv420p",
        video_size=(width, height),
        framerate=f"{rate.numerator}/{rate.denominator}",
    ).video
    for overlay in encoding.overlays:
        file = media.require_file(overlay.path, overlay.what)
        vertical, horizontal = overlay.corner.split()
        room = (max(2, width - 2 * MARGIN), max(2, height - 2 * MARGIN))
        mark = builder.input(f"file:{file}", protocol_whitelist=media.LOCAL_PROTOCOLS).video
        # A mark larger than the picture shrinks until it fits.
        mark = mark.filter("format", "rgba").filter(
            "scale", f"min(iw,{room[0]})", f"min(ih,{room[1]})", force_original_aspect_ratio="decrease"
        )
        picture = builder.overlay(
            picture,
            mark,
            x=MARGIN if horizontal == "left" else f"W-w-{MARGIN}",
            y=MARGIN if vertical == "upper" else f"H-h-{MARGIN}",
            eof_action="repeat",
        )
    names = {"colorspace": color.matrix, "color_primaries": color.primaries, "color_trc": color.transfer}
    declared = {key: name for key, name in names.items() if name}
    return picture.filter("setparams", range="tv", **declared)


def command(
    picture: Any,
    sound: Any,
    path: Path,
    codecs: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] | None = None,
    growing: bool = False,
    ffmpeg: str | None = None,
) -> list[str]:
    """ffmpeg's arguments for an MP4 at ``path`` with a picture and, unless None, a sound.

    ``growing``: also in fragments, at :func:`inference.live.early`.
    """
    import ffmpeg as builder

    metadata = dict(metadata or {})
    flags = "+faststart" + ("+use_metadata_tags" if set(metadata) - MP4_KEYS else "")
    plain = {"filename": f"file:{path.absolute()}", "format": "mp4", "movflags": flags}
    where = both(path, flags) if growing else plain
    options: dict[str, Any] = {**where, "map_metadata": -1, **codecs}
    if codecs["vcodec"] != "copy":
        options["pix_fmt"] = "yuv420p"
    streams = [picture]
    if sound is not None:
        streams.append(sound)
    for number, (key, value) in enumerate(metadata.items()):
        options[f"metadata:g:{number}"] = f"{key}={value}"
    arguments: list[str] = (
        builder.output(*streams, **options)
        .global_args("-hide_banner", "-loglevel", "error", "-nostats", "-y")
        .compile(cmd=media.ffmpeg_binary(ffmpeg))
    )
    return [re.sub(r"^-metadata:g:\d+$", "-metadata", argument) for argument in arguments]


def failure(process: Process, subject: str) -> EngineError:
    """What to raise when ffmpeg failed, with its own words; ResourceError when the disk is full."""
    said = process.said or "no reason given"
    if "No space left" in said:
        return ResourceError(f"disk full while writing {subject}: {said}", hint="make room and try again")
    return EngineError(f"ffmpeg failed to write {subject}: {said}")
