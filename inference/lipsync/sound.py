"""The sound of a job: what its file says from time 0 on, once for the analysis and once for the ears.

Both the mouth and the finished file follow the sound as it would be heard: see :func:`inference.media.timeline`. Of
several streams it is the one that ``transcribe`` hears: see :mod:`inference.streams`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference import media
from inference.audio import Array, FullScale
from inference.base import InputError
from inference.encode import AAC, AAC_MONO, failure
from inference.ffmpeg import Process
from inference.live import both, early
from inference.streams import audible

RATES = "44100|48000"  #: Hz; what every player takes
LEAST_S = 0.04  #: less than a frame of a video is no sound


@dataclass(frozen=True)
class Sound:
    """One job's sound."""

    path: Path  #: the file it is in
    stream: int  #: which of its audio streams, from 0 on
    samples: Array  #: (N,) 16 kHz mono
    factor: float | None  #: of its samples, where some are no sound or beyond full scale; None: it is heard as it is
    notes: tuple[str, ...]  #: which stream was chosen, what the decoder said about the file, and what of it is no sound

    @property
    def seconds(self) -> float:
        """Length of the samples."""
        return len(self.samples) / media.SAMPLE_RATE


def read(audio: Path, limit_s: float, check: Callable[[], None], ffmpeg: str | None = None) -> Sound:
    """The sound of a file; an hour takes 230 MB of memory and about 10 s.

    Raises :class:`InputError` when there is none, or more than ``limit_s`` seconds of it.
    """
    about = media.probe(audio, ffmpeg=ffmpeg)
    choice = audible(about, check, ffmpeg)
    blocks: list[Array] = []
    scale = FullScale()
    with media.AudioStream(about, stream=choice.stream, ffmpeg=ffmpeg) as heard:
        for block in heard:
            check()
            blocks.append(scale(block))
            if heard.position_s > limit_s:
                raise InputError(
                    f"audio: {audio} lasts longer than {limit_s:.0f} s",
                    hint="cut it into parts, or raise the option `max_audio_s`",
                )
    if heard.failed or heard.position_s < LEAST_S:
        raise InputError(
            f"audio: {audio} holds no sound that can be decoded ({heard.error or 'it is empty'})",
            hint="check that the file plays",
        )
    notes = tuple(filter(None, (choice.told, heard.error, heard.damage, scale.told)))
    factor = scale.factor if heard.damage or scale.beyond else None
    return Sound(audio, choice.stream, np.concatenate(blocks), factor, notes)


class Track:
    """The sound as the finished file holds it: AAC, encoded beside the picture. A context manager, which ends ffmpeg.

    ``seconds`` is its length: longer sound is cut, shorter is followed by silence. ``growing``: the same is written to
    ``early``, too, in fragments that can be read at once (:mod:`inference.live`).
    """

    def __init__(
        self,
        said: Sound,
        folder: Path,
        seconds: float,
        ffmpeg: str | None = None,
        *,
        growing: bool = False,
    ) -> None:
        self._path = folder / "sound.m4a"
        self.early = early(self._path)
        about = media.probe(said.path, ffmpeg=ffmpeg)
        codec = AAC_MONO if said.stream < len(about.sounds) and about.sounds[said.stream].channels == 1 else AAC
        where = both(self._path, "") if growing else {"filename": f"file:{self._path}", "format": "mp4"}
        arguments = (
            _heard(about, said)
            .filter("apad", whole_dur=f"{seconds:.6f}")
            .output(**where, t=f"{seconds:.6f}", map_metadata=-1, **codec)
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


def _heard(about: media.Probe, said: Sound) -> Any:
    """One audio stream as a player lets it be heard: silence where it has none, at a rate that all take."""
    heard = media.timeline(about, said.stream)
    if said.factor is not None:  # what is no number would end the encoder
        sound = f"clip(val(ch)*{said.factor:.9g},-1,1)"
        heard = heard.filter("aeval", f"if(lte(abs(val(ch)),{media.MOST_SAMPLE:.9g}),{sound},0)", channel_layout="same")
    return heard.filter("aformat", sample_rates=RATES, channel_layouts="mono|stereo", sample_fmts="fltp")
