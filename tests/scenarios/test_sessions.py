"""Sessions: defaults that are filled in, and jobs that are stopped together; many jobs stopped by engine or state."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pool.client.aio import AsyncFilePool
from pool.client.filepool import FilePool
from pool.errors import JobRefused, UnknownEngine, UnknownJob
from pool.format.codec import decode
from pool.job import Job, JobState
from pool.spool.lookup import find
from scenarios.world import ROOT, World, wait_until


@pytest.fixture(scope="module")
def shared(make_shared: Callable[[str], World]) -> World:
    world = make_shared("sessions")
    one = {"max_concurrent_tasks": 1}
    world.configure({"fake": {}, "echo": {"engine": "inference.fake:Echo", **one}, "other": one})
    world.serve(ready=4)
    return world


@pytest.fixture(scope="module")
def pool(shared: World) -> FilePool:
    return shared.pool()


def waiting(pool: FilePool, job_id: str) -> Job:
    """A job as its file holds it, that is not over."""
    from pathlib import Path

    return Job.from_map(decode(Path(find(pool.spool, job_id).path).read_bytes()))


def test_what_a_call_does_not_say_is_filled_in(pool: FilePool) -> None:
    session = pool.session(priority=7, timeout_s=50, not_before="1h", params={"echo": {"a": 1, "b": 2}})
    inner = session.session(priority=9, params={"echo": {"b": 3, "c": 4}, "fake": {"value": 5}})
    futures = [
        session.submit("echo", b=20),
        session.submit("echo", priority=-1, params={"a": 10}),
        *session.submit_many("echo", [{"d": 1}, {"a": 0}], timeout_s=60),
        inner.submit("echo"),
        inner.submit("fake"),
        session.submit("fake", do="sleep"),
    ]
    jobs = [waiting(pool, future.id) for future in futures]
    assert [(job.priority, job.timeout_s) for job in jobs] == [
        (7, 50),
        (-1, 50),
        (7, 60),
        (7, 60),
        (9, 50),
        (9, 50),
        (7, 50),
    ]
    assert [job.params for job in jobs] == [
        {"a": 1, "b": 20},
        {"a": 10, "b": 2},
        {"a": 1, "b": 2, "d": 1},
        {"a": 0, "b": 2},
        {"a": 1, "b": 3, "c": 4},
        {"value": 5},
        {"do": "sleep"},
    ]
    assert all(job.not_before > job.created for job in jobs)
    assert sorted(session.cancel()) == sorted(future.id for future in (*futures[:4], futures[6]))
    assert sorted(inner.cancel()) == sorted(future.id for future in futures[4:6])
    for future in futures:
        wait_until(future.cancelled if future.done() else future.done, "its end")


def test_map_has_the_defaults_that_it_can_have(pool: FilePool) -> None:
    session = pool.session(consume=True, priority=3, params={"echo": {"a": 1}})
    assert list(session.map("echo", [{}, {"a": 2}])) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("given", "error", "why"),
    [
        ({"priority": 1.5}, JobRefused, "^priority: "),
        ({"prio": 1}, JobRefused, "^prio: .*priority"),
        ({"not_before": "soon"}, JobRefused, "^not_before: "),
        ({"params": {"nobody": {}}}, UnknownEngine, "nobody"),
        ({"params": {"echo": 3}}, JobRefused, r"^params\.echo: "),
    ],
)
def test_wrong_defaults_are_refused_at_once(pool: FilePool, given: Any, error: Any, why: str) -> None:
    with pytest.raises(error, match=why):
        pool.session(**given)
    with pytest.raises(error, match=why):
        pool.session().session(**given)


def test_the_end_of_a_block(pool: FilePool) -> None:
    with pool.session(params={"fake": {"value": 1}}) as session:
        future = session.submit("fake", do="sleep", seconds=0.2)
    assert future.decided
    jobs = {}
    for cancels in (True, False):

        def block(cancels: bool = cancels) -> None:
            with pool.session(cancel_on_error=cancels) as session:
                jobs[cancels] = session.submit("fake", do="sleep", seconds=60)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            block()
    wait_until(jobs[True].done, "it was cancelled")
    assert jobs[True].cancelled()
    assert not jobs[False].done()
    jobs[False].cancel()


def test_many_are_cancelled_by_engine_and_state(pool: FilePool, shared: World) -> None:
    running = pool.submit("other", do="sleep", seconds=60)
    shared.worker_of(running.id)
    queued = pool.submit_many("other", [{"do": "sleep", "seconds": 60}] * 30)
    deferred = pool.submit("other", not_before="1h")
    held = pool.submit("echo", value=running["value"])
    elsewhere = pool.submit("echo", not_before="1h")
    assert pool.cancel_many(engine="other", state="deferred") == [deferred.id]
    assert set(pool.cancel_many([queued[0], queued[1].id, running], state="queued")) == {queued[0].id, queued[1].id}
    wait_until(lambda: queued[0].done() and queued[1].done() and deferred.done(), "their end")
    assert set(pool.cancel_many(engine="other")) == {running.id, *(future.id for future in queued[2:])}
    wait_until(lambda: running.done() and all(future.done() for future in queued), "their end")
    assert all(future.cancelled() for future in (running, deferred, *queued))
    wait_until(held.done, "its end: what it needed was cancelled")
    assert pool.state(elsewhere.id) is JobState.DEFERRED
    assert pool.cancel_many(state="deferred") == [elsewhere.id]
    assert pool.cancel_many([running]) == []
    tagged = [pool.submit("echo", not_before="1h", tags=["night", str(n)]) for n in range(2)]
    plain = pool.submit("echo", not_before="1h")
    assert pool.cancel_many(tag="1") == [tagged[1].id]
    assert set(pool.cancel_many(tag="night", engine="echo")) >= {tagged[0].id}
    assert pool.state(plain.id) is JobState.DEFERRED
    plain.cancel()
    with pytest.raises(UnknownJob):
        pool.cancel_many(["nobody"])
    states = ({"state": "completed"}, {"state": "nonsense"})
    for wrong in ({}, *states, {"engine": "No Engine"}, {"tag": "a b"}, {"jobs": "one"}):
        with pytest.raises(JobRefused):
            pool.cancel_many(**wrong)  # type: ignore[arg-type]


def test_the_command_line_cancels_many(pool: FilePool, shared: World) -> None:
    futures = pool.submit_many("fake", [{}, {}], not_before="1h")
    argv = [
        sys.executable,
        "-m",
        "pool",
        "cancel",
        "--config",
        str(shared.config),
        "--json",
        "--engine",
        "fake",
        "--state",
        "deferred",
    ]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["jobs"] == {future.id: "cancelled" for future in futures}
    nothing = subprocess.run(argv[:-4], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert nothing.returncode == 2
    assert "name jobs, an engine, a state or a tag" in nothing.stderr


def test_on_an_event_loop(shared: World) -> None:
    async def program() -> None:
        async with AsyncFilePool(shared.config, start=False) as pool:
            async with pool.session(priority=3, params={"echo": {"a": 1}}) as session:
                future = await session.submit("echo", b=2)
                many = await session.session(params={"echo": {"a": 3}}).submit_many("echo", [{}, {"a": 4}])
                assert [value async for value in session.map("echo", [{}, {"a": 5}])] == [{"a": 1}, {"a": 5}]
            assert future.done()
            assert await future == {"a": 1, "b": 2}
            assert [await one for one in many] == [{"a": 3}, {"a": 4}]
            slow = []

            async def block() -> None:
                async with pool.session(cancel_on_error=True) as session:
                    slow.append(await session.submit("fake", do="sleep", seconds=60))
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                await block()
            await slow[0].wait(30)
            assert slow[0].cancelled()

    asyncio.run(asyncio.wait_for(program(), 60))
