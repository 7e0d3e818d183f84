"""From clips to training examples: encoder features of every clip in several disguises, targets, non-speech.

Every clip is encoded as it is and in disguises: elsewhere in Whisper's 30 s, with a longer or shorter vocal tract
(spectrum warped), in noise. Nobody talks in the non-speech examples (silence, noises, hums, chords, clicks); they teach
the head when to rest. Features are cached as float16 (3 kB per 20 ms).
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from inference import weights
from inference.articulation.clips import Clip
from inference.articulation.encoder import MOST_FRAMES, RATE, WhisperEncoder, frames_of, log_mel
from inference.articulation.sound import TARGET, levelled
from inference.audio import Array
from inference.vad import CONTEXT, FRAME, SileroModel

RECIPE = "features-1"  #: part of the cached files' names: raise it when the features change
PLAIN = "plain"
AFTER = 50  #: encoder frames of silence behind a clip (1 s)
MOST_OFTEN = 14  #: clips of one person that are disguised as well; further ones are only taken plain
TOGETHER = 0.02  #: opening in eye distances below which lips touch …
CLOSEST = 0.012  #: … or so near to the smallest of the clip
SPEECH = 0.5  #: probability from which somebody speaks


@dataclass(frozen=True)
class Disguise:
    """How a clip is changed before it is encoded."""

    name: str
    moved: bool = False  #: to a random place in the 30 s
    warp: float = 1.0  #: of the spectrum
    noise: bool = False


DISGUISES = (
    Disguise(PLAIN),
    Disguise("moved", moved=True),
    Disguise("longer", moved=True, warp=0.9),
    Disguise("shorter", moved=True, warp=1.12),
    Disguise("noisy", moved=True, noise=True),
)


@dataclass(frozen=True, eq=False)
class Targets:
    """What a head should say about one clip, T frames, in the clip's own time."""

    channels: Array  #: (T, 5) in standard deviations of the person while speaking
    known: NDArray[np.bool_]  #: (T,) where the mouth can be believed
    together: NDArray[np.bool_]  #: (T,) the lips touch
    mean: Array  #: (5,) eye distances
    deviation: Array  #: (5,)


@dataclass(frozen=True, eq=False)
class Example:
    """One clip in one disguise."""

    clip: int  #: its number; -1 for sounds that are no speech
    speaker: str
    disguise: str
    layers: NDArray[np.float16]  #: (n, layers, width), 50 per second
    speech: Array  #: (n,) probability that somebody speaks


class Listener:
    """Encodes sounds, with a cache on disk."""

    def __init__(self, encoder: Callable[[], WhisperEncoder], layers: tuple[int, ...], key: str, cache: Path) -> None:
        self._make = encoder
        self._encoder: WhisperEncoder | None = None
        self._cache = cache
        self._key = hashlib.sha256(f"{RECIPE} {key} {layers}".encode()).hexdigest()[:8]
        self._vad: SileroModel | None = None
        cache.mkdir(parents=True, exist_ok=True)

    def listen(self, name: str, samples: Array, position: int = 0, warp: float = 1.0) -> NDArray[np.float16]:
        """(n, layers, width) of a sound; ``name`` tells apart what is cached."""
        path = self._cache / f"{name}-{self._key}.npy"
        if path.exists():
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.float16)
        if self._encoder is None:
            self._encoder = self._make()
        count = frames_of(len(samples))
        mel = torch.from_numpy(log_mel(samples, count + AFTER, self._encoder.bands, warp))[None]
        layers = [layer[0, :count].numpy() for layer in self._encoder(mel, position)]
        found = np.stack(layers, axis=1).astype(np.float16)
        with path.with_suffix(".part").open("wb") as file:
            np.save(file, found)
        os.replace(path.with_suffix(".part"), path)
        return found

    def speech(self, samples: Array) -> Array:
        """(n,) probability of speech per 20 ms, by silero-vad."""
        if self._vad is None:
            self._vad = SileroModel(weights.find("silero-vad/silero_vad_16k_sequence.onnx"))
        count = -(-len(samples) // FRAME)
        padded = np.zeros(CONTEXT + count * FRAME, np.float32)
        padded[CONTEXT : CONTEXT + len(samples)] = samples
        frames = np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME]
        state = np.zeros((1, 1, 128), np.float32)
        found, _, _ = self._vad.run(np.ascontiguousarray(frames), state, state.copy())
        middles = (np.arange(count) + 0.5) * FRAME / RATE
        return np.interp((np.arange(frames_of(len(samples))) + 0.5) / 50, middles, found).astype(np.float32)


def make_examples(
    clips: Sequence[Clip], listener: Listener, say: Callable[[str], None] = lambda line: None
) -> list[Example]:
    """Every clip plain and disguised."""
    made = []
    often: dict[str, int] = {}
    for number, clip in enumerate(clips):
        often[clip.speaker] = often.get(clip.speaker, 0) + 1
        sound = levelled(clip.samples)
        speech = listener.speech(sound)
        for disguise in DISGUISES if often[clip.speaker] <= MOST_OFTEN else DISGUISES[:1]:
            rng = np.random.default_rng(zlib.crc32(f"{clip.digest} {disguise.name}".encode()))
            room = MOST_FRAMES - frames_of(len(sound)) - AFTER
            position = int(rng.integers(0, room)) if disguise.moved else 0
            heard = _in_noise(sound, rng) if disguise.noise else sound
            name = f"{clip.digest[:16]}-{disguise.name}"
            layers = listener.listen(name, heard, position, disguise.warp)
            made.append(Example(number, clip.speaker, disguise.name, layers, speech))
        say(f"{clip.name}: {clip.speaker}, {len(clip.mouth)} frames")
    return made


def silences(listener: Listener) -> list[Example]:
    """Sounds in which nobody speaks."""
    made = []
    for name, sound in _no_speech(np.random.default_rng(7)):
        layers = listener.listen(f"no-speech-{name}", sound, position=200)
        made.append(Example(-1, "", name, layers, np.zeros(len(layers), np.float32)))
    return made


def targets(clip: Clip, speech: Array) -> Targets:
    """Channels counted from the person's mean while speaking, in standard deviations while speaking."""
    known = clip.usable
    speaking = known & _widened(_per_frame(speech, len(known)) > SPEECH, 2)
    chosen = clip.mouth[speaking if speaking.sum() > 25 else known]
    mean, deviation = chosen.mean(axis=0), chosen.std(axis=0) + 1e-6
    channels = np.where(known[:, None], (clip.mouth - mean) / deviation, 0.0)
    opening = clip.mouth[:, 0]
    with np.errstate(invalid="ignore"):
        together = opening < max(TOGETHER, float(np.nanmin(opening[known])) + CLOSEST)
    return Targets(
        np.clip(channels, -4.0, 4.0).astype(np.float32),
        known,
        np.asarray(together & known, np.bool_),
        mean.astype(np.float32),
        deviation.astype(np.float32),
    )


def _per_frame(values: Array, count: int) -> Array:
    """(n,) at 50 per second → (count,) at 25, the last one repeated."""
    pairs = values[: len(values) // 2 * 2].reshape(-1, 2).mean(axis=1)
    return np.pad(pairs, (0, max(0, count - len(pairs))), mode="edge")[:count]


def _widened(flags: NDArray[np.bool_], frames: int) -> NDArray[np.bool_]:
    return np.asarray(np.convolve(flags, np.ones(2 * frames + 1), mode="same") > 0, np.bool_)


def _in_noise(sound: Array, rng: np.random.Generator) -> Array:
    """10 to 25 dB above white or pink noise."""
    noise = _coloured(len(sound), float(rng.choice([0.0, 1.0])), rng)
    return np.asarray(sound + noise * TARGET * 10.0 ** (-rng.uniform(10.0, 25.0) / 20.0), dtype=np.float32)


def _coloured(count: int, slope: float, rng: np.random.Generator) -> Array:
    """Noise of unit deviation whose power falls with frequency to the power of ``slope``."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    hertz = np.maximum(np.arange(len(spectrum)) * RATE / count, 50.0)
    shaped = np.fft.irfft(spectrum / hertz ** (slope / 2), count)
    return np.asarray(shaped / shaped.std(), dtype=np.float32)


def _no_speech(rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    count = 8 * RATE
    time = np.arange(count) / RATE
    yield "nothing", np.zeros(count, np.float32)
    for slope in (0.0, 1.0, 2.0):
        for decibels in (-45.0, -20.0):
            yield f"noise{slope:g}{decibels:g}", _coloured(count, slope, rng) * np.float32(10.0 ** (decibels / 20.0))
    for hertz in (50.0, 120.0, 440.0):
        parts = [np.sin(2 * np.pi * hertz * part * time + part) / part for part in range(1, 8)]
        hum = np.sum(parts, axis=0)
        yield f"hum{hertz:g}", (0.06 * hum).astype(np.float32)
    for tempo in (0.25, 0.5):
        music = np.zeros(count)
        for begin in np.arange(0.0, 8.0, tempo):
            since = np.maximum(time - begin, 0.0)
            envelope = np.where(time >= begin, np.exp(-since * 4.0), 0.0)
            for note in rng.choice([0, 3, 4, 7, 9, 12, 16], 3, replace=False):
                pitch = 130.8 * 2.0 ** (note / 12.0)
                music += envelope * sum(np.sin(2 * np.pi * pitch * k * since) / k for k in range(1, 6))
        yield f"music{tempo:g}", (0.1 * music / music.std()).astype(np.float32)
    clicks = np.zeros(count)
    for begin in rng.integers(0, count - 800, 24):
        clicks[begin : begin + 800] += rng.standard_normal(800) * np.exp(-np.arange(800) / 120.0)
    yield "clicks", (0.3 * clicks).astype(np.float32)
