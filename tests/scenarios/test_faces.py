"""Videos through the pool: a worker killed in the middle, a job cancelled in the middle, two jobs on one template."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pool.client.future import JobFuture
from pool.constants import Phase
from pool.job import JobState
from scenarios.world import ROOT, World, below, kill, wait_until

pytestmark = [pytest.mark.model, pytest.mark.long]

PAINTING = ROOT / "examples" / "portrait" / "mona_lisa.jpg"
SPEECH = ROOT / "examples" / "speech" / "address.flac"


@pytest.fixture(scope="module")
def studio(make_shared: Callable[[str], World]) -> World:
    """A pool with two lipsync workers."""
    world = make_shared("studio")
    world.configure({"lipsync": {"engine": "inference.lipsync:LipSync", "retry_times": 1}})
    world.serve()
    wait_until(lambda: len(world.loaded()) == 2, "two loaded workers", 110)
    return world


def say(world: World, name: str) -> tuple[JobFuture, Path]:
    folder = world.folder / name
    folder.mkdir()
    output = folder / "talking.mp4"
    job = {"video": str(PAINTING), "audio": str(SPEECH), "output": str(output)}
    return world.pool().submit("lipsync", **job), output


def two_idle(world: World) -> bool:
    return [beat.phase for beat in world.beats().values()] == [Phase.IDLE] * 2


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def ffmpegs(world: World) -> list[int]:
    found = []
    for pid in world.processes():
        try:
            if "ffmpeg" in psutil.Process(pid).name():
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found


def painting_now(world: World, future: JobFuture, percent: float) -> int:
    """The pid of the worker that has painted so much of a job."""
    wait_until(lambda: future.status().status == "inference" and future.status().percent >= percent, "painting", 100)
    return world.worker_of(future.id)[1]


@pytest.mark.timeout(240)
def test_a_killed_worker_changes_nothing_in_the_video(studio: World) -> None:
    plain, whole = say(studio, "plain")
    plain.result(100)
    future, output = say(studio, "killed")
    kill(painting_now(studio, future, 35))
    result = future.result(100)
    assert future.record is not None
    assert future.record.attempt == 2
    assert future.record.attempts[0].signal == "SIGKILL"
    assert result["frames"] == plain.result()["frames"]
    assert digest(output) == digest(whole)
    assert [path.name for path in output.parent.iterdir()] == ["talking.mp4"]
    wait_until(lambda: not ffmpegs(studio), "the end of every ffmpeg")


@pytest.mark.timeout(240)
def test_a_cancelled_job_leaves_no_file_and_no_ffmpeg(studio: World) -> None:
    wait_until(lambda: len(studio.loaded()) == 2, "two loaded workers", 110)
    future, output = say(studio, "cancelled")
    painting_now(studio, future, 30)
    wait_until(lambda: ffmpegs(studio), "an ffmpeg at work")
    future.cancel()
    wait_until(lambda: studio.state(future.id) is JobState.CANCELLED, "the cancelled job")
    wait_until(lambda: not ffmpegs(studio), "the end of every ffmpeg")
    assert list(output.parent.iterdir()) == []
    assert not [path for path in below(studio.spool / "tmp") if path.suffix == ".mp4"]


@pytest.mark.timeout(240)
def test_two_jobs_on_one_template_share_one_analysis(studio: World) -> None:
    wait_until(lambda: two_idle(studio), "two idle workers", 110)  # a cancelled job may have cost its worker
    (one, first), (other, second) = say(studio, "one"), say(studio, "other")
    one.result(100)
    other.result(100)
    assert one.record is not None
    assert other.record is not None
    assert {one.record.worker, other.record.worker} == set(studio.loaded()), (one.record, other.record, studio.log())
    assert digest(first) == digest(second)
    cache = studio.spool / "cache"
    assert len([path for path in below(cache) if path.suffix == ".npz" and "analyses" in path.parts]) == 1
