"""The funasr backend against the real package, with small random models made here."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.base import EngineError, InputError, LocalContext, ResourceError
from inference.transcribe import Transcribe
from inference.transcribe.funasr_backend import FunAsrBackend, asked
from inference.transcribe.funasr_result import Reader, language
from inference.transcribe.params import Params

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
    assert set(result) == {"text", "language", "task", "duration_s", "segments", "speakers", "warnings"}
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
    assert isinstance(engine._backend, FunAsrBackend)
    files = engine._backend.files()
    assert files
    assert not [path for path in files if path.name.startswith(".")], "notes of an installer change as they are read"
    (tmp_path / "x.wav").touch()
    with pytest.raises(InputError, match="empty"):
        engine.check({"audio": str(tmp_path / "x.wav")})


def test_folders_are_checked(models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="paraformer-zh is no folder") as caught:
        Transcribe().load("cpu", {"backend": "funasr", "model": "paraformer-zh"})
    assert "allow_download" in caught.value.hint
    monkeypatch.setenv("FILEPOOL_WEIGHTS", str(tmp_path / "weights"))
    with pytest.raises(EngineError, match=r"weights missing: .*funasr-paraformer") as caught:
        Transcribe().load("cpu", {"backend": "funasr", "model": "funasr-paraformer"})
    assert "python -m inference.weights install funasr-paraformer" in caught.value.hint
    with pytest.raises(EngineError, match=r"config\.yaml"):
        Transcribe().load("cpu", {"backend": "funasr", "model": str(tmp_path)})


def transcribe(engine: Transcribe, **asked: object) -> dict[str, Any]:
    with LocalContext() as context:
        return engine.run(engine.check({"audio": str(READING), **asked}), context)


def words_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [word for segment in result["segments"] for word in segment["words"]]


@pytest.fixture
def short_of_a_mark(engine: Transcribe, monkeypatch: pytest.MonkeyPatch) -> None:
    """The punctuation model gives one mark less than there are words, as the published ones do at times."""
    punctuation = engine._backend._model.punc_model  # type: ignore[union-attr]
    real = punctuation.inference

    def inference(*given: Any, **named: Any) -> Any:
        results, about = real(*given, **named)
        results[0]["punc_array"] = results[0]["punc_array"][:-1]
        return results, about

    monkeypatch.setattr(punctuation, "inference", inference)


@pytest.mark.usefixtures("short_of_a_mark")
def test_punctuation_that_does_not_fit_the_times(engine: Transcribe) -> None:
    """funasr then gives the text of the recording as a list of characters, and all of it to one speaker."""
    result = transcribe(engine)
    assert "[" not in result["text"]
    assert "'" not in result["text"]
    plain = transcribe(engine, speakers=1)
    assert [word["word"] for word in words_of(result)] == [word["word"] for word in words_of(plain)]
    assert result["speakers"] == []
    assert any("speakers are not told apart: the punctuation" in warning for warning in result["warnings"])


def test_merge_vad_reaches_generate(
    models: dict[str, str], engine: Transcribe, monkeypatch: pytest.MonkeyPatch
) -> None:
    from funasr.auto import auto_model

    calls = []
    real = auto_model.merge_vad
    monkeypatch.setattr(auto_model, "merge_vad", lambda *given: calls.append(given) or real(*given))
    merging = Transcribe()
    merging.load("cpu", {"backend": "funasr", "cpu_threads": 1, "funasr_generate": {"merge_vad": True}, **models})
    assert transcribe(merging)["text"]
    assert len(calls) == 1
    assert merging.fingerprint() != engine.fingerprint()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"funasr": {"merge_vad": True}}, "options.funasr: merge_vad has no effect on AutoModel"),
        ({"funasr_generate": {"fs": 8000}}, "options.funasr_generate: fs cannot be set"),
    ],
)
def test_arguments_in_the_wrong_place(tmp_path: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(EngineError, match=says) as caught:
        Transcribe().load("cpu", {"backend": "funasr", "model": str(tmp_path), **options})
    assert caught.value.hint


@pytest.fixture(scope="module")
def sensevoice(tmp_path_factory: pytest.TempPathFactory) -> Transcribe:
    pytest.importorskip("funasr")
    pytest.importorskip("kaldi_native_fbank")
    import funasr_models

    loaded = Transcribe()
    model = funasr_models.make_sensevoice(tmp_path_factory.mktemp("sensevoice"))
    loaded.load("cpu", {"backend": "funasr", "cpu_threads": 1, "model": model})
    return loaded


@pytest.mark.parametrize(("language", "code"), [("en", "en"), ("de", None)])
def test_sensevoice_is_asked_for_punctuation(
    sensevoice: Transcribe, monkeypatch: pytest.MonkeyPatch, language: str, code: str | None
) -> None:
    model = sensevoice._backend._model.model  # type: ignore[union-attr]
    seen: dict[str, Any] = {}
    real = model.inference
    monkeypatch.setattr(model, "inference", lambda *given, **named: seen.update(named) or real(*given, **named))
    result = transcribe(sensevoice, language=language, hotword="x")
    assert seen["use_itn"] is True
    assert seen.get("language") == code
    assert "hotword" not in seen
    assert "hotword means nothing to SenseVoiceSmall and was not used" in result["warnings"]
    assert (code is None) == any(warning.startswith("language: 'de'") for warning in result["warnings"])
    times = [(word["start"], word["end"]) for word in words_of(result)]
    assert times == sorted(times)
    assert all(0 <= start < end <= 7.2 for start, end in times)


@pytest.mark.parametrize(
    "parts", [("vad_model",), ("vad_model", "spk_model"), ("vad_model", "punc_model", "spk_model")]
)
def test_sensevoice_beside_other_models(
    models: dict[str, str], tmp_path_factory: pytest.TempPathFactory, parts: tuple[str, ...]
) -> None:
    """As its users run it: its text comes with tags, its speakers with or without a model for punctuation."""
    import funasr_models

    folder = funasr_models.make_sensevoice(tmp_path_factory.mktemp("sensevoice"))
    loaded = Transcribe()
    options = {"model": folder, **{part: models[part] for part in parts}}
    loaded.load("cpu", {"backend": "funasr", "cpu_threads": 1, **options})
    result = transcribe(loaded, language="zh")
    assert result["text"]
    assert "<|" not in result["text"]
    found = words_of(result)
    assert all(0 <= word["start"] < word["end"] <= 7.2 for word in found)
    if "spk_model" in parts:
        told = any("speakers are not told apart" in warning for warning in result["warnings"])
        assert told or {word["speaker"] for word in found} == set(result["speakers"]) != set()
    else:
        assert result["speakers"] == []


@pytest.mark.parametrize("seconds", [0.12, 0.3, 1.0])
@pytest.mark.parametrize("loud", [0.0, 0.2])
def test_short_recordings(
    engine: Transcribe, sensevoice: Transcribe, write_wav: Callable[[str, Any], Path], seconds: float, loud: float
) -> None:
    sound = loud * np.sin(np.arange(int(seconds * 16_000)) * 0.1)
    path = write_wav("short.wav", sound.astype(np.float32))
    for loaded in (engine, sensevoice):
        with LocalContext() as context:
            result = loaded.run(loaded.check({"audio": str(path)}), context)
        assert result["duration_s"] == pytest.approx(seconds, abs=0.01)
        assert result["text"] or result["warnings"]


def test_failure_of_both_tries_is_an_engine_error(engine: Transcribe, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AttributeError("no such thing")

    monkeypatch.setattr(engine._backend._model.model, "inference", fail)  # type: ignore[union-attr]
    with pytest.raises(EngineError, match="funasr: Paraformer failed: AttributeError: no such thing"):
        transcribe(engine)


def test_out_of_memory_is_worth_another_try(engine: Transcribe, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def fail(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine._backend._model.model, "inference", fail)  # type: ignore[union-attr]
    with pytest.raises(ResourceError, match="cpu ran out of memory on a recording, with Paraformer"):
        transcribe(engine)


def test_no_gpu_is_said(models: dict[str, str]) -> None:
    """funasr itself goes on without a word on the processor."""
    with pytest.raises(EngineError, match="cuda:9 cannot be used"):
        Transcribe().load("cuda:9", {"backend": "funasr", "cpu_threads": 1, **models})


def test_fun_asr_nano_gets_its_own_words() -> None:
    pytest.importorskip("funasr")
    from funasr.models.fun_asr_nano.model import FunASRNano

    warnings: list[str] = []
    how = asked("FunASRNano", Params(audio=READING, hotword="开放 时间", language="zh"), warnings)
    prompt = FunASRNano.get_prompt(None, how["hotwords"], how["language"])
    assert "[开放, 时间]" in prompt
    assert "语音转写成中文" in prompt
    assert asked("FunASRNano", Params(audio=READING, language="中文"), warnings)["language"] == "中文"
    assert asked("FunASRNano", Params(audio=READING, language="sw"), warnings) == {}
    assert warnings == ["language: 'sw' is none that FunASRNano knows; it was left to find out"]


def test_hotwords_are_words_and_no_addresses() -> None:
    """ContextualParaformer fetches a hotword that begins with http and opens one that ends in .txt."""
    for word in ("http://example.org/words", "/etc/words.txt"):
        given = asked("SeacoParaformer", Params(audio=READING, hotword=word), [])["hotword"]
        assert given.split() == [word]
        assert not given.startswith("http")
        assert not given.endswith(".txt")
    assert asked("Qwen3ASR", Params(audio=READING, hotword="a b"), [])["context"] == "a b"


def said(found: object, seconds: float = 10.0) -> tuple[list[tuple[float, float, str, int | None]], list[str]]:
    """Words with times and speakers, and the warnings, out of what a model may return."""
    reader = Reader("Paraformer", seconds)
    runs = reader.read(found).runs
    return [(word.start, word.end, word.text, word.speaker) for run in runs for word in run], reader.warnings


def test_words_of_mixed_text() -> None:
    times = [[0, 200], [200, 400], [400, 900], [900, 1200]]
    words, warnings = said([{"text": "你好 hello world。", "timestamp": times}])
    assert [word[2] for word in words] == ["你", "好", "hello", " world。"]
    assert [word[:2] for word in words] == [(0.0, 0.2), (0.2, 0.4), (0.4, 0.9), (0.9, 1.2)]
    assert warnings == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It is 3.14, at 12:30.", ["It", "is", "3.14,", "at", "12:30."]),
        ("नमस्ते दुनिया।", ["नमस्ते", "दुनिया।"]),
        ("สวัสดี ครับ", ["สวัสดี", "ครับ"]),
        ("don't re-use it", ["don't", "re-use", "it"]),
        ("안녕하세요 여러분", ["안녕하세요", "여러분"]),
    ],
)
def test_words_stay_whole(text: str, words: list[str]) -> None:
    found, _ = said([{"text": text}])
    assert [word[2].strip() for word in found] == words
    assert "".join(word[2] for word in found).strip() == text


def test_text_without_times_and_with_tags() -> None:
    reader = Reader("SenseVoiceSmall", 4.0)
    result = reader.read([{"text": "<|zh|><|HAPPY|>你好。再见。"}])
    assert ["".join(word.text for word in run) for run in result.runs] == ["你好。", "再见。"]
    assert reader.warnings == ["SenseVoiceSmall gives no times that fit its words: they are spread over the recording"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("<|yue|>你好", "yue"),
        ("hello", None),
        ("你好", "zh"),
        ("こんにちは世界", "ja"),
        ("안녕", "ko"),
        ("<|HAPPY|><|en|>x", "en"),
    ],
)
def test_language(text: str, code: str | None) -> None:
    assert language(text) == code


def test_fun_asr_nano_without_vad() -> None:
    """It gives `timestamps`, one map with seconds for each piece of its vocabulary, and no `timestamp`."""
    pieces = [("你", 0.6, 0.66), ("好", 1.2, 1.26), ("，", 1.3, 1.36), (" hel", 2.0, 2.1), ("lo", 2.1, 2.4)]
    stamps = [{"token": token, "start_time": a, "end_time": b, "score": 0.9} for token, a, b in pieces]
    words, warnings = said([{"key": "x", "text": "你好， hello", "text_tn": "你好 hello", "timestamps": stamps}], 60.0)
    assert words == [(0.6, 0.66, "你", None), (1.2, 1.26, "好，", None), (2.0, 2.4, "hello", None)]
    assert warnings == []


def test_sensevoice_with_times_for_punctuation() -> None:
    result = {
        "text": "<|en|><|NEUTRAL|><|Speech|><|withitn|>Hello there. Bye.",
        "timestamp": [[30, 300], [300, 600], [600, 660], [900, 1200], [1200, 1260]],
        "words": ["Hello", "there", ".", "Bye", "."],
    }
    words, warnings = said([result])
    assert words == [(0.03, 0.3, " Hello", None), (0.3, 0.6, " there.", None), (0.9, 1.2, " Bye.", None)]
    assert warnings == []


def test_words_that_sentences_dropped() -> None:
    """What follows the last mark of punctuation is in no sentence; it is in the text, and in the times."""
    times = [[at * 500, at * 500 + 400] for at in range(4)]
    sentences = [{"text": "你好，", "start": 0, "end": 900, "timestamp": times[:2], "spk": 0}]
    words, warnings = said([{"text": "你好，世界", "timestamp": times, "sentence_info": sentences}])
    assert [word[2] for word in words] == ["你", "好，", "世", "界"]
    assert [word[:2] for word in words] == [(at * 0.5, at * 0.5 + 0.4) for at in range(4)]
    assert {word[3] for word in words} == {0}
    assert warnings == ["2 of 4 words are in no sentence of Paraformer: they get the speaker beside them"]


def test_many_odd_fields_are_one_warning() -> None:
    sentences = [sentence(text=letter, start=at, end=at + 1, spk=[]) for at, letter in enumerate("甲乙丙")]
    _, warnings = said([{"text": "甲乙丙", "sentence_info": sentences}])
    assert "Paraformer returned list ([]) in sentence_info[0].spk and 2 more like it: not used" in warnings


def sentence(**changes: object) -> dict[str, object]:
    return {"text": "你好。", "start": 0, "end": 900, "timestamp": [[0, 400], [500, 900]], "spk": 0} | changes


@pytest.mark.parametrize(
    ("result", "times", "people", "warns"),
    [
        (sentence(timestamp=[[0, 400], None]), [(0.0, 0.4), (0.45, 0.9)], [0, 0], ""),
        (sentence(timestamp=[None, None]), [(0.0, 0.45), (0.45, 0.9)], [0, 0], ""),
        (sentence(start=None), [(0.0, 0.4), (0.5, 0.9)], [0, 0], ""),
        (sentence(start=None, end=None, timestamp=None), [(0.0, 5.0), (5.0, 10.0)], [0, 0], ""),
        (sentence(spk="spk1"), [(0.0, 0.4), (0.5, 0.9)], [0, 0], ""),
        (sentence(spk=np.int64(3)), [(0.0, 0.4), (0.5, 0.9)], [0, 0], ""),
        (sentence(spk=None), [(0.0, 0.4), (0.5, 0.9)], [None, None], ""),
        (sentence(spk=-1), [(0.0, 0.4), (0.5, 0.9)], [None, None], ""),
        (sentence(spk={}), [(0.0, 0.4), (0.5, 0.9)], [None, None], "dict .{}. in sentence_info.0..spk"),
        (
            sentence(timestamp="0,400"),
            [(0.0, 0.45), (0.45, 0.9)],
            [0, 0],
            "str .'0,400'. in sentence_info.0..time",
        ),
        (sentence(timestamp=np.array([[0, 400], [500, 900]])), [(0.0, 0.4), (0.5, 0.9)], [0, 0], ""),
        (sentence(timestamp=[[0, 400], [float("nan"), 900]]), [(0.0, 0.4), (0.45, 0.9)], [0, 0], ""),
        (sentence(timestamp=[[0, 400], [90_000, 99_000]]), [(0.0, 0.4), (0.45, 0.9)], [0, 0], ""),
        (sentence(text=7), [(0.0, 5.0), (5.0, 10.0)], [None, None], "int .7. in sentence_info.0..text"),
    ],
)
def test_odd_fields_of_a_sentence(
    result: dict[str, object], times: list[tuple[float, float]], people: list[int | None], warns: str
) -> None:
    words, warnings = said([{"text": "你好。", "sentence_info": [result]}])
    assert [word[2] for word in words] == ["你", "好。"]
    assert [edge for word in words for edge in word[:2]] == pytest.approx([edge for span in times for edge in span])
    assert [word[3] for word in words] == people
    if warns:
        assert re.search(warns, " ".join(warnings)), warnings
    own = result["timestamp"] if isinstance(result["timestamp"], (list, np.ndarray)) and result["text"] != 7 else []
    whole = [each for each in own if each is not None and 0 <= each[0] <= each[1] <= 10_000]
    assert (len(whole) < 2) == any("estimates" in warning or "no times" in warning for warning in warnings)


def test_speakers_by_order_of_appearance() -> None:
    labels = ["spk7", 2, "7", 2.0, "Ann"]
    sentences = [
        {"text": f"{letter}。", "start": at * 1000, "end": at * 1000 + 900, "spk": label}
        for at, (letter, label) in enumerate(zip("甲乙丙丁戊", labels, strict=True))
    ]
    words, _ = said([{"text": "甲。乙。丙。丁。戊。", "sentence_info": sentences}])
    assert [word[3] for word in words] == [0, 1, 0, 1, 2]


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ([{"text": 7}], r"Paraformer returned int \(7\) in text, which is no text"),
        ([{"text": ["你", 3]}], r"returned int \(3\) in text\[1\]"),
        ([{"text": b"x"}], r"returned bytes .* in text"),
        (["你好"], r"returned str .* in its result"),
        (7, r"returned int .* in its result"),
        ([{"text": "a"}, {"text": "b"}], "returned 2 results for one recording"),
        ([{"text": "", "sentence_info": 5}], r"returned int \(5\) in sentence_info"),
        ([{"sentence_info": [{"text": {}, "start": 0, "end": 1}]}], r"returned dict .* in sentence_info\[0\].text"),
    ],
)
def test_what_is_no_transcript(found: object, says: str) -> None:
    with pytest.raises(EngineError, match=says) as caught:
        said(found)
    assert caught.value.hint or "results" in says


@pytest.mark.parametrize("found", [[], None, [{}], [None], [{"text": "", "timestamp": []}], [{"text": "。"}]])
def test_nothing_said(found: object) -> None:
    assert said(found) == ([], [])


ODD = st.one_of(st.none(), st.integers(-5000, 99_000), st.floats(), st.text(max_size=4), st.booleans())
PAIR = st.one_of(ODD, st.lists(ODD, max_size=3), st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)))
TIMES = st.one_of(ODD, st.lists(PAIR, max_size=6))
LETTERS = st.text(alphabet="你好世界 ab，。.' ", max_size=8)
TEXT = st.one_of(LETTERS, LETTERS, st.lists(LETTERS, max_size=4), ODD)
STAMPS = st.lists(st.fixed_dictionaries({}, optional={"token": ODD, "start_time": ODD, "end_time": ODD}), max_size=4)
SENTENCE = st.one_of(
    ODD,
    st.fixed_dictionaries(
        {}, optional={"text": TEXT, "start": ODD, "end": ODD, "timestamp": TIMES, "spk": st.one_of(ODD, PAIR)}
    ),
)
RESULT = st.fixed_dictionaries(
    {},
    optional={
        "text": TEXT,
        "timestamp": TIMES,
        "timestamps": st.one_of(ODD, STAMPS),
        "words": st.one_of(ODD, st.lists(TEXT, max_size=6)),
        "sentence_info": st.one_of(ODD, st.lists(SENTENCE, max_size=4)),
    },
)


@settings(max_examples=400, deadline=None)
@given(RESULT, st.floats(0.1, 20))
def test_any_result_is_the_text_or_an_error(result: dict[str, Any], seconds: float) -> None:
    words, warnings, refused = [], [], ""
    try:
        words, warnings = said([result], seconds)
    except EngineError as error:
        refused = str(error)
    if refused:
        assert re.match(r"funasr: Paraformer returned .* in (text|sentence_info|timestamp)", refused)
        return
    text = result.get("text")
    letters = "".join(text) if isinstance(text, list) else text if isinstance(text, str) else ""
    if re.search(r"[你好世界ab]", letters):
        assert re.sub(r"\s", "", "".join(word[2] for word in words)) == re.sub(r"\s", "", letters)
    starts = [word[0] for word in words]
    assert starts == sorted(starts)
    assert all(0 <= start < end <= seconds + 0.021 for start, end, *_ in words)
    people = [word[3] for word in words if word[3] is not None]
    assert sorted(set(people)) == list(range(len(set(people))))
    if words and not any(result.get(name) for name in ("timestamp", "timestamps", "sentence_info")):
        assert warnings
