"""Chinese: one script, and a word about models that understand it better."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.base import InputError
from inference.manifest import MODELS
from inference.transcribe import Transcribe, script, weak
from inference.transcribe.script import Script
from inference.transcribe.words import Word, join

pytest.importorskip("opencc")
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


def test_without_the_package_the_job_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="script: it needs opencc") as caught:
        Transcribe().check({"audio": str(EXAMPLE), "script": "simplified"})
    assert caught.value.hint == "pip install 'filepool[chinese]'"


def test_a_weak_language_is_told_with_what_can_be_installed() -> None:
    (told,) = weak.weak("whisper-base", {"zh", "en", None})
    assert "Chinese: `python -m inference.weights install funasr-paraformer`" in told
    assert weak.weak("whisper-base", {"en", "ja", None}) == weak.weak("/models/large", {"zh"}) == []
    known = {model.name for model in MODELS}
    assert all(set(models) <= known for _, models in weak.BETTER.values())
