"""Chinese: one script, and a word about models that understand it better."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from inference.base import InputError
from inference.manifest import MODELS
from inference.transcribe import Transcribe, itn, script, weak
from inference.transcribe.script import Script
from inference.transcribe.words import Word, join

pytest.importorskip("opencc")
pytest.importorskip("wetext")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "speech" / "address.flac"


def words(*texts: str, language: str | None = "zh") -> list[Word]:
    return [Word(at, at + 0.2, text, 0.9, language=language) for at, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("wanted", "said", "written"),
    [
        ("simplified", ["頭", "髮", "發", "展", "，"], ["头", "发", "发", "展", "，"]),
        ("traditional", ["头", "发", "发展"], ["頭", "髮", "發展"]),  # one character, told apart by its phrase
        ("traditional", ["皇后", "后面"], ["皇后", "後面"]),
        (None, ["頭", "发"], ["頭", "发"]),
    ],
)
def test_words_are_written_in_one_script(wanted: script.Wanted | None, said: list[str], written: list[str]) -> None:
    run = words(*said)
    Script(wanted).write(run)
    assert [word.text for word in run] == written
    assert [word.start for word in run] == list(range(len(said)))


def test_other_languages_stay_as_they_are() -> None:
    run = [*words("発", "展", "台", language="ja"), *words(" OpenCC", language="en"), *words("國")]
    Script("simplified").write(run)
    assert join(run) == "発展台 OpenCC国"


def test_a_phrase_that_changes_its_length_is_converted_word_by_word() -> None:
    class Longer:
        def convert(self, text: str) -> str:
            return text.replace("甲乙", "ABC").replace("甲", "a")

    converter = Script(None)
    converter._converter = Longer()
    run = words("甲", "乙")
    converter.write(run)
    assert [word.text for word in run] == ["a", "乙"]


@pytest.mark.parametrize(
    ("said", "written"),
    [
        (["我", "有", "三", "百", "二", "十", "五", "个", "人"], ["我", "有", "325个", "人"]),
        (["百", "分", "之", "二十五", "点", "五", "，", "好"], ["25.5%", "，", "好"]),
        (["一", "九", "九八", "年，", "万", "一"], ["1998年，", "万", "一"]),  # a mark stays with its word
        (["一", "起", "去", "三", "里", "屯"], ["一", "起", "去", "三", "里", "屯"]),
        ([], []),
    ],
)
def test_spelt_numbers_become_digits(said: list[str], written: list[str]) -> None:
    run = words(*said)
    found = itn.Numbers(True).written(run)
    assert [word.text for word in found] == written
    at = 0  # letters of the words before
    for word in found:
        assert word.start in {other.start for other in run}
        assert word.end in {other.end for other in run}
        at += word.end > word.start
    assert at == len(found)
    assert itn.Numbers(False).written(run) == run


def test_numbers_of_other_languages_stay_as_they_are() -> None:
    run = [*words("三", "百", language="ja"), *words(" two", " hundred", language="en"), *words("三", "百", "块")]
    assert join(itn.Numbers(True).written(run)) == "三百 two hundred300块"


def test_one_replacement_after_another_in_one_word() -> None:
    run = words("ab", "cd", "e")
    assert [word.text for word in itn.merged(run, [(0, 1, "1"), (3, 4, "22")])] == ["1b", "c22", "e"]
    assert [word.text for word in itn.merged(run, [(1, 3, "9")])] == ["a9d", "e"]
    assert itn.merged(run, [(1, 3, "9")])[0].end == run[1].end


@pytest.mark.parametrize(("module", "key", "value"), [(itn, "itn", True), (script, "script", "simplified")])
def test_without_the_package_the_job_is_refused_with_the_command(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, key: str, value: object
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=f"{key}: it needs (opencc|wetext)") as caught:
        Transcribe().check({"audio": str(EXAMPLE), key: value})
    assert caught.value.hint == "pip install 'filepool[chinese]'"


def test_a_weak_language_is_told_with_what_can_be_installed() -> None:
    (told,) = weak.weak("whisper-base", {"zh", "en", None})
    assert "Chinese: `python -m inference.weights install sherpa-paraformer sherpa-punctuation`" in told
    assert weak.weak("whisper-base", {"en", "ja", None}) == weak.weak("/models/large", {"zh"}) == []
    known = {model.name for model in MODELS}
    assert all({best, *more} <= known for _, best, more in weak.BETTER.values())
    assert "whisper-large-v3-turbo" in known
