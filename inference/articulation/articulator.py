"""Sound in, mouth out: windows of at most 30 s through encoder and head, then silence and closures over the whole.

Memory does not grow with the recording beyond seven numbers per frame: a window is encoded with one second of
what came before and half a second of what comes after it, and only its own part is kept. The first window is a short
one, so that who waits for the first words waits for no more than these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inference import cuda
from inference.articulation.curve import CHANNELS, FPS, Articulation, head_path
from inference.articulation.encoder import MOST_FRAMES, RATE, STEP, WhisperEncoder, load_encoder, log_mel
from inference.articulation.gate import REACH, closures, delivered, voicing
from inference.articulation.head import CLOSED, OUTPUTS, SPEECH_LOGIT, Head
from inference.articulation.sound import Level, rms
from inference.audio import Array
from inference.base import EngineError
from inference.memory import give_back

FRAME = 2 * STEP  #: samples per frame of the result (40 ms)
PAST = 25  #: frames before a window that are encoded with it (1 s)
FUTURE = 12  #: and after it (0.48 s)
AFTER = 25  #: frames of silence behind the last one
WINDOW = MOST_FRAMES // 2 - PAST - AFTER  #: frames kept per window (28 s); its future lies inside AFTER
FIRST = 200  #: of the first one (8 s); the second one begins where it began and keeps the rest of WINDOW


class Articulator:
    """Encoder and head, loaded once (60 MB). Jobs may share it, one at a time each."""

    def __init__(self, whisper: str | Path, head: str | Path | None = None, *, device: str = "cpu") -> None:
        """``whisper`` is the folder of a Whisper base model as faster-whisper uses it."""
        cuda.require(device)
        self.device = torch.device(device)
        self.head = Head.load(Path(head) if head is not None else head_path()).to(self.device)
        meta = self.head.meta
        self._encoder: WhisperEncoder = load_encoder(Path(whisper), meta.layers).to(self.device)
        if self._encoder.width != meta.width:
            raise EngineError(
                f"{whisper}: an encoder {self._encoder.width} wide, but the head was made for one of {meta.width}",
                hint="name the folder of a Whisper base model in the option `whisper`",
            )

    def curve(self, samples: Array | Iterable[Array]) -> Articulation:
        """The mouth for 16 kHz mono float32 sound in -1 … 1: ceil(samples / 640) frames.

        Takes an array, or blocks of any size as they come from a decoder. The level is that of the whole array;
        of blocks, that of everything heard so far and half a minute ahead.
        """
        heard = self.listen(samples)
        while heard.more():
            pass
        give_back()
        return heard.articulation()

    def listen(self, samples: Array | Iterable[Array]) -> Listening:
        """The same, window after window, as it is asked for."""
        return Listening(self, samples)

    def hear(self, window: Array) -> Array:
        """(frames, OUTPUTS) for a window of at most 29 s and what lies behind it."""
        frames = -(-len(window) // FRAME)
        total = min(2 * (frames + AFTER), MOST_FRAMES)
        mel = torch.from_numpy(log_mel(window, total, self._encoder.bands))[None].to(self.device)
        with cuda.guarded(str(self.device), f"{len(window) / RATE:.0f} s of sound"):
            layers: list[Tensor] = [layer[0, : 2 * frames] for layer in self._encoder(mel)]
            return np.asarray(self.head(layers).cpu().numpy(), dtype=np.float32)


class Listening:
    """A recording that is heard window after window. For one thread at a time."""

    def __init__(self, articulator: Articulator, samples: Array | Iterable[Array]) -> None:
        self._articulator, self._level = articulator, Level()
        self._whole = isinstance(samples, np.ndarray)
        if isinstance(samples, np.ndarray):
            self._level.hear(samples)
            samples = [samples]
        self._windows = _windows(iter(samples))
        self._outputs: list[Array] = []
        self._loudness: list[Array] = []
        self._frames, self._ended = 0, False

    @property
    def settled(self) -> int | None:
        """Frames from the first on that no later sound can change; None when all was heard."""
        return None if self._ended else max(0, self._frames - REACH)

    def more(self) -> bool:
        """Hear the next window; False when there was none."""
        heard = next(self._windows, None)
        if heard is None:
            self._ended = True
            return False
        window, start, count = heard
        own = window[start * FRAME : (start + count) * FRAME]
        if not self._whole:
            self._level.hear(own)
        gain = np.float32(self._level.gain)
        self._outputs.append(self._articulator.hear(window * gain)[start : start + count])
        self._loudness.append(rms(own) * gain)
        self._frames += count
        return True

    def articulation(self) -> Articulation:
        """What was heard so far; of its frames those count that are settled."""
        meta = self._articulator.head.meta
        table = np.concatenate(self._outputs) if self._outputs else np.zeros((0, OUTPUTS), np.float32)
        loudness = np.concatenate(self._loudness) if self._loudness else np.zeros(0, np.float32)
        voiced = voicing(table[:, SPEECH_LOGIT], loudness)
        closed = closures(table[:, CLOSED], table[:, 0], voiced, meta.close_at)
        rest = np.array([meta.rest[name] for name in CHANNELS], np.float32)
        shown = delivered(table[:, : len(CHANNELS)], voiced, rest)
        channels = {name: shown[:, index].copy() for index, name in enumerate(CHANNELS)}
        return Articulation(channels, closed, voiced, dict(meta.spread), dict(meta.rest), FPS)


def _windows(blocks: Iterator[Array]) -> Iterator[tuple[Array, int, int]]:
    """(samples, first frame to keep, frames to keep) per window; neighbours overlap by past and future."""
    held = np.zeros(0, np.float32)
    start, kept = 0, FIRST  # frames of the past at the beginning of `held`, and of the window behind them
    begun = False
    for block in blocks:
        fresh = np.asarray(block, dtype=np.float32)
        held = np.concatenate([held, fresh]) if len(held) else fresh
        while len(held) > (size := (start + kept + FUTURE) * FRAME):
            yield held[:size], start, kept
            if not begun:
                begun, start, kept = True, FIRST, WINDOW - FIRST
                continue
            held = held[(start + kept - PAST) * FRAME :]
            start, kept = PAST, WINDOW
    rest = -(-len(held) // FRAME) - start
    if rest > 0:
        yield held, start, rest
