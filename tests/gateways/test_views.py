"""What a list of jobs says of each, without a pool."""

from __future__ import annotations

import pytest
from steps import JobMaker, claim_next, record_of, seat

from pool.client import browse
from pool.gateways.http import views
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
    spool.finish(claim, record_of(claim, JobState.FAILED))
    assert (shown("a").state, shown("a").kind, shown("a").reason) == ("failed", "engine", "it broke")
