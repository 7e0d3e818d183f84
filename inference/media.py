"""Media files in: what a file holds, and its sound as a stream.

Everything goes through one ffmpeg binary (the one in the imageio-ffmpeg wheel, or the one named by
``FILEPOOL_FFMPEG`` or an option), with argument lists built by ffmpeg-python and never a shell. Paths are
handed over as ``file:<absolute path>`` with only local protocols allowed, so a file name cannot be taken
for an option or an address, and a playlist cannot reach the network.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.base import EngineError, InputError
from inference.ffmpeg import Process

SAMPLE_RATE = 16_000  #: Hz; what every speech model here expects
BLOCK_S = 10.0  #: seconds of audio per block handed out by :func:`decode`
PROBE_TIMEOUT_S = 30.0
REMEMBERED = 64  #: files whose headers are remembered
LOCAL_PROTOCOLS = "file,pipe,crypto,data"

_DURATION = re.compile(r"Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)")
_STREAM = re.compile(r"Stream #\d+:\d+.*?: (Audio|Video|Subtitle|Data): (.*)")
_SIZE = re.compile(r"[ ,](\d{2,5})x(\d{2,5})(?=[ ,\[]|$)")
_FPS = re.compile(r"(\d+(?:\.\d+)?)(k?) (?:fps|tbr)")
_RATE = re.compile(r"(\d+) Hz")
_ROTATION = re.compile(r"rotation of (-?\d+(?:\.\d+)?) degrees")

Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Probe:
    """What a media file says about itself. None where it says nothing."""

    path: Path
    duration_s: float | None
    duration_exact: bool  #: False when ffmpeg only estimated it from the bit rate
    has_audio: bool
    has_video: bool
    audio_codec: str = ""
    mono: bool = False  #: one channel of sound
    sample_rate: int | None = None  #: Hz
    video_codec: str = ""
    width: int | None = None  #: pixels, as displayed (rotation applied)
    height: int | None = None
    fps: float | None = None


def ffmpeg_binary(configured: str | None = None) -> str:
    """Path of the ffmpeg to use: the configured one, ``FILEPOOL_FFMPEG``, else the wheel's."""
    chosen = configured or os.environ.get("FILEPOOL_FFMPEG")
    if chosen:
        if not os.access(chosen, os.X_OK) or os.path.isdir(chosen):
            raise EngineError(
                f"ffmpeg: {chosen} is no program that can be run",
                hint="correct the option `ffmpeg` (or FILEPOOL_FFMPEG), or remove it to use the bundled one",
            )
        return chosen
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise EngineError(f"no ffmpeg: {error}", hint="pip install imageio-ffmpeg, or set FILEPOOL_FFMPEG") from error


def require_file(path: str | Path, what: str = "audio") -> Path:
    """The absolute path of a readable, regular, non-empty file; else :class:`InputError` naming ``what``."""
    file = Path(os.path.abspath(os.path.expanduser(str(path))))
    try:
        if file.is_dir():
            raise InputError(f"{what}: {file} is a directory, not a file", hint="name one media file")
        if not file.exists():
            raise InputError(f"{what}: {file} does not exist", hint="check the path; it is read on the worker's disk")
        if not file.is_file():
            raise InputError(f"{what}: {file} is not a regular file", hint="pipes and devices are not read")
        if file.stat().st_size == 0:
            raise InputError(f"{what}: {file} is empty (0 bytes)", hint="the recording or its upload never finished")
        with file.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"{what}: {file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL inside the path
        raise InputError(f"{what}: {str(path)!r} is not a usable path: {error}") from error
    return file


def probe(path: str | Path, what: str = "audio", ffmpeg: str | None = None) -> Probe:
    """Read the headers of a media file: 30 to 100 ms, whatever its length.

    Remembered as long as the file is the same, since every job is checked twice: before it is taken and before it
    is done. Raises :class:`InputError` when the file is missing, empty, unreadable or no media file.
    """
    file = require_file(path, what)
    return _probe(file, what, ffmpeg, identity(file))


def identity(file: Path) -> tuple[int, ...]:
    """Changes when a file does; (0,) when it is gone."""
    try:
        stat = file.stat()
    except OSError:
        return (0,)
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@lru_cache(maxsize=REMEMBERED)
def _probe(file: Path, what: str, ffmpeg: str | None, _: tuple[int, ...]) -> Probe:
    command = [
        ffmpeg_binary(ffmpeg),
        *("-hide_banner", "-nostdin", "-protocol_whitelist", LOCAL_PROTOCOLS, "-i", f"file:{file}"),
    ]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{what}: {file} could not be opened within {PROBE_TIMEOUT_S:.0f} s") from error
    return _read_probe(file, what, done.stderr.decode("utf-8", "replace"))


def _read_probe(file: Path, what: str, talk: str) -> Probe:
    streams = [match.groups() for match in map(_STREAM.search, talk.splitlines()) if match]
    if "Input #0" not in talk or "Input #0, tty" in talk:  # tty: any text file, drawn as a video
        said = "plain text" if "Input #0, tty" in talk else _last_line(talk.splitlines())
        raise InputError(
            f"{what}: {file} is not a media file that ffmpeg can read ({said})",
            hint="check that the file is whole and really audio or video",
        )
    audio = next((about for kind, about in streams if kind == "Audio"), None)
    video = next((about for kind, about in streams if kind == "Video" and "attached pic" not in about), None)
    duration = _DURATION.search(talk)
    seconds = (
        sum(float(part) * unit for part, unit in zip(duration.groups(), (3600, 60, 1), strict=True))
        if duration
        else None
    )
    size = _SIZE.search(video) if video else None
    width, height = (int(size[1]), int(size[2])) if size else (None, None)
    turned = _ROTATION.search(talk)
    if turned and round(abs(float(turned[1]))) % 180 == 90:
        width, height = height, width
    fps = _FPS.search(video) if video else None
    rate = _RATE.search(audio) if audio else None
    return Probe(
        path=file,
        duration_s=seconds,
        duration_exact="Estimating duration from bitrate" not in talk,
        has_audio=audio is not None,
        has_video=video is not None,
        audio_codec=re.split(r"[ ,]", audio)[0] if audio else "",
        sample_rate=int(rate[1]) if rate else None,
        mono=audio is not None and ", mono" in audio,
        video_codec=re.split(r"[ ,]", video)[0] if video else "",
        width=width,
        height=height,
        fps=float(fps[1]) * (1000 if fps[2] else 1) if fps else None,
    )


class AudioStream:
    """The sound of one file as blocks of 16 kHz mono float32, decoded while it is read.

    A context manager and an iterator; memory is constant whatever the length. ffmpeg is ended when the
    stream is closed, when an exception leaves the ``with`` block, and when the object is forgotten.
    After the last block ``error`` holds what ffmpeg complained about ("" when it was content).
    """

    def __init__(self, path: Path, block_s: float = BLOCK_S, ffmpeg: str | None = None) -> None:
        import ffmpeg as builder

        self.path = path
        self.error = ""
        self.samples = 0  #: samples handed out so far
        self._block_bytes = int(block_s * SAMPLE_RATE) * 4
        arguments = (
            builder.input(f"file:{path}", protocol_whitelist=LOCAL_PROTOCOLS, threads=1, vn=None, sn=None, dn=None)
            .output("pipe:1", map="0:a:0", format="f32le", acodec="pcm_f32le", ac=1, ar=SAMPLE_RATE)
            .global_args("-nostdin", "-hide_banner", "-loglevel", "error")
            .compile(cmd=ffmpeg_binary(ffmpeg))
        )
        self._process = Process(arguments, "read")

    @property
    def position_s(self) -> float:
        """Seconds of sound handed out so far."""
        return self.samples / SAMPLE_RATE

    def __iter__(self) -> Iterator[Samples]:
        while True:
            data = bytearray(self._block_bytes)
            got = self._process.read_into(memoryview(data))
            block = np.frombuffer(data, dtype="<f4", count=got // 4).astype(np.float32, copy=False)
            if len(block):
                self.samples += len(block)
                yield block
            if got < len(data):
                break
        code = self._process.finish()
        if code != 0 or self._process.lines:
            self.error = _last_line(self._process.lines) or f"ffmpeg ended with exit code {code}"

    def close(self) -> None:
        """End ffmpeg if it still runs; safe to call twice."""
        self._process.close()

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def decode(path: str | Path, block_s: float = BLOCK_S, ffmpeg: str | None = None) -> AudioStream:
    """Open the first audio stream of a file; see :class:`AudioStream`."""
    return AudioStream(require_file(path), block_s, ffmpeg)


def read_audio(path: str | Path, ffmpeg: str | None = None) -> Samples:
    """The whole sound of a short file as one array (1 hour is 230 MB: use :func:`decode` for recordings)."""
    with decode(path, ffmpeg=ffmpeg) as stream:
        blocks = list(stream)
    if not blocks:
        raise InputError(f"audio: {path} holds no sound that can be decoded ({stream.error})")
    return np.concatenate(blocks)


def _last_line(lines: list[str]) -> str:
    """The last line that says something, without ffmpeg's ``[demuxer @ 0x…]`` and ``file:`` decoration."""
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    said = re.sub(r"^\[[^\]]*@ 0x[0-9a-f]+\] ", "", said)
    return re.sub(r"^(Error opening input file |Error opening input: )?(file:\S+: )?", "", said)[:300]
