"""How well and how fast the transcribe engine works: ``python -m inference.evaluate_speech MEDIA_DIR``.

The folder holds recordings and what is true of them, by file name:

    X.txt beside X.wav …          the words spoken (any audio suffix)
    *.transcription.txt           many at once: ``<s> words </s> (file stem)`` per line
    X.rttm beside X.flac …        who speaks when: ``SPEAKER file channel start length … name …``

Texts are compared without case and punctuation: word error rate, or character error rate for Chinese,
Japanese and Thai. A word is on the right speaker when the label it got is the one that, over the whole
recording, belongs to the person who speaks at the middle of the word. RTF is processor time of this process
and its ffmpeg per second of sound.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inference import console
from inference.base import LocalContext
from inference.matching import best_matching
from inference.transcribe import Transcribe

MEDIA_SUFFIXES = (".wav", ".flac", ".opus", ".ogg", ".mp3", ".m4a", ".mp4")
HEADER = f"{'recording':<48}{'length':>8}{'RTF':>7}{'errors':>9}{'rate':>8}{'speakers':>10}{'words right':>13}"
BY_CHARACTER = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")
TITLES = {"mr": "mister", "mrs": "missus", "dr": "doctor", "st": "saint"}


@dataclass
class Row:
    """One recording, judged."""

    file: str
    seconds: float
    cpu_s: float
    wall_s: float
    words: int = 0  #: in the true text (characters for Chinese)
    errors: int | None = None
    speakers_true: int | None = None
    speakers_found: int | None = None
    words_right: float | None = None  #: share of words on the right speaker

    @property
    def error_rate(self) -> float | None:
        """Wrong words per word that was said; None when that is not known."""
        return None if self.errors is None else self.errors / max(1, self.words)


def units(text: str) -> list[str]:
    """A text as the words (or characters) that are compared."""
    folded = unicodedata.normalize("NFKC", text).lower()
    folded = folded.replace("’", "'").replace("-", " ")
    if BY_CHARACTER.search(folded):
        return [mark for mark in folded if mark.isalnum()]
    words = re.findall(r"[\w']+", folded)
    return [TITLES.get(word.strip("'"), word.strip("'")) for word in words if word.strip("'")]


def errors(said: Sequence[str], heard: Sequence[str]) -> int:
    """Edit distance: substitutions, insertions and deletions."""
    row = list(range(len(heard) + 1))
    for at, word in enumerate(said, 1):
        previous, row[0] = row[0], at
        for to, other in enumerate(heard, 1):
            previous, row[to] = row[to], min(row[to] + 1, row[to - 1] + 1, previous + (word != other))
    return row[-1]


def speaker_share(turns: Sequence[tuple[float, float, str]], words: Sequence[Mapping[str, Any]]) -> float:
    """Share of the words on the right speaker, under the best matching of labels to people."""
    said = [(_who(turns, (word["start"] + word["end"]) / 2), word["speaker"]) for word in words]
    judged = [(person, label) for person, label in said if person is not None]
    people = sorted({person for person, _ in judged})
    labels = sorted({label for _, label in judged if label is not None})
    if not judged or not labels:
        return 0.0
    shared = np.zeros((len(people), len(labels)))
    for person, label in judged:
        if label is not None:
            shared[people.index(person), labels.index(label)] += 1
    return best_matching(shared) / len(judged)


def _who(turns: Sequence[tuple[float, float, str]], at: float) -> str | None:
    """The person who speaks at that moment, or within half a second of it."""
    closest = min(turns, key=lambda turn: max(turn[0] - at, at - turn[1], 0.0))
    return closest[2] if max(closest[0] - at, at - closest[1]) <= 0.5 else None


def read_rttm(path: Path) -> list[tuple[float, float, str]]:
    """Turns as (start, end, person), in seconds."""
    fields = [line.split() for line in path.read_text("utf-8").splitlines() if line.startswith("SPEAKER")]
    return [(float(field[3]), float(field[3]) + float(field[4]), field[7]) for field in fields]


def truths(folder: Path) -> dict[str, str]:
    """The true text of each recording by file stem."""
    found: dict[str, str] = {}
    for path in folder.glob("*.txt"):
        text = path.read_text("utf-8")
        many = re.findall(r"<s>(.*?)</s>\s*\((.+?)\)", text)
        found |= {stem: words for words, stem in many} if many else {path.stem: text}
    return found


def judge(engine: Transcribe, path: Path, truth: str | None, more: Mapping[str, object]) -> tuple[Row, dict[str, Any]]:
    """Transcribe one recording and compare."""
    cpu, wall = _cpu_s(), time.monotonic()
    with LocalContext() as context:
        result = engine.run(engine.check({"audio": str(path), **more}), context)
    row = Row(path.name, result["duration_s"], _cpu_s() - cpu, time.monotonic() - wall)
    if truth is not None:
        said = units(truth)
        row.words, row.errors = len(said), errors(said, units(result["text"]))
    rttm = path.with_suffix(".rttm")
    if rttm.exists():
        turns = read_rttm(rttm)
        row.speakers_true = len({person for _, _, person in turns})
        row.speakers_found = len(result["speakers"])
        words = [word for segment in result["segments"] for word in segment["words"]]
        row.words_right = speaker_share(turns, words)
    return row, result


def _cpu_s() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser("python -m inference.evaluate_speech", description=__doc__.splitlines()[0])
    parser.add_argument("media", type=Path, help="folder with recordings and what is true of them")
    parser.add_argument("--options", type=json.loads, default={}, help="engine options as JSON")
    parser.add_argument("--params", type=json.loads, default={}, help="parameters for every job, as JSON")
    parser.add_argument("--text", action="store_true", help="show what was heard")
    parser.add_argument("--json", action="store_true", help="one last line of JSON")
    given = parser.parse_args(argv)
    engine = Transcribe()
    began = time.monotonic()
    engine.load("cpu", {"cpu_threads": 1, **given.options})
    engine.warmup()
    load_s = time.monotonic() - began
    known = truths(given.media)
    rows = []
    print(f"{'recording':<48}{'length':>8}{'RTF':>7}{'errors':>9}{'rate':>8}{'speakers':>10}{'words right':>13}")
    for path in sorted(given.media.iterdir()):
        judged = path.stem in known or path.with_suffix(".rttm").exists()
        if path.suffix not in MEDIA_SUFFIXES or not judged:
            continue
        row, result = judge(engine, path, known.get(path.stem), given.params)
        rows.append(row)
        _print(row)
        if given.text:
            print("    " + result["text"], *(f"\n    warning: {warning}" for warning in result["warnings"]))
    total = _total(rows, load_s)
    print(json.dumps({"rows": [asdict(row) for row in rows], **total}) if given.json else _sentence(total))
    return 0


def _print(row: Row) -> None:
    errors = "" if row.errors is None else f"{row.errors}/{row.words}"
    rate = "" if row.error_rate is None else f"{100 * row.error_rate:.1f} %"
    speakers = "" if row.speakers_true is None else f"{row.speakers_found} of {row.speakers_true}"
    right = "" if row.words_right is None else f"{100 * row.words_right:.1f} %"
    length, rtf = f"{row.seconds:.1f} s", row.cpu_s / row.seconds
    print(f"{row.file:<48}{length:>8}{rtf:>7.3f}{errors:>9}{rate:>8}{speakers:>10}{right:>13}", flush=True)


def _total(rows: Sequence[Row], load_s: float) -> dict[str, Any]:
    seconds = sum(row.seconds for row in rows)
    judged = [row for row in rows if row.errors is not None]
    spoken = [row.words_right for row in rows if row.words_right is not None]
    counted = [row for row in rows if row.speakers_true is not None]
    return {
        "error_rate": sum(row.errors or 0 for row in judged) / max(1, sum(row.words for row in judged)),
        "rtf": sum(row.cpu_s for row in rows) / max(seconds, 1e-9),
        "speaker_counts_right": sum(row.speakers_true == row.speakers_found for row in rows if row.speakers_true),
        "speaker_counts": len(counted),
        "words_right": min(spoken, default=None),
        "seconds": seconds,
        "load_s": load_s,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _sentence(total: Mapping[str, Any]) -> str:
    right = total["words_right"]
    return (
        f"\n{total['seconds']:.0f} s of sound: error rate {total['error_rate']:.2%}, RTF {total['rtf']:.3f} "
        f"(processor time), speaker counts right {total['speaker_counts_right']} of {total['speaker_counts']}"
        + ("" if right is None else f", words on the right speaker at least {right:.1%}")
        + f"; loaded in {total['load_s']:.1f} s, peak {total['peak_mb']:.0f} MB"
    )


if __name__ == "__main__":
    console.run(main)
