"""What a list of jobs says of each, without a pool."""

from __future__ import annotations

import time

import pytest
from scenarios.world import wait_until
from steps import JobMaker, claim_next, record_of, seat

from pool.client import browse
from pool.gateways.http import ledger, views
from pool.gateways.http.ledger import Ledger
from pool.gateways.http.shapes import JobView
from pool.job import Failure, JobState
from pool.spool.store import Spool


@pytest.mark.parametrize("way", ["overview", "page", "look"])
def test_the_reason_of_the_last_attempt_is_told(spool: Spool, make_job: JobMaker, way: str) -> None:
    def shown(job_id: str) -> JobView:
        if way == "look":
            return views.look(spool, job_id)
        if way == "page":
            return next(views.of_info(spool, info) for info in browse.page(spool) if info.id == job_id)
        found = views.listed(spool, Ledger(spool), states=(), engine=None, limit=10)
        return next(view for view in found.jobs if view.id == job_id)

    spool.submit(make_job(id="a"))
    worker = seat(spool)
    assert (shown("a").kind, shown("a").reason) == ("", "")
    claim = claim_next(spool, worker)
    assert shown("a").reason == ""
    spool.retry(claim, Failure("resource", "out of memory\nin line 2", "run", 1))
    assert (shown("a").state, shown("a").kind, shown("a").reason) == ("queued", "resource", "out of memory")
    claim = claim_next(spool, worker)
    assert (shown("a").state, shown("a").attempt, shown("a").reason) == ("running", 2, "out of memory")
    tried = [(one.attempt, one.kind, one.stage, one.message) for one in shown("a").tried]
    assert tried == ([(1, "resource", "run", "out of memory")] if way == "look" else [])
    spool.finish(claim, record_of(claim, JobState.FAILED))
    assert (shown("a").state, shown("a").kind, shown("a").reason) == ("failed", "engine", "it broke")


def test_a_ledger_that_still_reads_old_records_leaves_no_list_empty(
    spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway that begins before a hundred thousand records needs a minute to read them."""
    for job_id in ("a", "b", "c"):
        spool.submit(make_job(id=job_id))
        claim = claim_next(spool, seat(spool))
        spool.finish(claim, record_of(claim, JobState.FAILED if job_id == "b" else JobState.COMPLETED))
    book = Ledger(spool)

    def listed(*states: str, limit: int = 10) -> list[str]:
        return [view.id for view in views.listed(spool, book, states=states, engine=None, limit=limit).jobs]

    monkeypatch.setattr(ledger, "_TURN_S", -1.0)  # no time for a single one
    assert (listed(), book.unread) == (["c", "b", "a"], 3)
    whole = views.listed(spool, book, states=(), engine=None, limit=10)
    assert (whole.total, whole.unread) == (0, 3)
    assert views.listed(spool, book, states=("queued",), engine=None, limit=10).unread == 0
    assert (listed("failed"), listed("completed", limit=1), listed("queued")) == (["b"], ["c"], [])
    monkeypatch.setattr(ledger, "_TURN_S", 60.0)
    book.turn()
    assert (sorted(listed()), book.unread) == (["a", "b", "c"], 0)
    assert views.listed(spool, book, states=(), engine=None, limit=1).total == 3


def test_a_ledger_reads_records_although_listing_them_takes_longer_than_its_turn(
    spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.submit(make_job(id="a"))
    claim = claim_next(spool, seat(spool))
    spool.finish(claim, record_of(claim))
    book = Ledger(spool)
    plain = ledger.parse_record
    monkeypatch.setattr(ledger, "parse_record", lambda name: (time.sleep(0.4), plain(name))[1])
    wait_until(book.turn, "a turn that has read it")
    assert [entry.id for entry in book.newest()] == ["a"]
