"""An SDK in an older Python under the pool: what holds for any engine holds for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import old_python
import psutil
import pytest

from pool.client.future import JobFuture
from pool.failure import Failure
from scenarios.world import ROOT, World, wait_until

pytestmark = pytest.mark.long
SDKS = Path(__file__).resolve().parents[1] / "engines" / "sdks"


@pytest.fixture
def guests(world: World) -> World:
    """One worker whose SDK runs in Python 3.6, with the limits that a test sets."""
    options = {"python": old_python.bare("3.6"), "sdk": str(SDKS), "guest": "sample:Sample"}
    engine = {
        "engine": "inference.foreign:Foreign",
        "options": options,
        "max_concurrent_tasks": 1,
        "retry_times": 1,
        "memory_limit_mb": 80,
    }
    world.configure({"sdk": engine}).serve(ready=1)
    return world


def guest_of(world: World) -> psutil.Process:
    (beat,) = world.loaded().values()
    (guest,) = psutil.Process(beat.pid).children()
    return guest


def failure_of(future: JobFuture) -> Failure:
    assert future.exception(60) is not None
    assert future.record is not None
    assert future.record.failure is not None
    return future.record.failure


def gone(processes: list[psutil.Process]) -> bool:
    return not [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_results_partials_progress_files_and_the_command_line(guests: World) -> None:
    pool = guests.pool()
    result = pool.submit("sdk", do="echo", value=[1, {"deep": b"\x00"}, "ü"]).result(30)
    assert (result["version"], result["got"], result["attempt"]) == ([3, 6], [1, {"deep": b"\x00"}, "ü"], 1)
    told = pool.submit("sdk", do="tell")
    assert [record["at"] for record in told.partials()] == [10, 50, 90]
    target = guests.folder / "made.txt"
    pool.submit("sdk", do="write", names=["a.txt"], output=str(target)).result(30)
    assert target.read_text() == "a.txt"
    command = [
        sys.executable,
        "-m",
        "pool.submit",
        "sdk",
        "do=echo",
        "value=7",
        "--json",
        "--config",
        str(guests.config),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert '"got": 7' in done.stdout


def test_arrays_where_both_sides_have_numpy(world: World) -> None:
    options = {"python": old_python.with_packages("3.8", "numpy"), "sdk": str(SDKS), "guest": "sample:Sample"}
    world.configure({"sdk": {"engine": "inference.foreign:Foreign", "options": options, "max_concurrent_tasks": 1}})
    world.serve(ready=1)
    result = world.pool().submit("sdk", do="sum", array=np.arange(6.0).reshape(2, 3)).result(30)
    np.testing.assert_array_equal(result["sum"], [3.0, 5.0, 7.0])


@pytest.mark.parametrize(
    ("do", "kind", "message"),
    [
        ("input", "input", "no such voice: anna"),
        ("memory", "resource", "out of memory: 3 MiB asked, 1 MiB free"),
        ("exit", "engine", "ended with exit code 7 during a job"),
        ("crash", "engine", "ended with SIGSEGV (signal 11) during a job"),
    ],
)
def test_failures_are_records(do: str, kind: str, message: str, guests: World) -> None:
    last = failure_of(guests.pool().submit("sdk", do=do, retry_times=0))
    assert last.kind == kind
    assert message in last.message
    assert last.stage
    if do == "exit":
        assert "the last words" in last.stderr_tail
    assert guests.pool().submit("sdk", do="echo", value=1).result(30)["got"] == 1


def test_a_guest_that_is_killed_costs_one_attempt(guests: World) -> None:
    future = guests.pool().submit("sdk", do="hang", retry_times=0)
    guests.worker_of(future.id)
    guest = guest_of(guests)
    wait_until(guest.children, "its helper runs")
    family = guest.children(recursive=True)
    guest.kill()
    last = failure_of(future)
    assert "ended with SIGKILL (signal 9) during a job; last it was at: inference 40 %: the second half" in last.message
    assert gone(family)
    assert guests.pool().submit("sdk", do="echo", value=1).result(30)["got"] == 1


@pytest.mark.parametrize("end", ["kill", "timeout", "cancel"])
def test_what_ends_a_job_ends_all_it_started(end: str, guests: World) -> None:
    """A killed worker, a time limit, a cancelled job that does not look: grandchildren end as well."""
    terms: dict[str, Any] = {"timeout_s": 2.0} if end == "timeout" else {}
    future = guests.pool().submit("sdk", do="deaf", retry_times=0, **terms)
    _, pid = guests.worker_of(future.id)
    guest = guest_of(guests)
    wait_until(guest.children, "its grandchild runs")
    family = [guest, *guest.children(recursive=True)]
    if end == "kill":
        os.kill(pid, signal.SIGKILL)
    elif end == "cancel":
        assert future.cancel()
    wait_until(future.done, "the job ends")
    wait_until(lambda: gone(family), "all that it started ends")
    assert guests.pool().submit("sdk", do="echo", value=1).result(60)["got"] == 1


def test_memory_of_the_guest_counts(guests: World) -> None:
    last = failure_of(guests.pool().submit("sdk", do="grow", mb=150, retry_times=0))
    assert last.kind == "resource"
    assert "memory_limit_mb is 80" in last.message
