"""Grouping voices, giving words to speakers, cutting segments: pure logic, made-up vectors, no models."""

from __future__ import annotations

import itertools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from inference.audio import Array, level_dbfs, mel_filters, mel_spectrogram, raised
from inference.transcribe import outputs
from inference.transcribe.cluster import Heard, Wanted, find_speakers
from inference.transcribe.windows import Packer, Window
from inference.transcribe.words import Word, assign_speakers, ends_sentence, join, segments
from inference.vad import Stretch


def voices(people: list[int], spread: float = 0.75, seed: int = 0, breath: int = 4) -> Heard:
    """Unit vectors like the encoder's for windows of 1.2 s: same person cosine about 0.64, others about 0.05.

    A breath ends where the person changes, and after ``breath`` windows.
    """
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(max(people) + 1, 192))
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    noise = rng.normal(size=(len(people), 192))
    rows = base[people] + spread * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    spans, size = [0], 1
    for before, person in itertools.pairwise(people):
        size = 1 if person != before or size == breath else size + 1
        spans.append(spans[-1] + (size == 1))
    return Heard(unit(rows), np.full(len(people), 1.2, np.float32), np.array(spans), np.zeros(len(people), np.bool_))


def unit(rows: Array) -> Array:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def turns(*lengths: tuple[int, int]) -> list[int]:
    return [person for person, count in lengths for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_finds_how_many_speak(count: int) -> None:
    people = turns(*[(turn % count, 6) for turn in range(3 * count + 1)])
    found = find_speakers(voices(people))
    assert len(found.centroids) == count
    assert found.labels.tolist() == people  # numbered by first appearance
    assert found.confidence is not None
    assert found.confidence > 0.8


def test_number_of_speakers_can_be_given() -> None:
    people = turns((0, 20), (1, 20), (2, 20))
    for count in (1, 2, 3, 4, 6):
        found = find_speakers(voices(people), Wanted.of(count))
        assert len(found.centroids) == count
        assert found.confidence is None
        if count == 3:
            assert found.labels.tolist() == people


@pytest.mark.parametrize(("least", "most", "count"), [(None, 2, 2), (4, None, 4), (2, 5, 3), (3, 3, 3)])
def test_bounds_of_their_number_can_be_given(least: int | None, most: int | None, count: int) -> None:
    found = find_speakers(voices(turns((0, 20), (1, 20), (2, 20))), Wanted.of(None, least, most))
    assert len(found.centroids) == count


def test_vectors_may_have_any_length() -> None:
    people = turns((0, 12), (1, 12), (0, 12))
    heard = voices(people)
    wider = np.concatenate((heard.vectors, np.zeros((len(people), 320), np.float32)), axis=1)
    assert find_speakers(replace(heard, vectors=wider)).labels.tolist() == people


def test_noise_that_lowers_every_cosine_makes_nobody_new() -> None:
    people = turns((0, 12), (1, 12), (0, 12), (1, 12))
    found = find_speakers(voices(people, spread=1.1))
    assert found.labels.tolist() == people


def test_more_speakers_than_windows() -> None:
    found = find_speakers(voices([0, 0]), Wanted.of(5))
    assert 1 <= len(found.centroids) <= 2


def test_one_cough_is_no_speaker() -> None:
    people = turns((0, 30), (1, 1), (0, 30))
    assert len(find_speakers(voices(people)).centroids) == 1


def test_windows_that_hold_a_change_found_nobody() -> None:
    people = turns(*[(turn % 2, 4) for turn in range(12)])
    heard = voices(people)
    vectors = np.array(heard.vectors)
    for at in range(3, len(people) - 1, 4):  # the last window of each turn is half the next person's
        vectors[at] = unit(vectors[at : at + 1] + vectors[at + 1 : at + 2])
    found = find_speakers(replace(heard, vectors=vectors, spans=np.zeros(len(people), np.int64)))
    assert len(found.centroids) == 2
    clear = np.arange(len(people)) % 4 != 3
    assert (found.labels == people)[clear].all()


@pytest.mark.long
def test_two_hours_in_bounded_memory() -> None:
    people = turns(*[(turn % 4, 50) for turn in range(360)])
    heard = voices(people)
    compact = replace(heard, vectors=heard.vectors.astype(np.float16))
    del heard
    tracemalloc.start()
    try:
        found = find_speakers(compact)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found.centroids) == 4
    assert np.mean(found.labels == np.array(people)) > 0.999
    assert peak < 200e6


def say(text: str, start: float = 0.0, step: float = 0.3) -> list[Word]:
    parts = [part if at == 0 else f" {part}" for at, part in enumerate(text.split())]
    return [Word(start + at * step, start + at * step + 0.25, part, 0.9) for at, part in enumerate(parts)]


def test_words_go_to_who_is_heard_while_they_are_said() -> None:
    words = say("How are you today?") + say(" Fine, thank you.", 2.0)
    starts = np.array([0.0, 0.2, 1.9, 2.1])
    heard = np.array([[0.6, 0.9], [0.6, 0.9], [0.9, 0.6], [0.9, 0.6]], dtype=np.float32)
    assign_speakers(words, starts, starts + 1.2, heard)
    assert [word.speaker for word in words] == [0, 0, 0, 0, 1, 1, 1]


def test_one_doubtful_window_changes_nobody_in_a_phrase() -> None:
    words = say("we choose to go to the moon in this decade")
    starts = np.arange(0, 3, 0.4)
    heard = np.tile(np.array([[0.85, 0.6]], np.float32), (len(starts), 1))
    heard[3] = (0.7, 0.75)
    assign_speakers(words, starts, starts + 0.5, heard)
    assert {word.speaker for word in words} == {0}


def test_segments_end_with_sentences_speakers_and_pauses() -> None:
    words = say("Mr. Brown came. He sat") + say(" down and", 4.0) + say(" Who? Me?", 6.0)
    for word in words[-2:]:
        word.speaker = 1
    assert [join(run) for run in segments(words)] == ["Mr. Brown came.", "He sat", "down and", "Who?", "Me?"]


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("end.", True),
        ("end.”", True),
        ("Mr.", False),
        ("J.", False),
        ("语。", True),
        ("e.g.", False),
        ("I.", True),
        ("x", False),
    ],
)
def test_sentence_ends(text: str, end: bool) -> None:
    assert ends_sentence(text) is end


def test_endless_speech_is_cut() -> None:
    runs = list(segments(say("word " * 300)))
    assert len(runs) >= 3
    assert all(run[-1].end - run[0].start <= 30.0 for run in runs)


RESULT = {
    "text": "Hello there. Hi --> you. 你好。再见。",
    "speakers": ["spk0", "spk1"],
    "segments": [
        {"start": 0.0, "end": 1.5, "text": "Hello there.", "speaker": "spk0", "words": []},
        {"start": 1.5, "end": 2.0, "text": "Hi --> you.", "speaker": "spk0", "words": []},
        {"start": 3661.0404, "end": 3662.9999, "text": "你好。", "speaker": "spk1", "words": []},
    ],
}


def window(*speech: tuple[float, float]) -> Window:
    """A window of stretches (start, length) in seconds, with lead and tail; each sample is its own number."""
    packer = Packer(1000)
    for start, length in speech:
        first, last = int((start - 0.5) * 16000), int((start + length + 0.3) * 16000)
        samples = np.arange(first, last, dtype=np.float32)
        packer.add(Stretch(first, samples, int(start * 16000), int((start + length) * 16000)))
    packed = packer.flush()
    assert packed is not None
    return packed


def test_words_are_put_back_where_they_were_said() -> None:
    packed = window((1.0, 2.0), (60.0, 1.0))
    assert packed.seconds == pytest.approx(2.8 + 0.3 + 1.8)
    inside = packed.pieces[1].offset
    words = packed.place([Word(0.4, 1.0, "one", 1.0), Word(inside - 0.3, inside + 0.4, " two", 1.0)])
    assert (words[0].start, words[0].end) == pytest.approx((0.9, 1.5))
    assert words[1].start == pytest.approx(59.9)  # not in the pause before
    assert words[1].end == pytest.approx(60.4)


def test_a_full_window_is_handed_out() -> None:
    packer = Packer(10)
    sound = np.zeros(16000 * 6, np.float32)
    assert packer.add(Stretch(0, sound, 0, len(sound))) is None
    full = packer.add(Stretch(200_000, sound, 200_000, 200_000 + len(sound)))
    assert full is not None
    assert (full.start, full.end, full.seconds) == (0.0, 6.0, 6.0)
    rest = packer.flush()
    assert rest is not None
    assert rest.start == pytest.approx(12.5)
    assert packer.flush() is None


def test_halves_are_cut_in_a_pause() -> None:
    packed = window((1.0, 2.0), (4.0, 1.0), (10.0, 3.0))
    left, right = packed.halves()
    assert [piece.start for piece in left.pieces] == [1.0, 4.0]
    assert [piece.start for piece in right.pieces] == [10.0]
    assert len(left.samples) + len(right.samples) == len(packed.samples)
    offset = round(right.pieces[0].offset * 16000)
    assert right.samples[offset] == pytest.approx(160_000, abs=2)
    assert right.halves() == []


def test_speech_without_words_is_found() -> None:
    packed = window((1.0, 3.0), (10.0, 2.0))
    heard = [Word(1.0, 1.5, "one", 1.0), Word(1.6, 2.0, "two", 1.0), Word(3.2, 3.9, "three", 1.0)]
    gaps = packed.unheard(heard)
    assert [gap.start for gap in gaps] == pytest.approx([2.0, 10.0])
    assert [gap.end for gap in gaps] == pytest.approx([3.2, 12.0])
    offset = round(gaps[1].pieces[0].offset * 16000)
    assert gaps[1].samples[offset] == pytest.approx(160_000, abs=2)
    assert packed.unheard([Word(at, at + 0.9, "x", 1.0) for at in (1.0, 2.0, 3.0, 10.0, 11.0)]) == []


def test_srt() -> None:
    cues = outputs.as_srt(RESULT).split("\n\n")
    assert cues[0] == "1\n00:00:00,000 --> 00:00:01,500\nspk0: Hello there."
    assert cues[1].endswith("\nHi → you.")
    assert cues[2] == "3\n01:01:01,040 --> 01:01:03,000\nspk1: 你好。\n"


def test_txt_joins_turns() -> None:
    assert outputs.as_txt(RESULT) == "[00:00:00] spk0: Hello there. Hi → you.\n[01:01:01] spk1: 你好。\n"


def test_texts_of_wide_scripts_are_joined_without_spaces() -> None:
    assert outputs.join_texts(["你好。", "再见。", "Bye.", "Bye."]) == "你好。再见。Bye. Bye."


def test_mel_of_a_tone_is_where_it_belongs() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    filters = mel_filters(16000, 400, 40)
    mels = mel_spectrogram(tone, filters, 400, 160)
    assert mels.shape == (101, 40)
    centre = np.linspace(0, 8000, 201)[np.argmax(filters[int(np.argmax(mels[50]))])]
    assert abs(centre - 1000) < 100
    assert level_dbfs(tone) == pytest.approx(-3.01, abs=0.01)
    assert level_dbfs(raised(tone * 0.001, -30.0)) == pytest.approx(-30.0, abs=0.01)
    assert level_dbfs(np.zeros(10, np.float32)) == float("-inf")
