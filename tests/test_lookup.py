"""Where is it? Never "nowhere" for a job that is on its way, and nothing is changed by asking."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from steps import JobMaker, claim_next, record_of, seat, watch_moves

from pool.errors import UnknownJob
from pool.format.names import WorkerName
from pool.job import Failure, JobState, Progress
from pool.runfiles.heartbeat import Heartbeat
from pool.spool import lookup
from pool.spool.store import Claim, Spool
from pool.work.context import JobContext

FAILURE = Failure("engine", "it broke", "run", 1)


@pytest.fixture
def states(spool: Spool, make_job: JobMaker) -> dict[JobState, str]:
    """One job in every state there is."""
    made: dict[JobState, str] = {}
    for state in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.DEFERRED, JobState.RUNNING):
        made[state] = state.value
        spool.submit(make_job(id=state.value))
        claim = claim_next(spool, seat(spool))
        if state.terminal:
            spool.finish(claim, record_of(claim, state))
        elif state is JobState.DEFERRED:
            spool.retry(claim, FAILURE, delay_s=30)
    for job_id in ("queued", "next"):
        spool.submit(make_job(id=job_id))
    made[JobState.QUEUED] = "queued"
    return made


def test_a_job_is_found_in_every_state(spool: Spool, states: dict[JobState, str]) -> None:
    for state, job_id in states.items():
        place = lookup.find(spool, job_id)
        assert (place.state, place.engine) == (state, "echo")
        assert os.path.exists(place.path)
        assert place.state.terminal == (place.name is None)
        assert (place.worker is not None) == (state is JobState.RUNNING)
        assert (place.due > 0) == (state is JobState.DEFERRED)
    assert lookup.find(spool, "running").worker == WorkerName("echo", 0, 1)


def test_what_was_never_submitted_is_unknown(spool: Spool, states: dict[JobState, str]) -> None:
    for ask in (lookup.find, lookup.find_dead, lookup.progress_now):
        with pytest.raises(UnknownJob, match="no job 'nobody'"):
            ask(spool, "nobody")
    with pytest.raises(UnknownJob):
        lookup.find_dead(spool, "queued")
    assert lookup.progress(spool, "nobody") is None


def test_the_furthest_state_wins(spool: Spool, make_job: JobMaker) -> None:
    """A worker was killed between the record and the end of its claim: the job is decided."""
    spool.submit(make_job(id="mine"))
    claim = claim_next(spool, seat(spool))
    kept = Path(claim.path).read_bytes()
    spool.finish(claim, record_of(claim))
    Path(claim.path).write_bytes(kept)
    assert lookup.find(spool, "mine").state is JobState.COMPLETED
    Path(spool.ready_dir("echo"), str(claim.name.released())).write_bytes(kept)
    assert lookup.find(spool, "mine").state is JobState.COMPLETED


def test_a_damaged_record_is_an_end_as_well(spool: Spool, make_job: JobMaker) -> None:
    spool.submit(make_job(id="mine"))
    claim = claim_next(spool, seat(spool))
    spool.finish(claim, record_of(claim))
    Path(spool.record_path("mine")).write_bytes(b"\xc1")
    assert lookup.find(spool, "mine").state is JobState.FAILED


def test_counting(spool: Spool, states: dict[JobState, str], make_job: JobMaker) -> None:
    spool.submit(make_job("fake"))
    assert lookup.counts(spool) == {
        "echo": Counter({"queued": 2, "deferred": 1, "running": 1, "dead": 1}),
        "fake": Counter({"queued": 1}),
    }
    assert sorted(lookup.records(spool)) == ["cancelled", "completed", "failed"]


def test_foreign_files_are_nobodys_jobs(spool: Spool, hostile_names: tuple[bytes, ...]) -> None:
    before = lookup.counts(spool)
    for folder in ("ready", "work", "deferred", "dead", "out", "ready/echo", "work/echo-0.1", "progress"):
        os.makedirs(spool.root / folder, exist_ok=True)
        for name in hostile_names[:-1]:
            os.close(os.open(os.path.join(os.fsencode(spool.root / folder), name), os.O_CREAT))
    (spool.root / "work" / "not a worker").mkdir()
    (spool.root / "ready" / "linked").symlink_to(spool.root / "ready" / "echo")
    assert lookup.counts(spool) == before == {}
    assert list(lookup.records(spool)) == []


def test_asking_changes_nothing(spool: Spool, states: dict[JobState, str]) -> None:
    def picture() -> list[tuple[str, int, int]]:
        return sorted((str(p), p.lstat().st_ino, p.lstat().st_mtime_ns) for p in spool.root.rglob("*"))

    before = picture()
    for job_id in states.values():
        lookup.find(spool, job_id)
        lookup.progress_now(spool, job_id)
    lookup.counts(spool)
    assert picture() == before


# ---- progress in words


def test_progress_of_a_job_that_is_run_again_at_that_moment(
    spool: Spool, states: dict[JobState, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = lookup.find

    def then_retry(spool: Spool, job_id: str) -> lookup.Location:
        place = find(spool, job_id)
        monkeypatch.setattr(lookup, "find", find)
        spool.requeue(*lookup.find_dead(spool, job_id))
        return place

    monkeypatch.setattr(lookup, "find", then_retry)
    assert lookup.progress_now(spool, "failed").status == "queued"


def test_a_job_that_another_has_just_run_again_is_left_to_it(spool: Spool, states: dict[JobState, str]) -> None:
    dead = lookup.find_dead(spool, "failed")
    spool.requeue(*dead)
    spool.requeue(*dead)
    assert lookup.find(spool, "failed").state is JobState.QUEUED
    spool.finish(claim := claim_next(spool, seat(spool)), record_of(claim))
    assert spool.decided(claim.name.id)


def test_progress_whatever_the_state(spool: Spool, states: dict[JobState, str]) -> None:
    def now(job_id: str) -> tuple[str, float, str]:
        word = lookup.progress_now(spool, job_id)
        return word.status, word.percent, word.message

    assert now("queued") == ("queued", 0.0, "next in the queue")
    assert now("next") == ("queued", 0.0, "1 ahead in the queue")
    assert now("running") == ("processing", 0.0, "")
    assert now("completed") == ("completed", 100.0, "")
    assert now("failed") == ("failed", 0.0, "engine in run, attempt 1: it broke")
    assert now("cancelled")[:2] == ("cancelled", 0.0)
    status, percent, message = now("deferred")
    assert (status, percent) == ("queued", 0.0)
    assert message.startswith("attempt 1 failed; the next one in ")
    assert int(message.split()[-2]) in range(25, 31)


def test_the_word_of_the_engine_while_it_runs(spool: Spool, states: dict[JobState, str]) -> None:
    beat = Heartbeat(f"{spool.root}/run/heartbeats/echo-0.1")
    (claim,) = spool.claims(WorkerName("echo", 0, 1))
    JobContext(spool, spool.read_claim(claim), claim.name, beat).progress("merging_audio", 80.0, "almost")
    beat.close()
    word = lookup.progress_now(spool, "running")
    assert (word.status, word.percent, word.message, word.attempt) == ("merging_audio", 80.0, "almost", 1)
    spool.finish(claim, record_of(claim))
    assert lookup.progress_now(spool, "running").status == "completed"  # whatever the last word was


@pytest.mark.parametrize(
    "content", [b"", b"\xc1", b"\x95\x01", Progress("rm -rf", 1.0).to_bytes(), Progress("inference").to_bytes()[:-1]]
)
def test_a_damaged_word_is_no_word(spool: Spool, states: dict[JobState, str], content: bytes) -> None:
    (spool.root / "progress" / "running").write_bytes(content)
    assert lookup.progress(spool, "running") is None
    assert lookup.progress_now(spool, "running").status == "processing"


def test_a_dead_job_is_awaited_until_it_is_in_dead(spool: Spool, states: dict[JobState, str]) -> None:
    entry, engine, name = lookup.await_dead(spool, "failed")
    assert (engine, name.id) == ("echo", "failed")
    assert entry in os.listdir(spool.root / "dead")
    with pytest.raises(UnknownJob):
        lookup.await_dead(spool, "completed")
    with pytest.raises(UnknownJob):
        lookup.await_dead(spool, "running")


# ---- while everything moves

_MOVE = """
import os, sys, time
from pathlib import Path
from pool.job import Failure, Job, JobState, Record
from pool.format.names import WorkerName, parse_job
from pool.spool.store import Spool

root, back = Path(sys.argv[1]), sys.argv[2] == "back and forth"
spool, worker = Spool(root, durable=False), WorkerName("echo", 0, 1)
os.makedirs(spool.work_dir(worker), exist_ok=True)
failure = Failure("engine", "it broke", "run", 1)
end, number = time.monotonic() + 2.0, 0

def claim():
    return spool.claim("echo", parse_job(spool.list_ready("echo")[0]), worker)

while time.monotonic() < end:
    number += 1
    job = Job(f"job-{number}", "echo", created=spool.now())
    spool.submit(job)
    os.symlink(job.id, root.parent / "next")
    os.rename(root.parent / "next", root.parent / "current")  # acknowledged: from now on it is somewhere
    taken = claim()
    if back:
        spool.release(taken)
        taken = claim()
        spool.retry(taken, failure)
        taken = claim()
        spool.retry(taken, failure, delay_s=1e-6)
        time.sleep(1e-5)
        spool.wake_deferred()
        taken = claim()
    name = taken.name
    spool.finish(taken, Record(job.id, "echo", JobState.COMPLETED, name.attempts, 1, 2, 3, str(worker)))
print(number)
"""


@pytest.mark.parametrize("how", ["forward", "back and forth"])
@pytest.mark.invariant(1)
def test_a_job_that_moves_is_never_nowhere(root: Path, spool: Spool, child_env: dict[str, str], how: str) -> None:
    seen = watch_moves(spool, [_MOVE, str(root), how], child_env)
    assert sum(seen.values()) > 500, seen
    assert seen[JobState.COMPLETED]


@pytest.mark.invariant(1)
def test_one_empty_pass_is_no_evidence(spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """RACE: given back, from work/ to ready/, after ready/ was listed and before work/ is."""
    spool.submit(make_job(id="mine"))
    claim = claim_next(spool, seat(spool))
    real, moved = Spool.claims, []

    def claims(self: Spool, worker: WorkerName) -> list[Claim]:
        if not moved:
            moved.append(1)
            spool.release(claim)
        return real(self, worker)

    monkeypatch.setattr(Spool, "claims", claims)
    assert lookup.find(spool, "mine").state is JobState.QUEUED
    assert moved
