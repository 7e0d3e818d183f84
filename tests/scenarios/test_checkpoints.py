"""Jobs that go on where an attempt ended, in real workers that are killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from pool.errors import JobFailed
from scenarios.world import ROOT, World, kill, wait_until

ENGINE = '''
import os, signal, time
from pathlib import Path
from inference.base import Files

class Steps:
    """Notes in its checkpoint which attempts there were; the first one ends as it is told."""

    def load(self, device, options):
        pass

    def check(self, params):
        return dict(params)

    def files(self, params):
        return Files(inputs=(Path(params["input"]),) if "input" in params else ())

    def run(self, params, context):
        begun = [*(context.restore() or {"begun": []})["begun"], context.attempt]
        context.checkpoint({"begun": begun})
        if context.attempt == 1 or params.get("always"):
            if "change" in params:
                Path(params["change"]).write_text("other")
            if params["end"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if params["end"] == "raise":
                raise RuntimeError("out of tune")
            while params["end"] == "wait" and not Path(params["until"]).exists():
                context.check()
                time.sleep(0.01)
        return {"begun": begun}
'''


@pytest.fixture(scope="module")
def shared(make_shared: Callable[[str], World]) -> World:
    world = make_shared("checkpoints")
    (world.folder / "steps_engine.py").write_text(ENGINE)
    paths = [str(ROOT), str(world.folder)]
    world.configure({"steps": {"engine": "steps_engine:Steps", "pythonpath": paths, "max_concurrent_tasks": 1}})
    world.serve(ready=1)
    return world


def left(world: World) -> list[str]:
    return os.listdir(world.spool / "run" / "checkpoints")


@pytest.mark.parametrize("end", ["kill", "raise"])
def test_the_next_attempt_goes_on(shared: World, end: str) -> None:
    future = shared.pool().submit("steps", end=end, retry_times=2, retry_on=["infrastructure", "engine"])
    assert future.result(60) == {"begun": [1, 2]}
    wait_until(lambda: left(shared) == [], "nothing left")


def test_not_with_another_input(shared: World, tmp_path: Path) -> None:
    media = tmp_path / "input.txt"
    media.write_text("one")
    future = shared.pool().submit("steps", end="kill", input=str(media), change=str(media), retry_times=2)
    assert future.result(60) == {"begun": [2]}


def test_what_ends_two_attempts_is_not_used_by_the_third(shared: World) -> None:
    future = shared.pool().submit("steps", end="kill", always=True, retry_times=1)
    with pytest.raises(JobFailed):
        future.result(60)
    wait_until(lambda: left(shared) == [], "nothing left")


def test_a_cancelled_job_leaves_none(shared: World, tmp_path: Path) -> None:
    future = shared.pool().submit("steps", end="wait", until=str(tmp_path / "never"))
    wait_until(lambda: left(shared) == [future.id], "a checkpoint")
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(60)
    wait_until(lambda: left(shared) == [], "nothing left")


def test_it_outlives_the_supervisor_and_the_worker(world: World, tmp_path: Path) -> None:
    (world.folder / "steps_engine.py").write_text(ENGINE)
    paths = [str(ROOT), str(world.folder)]
    world.configure({"steps": {"engine": "steps_engine:Steps", "pythonpath": paths, "max_concurrent_tasks": 1}})
    first = world.serve(ready=1)
    future = world.pool().submit("steps", end="wait", until=str(tmp_path / "never"), retry_times=2)
    wait_until(lambda: left(world) == [future.id], "a checkpoint")
    (worker,) = [slot["pid"] for slot in world.status()["slots"]]
    kill(first.pid)
    kill(worker)
    first.wait()
    world.serve(ready=1)
    assert future.result(60) == {"begun": [1, 2]}
