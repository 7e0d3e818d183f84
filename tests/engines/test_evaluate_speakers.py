"""The judge of speakers on a recording whose truth is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.audio import Array
from inference.dialogues import RATE, Dialogue, Turn
from inference.evaluate_speakers import Judge
from inference.evaluate_speech import read_rttm

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "speech"


@pytest.mark.long
@pytest.mark.model
def test_a_dialogue_is_judged(speech: dict[str, Array]) -> None:
    turns = tuple(Turn(*turn) for turn in read_rttm(EXAMPLES / "two_speakers.rttm")[:2])
    talk = Dialogue("two_speakers", "plain", speech["two_speakers"][: int(15.5 * RATE)], turns)
    judge = Judge()
    row = judge.judge(talk)
    assert (row.people, row.found) == (2, 2)
    assert row.right / row.both > 0.98
    assert row.wrong / row.spoken < 0.2  # the truth holds pauses
    assert row.confidence is not None
    alone = tuple(Turn(turn.start, turn.end, "one") for turn in turns)
    told = judge.judge(Dialogue("two_speakers", "plain", talk.samples, alone), told=True)
    assert (told.people, told.found) == (1, 1)
    assert told.right / told.both > 0.98
    assert told.confidence is None
