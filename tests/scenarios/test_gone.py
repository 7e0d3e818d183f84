"""The spool is removed, moved away or made anew under a running pool: all say so, and nothing of the old works on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pool.errors import SpoolError
from scenarios.world import World, alive, kill, remove, wait_until


@pytest.fixture
def before(world: World) -> Iterator[list[int]]:
    """For the processes of the old pool: they are not found any more when the test fails."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        kill(pid)


def all_of(world: World) -> list[int]:
    supervisor = world.supervisor()
    return [*world.processes(), *([supervisor.pid] if supervisor is not None else [])]


def test_removed(world: World, before: list[int]) -> None:
    """The supervisor ends and says why, its workers with it; whoever waits is told, and so is who comes later."""
    world.configure()
    process, pool = world.serve(ready=2), world.pool()
    before += all_of(world)
    running = pool.submit("fake", do="sleep", seconds=600)
    world.worker_of(running.id)
    remove(world.spool)
    with pytest.raises(SpoolError, match=r"spool .* is gone: removed, moved or unmounted"):
        running.result(60)
    calls = (
        lambda: pool.submit("fake", value=1),
        lambda: pool.attach(running.id),
        lambda: pool.state(running.id),
        pool.status,
        pool.jobs,
    )
    for call in calls:
        with pytest.raises(SpoolError, match="is gone"):
            call()
    assert process.wait(60) not in (0, None)
    assert "is gone: removed, moved or unmounted" in world.log()
    wait_until(lambda: not any(map(alive, before)), "the end of all workers")
    status = [sys.executable, "-m", "pool", "status", "--config", str(world.config)]
    said = subprocess.run(status, capture_output=True, text=True)
    assert said.returncode != 0
    assert "Traceback" not in said.stderr


@pytest.mark.parametrize(
    "supervised", [pytest.param(True, marks=pytest.mark.long, id="supervised"), pytest.param(False, id="orphans")]
)
def test_made_anew(world: World, supervised: bool, before: list[int]) -> None:
    """`rm -rf spool`, and another pool is started there at once. The workers of the old one must not serve it."""
    world.configure(orphan_grace_s=600)
    world.serve(ready=2)
    pool = world.pool()
    before += all_of(world)
    running = pool.submit("fake", do="sleep", seconds=600)
    world.worker_of(running.id)
    if not supervised:
        world.kill_supervisor()
    os.rename(world.spool, world.folder / "aside")
    world.serve(ready=2)
    with pytest.raises(SpoolError, match=r"is gone|made anew"):
        running.result(60)
    wait_until(lambda: not any(map(alive, before)), "the end of the old pool")
    new = set(world.processes())
    assert len(new) == 2
    fresh = world.pool()
    results = [future.result(60) for future in fresh.submit_many("fake", [{"value": n} for n in range(20)])]
    assert {result["pid"] for result in results} <= new


def test_a_worker_takes_no_job_of_a_new_spool(world: World, before: list[int]) -> None:
    """Its supervisor has not seen yet that the spool is another one, and its name is that of a worker there."""
    world.configure(rescan_s=0.1)
    world.serve(ready=2)
    before += all_of(world)
    supervisor = world.supervisor()
    assert supervisor is not None
    kill(supervisor.pid, signal.SIGSTOP)
    os.rename(world.spool, world.folder / "aside")
    world.serve(ready=2)
    new = set(world.processes()) - set(before)
    futures = world.pool().submit_many("fake", [{"do": "sleep", "seconds": 0.1, "value": n} for n in range(40)])
    assert {future.result(60)["pid"] for future in futures} <= new
    kill(supervisor.pid, signal.SIGCONT)
    wait_until(lambda: not any(map(alive, before)), "the end of the old pool")


@pytest.mark.long
def test_parts_are_made_again(world: World) -> None:
    """Somebody makes room on the disk."""
    world.configure().serve(ready=2)
    pool = world.pool()
    for name in ("cache", "quarantine", "held", "progress"):
        remove(world.spool / name)
    wait_until(lambda: all((world.spool / name).is_dir() for name in ("cache", "quarantine", "held", "progress")))
    assert "made again" in world.log()
    assert pool.submit("fake", value=1).result(60)["value"] == 1
    assert pool.submit("fake", value=2, depends_on=[pool.submit("fake", value=3).id]).result(60)["value"] == 2


@pytest.mark.long
def test_a_pool_of_its_own_goes_on_in_a_new_spool(world: World, before: list[int]) -> None:
    """A FilePool that starts its supervisor says what is lost, and can be used again."""
    pool = world.configure().pool(start=True)
    assert pool.submit("fake", value=1).result(60)["value"] == 1
    running = pool.submit("fake", do="sleep", seconds=600)
    world.worker_of(running.id)
    before += all_of(world)
    remove(world.spool)
    with pytest.raises(SpoolError, match=r"is gone|made anew"):
        running.result(60)
    with world.pool(start=True) as fresh:
        assert fresh.submit("fake", value=2).result(60)["value"] == 2
