"""The transcribe engine on real speech with its real models."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference import weights
from inference.audio import Array
from inference.base import Cancelled, EngineError, InputError, LocalContext
from inference.evaluate_speech import errors, judge, units
from inference.transcribe import Options, Params, Transcribe
from inference.transcribe.transcript import Transcript
from inference.vad import SAMPLE_RATE, SileroModel, SpeechDetector

pytestmark = pytest.mark.model

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "speech"
DIALOGUE = EXAMPLES / "two_speakers.flac"
ADDRESS = EXAMPLES / "address.flac"
ADDRESS_TEXT = (EXAMPLES / "address.txt").read_text("utf-8")


def transcribe(engine: Transcribe, audio: Path, **more: object) -> dict[str, Any]:
    with LocalContext() as context:
        return engine.run(engine.check({"audio": str(audio), **more}), context)


@pytest.fixture(scope="module")
def address(engine: Transcribe, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The address, heard once: its result, and the same as a JSON file alone in its folder."""
    path = tmp_path_factory.mktemp("address") / "talk.json"
    return transcribe(engine, ADDRESS, output=str(path)), path


def words_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [word for segment in result["segments"] for word in segment["words"]]


def test_dialogue(engine: Transcribe) -> None:
    row, result = judge(engine, DIALOGUE, (EXAMPLES / "two_speakers.txt").read_text("utf-8"), {})
    assert row.errors is not None
    assert row.errors <= 2
    assert result["speakers"] == ["spk0", "spk1"]
    assert row.words_right is not None
    assert row.words_right >= 0.95
    keys = {"text", "language", "duration_s", "segments", "speakers", "speakers_confidence", "overlaps", "warnings"}
    assert set(result) == {*keys, "resumed_s", "task"}
    assert result["resumed_s"] is None
    assert result["speakers_confidence"] > 0.8
    assert result["overlaps"] == []
    assert result["language"] == "en"
    assert result["duration_s"] == pytest.approx(28.4, abs=0.1)
    assert result["warnings"] == []
    assert len(result["segments"]) >= 4
    for segment in result["segments"]:
        assert set(segment) == {"start", "end", "text", "speaker", "language", "words", "cues"}
        assert {word["speaker"] for word in segment["words"]} == {segment["speaker"]}
        assert segment["start"] <= segment["words"][0]["start"]
        assert segment["words"][-1]["end"] <= segment["end"]
        for word in segment["words"]:
            assert set(word) == {"start", "end", "word", "speaker", "probability"}
            assert 0 <= word["probability"] <= 1
    times = [time for word in words_of(result) for time in (word["start"], word["end"])]
    assert times == sorted(times)
    json.dumps(result)


def test_word_times_are_where_the_sound_is(address: tuple[dict[str, Any], Path]) -> None:
    words = {word["word"].strip(",."): word for word in words_of(address[0])}
    assert words["Americans"]["end"] == pytest.approx(2.25, abs=0.3)
    assert words["country"]["end"] < 11.0
    assert words["And"]["start"] == pytest.approx(0.35, abs=0.25)


def test_one_reader_is_one_speaker(engine: Transcribe) -> None:
    result = transcribe(engine, EXAMPLES / "reading.flac")
    assert result["speakers"] == ["spk0"]
    assert errors(units((EXAMPLES / "reading.txt").read_text("utf-8")), units(result["text"])) == 0


@pytest.mark.long
def test_for_one_speaker_nobody_listens_to_voices(engine: Transcribe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("voices were listened to")

    monkeypatch.setattr("inference.transcribe.diarize.Session.listen", fail)
    result = transcribe(engine, DIALOGUE, speakers=1)
    assert result["speakers"] == ["spk0"]
    assert not any("voices" in warning for warning in result["warnings"])


@pytest.mark.long
def test_bounds_of_their_number_can_be_given(engine: Transcribe) -> None:
    assert transcribe(engine, DIALOGUE, max_speakers=1)["speakers"] == ["spk0"]
    three = transcribe(engine, DIALOGUE, min_speakers=3)
    assert three["speakers"] == ["spk0", "spk1", "spk2"] or "3 speakers were asked for" in three["warnings"][0]


@pytest.mark.long
def test_two_at_once_are_marked(engine: Transcribe, speech: dict[str, Array], write_wav: Callable[..., Path]) -> None:
    both = speech["reading"].copy()
    late = speech["address"][: len(both) - 4 * SAMPLE_RATE]
    both[4 * SAMPLE_RATE :] += late
    overlaps = transcribe(engine, write_wav("both.wav", both))["overlaps"]
    assert sum(overlap["end"] - overlap["start"] for overlap in overlaps) > 0.8
    assert all(overlap["start"] > 3.5 for overlap in overlaps)


@pytest.mark.long
def test_speech_is_written_in_english(engine: Transcribe) -> None:
    """Told that it is German, the model writes German unless it translates."""
    result = transcribe(engine, ADDRESS, language="de", task="translate")
    assert "country" in result["text"]
    assert (result["task"], result["language"]) == ("translate", "de")
    assert {segment["language"] for segment in result["segments"]} == {"en"}
    Transcript.model_validate(result, strict=True)
    with pytest.raises(InputError, match="a translation is English"):
        engine.check({"audio": str(ADDRESS), "task": "translate", "itn": True})


@pytest.mark.long
def test_result_does_not_depend_on_batches(engine: Transcribe) -> None:
    with LocalContext() as context:
        small = engine.run(engine.check({"audio": str(DIALOGUE), "batch_size_s": 5}), context)
    assert errors(units((EXAMPLES / "two_speakers.txt").read_text("utf-8")), units(small["text"])) <= 4
    assert small["speakers"] == ["spk0", "spk1"]
    percents = [percent for _, percent, _ in context.updates]
    assert percents == sorted(percents)
    assert percents[0] == 0.0
    assert percents[-1] == 100.0
    assert len({percent for percent in percents if 5 < percent < 95}) >= 3
    assert {status for status, _, _ in context.updates} == {"processing", "inference"}
    assert context.partials
    said = [{**word, "speaker": None} for word in words_of(small)]
    assert words_of({"segments": context.partials}) == said, "what was handed out does not change"


@pytest.mark.long
def test_same_input_same_result(engine: Transcribe) -> None:
    assert transcribe(engine, ADDRESS) == transcribe(engine, ADDRESS)


def test_a_json_file_holds_the_result(address: tuple[dict[str, Any], Path]) -> None:
    result, path = address
    assert result["output"] == str(path)
    assert json.loads(path.read_text("utf-8")) == result
    assert Transcript.model_validate(result, strict=True).model_dump(exclude_unset=True) == result
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("suffix", ["srt", pytest.param("txt", marks=pytest.mark.long)])
def test_other_files_hold_the_words(engine: Transcribe, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"talk.{suffix}"
    assert transcribe(engine, ADDRESS, output=str(path))["output"] == str(path)
    text = re.sub(r"[\[\]\d:,>-]+|spk\d|-->", " ", path.read_text("utf-8"))
    assert errors(units(ADDRESS_TEXT), units(text)) <= 1
    assert list(tmp_path.iterdir()) == [path]


def test_cancel_leaves_nothing_behind(engine: Transcribe, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(Cancelled), LocalContext(is_cancelled=lambda: time.monotonic() > began + 0.2) as context:
        engine.run(engine.check({"audio": str(DIALOGUE), "output": str(tmp_path / "x.txt")}), context)
    assert list(tmp_path.iterdir()) == []


def test_video_with_sound(engine: Transcribe, tmp_path: Path, ffmpeg: Callable[..., None]) -> None:
    video = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x64:rate=5:duration=11", "-i", ADDRESS, video)
    assert errors(units(ADDRESS_TEXT), units(transcribe(engine, video)["text"])) <= 1


def test_video_without_sound(engine: Transcribe, tmp_path: Path, ffmpeg: Callable[..., None]) -> None:
    video = tmp_path / "mute.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=64x64:rate=5:duration=2", video)
    with pytest.raises(InputError, match="video without sound"):
        engine.check({"audio": str(video)})


def test_silence(engine: Transcribe, write_wav: Callable[[str, Array], Path]) -> None:
    result = transcribe(engine, write_wav("silence.wav", np.zeros(5 * SAMPLE_RATE, np.float32)))
    assert (result["text"], result["segments"], result["speakers"]) == ("", [], [])
    assert result["warnings"] == ["the recording is silent"]
    assert result["duration_s"] == pytest.approx(5.0)


def music(seconds: float) -> Array:
    """Plucked chords with a bass and a beat."""
    rng = np.random.default_rng(3)
    time_s = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    sound = np.zeros_like(time_s)
    for beat in np.arange(0, seconds, 0.5):
        since = time_s - beat
        decay = np.where(since >= 0, np.exp(-3 * np.clip(since, 0, None)), 0.0)
        for note in rng.choice([0, 3, 7, 10, 12, 15, 19], 3, replace=False):
            pitch = 220 * 2 ** (note / 12)
            sound += decay * sum(np.sin(2 * np.pi * pitch * k * time_s) / k**1.5 for k in range(1, 6))
        sound += 2 * np.where(since >= 0, np.exp(-60 * np.clip(since, 0, None)), 0.0) * rng.normal(size=len(time_s))
    return np.asarray(0.5 * sound / np.max(np.abs(sound)), dtype=np.float32)


@pytest.mark.parametrize("kind", ["music", "noise", "hum"])
def test_sound_without_speech(engine: Transcribe, write_wav: Callable[[str, Array], Path], kind: str) -> None:
    rng = np.random.default_rng(0)
    sound = {
        "music": music(6),
        "noise": (0.1 * rng.normal(size=6 * SAMPLE_RATE)).astype(np.float32),
        "hum": (0.3 * np.sin(2 * np.pi * 50 * np.arange(6 * SAMPLE_RATE) / SAMPLE_RATE)).astype(np.float32),
    }[kind]
    result = transcribe(engine, write_wav(f"{kind}.wav", sound))
    assert result["text"] == ""
    assert len(result["warnings"]) == 1
    assert "music" in result["warnings"][0]


def test_truncated_file_works_with_a_warning(engine: Transcribe, tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    path.write_bytes(ADDRESS.read_bytes()[:130_000])
    result = transcribe(engine, path)
    assert "fellow Americans" in result["text"]
    assert any("truncated" in warning for warning in result["warnings"])


def test_header_without_sound(engine: Transcribe, tmp_path: Path) -> None:
    path = tmp_path / "head.flac"
    path.write_bytes(ADDRESS.read_bytes()[:8300])
    with pytest.raises(InputError, match=r"head\.flac"):
        transcribe(engine, path)


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({}, "audio: is required"),
        ({"audio": "/nowhere/talk.wav"}, "/nowhere/talk.wav does not exist"),
        ({"audio": str(ADDRESS), "speaker": 2}, "speaker: is an unknown key; did you mean 'speakers'?"),
        ({"audio": str(ADDRESS), "speakers": 0}, "speakers: should be greater than or equal to 1"),
        ({"audio": str(ADDRESS), "speakers": "two"}, "speakers: "),
        ({"audio": str(ADDRESS), "max_speakers": 0}, "max_speakers: "),
        (
            {"audio": str(ADDRESS), "min_speakers": 4, "max_speakers": 3},
            "max_speakers: .*3 is less than min_speakers, 4",
        ),
        ({"audio": str(ADDRESS), "speakers": 2, "min_speakers": 2}, "min_speakers: .*cannot be given beside speakers"),
        ({"audio": str(ADDRESS), "speakers": 2, "max_speakers": 2}, "max_speakers: .*cannot be given beside speakers"),
        ({"audio": str(ADDRESS), "batch_size_s": -1}, "batch_size_s: "),
        ({"audio": str(ADDRESS), "language": "klingon"}, "language: 'klingon'"),
        ({"audio": str(ADDRESS), "output": "talk.doc"}, "output: .*none of .json, .srt, .vtt, "),
        ({"audio": str(ADDRESS), "output": "/nowhere/talk.txt"}, "output: the folder /nowhere does not exist"),
    ],
)
def test_parameters_are_checked(engine: Transcribe, params: dict[str, object], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint) as caught:
        engine.check(params)
    assert caught.value.kind == "input"


def test_language_names(engine: Transcribe) -> None:
    for given, code in {"EN": "en", "zh-CN": "zh", "auto": None, "": None}.items():
        assert engine.check({"audio": str(ADDRESS), "language": given}).language == code


def test_hotword_changes_the_spelling(engine: Transcribe) -> None:
    result = transcribe(engine, EXAMPLES / "reading.flac", hotword="Dashwoode")
    assert "Dashwoode" in result["text"]


@pytest.mark.long
def test_unrelated_hotwords_change_no_other_word(engine: Transcribe) -> None:
    names = "Kubernetes Zoltan Reykjavik Paracetamol Yamamoto Quetzal Lufthansa Ventricle Ouagadougou Tchaikovsky"
    assert len(names.split()) == 10
    result = transcribe(engine, DIALOGUE, hotword=names)
    assert errors(units((EXAMPLES / "two_speakers.txt").read_text("utf-8")), units(result["text"])) <= 2
    assert not set(units(names)) & set(units(result["text"]))


def test_endless_hotwords_are_refused_or_cut(
    engine: Transcribe, speech: dict[str, Array], write_wav: Callable[[str, Array], Path]
) -> None:
    begin = write_wav("begin.wav", speech["address"][: 3 * SAMPLE_RATE])
    result = transcribe(engine, begin, hotword="Zanzibar Quetzalcoatl " * 150, language="en")
    assert result["text"]


@pytest.mark.long
def test_broken_labelling_costs_only_the_labels(engine: Transcribe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise IndexError("index 7 is out of bounds")

    monkeypatch.setattr("inference.transcribe.diarize.find_speakers", fail)
    result = transcribe(engine, DIALOGUE)
    assert len(result["text"]) > 100
    assert result["speakers"] == []
    assert {segment["speaker"] for segment in result["segments"]} == {None}
    assert "index 7 is out of bounds" in result["warnings"][0]


@pytest.mark.parametrize("diarize", [True, False])
def test_doctor_looks_at_the_models_that_tell_speakers_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diarize: bool
) -> None:
    monkeypatch.setenv("FILEPOOL_WEIGHTS", str(tmp_path))
    found = {one.check: one for one in Transcribe.diagnose("cpu", {"diarize": diarize})}
    assert {"whisper", "voice detection"} <= found.keys()
    assert ("speaker encoder" in found) is ("speaker changes" in found) is diarize
    if diarize:
        assert not found["speaker encoder"].ok
        assert "install speaker-encoder" in found["speaker encoder"].hint
        assert "install speaker-segmentation" in found["speaker changes"].hint


def test_missing_speaker_encoder_costs_only_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = weights.folder()
    for model in ("whisper-base", "silero-vad"):
        (tmp_path / model).symlink_to(here / model)
    monkeypatch.setenv("FILEPOOL_WEIGHTS", str(tmp_path))
    engine = Transcribe()
    engine.load("cpu", {"cpu_threads": 1})
    result = transcribe(engine, ADDRESS)
    assert errors(units(ADDRESS_TEXT), units(result["text"])) <= 1
    assert "weights install speaker-encoder" in result["warnings"][0]


def test_damaged_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(weights.folder() / "whisper-base", tmp_path / "whisper-base", copy_function=shutil.copyfile)
    with (tmp_path / "whisper-base" / "model.bin").open("r+b") as stream:
        stream.seek(1_000_000)
        stream.write(b"\0" * 64)
    monkeypatch.setenv("FILEPOOL_WEIGHTS", str(tmp_path))
    with pytest.raises(EngineError, match=r"model\.bin has SHA-256"):
        Transcribe().load("cpu", {})


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"beam": 5}, "options.beam: is an unknown key; did you mean 'beam_size'?"),
        ({"beam_size": 0}, "options.beam_size"),
        ({"model": "/nowhere/model"}, "/nowhere/model"),
        ({"vad": "/nowhere/vad.onnx"}, "/nowhere/vad.onnx"),
        ({"backend": "funasr"}, "options.model"),
    ],
)
def test_options_are_checked(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(EngineError, match=complaint) as caught:
        Transcribe().load("cpu", options)
    assert caught.value.kind == "engine"


@pytest.mark.parametrize(
    ("options", "same"), [({"beam_size": 3}, False), pytest.param({}, True, marks=pytest.mark.long)]
)
def test_fingerprint_follows_weights_and_options(engine: Transcribe, options: dict[str, int], same: bool) -> None:
    other = Transcribe()
    other.load("cpu", {"cpu_threads": 2, **options})
    assert (other.fingerprint() == engine.fingerprint()) is same


def test_files(engine: Transcribe, tmp_path: Path) -> None:
    found = engine.files(Params(audio=ADDRESS, output=tmp_path / "a" / ".." / "x.srt"))
    assert found.inputs == (ADDRESS,)
    assert found.outputs == (tmp_path / "x.srt",)


def test_schema_is_exported() -> None:
    schema = Transcribe.Params.model_json_schema()
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == {
        *("audio", "stream", "channels", "language", "speakers", "min_speakers", "max_speakers", "hotword"),
        *("batch_size_s", "output", "script", "itn", "word_times", "task"),
    }
    assert Options.model_json_schema()["additionalProperties"] is False


def test_import_is_light() -> None:
    import subprocess
    import sys

    heavy = "('torch', 'ctranslate2', 'onnxruntime', 'faster_whisper')"
    code = f"import sys, inference.transcribe; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_speech_is_found_in_any_blocks(speech: dict[str, Array]) -> None:
    model = SileroModel(weights.find("silero-vad/silero_vad_16k_sequence.onnx"))

    def stretches(block: int) -> list[tuple[int, int, int, int]]:
        detector, sound = SpeechDetector(model), speech["two_speakers"]
        found = [s for at in range(0, len(sound), block) for s in detector.feed(sound[at : at + block])]
        found += list(detector.finish())
        for stretch in found:
            assert np.array_equal(stretch.samples, sound[stretch.start : stretch.end])
        return [(s.start, s.speech_start, s.speech_end, s.end) for s in found]

    whole = stretches(10**9)
    assert len(whole) >= 4
    assert all(a[3] <= b[0] for a, b in itertools.pairwise(whole))
    assert stretches(777) == whole
    assert stretches(16000) == whole


def test_long_speech_is_cut_at_its_quietest(speech: dict[str, Array]) -> None:
    model = SileroModel(weights.find("silero-vad/silero_vad_16k_sequence.onnx"))
    reading = speech["reading"][6000 : int(6.7 * SAMPLE_RATE)]
    detector = SpeechDetector(model)
    found = [*detector.feed(np.tile(reading, 20)), *detector.finish()]
    assert max(len(stretch.samples) for stretch in found) / SAMPLE_RATE < 26
    assert sum(len(stretch.samples) for stretch in found) / SAMPLE_RATE > 100


def test_the_networks_for_voices_run_in_one_thread() -> None:
    """Beside other work two threads spend several times the processor time, on waiting for each other."""
    torch = pytest.importorskip("torch")
    torch.set_num_threads(2)
    engine = Transcribe()
    engine.load("cpu", {"cpu_threads": 2, "model": "whisper-tiny.en"})
    assert torch.get_num_threads() == 1
    with pytest.raises(InputError, match=r"task: whisper-tiny\.en cannot translate") as caught:
        engine.check({"audio": str(ADDRESS), "task": "translate"})
    assert "multilingual" in caught.value.hint
