"""A machine is suspended, a container is paused: when all goes on, nobody is blamed for the time in between."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pool.constants import EXIT_DRAINED, Phase
from pool.job import JobState
from scenarios.world import World, kill, wait_until

HELD_S = 4.0


@contextmanager
def standing_still(world: World) -> Iterator[None]:
    """All its processes stand still meanwhile, and then the supervisor is the first to look around."""
    supervisor = world.supervisor()
    pids = [*([supervisor.pid] if supervisor is not None else []), *world.processes()]
    for pid in pids:
        kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            kill(pid, signal.SIGCONT)


def pids(world: World) -> set[int]:
    return {beat.pid for beat in world.loaded().values()}


@pytest.mark.invariant(29)
def test_no_job_and_no_worker_is_blamed(world: World) -> None:
    """One job makes no progress for longer than its engine may, one takes longer than its own limit."""
    world.configure({"fake": {"stall_timeout_s": HELD_S - 2, "max_concurrent_tasks": 2, "retry_times": 0}})
    world.serve(ready=2)
    pool, before = world.pool(), pids(world)
    jobs = [pool.submit("fake", do="sleep", seconds=1.5), pool.submit("fake", do="sleep", seconds=1.5, timeout_s=3.5)]
    wait_until(lambda: all(pool.progress_of(job.id).status != "queued" for job in jobs), "both run")
    with standing_still(world):
        time.sleep(HELD_S)
    assert [job.result(60)["attempt"] for job in jobs] == [1, 1]
    assert pids(world) == before
    wait_until(lambda: pool.status().stood_still_s > HELD_S - 2, "status tells it")
    assert any("stood still" in note for note in pool.status().health.notes)
    assert "all stood still for" in world.log()


@pytest.mark.long
def test_a_model_that_loads_gets_its_time(world: World) -> None:
    world.configure({"fake": {"load_timeout_s": HELD_S - 0.5, "options": {"load_s": 2.0}, "max_concurrent_tasks": 1}})
    world.serve()
    wait_until(lambda: world.beats() and all(b.phase is Phase.LOADING for b in world.beats().values()), "it loads")
    with standing_still(world):
        time.sleep(HELD_S)
    world.wait_ready(1)
    assert world.slot("fake-0")["starts"] == 1


@pytest.mark.long
def test_the_grace_of_a_drain_is_whole(world: World) -> None:
    world.configure(drain_grace_s=HELD_S - 0.5)
    process = world.serve(ready=2)
    pool = world.pool()
    job = pool.submit("fake", do="sleep", seconds=2)
    world.worker_of(job.id)
    process.terminate()
    wait_until(lambda: "draining" in world.log(), "it drains")
    with standing_still(world):
        time.sleep(HELD_S)
    assert process.wait(60) == EXIT_DRAINED
    assert world.state(job.id) is JobState.COMPLETED, "the job had its time"


@pytest.mark.long
def test_an_orphan_waits_for_its_whole_grace(world: World) -> None:
    world.configure(orphan_grace_s=HELD_S + 1)
    world.serve(ready=2)
    before = pids(world)
    world.kill_supervisor()
    with standing_still(world):
        time.sleep(HELD_S + 2)
    world.serve(ready=2)
    assert pids(world) == before, "the models stay loaded"
