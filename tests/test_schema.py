"""Wrong parameters are refused before anything is written, with the key's path and the nearest known name."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from steps import places

from inference.fake import FakeParams
from pool import FilePool, JobRefused, UnknownEngine
from pool.config.settings import Config
from pool.runfiles import schemas as schema
from pool.runfiles.schemas import Schemas
from pool.spool.store import Spool


class Segment(BaseModel):
    model_config = ConfigDict(extra="forbid")
    start: float = Field(ge=0)


class Params(BaseModel):
    model_config = ConfigDict(extra="forbid")
    audio: Path
    language: str | None = None
    speakers: int = Field(2, ge=1, le=10)
    frames_num: int | None = Field(None, ge=1)
    last: Segment | Path | None = None
    segments: list[Segment] = []
    options: dict[str, Any] = {}
    output: Path | None = None


def _describe(spool: Spool, engine: str, value: Any) -> None:
    """As a worker leaves it at its boot."""
    text = value if isinstance(value, str) else json.dumps(value)
    (spool.root / "run" / "engines" / f"{engine}.json").write_text(text)


@pytest.fixture
def schemas(spool: Spool) -> Schemas:
    _describe(spool, "echo", {"engine": "a:B", "schema": Params.model_json_schema(), "doc": "Does it."})
    return Schemas(spool.root)


GOOD = {"audio": "/a.wav"}


@pytest.mark.parametrize(
    "params",
    [
        GOOD,
        {"audio": "/a", "language": None},
        {"audio": "/a", "language": "zh", "speakers": 10},
        {"audio": "/a", "segments": [{"start": 0}, {"start": 1.5}], "options": {"any": ["thing", {"at": "all"}]}},
        {"audio": Path("/a.wav")},
        {"audio": "/a", "options": {"array": np.zeros(3)}},
        {"audio": "/a", "options": {"bytes": b"x", "tuple": (1, 2)}},
    ],
)
def test_what_the_engine_takes_is_taken(schemas: Schemas, params: dict[str, Any]) -> None:
    schemas.check("echo", params)


@pytest.mark.parametrize(
    ("params", "path", "word"),
    [
        ({**GOOD, "speekers": 2}, "params.speekers", "did you mean 'speakers'?"),
        ({**GOOD, "zzz": 2}, "params.zzz", "known: audio, language"),
        ({"language": "zh"}, "params.audio", "required"),
        ({}, "params.audio", "required"),
        ({**GOOD, "speakers": 0}, "params.speakers", "less than the minimum"),
        ({**GOOD, "speakers": "2"}, "params.speakers", "not of type 'integer'"),
        ({**GOOD, "language": 7}, "params.language", "7 is not of type string"),
        ({**GOOD, "frames_num": 0}, "params.frames_num", "0 is less than the minimum of 1"),
        ({**GOOD, "frames_num": "x"}, "params.frames_num", "'x' is not of type integer"),
        ({**GOOD, "frames_num": 1.5}, "params.frames_num", "1.5 is not of type integer"),
        ({**GOOD, "last": 1}, "params.last", "1 is not of type"),
        ({**GOOD, "segments": [{"start": 1}, {"start": -1}]}, "params.segments.1.start", "minimum"),
        ({**GOOD, "segments": [{"begin": 1}]}, "params.segments.0", ""),
        ({"audio": ["/a"]}, "params.audio", "not of type 'string'"),
        ({"audio": "/a\0b.wav"}, "params.audio", "holds a NUL"),
        ({**GOOD, "output": Path("/a\0b/c")}, "params.output", "holds a NUL"),
    ],
)
def test_what_is_refused_names_the_key(schemas: Schemas, params: dict[str, Any], path: str, word: str) -> None:
    with pytest.raises(JobRefused) as caught:
        schemas.check("echo", params)
    assert caught.value.path.startswith(path)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "params",
    [
        {**GOOD, "x" * 100_000: 1},
        {**GOOD, "speakers": "x" * 100_000},
        {**GOOD, "language": ["x" * 100_000]},
        {**GOOD, "a\nb": 1},
        {"audio": ["x" * 100_000]},
        {**GOOD, "\udcff": 1},
    ],
)
def test_a_refusal_is_short_whatever_was_given(schemas: Schemas, params: dict[str, Any]) -> None:
    with pytest.raises(JobRefused) as caught:
        schemas.check("echo", params)
    assert len(str(caught.value)) < 600


def _deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def _circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize("make", [lambda: _deep(100_000), _circle, lambda: {(1, 2): 3}, lambda: {b"k": 1}])
def test_what_is_no_json_is_refused_and_nothing_else(schemas: Schemas, make: Callable[[], Any]) -> None:
    """No TypeError, no RecursionError: a drop of that kind must not end the supervisor."""
    with pytest.raises(JobRefused) as caught:
        schemas.check("echo", {**GOOD, "options": {"a": make()}})
    assert caught.value.path == "params"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3) | st.binary(max_size=2), v, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([*Params.model_fields, "x"]), PLAIN, max_size=4))
def test_any_parameters_are_taken_or_refused(schemas: Schemas, params: dict[str, Any]) -> None:
    try:
        schemas.check("echo", params)
    except JobRefused as error:
        refused = str(error)
        assert "params" in refused


# ---- descriptions


def test_an_engine_that_never_booted_takes_anything(spool: Spool) -> None:
    schemas = Schemas(spool.root)
    schemas.check("echo", {"any": object()})
    assert schemas.describe("echo") is None


DAMAGED: list[Any] = [
    "",
    "{",
    "[]",
    "7",
    "null",
    '"text"',
    {"schema": 7},
    {"schema": "x"},
    {"schema": []},
    {"schema": {"type": "wrong"}},
    {"schema": {"$ref": "#/nowhere"}},
    {"schema": {"$ref": "#"}},
    {"schema": {"properties": {"any": 7}}},
    {"schema": {"properties": {"any": {"minimum": "x"}}}},
]


@pytest.mark.parametrize("value", DAMAGED)
def test_a_damaged_description_takes_anything(spool: Spool, value: Any) -> None:
    """The engine answers in its own check(); a client must not fail for it."""
    _describe(spool, "echo", value)
    Schemas(spool.root).check("echo", {"any": 1})


def test_an_engine_without_a_schema_takes_anything(spool: Spool) -> None:
    _describe(spool, "echo", {"engine": "a:B", "schema": None, "doc": ""})
    schemas = Schemas(spool.root)
    schemas.check("echo", {"any": 1})
    assert schemas.describe("echo") == {"engine": "a:B", "schema": None, "doc": ""}


def test_a_new_description_is_seen(schemas: Schemas, spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    schemas.check("echo", GOOD)
    _describe(spool, "echo", {"engine": "a:B", "schema": {"type": "object", "required": ["video"]}, "doc": ""})
    os.utime(spool.root / "run" / "engines" / "echo.json", (1, 1))
    deadline = time.monotonic() + 5
    while True:  # a description is believed for a moment
        try:
            schemas.check("echo", GOOD)
        except JobRefused as error:
            path = error.path
            break
        assert time.monotonic() < deadline
    assert path == "params.video"


def test_a_description_is_not_read_for_every_job(schemas: Schemas, monkeypatch: pytest.MonkeyPatch) -> None:
    schemas.check("echo", GOOD)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} was read again"))
    for _ in range(100):
        schemas.check("echo", GOOD)


def test_the_engines_for_trying_have_schemas_that_work(spool: Spool) -> None:
    _describe(spool, "fake", {"engine": "inference.fake:Fake", "schema": FakeParams.model_json_schema(), "doc": ""})
    schemas = Schemas(spool.root)
    schemas.check("fake", {"do": "sleep", "seconds": 1.5})
    for params in ({"do": "dance"}, {"seconds": -1}, {"secs": 1}):
        path = f"params.{next(iter(params))}"
        with pytest.raises(JobRefused) as caught:
            schemas.check("fake", params)
        assert caught.value.path == path


# ---- paths


def test_paths_are_made_absolute_where_they_are_meant(
    schemas: Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given_ = {"audio": "a.wav", "language": "zh", "output": "out/o.mp4", "options": {"audio": "a.wav"}}
    assert schemas.fit("echo", given_) == {
        "audio": str(tmp_path / "a.wav"),
        "language": "zh",
        "output": str(tmp_path / "out" / "o.mp4"),
        "options": {"audio": "a.wav"},
    }
    absolute = {"audio": "/a.wav"}
    assert schemas.fit("echo", absolute)["audio"] == "/a.wav"
    assert schemas.fit("unknown", {"x": Path("a")}) == {"x": str(tmp_path / "a")}


# ---- where it matters: nothing is written


@pytest.fixture
def pool(spool: Spool, config: Config, schemas: Schemas) -> FilePool:
    return FilePool(config, start=False)


@pytest.mark.parametrize(
    ("call", "path", "kind"),
    [
        (lambda pool: pool.submit("echo", speekers=1, audio="/a"), "params.speekers", JobRefused),
        (lambda pool: pool.submit("nobody", audio="/a"), "engine", UnknownEngine),
        (lambda pool: pool.submit("echo", audio="/a", priority=101), "priority", JobRefused),
        (lambda pool: pool.submit("echo", audio="/a", id="../x"), "id", JobRefused),
        (lambda pool: pool.submit("echo", audio="/a", timeout_s=0), "timeout_s", JobRefused),
        (lambda pool: pool.submit("echo", audio="/a", retry_times=-1), "retry_times", JobRefused),
        (lambda pool: pool.submit("echo", audio="/a", options={"a": object()}), "params.options.a", JobRefused),
        (lambda pool: pool.submit("echo", audio="/a", options={"a": object()}, id="x"), "params.options.a", JobRefused),
        (lambda pool: pool.submit("echo", audio="/a", options={"a": 2**64}, id="x"), "params.options.a", JobRefused),
        (lambda pool: pool.submit("echo", audio="/a", options={"a": _deep(3000)}), "params", JobRefused),
        (lambda pool: pool.submit_many("echo", [{"audio": "/a"}, {"audio": 7}]), "calls[1].audio", JobRefused),
        (lambda pool: list(pool.map("echo", [{"audio": "/a"}, {}])), "calls[1].audio", JobRefused),
    ],
)
def test_a_refused_job_leaves_nothing(
    pool: FilePool, spool: Spool, call: Callable[[FilePool], object], path: str, kind: type[JobRefused]
) -> None:
    with pytest.raises(kind) as caught:
        call(pool)
    assert caught.value.path == path
    assert places(spool) == {}
    assert pool.pending() == []
    pool.close()


def test_what_is_believed_of_a_description_is_short(schemas: Schemas) -> None:
    assert schema._BELIEVED_S <= 1.0
