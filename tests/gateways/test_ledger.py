"""What the gateway remembers about jobs that ended, and what it says that workers died of."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path

import pytest
from scenarios.world import passing, wait_until
from steps import JobMaker, claim_next, record_of, seat

from pool.gateways.http import ledger
from pool.gateways.http.ledger import Histogram, Ledger
from pool.job import JobState
from pool.policy.death import DIED, Ended
from pool.spool import fsops, reuse
from pool.spool.store import Spool
from pool.supervise.ending import _BY_CAUSE, reason_of
from pool.supervise.judge import Cause


def end(spool: Spool, make_job: JobMaker, state: JobState = JobState.COMPLETED, **more: int) -> str:
    spool.submit(make_job())
    claim = claim_next(spool, seat(spool))
    spool.finish(claim, record_of(claim, state, **more))
    return claim.name.id


def test_each_record_is_counted_once(spool: Spool, make_job: JobMaker) -> None:
    book = Ledger(spool)
    ids = [end(spool, make_job, finished=number) for number in range(3)]
    failed = end(spool, make_job, JobState.FAILED, finished=99)
    assert book.turn()
    assert book.turn()
    assert dict(book.outcomes) == {("echo", "completed", ""): 3, ("echo", "failed", "engine"): 1}
    assert [entry.id for entry in book.newest()] == [failed, *reversed(ids)]
    assert "it broke" in book.newest()[0].reason


@pytest.mark.parametrize(("told", "looks"), [("marked", False), ("marked", True), ("the marks are lost", False)])
def test_a_record_after_a_retry_is_another_one(spool: Spool, make_job: JobMaker, told: str, looks: bool) -> None:
    book = Ledger(spool)
    job_id = end(spool, make_job, JobState.FAILED)
    book.turn()
    if told == "marked":
        reuse.mark(spool.root, job_id)
        if looks:
            book.turn()
    fsops.rename(spool.record_path(job_id), f"{spool.root}/tmp/aside")  # stays, so that its inode is not used again
    spool.submit(make_job(id=job_id))
    claim = claim_next(spool, seat(spool))
    spool.finish(claim, record_of(claim))
    if told == "the marks are lost":
        book._whole_at = 0.0  # the minute is over
    book.turn()
    assert sum(book.outcomes.values()) == 2
    assert [entry.state for entry in book.newest()] == ["completed"]


def test_records_that_are_known_are_not_looked_at_again(
    spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A turn over 100,000 records must not cost a look at each of them, and nothing at all when none has come."""
    ids = [end(spool, make_job, finished=number) for number in range(20)]
    book = Ledger(spool)
    assert book.turn()
    book._whole_at = math.inf  # however long the machine stands still between two lines
    looked: list[str] = []
    look = Ledger._file
    monkeypatch.setattr(Ledger, "_file", lambda self, name: (looked.append(name), look(self, name))[1])
    ids.append(end(spool, make_job, finished=99))
    assert book.turn()
    assert looked == [f"{ids[-1]}.msgpack"]
    os.utime(spool.root / "out", (1, 1))
    monkeypatch.setattr(ledger, "_STILL_S", 0.0)
    for _ in range(2):
        assert book.turn()
    monkeypatch.setattr(os, "listdir", lambda path: pytest.fail(f"{path} is listed"))
    assert book.turn()
    monkeypatch.undo()
    ids.append(end(spool, make_job, finished=100))
    assert book.turn()
    assert [entry.id for entry in book.newest()] == ids[::-1]


def test_what_is_gone_is_not_listed_and_stays_counted(spool: Spool, make_job: JobMaker) -> None:
    book = Ledger(spool)
    job_id = end(spool, make_job)
    book.turn()
    fsops.unlink(spool.record_path(job_id))
    book.turn()
    assert (book.newest(), sum(book.outcomes.values())) == ([], 1)


def test_a_damaged_record_is_passed_by(spool: Spool, make_job: JobMaker) -> None:
    (spool.root / "out" / "damaged.msgpack").write_bytes(b"\xc1")
    job_id = end(spool, make_job)
    book = Ledger(spool)
    assert book.turn()
    assert [entry.id for entry in book.newest()] == [job_id]


def test_only_the_newest_are_kept_for_lists(spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_KEPT", 5)
    ids = [end(spool, make_job, finished=number) for number in range(14)]
    book = Ledger(spool)
    while not book.turn():
        pass
    assert sum(book.outcomes.values()) == 14
    kept = [entry.id for entry in book.newest()]
    assert 5 <= len(kept) <= 10
    assert len(set(kept) & set(ids)) == len(kept)


def test_a_histogram_is_cumulative() -> None:
    histogram = Histogram()
    for seconds in (0.005, 0.01, 2.0, 1e9):
        histogram.add(seconds)
    found = dict(histogram.cumulative())
    assert (found["0.01"], found["1.0"], found["5.0"], found["3600.0"], found["+Inf"]) == (2, 2, 3, 3, 4)


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        (Ended(DIED, signal="SIGKILL"), "killed"),
        (Ended(DIED, signal="SIGKILL", out_of_memory=True), "memory"),
        (Ended(DIED, signal="SIGSEGV"), "crashed"),
        (Ended(DIED, signal="SIGABRT"), "crashed"),
        (Ended(DIED, 1), "exited"),
        (Ended(DIED, 5), "recycled"),
        (Ended(DIED, 5, job="a"), "exited"),
        (Ended(DIED, 3), "load"),
        (Ended(DIED, 7), "missing"),
        (Ended(DIED), "other"),
        (None, "other"),
        *((Ended(cause.value, signal="SIGKILL"), _BY_CAUSE[cause.value]) for cause in Cause),
    ],
)
def test_ends_in_few_words(ended: Ended | None, reason: str) -> None:
    assert reason_of(ended) == reason


@pytest.mark.long
def test_each_restart_between_two_looks_is_counted(tmp_path: Path) -> None:
    """By its own reason, and by the next supervisor as well."""
    with passing(tmp_path) as world:
        world.configure({"fake": {"max_concurrent_tasks": 1, "retry_times": 0}}).serve(ready=1)
        pool = world.pool()
        book = Ledger(pool.spool)
        book.watch_slots(pool.status())
        counted: Counter[str] = Counter()
        for first in ("killed", "other"):  # nobody can tell of what a process died that is no child of the supervisor
            for do in ("kill", "exit", "segfault", "kill"):
                assert pool.submit("fake", do=do, value=first).exception(60) is not None
            assert pool.submit("fake", value=1).result(60)["value"] == 1
            counted.update([first, "exited", "crashed", "killed"])
            for _ in range(2):
                book.watch_slots(pool.status())
                assert {reason: count for (_, reason), count in book.restarts.items()} == counted
            world.kill_supervisor()
            world.serve(ready=1)
            wait_until(lambda: "adopted fake-0" in world.log(), "the worker is looked after")
