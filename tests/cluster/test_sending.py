"""What a port finds that waits for its way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from steps import JobMaker, claim_next, record_of, seat

from pool.cluster.receiving import Receiving
from pool.cluster.revoking import Revoking
from pool.cluster.sending import Sending
from pool.cluster.traffic import Traffic
from pool.config.settings import parse_config
from pool.job import JobState
from pool.spool import reuse
from pool.spool.lookup import find_dead
from pool.spool.store import Spool


@pytest.mark.parametrize("moment", range(4))
def test_a_job_that_is_run_again_at_any_moment_is_known_to_be(
    moment: int, spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller asks for that before or after one of the looks at the disk: sent under its old run, it would end with
    the result of that."""
    job = make_job(id="again")
    spool.submit(job)
    claim = claim_next(spool, seat(spool))
    spool.finish(claim, record_of(claim, JobState.FAILED))
    config = parse_config({"spool": str(spool.root), "cluster": {"servers": ["nats://127.0.0.1:1"]}}, spool.root.parent)
    traffic = Traffic(config, spool)
    revoking = Revoking(traffic)
    sending = Sending(traffic, Receiving(traffic, revoking), revoking)
    passed: list[str] = []

    def passing(look: Callable[..., Any]) -> Callable[..., Any]:
        def looked(*given: Any) -> Any:
            step()
            found = look(*given)
            step()
            return found

        return looked

    def step() -> None:
        if len(passed) == moment:
            spool.requeue(*find_dead(spool, job.id))
        passed.append("")

    monkeypatch.setattr(reuse, "marked", passing(reuse.marked))
    monkeypatch.setattr(spool, "list_ready", passing(spool.list_ready))
    found = [name.id for names in sending._ready().values() for name in names]
    assert len(passed) == 4
    assert job.id in traffic.retried or not found
    assert [name.id for names in sending._ready().values() for name in names] == [job.id]
    assert job.id in traffic.retried
