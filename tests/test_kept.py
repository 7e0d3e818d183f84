"""What a record keeps of its job: nothing secret, nothing large, and all that running it again needs."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.errors import ProtocolError
from pool.format import codec
from pool.job import Job
from pool.job.kept import Kept
from pool.job.terms import Terms
from pool.spool.redaction import MOST_BYTES, UNDESCRIBED, Redactor
from pool.spool.store import Spool

SECRET = {"type": "string", "format": "password"}


class Deep(pydantic.BaseModel):
    inner: list[dict[str, pydantic.SecretStr]] = []


class Node(pydantic.BaseModel):
    child: Node | None = None
    key: pydantic.SecretStr | None = None


class Params(pydantic.BaseModel):
    plain: int = 0
    maybe: pydantic.SecretStr | None = None
    several: list[pydantic.SecretStr] = []
    raw: pydantic.SecretBytes | None = None
    deep: Deep | None = None
    node: Node | None = None
    named: str = pydantic.Field("", alias="aliased", json_schema_extra={"secret": True})


def test_every_way_to_mark_a_secret_with_pydantic_is_understood() -> None:
    redactor = Redactor(Params.model_json_schema())
    names = ("plain", "maybe", "several", "raw", "deep", "node", "aliased")
    assert [key for key in names if redactor.is_open(key)] == ["plain"]
    assert not redactor.is_open("named")  # what the schema does not name may be one of them under another name


SCHEMAS: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {"a", "b"}),
    ({"properties": {"a": {"type": "string"}}}, {"a", "b"}),
    ({"properties": {"a": {}, "b": SECRET}}, {"a"}),
    ({"properties": {"a": {}, "b": {"writeOnly": True}}}, {"a"}),
    ({"$ref": "#/$defs/P", "$defs": {"P": {"properties": {"a": {}, "b": SECRET}}}}, {"a"}),
    ({"$ref": "#/definitions/P", "definitions": {"P": {"properties": {"a": {}, "b": SECRET}}}}, {"a"}),
    ({"anyOf": [{"properties": {"a": {}}}, {"properties": {"a": {}, "b": SECRET}}]}, {"a"}),
    ({"anyOf": [{"properties": {"a": {}, "b": {}}}, {"properties": {"b": SECRET}}]}, {"a"}),
    ({"properties": {"a": {}}, "patternProperties": {"^b": SECRET}}, set()),
    ({"properties": {"a": {}}, "additionalProperties": SECRET}, set()),
    ({"properties": {"a": {}, "b": {"properties": {"c": {"items": SECRET}}}}}, {"a"}),
    ({"properties": {"a": {}, "b": {"prefixItems": [SECRET]}}}, {"a"}),
    ({"properties": 5, "anyOf": [SECRET]}, set()),
    ({"properties": {"secret": {"type": "boolean"}, "a": {}}}, {"a", "b"}),
]


@pytest.mark.parametrize(("schema", "shown"), SCHEMAS, ids=range(len(SCHEMAS)))
def test_schemas(schema: dict[str, Any], shown: set[str]) -> None:
    redactor = Redactor(schema)
    assert {key for key in ("a", "b") if redactor.is_open(key)} == shown


def test_an_engine_that_is_not_described_shows_nothing(spool: Spool) -> None:
    job = Job("j", "echo", {"a": 1, "b": 2})
    assert Redactor.of_spool(spool.root, "echo").keep(job).left_out == {"a": UNDESCRIBED, "b": UNDESCRIBED}
    path = spool.root / "run" / "engines" / "echo.json"
    for damaged in (b"", b"[]", b"{"):
        path.write_bytes(damaged)
        assert Redactor.of_spool(spool.root, "echo").keep(job).params == {}
    path.write_text(json.dumps({"schema": None}))
    assert Redactor.of_spool(spool.root, "echo").keep(job).params == {"a": 1, "b": 2}


def test_a_model_that_cannot_be_described_shows_nothing() -> None:
    class Engine:
        class Params:
            @staticmethod
            def model_json_schema() -> Any:
                raise RuntimeError("no")

    assert not Redactor.of_engine(Engine()).is_open("a")
    assert Redactor.of_engine(object()).is_open("a")


def test_what_is_too_large_is_named() -> None:
    redactor = Redactor(None)
    array = np.zeros((200, 200), np.uint8)
    params = {"array": array, "text": "y" * 30_000, "list": [0] * 20_000, "small": 1}
    kept = redactor.keep(Job("j", "echo", params))
    assert kept.params == {"small": 1}
    assert kept.left_out["array"].startswith("an array of 200 × 200 uint8, 40")
    assert kept.left_out["text"].startswith("text of 30")
    assert kept.left_out["list"].startswith("a list of 20")
    foreign = codec.decode(codec.encode({**params, "text": "z" * 30_000}), arrays=False)  # as the supervisor sees it
    assert redactor.keep(Job("j", "echo", foreign)).left_out["array"] == kept.left_out["array"].replace("uint8", "|u1")
    assert redactor.keep(Job("j", "echo", {"array": array})).left_out == {}  # alone it fits
    many = redactor.keep(Job("j", "echo", {f"k{n}": "x" * 900 for n in range(1000)}))
    assert many.params == {}
    assert many.left_out.keys() == {""}


VALUES = st.one_of(st.integers(-9, 9), st.text(max_size=9), st.integers(1, 40_000).map(lambda size: "x" * size))


@given(st.dictionaries(st.text(max_size=9), VALUES, max_size=40))
def test_what_is_kept_is_bounded_and_nothing_is_lost_without_a_word(params: dict[str, Any]) -> None:
    kept = Redactor(None).keep(Job("j", "echo", params))
    assert kept.params is not None
    assert len(codec.encode(kept.params)) <= MOST_BYTES + 16
    assert "" in kept.left_out or kept.params.keys() | kept.left_out.keys() == params.keys()
    assert all(params[key] == value for key, value in kept.params.items())


def test_of_a_map_job_only_the_number_is_kept() -> None:
    kept = Redactor(None).keep(Job("j", "echo", {}, ({"a": 1}, {"a": 2}), terms=Terms(tags=("t",), priority=4)))
    assert (kept.items, kept.params, kept.tags, kept.terms) == (2, None, ("t",), {"priority": 4})


def test_it_comes_back_from_a_record_and_an_older_record_has_none() -> None:
    kept = Redactor(None).keep(Job("j", "echo", {"a": [1]}, terms=Terms(tags=("t",), note="n"), rerun_of="old"))
    assert Kept.from_map(codec.decode(codec.encode(kept.to_map()))) == kept
    assert Kept.from_map({}) == Kept()


@pytest.mark.parametrize(
    "wrong", [{"tags": 5}, {"tags": [5]}, {"note": 5}, {"params": []}, {"left_out": []}, {"items": "x"}, {"terms": 1}]
)
def test_a_damaged_one_is_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="damaged"):
        Kept.from_map(wrong)
