"""What travels: every map becomes what it was, and every other map is refused with ProtocolError."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool.errors import ProtocolError
from pool.format import codec
from pool.job import Failure, FailureKind, Job, JobState, Progress, Record, decode_failure, digest_of
from pool.job.kept import NOTHING
from pool.job.terms import Terms
from pool.policy.retries import KINDS
from pool.stages import NO_STAGES, Stage, Stages, is_time

PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary()
ANYTHING = st.recursive(
    PLAIN, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3), max_leaves=5
)
TIMES = st.integers(0, 10**16)
WORDS = st.text(max_size=8)
STAGES = st.lists(st.builds(Stage, st.text(min_size=1, max_size=64), TIMES), max_size=3).map(
    lambda changes: Stages(tuple(changes), 7) if changes else NO_STAGES
)
FAILURES = st.builds(
    Failure,
    st.sampled_from([kind.value for kind in FailureKind]),
    WORDS,
    WORDS,
    st.integers(0, 99),
    WORDS,
    WORDS,
    st.none() | st.integers(0, 255),
    WORDS,
    WORDS,
    WORDS,
    WORDS,
    TIMES,
    st.just(()),
    WORDS,
    st.none() | st.just({"key": "memory_limit_mb", "value": 60, "measured": 61}),
    WORDS,
    TIMES,
    STAGES,
)
TERMS = st.builds(
    Terms,
    st.integers(-100, 100),
    st.none() | st.floats(0.001, 1e9),
    st.none() | st.integers(0, 98),
    st.none() | st.lists(st.sampled_from(KINDS)),
    st.booleans(),
)
JOBS = st.builds(
    Job,
    WORDS,
    WORDS,
    st.just({"a": 1}),
    st.none() | st.just(()) | st.just(({"a": 1}, {})),
    TIMES,
    TERMS,
    WORDS,
    st.sampled_from(["", "json"]),
    WORDS,
)
ENDS = st.tuples(st.just(JobState.COMPLETED), st.none()) | st.tuples(
    st.sampled_from([JobState.FAILED, JobState.CANCELLED]), FAILURES
)
RECORDS = ENDS.flatmap(
    lambda end: st.builds(
        Record,
        WORDS,
        WORDS,
        st.just(end[0]),
        st.integers(1, 99),
        TIMES,
        TIMES,
        TIMES,
        WORDS,
        st.just({"a": 1}),
        st.just(end[1]),
        st.tuples(FAILURES) | st.just(()),
        st.just(()) | st.just(({"path": "/a", "size": 1, "sha256": "x"},)),
        st.booleans(),
        WORDS,
        st.just(NOTHING),
        STAGES,
    )
)


def _travel(value: Any) -> Any:
    return codec.decode(codec.encode(value))


@given(JOBS)
def test_jobs_come_back(job: Job) -> None:
    assert Job.from_map(_travel(job.to_map())) == job


@given(FAILURES)
def test_failures_come_back_with_a_message(failure: Failure) -> None:
    assert failure.message.strip() or not (failure.exception or failure.signal).strip()
    assert failure.message
    assert failure.describe()
    assert decode_failure(_travel(failure.to_map())) == failure


@given(RECORDS)
def test_records_come_back(record: Record) -> None:
    assert Record.from_map(_travel(record.to_map())) == record


@given(st.builds(Progress, WORDS, st.floats(0, 100), WORDS, st.integers(0, 99), TIMES, STAGES))
def test_progress_comes_back(progress: Progress) -> None:
    assert Progress.from_bytes(progress.to_bytes()) == progress


@given(st.text(st.characters()))
def test_no_word_of_an_engine_is_too_strange_to_be_told(text: str) -> None:
    """File names of foreign systems are no UTF-8; to quote one must not cost a job."""
    Progress.from_bytes(Progress("inference", 1.0, text + "\udcff").to_bytes())
    failure = Failure("engine", text + "\ud800", traceback=text + "\udcff")
    assert decode_failure(_travel(failure.to_map())).message.startswith(text[:1] if text.isascii() else "")


@pytest.mark.parametrize("message", ["", " ", "\n\t"])
def test_a_message_is_never_empty(message: str) -> None:
    assert Failure("engine", message).message == "engine failure"
    assert Failure("engine", message, exception="ValueError").message == "ValueError"
    assert Failure("engine", message, signal="SIGSEGV").message == "SIGSEGV"


def test_exit_code_zero_is_said() -> None:
    """It says a lot about a worker that should not have ended."""
    assert decode_failure(_travel(Failure("infrastructure", "gone", exit_code=0).to_map())).exit_code == 0


# ---- from a foreign hand


@given(ANYTHING)
def test_any_value_is_one_of_ours_or_protocol_error(value: Any) -> None:
    for read in (Job.from_map, Record.from_map, decode_failure):
        try:
            read(value)
        except ProtocolError:
            pass
    try:
        Progress.from_bytes(msgpack.packb(value))
    except ProtocolError:
        pass


@given(st.data())
def test_a_job_with_one_wrong_field_is_a_job_or_protocol_error(data: st.DataObject) -> None:
    """And when it is taken, its fields are of the types that the loop relies on."""
    terms = Terms(2, 4.0, 3, ("timeout",), True)
    good = Job("mine", "echo", {"a": 1}, ({"a": 1},), 1, terms, "s", "json", "d").to_map()
    key = data.draw(st.sampled_from(sorted(good)))
    try:
        job = Job.from_map({**good, key: data.draw(ANYTHING)})
    except ProtocolError:
        return
    assert isinstance(job.params, dict)
    assert all(isinstance(item, dict) for item in job.items or ())
    assert job.terms.retry_times is None or job.terms.retry_times + 1
    assert job.timeout_s is None or job.timeout_s + 1
    assert all(isinstance(text, str) for text in (job.id, job.engine, job.source, job.reply, job.digest))
    assert isinstance(job.created, int)


@given(st.data())
def test_a_record_or_failure_with_one_wrong_field_is_one_or_protocol_error(data: st.DataObject) -> None:
    stages = Stages((Stage("inference", 5),), 1)
    failure = Failure("engine", "m", "s", 1, "e", "t", 1, "SIG", "err", "h", "w", 1, (), "died", {"key": "k"})
    failure = replace(failure, started=1, stages=stages)
    files = ({"path": "/a"},)
    record = Record("mine", "echo", JobState.FAILED, 1, 2, 3, 4, "w", None, failure, (failure,), files, True, "s")
    record = replace(record, stages=stages)
    for read, good in ((Record.from_map, record.to_map()), (decode_failure, failure.to_map())):
        key = data.draw(st.sampled_from(sorted(good)))
        try:
            found = read({**good, key: data.draw(ANYTHING)})
        except ProtocolError:
            continue
        for by in (-(2**63), 2**63):  # of a machine with another clock: what it becomes here can be read again
            assert Stages.from_list(found.stages.moved(by).to_list()) if found.stages else True
            if isinstance(found, Failure):
                assert all(map(is_time, (found.moved(by).at, found.moved(by).started)))


# ---- identity of content


def test_the_digest_is_of_content_not_of_order() -> None:
    def digest(engine: str, params: Any, items: Any = None) -> str:
        return digest_of(engine, params, items)

    base = digest("echo", {"a": 1, "b": {"x": [1, 2], "y": None}})
    assert base == digest("echo", {"b": {"y": None, "x": (1, 2)}, "a": 1})
    others = [
        digest("other", {"a": 1, "b": {"x": [1, 2], "y": None}}),
        digest("echo", {"a": 1, "b": {"x": [2, 1], "y": None}}),
        digest("echo", {"a": "1", "b": {"x": [1, 2], "y": None}}),
        digest("echo", {"a": 1.5, "b": {"x": [1, 2], "y": None}}),
        digest("echo", {"a": True, "b": {"x": [1, 2], "y": None}}),
        digest("echo", {"a": 1, "b": {"x": [1, 2]}}),
        digest("echo", {"a": 1, "b": {"x": [1, 2], "y": None}}, ({"a": 1},)),
        digest("echo", {"a": 1, "b": [["x", [1, 2]], ["y", None]]}),
        digest("echo", {"a": 1, "b": {"": [["x", [1, 2]], ["y", None]]}}),
        digest("echo", {"a": 1, "b": {"x": [1, 2], None: None}}),
    ]
    assert len({base, *others}) == len(others) + 1
