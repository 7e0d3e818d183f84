"""What a video file holds, and whether it can be worked on, before anything heavy starts.

One short ffmpeg run: the header, and a copy of the picture's packets without decoding them, which tells the
real timing of the frames and whether the file is cut off.
"""

from __future__ import annotations

import itertools
import re
import statistics
import subprocess
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from inference import media
from inference.base import InputError
from inference.encode import HD, Color, as_rate
from inference.header import Header

MAX_PIXELS = 4096 * 2304  #: of one frame; 8K takes 100 MB per picture in memory and minutes per second of video
MAX_SIDE = 8192  #: pixels
MIN_SIDE = 64  #: pixels; under that there is no face to work on
MAX_STILL_PIXELS = 160_000_000  #: of a photo, which is read smaller where it has more than MAX_PIXELS
STILL_SIDE = 1920  #: then; pixels of the longer side
MAX_FPS = 120.0  #: above this frames are dropped
MAX_VARIABLE_FPS = 60.0  #: above this too, when the timing is uneven
STILL_FPS = 25.0  #: rate of a single picture that states none
SCAN_PACKETS = 20_000  #: how many packets are looked at: 11 min at 30 fps, about 0.1 s
SCAN_TIMEOUT_S = 60.0
NO_TIME = -(1 << 62)  #: ffmpeg writes −2⁶³ for "no time stamp"
UNEVEN = 0.2  #: a step that differs by more than this share from the usual one is uneven …
UNEVEN_SHARE = 0.01  #: … and more than this share of uneven steps makes a rate variable

#: transfer curves of high dynamic range, which players of SDR show flat and grey
HDR = {"arib-std-b67": "HLG", "smpte2084": "PQ"}

_CUT = re.compile(r"partial file|File ended prematurely")


@dataclass(frozen=True)
class VideoInfo:
    """What reading the frames will give, and what the output should be."""

    path: Path
    width: int  #: pixels as read: turned upright, square, even
    height: int
    fps: float  #: constant rate at which frames are read
    frames: int  #: how many there will be; an estimate for long or oddly timed files
    duration_s: float  #: of the picture
    rotation: int  #: degrees clockwise that the file asks for; applied in all the rest
    has_audio: bool
    alpha: bool  #: holds transparency, which is flattened onto black
    variable_rate: bool
    interlaced: bool
    color: Color  #: of the frames as read: what the file declares, or BT.709 where ``hdr`` is mapped to it
    source_size: tuple[int, int]  #: width, height as stored
    container: str  #: ffmpeg's name of the format
    start_s: float  #: time of the first picture, seconds after the container's start
    decoder: str = ""  #: "" = ffmpeg's choice
    rgb: bool = False  #: stored as RGB
    shrunk: float = 1.0  #: size as read over size as stored, of a large photo
    hdr: str = ""  #: "HLG" or "PQ" where the file has a high dynamic range; frames are tone-mapped to BT.709


@dataclass(frozen=True)
class _Scan:
    header: Header
    times: list[float]  #: seconds, sorted, of the first packets
    whole: bool  #: False when there are more packets than were looked at
    cut: bool  #: the file ends before its content does


def probe_video(path: str | Path, what: str = "video", ffmpeg: str | None = None) -> VideoInfo:
    """What is in a video file or a picture, in about 0.1 s; decodes nothing. Remembered like :func:`media.probe`.

    Raises :class:`InputError` naming ``what`` and the file when it is missing, empty, no video, cut off, too
    small or too large.
    """
    file = media.require_file(path, what)
    return _probe_video(file, what, ffmpeg, media.identity(file))


@lru_cache(maxsize=media.REMEMBERED)
def _probe_video(file: Path, what: str, ffmpeg: str | None, _: tuple[int, ...]) -> VideoInfo:
    scan = _scan(file, what, ffmpeg)
    header = scan.header
    about = media.described(file, what, header)
    if header.picture is None:
        raise InputError(f"{what}: {file} has no picture, only sound", hint="name a video file, or a picture")
    source = header.picture.size
    if source is None or not scan.times:
        raise InputError(f"{what}: {file} holds no picture", hint="check that the recording was finished")
    if scan.cut:
        there = scan.times[-1] - scan.times[0]
        promised = f" of {about.duration_s:.1f} s" if about.duration_s else ""
        raise InputError(
            f"{what}: {file} is cut off: it holds {there:.1f} s{promised}", hint="copy or upload the file again"
        )
    width, height = _seen(source, header.picture.pixel_shape, header.rotation)
    shrunk = 1.0
    if len(scan.times) == 1 and MAX_PIXELS < width * height <= MAX_STILL_PIXELS:
        shrunk = STILL_SIDE / max(width, height)
        width, height = (round(side * shrunk / 2) * 2 for side in (width, height))
    _check_size(width, height, f"{what}: {file}")
    fps, variable = _timing(scan.times, about.fps)
    frames = round((scan.times[-1] - scan.times[0]) * fps) + 1
    if not scan.whole and about.duration_s:
        frames = max(frames, round(about.duration_s * fps))
    declared = Color.parse(header.picture.notes)
    hdr = HDR.get(declared.transfer, "")
    if hdr and not media.has_filter("zscale", ffmpeg):
        raise InputError(
            f"{what}: {file} has a high dynamic range ({hdr}), which this ffmpeg cannot map: it has no filter zscale",
            hint="use the bundled ffmpeg, or convert the video to BT.709 first",
        )
    return VideoInfo(
        path=file,
        width=width,
        height=height,
        fps=fps,
        frames=frames,
        duration_s=frames / fps,
        rotation=header.rotation,
        has_audio=about.has_audio,
        alpha=header.alpha_tag or header.picture.alpha,
        variable_rate=variable,
        interlaced=header.picture.interlaced,
        color=HD if hdr else declared,
        source_size=source,
        container=header.container,
        start_s=scan.times[0],
        # ffmpeg's own decoders of VP8 and VP9 drop the transparency.
        decoder={"vp8": "libvpx", "vp9": "libvpx-vp9"}.get(about.video_codec, "") if header.alpha_tag else "",
        rgb=header.picture.rgb,
        shrunk=shrunk,
        hdr=hdr,
    )


def _scan(file: Path, what: str, ffmpeg: str | None) -> _Scan:
    import ffmpeg as builder

    arguments = (
        builder.input(f"file:{file}", protocol_whitelist=media.LOCAL_PROTOCOLS)["V:0"]
        .output("pipe:1", format="framecrc", vcodec="copy", vframes=SCAN_PACKETS)
        .global_args("-nostdin", "-hide_banner", "-nostats")
        .compile(cmd=media.ffmpeg_binary(ffmpeg))
    )
    try:
        done = subprocess.run(arguments, stdin=subprocess.DEVNULL, capture_output=True, timeout=SCAN_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{what}: {file} could not be read within {SCAN_TIMEOUT_S:.0f} s") from error
    talk = done.stderr.decode("utf-8", "replace")
    header, _, rest = talk.partition("Output #0")
    unit, times, count, corrupt = Fraction(1), [], 0, False
    for line in done.stdout.decode("ascii", "replace").splitlines():
        if line.startswith("#tb 0:"):
            unit = Fraction(line.split(":")[1].strip())
        if line.startswith("#"):
            continue
        # stream, dts, pts, duration, size, checksum[, F=flags][, side data]; flags 2 = corrupt, 4 = not shown
        columns = [column.strip() for column in line.split(",")]
        flags = next((int(column[2:], 16) for column in columns if column.startswith("F=")), 0)
        count, corrupt = count + 1, bool(flags & 2)
        stamps = [int(column) for column in columns[2:0:-1] if re.fullmatch(r"-?\d+", column)]
        stamp = next((stamp for stamp in stamps if stamp > NO_TIME), None)  # AVI may hold decoding times alone
        if not flags & 4 and stamp is not None:
            times.append(float(stamp * unit))
    return _Scan(Header(header), sorted(times), count < SCAN_PACKETS, corrupt or _CUT.search(rest) is not None)


def _timing(times: list[float], stated: float | None) -> tuple[float, bool]:
    """The constant rate to read at, and whether the file's own is variable; from sorted times in seconds."""
    steps = [after - before for before, after in itertools.pairwise(times) if after - before > 1e-6]
    if not steps:
        still = stated if stated and 1 <= stated <= MAX_FPS else STILL_FPS
        return float(as_rate(still)), False
    usual = statistics.median(steps)
    even = [step for step in steps if abs(step - usual) <= UNEVEN * usual] or [usual]
    measured = len(even) / sum(even)  # without the holes that cutting by packets leaves
    if len(steps) - len(even) > max(1, UNEVEN_SHARE * len(steps)):
        return float(as_rate(min(measured, MAX_VARIABLE_FPS))), True
    if stated and abs(stated - measured) < 0.002 * measured:
        measured = stated  # timestamps in milliseconds blur a short clip's rate
    return float(as_rate(measured if measured <= MAX_FPS else MAX_VARIABLE_FPS)), False


def _seen(stored: tuple[int, int], pixel_shape: float, rotation: int) -> tuple[int, int]:
    """Stored size → what is read: square pixels, upright, even."""
    width, height = stored
    if abs(pixel_shape - 1) > 0.01:
        width = round(width * pixel_shape)
    if rotation % 180 == 90:
        width, height = height, width
    return width // 2 * 2, height // 2 * 2


def _check_size(width: int, height: int, subject: str) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise InputError(
            f"{subject} is {width}×{height}; pictures up to {MAX_PIXELS / 1e6:.1f} megapixels (4096×2304) are "
            "worked on",
            hint="scale it down first: ffmpeg -i in.mp4 -vf scale=1920:-2 out.mp4",
        )
    if min(width, height) < MIN_SIDE:
        raise InputError(
            f"{subject} is {width}×{height}; at least {MIN_SIDE} pixels a side are needed",
            hint="use the original, not a thumbnail",
        )
