"""Made-up dialogues: the truth beside a recording is where its sound is."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest

from inference.audio import Array, level_dbfs
from inference.dialogues import KINDS, RATE, Half, Person, all_kinds, half_of, make, read_people, telephone

PEOPLE = 12


def hum(hertz: float, seconds: float = 20.0) -> Array:
    """A tone that swells five times a second: one person, who can be told by the pitch."""
    time = np.arange(int(seconds * RATE)) / RATE
    return (0.1 * np.sin(2 * np.pi * hertz * time) * (1.2 + np.sin(2 * np.pi * 5 * time))).astype(np.float32)


@pytest.fixture(scope="module")
def people() -> list[Person]:
    rng = np.random.default_rng(0)
    return [Person(f"p{n}", hum(400 + 150 * n), rng.random(24).astype(np.float32)) for n in range(PEOPLE)]


def pitch(samples: Array) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(samples * np.hanning(len(samples))))) * RATE / len(samples))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["plain", "telephone", "noise", "short"])
def test_each_turn_is_where_the_truth_says(people: list[Person], kind: str) -> None:
    for number in range(3):
        talk = make(people, kind, number, seed=4)
        assert 2 <= talk.people <= 8
        for turn in talk.turns:
            assert 0 <= turn.start < turn.end <= len(talk.samples) / RATE
            heard = talk.samples[int(turn.start * RATE) : int(turn.end * RATE)]
            assert pitch(heard) == pytest.approx(400 + 150 * int(turn.person[1:]), abs=15)


def test_silence_is_nobody(people: list[Person]) -> None:
    talk = make(people, "plain", 0, seed=4)
    spoken = np.zeros(len(talk.samples), np.bool_)
    for turn in talk.turns:
        spoken[int(turn.start * RATE) : int(turn.end * RATE)] = True
    assert level_dbfs(talk.samples[~spoken]) < -60
    assert level_dbfs(talk.samples[spoken]) > -30


def test_one_person_alone(people: list[Person]) -> None:
    talk = make(people, "alone", 0, seed=1)
    assert talk.people == 1
    middle = len(talk.samples) // 2
    assert not np.array_equal(talk.samples[:middle], talk.samples[middle : 2 * middle])


def test_people_talk_at_once(people: list[Person]) -> None:
    talks = [make(people, "overlap", number, seed=1) for number in range(4)]
    both = [(a, b) for talk in talks for a in talk.turns for b in talk.turns if a.person != b.person]
    assert any(max(a.start, b.start) < min(a.end, b.end) - 0.2 for a, b in both)


def test_turns_are_as_short_as_they_say(people: list[Person]) -> None:
    lengths = [turn.end - turn.start for n in range(4) for turn in make(people, "short", n, seed=1).turns]
    assert max(lengths) <= 2.01
    assert min(lengths) < 1.4


@pytest.mark.long
def test_the_same_seed_makes_the_same_recordings(people: list[Person]) -> None:
    once, again = (list(all_kinds(people, 1, seed)) for seed in (5, 5))
    assert [talk.kind for talk in once] == list(KINDS)
    for one, two in zip(once, again, strict=True):
        assert one.turns == two.turns
        assert np.array_equal(one.samples, two.samples)
    assert make(people, "plain", 0, 6).turns != once[0].turns


def test_a_telephone_has_no_low_and_no_high_tones() -> None:
    passed, low, high = (level_dbfs(telephone(hum(hertz))) - level_dbfs(hum(hertz)) for hertz in (1000, 100, 6000))
    assert passed == pytest.approx(0.0, abs=0.5)
    assert low < -25
    assert high < -30


@pytest.mark.long
def test_people_are_read_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for number in range(40):
        for part in range(2):
            path = tmp_path / ("deep" if number % 2 else "") / f"{number}-{part}.wav"
            with wave.open(str(path), "wb") as out:
                out.setparams((1, 2, RATE, 0, "NONE", ""))
                sound = np.concatenate((np.zeros(RATE // 2), hum(300 + 10 * number, 4.0)))
                out.writeframes((sound * 32767).astype("<i2").tobytes())
    halves = {half: {person.name for person in read_people(tmp_path, half)} for half in Half}
    assert not halves[Half.TUNING] & halves[Half.HELD_OUT]
    assert halves[Half.TUNING] | halves[Half.HELD_OUT] == {str(number) for number in range(40)}
    person = read_people(tmp_path, Half.TUNING)[0]
    assert len(person.samples) / RATE == pytest.approx(8.0, abs=0.1)  # two files, silence cut off
    assert level_dbfs(person.samples) == pytest.approx(-26.0, abs=0.1)
    assert half_of(person.name) is Half.TUNING


def test_a_folder_with_few_people_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 persons"):
        read_people(tmp_path, Half.TUNING)
