"""Recordings of several people with exact truth, made from recordings of one person each.

Persons come from a folder of any shape: the name of a file up to the first ``-`` or ``_`` is the person, as in
LibriSpeech (``1034-121119-0000.flac``) and VCTK (``p225_003.wav``). They are dealt into two halves by a digest of that
name, so that what is chosen on one half can be measured on the other. The same seed gives the same recordings.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference import media
from inference.audio import Array, level_dbfs, mel_filters, mel_spectrogram

RATE = media.SAMPLE_RATE
LEVEL_DBFS = -26.0  #: of each person before anything else happens
LEAST_S = 6.0  #: a person with less speech is left out
QUIET_DB = 35.0  #: below the loudest 10 ms: nobody speaks
PAUSE_S = 0.3  #: shorter pauses belong to a turn
HOP = 160
FADE = 80  #: samples faded in and out of a turn
BANDS = 24


class Half(str, Enum):
    """Which persons."""

    TUNING = "tuning"
    HELD_OUT = "held-out"


@dataclass(frozen=True)
class Turn:
    """One person speaks, in seconds."""

    start: float
    end: float
    person: str


@dataclass(frozen=True)
class Dialogue:
    """A recording and who speaks when in it."""

    name: str
    kind: str
    samples: Array
    turns: tuple[Turn, ...]

    @property
    def people(self) -> int:
        """How many speak."""
        return len({turn.person for turn in self.turns})

    def rttm(self) -> str:
        """The turns in NIST's format."""
        lines = [
            f"SPEAKER {self.name} 1 {turn.start:.3f} {turn.end - turn.start:.3f} <NA> <NA> {turn.person} <NA> <NA>\n"
            for turn in self.turns
        ]
        return "".join(lines)


@dataclass(frozen=True)
class Person:
    """Everything there is of one person, pauses at the ends of files cut off."""

    name: str
    samples: Array
    spectrum: Array  #: mean log energy in ``BANDS`` mel bands: the voice, and the room it was recorded in


def read_people(folder: Path, half: Half) -> list[Person]:
    """The persons of one half, in order of name; ValueError where the folder holds fewer than ten."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".flac", ".wav", ".opus", ".mp3"):
            files.setdefault(re.split("[-_]", path.stem)[0], []).append(path)
    chosen = sorted(name for name in files if half_of(name) is half)
    filters = mel_filters(RATE, 512, BANDS)
    people = []
    for name in chosen:
        samples = np.concatenate([_trimmed(media.read_audio(path)) for path in files[name]])
        if len(samples) >= LEAST_S * RATE:
            even = levelled(samples)
            mels = mel_spectrogram(even, filters, 512, 320)
            people.append(Person(name, even, np.log(mels + 1e-6).mean(axis=0).astype(np.float32)))
    if len(people) < 10:
        raise ValueError(
            f"{folder} has {len(people)} persons of {LEAST_S:.0f} s or more in the {half.value} half; 10 is few"
        )
    return people


def half_of(name: str) -> Half:
    """The half that a person belongs to, whatever other persons there are."""
    return (Half.TUNING, Half.HELD_OUT)[hashlib.sha256(name.encode()).digest()[0] & 1]


def make(people: Sequence[Person], kind: str, number: int, seed: int) -> Dialogue:
    """One recording of a kind of :data:`KINDS`."""
    rng = np.random.default_rng([seed, number, int.from_bytes(kind.encode(), "big") % 2**32])
    return KINDS[kind](people, f"{kind}-{number:02d}", rng)


def all_kinds(people: Sequence[Person], each: int, seed: int) -> Iterator[Dialogue]:
    """``each`` recordings of every kind."""
    for kind in KINDS:
        for number in range(each):
            yield make(people, kind, number, seed)


def _plain(people: Sequence[Person], name: str, rng: np.random.Generator) -> Dialogue:
    """Two to eight people, each with the microphone that they were recorded with."""
    return _talk(_some(people, int(rng.integers(2, 9)), rng), name, rng)


def _room(people: Sequence[Person], name: str, rng: np.random.Generator) -> Dialogue:
    """Two to six people in one room: one microphone, an echo, the noise of a room."""
    chosen = _some(people, int(rng.integers(2, 7)), rng)
    talk = _talk(_one_microphone(chosen), name, rng)
    return _with(talk, noisy(echo(talk.samples, rng), rng, float(rng.uniform(15, 25))))


def _telephone(people: Sequence[Person], name: str, rng: np.random.Generator) -> Dialogue:
    """Two or three people, everything through a telephone."""
    talk = _talk(_some(people, int(rng.integers(2, 4)), rng), name, rng)
    return _with(talk, telephone(talk.samples))


def _noise(people: Sequence[Person], name: str, rng: np.random.Generator) -> Dialogue:
    """Two to four people in noise, 5 to 12 dB below them."""
    talk = _talk(_some(people, int(rng.integers(2, 5)), rng), name, rng)
    return _with(talk, noisy(talk.samples, rng, float(rng.uniform(5, 12))))


def _alike(people: Sequence[Person], name: str, rng: np.random.Generator) -> Dialogue:
    """Two to four people whose spectra are the closest to that of the first of them."""
    first = people[int(rng.integers(len(people)))]
    near = sorted(people, key=lambda each: float(np.linalg.norm(each.spectrum - first.spectrum)))
    return _talk(_one_microphone(near[: int(rng.integers(2, 5))]), name, rng)


def _channels(people: Sequence[Person], name: str, rng: np.random.Generator) -> Dialogue:
    """Two to four people; half-way through, one of them goes on through a telephone or in noise."""
    chosen = _some(people, int(rng.integers(2, 5)), rng)
    middle = len(chosen[0].samples) // 2
    changed = np.concatenate((chosen[0].samples[:middle], _disguised(chosen[0].samples[middle:], rng)))
    return _talk([Person(chosen[0].name, changed, chosen[0].spectrum), *chosen[1:]], name, rng)


def _alone(people: Sequence[Person], name: str, rng: np.random.Generator) -> Dialogue:
    """One person, whose second half is noisy or through a telephone."""
    (person,) = _some(people, 1, rng)
    middle = len(person.samples) // 2
    samples = np.concatenate((person.samples[:middle], _disguised(person.samples[middle:], rng)))
    turns = tuple(Turn(first / RATE, last / RATE, person.name) for first, last in _spoken(person.samples))
    return Dialogue(name, "alone", samples.astype(np.float32), turns)


def _short(people: Sequence[Person], name: str, rng: np.random.Generator) -> Dialogue:
    """Two to four people in turns of 1 to 2 s, without pauses between them."""
    return _talk(_some(people, int(rng.integers(2, 5)), rng), name, rng, turn_s=(1.0, 2.0), pause_s=(0.0, 0.15))


def _overlap(people: Sequence[Person], name: str, rng: np.random.Generator) -> Dialogue:
    """Two to four people who begin up to 1.2 s before the other has ended."""
    return _talk(_some(people, int(rng.integers(2, 5)), rng), name, rng, turn_s=(2.5, 6.0), pause_s=(-1.2, 0.3))


KINDS: Mapping[str, Callable[[Sequence[Person], str, np.random.Generator], Dialogue]] = {
    "plain": _plain,
    "room": _room,
    "telephone": _telephone,
    "noise": _noise,
    "alike": _alike,
    "channels": _channels,
    "alone": _alone,
    "short": _short,
    "overlap": _overlap,
}


def telephone(samples: Array) -> Array:
    """300 to 3400 Hz, in the steps of G.711's µ-law."""
    spectrum = np.fft.rfft(samples)
    hertz = np.fft.rfftfreq(len(samples), 1 / RATE)
    slopes = 1 / (1 + (300 / np.maximum(hertz, 1)) ** 8) / (1 + (hertz / 3400) ** 16)
    narrow = np.clip(np.fft.irfft(spectrum * slopes, len(samples)), -1, 1)
    pressed = np.sign(narrow) * np.log1p(255 * np.abs(narrow)) / np.log1p(255)
    stepped = np.round(pressed * 127) / 127
    played = np.sign(stepped) * np.expm1(np.abs(stepped) * np.log1p(255)) / 255
    return np.asarray(np.fft.irfft(np.fft.rfft(played) * (hertz < 4000), len(samples)), dtype=np.float32)


def _talk(
    people: Sequence[Person],
    name: str,
    rng: np.random.Generator,
    turn_s: tuple[float, float] = (1.0, 6.0),
    pause_s: tuple[float, float] = (0.1, 0.8),
) -> Dialogue:
    """The persons in rounds, in each of the first two everybody once, until the speech of one of them is used up."""
    used = [0] * len(people)
    clips: list[tuple[int, Array, str]] = []
    at = int(0.3 * RATE)
    for who in _order(len(people), rng):
        length = int(rng.uniform(*turn_s) * RATE)
        rest = people[who].samples[used[who] :]
        if len(rest) < turn_s[0] * RATE:
            break
        clip = _trimmed(rest[:length])
        used[who] += length
        clips.append((at, _faded(clip), people[who].name))
        at = max(at + len(clip) // 2, at + len(clip) + int(rng.uniform(*pause_s) * RATE))
    end = max(start + len(clip) for start, clip, _ in clips) + int(0.3 * RATE)
    samples = np.zeros(end, np.float32)
    for start, clip, _ in clips:
        samples[start : start + len(clip)] += clip
    turns = tuple(
        Turn((start + first) / RATE, (start + last) / RATE, person)
        for start, clip, person in clips
        for first, last in _spoken(clip)
    )
    return Dialogue(name, name.rsplit("-", 1)[0], samples, turns)


def _order(count: int, rng: np.random.Generator) -> Iterator[int]:
    """Who speaks next, without end; nobody twice in a row."""
    last = -1
    for number in itertools.count():
        for who in rng.permutation(count).tolist():
            if who != last and (number < 2 or rng.random() < 0.7):
                last = who
                yield who


def _with(talk: Dialogue, samples: Array) -> Dialogue:
    return Dialogue(talk.name, talk.kind, samples, talk.turns)


def _some(people: Sequence[Person], count: int, rng: np.random.Generator) -> list[Person]:
    return [people[index] for index in rng.choice(len(people), count, replace=False)]


def _one_microphone(people: Sequence[Person]) -> list[Person]:
    """The same persons, each filtered so that all have the same mean spectrum."""
    common = np.mean([person.spectrum for person in people], axis=0)
    centres = _centres()
    made = []
    for person in people:
        gain = np.interp(np.fft.rfftfreq(len(person.samples), 1 / RATE), centres, (common - person.spectrum) / 2)
        filtered = np.fft.irfft(np.fft.rfft(person.samples) * np.exp(gain), len(person.samples))
        made.append(Person(person.name, levelled(filtered.astype(np.float32)), common))
    return made


def _centres() -> Array:
    filters = mel_filters(RATE, 512, BANDS)
    return np.asarray(filters.argmax(axis=1) * RATE / 512, dtype=np.float32)


def _disguised(samples: Array, rng: np.random.Generator) -> Array:
    return telephone(samples) if rng.random() < 0.5 else noisy(samples, rng, float(rng.uniform(5, 12)))


def echo(samples: Array, rng: np.random.Generator) -> Array:
    """A room whose sound dies away in 0.2 to 0.5 s."""
    seconds = float(rng.uniform(0.2, 0.5))
    count = int(seconds * RATE)
    tail = rng.standard_normal(count) * 10 ** (-3 * np.arange(count) / count) * 0.05
    tail[0] = 1.0
    size = 1 << (len(samples) + count).bit_length()
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)[: len(samples)]
    return levelled(wet.astype(np.float32))


def noisy(samples: Array, rng: np.random.Generator, decibels: float) -> Array:
    """Noise whose power falls with frequency, that far below the speech."""
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    hertz = np.maximum(np.fft.rfftfreq(len(samples), 1 / RATE), 50.0)
    noise = np.fft.irfft(spectrum / hertz ** float(rng.uniform(0.0, 0.6)), len(samples))
    level = 10 ** ((level_dbfs(samples) - decibels) / 20)
    return np.asarray(samples + noise / noise.std() * level, dtype=np.float32)


def levelled(samples: Array) -> Array:
    """The sound at ``LEVEL_DBFS``."""
    return np.asarray(samples * 10 ** ((LEVEL_DBFS - level_dbfs(samples)) / 20), dtype=np.float32)


def _trimmed(samples: Array) -> Array:
    """Without what is quiet at both ends."""
    loud = _loud(samples)
    return samples[loud[0] : loud[-1] + HOP] if len(loud) else samples[:0]


def _spoken(clip: Array) -> Iterator[tuple[int, int]]:
    """First and last samples of what is said, without pauses of ``PAUSE_S`` and more."""
    loud = _loud(clip)
    gaps = np.flatnonzero(np.diff(loud) > PAUSE_S * RATE)
    for part in np.split(loud, gaps + 1):
        if len(part):
            yield int(part[0]), int(part[-1]) + HOP


def _loud(samples: Array) -> NDArray[np.int64]:
    """First samples of the frames of 10 ms that are not much quieter than the loudest."""
    frames = samples[: len(samples) // HOP * HOP].reshape(-1, HOP)
    if not len(frames):
        return np.zeros(0, np.int64)
    power = 10 * np.log10(np.mean(frames.astype(np.float64) ** 2, axis=1) + 1e-12)
    return np.flatnonzero(power > power.max() - QUIET_DB) * HOP


def _faded(clip: Array) -> Array:
    faded: Array = clip.copy()
    slope: Array = np.linspace(0, 1, FADE, dtype=np.float32)
    faded[:FADE] *= slope
    faded[-FADE:] *= slope[::-1]
    return faded
