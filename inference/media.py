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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inference.audio import mixed
from inference.base import EngineError, InputError
from inference.ffmpeg import Process
from inference.header import Header, Sound, last_line

SAMPLE_RATE = 16_000  #: Hz; what every speech model here expects
MOST_SAMPLE = 1e6  #: floats may go beyond full scale, 1.0; 16-bit numbers that nobody scaled reach 32768
BLOCK_S = 10.0  #: seconds of audio per block handed out by :func:`decode`
PROBE_TIMEOUT_S = 30.0
HOLE_S = 3600  #: a longer jump of a transport stream's clock is a new beginning, not a hole
MOST_CHANNELS = 2  #: what is mixed here; ffmpeg mixes more, whose places it knows
REMEMBERED = 64  #: files whose headers are remembered
NO_INDEX = "moov atom not found"  #: what ffmpeg says of an MP4 or QuickTime file that was never finished, or of a name
BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")  #: that such a file begins with
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
    sounds: tuple[Sound, ...] = ()  #: the audio streams
    streams: int = 0  #: streams of any kind
    container: str = ""  #: ffmpeg's name of the format
    start_s: float = 0.0  #: where the container's clock begins
    audio_codec: str = ""  #: of the first audio stream, like the next two
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


@lru_cache(maxsize=16)
def has_filter(name: str, ffmpeg: str | None = None) -> bool:
    """Whether this ffmpeg was built with a filter."""
    command = [ffmpeg_binary(ffmpeg), "-hide_banner", "-filters"]
    said = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
    return any(line.split()[1:2] == [name] for line in said.stdout.decode("utf-8", "replace").splitlines())


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
    unindexed = NO_INDEX in header.text or (header.container.startswith("mov,") and not header.streams)
    if unindexed and _has_boxes(file):
        raise InputError(
            f"{what}: {file} is damaged or incomplete: its index (the moov box), without which nothing in it can be "
            "found, is missing or broken",
            hint="the recording or its upload was cut off: send the whole file again",
        )
    if not header.container:
        raise InputError(
            f"{what}: {file} is not a media file that ffmpeg can read ({header.complaint})",
            hint="check that the file is whole and really audio or video",
        )
    sound, picture = next(iter(header.sounds), None), header.picture
    width, height = (picture and picture.size) or (None, None)
    if header.rotation % 180 == 90:
        width, height = height, width
    return Probe(
        path=file,
        duration_s=header.duration_s,
        duration_exact=header.duration_exact,
        has_audio=sound is not None,
        has_video=picture is not None,
        sounds=header.sounds,
        streams=header.streams,
        container=header.container,
        start_s=header.start_s,
        audio_codec=sound.codec if sound else "",
        sample_rate=sound.hertz if sound else None,
        mono=sound is not None and sound.channels == 1,
        video_codec=picture.codec if picture else "",
        width=width,
        height=height,
        fps=picture.fps if picture else None,
    )


def timeline(about: Probe, stream: int = 0) -> Any:
    """One audio stream on the clock of its file, as a node of ffmpeg-python: silence where it has no sound.

    A recording may begin late in its container or have holes, above all when it comes out of a video or a call.
    Players show that as silence; decoders skip it.
    """
    import ffmpeg as builder

    options: dict[str, Any] = {"protocol_whitelist": LOCAL_PROTOCOLS, "threads": 1, "vn": None, "sn": None, "dn": None}
    if about.container == "mpegts":  # whose clock ffmpeg begins with the first stream that it reads
        options["dts_delta_threshold"] = HOLE_S
        if stream < len(about.sounds):
            options["itsoffset"] = f"{max(0.0, about.sounds[stream].start_s - about.start_s):.6f}"
    heard = builder.input(f"file:{about.path}", **options)[f"a:{stream}"]
    return heard.filter("aresample", **{"async": 1, "first_pts": 0})


class AudioStream:
    """One audio stream of a file as blocks of 16 kHz float32, decoded while it is read.

    A context manager and an iterator over blocks that are mixed to mono; memory is constant whatever the length.
    ffmpeg is ended when the stream is closed, when an exception leaves the ``with`` block, and when the object is
    garbage-collected. After the last block ``error`` holds what ffmpeg complained about ("" when it was content), and
    ``failed`` whether it gave up.
    """

    def __init__(
        self, about: Probe, *, stream: int = 0, split: bool = False, block_s: float = BLOCK_S, ffmpeg: str | None = None
    ) -> None:
        self.path = about.path
        self.error = ""
        self.failed = False
        self.samples = 0  #: samples per channel handed out so far
        self.unreadable = 0  #: of them, in all channels: not finite or no sound's, handed out as silence
        sound = about.sounds[stream] if stream < len(about.sounds) else None
        count = (sound and sound.channels) or 1
        placed = sound is not None and not sound.layout.endswith(" channels")
        self.channels = min(count, MOST_CHANNELS) if placed and not split else count
        self._block_bytes = int(block_s * SAMPLE_RATE) * 4 * self.channels
        how = {"format": "f32le", "acodec": "pcm_f32le", "ar": SAMPLE_RATE}
        if self.channels < count or count == 1:
            how["ac"] = self.channels
        arguments = (
            timeline(about, stream)
            .output("pipe:1", **how)
            .global_args("-nostdin", "-hide_banner", "-loglevel", "error")
            .compile(cmd=ffmpeg_binary(ffmpeg))
        )
        self._process = Process(arguments, "read")

    @property
    def position_s(self) -> float:
        """Seconds of sound handed out so far."""
        return self.samples / SAMPLE_RATE

    @property
    def damage(self) -> str:
        """What is to be told of the samples so far; "" when all of them are numbers of a sound."""
        count = self.unreadable
        return f"{count} samples are no numbers of a sound: they were heard as silence" if count else ""

    def __iter__(self) -> Iterator[Samples]:
        return map(mixed, self.blocks())

    def blocks(self) -> Iterator[Samples]:
        """The blocks before they are mixed: shape (samples, channels)."""
        while True:
            data = bytearray(self._block_bytes)
            got = self._process.read_into(memoryview(data))
            whole = got // (4 * self.channels)
            block = np.frombuffer(data, dtype="<f4", count=whole * self.channels).astype(np.float32, copy=False)
            if whole:
                self.samples += whole
                self.unreadable += _silenced(block)
                yield block.reshape(whole, self.channels)
            if got < len(data):
                break
        code = self._process.finish()
        self.failed = code != 0
        if self.failed or self._process.lines:
            self.error = last_line(self._process.lines) or f"ffmpeg ended with exit code {code}"

    def close(self) -> None:
        """End ffmpeg if it still runs; safe to call twice."""
        self._process.close()

    def __enter__(self) -> AudioStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _has_boxes(file: Path) -> bool:
    """Whether a file begins as MP4 and QuickTime do, whatever its name says."""
    with file.open("rb") as stream:
        return stream.read(8)[4:] in BOXES


def _silenced(block: Samples) -> int:
    """Make silent, in place, what is no sound in a block of floats; how many samples it was."""
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(block) <= MOST_SAMPLE)  # NaN compares as wrong, too
    count = int(np.count_nonzero(wrong))
    if count:
        block[wrong] = 0.0
    return count


def decode(path: str | Path, block_s: float = BLOCK_S, ffmpeg: str | None = None) -> AudioStream:
    """Open the first audio stream of a file; see :class:`AudioStream`."""
    return AudioStream(probe(path, ffmpeg=ffmpeg), block_s=block_s, ffmpeg=ffmpeg)


def read_audio(path: str | Path, ffmpeg: str | None = None) -> Samples:
    """The whole sound of a short file as one array (1 hour is 230 MB: use :func:`decode` for recordings)."""
    with decode(path, ffmpeg=ffmpeg) as stream:
        blocks = list(stream)
    if not blocks:
        raise InputError(f"audio: {path} holds no sound that can be decoded ({stream.error})")
    return np.concatenate(blocks)
