"""How well the recipe does on speakers it never saw.

    python -m inference.articulation.evaluate --media FOLDER [--media FILE …] [--json]

One row per speaker: r of each channel between prediction and the mesh's measurement, mean over the speaker's clips,
each clip at its one lag. Beside the opening: the same as ``Articulator`` gives it out, at rest where nobody speaks
(``delivered``), from loudness, from the plain regression on the last layer (``floor``) and from the regression on the
head's own layers (``ridge``). ``chance`` is the opening's r with somebody
else's sound, its lag searched the same way. Then closures: how many of the p, b and m at the begin of words are shut,
told by the head's closure output, by its low opening, and by the speakers' own lips.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from inference import console, weights
from inference.articulation.curve import CHANNELS
from inference.articulation.examples import Listener
from inference.articulation.gate import sigmoid
from inference.articulation.grid import Aligner, Spoken, labial_windows, other_windows, sentence
from inference.articulation.head import CLOSED, Meta
from inference.articulation.lags import chance
from inference.articulation.study import Study, prepare
from inference.articulation.temporal import Training
from inference.audio import Array
from inference.base import EngineError

LOW = 20.0  #: percentile of a sentence's openings below which the mouth counts as shut, as in the study
CACHE = Path("build/articulation")


class Figures(TypedDict):
    """What is reported; r of each of the five channels unless said otherwise."""

    speakers: dict[str, list[float]]
    opening: dict[str, dict[str, float]]  #: of each floor, by speaker: r of the opening alone
    mean: dict[str, list[float]]  #: over speakers
    mean_over_clips: list[float]
    delivered_over_clips: list[float]
    chance: float
    clips: int
    not_above_loudness: dict[str, list[str]]  #: names of clips
    lags: dict[str, float]  #: frames, by clip
    closures: dict[str, float]  #: shares 0 … 1


def figures(study: Study, last_layer: Listener | None, close_at: float) -> Figures:
    """Everything that is reported, JSON-able."""
    predictions = study.held_out()
    final = study.judged(predictions)
    rows = {speaker: _rounded(values) for speaker, values in study.per_speaker(final).items()}
    others = {
        "delivered": study.judged(study.delivered(predictions)),
        "loudness": study.judged(study.loudness()),
        "ridge": study.judged(study.ridge_held_out()),
    }
    if last_layer is not None:
        others["floor"] = study.judged(study.floor(last_layer))
    opening = {
        name: {speaker: round(float(values[0]), 3) for speaker, values in study.per_speaker(found).items()}
        for name, found in others.items()
    }
    below = {
        name: [clip.name for number, clip in enumerate(study.clips) if of[number][0] <= others["loudness"][number][0]]
        for name, of in (("head", final), ("delivered", others["delivered"]))
    }
    speakers = {number: clip.speaker for number, clip in enumerate(study.clips)}
    return {
        "speakers": rows,
        "opening": opening,
        "mean": {
            "final": _rounded(np.mean(list(study.per_speaker(final).values()), axis=0)),
            **{
                name: _rounded(np.mean(list(study.per_speaker(found).values()), axis=0))
                for name, found in others.items()
            },
        },
        "mean_over_clips": _rounded(np.mean(list(final.values()), axis=0)),
        "delivered_over_clips": _rounded(np.mean(list(others["delivered"].values()), axis=0)),
        "chance": round(chance(predictions, study.goals, speakers), 3),
        "clips": len(study.clips),
        "not_above_loudness": below,
        "lags": {clip.name: study.lags[number] / 2 for number, clip in enumerate(study.clips)},
        "closures": closure_figures(study, predictions, close_at),
    }


def closure_figures(study: Study, predictions: dict[int, Array], close_at: float) -> dict[str, float]:
    """Shares of word-initial p, b, m, and of other words, in which lips are shut; clips whose sentence is known."""
    words = _aligned(study)
    hits: dict[str, list[bool]] = {}
    for number, spoken in words.items():
        goal, said = study.goals[number], predictions[number]
        first = max(0, int(spoken[0].end * 25) - 8)
        span = slice(first, min(len(said), int(spoken[-1].end * 25)))
        flagged = sigmoid(said[:, CLOSED]) >= close_at
        low = said[:, 0] <= np.percentile(said[span, 0], LOW)
        own = goal.together | (goal.channels[:, 0] <= np.percentile(goal.channels[span, 0], LOW))
        shift = study.lags[number] / 2  # words are in the time of the sound, rows in that of the picture
        for kind, windows in (("labial", labial_windows(spoken)), ("other", other_windows(spoken))):
            for window in windows:
                place = slice(max(0, round(window.start + shift)), max(0, round(window.stop + shift)))
                for name, flags in (("closed", flagged), ("low", low), ("lips", own)):
                    if place.stop <= len(flags):
                        hits.setdefault(f"{kind}_{name}", []).append(bool(flags[place].any()))
    return {name: round(float(np.mean(values)), 3) for name, values in hits.items()} | {
        "labials": float(len(hits.get("labial_closed", [])))
    }


def _aligned(study: Study) -> dict[int, list[Spoken]]:
    """Words of the clips whose names spell them; kept in the cache."""
    aligner = None
    found = {}
    for number, clip in enumerate(study.clips):
        said = sentence(clip.name)
        if said is None:
            continue
        stored = study.cache / f"{clip.digest[:16]}-words.json"
        if not stored.exists():
            aligner = aligner or Aligner(weights.find_model("whisper-base"))
            spoken = aligner.words(clip.samples, said)
            stored.write_text(json.dumps([[each.word, each.start, each.end] for each in spoken]), "utf-8")
        found[number] = [Spoken(*each) for each in json.loads(stored.read_text("utf-8"))]
    return found


def print_table(found: Figures) -> None:
    """The figures for people."""
    speakers, opening, mean = found["speakers"], found["opening"], found["mean"]
    names = [name for name in ("delivered", "loudness", "floor", "ridge") if name in opening]
    print(f"{'speaker':<14}" + "".join(f"{name:>11}" for name in [*CHANNELS, *names]))
    for speaker, values in speakers.items():
        beside = [opening[name][speaker] for name in names]
        print(f"{speaker:<14}" + "".join(f"{value:11.2f}" for value in [*values, *beside]))
    print(f"{'mean':<14}" + "".join(f"{value:11.3f}" for value in [*mean["final"], *(mean[name][0] for name in names)]))
    for name in names:
        print(f"  {name:<12}" + "".join(f"{value:11.3f}" for value in mean[name]))
    print(f"mean over {found['clips']} clips " + " ".join(f"{value:.3f}" for value in found["mean_over_clips"]))
    print("as delivered " + " ".join(f"{value:.3f}" for value in found["delivered_over_clips"]))
    print(f"chance {found['chance']}; clips not above loudness: {found['not_above_loudness']}")
    print(f"closures {found['closures']}")


def _rounded(values: Array) -> list[float]:
    return [round(float(value), 3) for value in values]


def arguments(prog: str, about: str) -> argparse.ArgumentParser:
    """What training and evaluation have in common."""
    parser = argparse.ArgumentParser(prog=f"python -m inference.articulation.{prog}", description=about)
    parser.add_argument(
        "--media", type=Path, action="append", required=True, help="folder of videos of people talking, or one video"
    )
    parser.add_argument("--cache", type=Path, default=CACHE, help="for what is computed (default: %(default)s)")
    parser.add_argument("--whisper", type=Path, help="folder of a Whisper base model (default: the installed one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0 when every clip is above loudness as it is delivered."""
    import torch

    parser = arguments("evaluate", "Leave one speaker out.")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("--no-floor", action="store_true", help="without the last layer's regression (less encoding)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    try:
        study, last_layer = prepare(
            options.media, options.cache, Meta(seed=options.seed), Training(), whisper=options.whisper, say=_say
        )
        found = figures(study, None if options.no_floor else last_layer, study.meta.close_at)
    except EngineError as error:
        print(f"error: {error}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        print_table(found)
    return 1 if found["not_above_loudness"]["delivered"] else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    console.run(main)
