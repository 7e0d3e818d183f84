"""Sound in, mouth out: windows of at most 30 s through encoder and head, then silence and closures over the whole.

Memory does not grow with the recording beyond seven numbers per frame: a window is encoded with one second of
what came before and half a second of what comes after it, and only its own part is kept.
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
from inference.articulation.gate import closures, delivered, voicing
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
        level = Level()
        whole = samples if isinstance(samples, np.ndarray) else None
        if whole is not None:
            level.hear(whole)
        blocks = samples if whole is None else [whole]
        outputs, loudness = [], []
        for window, start, count in _windows(iter(blocks)):
            if whole is None:
                level.hear(window[start * FRAME : (start + count) * FRAME])
            outputs.append(self._hear(window * np.float32(level.gain))[start : start + count])
            loudness.append(rms(window[start * FRAME : (start + count) * FRAME]) * np.float32(level.gain))
        give_back()
        table = np.concatenate(outputs) if outputs else np.zeros((0, OUTPUTS), np.float32)
        loud = np.concatenate(loudness) if loudness else np.zeros(0, np.float32)
        return self._finish(table, loud)

    def _hear(self, window: Array) -> Array:
        """(frames, OUTPUTS) for a window of at most 29 s and what lies behind it."""
        frames = -(-len(window) // FRAME)
        total = min(2 * (frames + AFTER), MOST_FRAMES)
        mel = torch.from_numpy(log_mel(window, total, self._encoder.bands))[None].to(self.device)
        with cuda.guarded(str(self.device), f"{len(window) / RATE:.0f} s of sound"):
            layers: list[Tensor] = [layer[0, : 2 * frames] for layer in self._encoder(mel)]
            return np.asarray(self.head(layers).cpu().numpy(), dtype=np.float32)

    def _finish(self, table: Array, loudness: Array) -> Articulation:
        meta = self.head.meta
        voiced = voicing(table[:, SPEECH_LOGIT], loudness)
        closed = closures(table[:, CLOSED], table[:, 0], voiced, meta.close_at)
        rest = np.array([meta.rest[name] for name in CHANNELS], np.float32)
        shown = delivered(table[:, : len(CHANNELS)], voiced, rest)
        channels = {name: shown[:, index].copy() for index, name in enumerate(CHANNELS)}
        return Articulation(channels, closed, voiced, dict(meta.spread), dict(meta.rest), FPS)


def _windows(blocks: Iterator[Array]) -> Iterator[tuple[Array, int, int]]:
    """(samples, first frame to keep, frames to keep) per window; neighbours overlap by past and future."""
    held = np.zeros(0, np.float32)
    start = 0  # frames of the past at the beginning of `held`
    for block in blocks:
        fresh = np.asarray(block, dtype=np.float32)
        held = np.concatenate([held, fresh]) if len(held) else fresh
        while len(held) > (size := (start + WINDOW + FUTURE) * FRAME):
            yield held[:size], start, WINDOW
            held = held[(start + WINDOW - PAST) * FRAME :]
            start = PAST
    rest = -(-len(held) // FRAME) - start
    if rest > 0:
        yield held, start, rest
