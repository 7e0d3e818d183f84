"""The funasr backend against the real package, with small random models made here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from inference.base import EngineError, InputError, LocalContext
from inference.transcribe import Transcribe
from inference.transcribe.funasr_backend import _language, _runs, _words

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the packages that funasr brings along
]

READING = Path(__file__).resolve().parents[2] / "examples" / "speech" / "reading.flac"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    pytest.importorskip("funasr", reason="the optional package funasr is not installed: pip install 'filepool[funasr]'")
    pytest.importorskip("kaldi_native_fbank", reason="funasr needs kaldi-native-fbank (or torchaudio)")
    import funasr_models

    level = logging.getLogger().level
    yield funasr_models.make(tmp_path_factory.mktemp("funasr"))
    logging.getLogger().setLevel(level)


@pytest.fixture(scope="module")
def engine(models: dict[str, str]) -> Transcribe:
    loaded = Transcribe()
    loaded.load("cpu", {"backend": "funasr", "cpu_threads": 1, **models})
    loaded.warmup()
    return loaded


def test_whole_pipeline(engine: Transcribe) -> None:
    with LocalContext() as context:
        job = engine.check({"audio": str(READING), "hotword": "达摩院", "batch_size_s": 60, "language": "zh"})
        result = engine.run(job, context)
    assert set(result) == {"text", "language", "duration_s", "segments", "speakers", "warnings"}
    assert result["text"]
    assert result["language"] == "zh"
    assert result["duration_s"] == pytest.approx(7.1, abs=0.01)
    assert result["speakers"][0] == "spk0"
    words = [word for segment in result["segments"] for word in segment["words"]]
    assert words
    assert all(0 <= word["start"] < word["end"] <= 7.2 for word in words)
    assert {word["speaker"] for word in words} == set(result["speakers"])
    assert context.partials
    assert context.updates[-1][1] == 100.0


def test_failing_labels_cost_only_the_labels(engine: Transcribe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("modelscope error: The number of speakers")

    monkeypatch.setattr(engine._backend._model.cb_model, "forward", fail)
    with LocalContext() as context:
        result = engine.run(engine.check({"audio": str(READING)}), context)
    assert result["text"]
    assert result["speakers"] == []
    assert "The number of speakers" in result["warnings"][0]


def test_fingerprint_and_bad_input(engine: Transcribe, tmp_path: Path) -> None:
    assert engine.fingerprint() == engine.fingerprint()
    (tmp_path / "x.wav").touch()
    with pytest.raises(InputError, match="empty"):
        engine.check({"audio": str(tmp_path / "x.wav")})


def test_folders_are_checked(models: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="paraformer-zh is no folder") as caught:
        Transcribe().load("cpu", {"backend": "funasr", "model": "paraformer-zh"})
    assert "allow_download" in caught.value.hint
    with pytest.raises(EngineError, match=r"config\.yaml"):
        Transcribe().load("cpu", {"backend": "funasr", "model": str(tmp_path)})


def test_words_of_mixed_text() -> None:
    times = [[0, 200], [200, 400], [400, 900], [900, 1200]]
    words = _words("你好 hello world。", 0.0, 1.2, times)
    assert [word.text for word in words] == ["你", "好", "hello", " world。"]
    assert [(word.start, word.end) for word in words] == [(0.0, 0.2), (0.2, 0.4), (0.4, 0.9), (0.9, 1.2)]
    assert [round(word.start, 2) for word in _words("a b c", 1.0, 4.0, [])] == [1.0, 2.0, 3.0]


def test_text_without_sentences_and_with_tags() -> None:
    runs = _runs({"text": "<|zh|><|HAPPY|>你好。再见。"}, 4.0)
    assert ["".join(word.text for word in run) for run in runs] == ["你好。", "再见。"]
    assert _language("<|yue|>你好") == "yue"
    assert _language("hello") is None
