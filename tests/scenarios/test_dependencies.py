"""Jobs that wait for others and get their results: chains, failures that travel, kills, and results that are kept."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import wait as wait_all
from typing import Any

import pytest

from pool.client.filepool import FilePool
from pool.errors import JobFailed, JobRefused, UnknownJob
from pool.job import Failure, JobState
from pool.job.references import result_of
from pool.spool.store import Spool
from pool.supervise.retention import Retention, purge
from scenarios.world import ROOT, World, wait_until


@pytest.fixture(scope="module")
def shared(make_shared: Callable[[str], World]) -> World:
    world = make_shared("dependencies")
    world.configure({"fake": {"retry_times": 0}, "echo": {"engine": "inference.fake:Echo", "max_concurrent_tasks": 1}})
    world.serve(ready=3)
    return world


@pytest.fixture(scope="module")
def pool(shared: World) -> FilePool:
    return shared.pool()


def why(future: Any) -> Failure:
    error = future.exception(30)
    assert isinstance(error, JobFailed)
    failure = error.failure
    assert failure.kind == "dependency"
    assert (future.record.attempt, future.record.started) == (0, 0)
    assert failure.attempts[-1].message == failure.message
    return failure


def test_results_are_handed_on_along_a_chain(world: World) -> None:
    world.configure({"fake": {}, "echo": {"engine": "inference.fake:Echo"}})
    pool = world.pool()  # nobody serves yet
    first = pool.submit("fake", value={"path": "/a/b", "parts": [1, 2]})
    second = pool.submit("echo", path=first["value"]["path"], part=first["value"]["parts"][1], all=first)
    third = pool.submit("echo", seen=second["path"], list=[second["part"], {"deep": first["value"]}])
    assert pool.state(second.id) is JobState.HELD
    assert third.status().message.startswith(f"waits for job {second.id} and 1 more")
    status = pool.status().engine("echo")
    assert status is not None
    assert status.held == 2
    assert {job.id for job in pool.jobs(state="held")} == {second.id, third.id}
    world.serve()
    assert third.result(40) == {"seen": "/a/b", "list": [2, {"deep": {"path": "/a/b", "parts": [1, 2]}}]}
    value = second.result(30)
    assert (value["path"], value["part"], value["all"]["value"]["parts"]) == ("/a/b", 2, [1, 2])
    assert second.record is not None
    assert second.record.attempt == 1


def test_after_others_without_their_results(pool: FilePool) -> None:
    first = pool.submit_many("fake", [{"do": "sleep", "seconds": 0.2}] * 3)
    last = pool.submit("fake", value="last", depends_on=[first[0], first[1].id, first[2]])
    assert last.result(30)["value"] == "last"
    assert all(future.done() for future in first)
    assert pool.submit("fake", value=1, depends_on=first).result(30)["value"] == 1  # they have completed long ago


def test_a_failure_travels_down_the_chain_at_once(pool: FilePool) -> None:
    slow = pool.submit("fake", do="sleep", seconds=60)
    bad = pool.submit("fake", do="input", id="bad")
    second = pool.submit("echo", value=bad["value"], other=slow["value"], id="second")
    third = pool.submit("echo", value=second["value"], id="third")
    assert "job bad (fake), whose result it needs, failed: input" in why(second).message
    failure = why(third)
    assert "job bad (fake)" in failure.message
    assert "by way of job second" in failure.hint
    assert pool.state(slow.id) is JobState.RUNNING  # nobody waited for it
    slow.cancel()
    assert "job bad (fake)" in why(pool.submit("echo", value=bad["value"])).message  # it has failed long ago


def test_a_cancelled_one_fails_those_that_need_it_and_they_can_be_cancelled_too(pool: FilePool) -> None:
    slow = pool.submit("fake", do="sleep", seconds=60)
    needs, other = pool.submit("echo", value=slow["value"]), pool.submit("echo", value=slow["value"])
    assert other.cancel()
    wait_all([other], 30)
    assert other.cancelled()
    assert pool.state(needs.id) is JobState.HELD
    slow.cancel()
    assert f"job {slow.id} (fake), whose result it needs, was cancelled" in why(needs).message


def test_a_part_that_is_not_there(pool: FilePool) -> None:
    first = pool.submit("fake", value=1)
    failure = why(pool.submit("echo", value=first["no such thing"]))
    assert f"the result of job {first.id} has no 'no such thing': it has " in failure.message


def test_both_run_again_on_request(pool: FilePool) -> None:
    bad = pool.submit("fake", do="raise", until_attempt=0, value=5)
    needs = pool.submit("echo", value=bad["value"])
    assert "failed" in why(needs).message
    assert "failed" in why(pool.retry(needs.id)).message  # what it needs has still failed


@pytest.mark.parametrize(
    ("given", "why"),
    [("one", r"write \[job\]"), ([7], r"depends_on\.0: "), (["a/b"], r"depends_on\.0: "), (7, "^depends_on")],
)
def test_what_is_no_list_of_jobs_is_refused(pool: FilePool, given: Any, why: str) -> None:
    with pytest.raises(JobRefused, match=why):
        pool.submit("echo", depends_on=given)


def test_a_job_that_is_not_there_is_refused(pool: FilePool, shared: World) -> None:
    for submit in (
        lambda: pool.submit("echo", depends_on=["nobody"]),
        lambda: pool.submit("echo", value=result_of("nobody", "value")),
    ):
        with pytest.raises(UnknownJob, match="nobody"):
            submit()
    assert shared.names("held") == []


def test_the_same_job_again_after_what_it_needed_is_gone(pool: FilePool) -> None:
    first = pool.submit("fake", value=1, id="first-once")
    needs = pool.submit("echo", value=first["value"], id="needs-once")
    assert needs.result(30) == {"value": 1}
    spool = pool.spool
    Retention(spool, pool.config, turn_s=math.inf).sweep()
    from pool.supervise.retention import remove

    remove(spool, "first-once")
    assert pool.submit("echo", value=first["value"], id="needs-once").result(30) == {"value": 1}


def test_a_consumed_result_stays_until_it_was_used(pool: FilePool, shared: World) -> None:
    blocker = pool.submit("fake", do="sleep", seconds=60)
    gate = pool.submit("fake", do="sleep", seconds=0.3)
    first = pool.submit("fake", do="write", mb=1, depends_on=[gate], consume=True)
    other = pool.submit("fake", value=1, consume=True)
    needs = pool.submit("echo", path=first["output"], depends_on=[blocker])
    first.result(30)
    path = Spool(shared.spool).files_dir(first.id) / "written.bin"
    other.result(30)
    wait_until(lambda: not Spool(shared.spool).decided(other.id), "what nobody needs is consumed")
    purge(Spool(shared.spool))
    assert path.is_file()
    blocker.cancel()
    wait_all([needs], 30)
    purge(Spool(shared.spool))
    assert not path.exists()


def test_what_is_gone_fails_those_that_wait(world: World) -> None:
    """Somebody removes a result by hand while nobody serves."""
    world.configure({"fake": {"max_concurrent_tasks": 1}})
    world.serve(ready=1)
    pool = world.pool()
    first = pool.submit("fake", value=1)
    assert first.result(30)["value"] == 1
    world.kill_supervisor()
    needs = pool.submit("fake", value=first["value"])
    os.unlink(Spool(world.spool).record_path(first.id))
    world.serve()
    assert f"job {first.id}, whose result it needs, is gone" in why(needs).message


def test_a_chain_survives_kills_of_the_supervisor(world: World) -> None:
    world.configure({"fake": {"max_concurrent_tasks": 1}})
    world.serve(ready=1)
    pool = world.pool()
    world.kill_supervisor()
    first = pool.submit("fake", value=1, durable=True)
    second = pool.submit("fake", value=first["value"], durable=True)
    third = pool.submit("fake", value=second["value"], durable=True)
    assert first.result(30)["value"] == 1
    assert pool.state(second.id) is JobState.HELD  # nobody is there to let it go
    world.serve()
    assert third.result(30)["value"] == 1


def test_held_and_expired_or_held_and_too_early(pool: FilePool) -> None:
    slow = pool.submit("fake", do="sleep", seconds=60)
    late = pool.submit("echo", value=slow["value"], expires=0.2)
    error = late.exception(30)
    assert isinstance(error, JobFailed)
    assert error.failure.kind == "expired"
    slow.cancel()
    first = pool.submit("fake", value=2)
    first.result(30)
    early = pool.submit("echo", value=first["value"], not_before="1h")
    wait_until(lambda: pool.state(early.id) is JobState.DEFERRED, "it waits for its time")
    early.cancel()


def test_dropped_files_in_any_order(shared: World) -> None:
    drop = shared.spool / "in"
    needs = {"engine": "echo", "params": {"value": {"$result": "z-first", "path": ["value"]}}}
    (drop / "a-second.json").write_text(json.dumps(needs))
    (drop / "after.json").write_text('{"engine": "echo", "params": {"x": 1}, "depends_on": ["z-first"]}')
    (drop / "z-first.json").write_text('{"engine": "fake", "params": {"value": 9}}')
    assert shared.record("a-second").value == {"value": 9}
    assert shared.record("after").value == {"x": 1}
    (drop / "orphan.json").write_text('{"engine": "echo", "params": {}, "depends_on": ["nobody"]}')
    reason = shared.spool / "quarantine" / "orphan.json.reason.txt"
    wait_until(reason.exists, "the refusal")
    assert "no job 'nobody'" in reason.read_text()


def test_command_line(shared: World, pool: FilePool) -> None:
    first = pool.submit("fake", value=3, id="cli-first")
    part = json.dumps(first["value"].placeholder())
    argv = [
        sys.executable,
        "-m",
        "pool.submit",
        "--config",
        str(shared.config),
        "--json",
        "echo",
        f"got:={part}",
        "--after",
        "cli-first",
    ]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["value"] == {"got": 3}
