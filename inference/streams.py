"""Which of the audio streams of a file is heard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from inference import media
from inference.audio import SILENCE_DBFS


@dataclass(frozen=True)
class Choice:
    """One of the streams, and why."""

    stream: int  #: from 0 on
    told: str  #: "" when there was nothing to choose


def audible(about: media.Probe, check: Callable[[], None], ffmpeg: str | None = None) -> Choice:
    """The stream that is marked default, or else the first, with sound in it; reads each up to its first sound."""
    sounds = about.sounds
    order = sorted(range(len(sounds)), key=lambda index: not sounds[index].default)
    if len(order) < 2:
        return Choice(0, "")
    heard = next((index for index in order if _sounds(about, index, check, ffmpeg)), order[0])
    passed = [f"{index} is silent" for index in order[: order.index(heard)]]
    named = sounds[heard].language.replace("und", "")
    about_it = ", ".join(note for note in (named, "default" * sounds[heard].default) if note)
    return Choice(
        heard,
        f"the file has {len(order)} audio streams: {heard}{about_it and f' ({about_it})'} was heard"
        f"{''.join(f', {note}' for note in passed)}",
    )


def _sounds(about: media.Probe, index: int, check: Callable[[], None], ffmpeg: str | None) -> bool:
    """Whether there is anything to hear in a stream."""
    with media.AudioStream(about, stream=index, ffmpeg=ffmpeg) as stream:
        for block in stream.blocks():
            check()
            if np.max(np.abs(block)) >= 10 ** (SILENCE_DBFS / 20):
                return True
    return False
