"""How well labels agree with people: the best way to match the ones to the others, and the errors that are left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

FRAME_S = 0.01
COLLAR_S = 0.25  #: around each start and end of the truth, nothing is judged

Turns = Sequence[tuple[float, float, str]]  #: start and end in seconds, who


def best_matching(shared: NDArray[np.float64]) -> float:
    """The greatest sum of ``shared[person, label]`` in which nobody is matched twice, for up to 16 people."""
    people, labels = shared.shape
    if people > labels:
        return best_matching(shared.T)

    @cache
    def best(label: int, matched: int) -> float:
        if label == labels:
            return 0.0
        free = [person for person in range(people) if not matched >> person & 1]
        with_one = [shared[person, label] + best(label + 1, matched | 1 << person) for person in free]
        return float(max([best(label + 1, matched), *with_one]))

    return best(0, 0)


@dataclass(frozen=True)
class Diarization:
    """Seconds of errors, as NIST counts them."""

    spoken: float  #: of all people together
    missed: float
    invented: float
    confused: float
    both: float  #: seconds in which truth and result have one speaker each
    right: float  #: of these, on the right speaker

    @property
    def error_rate(self) -> float:
        """Missed, invented and confused seconds per second that was spoken."""
        return (self.missed + self.invented + self.confused) / max(self.spoken, 1e-9)


def diarization(truth: Turns, found: Turns) -> Diarization:
    """Compare turns that were found with true ones; both may overlap."""
    end = max(turn[1] for turn in [*truth, *found])
    frames = int(end / FRAME_S) + 2
    said, heard = _frames(truth, frames), _frames(found, frames)
    judged = np.ones(frames, np.bool_)
    for edge in (edge for start, end, _ in truth for edge in (start, end)):
        judged[max(0, round((edge - COLLAR_S) / FRAME_S)) : round((edge + COLLAR_S) / FRAME_S)] = False
    said, heard = said[:, judged], heard[:, judged]
    in_truth, in_found = said.sum(axis=0), heard.sum(axis=0)
    correct = best_matching(said.astype(np.float64) @ heard.T.astype(np.float64))
    alone = (in_truth == 1) & (in_found == 1)
    right = best_matching(said[:, alone].astype(np.float64) @ heard[:, alone].T.astype(np.float64))
    return Diarization(
        spoken=float(in_truth.sum()) * FRAME_S,
        missed=float(np.maximum(in_truth - in_found, 0).sum()) * FRAME_S,
        invented=float(np.maximum(in_found - in_truth, 0).sum()) * FRAME_S,
        confused=(float(np.minimum(in_truth, in_found).sum()) - correct) * FRAME_S,
        both=float(alone.sum()) * FRAME_S,
        right=right * FRAME_S,
    )


def _frames(turns: Turns, count: int) -> NDArray[np.int64]:
    """Who speaks in each frame: (people, frames) of 0 and 1."""
    people = {who: row for row, who in enumerate(dict.fromkeys(who for _, _, who in turns))}
    active = np.zeros((len(people), count), np.int64)
    for start, end, who in turns:
        active[people[who], round(start / FRAME_S) : round(end / FRAME_S)] = 1
    return active
