"""Submitting twice is submitting once: the same id and content is one job, whoever dies or hurries in between."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from steps import JobMaker, claim_next, dying, failing, in_child, places, record_of, seat

from pool.errors import JobConflict, SpoolFull
from pool.job import JobState
from pool.spool import fsops
from pool.spool.store import Spool
from pool.supervise.retention import remove, sweep_remains, sweep_tmp


def test_the_same_job_twice_is_one_job(spool: Spool, make_job: JobMaker) -> None:
    first = spool.submit(make_job(id="mine", params={"a": 1, "b": [1, 2]}))
    spool.submit(make_job(id="mine", params={"b": [1, 2], "a": 1}, priority=7))
    assert places(spool) == {"ready": ["mine"], "ids": ["mine"]}
    assert spool.list_ready("echo") == [str(first)]


@pytest.mark.parametrize("state", ["ready", "work", "deferred", "completed", "dead"])
def test_wherever_the_job_is(spool: Spool, make_job: JobMaker, state: str) -> None:
    spool.submit(make_job(id="mine"))
    if state != "ready":
        claim = claim_next(spool, seat(spool))
        if state == "deferred":
            failure = record_of(claim, JobState.FAILED).failure
            assert failure is not None
            spool.retry(claim, failure, delay_s=60)
        elif state != "work":
            spool.finish(claim, record_of(claim, JobState.COMPLETED if state == "completed" else JobState.FAILED))
    before = places(spool)
    spool.submit(make_job(id="mine"))
    with pytest.raises(JobConflict, match="'mine' is taken"):
        spool.submit(make_job(id="mine", params={"other": 1}))
    with pytest.raises(JobConflict):
        spool.submit(make_job(engine="other", id="mine"))
    assert places(spool) == before


def test_after_it_is_forgotten_the_id_is_free(spool: Spool, make_job: JobMaker) -> None:
    for number in range(3):
        spool.submit(make_job(id="mine", params={"round": number}))
        claim = claim_next(spool, seat(spool))
        spool.finish(claim, record_of(claim, JobState.FAILED if number == 1 else JobState.COMPLETED))
        remove(spool, "mine")
        assert places(spool) == {}


def test_after_it_is_consumed_the_id_is_free(spool: Spool, make_job: JobMaker) -> None:
    spool.submit(make_job(id="mine"))
    claim = claim_next(spool, seat(spool))
    spool.finish(claim, record_of(claim))
    os.unlink(spool.record_path("mine"))
    spool.submit(make_job(id="mine", params={"other": 1}))
    assert places(spool) == {"ready": ["mine"], "ids": ["mine"]}


def test_a_reservation_without_a_job_is_swept(spool: Spool, make_job: JobMaker) -> None:
    for job_id in ("gone", "lives"):
        spool.submit(make_job(id=job_id))
    claim = claim_next(spool, seat(spool))
    os.unlink(claim.path)
    assert places(spool)["ids"] == ["gone", "lives"]
    sweep_remains(spool)
    assert places(spool) == {"ready": ["lives"], "ids": ["lives"]}


# ---- the submitter dies


@pytest.mark.parametrize("swept", [False, True], ids=["at once", "after a sweep"])
@pytest.mark.parametrize("content", ["first", "second"], ids=["same content", "other content"])
def test_a_submitter_that_dies_anywhere(
    root: Path, make_job: JobMaker, spool: Spool, swept: bool, content: str
) -> None:
    """Whoever is told that the job is accepted, or that the id is taken, finds a job that will run."""

    def submit() -> None:
        theirs = Spool(root, durable=True)
        dying(number)
        theirs.submit(make_job(id="mine", params={"value": "first"}))

    for number in range(1, 100):
        died = in_child(submit) == 99
        if swept:
            sweep_tmp(spool)
        taken = ""
        try:
            spool.submit(make_job(id="mine", params={"value": content}))
        except JobConflict:
            taken = "first"
        sweep_tmp(spool)
        sweep_remains(spool)
        assert places(spool) == {"ready": ["mine"], "ids": ["mine"]}, number
        claim = claim_next(spool, seat(spool))
        assert spool.read_claim(claim).params == {"value": taken or content}, number
        os.unlink(claim.path)
        spool.ids.free("mine")
        if not died:
            assert number > 6
            assert bool(taken) == (content == "second")
            return
    pytest.fail("the submitter never came through")


# ---- two at the same time


def test_one_stops_between_its_reservation_and_ready(spool: Spool, make_job: JobMaker) -> None:
    """The second finds the id taken by a job that is not accepted yet, and finishes for the first."""
    reached, go_on = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def hook(operation: str, path: str) -> None:
        if operation == "rename" and threading.current_thread().name == "first":
            reached.set()
            go_on.wait(10)

    def first() -> None:
        try:
            spool.submit(make_job(id="mine", priority=3))
        except BaseException as error:
            errors.append(error)

    fsops.hook = hook
    thread = threading.Thread(target=first, name="first")
    thread.start()
    assert reached.wait(10)
    spool.submit(make_job(id="mine"))
    assert places(spool) == {"ready": ["mine"], "ids": ["mine"]}
    claim = claim_next(spool, seat(spool))
    assert claim.name.priority == 3  # it is the first one's job
    spool.finish(claim, record_of(claim))
    go_on.set()
    thread.join(10)
    assert not errors
    assert places(spool) == {"out": ["mine"], "ids": ["mine"]}


_SUBMIT = """
import os, sys, time
from pathlib import Path
from pool.format import codec
from pool.job import Job, digest_of
from pool.spool.store import Spool

spool = Spool(Path(sys.argv[1]), durable=False)
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    params = {"number": number}
    digest = digest_of("echo", params, None)
    spool.submit(Job(f"job-{number}", "echo", params, created=spool.now(), digest=digest))
"""


def _submitters(root: Path, env: dict[str, str], count: int, jobs: int) -> list[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", _SUBMIT, str(root), str(jobs)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    children = [subprocess.Popen(argv, env=env, text=True, **pipes) for _ in range(count)]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    return children


@pytest.mark.invariant(4)
def test_four_processes_submit_the_same_jobs(root: Path, spool: Spool, child_env: dict[str, str]) -> None:
    children = _submitters(root, child_env, 4, 300)
    for child in children:
        _, said = child.communicate(timeout=60)
        assert child.returncode == 0, said
    ids = sorted(f"job-{number}" for number in range(300))
    assert places(spool) == {"ready": ids, "ids": ids}


def test_submitters_are_killed_while_they_submit(root: Path, spool: Spool, child_env: dict[str, str]) -> None:
    """kill -9 at any moment; whoever submits the same again afterwards has every job exactly once."""
    for round_ in range(3):
        children = _submitters(root, child_env, 3, 400)
        time.sleep(0.01 + 0.03 * round_)
        for child in children:
            child.send_signal(signal.SIGKILL)
        for child in children:
            child.communicate(timeout=60)
    (last,) = _submitters(root, child_env, 1, 400)
    _, said = last.communicate(timeout=60)
    assert last.returncode == 0, said
    sweep_tmp(spool)
    sweep_remains(spool)
    ids = sorted(f"job-{number}" for number in range(400))
    assert places(spool) == {"ready": ids, "ids": ids}


# ---- the disk is full


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_a_failure_anywhere_leaves_nothing_and_the_id_free(root: Path, make_job: JobMaker, code: int) -> None:
    spool = Spool(root, durable=True)
    fsops.make_dir(spool.ready_dir("echo"))
    for number in range(1, 100):
        job, error, told = make_job(id="mine", params={"try": number}), OSError(code, os.strerror(code)), ""
        seen = failing(number, lambda path: error)  # noqa: B023
        try:
            spool.submit(job)
        except SpoolFull as full:
            assert code != errno.EIO
            told = str(full)
        except OSError as raw:
            told = str(raw)
        fsops.hook = None
        if not told:
            assert number > 6
            return
        if seen["syncdir"] == 2:  # it waits already, and is not yet safe: the caller may say it again
            spool.submit(job)
            assert places(spool) == {"ready": ["mine"], "ids": ["mine"]}
            os.unlink(claim_next(spool, seat(spool)).path)
            spool.ids.free("mine")
        assert places(spool) == {}, (number, seen)
        assert os.strerror(code) in told
    pytest.fail("it never came through")
