"""The sound of a job: what its file says from time 0 on, once for the ears and once for the analysis.

A recording may begin late in its container or have gaps, above all when it comes out of a video. Players show
that as silence, decoders skip it. So the sound is first written out as it would be heard, and both the mouth
and the finished file follow that copy: they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inference import media
from inference.audio import Array
from inference.base import InputError, ResourceError
from inference.encode import AAC, failure
from inference.ffmpeg import Process

RATES = "44100|48000"  #: Hz; what every player takes


@dataclass(frozen=True)
class Sound:
    """One job's sound."""

    path: Path  #: FLAC, mono or stereo
    samples: Array  #: (N,) 16 kHz mono
    complaint: str  #: what the decoder said about the file, "" when it was content

    @property
    def seconds(self) -> float:
        return len(self.samples) / media.SAMPLE_RATE


def prepare(audio: Path, folder: Path, limit_s: float, check: Callable[[], None], ffmpeg: str | None = None) -> Sound:
    """Write the sound of ``audio`` into ``folder`` and read it; an hour takes 230 MB of memory and about 10 s.

    Raises :class:`InputError` when there is none, or more than ``limit_s`` seconds of it.
    """
    import ffmpeg as builder

    path = folder / "sound.flac"
    options = {"protocol_whitelist": media.LOCAL_PROTOCOLS, "threads": 1, "vn": None, "sn": None, "dn": None}
    arguments = (
        builder.input(f"file:{audio}", **options)["a:0"]
        .filter("aresample", **{"async": 1, "first_pts": 0})
        .filter("aformat", sample_rates=RATES, channel_layouts="mono|stereo", sample_fmts="s16")
        .output(f"file:{path}", acodec="flac", compression_level=0, t=limit_s + 1, map_metadata=-1)
        .global_args("-nostdin", "-hide_banner", "-loglevel", "error", "-y")
        .compile(cmd=media.ffmpeg_binary(ffmpeg))
    )
    process = Process(arguments, "wait")
    try:
        code = process.finish(check)
    finally:
        process.close()
    if "No space left" in process.said:
        raise ResourceError(f"disk full while reading {audio}", hint="make room in the spool and try again")
    if code != 0 or not path.is_file() or not path.stat().st_size:
        raise InputError(
            f"audio: {audio} holds no sound that can be decoded ({process.said or 'no reason given'})",
            hint="check that the file plays",
        )
    blocks = []
    with media.decode(path, ffmpeg=ffmpeg) as stream:
        for block in stream:
            check()
            blocks.append(block)
    samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if len(samples) < media.SAMPLE_RATE // 25:
        raise InputError(f"audio: {audio} holds no sound that can be decoded ({process.said or 'it is empty'})")
    if len(samples) > limit_s * media.SAMPLE_RATE:
        raise InputError(
            f"audio: {audio} lasts longer than {limit_s:.0f} s",
            hint="cut it into parts, or raise the option `max_audio_s`",
        )
    return Sound(path, samples, process.said)


class Track:
    """The sound as the finished file holds it: AAC, encoded beside the picture. A context manager, which ends ffmpeg.

    ``seconds`` is its length: longer sound is cut, shorter is followed by silence.
    """

    def __init__(self, sound: Path, folder: Path, seconds: float, ffmpeg: str | None = None) -> None:
        import ffmpeg as builder

        self._path = folder / "sound.m4a"
        arguments = (
            builder.input(f"file:{sound}", protocol_whitelist=media.LOCAL_PROTOCOLS)["a:0"]
            .filter("apad", whole_dur=f"{seconds:.6f}")
            .output(f"file:{self._path}", format="mp4", t=f"{seconds:.6f}", map_metadata=-1, **AAC)
            .global_args("-nostdin", "-hide_banner", "-loglevel", "error", "-y")
            .compile(cmd=media.ffmpeg_binary(ffmpeg))
        )
        self._process = Process(arguments, "wait")

    def finish(self, check: Callable[[], None]) -> Path:
        """Wait for the end; the file, whole. :class:`EngineError` with ffmpeg's own words when it failed."""
        if self._process.finish(check) != 0:
            raise failure(self._process, f"the sound as {self._path.name}")
        return self._path

    def __enter__(self) -> Track:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.close()
