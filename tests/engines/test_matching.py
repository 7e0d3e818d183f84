"""Diarization error rate and the matching of labels to people, on cases worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from inference.matching import best_matching, diarization


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (5, 2), (4, 4)])
def test_the_best_matching_is_the_best_of_all(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    shared = rng.random(shape)
    wide = shared if shape[0] <= shape[1] else shared.T
    every = itertools.permutations(range(wide.shape[1]), wide.shape[0])
    assert best_matching(shared) == pytest.approx(max(sum(wide[range(len(c)), c]) for c in every))


def test_eight_people_among_twelve_labels() -> None:
    shared = np.zeros((8, 12))
    for person in range(8):
        shared[person, 11 - person] = 1.0
    assert best_matching(shared) == 8.0


TRUTH = [(0.0, 4.0, "ann"), (4.0, 8.0, "bob")]


def test_names_do_not_matter() -> None:
    score = diarization(TRUTH, [(0.0, 4.0, "1"), (4.0, 8.0, "0")])
    assert score.error_rate == 0.0
    assert score.right == pytest.approx(score.both)


def test_edges_are_not_judged() -> None:
    score = diarization(TRUTH, [(0.2, 4.2, "0"), (4.2, 7.8, "1")])
    assert score.error_rate == 0.0
    assert score.spoken == pytest.approx(8.0 - 4 * 0.25, abs=0.03)


def test_each_kind_of_error_is_counted() -> None:
    one_voice = diarization(TRUTH, [(0.0, 8.0, "0")])
    assert one_voice.confused == pytest.approx(3.5, abs=0.02)
    assert one_voice.right / one_voice.both == pytest.approx(0.5, abs=0.01)
    half = diarization(TRUTH, [(0.0, 4.0, "0")])
    assert half.missed == pytest.approx(3.5, abs=0.02)
    longer = diarization(TRUTH, [*TRUTH, (8.0, 10.0, "ann")])
    assert longer.invented == pytest.approx(1.75, abs=0.02)
    both = diarization([*TRUTH, (1.0, 3.0, "bob")], TRUTH)
    assert both.missed == pytest.approx(1.5, abs=0.02)
    assert both.spoken == pytest.approx(8.0 - 6 * 0.25 - 2 * 0.25 + 1.5, abs=0.1)
