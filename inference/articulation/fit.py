"""Fitting the linear parts of a head: principal components of the encoder's layers, ridge regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.articulation.curve import CHANNELS
from inference.articulation.examples import PLAIN, Example, Targets
from inference.articulation.head import TAPS, Meta, Reducer, halved, taps

PENALTY = 1000.0  #: of the regression, on inputs of unit variance
SAME_SAY = 400.0  #: frames; a person with more counts as if there were only so many


@dataclass(frozen=True, eq=False)
class Item:
    """One example on the inputs of a fitted reducer, moved by its clip's lag: T frames."""

    clip: int  #: its number; -1 for sounds that are no speech
    speaker: str
    disguise: str
    inputs: Tensor  #: (2 T, inputs)
    channels: Tensor  #: (T, 5)
    known: Tensor  #: (T,) bool, where the channels are
    together: Tensor  #: (T,) bool, the lips touch
    speech: Tensor  #: (T,) 0..1


def fit_reducer(examples: Sequence[Example], meta: Meta) -> Reducer:
    """Principal components of the plain examples, per layer, scaled so that all inputs together have unit variance."""
    stacked = np.concatenate([example.layers for example in examples if example.disguise == PLAIN])
    reducer = Reducer(meta)
    total = 0.0
    for number in range(len(meta.layers)):
        frames = stacked[:, number].astype(np.float64)
        mean, deviation = frames.mean(axis=0), frames.std(axis=0) + 1e-4
        standard = (frames - mean) / deviation
        values, vectors = np.linalg.eigh(standard.T @ standard / len(standard))
        chosen = vectors[:, ::-1][:, : meta.components]
        chosen = chosen * np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(meta.components)])
        total += float(values[::-1][: meta.components].sum())
        reducer.mean[number] = torch.from_numpy(mean)
        reducer.basis[number] = torch.from_numpy(chosen / deviation[:, None])
    reducer.basis /= float(np.sqrt(total / meta.inputs))
    return reducer


def make_items(
    examples: Sequence[Example], goals: Mapping[int, Targets], lags: Mapping[int, int], reducer: Reducer
) -> list[Item]:
    """Examples as they go into the fit."""
    items = []
    for example in examples:
        reduced = reducer(torch.from_numpy(example.layers).float())
        if example.clip < 0:
            frames, lag = len(reduced) // 2, 0
            channels = torch.zeros(frames, len(CHANNELS))
            known = together = torch.zeros(frames, dtype=torch.bool)
        else:
            goal, lag = goals[example.clip], lags[example.clip]
            frames = len(goal.known)
            channels = torch.from_numpy(goal.channels)
            known, together = torch.from_numpy(goal.known), torch.from_numpy(goal.together)
        index = torch.from_numpy(moved(frames, lag, len(reduced)))
        speech = halved(torch.from_numpy(example.speech)[index])
        about = (example.clip, example.speaker, example.disguise)
        items.append(Item(*about, reduced[index], channels, known, together, speech))
    return items


def moved(frames: int, lag: int, available: int) -> NDArray[np.intp]:
    """(2 × frames,) which feature belongs to which half frame of the picture; ends repeated."""
    return np.clip(np.arange(2 * frames) - lag, 0, available - 1)


class RidgeSums:
    """Normal equations per speaker, so that leaving one out costs a subtraction."""

    def __init__(self, items: Sequence[Item], reach: int = TAPS) -> None:
        frames: dict[str, int] = {}
        for item in items:
            if item.disguise == PLAIN:
                frames[item.speaker] = frames.get(item.speaker, 0) + int(item.known.sum())
        disguises = len({item.disguise for item in items if item.clip >= 0})
        self._of: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        for item in items:
            if item.clip < 0:
                continue
            weight = min(1.0, SAME_SAY / frames[item.speaker]) / disguises
            design = taps(item.inputs, reach)[item.known]
            left, right = self._of.get(item.speaker, (np.zeros(()), np.zeros(())))
            full = torch.cat([design, torch.ones(len(design), 1)], dim=1).numpy()
            wanted = item.channels[item.known].numpy()
            self._of[item.speaker] = (left + weight * (full.T @ full), right + weight * (full.T @ wanted))

    def solve(self, without: str = "", penalty: float = PENALTY) -> Tensor:
        """((taps × inputs) + 1, channels), the last row the bias, from all speakers but one."""
        chosen = [sums for speaker, sums in sorted(self._of.items()) if speaker != without]
        left = np.sum([sums[0] for sums in chosen], axis=0)
        right = np.sum([sums[1] for sums in chosen], axis=0)
        left[np.diag_indices(len(left) - 1)] += penalty
        left[-1, -1] += 1e-3
        return torch.from_numpy(np.linalg.solve(left, right)).float()
