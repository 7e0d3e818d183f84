"""How well speakers are told apart: ``python -m inference.evaluate_speakers VOICES``.

VOICES is a folder with recordings of one person each (see ``inference.dialogues``), of which recordings of several are
made: every kind, ``--each`` times. What is judged is the part of `transcribe` that tells speakers apart, without the
recogniser: speech is cut into pieces of 0.3 s that take the place of words.

    people    recordings whose number of speakers is right, and the mean error of the number
    DER       diarization error rate: seconds missed, invented or given to somebody else per second spoken,
              0.25 s around each edge not judged
    right     of the time in which one person speaks and one is heard, the share on the right speaker
    RTF       processor time for voices per second of sound, without the detector of speech

``--write FOLDER`` keeps the recordings and their truth for ``python -m inference.evaluate_speech FOLDER``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
import wave
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from inference import console, weights
from inference.audio import Array
from inference.dialogues import KINDS, RATE, Dialogue, Half, all_kinds, read_people
from inference.matching import diarization
from inference.transcribe.cluster import Wanted
from inference.transcribe.diarize import Diarizer
from inference.transcribe.words import Word
from inference.vad import SileroModel, SpeechDetector, Stretch

UNIT_S = 0.3


@dataclass(frozen=True)
class Row:
    """One recording, judged; times in seconds."""

    name: str
    kind: str
    seconds: float
    cpu_s: float
    people: int
    found: int
    confidence: float | None
    spoken: float
    wrong: float  #: missed, invented or confused
    both: float
    right: float


class Judge:
    """The networks, loaded."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)  # as the engine does: the networks are small
        self._diarizer = Diarizer(None, None, "cpu")
        self._vad = SileroModel(weights.find("silero-vad/silero_vad_16k_sequence.onnx"))

    def judge(self, talk: Dialogue, told: bool = False) -> Row:
        """Tell speakers apart and compare; ``told``: with their number given."""
        detector = SpeechDetector(self._vad)
        stretches = [*detector.feed(talk.samples), *detector.finish()]
        began = time.process_time()
        session = self._diarizer.session(Wanted.of(talk.people if told else None))
        for stretch in stretches:
            session.listen(stretch)
        words = _units(stretches)
        labelled = session.label(words)
        cpu_s = time.process_time() - began
        truth = [(turn.start, turn.end, turn.person) for turn in talk.turns]
        score = diarization(truth, [(word.start, word.end, str(word.speaker)) for word in words])
        return Row(
            name=talk.name,
            kind=talk.kind,
            seconds=len(talk.samples) / RATE,
            cpu_s=cpu_s,
            people=talk.people,
            found=len({word.speaker for word in words}),
            confidence=labelled.confidence,
            spoken=score.spoken,
            wrong=score.missed + score.invented + score.confused,
            both=score.both,
            right=score.right,
        )


def _units(stretches: Sequence[Stretch]) -> list[Word]:
    """Speech in pieces, as if each was a word."""
    words = []
    for stretch in stretches:
        start, end = stretch.speech_start / RATE, stretch.speech_end / RATE
        edges = np.linspace(start, end, max(2, round((end - start) / UNIT_S) + 1)).tolist()
        words += [Word(first, last, "x", None) for first, last in itertools.pairwise(edges)]
    return words


def _write(talk: Dialogue, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{talk.name}.rttm").write_text(talk.rttm(), "utf-8")
    samples: Array = np.clip(talk.samples, -1, 1)
    with wave.open(str(folder / f"{talk.name}.wav"), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes((samples * 32767).astype("<i2").tobytes())


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m inference.evaluate_speakers", description=__doc__.splitlines()[0])
    parser.add_argument("voices", type=Path, help="folder with recordings of one person each")
    parser.add_argument("--half", choices=[half.value for half in Half], default=Half.HELD_OUT.value)
    parser.add_argument("--each", type=int, default=12, help="recordings of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--told", action="store_true", help="give the number of speakers")
    parser.add_argument("--write", type=Path, help="keep the recordings and their truth in this folder")
    parser.add_argument("--json", action="store_true", help="one last line of JSON")
    given = parser.parse_args(argv)
    people = read_people(given.voices, Half(given.half))
    judge = Judge()
    rows = []
    for talk in all_kinds(people, given.each, given.seed):
        if given.write:
            _write(talk, given.write)
        rows.append(judge.judge(talk, given.told))
    if given.json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))
        return 0
    print(f"{len(people)} persons, {given.half} half, seed {given.seed}\n")
    print(f"{'kind':<12}{'people':>10}{'error':>8}{'DER':>9}{'right':>9}{'RTF':>8}")
    for kind in KINDS:
        _print(kind, [row for row in rows if row.kind == kind])
    _print("all", rows)
    return 0


def _print(name: str, rows: Sequence[Row]) -> None:
    good = sum(row.found == row.people for row in rows)
    error = sum(abs(row.found - row.people) for row in rows) / len(rows)
    wrong = sum(row.wrong for row in rows) / sum(row.spoken for row in rows)
    right = sum(row.right for row in rows) / sum(row.both for row in rows)
    rtf = sum(row.cpu_s for row in rows) / sum(row.seconds for row in rows)
    print(f"{name:<12}{f'{good} of {len(rows)}':>10}{error:>8.2f}{wrong:>9.1%}{right:>9.1%}{rtf:>8.3f}", flush=True)


if __name__ == "__main__":
    console.run(main)
