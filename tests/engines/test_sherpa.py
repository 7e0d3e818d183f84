"""The backend sherpa: sherpa-onnx itself, with small models made here whose speech is tones."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import model_hub
import numpy as np
import pytest
from scenarios.world import World

from inference import manifest, weights
from inference.audio import Array
from inference.base import EngineError, LocalContext
from inference.transcribe import Transcribe
from inference.transcribe.params import Options
from inference.transcribe.punctuation import Punctuation, marked
from inference.transcribe.sherpa import Sherpa
from inference.transcribe.transcript import Transcript
from inference.transcribe.windows import Packer, Window
from inference.transcribe.words import Word, join
from inference.vad import SAMPLE_RATE, Stretch
from pool.format import codec

sherpa_models = pytest.importorskip("sherpa_models", reason="the package onnx is not installed")
pytest.importorskip("sherpa_onnx", reason="sherpa-onnx is not installed: pip install 'filepool[chinese]'")
tone = sherpa_models.tone
PAUSE_S = 0.5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sherpa")
    return {
        "sensevoice": sherpa_models.sensevoice(root / "sensevoice"),
        "paraformer": sherpa_models.paraformer(root / "paraformer"),
        "untimed": sherpa_models.paraformer(root / "untimed", times=False),
        "punctuation": sherpa_models.punctuation(root / "punctuation"),
    }


def sherpa(folder: Path) -> Sherpa:
    return Sherpa(Options(backend="sherpa", model=str(folder)), "cpu", 1)


def window(*stretches: Sequence[int], seconds: float = 0.3) -> Window:
    """Stretches of tones, two seconds apart in the recording; the first begins at 10 s."""
    packer, at = Packer(), 10 * SAMPLE_RATE
    still = np.zeros(int(0.2 * SAMPLE_RATE), np.float32)
    for tones in stretches:
        sound = np.concatenate([part for which in tones for part in (tone(which, seconds), still)])
        assert packer.add(Stretch(at, sound, at, at + len(sound))) is None
        at += len(sound) + 2 * SAMPLE_RATE
    packed = packer.flush()
    assert packed is not None
    return packed


@pytest.mark.parametrize("kind", ["sensevoice", "paraformer"])
def test_each_word_has_its_time_in_the_recording(folders: dict[str, Path], kind: str) -> None:
    session = sherpa(folders[kind]).session(None, None)
    (heard,) = session.recognise([window((0, 1), (2, 3, 0))])
    assert [word.text for word in heard.words] == list("你好世界你")
    assert [word.start for word in heard.words] == pytest.approx([10.0, 10.5, 13.0, 13.5, 14.0], abs=0.15)
    assert all(word.start < word.end for word in heard.words)
    assert {word.language for word in heard.words} == {"zh"}
    assert session.language == "zh"
    assert session.warnings() == []


def test_words_without_times_are_spread_over_their_stretch_and_told(folders: dict[str, Path]) -> None:
    session = sherpa(folders["untimed"]).session(None, "达摩院")
    (heard,) = session.recognise([window((0, 1), (2, 3, 0))])
    first, second = heard.words[:2], heard.words[2:]
    assert join(heard.words) == "你好世界你"
    assert all(10.0 <= word.start < word.end <= 11.1 for word in first)
    assert all(12.9 <= word.start < word.end <= 14.7 for word in second)
    assert session.warnings() == [
        "hotword means nothing to Paraformer and was not used",
        "the times of 5 of 5 words are estimates: Paraformer gives none that fit",
    ]


def test_the_language_that_is_asked_for_reaches_the_model(folders: dict[str, Path]) -> None:
    loaded = sherpa(folders["sensevoice"])
    assert loaded.languages == ("zh", "en", "yue", "ja", "ko")
    for code in ("yue", "ja", None):
        (heard,) = loaded.session(code, None).recognise([window((0,))])
        assert heard.words[0].language == heard.language == (code or "zh")


@pytest.mark.parametrize("kind", ["sensevoice", "paraformer", "untimed"])
@pytest.mark.parametrize("samples", [1, 400, 1600])
def test_a_stretch_too_short_for_one_frame_says_nothing(folders: dict[str, Path], kind: str, samples: int) -> None:
    session = sherpa(folders[kind]).session(None, None)
    packer = Packer()
    packer.add(Stretch(0, np.zeros(samples, np.float32), 0, samples))
    short = packer.flush()
    assert short is not None
    (heard,) = session.recognise([short])
    assert heard.words == []


def damage(folder: Path) -> None:
    whole = (folder / "model.onnx").read_bytes()
    (folder / "model.onnx").write_bytes(whole[: len(whole) // 2])


def shorten(folder: Path) -> None:
    (folder / "tokens.txt").write_text("<blank> 0\n</s> 1\n", "utf-8")


@pytest.mark.parametrize(
    ("kind", "harm", "says"),
    [
        ("sensevoice", damage, "model.onnx cannot be read as an ONNX model"),
        ("paraformer", shorten, "tokens.txt has 2 tokens, model.onnx writes 16"),
        ("paraformer", lambda folder: (folder / "tokens.txt").unlink(), "options.model: .* holds no tokens.txt"),
        ("paraformer", lambda folder: (folder / "model.onnx").unlink(), "holds no model.int8.onnx or model.onnx"),
        ("punctuation", lambda _: None, "says nothing of inv_stddev, lfr_window_shift"),
    ],
)
def test_a_folder_that_cannot_be_run_is_refused(
    folders: dict[str, Path], tmp_path: Path, kind: str, harm: Callable[[Path], None], says: str
) -> None:
    """sherpa-onnx itself would end the process."""
    copy = Path(shutil.copytree(folders[kind], tmp_path / "copy"))
    harm(copy)
    with pytest.raises(EngineError, match=says) as caught:
        sherpa(copy)
    assert caught.value.hint


@pytest.mark.parametrize("note", ["lang_ko", "normalize_samples", "neg_mean"])
def test_a_note_that_is_missing_is_named(tmp_path: Path, note: str) -> None:
    with pytest.raises(EngineError, match=f"says nothing of {note}"):
        sherpa(sherpa_models.sensevoice(tmp_path / "model", **{note: ""}))


def test_what_cannot_be_loaded_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILEPOOL_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(EngineError, match="the sherpa backend needs a model"):
        Sherpa(Options(backend="sherpa"), "cpu", 1)
    with pytest.raises(EngineError, match="runs on the processor, not on cuda:0"):
        Sherpa(Options(backend="sherpa", model="sherpa-paraformer"), "cuda:0", 1)
    with pytest.raises(EngineError, match=r"weights missing: .*sherpa-paraformer") as caught:
        Sherpa(Options(backend="sherpa", model="sherpa-paraformer"), "cpu", 1)
    assert "python -m inference.weights install sherpa-paraformer" in caught.value.hint


@pytest.mark.parametrize(("name", "kind"), [("sherpa-paraformer", "paraformer"), ("sherpa-sensevoice", "sensevoice")])
def test_an_installed_model_is_loaded_by_its_name(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    """From a hub on this machine by the addresses of the manifest; the bytes are others, and so the digests."""
    held = {"model.int8.onnx": folders[kind] / "model.onnx", "tokens.txt": folders[kind] / "tokens.txt"}
    listed = manifest.model(name)
    contents = {weight.name: held[weight.path].read_bytes() for weight in listed.files}
    files = tuple(
        replace(weight, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for weight in listed.files
        for content in (contents[weight.name],)
    )
    monkeypatch.setattr(manifest, "MODELS", (replace(listed, files=files),))
    monkeypatch.setenv("FILEPOOL_WEIGHTS", str(tmp_path / "weights"))
    with model_hub.running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        for weight in files:
            hub.files[urlsplit(weight.url).path] = model_hub.Served(contents[weight.name])
        weights.install([name])
    loaded = Sherpa(Options(backend="sherpa", model=name), "cpu", 1)
    assert loaded.files() == [tmp_path / "weights" / weight.name for weight in files]
    (heard,) = loaded.session(None, None).recognise([window((1, 0))])
    assert join(heard.words) == "好你"


# ---- punctuation


def words(text: str) -> list[Word]:
    return [Word(at, at + 0.5, letter, None) for at, letter in enumerate(text)]


def test_an_open_sentence_is_marked_anew_with_what_follows(folders: dict[str, Path]) -> None:
    model = Punctuation(folders["punctuation"], 1)
    first = words("世你好")
    model.write(first)
    assert join(first) == "世，你好。"
    later = words("世界你")
    model.write([*first, *later])
    assert join(first) == "世，你好"
    assert join(later) == "世，界。你。"


@pytest.mark.parametrize(
    ("texts", "given", "marks"),
    [
        (["你", "好"], "你好。", ["", "。"]),
        (["你", " OpenAI", " is", "好"], "你，openai is。好？", ["，", "", ".", "？"]),
        ([" two", " words"], "two，words。", [",", "."]),
        (["甲", "乙", "丙"], "甲，丙。", ["，", "", "。"]),  # the model lost a letter
        (["甲", "乙"], "", ["", ""]),
        ([" "], "。", [""]),
    ],
)
def test_marks_go_to_their_words(texts: list[str], given: str, marks: list[str]) -> None:
    assert marked(texts, lambda _: given) == marks


# ---- the whole


class Saving(LocalContext):
    """Keeps every checkpoint as the pool stores it."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[bytes] = []

    def checkpoint(self, state: Mapping[str, object]) -> None:
        self.files.append(codec.encode(dict(state)))


@pytest.fixture
def talk(speech: dict[str, Array], write_wav: Callable[[str, Array], Path]) -> Path:
    pause = np.zeros(SAMPLE_RATE, np.float32)
    return write_wav("talk.wav", np.concatenate([speech["two_speakers"], pause, speech["address"]]))


@pytest.mark.model
@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_recording_goes_on_from_a_checkpoint(folders: dict[str, Path], talk: Path) -> None:
    engine = Transcribe()
    engine.load(
        "cpu",
        {
            "backend": "sherpa",
            "model": str(folders["paraformer"]),
            "punctuation": str(folders["punctuation"]),
            "cpu_threads": 1,
        },
    )
    engine.warmup()
    params = {"audio": str(talk), "batch_size_s": 15.0, "speakers": 2}
    with Saving() as context:
        result = engine.run(engine.check(params), context)
    Transcript.model_validate(result)
    assert result["language"] == "zh"
    assert result["speakers"] == ["spk0", "spk1"]
    assert len(result["segments"]) > 2
    assert result["text"].count("。") > 2
    assert set(result["text"]) <= set("你好世界，。")
    assert "".join(str(segment["text"]) for segment in context.partials) == result["text"]
    assert len(context.files) > 1
    with LocalContext() as again:
        again.saved = codec.decode(context.files[0])
        found = engine.run(engine.check(params), again)
    assert found.pop("resumed_s") > 0
    result.pop("resumed_s")
    assert found == result
    assert again.partials == context.partials


@pytest.mark.model
@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_pool_runs_it(folders: dict[str, Path], talk: Path, tmp_path: Path) -> None:
    world = World(tmp_path)
    try:
        options: dict[str, Any] = {"backend": "sherpa", "model": str(folders["sensevoice"]), "cpu_threads": 1}
        spec = "inference.transcribe:Transcribe"
        world.configure({"speech": {"engine": spec, "max_concurrent_tasks": 1, "options": options}}).serve(ready=1)
        future = world.pool().submit("speech", audio=str(talk), language="yue", output=str(tmp_path / "talk.srt"))
        result = dict(future.result(240))
        assert result["language"] == "yue"
        assert result["text"]
        assert {segment["language"] for segment in result["segments"]} == {"yue"}
        assert (tmp_path / "talk.srt").read_text("utf-8").startswith("1\n00:00:0")
    finally:
        world.close()
