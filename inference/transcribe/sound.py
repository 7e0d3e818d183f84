"""The sound of a job as its recogniser hears it: which stream, which channels, how loud."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from inference import media, ogg
from inference.audio import SILENCE_DBFS, Array, FullScale, level_dbfs, mixed
from inference.base import InputError
from inference.streams import audible
from inference.transcribe.crosstalk import LOUDER_DB, Crosstalk
from inference.transcribe.params import Params

FRAME_S = 0.5  #: what levels are measured over
QUIET_DBFS = -40.0  #: sound whose loudest half second is below this is made louder …
TARGET_DBFS = -26.0  #: … up to this …
MOST_DB = 50.0  #: … by no more than this
FADE_DB = 1.0  #: per block; how soon what was loud is forgotten

ACTIVE_DBFS = -50.0  #: louder half seconds tell how alike the channels are
APART_DB = 12.0  #: one person at one microphone is this much louder there than at the other's
APART_SHARE = 0.1  #: of the active half seconds, for each of two channels
UNLIKE = 0.05  #: correlation below which two channels hear different things; two microphones in a room are above
SAME = 0.98  #: … and above which they hear the same
LEAST_FRAMES = 4  #: active half seconds before anything is said about the channels

TRUNCATED_S = 1.0  #: this much less sound than the header promises is worth a warning
TRUNCATED_SHARE = 0.02


class Sound:
    """One recording as blocks of sound, one array per channel that is heard. A context manager.

    ``channels`` is 1, or with ``channels="split"`` what the stream has. After the last block ``warnings`` holds all
    there is to tell about the file.
    """

    def __init__(self, about: media.Probe, job: Params, ffmpeg: str | None, check: Callable[[], None]) -> None:
        self.about = about
        self.warnings: list[str] = []
        self._stream = job.stream if job.stream is not None else self._chosen(ffmpeg, check)
        split = job.channels == "split"
        if split and about.sounds[self._stream].channels == 1:
            raise InputError(
                f"channels: the sound of {about.path} has one channel, there is nothing to split",
                hint="leave `channels` out",
            )
        self._decoded = media.AudioStream(about, stream=self._stream, split=split, ffmpeg=ffmpeg)
        self._split = split and self._decoded.channels > 1
        self.channels = self._decoded.channels if self._split else 1
        self._scale = FullScale()
        self._gains = [Gain() for _ in range(self.channels)]
        self._likeness = Likeness()
        self.crosstalk = Crosstalk(self.channels) if self._split else None  #: knows every block that was handed out

    @property
    def position_s(self) -> float:
        """Seconds of sound handed out so far."""
        return self._decoded.position_s

    @property
    def peak(self) -> float:
        """Largest sample so far, before anything is made louder."""
        return self._scale.peak

    def __iter__(self) -> Iterator[list[Array]]:
        cancelled = 0
        for block in self._decoded.blocks():
            block = self._scale(block)
            self._likeness.hear(block)
            if self.crosstalk is not None:
                self.crosstalk.hear(block)
            if self._split:
                heard = [np.ascontiguousarray(channel) for channel in block.T]
            else:
                heard = [mixed(block)]
                cancelled += block.shape[1] > 1 and level_dbfs(heard[0]) > level_dbfs(block.mean(axis=1)) + APART_DB
            yield [gain(channel) for gain, channel in zip(self._gains, heard, strict=True)]
        self._tell(bool(cancelled))

    def close(self) -> None:
        """End ffmpeg if it still runs; safe to call twice."""
        self._decoded.close()

    def __enter__(self) -> Sound:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _chosen(self, ffmpeg: str | None, check: Callable[[], None]) -> int:
        """The stream to hear, where the job names none."""
        choice = audible(self.about, check, ffmpeg)
        if choice.told:
            self.warnings.append(f"{choice.told}; `stream` chooses another")
        return choice.stream

    def _tell(self, cancelled: bool) -> None:
        got, error, path = self.position_s, self._decoded.error, self.about.path
        if got == 0:
            raise InputError(f"audio: {path} holds no sound that can be decoded ({error or 'the stream is empty'})")
        # With several streams the header tells the length of the longest, which the sound need not be.
        promised = self.about.duration_s if self.about.duration_exact and self.about.streams == 1 else None
        if promised is not None and promised - got > max(TRUNCATED_S, promised * TRUNCATED_SHARE):
            self.warnings.append(f"the file is truncated: {got:.1f} s of {promised:.1f} s could be decoded")
        elif error:
            self.warnings.append(f"the file is damaged or truncated ({error}): {got:.1f} s were decoded")
        elif self.about.container == "ogg" and not ogg.ended(path):
            self.warnings.append(f"the file may be truncated, it has no end: {got:.1f} s were decoded")
        self._tell_levels(cancelled)

    def _tell_levels(self, cancelled: bool) -> None:
        if self._decoded.damage:
            self.warnings.append(self._decoded.damage)
        if self._scale.told:
            self.warnings.append(self._scale.told)
        if cancelled:
            self.warnings.append("the channels cancel each other, one is upside down: the louder one alone was heard")
        loudest = max(gain.loudest for gain in self._gains)
        if loudest < QUIET_DBFS and self.peak >= 10 ** (SILENCE_DBFS / 20):
            raised = min(MOST_DB, TARGET_DBFS - loudest)
            self.warnings.append(f"the recording is quiet ({loudest:.0f} dBFS): it was heard {raised:.0f} dB louder")
        if self._split and self._likeness.same:
            self.warnings.append("the channels hold the same sound, so everything is said twice: leave `channels` out")
        elif not self._split and self._likeness.apart and not cancelled:
            self.warnings.append('the channels hold different voices: channels="split" hears each by itself')


class Gain:
    """Makes quiet sound louder, block by block; what is loud enough is left as it is."""

    def __init__(self) -> None:
        self.loudest = float("-inf")  #: dBFS, of any half second so far
        self._level = float("-inf")
        self._factor = 1.0

    def __call__(self, block: Array) -> Array:
        """The block, louder when it and what came before it are quiet."""
        now = max(level_dbfs(part) for part in _frames(block))
        self.loudest = max(self.loudest, now)
        self._level = max(now, self._level - FADE_DB)
        before = self._factor
        raised = np.isfinite(self._level) and self._level < QUIET_DBFS
        self._factor = 10 ** (min(MOST_DB, TARGET_DBFS - self._level) / 20) if raised else 1.0
        if before == self._factor == 1.0:
            return block
        ramp = np.full(len(block), self._factor, np.float32)
        if np.isfinite(now):
            turn = min(len(block), int(0.05 * media.SAMPLE_RATE))
            ramp[:turn] = np.linspace(before, self._factor, turn)
        return np.asarray(np.clip(block * ramp, -1.0, 1.0), dtype=np.float32)


class Likeness:
    """How alike the channels of a recording are: one room, or one person each."""

    def __init__(self) -> None:
        self._levels: list[list[float]] = []  # dBFS of both, per active half second
        self._correlations: list[float] = []

    def hear(self, block: Array) -> None:
        """Take the next (samples, channels); only what has two channels is judged."""
        if block.shape[1] != 2:
            return
        for part in _frames(block):
            levels = [level_dbfs(channel) for channel in part.T]
            if max(levels) < ACTIVE_DBFS:
                continue
            self._levels.append(levels)
            power = np.sqrt(np.prod(np.sum(np.square(part, dtype=np.float64), axis=0)))
            self._correlations.append(abs(float(part[:, 0] @ part[:, 1])) / float(power) if power else 0.0)

    @property
    def apart(self) -> bool:
        """Whether each of two channels has somebody of its own."""
        if len(self._levels) < LEAST_FRAMES:
            return False
        levels = np.array(self._levels)
        alone = np.mean([levels[:, 0] - levels[:, 1] >= APART_DB, levels[:, 1] - levels[:, 0] >= APART_DB], axis=1)
        active = np.mean(levels >= ACTIVE_DBFS, axis=0)
        unlike = float(np.median(self._correlations)) < UNLIKE
        return bool(min(alone) >= APART_SHARE or (unlike and min(active) >= APART_SHARE))

    @property
    def same(self) -> bool:
        """Whether both channels hold one sound, and neither is so much quieter that the other one stands for it."""
        if len(self._levels) < LEAST_FRAMES or float(np.median(self._correlations)) <= SAME:
            return False
        return float(np.median(np.abs(np.diff(self._levels)))) < LOUDER_DB


def _frames(block: Array) -> list[Array]:
    step = int(FRAME_S * media.SAMPLE_RATE)
    return [block[at : at + step] for at in range(0, len(block), step)]
