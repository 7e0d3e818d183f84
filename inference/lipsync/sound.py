"""The sound of a job: what its file says from time 0 on, once for the analysis and once for the ears.

Both the mouth and the finished file follow the sound as it would be heard: see :func:`inference.media.timeline`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference import media
from inference.audio import Array
from inference.base import InputError
from inference.encode import AAC, AAC_MONO, failure
from inference.ffmpeg import Process

RATES = "44100|48000"  #: Hz; what every player takes
BLOCK = 10 * media.SAMPLE_RATE  #: samples between two looks at cancellation


@dataclass(frozen=True)
class Sound:
    """One job's sound."""

    path: Path  #: the file it is in
    samples: Array  #: (N,) 16 kHz mono
    complaint: str  #: what the decoder said about the file, "" when it was content

    @property
    def seconds(self) -> float:
        """Length of the samples."""
        return len(self.samples) / media.SAMPLE_RATE


def read(audio: Path, limit_s: float, check: Callable[[], None], ffmpeg: str | None = None) -> Sound:
    """The sound of a file; an hour takes 230 MB of memory and about 10 s.

    Raises :class:`InputError` when there is none, or more than ``limit_s`` seconds of it.
    """
    process = Process(
        _heard(audio, ffmpeg)
        .output("pipe:1", format="f32le", acodec="pcm_f32le", ac=1, ar=media.SAMPLE_RATE, t=limit_s + 1)
        .global_args("-nostdin", "-hide_banner", "-loglevel", "error")
        .compile(cmd=media.ffmpeg_binary(ffmpeg)),
        "read",
    )
    blocks: list[Array] = []
    try:
        while not blocks or len(blocks[-1]) == BLOCK:
            check()
            data = bytearray(BLOCK * 4)
            got = process.read_into(memoryview(data))
            blocks.append(np.frombuffer(data, np.float32, count=got // 4))
        code = process.finish(check)
    finally:
        process.close()
    samples = np.concatenate(blocks)
    if code != 0 or len(samples) < media.SAMPLE_RATE // 25:
        raise InputError(
            f"audio: {audio} holds no sound that can be decoded ({process.said or 'it is empty'})",
            hint="check that the file plays",
        )
    if len(samples) > limit_s * media.SAMPLE_RATE:
        raise InputError(
            f"audio: {audio} lasts longer than {limit_s:.0f} s",
            hint="cut it into parts, or raise the option `max_audio_s`",
        )
    return Sound(audio, samples, process.said)


class Track:
    """The sound as the finished file holds it: AAC, encoded beside the picture. A context manager, which ends ffmpeg.

    ``seconds`` is its length: longer sound is cut, shorter is followed by silence.
    """

    def __init__(self, audio: Path, folder: Path, seconds: float, ffmpeg: str | None = None) -> None:
        self._path = folder / "sound.m4a"
        codec = AAC_MONO if media.probe(audio, ffmpeg=ffmpeg).mono else AAC
        arguments = (
            _heard(audio, ffmpeg)
            .filter("apad", whole_dur=f"{seconds:.6f}")
            .output(f"file:{self._path}", format="mp4", t=f"{seconds:.6f}", map_metadata=-1, **codec)
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


def _heard(audio: Path, ffmpeg: str | None) -> Any:
    """The first audio stream as a player lets it be heard: silence where it has none, at a rate that all take."""
    heard = media.timeline(media.probe(audio, ffmpeg=ffmpeg))
    return heard.filter("aformat", sample_rates=RATES, channel_layouts="mono|stereo", sample_fmts="fltp")
