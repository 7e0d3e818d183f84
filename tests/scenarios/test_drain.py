"""SIGTERM: no new claims, running jobs may finish within the grace, else they are given back unharmed; exit 0."""

from __future__ import annotations

import signal
import time

import pytest

from pool.constants import Phase
from pool.job import JobState
from pool.spool.store import Spool
from scenarios.test_workers import children_of
from scenarios.world import World, alive, kill, wait_until


def ended(world: World) -> None:
    """Nothing of the pool runs, and nothing says that it does."""
    assert not world.processes()
    assert world.supervisor() is None
    assert not (world.spool / "run" / "supervisor.json").exists()
    assert world.names("work") == []


@pytest.mark.parametrize(
    "phase", [Phase.BOOTING, Phase.LOADING, pytest.param(Phase.WARMING, marks=pytest.mark.long), Phase.IDLE]
)
def test_before_there_is_a_job(world: World, phase: Phase) -> None:
    """In every phase without a job a worker goes at once; what was queued stays queued."""
    slow = {Phase.LOADING: {"load_s": 600}, Phase.WARMING: {"warmup_s": 600}}.get(phase, {})
    world.configure({"fake": {"options": slow}}, drain_grace_s=600)  # who waits for either is not done in time
    pool = world.pool() if phase is not Phase.IDLE else None
    future = pool.submit("fake", value=1) if pool else None
    world.serve()
    if phase is Phase.BOOTING:
        wait_until(world.processes, "a worker")
    else:
        wait_until(lambda: [b.phase for b in world.beats().values()] == [phase] * 2, f"two workers {phase.label}")
    assert world.drain() == 0
    ended(world)
    if future is not None and pool is not None and phase is not Phase.BOOTING:
        assert pool.state(future.id) is JobState.QUEUED


def test_busy_within_the_grace(world: World) -> None:
    """The running job finishes, the queued one stays, exit 0."""
    world.configure({"fake": {"max_concurrent_tasks": 1}}).serve(ready=1)
    pool = world.pool()
    running = pool.submit("fake", do="sleep", seconds=1.0)
    waiting = pool.submit("fake", value="later")
    world.worker_of(running.id)
    assert world.drain() == 0
    assert running.result(5)["attempt"] == 1
    ended(world)
    assert pool.state(waiting.id) is JobState.QUEUED
    world.serve(ready=1)
    assert waiting.result(30)["attempt"] == 1


@pytest.mark.invariant(30)
def test_busy_beyond_the_grace(world: World) -> None:
    """It is given back with its attempt, its children are ended, and the next supervisor runs it as attempt 1."""
    world.configure(drain_grace_s=0.5).serve(ready=2)
    pool = world.pool()
    deaf = pool.submit("fake", do="deaf", seconds=600)
    parent = pool.submit("fake", do="children", seconds=600)
    children = children_of(world, parent.id)
    world.worker_of(deaf.id)
    assert world.drain() == 0
    ended(world)
    assert not any(alive(pid) for pid in children)
    for future in (deaf, parent):
        assert (pool.state(future.id), pool.progress_of(future.id).attempt) == (JobState.QUEUED, 0)
    assert Spool(world.spool).notes(deaf.id, 1) == ()


@pytest.mark.invariant(30)
def test_second_signal_ends_at_once(world: World) -> None:
    world.configure(drain_grace_s=600).serve(ready=2)
    pool = world.pool()
    futures = [pool.submit("fake", do="deaf", seconds=600) for _ in range(2)]
    for future in futures:
        world.worker_of(future.id)
    supervisor = world.serving[-1]
    supervisor.terminate()
    wait_until(lambda: world.status().get("draining"), "the drain")
    assert supervisor.poll() is None
    supervisor.terminate()
    assert supervisor.wait(40) == 0
    ended(world)
    assert [pool.progress_of(future.id).attempt for future in futures] == [0, 0]


def test_signals_to_the_very_end_do_not_change_the_exit_code(world: World) -> None:
    """Somebody who asks again and again until it is gone: it still ended by a drain, not by their signal."""
    world.configure()
    for _ in range(3):
        supervisor = world.serve(ready=0)
        deadline = time.monotonic() + 20
        while supervisor.poll() is None and time.monotonic() < deadline:
            supervisor.terminate()
            time.sleep(0.002)
        assert supervisor.returncode == 0


def test_interrupt_drains_too(world: World) -> None:
    """Ctrl-C at a terminal is a drain, and does not reach the workers, which have sessions of their own."""
    world.configure().serve(ready=2)
    future = world.pool().submit("fake", do="sleep", seconds=0.7)
    world.worker_of(future.id)
    world.serving[-1].send_signal(signal.SIGINT)
    assert world.serving[-1].wait(20) == 0
    assert future.result(5)["attempt"] == 1
    ended(world)


def test_worker_that_dies_while_draining(world: World) -> None:
    """Its job is charged and waits for the next supervisor; nothing is started any more."""
    world.configure(drain_grace_s=30).serve(ready=2)
    pool = world.pool()
    future = pool.submit("fake", do="sleep", seconds=20, until_attempt=1)
    _, pid = world.worker_of(future.id)
    world.serving[-1].terminate()
    wait_until(lambda: world.status().get("draining"), "the drain")
    kill(pid)
    assert world.serving[-1].wait(20) == 0
    ended(world)
    assert pool.state(future.id) is JobState.QUEUED


@pytest.mark.long
def test_stopped_worker_does_not_hold_up_a_drain(world: World) -> None:
    world.configure({"fake": {"max_concurrent_tasks": 1}}, drain_grace_s=1).serve(ready=1)
    (beat,) = world.loaded().values()
    kill(beat.pid, signal.SIGSTOP)
    assert world.drain() == 0
    ended(world)


def test_worker_told_to_end_by_hand_is_replaced(world: World) -> None:
    """SIGTERM to a worker instead of the supervisor: its job finishes, the slot is filled again."""
    world.configure({"fake": {"max_concurrent_tasks": 1}}).serve(ready=1)
    pool = world.pool()
    future = pool.submit("fake", do="sleep", seconds=0.5)
    _, pid = world.worker_of(future.id)
    kill(pid, signal.SIGTERM)
    assert future.result(20)["attempt"] == 1
    assert pool.submit("fake", value=1).result(30)["pid"] != pid


@pytest.mark.long
def test_engine_that_hangs_in_close(world: World) -> None:
    """A model that will not let go does not hold up the end, nor a recycling, for ever."""
    (world.folder / "clingy.py").write_text(
        "import time\nfrom inference.fake import Fake\n"
        "class Clingy(Fake):\n"
        "    def close(self):\n"
        "        time.sleep(600)\n"
    )
    world.configure(
        {
            "fake": {
                "engine": "clingy:Clingy",
                "pythonpath": [str(world.folder)],
                "stop_grace_s": 0.5,
                "max_concurrent_tasks": 1,
                "recycle": {"max_jobs": 1},
            }
        },
        drain_grace_s=2,
    ).serve(ready=1)
    pool = world.pool()
    assert pool.submit("fake", value=1).result(30)["value"] == 1
    wait_until(lambda: [b.phase for b in world.beats().values()] == [Phase.DRAINING], "the recycling")
    assert pool.submit("fake", value=2).result(30)["attempt"] == 1, "recycled although close() hangs"
    wait_until(lambda: [b.phase for b in world.beats().values()] == [Phase.DRAINING], "the next recycling")
    assert world.drain() == 0
    ended(world)


def test_asking_a_slot_back_does_not_disturb_a_drain(world: World) -> None:
    world.configure({"fake": {"max_concurrent_tasks": 1}}, drain_grace_s=600).serve(ready=1)
    future = world.pool().submit("fake", do="sleep", seconds=1.0)
    world.worker_of(future.id)
    world.serving[-1].terminate()
    wait_until(lambda: world.slot("fake-0")["seat"] == "off", "the drain")
    (world.spool / "run" / "control" / "fake-0.recover").touch()
    wait_until(lambda: world.names("run/control") == [], "the request is taken")
    assert world.serving[-1].wait(40) == 0, world.log()
    assert future.result(5)["attempt"] == 1
    ended(world)
