"""From sound to mouth: the encoder against the original, the head on real speech, the fit on made-up data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from inference import weights
from inference.articulation import CHANNELS, Articulator, head_path
from inference.articulation.curve import join
from inference.articulation.encoder import load_encoder, log_mel
from inference.articulation.examples import PLAIN, Example, Targets
from inference.articulation.fit import PENALTY, RidgeSums, fit_reducer, make_items
from inference.articulation.gate import AHEAD, APPROACH, voicing
from inference.articulation.grid import Aligner, labial_windows, other_windows, sentence
from inference.articulation.head import TAPS, Head, Meta, taps
from inference.articulation.lags import MOST_LAG, align, correlation
from inference.audio import Array
from inference.base import EngineError

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def whisper() -> Path:
    return weights.find_model("whisper-base")


@pytest.fixture(scope="module")
def articulator(whisper: Path) -> Articulator:
    import torch  # takes seconds, also of those who only collect tests

    torch.set_num_threads(1)
    return Articulator(whisper)


# ------------------------------------------------------------------ the encoder


@pytest.mark.long
def test_the_encoder_is_whispers(whisper: Path, speech: dict[str, Array]) -> None:
    import torch
    from faster_whisper import WhisperModel

    original = WhisperModel(str(whisper), device="cpu", compute_type="float32", cpu_threads=1)
    mel = log_mel(speech["address"], 1500)
    theirs = np.asarray(original.encode(mel))[0]
    ours = load_encoder(whisper)(torch.from_numpy(mel)[None])[-1][0].numpy()
    assert ours.shape == theirs.shape == (1500, 512)
    assert np.abs(ours - theirs).max() < 0.02 * np.abs(theirs).max()
    assert correlation(ours.ravel(), theirs.ravel()) > 0.9999


def test_what_is_no_model_is_refused_by_name(tmp_path: Path, whisper: Path) -> None:
    with pytest.raises(EngineError, match=r"model\.bin does not exist"):
        load_encoder(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"\x06\0\0\0\xff\xff nothing of the kind")
    with pytest.raises(EngineError, match=r"no CTranslate2 model"):
        load_encoder(tmp_path)
    with (whisper / "model.bin").open("rb") as whole:
        (tmp_path / "model.bin").write_bytes(whole.read(100_000))
    with pytest.raises(EngineError, match=r"it ends inside"):
        load_encoder(tmp_path)


# ------------------------------------------------------------------ the trained head


def test_a_sentence_and_the_silence_round_it(articulator: Articulator, speech: dict[str, Array]) -> None:
    pause = np.zeros(32_000, np.float32)
    heard = articulator.curve(np.concatenate([pause, speech["address"], pause]))
    count = len(heard)
    assert count == -(-(len(speech["address"]) + 64_000) // 640)
    assert set(heard.channels) == set(CHANNELS)
    assert all(values.shape == (count,) and np.isfinite(values).all() for values in heard.channels.values())
    quiet = np.r_[0 : 49 - AHEAD - APPROACH, count - 40 : count]
    assert (heard.voiced[quiet] < 0.05).all()
    assert not heard.closed[quiet].any()
    for name, rest in heard.rest.items():
        assert np.allclose(heard.channels[name][quiet], rest, atol=0.1)
    speaking = heard.voiced > 0.5
    assert speaking.mean() > 0.5
    assert heard.channels["opening"][speaking].std() > 0.5
    assert heard.channels["opening"][speaking].mean() > heard.rest["opening"] + 0.5


@pytest.mark.long
def test_lips_meet_at_p_b_and_m(articulator: Articulator, whisper: Path, speech: dict[str, Array]) -> None:
    aligner = Aligner(whisper)
    labials: list[bool] = []
    others: list[bool] = []
    for name in ("reading", "address", "two_speakers"):
        closed = articulator.curve(speech[name]).closed
        words = aligner.heard(speech[name], "en")
        late = 3  # frames by which a word begins after the aligner's word, now and then
        labials += [bool(closed[window.start : window.stop + late].any()) for window in labial_windows(words)]
        others += [bool(closed[window].any()) for window in other_windows(words)]
    assert len(labials) >= 8
    assert np.mean(labials) >= 0.9
    assert np.mean(others) < 0.3


@pytest.mark.long
def test_loudness_does_not_matter(articulator: Articulator, speech: dict[str, Array]) -> None:
    loud, soft = (articulator.curve(speech["reading"] * np.float32(gain)) for gain in (1.0, 0.05))
    for name in CHANNELS:
        assert correlation(loud.channels[name], soft.channels[name]) > 0.99


def test_noise_without_speech_leaves_the_mouth_at_rest(articulator: Articulator) -> None:
    rng = np.random.default_rng(2)
    for sound in (np.zeros(48_000), 0.05 * rng.standard_normal(48_000), 0.2 * np.sin(np.arange(48_000) * 0.08)):
        heard = articulator.curve(sound.astype(np.float32))
        assert heard.voiced.mean() < 0.2
        assert not heard.closed.any()


def test_what_is_settled_no_later_sound_changes(articulator: Articulator, speech: dict[str, Array]) -> None:
    sound = speech["two_speakers"][: 25 * 16_000]
    heard = articulator.listen(sound)
    assert heard.more()
    settled, begun = heard.settled, heard.articulation()
    assert settled is not None
    assert 7 * 25 < settled < len(begun) == 200
    whole = articulator.curve(sound)
    for of in (begun, whole):
        assert of.voiced[:settled].max() > 0.9
    for name in CHANNELS:
        assert np.array_equal(begun.channels[name][:settled], whole.channels[name][:settled])
    assert np.array_equal(begun.closed[:settled], whole.closed[:settled])
    assert np.array_equal(begun.voiced[:settled], whole.voiced[:settled])
    while heard.more():
        pass
    assert heard.settled is None
    assert np.array_equal(heard.articulation().channels["opening"], whole.channels["opening"])


@pytest.mark.long
def test_long_recordings_have_no_seams(articulator: Articulator, speech: dict[str, Array]) -> None:
    """Ninety seconds: in one array, in blocks, and each sentence alone say the same."""
    part = np.concatenate([speech["two_speakers"], np.zeros(-len(speech["two_speakers"]) % 640, np.float32)])
    long = np.concatenate([part] * 3)
    whole = articulator.curve(long)
    blocks = articulator.curve(long[at : at + 50_000] for at in range(0, len(long), 50_000))
    alone = articulator.curve(part)
    assert len(whole) == len(blocks) == 3 * len(alone)
    again = join([alone] * 3)
    for name in ("opening", "width"):
        assert correlation(whole.channels[name], blocks.channels[name]) > 0.99
        assert correlation(whole.channels[name], again.channels[name]) > 0.97


@pytest.mark.parametrize("count", [0, 1, 639, 640, 641, 320_001])
def test_any_length(articulator: Articulator, count: int) -> None:
    rng = np.random.default_rng(1)
    heard = articulator.curve((0.1 * rng.standard_normal(count)).astype(np.float32))
    assert len(heard) == -(-count // 640)


def test_lips_part_before_the_voice_and_rest_long_before_it() -> None:
    begin, count = 60, 100
    logit = np.where(np.arange(count) >= begin, 8.0, -8.0).astype(np.float32)
    voiced = voicing(logit, np.full(2 * count, 0.1, np.float32))
    rise = voiced[begin - AHEAD - APPROACH - 2 : begin - AHEAD + 2]
    assert (voiced[: begin - AHEAD - APPROACH - 1] < 0.01).all()
    assert (np.diff(rise) > -1e-6).all()
    assert np.diff(rise).max() < 1.5 / APPROACH
    assert (voiced[begin - AHEAD + 2 :] > 0.99).all()


def test_rescaled_keeps_rest_and_reaches_the_spread(articulator: Articulator, speech: dict[str, Array]) -> None:
    heard = articulator.curve(np.concatenate([np.zeros(32_000, np.float32), speech["reading"]]))
    lively = heard.rescaled()
    silent, loud = heard.voiced == 0, heard.voiced > 0.99
    assert silent.sum() > 20
    between = ~silent & ~loud
    for name in CHANNELS:
        assert np.allclose(lively.channels[name][silent], heard.rest[name])
        said = heard.rest[name] + (heard.channels[name] - heard.rest[name])[between] / heard.voiced[between]
        led = heard.rest[name] + heard.voiced[between] * (said / heard.spread[name] - heard.rest[name])
        assert np.allclose(lively.channels[name][between], led, atol=1e-4)
        gain = lively.channels[name][loud].std() / heard.channels[name][loud].std()
        assert gain == pytest.approx(1 / heard.spread[name], rel=1e-2)


def test_the_card_says_what_the_head_knows_of_itself() -> None:
    figures = Head.load(head_path()).meta.figures
    card = head_path().with_name("CARD.md").read_text("utf-8")
    (row,) = re.findall(r"^\| \*\*mean\*\* \|(.*)\|$", card, re.MULTILINE)
    told = [float(cell) for cell in row.split("|")]
    mean = figures["mean"]
    assert told[:5] == pytest.approx(mean["final"], abs=0.006)  # type: ignore[index]
    assert told[5] == pytest.approx(mean["delivered"][0], abs=0.006)  # type: ignore[index]
    assert told[6] == pytest.approx(mean["loudness"][0], abs=0.006)  # type: ignore[index]
    speakers, loudness = figures["speakers"], figures["opening"]["loudness"]  # type: ignore[index]
    assert all(values[0] > loudness[name] for name, values in speakers.items())  # type: ignore[attr-defined]
    below = figures["not_above_loudness"]
    assert below["delivered"] == []  # type: ignore[index]
    assert all(f"`{name}`" in card for name in below["head"])  # type: ignore[index]


def test_heads_that_cannot_be_used(tmp_path: Path, articulator: Articulator) -> None:
    bad = tmp_path / "head.npz"
    for content in (b"", b"no zip at all", head_path().read_bytes()[:50_000]):
        bad.write_bytes(content)
        with pytest.raises(EngineError, match=r"head\.npz is no articulation head"):
            Head.load(bad)
    meta = np.frombuffer(json.dumps({"version": 99}).encode(), np.uint8)
    np.savez(bad, meta=meta)
    with pytest.raises(EngineError, match="another version"):
        Head.load(bad)


def test_a_head_is_stored_as_it_is(tmp_path: Path, articulator: Articulator) -> None:
    first, second = tmp_path / "1.npz", tmp_path / "2.npz"
    articulator.head.save(first)
    Head.load(first).save(second)
    assert first.read_bytes() == second.read_bytes()


# ------------------------------------------------------------------ the fit


META = Meta(layers=(0,), width=12, components=6)


def made_up(lags: dict[int, int], seed: int = 0) -> tuple[list[Example], dict[int, Targets]]:
    """Clips of four speakers whose mouths follow their features linearly, late by so many half frames."""
    rng = np.random.default_rng(seed)
    way = rng.standard_normal((META.width, len(CHANNELS)))
    examples, goals = [], {}
    for clip, lag in lags.items():
        frames = 120
        steps = rng.standard_normal((2 * frames, META.width))
        features = np.stack([np.convolve(row, np.ones(6) / 6, "same") for row in steps.T], axis=1).astype(np.float32)
        shown = np.roll(features, lag, axis=0).reshape(frames, 2, META.width).mean(axis=1) @ way
        channels = ((shown - shown.mean(axis=0)) / shown.std(axis=0)).astype(np.float32)
        known = np.ones(frames, bool)
        known[: MOST_LAG // 2] = known[-MOST_LAG // 2 :] = False
        one = np.ones(len(CHANNELS), np.float32)
        goals[clip] = Targets(channels, known, channels[:, 0] < -1, 0 * one, one)
        layers = features[:, None, :].astype(np.float16)
        examples.append(Example(clip, f"speaker {clip % 4}", PLAIN, layers, np.ones(2 * frames, np.float32)))
    return examples, goals


def test_lags_between_sound_and_picture_are_found() -> None:
    true = dict(enumerate([0, 0, 0, 0, 0, 0, 0, 4, -3, 2, -6, 0]))
    examples, goals = made_up(true)
    found = align(examples, goals, fit_reducer(examples, META), TAPS, 1.0)
    middle = int(np.median(list(found.values())))  # a shift of everybody at once is nobody's lag
    assert {clip: lag - middle for clip, lag in found.items()} == true


def test_a_regression_without_a_speaker_is_one_that_never_saw_them() -> None:
    import torch

    examples, goals = made_up(dict.fromkeys(range(8), 0))
    reducer = fit_reducer(examples, META)
    items = make_items(examples, goals, dict.fromkeys(range(8), 0), reducer)
    others = [item for item in items if item.speaker != "speaker 1"]
    left_out, never = RidgeSums(items).solve("speaker 1"), RidgeSums(others).solve()
    assert torch.allclose(left_out, never, atol=1e-4)
    whole = RidgeSums(items).solve(penalty=1e-3)
    item = items[1]
    said = taps(item.inputs) @ whole[:-1] + whole[-1]
    assert correlation(said[10:-10, 0].numpy(), item.channels[10:-10, 0].numpy()) > 0.5
    assert PENALTY > 0


def test_names_that_spell_sentences() -> None:
    assert sentence("gs1_bbaf2n") == ["bin", "blue", "at", "F", "two", "now"]
    assert sentence("vr_1") is None
    assert sentence("talking_512") is None
