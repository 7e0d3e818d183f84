"""Media files in: what a file holds, and its sound as a stream.

Everything goes through one ffmpeg binary (the one in the imageio-ffmpeg wheel, or the one named by
``FILEPOOL_FFMPEG`` or an option), with argument lists built by ffmpeg-python and never a shell. Paths are
handed over as ``file:<absolute path>`` with only local protocols allowed, so a file name cannot be taken
for an option or an address, and a playlist cannot reach the network.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.base import EngineError, InputError
from inference.ffmpeg import Process
from inference.header import Header, last_line

SAMPLE_RATE = 16_000  #: Hz; what every speech model here expects
BLOCK_S = 10.0  #: seconds of audio per block handed out by :func:`decode`
PROBE_TIMEOUT_S = 30.0
REMEMBERED = 64  #: files whose headers are remembered
LOCAL_PROTOCOLS = "file,pipe,crypto,data"

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
    return described(file, what, Header(done.stderr.decode("utf-8", "replace")))


def described(file: Path, what: str, header: Header) -> Probe:
    """What a header says; :class:`InputError` when it is that of no media file."""
    if not header.container:
        raise InputError(
            f"{what}: {file} is not a media file that ffmpeg can read ({header.complaint})",
            hint="check that the file is whole and really audio or video",
        )
    sound, picture = header.sound, header.picture
    width, height = (picture and picture.size) or (None, None)
    if header.rotation % 180 == 90:
        width, height = height, width
    return Probe(
        path=file,
        duration_s=header.duration_s,
        duration_exact=header.duration_exact,
        has_audio=sound is not None,
        has_video=picture is not None,
        audio_codec=sound.codec if sound else "",
        sample_rate=sound.hertz if sound else None,
        mono=sound is not None and sound.mono,
        video_codec=picture.codec if picture else "",
        width=width,
        height=height,
        fps=picture.fps if picture else None,
    )


class AudioStream:
    """The sound of one file as blocks of 16 kHz mono float32, decoded while it is read.

    A context manager and an iterator; memory is constant whatever the length. ffmpeg is ended when the
    stream is closed, when an exception leaves the ``with`` block, and when the object is garbage-collected.
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
            self.error = last_line(self._process.lines) or f"ffmpeg ended with exit code {code}"

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
