"""How well a prediction follows a mouth, and the lag between a clip's sound and its picture.

Lags are counted in half frames of 20 ms; positive = the picture comes late. Features are moved, not targets, so a lag
needs no interpolation. A clip's lag is always found by a regression that never saw its speaker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.articulation.curve import CHANNELS
from inference.articulation.examples import PLAIN, Example, Targets
from inference.articulation.fit import RidgeSums, make_items, moved
from inference.articulation.head import Reducer, taps
from inference.audio import Array

MOST_LAG = 12  #: half frames either way (± 6 frames)
ROUNDS = 4  #: of fitting all clips at their lags and finding the lags again


def correlation(one: Array, other: Array) -> float:
    """Pearson's r; 0 where one of them does not move."""
    one, other = one - one.mean(), other - other.mean()
    scale = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / scale if scale > 1e-9 else 0.0


def correlations(prediction: Array, goal: Targets) -> Array:
    """(5,) r per channel of a prediction (T, 5 or more), over the frames that are known."""
    known = goal.known
    found = [correlation(prediction[known, k], goal.channels[known, k]) for k in range(len(CHANNELS))]
    return np.array(found, np.float32)


def find_lag(reduced: Tensor, weights: Tensor, goal: Targets, reach: int) -> int:
    """The lag at which a ridge regression agrees best with a clip, on average over the channels."""
    frames = len(goal.known)
    found = {}
    for lag in sorted(range(-MOST_LAG, MOST_LAG + 1), key=abs):
        inputs = reduced[torch.from_numpy(moved(frames, lag, len(reduced)))]
        prediction = taps(inputs, reach) @ weights[:-1] + weights[-1]
        found[lag] = float(correlations(prediction.numpy(), goal).mean())
    return max(found, key=lambda lag: found[lag])


def align(
    examples: Sequence[Example], goals: Mapping[int, Targets], reducer: Reducer, reach: int, penalty: float
) -> dict[int, int]:
    """The lag of every clip, refined round by round."""
    plain = [example for example in examples if example.disguise == PLAIN and example.clip >= 0]
    reduced = {example.clip: reducer(torch.from_numpy(example.layers).float()) for example in plain}
    lags = dict.fromkeys(reduced, 0)
    for _ in range(ROUNDS):
        sums = RidgeSums(make_items(plain, goals, lags, reducer), reach)
        weights = {speaker: sums.solve(speaker, penalty) for speaker in sorted({example.speaker for example in plain})}
        before = lags
        lags = {
            example.clip: find_lag(reduced[example.clip], weights[example.speaker], goals[example.clip], reach)
            for example in plain
        }
        if lags == before:
            break
    return lags


def chance(predictions: Mapping[int, Array], goals: Mapping[int, Targets], speakers: Mapping[int, str]) -> float:
    """r of opening with the sound of a clip of somebody else, each pair at its own best lag over all channels."""
    first = {speaker: clip for clip, speaker in sorted(speakers.items(), reverse=True)}
    found: dict[str, list[float]] = {}
    for clip, goal in goals.items():
        for speaker, other in first.items():
            if speaker != speakers[clip]:
                found.setdefault(speakers[clip], []).append(_best(predictions[other], goal))
    return float(np.mean([np.mean(values) for values in found.values()]))


def _best(prediction: Array, goal: Targets) -> float:
    frames = len(goal.known)
    best = (-2.0, 0.0)
    for lag in range(-MOST_LAG // 2, MOST_LAG // 2 + 1):
        index: NDArray[np.intp] = np.clip(np.arange(frames) - lag, 0, len(prediction) - 1)
        each = correlations(prediction[index], goal)
        best = max(best, (float(each.mean()), float(each[0])))
    return best[1]
