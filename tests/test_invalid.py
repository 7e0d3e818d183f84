"""What pydantic complains of is said in words of the project, with the key as it was written."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, SecretStr, ValidationError

from pool.errors import JobRefused
from pool.format.invalid import complaint, sentence
from pool.gateways.http import shapes
from pool.gateways.http.errors import problem_of
from pool.gateways.http.lists import Wanted, parse

BAD: tuple[Any, ...] = (
    None, "", "a b", "x" * 30_000, "\ud800", -1, 0, 10**9, 10**30, 1.5, float("nan"), float("inf"), True, b"x",
    [], [None], [1], ["a b"], ["x"] * 2000, [{}], {}, {"a": None}, {"a b": {}},
    {"0": {"text": 5, "words": [{"word": ""}]}},
)  # fmt: skip
BODIES = [kind for _, kind in inspect.getmembers(shapes, inspect.isclass) if issubclass(kind, shapes.Strict)]


def wrong(model: type[BaseModel]) -> Iterator[tuple[dict[str, Any], ValidationError]]:
    """Every key with every bad value, one at a time; nothing at all, and a key that there is not."""
    tried = [{}, {"absent": 1}, *({key: value} for key in model.model_fields for value in BAD)]
    for body in tried:
        try:
            model.model_validate(body)
        except ValidationError as error:
            yield body, error


@pytest.mark.parametrize("model", [*BODIES, Wanted], ids=lambda model: model.__name__)
def test_no_sentence_is_that_of_pydantic(model: type[BaseModel]) -> None:
    seen = 0
    for body, error in wrong(model):
        problem = problem_of(
            RequestValidationError([{**e, "loc": ("body", *e["loc"])} for e in error.errors()], body=body)
        )
        said = problem.message
        for words in ("Input", "should", "valid ", "String", "value_error", "type=", "\n"):
            assert words not in said.replace(repr(next(iter(body.values()), "")), ""), said
        assert said.startswith(f"{problem.path}: ")
        value: Any = body
        for part in problem.path.split(".")[:-1]:  # it leads to what was written
            value = value[int(part)] if isinstance(value, list) else value[part]
        seen += 1
    assert seen > 0


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Many(BaseModel):
    number: int = Field(default=1, ge=1, lt=9)
    share: float = Field(default=0.5, gt=0, le=1, allow_inf_nan=False)
    when: float | str | None = None
    small: Literal["a", "b", "c"] = "a"
    colour: Colour = Colour.RED
    names: list[str] = Field(default=[], min_length=1, max_length=2)
    text: str = Field(default="x", min_length=1, max_length=3, pattern="^[a-z]+$")
    switch: bool = False
    inner: dict[str, list[int]] = {}
    key: SecretStr = Field(default=SecretStr("12345"), min_length=5)


SAID = [
    ({"number": "many"}, "number", "'many' is not a whole number"),
    ({"number": 1.5}, "number", "1.5 is not a whole number"),
    ({"number": 0}, "number", "0 is less than 1"),
    ({"number": 9}, "number", "9 is not less than 9"),
    ({"share": 0}, "share", "0 is not more than 0.0"),
    ({"share": float("nan")}, "share", "nan is not a finite number"),
    ({"when": []}, "when", "[] is not a number or text"),
    ({"small": "d"}, "small", "'d' is not one of 'a', 'b', 'c'"),
    ({"colour": 5}, "colour", "5 is not one of 'red', 'blue'"),
    ({"names": []}, "names", "is empty"),
    ({"names": ["a", "b", "c"]}, "names", "has more than 2 entries"),
    ({"names": ["a", 5]}, "names.1", "5 is not text"),
    ({"text": ""}, "text", "is empty"),
    ({"text": "abcd"}, "text", "has more than 3 characters"),
    ({"text": "A"}, "text", "'A' does not match ^[a-z]+$"),
    ({"switch": "perhaps"}, "switch", "'perhaps' is neither true nor false"),
    ({"inner": {"a": [1, "x"]}}, "inner.a.1", "'x' is not a whole number"),
    ({"inner": 5}, "inner", "5 is not an object"),
    ({"names": "x" * 200}, "names", f"'{'x' * 79}… is not a list"),
]


@pytest.mark.parametrize(("body", "path", "said"), SAID, ids=[f"{p} {s[:40]}" for _, p, s in SAID])
def test_a_sentence_names_the_value_and_what_is_allowed(body: dict[str, Any], path: str, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Many.model_validate(body)
    assert complaint(caught.value.errors(), body) == (path, said)


def test_a_value_that_may_be_secret_is_not_said() -> None:
    with pytest.raises(ValidationError) as caught:
        Many.model_validate({"key": 77777777, "number": "77777777x"})
    for error in caught.value.errors():
        assert "77777777" not in sentence(error, values=False)
    assert sentence(caught.value.errors()[0], values=False) == "is not a whole number"


def test_what_is_not_known_keeps_its_words() -> None:
    assert sentence({"type": "new_in_3", "msg": "Value error, it is odd"}) == "it is odd"
    assert sentence({"type": "too_long", "msg": "is long"}) == "is long"
    assert sentence({}) == "is wrong"
    assert complaint([], None) == ("", "")


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("state=lost", "list.state: 'lost' is not one of 'queued', 'held', 'deferred', 'running', 'completed', "),
        ("limit=0", "list.limit: '0' is less than 1"),
        ("sate=failed", "list.sate: is an unknown key"),
    ],
)
def test_the_query_of_a_list(query: str, told: str) -> None:
    with pytest.raises(JobRefused) as caught:
        parse(query, "list")
    assert f"{caught.value}".startswith(told)
