"""The crash table: how an attempt dies, and what its record says, while ordinary jobs go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from pool.client.filepool import FilePool
from pool.client.future import JobFuture
from pool.constants import STATUSES
from pool.errors import JobFailed
from pool.job import Failure, JobState
from scenarios.world import World, wait_until


@dataclass(frozen=True)
class Death:
    """One row. stage: where; says: in the message; shows: in traceback or stderr; retries: of each job."""

    params: dict[str, Any]
    kind: str
    stage: str = "run"
    says: str = ""
    exit_code: int | None = None
    signal: str = ""
    exception: str = ""
    shows: str = ""
    hint: str = ""
    retries: int = 1
    more: dict[str, Any] = field(default_factory=dict)


TABLE = {
    "raise": Death(
        {"do": "raise", "value": "out of tune"},
        "engine",
        "run",
        "out of tune",
        exception="RuntimeError",
        shows='raise RuntimeError(params.value or "")',
    ),
    "raise, no words": Death({"do": "raise"}, "engine", says="RuntimeError", exception="RuntimeError"),
    "input": Death(
        {"do": "input"},
        "input",
        says="this input cannot be used",
        exception="inference.base.InputError",
        hint="give another one",
        retries=2,
    ),
    "exit 0": Death({"do": "exit"}, "infrastructure", says="exited with code 0", exit_code=0),
    "exit 1": Death({"do": "exit", "code": 1}, "infrastructure", says="exited with code 1", exit_code=1),
    "exit 4": Death({"do": "exit", "code": 4}, "infrastructure", says="exited with code 4", exit_code=4, retries=0),
    "sys.exit": Death({"do": "sys_exit", "code": 3}, "engine", says="sys.exit(3)", exception="SystemExit"),
    "segfault": Death(
        {"do": "segfault"}, "infrastructure", says="SIGSEGV", signal="SIGSEGV", shows="in _segfault", hint="native code"
    ),
    "kill": Death({"do": "kill"}, "infrastructure", says="SIGKILL", signal="SIGKILL"),
    "abort": Death(
        {"do": "abort"}, "infrastructure", says="SIGABRT", signal="SIGABRT", shows="in _misbehave", retries=0
    ),
    "stack overflow": Death(
        {"do": "overflow"}, "infrastructure", says="SIGSEGV", signal="SIGSEGV", shows="in _dive", retries=0
    ),
    "hang": Death(
        {"do": "hang"},
        "timeout",
        says="no progress for",
        signal="SIGABRT",
        shows="in _misbehave",
        hint="stall_timeout_s",
        retries=0,
    ),
    "hang in C": Death(
        {"do": "hang_c"}, "timeout", says="no progress for", signal="SIGABRT", shows="in _misbehave", retries=0
    ),
    "hang on a FIFO": Death(
        {"do": "hang_fifo"}, "timeout", says="no progress for", signal="SIGABRT", shows="in _misbehave", retries=0
    ),
    "unencodable": Death(
        {"do": "unencodable"},
        "engine",
        "publish",
        "inner.thing: an object",
        exception="pool.errors.ProtocolError",
        hint="lists and maps",
    ),
    "not a map": Death({"do": "not_a_map"}, "engine", says="returned a list, not a map", exception="TypeError"),
    "noisy": Death({"do": "noisy"}, "engine", says="noisy end", exception="RuntimeError", shows="a line on stderr"),
    "too long": Death(
        {"do": "work", "seconds": 30},
        "timeout",
        "inference",
        "time limit (0.5 s)",
        signal="SIGABRT",
        shows="in _act",
        hint="more time",
        more={"timeout_s": 0.5, "retry_on": ["timeout"]},
    ),
}


def failure_of(future: JobFuture) -> Failure:
    with pytest.raises(JobFailed) as caught:
        future.result(90)
    return caught.value.failure


def check(row: Death, future: JobFuture) -> None:
    last = failure_of(future)
    record = future.record
    assert record is not None
    assert record.state is JobState.FAILED
    attempts = 1 if row.kind == "input" else row.retries + 1
    slots = [one.worker.rpartition(".")[0] for one in last.attempts]
    if row.kind != "input" and len(slots) == attempts + 1:  # so many failed in a row that one more slot was asked
        assert len(set(slots[:-1])) == 1
        assert slots[-1] != slots[0]
        attempts += 1
    assert record.attempt == last.attempt == attempts
    assert [one.attempt for one in last.attempts] == list(range(1, attempts + 1)), "one reason per attempt"
    assert [one.attempt for one in record.attempts] == list(range(1, attempts))
    assert last.not_retried, "it says why there is no further attempt"
    assert record.created < record.started < last.at <= record.finished, "its last attempt took time"
    assert record.started == last.started
    for one in last.attempts:
        assert record.created < one.started < one.at, "each attempt has its time"
        assert [stage.status for stage in one.stages.changes[-1:]] == [row.stage] * (row.stage in STATUSES)
        assert all(one.started <= stage.at <= one.at for stage in one.stages.changes)
        assert one.kind == row.kind
        assert one.stage == row.stage
        assert row.says in one.message
        assert one.message.strip()
        assert one.exit_code == row.exit_code
        assert one.signal == row.signal
        assert one.exception == row.exception
        assert row.shows in one.traceback + one.stderr_tail, one
        assert row.hint in one.hint
        assert one.worker.startswith("fake-")
        assert one.at > record.created


@pytest.fixture(scope="module")
def crash_world(make_shared: Callable[[str], World]) -> World:
    world = make_shared("crash table")
    world.configure({"fake": {"stall_timeout_s": 1.5, "retry_times": 1}})
    world.serve(ready=2)
    return world


@pytest.mark.invariant(10, 15)
def test_every_death_has_its_record_and_ordinary_jobs_go_on(crash_world: World) -> None:
    """All rows at once on two slots, between ordinary jobs."""
    pool = crash_world.pool()
    before = {name.split(".")[3] for name in crash_world.names("dead")}
    ordinary = pool.submit_many("fake", [{"value": number} for number in range(60)])
    deaths = {
        name: pool.submit("fake", params=row.params, retry_times=row.retries, **row.more) for name, row in TABLE.items()
    }
    ordinary += pool.submit_many("fake", [{"value": number} for number in range(60, 120)])
    assert [future.result(90)["value"] for future in ordinary] == list(range(120))
    wrong = []
    for name, row in TABLE.items():
        try:
            check(row, deaths[name])
        except AssertionError as error:
            wrong.append(f"--- {name}: {error}")
    assert not wrong, "\n".join(wrong)
    last = pool.submit_many("fake", [{"value": "still here"} for _ in range(20)])
    assert all(future.result(60)["value"] == "still here" for future in last)
    wait_until(lambda: not crash_world.held(), "every claim is tidied away")
    dead = sorted(name.split(".")[3] for name in crash_world.names("dead"))
    assert [job_id for job_id in dead if job_id not in before] == sorted(future.id for future in deaths.values())


def test_a_timeout_is_the_end_unless_somebody_asks(crash_world: World) -> None:
    """For a limit that was met and for a hang; retry_times alone does not ask for it, nor does a suspected slot."""
    pool = crash_world.pool()
    late = pool.submit("fake", do="work", seconds=30, timeout_s=0.3, retry_times=5)
    hung = pool.submit("fake", do="hang", retry_times=5)
    named = pool.submit("fake", do="work", seconds=30, timeout_s=0.3, retry_times=1, retry_on=["timeout"])
    for future, attempts, reason in (
        (late, 1, "a timeout is retried only when retry_on names it"),
        (hung, 1, "a timeout is retried only when retry_on names it"),
        (named, 2, "retry_times is 1"),
    ):
        last = failure_of(future)
        assert (last.kind, last.attempt, last.not_retried) == ("timeout", attempts, reason)


@pytest.mark.long
def test_an_engine_error_is_retried_once_or_as_often_as_somebody_says(world: World) -> None:
    world.configure({"fake": {}, "twice": {"retry_times": 2}, "never": {"retry_on": ["resource"]}})
    world.serve(ready=6)
    pool = world.pool()
    table: list[tuple[str, dict[str, Any], int, str]] = [
        ("fake", {}, 2, "an error of the engine is retried once"),
        ("fake", {"retry_times": 3}, 4, "retry_times is 3"),
        ("twice", {}, 3, "retry_times is 2"),
        ("never", {}, 1, "retry_on names resource"),
        ("never", {"retry_on": ["engine"], "retry_times": 1}, 2, "retry_times is 1"),
    ]
    futures = [pool.submit(engine, do="raise", **more) for engine, more, _, _ in table]
    for future, (engine, more, attempts, reason) in zip(futures, table, strict=True):
        last = failure_of(future)
        assert (last.kind, last.attempt) == ("engine", attempts), (engine, more)
        assert last.not_retried.startswith(reason)


def test_memory_limit(world: World) -> None:
    """A job that grows beyond memory_limit_mb is ended, kind resource; the level after warm-up does not count."""
    world.configure({"fake": {"memory_limit_mb": 60, "max_concurrent_tasks": 1}})
    world.serve(ready=1)
    pool = world.pool()
    last = failure_of(pool.submit("fake", do="leak", mb=120, seconds=30, retry_times=0))
    assert (last.kind, last.attempt) == ("resource", 1)
    assert "memory grew by" in last.message
    assert "memory_limit_mb is 60" in last.message
    assert last.signal in ("SIGABRT", "SIGKILL")
    assert pool.submit("fake", do="leak", mb=10).result(60)["attempt"] == 1


FAMILY = """
import os, subprocess, sys, time


class Family:
    def load(self, device, options):
        self.weights = bytearray(os.urandom(1 << 20) * 150)

    def check(self, params):
        return params

    def run(self, params, context):
        if params["do"] == "fork":
            pids = [pid for pid in (os.fork() for _ in range(3)) if pid or (time.sleep(2.5), os._exit(0))]
            for pid in pids:
                os.waitpid(pid, 0)
            return {"forked": len(pids)}
        code = "import os, time; block = bytearray(os.urandom(1 << 20) * 120); time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        while child.poll() is None:
            context.progress("inference", 1.0, str(child.pid))
            time.sleep(0.05)
        return {}

    def close(self):
        pass
"""


@pytest.mark.long
def test_memory_limit_counts_what_a_job_has_started(world: World) -> None:
    """A child's own memory does; what forked children share with the worker does not."""
    (world.folder / "family.py").write_text(FAMILY)
    engine = {"engine": "family:Family", "pythonpath": ["."], "memory_limit_mb": 60, "max_concurrent_tasks": 1}
    world.configure({"family": engine}).serve(ready=1)
    pool = world.pool()
    assert pool.submit("family", do="fork", retry_times=0).result(30) == {"forked": 3}
    last = failure_of(pool.submit("family", do="child", retry_times=0))
    assert last.kind == "resource"
    assert "memory_limit_mb is 60" in last.message


@pytest.mark.long
def test_a_deaf_hang_is_killed_after_the_grace(world: World) -> None:
    """SIGABRT ignored: the second step is SIGKILL to the family."""
    (world.folder / "stubborn.py").write_text(
        "import signal, time, subprocess, sys\n"
        "from inference.fake import Fake\n"
        "class Stubborn(Fake):\n"
        "    def run(self, params, context):\n"
        "        if context.attempt > 1:\n"
        "            return {'attempt': context.attempt}\n"
        "        signal.signal(signal.SIGABRT, signal.SIG_IGN)\n"
        "        child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "        context.partial({'child': child.pid})\n"
        "        time.sleep(600)\n"
    )
    world.configure(
        {
            "fake": {
                "engine": "stubborn:Stubborn",
                "pythonpath": [str(world.folder)],
                "stall_timeout_s": 1,
                "stop_grace_s": 0.5,
                "max_concurrent_tasks": 1,
                "retry_on": ["timeout"],
            },
        }
    )
    world.serve(ready=1)
    future = world.pool().submit("fake")
    assert future.result(60) == {"attempt": 2}
    assert future.record is not None
    (why,) = future.record.attempts
    assert (why.kind, why.signal) == ("timeout", "SIGKILL")
    assert "by the supervisor" in why.message
    wait_until(lambda: len(world.processes()) == 1, "only the worker is left")


def test_a_pool_of_its_own_reads_the_records(crash_world: World) -> None:
    """Another client sees the same failures."""
    ids = [name.split(".")[3] for name in crash_world.names("dead")]
    other = FilePool(crash_world.config, start=False)
    try:
        for job_id in ids:
            assert failure_of(other.attach(job_id)).message
    finally:
        other.close()
