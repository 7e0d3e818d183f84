"""Which job a worker takes next, and which it leaves to the others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from steps import JobMaker

from pool.constants import Phase
from pool.format.names import WorkerName, parse_job
from pool.job import Failure
from pool.policy.retries import Retries
from pool.runfiles.heartbeat import Heartbeat
from pool.spool.store import Claim, Spool
from pool.work import picker as module
from pool.work.picker import Picker

ME, OTHER = WorkerName("echo", 0, 7), WorkerName("echo", 1, 8)


@pytest.fixture(autouse=True)
def _short_yield(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_YIELD_S", 0.15)


@pytest.fixture
def picker(spool: Spool) -> Picker:
    for worker in (ME, OTHER):
        (spool.root / "work" / str(worker)).mkdir()
    return Picker(spool, ME, 60.0, siblings=lambda: True, retries=Retries(2), suspect=lambda: False)


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


@pytest.mark.parametrize("spare", [False, True])
def test_what_waited_before_the_first_arrival_goes_first(
    spool: Spool, make_job: JobMaker, picker: Picker, spare: bool
) -> None:
    """A worker that has just begun, or was a spare until now, knows of arrivals only; while they come, it would take
    nothing else."""
    if spare:
        picker.rescan()
        picker.forget()
    waited = [make_job() for _ in range(3)]
    for job in waited:
        spool.submit(job)
    for job in (arrived := [make_job() for _ in range(3)]):
        spool.submit(job)
        picker.feed([str(job.file_name)])
    claims = [picker.take() for _ in range(6)]
    assert [claim.name.id for claim in claims if claim] == [job.id for job in (*waited, *arrived)]


def claimed(spool: Spool, job_id: str, worker: WorkerName) -> Claim:
    names = [name for text in spool.list_ready("echo") if (name := parse_job(text)) and name.id == job_id]
    claim = spool.claim("echo", names[0], worker)
    assert claim is not None
    return claim


def put(spool: Spool, make_job: JobMaker, *workers: WorkerName, **more: Any) -> str:
    """A job that failed once in each of `workers`; its id."""
    job = make_job(**more)
    spool.submit(job)
    for worker in workers:
        claim = claimed(spool, job.id, worker)
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
    alone = Picker(spool, ME, 60.0, siblings=lambda: False, retries=Retries(2), suspect=lambda: False)
    job_id = put(spool, make_job, ME, ME)
    with serving(spool, OTHER):
        assert taken(alone) == job_id


# ---- jobs that have ended a worker


def put_behind(spool: Spool, make_job: JobMaker, **more: Any) -> str:
    """A job whose first attempt ended a worker of another engine's slot; its id."""
    job = make_job(**more)
    spool.submit(job)
    claim = claimed(spool, job.id, OTHER)
    spool.retry(claim, Failure("infrastructure", "died", attempt=1, worker=str(OTHER)), behind=True)
    return job.id


def test_who_ended_a_worker_waits_behind_whatever_its_priority(
    spool: Spool, picker: Picker, make_job: JobMaker
) -> None:
    high, low = put_behind(spool, make_job, priority=100), put_behind(spool, make_job, priority=-100)
    others = [put(spool, make_job, priority=-100), put(spool, make_job)]
    assert [taken(picker) for _ in range(4)] == [others[1], others[0], high, low]


def test_a_job_of_which_no_event_told_yet_comes_before(spool: Spool, picker: Picker, make_job: JobMaker) -> None:
    behind = put_behind(spool, make_job)
    picker.rescan()
    job_id = put(spool, make_job)
    assert [claim.name.id for claim in (picker.take(), picker.take()) if claim] == [job_id, behind]


def test_a_queue_that_never_empties_does_not_keep_it_for_ever(
    spool: Spool, picker: Picker, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = {put_behind(spool, make_job) for _ in range(2)}
    monkeypatch.setattr(picker, "_behind_at", 0.0)  # half a minute later
    others = {put(spool, make_job) for _ in range(3)}
    assert taken(picker) in behind
    assert {taken(picker) for _ in range(3)} == others, "and then it is the others' turn again"
    assert taken(picker) in behind


def test_a_suspect_leaves_what_failed_in_it_to_the_others(spool: Spool, make_job: JobMaker, picker: Picker) -> None:
    suspect = Picker(spool, ME, 60.0, siblings=lambda: True, retries=Retries(8), suspect=lambda: True)
    job_id = put(spool, make_job, ME)
    with serving(spool, OTHER):
        for _ in range(3):
            assert taken(suspect) == ""
            time.sleep(0.16)
    assert taken(suspect) == job_id


def test_a_second_opinion_waits_for_a_peer_that_starts(spool: Spool, picker: Picker, make_job: JobMaker) -> None:
    job_id = put(spool, make_job, ME, retry_times=0)  # it has no attempt left, and was given one more
    assert taken(picker) == "", "nobody is there: perhaps one is being started"
    with serving(spool, OTHER, Phase.LOADING):
        for _ in range(3):
            time.sleep(0.16)
            assert taken(picker) == ""
    time.sleep(0.16)
    assert taken(picker) == job_id, "there is nobody who could be asked"
