"""Which job a worker takes next, and which it leaves to the others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from steps import JobMaker

from pool import picker as module
from pool.constants import Phase
from pool.heartbeat import Heartbeat
from pool.job import Failure
from pool.names import WorkerName, parse_job
from pool.picker import Picker
from pool.spool import Spool

ME, OTHER = WorkerName("echo", 0, 7), WorkerName("echo", 1, 8)


@pytest.fixture(autouse=True)
def _short_yield(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_YIELD_S", 0.15)


@pytest.fixture
def picker(spool: Spool) -> Picker:
    for worker in (ME, OTHER):
        (spool.root / "work" / str(worker)).mkdir()
    return Picker(spool, ME, 60.0, siblings=True, max_attempts=3)


@contextmanager
def serving(spool: Spool, worker: WorkerName, phase: Phase = Phase.BUSY, *, standby: bool = False) -> Iterator[None]:
    """A heartbeat of a worker in another slot."""
    path = spool.root / "run" / "heartbeats" / str(worker)
    beat = Heartbeat(str(path))
    beat.standby = standby
    beat.phase(phase)
    try:
        yield
    finally:
        beat.close()
        path.unlink()


def put(spool: Spool, make_job: JobMaker, *workers: WorkerName, **more: Any) -> str:
    """A job that failed once in each of `workers`; its id."""
    job = make_job(**more)
    spool.submit(job)
    for worker in workers:
        names = [name for text in spool.list_ready("echo") if (name := parse_job(text)) and name.id == job.id]
        claim = spool.claim("echo", names[0], worker)
        assert claim is not None
        spool.retry(claim, Failure("engine", "no", attempt=claim.name.attempts, worker=str(worker)))
    return job.id


def taken(picker: Picker) -> str:
    picker.rescan()
    claim = picker.take()
    return "" if claim is None else claim.name.id


def test_best_first_and_what_is_gone_is_passed_over(spool: Spool, picker: Picker, make_job: JobMaker) -> None:
    late = put(spool, make_job)
    early = put(spool, make_job, priority=5)
    gone = put(spool, make_job, priority=9)
    picker.rescan()
    name = next(parsed for text in spool.list_ready("echo") if (parsed := parse_job(text)) and parsed.id == gone)
    assert spool.claim("echo", name, OTHER) is not None
    picker.feed(["no-job", str(name)])
    claims = [picker.take(), picker.take(), picker.take()]
    assert [claim.name.id if claim else "" for claim in claims] == [early, late, ""]


def test_failed_here_is_left_to_others_for_a_moment(spool: Spool, picker: Picker, make_job: JobMaker) -> None:
    job_id = put(spool, make_job, ME)
    fresh = put(spool, make_job)
    with serving(spool, OTHER):
        assert taken(picker) == fresh
        assert taken(picker) == ""
        assert picker.next_look() - time.monotonic() < 0.15
        time.sleep(0.16)
        assert taken(picker) == job_id


@pytest.mark.parametrize("others", ["none", "spare", "loading", "same slot"])
def test_nobody_else_can_take_it(spool: Spool, picker: Picker, make_job: JobMaker, others: str) -> None:
    job_id = put(spool, make_job, ME)
    worker = WorkerName("echo", 0, 6) if others == "same slot" else OTHER
    with serving(spool, worker, Phase.LOADING if others == "loading" else Phase.IDLE, standby=others == "spare"):
        if others == "none":
            (spool.root / "run" / "heartbeats" / str(worker)).rename(spool.root / "run" / "heartbeats" / "other-1.8")
        assert taken(picker) == job_id
        if others == "none":
            (spool.root / "run" / "heartbeats" / "other-1.8").rename(spool.root / "run" / "heartbeats" / str(worker))


def test_last_attempt_is_left_to_others_while_they_serve(spool: Spool, picker: Picker, make_job: JobMaker) -> None:
    job_id = put(spool, make_job, ME, ME)
    with serving(spool, OTHER):
        for _ in range(3):
            assert taken(picker) == ""
            time.sleep(0.16)
    assert taken(picker) == job_id


def test_not_the_last_one_or_not_all_here(spool: Spool, picker: Picker, make_job: JobMaker) -> None:
    more = put(spool, make_job, ME, ME, retry_times=8)
    elsewhere = put(spool, make_job, OTHER, ME)
    there = put(spool, make_job, ME, OTHER)
    with serving(spool, OTHER):
        assert taken(picker) == there, "it failed in another slot the last time"
        assert taken(picker) == ""
        time.sleep(0.16)
        assert {taken(picker), taken(picker)} == {more, elsewhere}


def test_last_attempt_of_a_job_without_many(spool: Spool, picker: Picker, make_job: JobMaker) -> None:
    put(spool, make_job, ME, retry_times=1)
    with serving(spool, OTHER):
        assert taken(picker) == ""
        time.sleep(0.16)
        assert taken(picker) == ""


def test_what_another_slot_took_wakes_nobody(spool: Spool, picker: Picker, make_job: JobMaker) -> None:
    put(spool, make_job, ME)
    with serving(spool, OTHER):
        assert taken(picker) == ""
        (text,) = spool.list_ready("echo")
        name = parse_job(text)
        assert name is not None
        assert spool.claim("echo", name, OTHER) is not None
        time.sleep(0.16)
        picker.rescan()
        assert picker.next_look() - time.monotonic() > 30


def test_alone_it_takes_everything(spool: Spool, make_job: JobMaker, picker: Picker) -> None:
    alone = Picker(spool, ME, 60.0, siblings=False, max_attempts=3)
    job_id = put(spool, make_job, ME, ME)
    with serving(spool, OTHER):
        assert taken(alone) == job_id
