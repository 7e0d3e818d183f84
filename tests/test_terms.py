"""How a job is to be run: every type and bound, one answer for all ways in, and old job files."""

from __future__ import annotations

import datetime
import decimal
import fractions
import math
from typing import Any

import msgpack
import numpy as np
import pytest

from pool.errors import JobRefused, ProtocolError
from pool.job import Job
from pool.job.terms import KEYS, OUTSIDE, Terms

#: What is taken for a term, and as what; types count.
TAKEN: list[tuple[str, Any, Any]] = [
    ("priority", -100, -100),
    ("priority", np.int64(7), 7),
    ("priority", None, 0),
    ("timeout_s", 1, 1.0),
    ("timeout_s", 0.001, 0.001),
    ("timeout_s", 1e9, 1e9),
    ("timeout_s", np.float32(2.5), 2.5),
    ("timeout_s", fractions.Fraction(1, 2), 0.5),
    ("retry_times", 0, 0),
    ("retry_times", np.uint8(98), 98),
    ("durable", False, False),
]
REFUSED: list[tuple[str, Any]] = [
    *(
        (key, value)
        for key in ("priority", "retry_times")
        for value in (
            1.5,
            1.0,
            "1",
            True,
            b"1",
            [1],
            np.True_,
            math.nan,
        )
    ),
    ("priority", 101),
    ("priority", -101),
    ("priority", 10**30),
    ("retry_times", -1),
    ("retry_times", 99),
    ("retry_times", 10**30),
    *(
        ("timeout_s", value)
        for value in (
            0,
            -1,
            1e-9,
            1.1e9,
            10**400,
            math.nan,
            math.inf,
            -math.inf,
            "5",
            True,
            1j,
            np.True_,
            np.array([1.0]),
            [5],
            decimal.Decimal(5),
            datetime.timedelta(seconds=5),
        )
    ),
    *(("durable", value) for value in ("yes", 1, 0, np.True_, "false")),
]


@pytest.mark.parametrize(("key", "value", "kept"), TAKEN)
def test_what_is_taken(key: str, value: Any, kept: Any) -> None:
    found = getattr(Terms(**{key: value}), key)
    assert (found, type(found)) == (kept, type(kept))


@pytest.mark.parametrize(("key", "value"), REFUSED)
def test_what_is_refused(key: str, value: Any) -> None:
    with pytest.raises(JobRefused) as caught:
        Terms(**{key: value})
    assert caught.value.path == key
    assert str(caught.value).startswith(f"{key}: ")
    assert "between" in str(caught.value) or "True or False" in str(caught.value)


def test_a_value_that_cannot_be_shown_is_refused_all_the_same() -> None:
    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError

    with pytest.raises(JobRefused, match="priority: a Mute is not"):
        Terms(priority=Mute())  # type: ignore[arg-type]


def test_a_duration_is_told_how_to_become_seconds() -> None:
    with pytest.raises(JobRefused, match="total_seconds"):
        Terms(timeout_s=datetime.timedelta(1))  # type: ignore[arg-type]


def test_from_outside_only_what_outsiders_may_say() -> None:
    given = {"priority": 3, "durable": False, "engine": "echo"}
    assert Terms.of(given, OUTSIDE) == Terms(priority=3)
    assert Terms.of(given) == Terms(priority=3, durable=False)


def test_a_job_file_of_version_0_1_0() -> None:
    """Byte for byte as that version wrote it; it took any time limit above 0."""
    old = {
        "protocol": 1,
        "id": "mine",
        "engine": "echo",
        "params": {"a": 1},
        "created": 5,
        "durable": True,
        "priority": 7,
        "max_attempts": 4,
        "timeout_s": 2.5,
        "source": "in/x.json",
        "reply": "json",
        "digest": "d",
    }
    job = Job.from_map(old)
    assert job.terms == Terms(priority=7, timeout_s=2.5, retry_times=3, durable=True)
    assert job.to_map() == old
    assert Job.from_map({**old, "timeout_s": math.inf}).timeout_s == 1e9
    assert Job.from_map({**old, "timeout_s": 1e-6}).timeout_s == 0.001
    bare = {key: old[key] for key in ("protocol", "id", "engine", "params", "created", "durable")}
    assert Job.from_map(bare).terms == Terms(durable=True)


@pytest.mark.parametrize("wrong", [{"max_attempts": True}, {"max_attempts": "3"}, {"timeout_s": True}, {"durable": 1}])
def test_a_term_of_a_foreign_hand(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        Terms.from_map(wrong)


def test_every_term_has_its_key() -> None:
    assert set(OUTSIDE) < set(KEYS)


TAGS_REFUSED: list[tuple[object, str]] = [
    ("nightly", "tags"),
    (b"x", "tags"),
    (5, "tags"),
    ({"a": 1}, "tags"),
    (["a b"], "tags.0"),
    (["ok", ""], "tags.1"),
    (["x" * 65], "tags.0"),
    (["a,b"], "tags.0"),
    ([1], "tags.0"),
    (["a\n"], "tags.0"),
    (["\u202ea"], "tags.0"),
    (["\ud800"], "tags.0"),
    ([f"t{n}" for n in range(17)], "tags"),
]


@pytest.mark.parametrize(("tags", "path"), TAGS_REFUSED, ids=range(len(TAGS_REFUSED)))
def test_tags_that_are_none(tags: Any, path: str) -> None:
    with pytest.raises(JobRefused) as error:
        Terms(tags=tags)
    assert error.value.path == path


@pytest.mark.parametrize("note", [5, b"x", "x" * 501, "bell\a", "\x1b[2J", "\ud800", ["a"]])
def test_notes_that_are_none(note: Any) -> None:
    with pytest.raises(JobRefused) as error:
        Terms(note=note)
    assert error.value.path == "note"


LABELS_REFUSED: list[tuple[object, str]] = [
    ("gpu24g", "labels"),
    (b"x", "labels"),
    (5, "labels"),
    ({"a": 1}, "labels"),
    (["a b"], "labels.0"),
    (["ok", ""], "labels.1"),
    (["x" * 65], "labels.0"),
    (["-a"], "labels.0"),
    (["a.b"], "labels.0"),
    (["a\n"], "labels.0"),
    (["\u00e9"], "labels.0"),
    ([1], "labels.0"),
    ([f"l{n}" for n in range(9)], "labels"),
]


@pytest.mark.parametrize(("labels", "path"), LABELS_REFUSED, ids=range(len(LABELS_REFUSED)))
def test_labels_that_are_none(labels: Any, path: str) -> None:
    with pytest.raises(JobRefused) as error:
        Terms(labels=labels)
    assert error.value.path == path


def test_labels_come_back_from_a_job_file() -> None:
    terms = Terms(labels=iter(["gpu24g", "a-1", "gpu24g"]))  # type: ignore[arg-type]
    assert terms.labels == ("gpu24g", "a-1")
    assert Terms.from_map(msgpack.unpackb(msgpack.packb(terms.to_map()))) == terms
    assert Terms(labels=[]).to_map() == {}  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="a term of the job is wrong"):
        Terms.from_map({"labels": "gpu24g"})


LOG_CONTEXT_REFUSED: list[tuple[Any, str]] = [
    ([("a", 1)], "log_context"),
    ("a=1", "log_context"),
    (5, "log_context"),
    ({1: 1}, "log_context"),
    ({"a b": 1}, "log_context"),
    ({"": 1}, "log_context"),
    ({"1a": 1}, "log_context"),
    ({"\u00e9": 1}, "log_context"),
    ({f"k{n}": n for n in range(17)}, "log_context"),
    ({"a": "x" * 1022}, "log_context"),
    ({"a": "\u65e5" * 341}, "log_context"),
    ({"a": None}, "log_context.a"),
    ({"a": {}}, "log_context.a"),
    ({"a": b"x"}, "log_context.a"),
    ({"a": math.nan}, "log_context.a"),
    ({"a": math.inf}, "log_context.a"),
    ({"a": 1j}, "log_context.a"),
    ({"a": 2**64}, "log_context.a"),
    ({"a": "two\nlines"}, "log_context.a"),
    ({"a": "\x1b[1m"}, "log_context.a"),
    ({"a": "\ud800"}, "log_context.a"),
    ({"ok": 1, "a": [1]}, "log_context.a"),
]


@pytest.mark.parametrize(("given", "path"), LOG_CONTEXT_REFUSED, ids=range(len(LOG_CONTEXT_REFUSED)))
def test_log_context_that_is_none(given: Any, path: str) -> None:
    with pytest.raises(JobRefused) as caught:
        Terms(log_context=given)
    assert caught.value.path == path


def test_log_context_and_trace_come_back_from_a_job_file() -> None:
    parent = f"00-{'4b' * 16}-{'0f' * 8}-01"
    given = {"request": "r-17", "user": np.int64(5), "share": np.float32(0.5), "beta": True}
    terms = Terms(log_context=given, traceparent=parent, tracestate="a=1")
    given["user"] = 6
    assert terms.log_context == {"request": "r-17", "user": 5, "share": 0.5, "beta": True}
    assert [type(value) for value in terms.log_context.values()] == [str, int, float, bool]
    assert Terms.from_map(msgpack.unpackb(msgpack.packb(terms.to_map()))) == terms
    assert Terms(log_context={}, traceparent="", tracestate="").to_map() == {}
    assert Terms(log_context={"a": "x" * 1021}).log_context  # 1 KiB with its name
    for wrong in ({"log_context": {"a": [1]}}, {"log_context": 5}, {"traceparent": "x"}, {"tracestate": "a=1"}):
        with pytest.raises(ProtocolError, match="a term of the job is wrong"):
            Terms.from_map(wrong)


def test_tags_and_note_come_back_from_a_job_file() -> None:
    terms = Terms(tags=iter(["a=1", "日本", "a=1"]), note="two\nlines\tand more")  # type: ignore[arg-type]
    assert terms.tags == ("a=1", "日本")
    assert Terms.from_map({**terms.to_map(), "tags": list(terms.tags)}) == terms
    assert Terms(tags=[]).to_map() == {}  # type: ignore[arg-type]
