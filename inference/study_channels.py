"""Find what channels do to the vectors of the speaker encoder: ``python -m inference.study_channels VOICES``.

VOICES is as for ``inference.evaluate_speakers``; people of the tuning half are heard as they are, by telephone,
through codecs of low rates, in noise and in a room. The directions in which the mean vector of a person moves most
(singular value decomposition over people and channels) go into the file that ``inference.transcribe.channels`` reads.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import ffmpeg as builder
import numpy as np

from inference import console, media, weights
from inference.audio import Array
from inference.dialogues import RATE, Half, Person, echo, levelled, noisy, read_people, telephone
from inference.transcribe import channels
from inference.transcribe.diarize import ENCODER_FILE
from inference.transcribe.voices import SpeakerEncoder, windows_over

PERSON_S, BREATH_S = 8, 4  #: seconds of each person, and of what is encoded together
PEOPLE, KEPT = 70, 2


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m inference.study_channels", description=__doc__.splitlines()[0])
    parser.add_argument("voices", type=Path, help="folder with recordings of one person each")
    parser.add_argument("--out", type=Path, default=channels.FILE)
    given = parser.parse_args(argv)
    rng = np.random.default_rng(5)
    people = read_people(given.voices, Half.TUNING)
    chosen = [people[index] for index in rng.choice(len(people), min(PEOPLE, len(people)), replace=False)]
    encoder = SpeakerEncoder(weights.find(ENCODER_FILE, None))
    ways = _channels(rng)
    means = np.stack([_means(person, encoder, list(ways.values())) for person in chosen])
    moved = (means - means.mean(axis=1, keepdims=True)).reshape(-1, means.shape[2])
    _, sizes, directions = np.linalg.svd(moved, full_matrices=False)
    np.save(given.out, directions[:KEPT].astype(np.float32))
    share = sizes[:KEPT] ** 2 / np.sum(sizes**2)
    print(f"{len(chosen)} people, {len(ways)} channels: {KEPT} directions hold {share.sum():.1%} of what channels do")
    return 0


def _channels(rng: np.random.Generator) -> Mapping[str, Callable[[Array], Array]]:
    return {
        "as it is": lambda samples: samples,
        "telephone": telephone,
        "mp3, 16 kbit/s": lambda samples: _coded(samples, "mp3", ar=RATE, audio_bitrate="16k"),
        "AMR, 4.75 kbit/s": lambda samples: _coded(samples, "amr", ar=8000, audio_bitrate="4.75k"),
        "noise": lambda samples: noisy(samples, rng, 8.0),
        "room": lambda samples: echo(samples, rng),
    }


def _coded(samples: Array, ending: str, **how: object) -> Array:
    """The sound after it was encoded and decoded by ffmpeg."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"coded.{ending}"
        source = builder.input("pipe:0", format="f32le", ar=RATE, ac=1)
        source.output(str(path), **how).run(
            cmd=media.ffmpeg_binary(), input=samples.astype("<f4").tobytes(), quiet=True
        )
        return media.read_audio(path)


def _means(person: Person, encoder: SpeakerEncoder, ways: Sequence[Callable[[Array], Array]]) -> Array:
    """The mean vector of a person in each channel: (channels, 192)."""
    rows = []
    for way in ways:
        heard = levelled(way(person.samples[: PERSON_S * RATE]))
        breaths = [heard[at : at + BREATH_S * RATE] for at in range(0, len(heard) - RATE, BREATH_S * RATE)]
        found = [encoder.encode(encoder.mels(breath), list(windows_over(len(breath)))) for breath in breaths]
        rows.append(np.concatenate(found).astype(np.float32).mean(axis=0))
    return np.stack(rows)


if __name__ == "__main__":
    console.run(main)
