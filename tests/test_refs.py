"""Placeholders for results: how they are written, found, checked, and filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pool.errors import JobRefused
from pool.job import references
from pool.job.references import MissingPart, ResultRef, fill, pack, result_of
from pool.runfiles.schemas import Schemas

RESULT = {"text": "hello", "segments": [{"text": "a"}, {"text": "b"}], "empty": {}}


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (result_of("one"), RESULT),
        (result_of("one", "text"), "hello"),
        (result_of("one")["text"], "hello"),
        (result_of("one", "segments", 1)["text"], "b"),
        (result_of(result_of("one", "segments"), -1, "text"), "b"),
    ],
)
def test_there_and_back_at_any_depth(given: ResultRef, value: Any) -> None:
    for wrap in (lambda v: {"a": v}, lambda v: {"a": [1, {"b": v}]}, lambda v: {"a": (v, v)}):
        packed, ids = pack(wrap(given))
        assert ids == ("one",)
        assert fill(packed, lambda job_id: RESULT) in (wrap(value), {"a": [value, value]})


def test_what_has_none_stays_the_same_object() -> None:
    params = {"a": 1, "b": "x", "c": None}
    assert pack(params)[0] is params
    nested: dict[str, Any] = {"a": [1, {"b": [{}]}], "c": {"path": [1]}}
    assert pack(nested) == (nested, ())


def test_they_stand_for_no_list() -> None:
    for one in (result_of("one"), result_of("one", "text")):
        with pytest.raises(TypeError):
            list(one)  # type: ignore[call-overload]
        with pytest.raises(TypeError):
            assert "text" in one  # type: ignore[operator]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        (["words"], r"the result of job one has no 'words': it has 'text', 'segments', 'empty'"),
        (["segments", 2], r"the result\['segments'\] of job one has no 2: it is a list of 2"),
        (["text", "x"], r"the result\['text'\] of job one has no 'x': it is a str"),
        (["empty", "x"], r"it is empty"),
        (["segments", "x"], r"has no 'x': it is a list"),
    ],
)
def test_a_part_that_is_not_there_is_named_with_what_is(keys: list[Any], why: str) -> None:
    with pytest.raises(MissingPart, match=why):
        fill({"a": result_of("one", *keys).placeholder()}, lambda job_id: RESULT)


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"$result": "one"}, "params.a"),
        ({"$result": "one", "path": "text"}, "params.a"),
        ({"$result": "one", "path": [1.5]}, "params.a"),
        ({"$result": "one", "path": [True]}, "params.a"),
        ({"$result": "one", "path": [], "more": 1}, "params.a"),
        ({"$result": "../etc", "path": []}, r"params.a.\$result"),
        ({"$result": 7, "path": []}, r"params.a.\$result"),
        ([0, {"$result": "one"}], "params.a.1"),
    ],
)
def test_a_placeholder_that_is_wrong_is_refused_with_its_key(value: Any, key: str) -> None:
    with pytest.raises(JobRefused, match=f"^{key}: "):
        pack({"a": value})


def test_the_schema_is_asked_about_all_but_the_placeholders(tmp_path: Path) -> None:
    (tmp_path / "run" / "engines").mkdir(parents=True)
    schema = """{"engine": "x", "doc": "", "schema": {
        "type": "object", "additionalProperties": false, "required": ["audio", "size"],
        "properties": {"audio": {"type": "string"}, "size": {"type": "integer"},
                       "names": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}}}"""
    (tmp_path / "run" / "engines" / "x.json").write_text(schema)
    schemas, one = Schemas(tmp_path), result_of("one", "text").placeholder()
    schemas.check("x", {"audio": one, "size": one, "names": ["a", one]})
    for params, key in (
        ({"audio": one}, "params.size"),
        ({"audio": one, "size": "x"}, "params.size"),
        ({"audio": one, "size": 1, "names": [one, 5]}, "params.names.1"),
        ({"audio": one, "size": 1, "other": one}, "params.other"),
    ):
        with pytest.raises(JobRefused, match=f"^{key}: "):
            schemas.check("x", params)
    assert references.paths({"a": [one], "b": one}) == [("a", 0), ("b",)]
