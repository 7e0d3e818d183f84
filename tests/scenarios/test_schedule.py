"""Jobs that are not to begin before a moment, or not after one: with real workers, killed supervisors, all ways in."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from pool.errors import JobFailed, JobRefused, SpoolFull
from pool.job import JobState, Record
from pool.spool import lookup
from pool.spool.store import Spool
from pool.supervise.retention import Retention
from scenarios.world import ROOT, World, history, wait_until


@pytest.fixture(scope="module")
def shared(make_shared: Callable[[str], World]) -> World:
    """Engines: fake on one slot; broken, whose worker never serves; full, of which one job may wait."""
    world = make_shared("schedule")
    (world.folder / "witness").mkdir()
    options = {"witness": str(world.folder / "witness")}
    world.configure(
        {
            "fake": {"max_concurrent_tasks": 1, "options": options},
            "broken": {"max_concurrent_tasks": 1, "options": {"fail_load": "config"}},
        }
    )
    world.serve(ready=1)
    return world


def begun(world: World, job_id: str) -> list[int]:
    """When each attempt began, µs of the spool clock."""
    offset = Spool(world.spool).now() - time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
    return [
        at // 1000 + offset
        for at, _, what, job, _, _ in history(world.folder / "witness")
        if what == "start" and job == job_id
    ]


def expired(world: World, job_id: str) -> Record:
    record = world.record(job_id)
    assert record.state is JobState.FAILED
    assert record.failure is not None
    assert record.failure.kind == "expired"
    assert "expired before a worker began it" in record.failure.message
    assert (record.attempt, record.started) == (0, 0)
    assert begun(world, job_id) == []
    return record


# ---- not before


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_it_begins_when_its_time_has_come_and_not_before(shared: World, form: str) -> None:
    pool, spool = shared.pool(), Spool(shared.spool)
    due = spool.now() + 400_000
    given: Any = 0.4 if form == "seconds" else datetime.now(timezone.utc) + timedelta(seconds=0.4)
    future = pool.submit("fake", value=form, not_before=given)
    assert future.result(30)["value"] == form
    (at,) = begun(shared, future.id)
    assert at >= due - 20_000  # a date is read by another clock
    assert future.record is not None
    assert future.record.attempt == 1


def test_where_it_waits_and_that_it_is_one_job(shared: World) -> None:
    pool = shared.pool()
    future = pool.submit("fake", value=1, not_before="5h", id="waits")
    assert pool.submit("fake", value=1, not_before="1d", id="waits").id == future.id  # the first one stands
    assert len(shared.names("deferred")) == 1
    assert pool.state(future.id) is JobState.DEFERRED
    assert future.status().message == "waits for its time, in 5 h"
    status = pool.status().engine("fake")
    assert status is not None
    assert status.deferred == 1
    future.cancel()
    wait_until(future.done, "its end")


def test_a_moment_that_is_over_is_now(shared: World) -> None:
    pool = shared.pool()
    past = datetime.now(timezone.utc) - timedelta(days=3)
    assert pool.submit("fake", value=1, not_before=past).result(30)["value"] == 1
    assert pool.submit("fake", value=2, not_before=0).result(30)["value"] == 2


def test_what_waits_for_its_time_is_cancelled_at_once(shared: World) -> None:
    pool = shared.pool()
    futures = pool.submit_many("fake", [{"value": n} for n in range(3)], not_before="1h", expires="2h")
    assert [pool.state(future.id) for future in futures] == [JobState.DEFERRED] * 3
    for future in futures:
        assert future.cancel()
        record = shared.record(future.id)
        assert (record.state, record.attempt, record.started) == (JobState.CANCELLED, 0, 0)
        assert next(job for job in pool.jobs() if job.id == future.id).took_s is None
    wait_until(lambda: not shared.names("run/control"), "the requests are taken away")
    spool = Spool(shared.spool)
    Retention(spool, pool.config, turn_s=math.inf).sweep()
    assert shared.names("run/expiry") == []


def test_too_many_are_refused(shared: World) -> None:
    config = json.loads(shared.config.read_text())
    narrow = shared.folder / "narrow.json"
    narrow.write_text(json.dumps({**config, "max_ready": 2}))
    from pool.client.filepool import FilePool

    with FilePool(narrow, start=False) as pool:
        futures = pool.submit_many("fake", [{}, {}], not_before="1h")
        with pytest.raises(SpoolFull, match="wait for their time, max_ready is 2"):
            pool.submit("fake", not_before="1h")
        assert pool.submit("fake", value=3).result(30)["value"] == 3
        for future in futures:
            future.cancel()


def test_it_survives_kills_and_comes_back_in_its_time(world: World) -> None:
    """The supervisor is killed, and comes back after it was due."""
    world.configure({"fake": {"max_concurrent_tasks": 1}})
    world.serve(ready=1)
    pool = world.pool()
    world.kill_supervisor()
    spool = Spool(world.spool)
    future = pool.submit("fake", value=1, not_before=0.3, durable=True)
    other = pool.submit("fake", value=2, not_before="1h", durable=True)
    born = spool.now()
    wait_until(lambda: spool.now() > born + 300_000, "it is due")
    assert pool.state(future.id) is JobState.DEFERRED  # nobody is there to wake it
    world.serve(ready=1)
    assert future.result(30)["value"] == 1
    assert pool.state(other.id) is JobState.DEFERRED
    other.cancel()


# ---- expires


def test_it_expires_behind_a_long_job(shared: World) -> None:
    """Decided while the only worker is busy: nobody waits until it claims."""
    pool = shared.pool()
    slow = pool.submit("fake", do="sleep", seconds=60)
    shared.worker_of(slow.id)
    late = pool.submit("fake", value=1, expires=0.3)
    rest = pool.submit("fake", value=2, expires="1h")
    with pytest.raises(JobFailed, match="expired"):
        late.result(30)
    record = expired(shared, late.id)
    assert record.failure is not None
    assert "expires" in record.failure.hint
    assert pool.state(slow.id) is JobState.RUNNING
    slow.cancel()
    assert rest.result(30)["value"] == 2
    wait_until(lambda: pool.state(late.id) is JobState.FAILED and lookup.find_dead(pool.spool, late.id), "burial")
    with pytest.raises(JobRefused, match="has expired: submit it anew"):
        pool.retry(late.id)


def test_it_expires_where_no_worker_serves(shared: World) -> None:
    pool = shared.pool()
    expired(shared, pool.submit("broken", value=1, expires=0.2).id)
    expired(shared, pool.submit("broken", value=1, not_before=0.1, expires=0.2).id)


def test_a_worker_without_a_supervisor_begins_nothing_that_is_over(world: World) -> None:
    world.configure({"fake": {"max_concurrent_tasks": 1}})
    world.serve(ready=1)
    pool = world.pool()
    slow = pool.submit("fake", do="sleep", seconds=60)
    world.worker_of(slow.id)
    world.kill_supervisor()
    spool = Spool(world.spool)
    late = pool.submit("fake", value=1, expires=0.2, id="late")
    born = spool.now()
    wait_until(lambda: spool.now() > born + 200_000, "it is too late")
    slow.cancel()
    record = world.record(late.id)
    assert record.failure is not None
    assert (record.failure.kind, record.attempt, record.worker.split(".")[0]) == ("expired", 0, "fake-0")
    assert record.started == 0


# ---- the other ways in


def test_dropped_files(shared: World) -> None:
    drop = shared.spool / "in"
    (drop / "later.json").write_text('{"engine": "fake", "value": 1, "not_before": 0.3, "expires": "1h"}')
    (drop / "over.json").write_text('{"engine": "broken", "params": {}, "expires": 0.1}')
    (drop / "naive.json").write_text('{"engine": "fake", "params": {}, "not_before": "2030-01-01T00:00:00"}')
    assert shared.record("later").state is JobState.COMPLETED
    expired(shared, "over")
    reason = shared.spool / "quarantine" / "naive.json.reason.txt"
    wait_until(reason.exists, "the refusal")
    assert "not_before: 2030-01-01T00:00:00 has no time zone" in reason.read_text()


@pytest.mark.long
def test_command_line(shared: World) -> None:
    def submit(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "pool.submit", "--config", str(shared.config), "--json", *words]
        return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)

    done = submit("broken", "--expires", "0.2s")
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["failure"]["kind"] == "expired"
    later = submit("fake", "--not-before", "1h", "--no-wait")
    assert json.loads(later.stdout)["state"] == "deferred"
    shared.pool().cancel(json.loads(later.stdout)["id"])
    wrong = submit("fake", "--not-before", "tomorrow")
    assert wrong.returncode == 2
    assert "not_before" in wrong.stderr
