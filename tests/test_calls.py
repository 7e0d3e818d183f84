"""What is handed to FilePool: every wrong type is refused with its key before anything is written."""

from __future__ import annotations

import json
import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from steps import claim_next, places, seat

from pool.client.calls import LONGEST_WAIT_S, seconds_to_wait
from pool.client.filepool import FilePool
from pool.config.settings import Config
from pool.errors import JobRefused, PoolClosed, UnknownEngine
from pool.spool.store import Spool


@pytest.fixture
def pool(config: Config) -> Iterator[FilePool]:
    pool = FilePool(config, start=False)
    yield pool
    pool.close()


def refused(call: Callable[[], Any], spool: Spool) -> JobRefused:
    """How a call is refused; nothing of it is in the spool."""
    with pytest.raises(JobRefused) as caught:
        call()
    assert places(spool) == {}
    return caught.value


TERMS: list[tuple[str, Any]] = [
    *((key, value) for key in ("priority", "retry_times") for value in (1.5, "1", True, 10**30)),
    *(("timeout_s", value) for value in ("5", math.nan, math.inf, -1, 0, 1e300, True)),
    *(("retry_on", value) for value in ("timeout", ["timeouts"], ["input"], [1], 5, {"timeout": 1, "x": 2})),
    ("durable", "yes"),
    ("durable", 1),
    ("labels", "gpu24g"),
    ("labels", 5),
]


@pytest.mark.parametrize(("key", "value"), TERMS)
def test_terms_of_the_wrong_type(pool: FilePool, spool: Spool, key: str, value: Any) -> None:
    wrong = {key: value}
    for call in (
        lambda: pool.submit("echo", **wrong),
        lambda: pool.submit_many("echo", [{}], **wrong),
        lambda: pool.map("echo", [{}], **wrong),
    ):
        assert refused(call, spool).path == key


@pytest.mark.parametrize(
    ("more", "path"),
    [
        ({"id": 5}, "id"),
        ({"id": b"a"}, "id"),
        ({"consume": 1}, "consume"),
        ({"consume": "no"}, "consume"),
        ({"params": []}, "params"),
        ({"params": "a=1"}, "params"),
        ({"params": [("a", 1)]}, "params"),
        ({"params": 0}, "params"),
        ({"params": {1: 2}}, "params"),
        ({"params": {"a": 1}, "a": 1}, "params.a"),
    ],
)
def test_arguments_of_submit(pool: FilePool, spool: Spool, more: dict[str, Any], path: str) -> None:
    assert refused(lambda: pool.submit("echo", **more), spool).path == path


@pytest.mark.parametrize("engine", [None, 5, ["echo"], {"echo"}, b"echo", True, "Echo", "nobody"])
def test_an_engine_that_is_none(pool: FilePool, spool: Spool, engine: Any) -> None:
    for call in (
        lambda: pool.submit(engine),
        lambda: pool.submit_many(engine, []),
        lambda: pool.map(engine, []),
    ):
        error = refused(call, spool)
        assert isinstance(error, UnknownEngine)
        assert error.path == "engine"


@pytest.mark.parametrize(
    ("calls", "path"),
    [
        ("abc", "calls"),
        (b"abc", "calls"),
        ({"a": 1}, "calls"),
        (None, "calls"),
        (5, "calls"),
        ([{}, "a"], "calls[1]"),
        ([{}, {}, None], "calls[2]"),
        ([{}, [("a", 1)]], "calls[1]"),
        ([{1: 2}], "calls[0]"),
    ],
)
def test_calls_that_are_none(pool: FilePool, spool: Spool, calls: Any, path: str) -> None:
    assert refused(lambda: pool.submit_many("echo", calls), spool).path == path
    assert refused(lambda: pool.map("echo", calls, chunksize=2), spool).path == path


@pytest.mark.parametrize("size", [0, -1, 1.5, 1.0, "2", True, None, math.nan])
def test_a_chunksize_that_is_none(pool: FilePool, spool: Spool, size: Any) -> None:
    assert refused(lambda: pool.map("echo", [{}], chunksize=size), spool).path == "chunksize"


def test_one_bad_call_among_many_leaves_nothing(pool: FilePool, spool: Spool) -> None:
    error = refused(lambda: pool.submit_many("echo", [{"a": 1}, {"a": object()}, {"a": 2}]), spool)
    assert error.path == "jobs[1].params.a"


def test_a_schema_names_the_call(pool: FilePool, spool: Spool) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
    (spool.root / "run" / "engines" / "echo.json").write_text(json.dumps({"engine": "echo", "schema": schema}))
    for call in (pool.submit_many, pool.map):
        error = refused(lambda call=call: call("echo", [{"n": 1}, {"n": "x"}]), spool)  # type: ignore[misc]
        assert error.path == "calls[1].n"


@pytest.mark.parametrize("params", [MappingProxyType({"a": 1}), ChainMap({"a": 1}), {"a": 1}])
def test_any_mapping_will_do(pool: FilePool, spool: Spool, params: Mapping[str, Any]) -> None:
    worker = seat(spool)
    pool.submit("echo", params=params, priority=np.int32(3), retry_times=np.int64(1), timeout_s=np.float64(2.5))
    pool.submit_many("echo", (call for call in [params]))
    for _ in range(2):
        assert spool.read_claim(claim_next(spool, worker)).params == {"a": 1}


WAITS = [("5", TypeError), (True, TypeError), ([1], TypeError), (np.True_, TypeError), (math.nan, ValueError)]


@pytest.mark.parametrize(("timeout", "error"), WAITS)
def test_a_wait_that_is_no_number(pool: FilePool, spool: Spool, timeout: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="timeout: "):
        pool.map("echo", [{}], timeout=timeout)
    assert places(spool) == {}
    future = pool.submit("echo")
    for call in (future.result, future.exception):
        with pytest.raises(error, match="timeout: "):
            call(timeout)
    with pytest.raises(error, match="timeout: "):
        pool.close(wait=True, timeout=timeout)
    assert not future.decided
    pool.submit("echo")  # it is still open


def test_waits() -> None:
    assert [seconds_to_wait(value) for value in (None, math.inf, 1e300, 10**400, LONGEST_WAIT_S)] == [None] * 5
    assert [seconds_to_wait(value) for value in (0, -1, -math.inf, 2)] == [0, 0, 0, 2]
    assert [seconds_to_wait(value) for value in (np.float32(1.5), Fraction(1, 2))] == [1.5, 0.5]


def test_a_map_of_a_pool_that_was_closed_meanwhile(pool: FilePool) -> None:
    pool.close()
    for call in (lambda: pool.submit("echo"), lambda: pool.submit_many("echo", []), lambda: pool.map("echo", [])):
        with pytest.raises(PoolClosed):
            call()
