"""key=value words of a command line: what becomes text, number, path, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest

from inference.transcribe.params import Params as TranscribeParams
from pool.cli.arguments import MAX_VALUE_BYTES, parse_words
from pool.errors import JobRefused


class Inner(pydantic.BaseModel):
    x: int = 0


class Wanted(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    text: str = ""
    maybe: str | None = None
    whole: int = 0
    real: float = 0.0
    either: int | str = 0
    flag: bool = False
    many: list[str] = []
    inner: Inner = Inner()
    mode: Literal["fast", "good"] = "fast"
    anything: Any = None
    place: Path = Path(".")
    other: Path | None = None


SCHEMA = Wanted.model_json_schema()


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("text=5", "5"),
        ("text=true", "true"),
        ("text=a=b", "a=b"),
        ("text=", ""),
        ('text="quoted"', '"quoted"'),
        ("text=[1]", "[1]"),
        ("maybe=null", None),
        ("maybe=nobody", "nobody"),
        ("maybe=7", "7"),
        ("whole=7", 7),
        ("whole=-7", -7),
        ("whole=1.5", 1.5),
        ("whole=seven", "seven"),
        ("real=3", 3),
        ("real=1e3", 1000.0),
        ("real=NaN", "NaN"),
        ("either=7", 7),
        ("either=seven", "seven"),
        ("flag=true", True),
        ("flag=True", True),
        ("flag=no", False),
        ("flag=1", True),
        ('many=["a", "b"]', ["a", "b"]),
        ("many=a", "a"),
        ('inner={"x": 2}', {"x": 2}),
        ("mode=good", "good"),
        ("anything=5", 5),
        ("anything=five", "five"),
        ("anything=null", None),
        ("anything:=5", 5),
        ('text:="5"', "5"),
        ("text:=5", 5),
        ("text=@@home", "@home"),
        ("text=@", "@"),
        ("place=a.wav", "/here/a.wav"),
        ("place=../a.wav", "/a.wav"),
        ("place=/abs/a.wav", "/abs/a.wav"),
        ("other=b.srt", "/here/b.srt"),
        ("other=null", None),
    ],
)
def test_a_value_takes_the_form_that_the_schema_wants(word: str, value: Any) -> None:
    key = word.partition("=")[0].rstrip(":")
    found = parse_words([word], SCHEMA, Path("/here"))[key]
    assert found == value
    assert type(found) is type(value)


def test_what_it_makes_of_words_suits_the_engine_transcribe() -> None:
    words = ["audio=call.m4a", "speakers=2", "language=en", "batch_size_s=60", "hotword=12 Monkeys", "output=c.srt"]
    params = parse_words(words, TranscribeParams.model_json_schema(), Path("/here"))
    assert TranscribeParams.model_validate(params).speakers == 2
    assert params["audio"] == "/here/call.m4a"
    assert params["hotword"] == "12 Monkeys"


def test_home_is_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert parse_words(["place=~/a.wav"], SCHEMA)["place"] == "/home/ada/a.wav"


def test_values_from_files(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("Ada Grace\n")
    (tmp_path / "many.json").write_text('["a"]')
    words = ["text=@names.txt", "many=@many.json", "anything:=@many.json"]
    assert parse_words(words, SCHEMA, tmp_path) == {"text": "Ada Grace", "many": ["a"], "anything": ["a"]}


def test_without_a_schema_files_that_exist_are_paths(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    words = ["audio=a.wav", "number=3", "name=ada", "output=new.srt", "rel=./x", "long=" + "x" * 5000]
    assert parse_words(words, None, tmp_path) == {
        "audio": str(tmp_path / "a.wav"),
        "number": 3,
        "name": "ada",
        "output": str(tmp_path / "new.srt"),
        "rel": str(tmp_path / "x"),
        "long": "x" * 5000,
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["speech.wav"], r"'speech.wav' is not key=value: write for example audio=speech.wav"),
        (["=5"], "is not key=value"),
        (["whole=1", "whole=2"], "params.whole: is given twice"),
        (["hole=1"], 'params.hole: unknown parameter, did you mean "whole"'),
        (["zzz=1"], "params.zzz: unknown parameter; known: text, maybe"),
        (["whole:=one"], "params.whole: 'one' is not JSON .*for a string write whole="),
        (["text=@absent.txt"], "absent.txt cannot be read: No such file.*write @@ for a value that starts with @"),
        (["text=@."], "cannot be read: Is a directory"),
    ],
)
def test_wrong_words_are_told(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(JobRefused, match=message):
        parse_words(words, SCHEMA, tmp_path)


def test_media_do_not_travel_by_value(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(JobRefused, match="is not UTF-8 text: pass its path, without the @"):
        parse_words(["text=@a.wav"], SCHEMA, tmp_path)
    with open(tmp_path / "big", "wb") as big:
        big.truncate(MAX_VALUE_BYTES + 1)
    with pytest.raises(JobRefused, match="larger than 4 MB: pass its path"):
        parse_words(["text=@big"], SCHEMA, tmp_path)
