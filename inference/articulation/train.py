"""Make the weights.

    python -m inference.articulation.train --media FOLDER [--media FILE …] [--out head.npz] [--seed 0]

Measures the mouths in the clips, encodes their sound plain and disguised, aligns the two, fits a head without each
speaker in turn to learn how far predictions can be trusted (spread, figures), then one on everybody, which is written.
About six minutes on one core the first time, half of it for the speakers left out. The same clips, seed and machine
give the same file.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from inference import console
from inference.articulation.curve import CHANNELS, head_path
from inference.articulation.evaluate import _say, arguments, figures, print_table
from inference.articulation.head import Meta
from inference.articulation.study import Study, prepare
from inference.articulation.temporal import Training
from inference.audio import Array
from inference.base import EngineError


def spread(study: Study, predictions: dict[int, Array]) -> dict[str, float]:
    """Standard deviation of held-out predictions over the real one, per channel, mean over speakers."""
    ratios = {}
    for number, goal in study.goals.items():
        said = predictions[number][goal.known, : len(CHANNELS)]
        ratios[number] = np.asarray(said.std(axis=0) / (goal.channels[goal.known].std(axis=0) + 1e-6), np.float32)
    mean = np.mean(list(study.per_speaker(ratios).values()), axis=0)
    return {name: round(float(value), 3) for name, value in zip(CHANNELS, mean, strict=True)}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    import torch

    parser = arguments("train", "Make the weights of the articulation head.")
    parser.add_argument("--out", type=Path, default=head_path(), help="the file to be written (default: the project's)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    try:
        study, last_layer = prepare(
            options.media, options.cache, Meta(seed=options.seed), Training(), whisper=options.whisper, say=_say
        )
        held_out = study.held_out()
        found = figures(study, last_layer, study.meta.close_at)
        _say("fitting on everybody")
        head = study.fit()
        rest = {name: round(float(value), 3) for name, value in zip(CHANNELS, study.rest(), strict=True)}
        head.meta = replace(study.meta, spread=spread(study, held_out), rest=rest, figures=found)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        part = options.out.with_suffix(".part")
        head.save(part)
        os.replace(part, options.out)
    except EngineError as error:
        print(f"error: {error}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
        return 2
    print_table(found)
    print(f"spread {dict(head.meta.spread)}; rest {dict(head.meta.rest)}")
    print(f"{options.out}: {options.out.stat().st_size / 1e3:.0f} kB")
    return 0


if __name__ == "__main__":
    console.run(main)
