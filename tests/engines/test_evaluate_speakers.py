"""The judge of speakers on a recording whose truth is known."""

from __future__ import annotations

from pathlib import Path

import ffmpeg
import numpy as np
import pytest

from inference import media
from inference.audio import Array
from inference.dialogues import RATE, Dialogue, Turn
from inference.evaluate_speakers import Judge
from inference.evaluate_speech import read_rttm

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "speech"


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


@pytest.mark.long
@pytest.mark.model
def test_a_dialogue_is_judged(judge: Judge, speech: dict[str, Array]) -> None:
    turns = tuple(Turn(*turn) for turn in read_rttm(EXAMPLES / "two_speakers.rttm")[:2])
    talk = Dialogue("two_speakers", "plain", speech["two_speakers"][: int(15.5 * RATE)], turns)
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


@pytest.mark.long
@pytest.mark.model
@pytest.mark.parametrize(
    ("ending", "share", "how"),
    [
        ("wav", 1.0, {"ar": 8000, "acodec": "pcm_mulaw"}),
        ("amr", 1.0, {"ar": 8000, "audio_bitrate": "12.2k"}),
        ("mp3", 0.5, {"ar": 8000, "audio_bitrate": "8k"}),
    ],
    ids=["mulaw", "amr", "mp3"],
)
def test_a_coded_address_has_one_speaker(
    judge: Judge, speech: dict[str, Array], tmp_path: Path, ending: str, share: float, how: dict[str, object]
) -> None:
    plain = speech["address"]
    source = ffmpeg.input(str(EXAMPLES / "address.flac"))
    source.output(str(tmp_path / f"a.{ending}"), **how).run(cmd=media.ffmpeg_binary(), quiet=True)
    coded = media.read_audio(tmp_path / f"a.{ending}")[: len(plain)]
    first = round(len(plain) * (1 - share))
    samples = np.concatenate([plain[:first], coded[first:]])
    talk = Dialogue("address", "alone", samples, (Turn(0.0, len(samples) / RATE, "Kennedy"),))
    assert judge.judge(talk).found == 1
