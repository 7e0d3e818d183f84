"""Which job next: the best there is, from memory, and a job that failed here is left to the others for a moment."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from steps import JobMaker, record_of, seat

from pool import heartbeat, picker
from pool.constants import Phase
from pool.heartbeat import Heartbeat
from pool.job import Failure
from pool.names import WorkerName
from pool.picker import Picker
from pool.spool import Claim, Spool


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds pass for pickers."""
    ahead = [0.0]

    class Time:
        monotonic = staticmethod(lambda: time.monotonic() + ahead[0])

    monkeypatch.setattr(picker, "time", Time)

    def pass_(seconds: float) -> None:
        ahead[0] += seconds

    return pass_


@pytest.fixture
def make_picker(spool: Spool) -> Callable[..., Picker]:
    def make(index: int = 0, **more: Any) -> Picker:
        options = {"rescan_s": 2.0, "siblings": True, "max_attempts": 3, **more}
        return Picker(spool, seat(spool, 1, index=index), **options)

    return make


def _serve(spool: Spool, index: int, phase: Phase = Phase.IDLE, *, standby: bool = False) -> None:
    beat = Heartbeat(f"{spool.root}/run/heartbeats/{WorkerName('echo', index, 1)}")
    beat.standby = standby
    beat.phase(phase)
    beat.close()


def _fail(spool: Spool, claim: Claim) -> None:
    attempt = claim.name.attempts
    spool.retry(claim, Failure("engine", "it broke", "run", attempt, worker=str(claim.worker)))


def _rescan_and_take(chosen: Picker) -> Claim | None:
    chosen.rescan()
    return chosen.take()


# ---- order and memory


def test_the_best_first_however_it_was_told(
    spool: Spool, make_job: JobMaker, make_picker: Callable[..., Picker]
) -> None:
    names = [str(spool.submit(make_job(priority=priority))) for priority in (0, 5, -5, 0, 50, -50, 5)]
    told = names[:3]
    random.Random(1).shuffle(told)
    chosen = make_picker()
    chosen.feed(told)
    first = chosen.take()
    assert first is not None
    assert first.name.priority == 5
    chosen.rescan()
    chosen.feed(names)  # events that come late and twice
    taken = [claim for _ in names if (claim := chosen.take())]
    assert [claim.name.priority for claim in taken] == [50, 5, 0, 0, -5, -50]
    born = [claim.name.born for claim in taken if claim.name.priority == 0]
    assert born == sorted(born)
    assert chosen.take() is None


def test_foreign_names_and_jobs_of_others_are_passed_over(
    spool: Spool, make_job: JobMaker, make_picker: Callable[..., Picker], hostile_names: tuple[bytes, ...]
) -> None:
    name = str(spool.submit(make_job(id="mine")))
    other = str(spool.submit(make_job(id="other")))
    mine, theirs = make_picker(0), make_picker(1)
    mine.feed([bytes.decode(raw, "utf-8", "surrogateescape") for raw in hostile_names] + ["", name, other])
    theirs.feed([name])
    assert theirs.take() is not None
    claim = mine.take()
    assert claim is not None
    assert claim.name.id == "other"


def test_a_thousand_claims_need_one_listing(
    spool: Spool, make_picker: Callable[..., Picker], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pool.names import job_name

    spool.make_ready_dir("echo")
    for number in range(1000):
        (spool.root / "ready" / "echo" / str(job_name(0, number, f"job-{number}"))).touch()
    listed = []
    real = Spool.list_ready
    monkeypatch.setattr(Spool, "list_ready", lambda self, engine: listed.append(engine) or real(self, engine))
    chosen = make_picker()
    chosen.rescan()
    begun = time.process_time()
    assert sum(1 for _ in range(1000) if chosen.take()) == 1000
    assert time.process_time() - begun < 1.0
    assert len(listed) == 1


def test_a_listing_that_is_slow_is_not_repeated_soon(
    make_picker: Callable[..., Picker], clock: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = make_picker()
    chosen.rescan()
    assert 1.5 < chosen.next_look() - picker.time.monotonic() <= 2.0
    monkeypatch.setattr(Spool, "list_ready", lambda self, engine: clock(1.0) or [])
    chosen.rescan()
    assert 19 < chosen.next_look() - picker.time.monotonic() <= 20.1


# ---- a job that failed here


def test_a_job_that_failed_here_is_left_to_others_for_a_moment(
    spool: Spool, make_job: JobMaker, make_picker: Callable[..., Picker], clock: Callable[[float], None]
) -> None:
    spool.submit(make_job(id="failed"))
    mine, other = make_picker(0), make_picker(1)
    _serve(spool, 1)
    claim = _rescan_and_take(mine)
    assert claim is not None
    _fail(spool, claim)
    good = spool.submit(make_job(id="good"))
    assert _rescan_and_take(mine).name.id == good.id  # type: ignore[union-attr]
    assert mine.take() is None
    assert mine.next_look() - picker.time.monotonic() <= 3.0
    theirs = _rescan_and_take(other)
    assert theirs is not None
    assert theirs.name.id == "failed"


def test_when_nobody_takes_it_it_is_ours_again(
    spool: Spool, make_job: JobMaker, make_picker: Callable[..., Picker], clock: Callable[[float], None]
) -> None:
    spool.submit(make_job(id="failed"))
    mine = make_picker(0)
    _serve(spool, 1, Phase.BUSY)
    claim = _rescan_and_take(mine)
    assert claim is not None
    _fail(spool, claim)
    assert _rescan_and_take(mine) is None
    clock(3.1)
    assert mine.next_look() < picker.time.monotonic()  # it wakes for that
    again = _rescan_and_take(mine)
    assert again is not None
    assert again.name.attempts == 2


@pytest.mark.parametrize("sibling", ["none", "loading", "standby", "draining", "another engine", "ourselves"])
def test_without_another_that_serves_it_is_ours_at_once(
    spool: Spool, make_job: JobMaker, make_picker: Callable[..., Picker], sibling: str
) -> None:
    spool.submit(make_job(id="failed"))
    if sibling == "loading":
        _serve(spool, 1, Phase.LOADING)
    elif sibling == "standby":
        _serve(spool, 1, standby=True)
    elif sibling == "draining":
        _serve(spool, 1, Phase.DRAINING)
    elif sibling == "another engine":
        beat = Heartbeat(f"{spool.root}/run/heartbeats/fake-0.1")
        beat.phase(Phase.IDLE)
        beat.close()
    elif sibling == "ourselves":
        _serve(spool, 0)
    mine = make_picker(0)
    for attempt in (1, 2):
        claim = _rescan_and_take(mine)
        assert claim is not None
        assert claim.name.attempts == attempt
        _fail(spool, claim)


def test_the_last_attempt_stays_with_the_others(
    spool: Spool, make_job: JobMaker, make_picker: Callable[..., Picker], clock: Callable[[float], None]
) -> None:
    """Twice it failed here and nowhere else: nobody knows whether the job is bad or the slot."""
    spool.submit(make_job(id="failed"))
    mine = make_picker(0)
    for _ in range(2):
        clock(3.1)
        claim = _rescan_and_take(mine) or (clock(3.1) or _rescan_and_take(mine))
        assert claim is not None
        _serve(spool, 1, Phase.BUSY)
        _fail(spool, claim)
    for _ in range(5):
        assert _rescan_and_take(mine) is None
        clock(3.1)
    _serve(spool, 1, Phase.DRAINING)  # the last of the others is going
    assert _rescan_and_take(mine) is not None


def test_what_another_has_taken_is_no_reason_to_wake(
    spool: Spool, make_job: JobMaker, make_picker: Callable[..., Picker], clock: Callable[[float], None]
) -> None:
    """Else the loop would look without end: the moment it was left for has passed, and it never comes."""
    spool.submit(make_job(id="failed"))
    mine, other = make_picker(0), make_picker(1)
    _serve(spool, 1)
    claim = _rescan_and_take(mine)
    assert claim is not None
    _fail(spool, claim)
    assert _rescan_and_take(mine) is None
    theirs = _rescan_and_take(other)
    assert theirs is not None
    spool.finish(theirs, record_of(theirs))
    clock(5.0)
    assert _rescan_and_take(mine) is None
    assert mine.next_look() > picker.time.monotonic() + 1.5


def test_a_job_that_failed_elsewhere_is_taken_at_once(
    spool: Spool, make_job: JobMaker, make_picker: Callable[..., Picker]
) -> None:
    spool.submit(make_job(id="failed"))
    mine, other = make_picker(0), make_picker(1)
    _serve(spool, 0)
    _serve(spool, 1)
    claim = _rescan_and_take(other)
    assert claim is not None
    _fail(spool, claim)
    assert _rescan_and_take(mine) is not None


def test_alone_it_never_looks_at_who_failed(
    spool: Spool, make_job: JobMaker, make_picker: Callable[..., Picker], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.submit(make_job(id="failed"))
    mine = make_picker(0, siblings=False)
    claim = _rescan_and_take(mine)
    assert claim is not None
    _fail(spool, claim)
    monkeypatch.setattr(heartbeat, "read", lambda path: pytest.fail("no need to"))
    monkeypatch.setattr(Spool, "notes", lambda *_: pytest.fail("no need to"))
    assert _rescan_and_take(mine) is not None
