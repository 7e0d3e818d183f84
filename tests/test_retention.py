"""Sweeping: what is past its time or belongs to the dead goes; what lives stays, whatever the clocks say."""

from __future__ import annotations

import itertools
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from steps import JobMaker, claim_next, dying, in_child, places, record_of, seat

from pool.config.settings import Config
from pool.constants import ARRAY_FILE_BYTES, TURN_S
from pool.format import codec
from pool.format.names import job_name
from pool.job import Failure, JobState, Record
from pool.spool import fsops, layout, lookup
from pool.spool.attempts import partial_path, scratch_dir
from pool.spool.lookup import Location
from pool.spool.store import Spool
from pool.supervise import retention
from pool.supervise.retention import Retention, purge, remove, sweep_remains, sweep_tmp

HOUR_US = 3600 * 1_000_000
FAILURE = Failure("engine", "it broke", "run", 1)


@pytest.fixture
def sweeper(spool: Spool, config: Config) -> Retention:
    return Retention(spool, replace(config, retention_hours=24.0), turn_s=math.inf)


def _record(spool: Spool, job_id: str, age_hours: float, state: JobState = JobState.COMPLETED, **more: Any) -> None:
    """A record that finished so long ago, with everything that may belong to it."""
    finished = spool.now() - int(age_hours * HOUR_US)
    failure = None if state is JobState.COMPLETED else FAILURE
    times = finished - 2, finished - 1, finished
    record = Record(job_id, "echo", state, 1, *times, "echo-0.1", {"n": 1}, failure, **more)
    Path(spool.record_path(job_id)).write_bytes(codec.encode(record.to_map()))
    Path(f"{spool.root}/out/{job_id}.json").write_text("{}")
    Path(partial_path(spool, job_id, 1)).touch()
    spool.files_dir(job_id).mkdir()
    (spool.files_dir(job_id) / "array-01-0.npy").touch()
    if state is JobState.FAILED:
        (spool.root / "dead" / f"echo.{job_name(0, finished, job_id)}").touch()


# ---- records past their time


def test_records_expire_by_their_own_time(spool: Spool, sweeper: Retention) -> None:
    for state in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED):
        _record(spool, f"old-{state.value}", 24.1, state)
        _record(spool, f"young-{state.value}", 23.9, state)
    for path in spool.root.rglob("*young*"):
        os.utime(path, (0, 0), follow_symlinks=False)  # what the files say means nothing
    assert sweeper.expire() is False
    assert sorted(lookup.records(spool)) == ["young-cancelled", "young-completed", "young-failed"]
    assert not list(spool.root.rglob("*old-*"))
    assert len(list(spool.root.rglob("*young-failed*"))) == 5


@pytest.mark.invariant(30)
def test_a_jump_of_the_wall_clock_expires_nothing(root: Path, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool.create(root, durable=False)
    _record(spool, "mine", 1)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 10 * 365 * 86400 * 10**9)
    monkeypatch.setattr(time, "time", lambda: time.time_ns() / 1e9)
    Retention(Spool(root), config, turn_s=math.inf).sweep()
    assert list(lookup.records(spool)) == ["mine"]


@pytest.mark.parametrize("kind", ["from the future", "damaged"])
def test_what_has_no_sensible_time_expires_after_it_was_seen(
    spool: Spool, sweeper: Retention, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A boot with a wrong clock once; records must not stay for years because of it."""
    _record(spool, "mine", -10 * 365 * 24)
    if kind == "damaged":
        Path(spool.record_path("mine")).write_bytes(b"\xc1")
    sweeper.expire()
    assert list(lookup.records(spool)) == ["mine"]
    later = spool.now() + 25 * HOUR_US
    monkeypatch.setattr(Spool, "now", lambda self: later)
    sweeper.expire()
    assert list(lookup.records(spool)) == []


def test_much_to_expire_takes_many_short_turns(spool: Spool, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    sweeper = Retention(spool, replace(config, retention_hours=24.0))
    for number in range(1500):
        record = Record(f"job-{number}", "echo", JobState.FAILED, 1, 1, 2, 3, failure=FAILURE)
        Path(spool.record_path(record.id)).write_bytes(codec.encode(record.to_map()))
        (spool.root / "dead" / f"echo.{job_name(0, 1, record.id)}").touch()
    listed = []
    real = retention.dead_jobs
    monkeypatch.setattr(retention, "dead_jobs", lambda spool: listed.append(1) or real(spool))
    ticks = itertools.count()  # a millisecond for each look at the clock: one before each record
    monkeypatch.setattr(retention, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 1000, sleep=time.sleep))
    turns, before = 0, 0
    more = True
    while more:
        more = sweeper.sweep()
        now = next(ticks)
        looks, before = now - before, now
        turns += 1
        assert looks <= 1000 * TURN_S + 5
    assert turns >= 3000 / (1000 * TURN_S)  # each record is read in one turn, and removed in one
    assert os.listdir(spool.root / "out") == os.listdir(spool.root / "dead") == []
    assert len(listed) <= turns + 2  # dead/ is not listed for every record


def test_the_sweeper_reads_records_without_numpy(
    root: Path, spool: Spool, make_job: JobMaker, child_env: dict[str, str]
) -> None:
    spool.submit(make_job(id="mine"))
    claim = claim_next(spool, seat(spool))
    spool.finish(claim, record_of(claim, value={"large": np.zeros(ARRAY_FILE_BYTES, "u1"), "small": np.arange(3)}))
    program = """if True:
        import math, random, sys
        from pathlib import Path
        from pool.spool import lookup
        from pool.config.settings import parse_config
        from pool.supervise.recovery import Recovery
        from pool.supervise.retention import Retention, purge
        from pool.spool.store import Spool

        spool = Spool(Path(sys.argv[1]))
        config = parse_config({"engines": {"echo": {"engine": "a:B"}}}, Path(sys.argv[1]))
        Retention(spool, config, turn_s=math.inf).sweep()
        lookup.find(spool, "mine")
        lookup.progress_now(spool, "mine")
        Recovery(spool, config, random.Random()).recover_abandoned(set())
        assert purge(spool) == 1
        assert "numpy" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", program, str(root)], env=child_env, check=True, timeout=60)


# ---- asked for


def test_purge_takes_what_it_is_told_to(spool: Spool) -> None:
    for state in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED):
        for age in (0.5, 5):
            _record(spool, f"{state.value}-{age * 10:g}", age, state)
    assert purge(spool, older_than_s=3600, states={JobState.FAILED}) == 1
    assert not list(spool.root.rglob("*failed-50*"))
    assert purge(spool, older_than_s=3600) == 2
    assert sorted(lookup.records(spool)) == ["cancelled-5", "completed-5", "failed-5"]
    assert purge(spool) == 3
    assert places(spool) == {}


def test_killed_anywhere_in_a_removal_the_job_is_decided_or_gone(root: Path, spool: Spool, make_job: JobMaker) -> None:
    """Never a job file in dead/ or an id without a record that nobody could explain."""
    for number in range(1, 30):
        spool.submit(make_job(id="mine"))
        claim = claim_next(spool, seat(spool))
        spool.finish(claim, record_of(claim, JobState.FAILED, {"a": np.zeros(ARRAY_FILE_BYTES, "u1")}), reply="json")

        def take(number: int = number) -> None:
            theirs = Spool(root, durable=True)
            dying(number)
            remove(theirs, "mine")

        ended = in_child(take)
        found = places(spool)
        if "out" in found:
            assert lookup.find(spool, "mine").state is JobState.FAILED
        else:
            assert "dead" not in found
        remove(spool, "mine")
        sweep_remains(spool)
        assert places(spool) == {}, number
        assert not list(spool.root.rglob("*mine*"))
        if ended == 0:
            assert number > 5
            return
    pytest.fail("it never came through")


# ---- half-written files


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"], stdout=-1)
    assert child.stdout is not None
    child.stdout.readline()
    yield child
    child.kill()
    child.communicate()


def _owner(pid: int) -> str:
    from pool.system.procs import identity_of

    identity = identity_of(pid)
    assert identity is not None
    return f"{pid}-{identity.start}-{layout.boot_tag()}"


@pytest.mark.invariant(18)
def test_files_of_the_living_stay_and_of_the_dead_go(spool: Spool, sleeper: subprocess.Popen[bytes]) -> None:
    tmp = spool.root / "tmp"
    owner, ours = _owner(sleeper.pid), os.path.basename(spool.temp())
    pid, start, boot = owner.split("-")
    names = {
        "alive": f"{owner}.0",
        "ours": ours,
        "another boot": f"{pid}-{start}-{'0' * 12}.0",
        "reused": f"{pid}-1-{boot}.0",
        "gone": f"4194305-{start}-{boot}.0",
        "foreign": "README",
        "foreign number": "123",
        "foreign dashes": "a-b-c",
    }
    for name in names.values():
        (tmp / name).touch()
        os.utime(tmp / name, (0, 0))  # ten years back or more: age decides nothing
    (tmp / f"{pid}-1-{boot}.1").mkdir()
    (tmp / f"{pid}-1-{boot}.1" / "copy").touch()
    sleeper.send_signal(signal.SIGSTOP)
    assert sweep_tmp(spool) == 4
    kept = {kind for kind, name in names.items() if (tmp / name).exists()}
    assert kept == {"alive", "ours", "foreign", "foreign number", "foreign dashes"}
    sleeper.kill()
    sleeper.wait()
    assert sweep_tmp(spool) == 1
    assert not (tmp / names["alive"]).exists()


# ---- remains of jobs


def _everything(spool: Spool, job_id: str) -> dict[str, Path]:
    """All that a job may leave in the spool, made by hand."""
    made = {
        "note": Path(spool.note_path(job_id, 1)),
        "progress": spool.root / "progress" / job_id,
        "partial": Path(partial_path(spool, job_id, 1)),
        "scratch": scratch_dir(spool, job_id, 1),
        "files": spool.files_dir(job_id),
        "dead": spool.root / "dead" / f"echo.{job_name(0, 1, job_id)}",
        "id": spool.root / "run" / "ids" / job_id,
    }
    for kind, path in made.items():
        if kind in ("scratch", "files"):
            path.mkdir(exist_ok=True)
            (path / "file").touch()
        elif not path.exists():
            path.touch()
    return made


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        ("none", set()),
        ("ready", {"note", "progress", "partial", "scratch", "files", "dead", "id"}),
        ("work", {"note", "progress", "partial", "scratch", "files", "dead", "id"}),
        ("deferred", {"note", "progress", "partial", "scratch", "files", "dead", "id"}),
        ("completed", {"progress", "partial", "files", "dead", "id"}),
        ("requeued", {"note", "progress", "partial", "scratch", "files", "dead", "id"}),
    ],
)
@pytest.mark.invariant(18)
def test_what_belongs_to_nobody_goes(spool: Spool, make_job: JobMaker, state: str, kept: set[str]) -> None:
    if state not in ("none", "requeued"):
        spool.submit(make_job(id="mine"))
    if state in ("work", "deferred", "completed"):
        claim = claim_next(spool, seat(spool))
        if state == "deferred":
            spool.retry(claim, FAILURE, delay_s=60)
        elif state == "completed":
            spool.finish(claim, record_of(claim))
    if state == "requeued":  # between two renames of `requeue`
        (spool.root / "dead" / "mine.1-1-x.record").touch()
    made = _everything(spool, "mine")
    foreign = [spool.root / "progress" / ".keep", spool.root / "run" / "attempts" / "README"]
    foreign[1].touch()
    swept = sweep_remains(spool)
    assert {kind for kind, path in made.items() if path.exists()} == kept
    assert swept == len(made) - len(kept)
    assert foreign[1].exists()


@pytest.mark.parametrize("missed", [1, 2])
def test_one_empty_pass_is_no_evidence(
    spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch, missed: int
) -> None:
    """RACE: the job moved back while we looked."""
    spool.submit(make_job(id="mine"))
    made = _everything(spool, "mine")
    real, passes = lookup.waiting, []

    def waiting(spool: Spool) -> Iterator[Location]:
        passes.append(1)
        return iter(()) if len(passes) <= missed else real(spool)

    monkeypatch.setattr(lookup, "waiting", waiting)
    assert sweep_remains(spool) == 0
    assert all(path.exists() for path in made.values())


def test_much_to_sweep_takes_three_looks_not_three_for_each(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(500):
        (spool.root / "progress" / f"job-{number}").touch()
    real, looks = lookup.waiting, []

    def waiting(spool: Spool) -> Iterator[Location]:
        looks.append(1)
        return real(spool)

    monkeypatch.setattr(lookup, "waiting", waiting)
    assert sweep_remains(spool) == 500
    assert len(looks) <= 6


def test_a_job_submitted_while_we_sweep_loses_nothing(
    spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RACE: it comes after we read which jobs there are, and before we look what there is to sweep."""
    real: Callable[[Spool], Iterator[str]] = lookup.records
    made: dict[str, Path] = {}

    def records(spool: Spool) -> Iterator[str]:
        if not made:
            spool.submit(make_job(id="mine"))
            made.update(_everything(spool, "mine"))
        return real(spool)

    (spool.root / "progress" / "garbage").touch()
    monkeypatch.setattr(lookup, "records", records)
    assert sweep_remains(spool) == 1
    assert all(path.exists() for path in made.values())


# ---- directories that grew


def test_a_ready_directory_that_was_huge_is_renewed_when_empty(
    spool: Spool, sweeper: Retention, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_BLOATED", 1)
    name = spool.submit(make_job())
    path = Path(spool.ready_dir("echo"))
    inode = path.stat().st_ino
    sweeper.renew_directories()
    assert path.stat().st_ino == inode
    claim = spool.claim("echo", name, seat(spool))
    sweeper.renew_directories()
    assert path.stat().st_ino != inode
    assert claim is not None
    spool.release(claim)
    assert len(spool.list_ready("echo")) == 1
    assert os.listdir(spool.root / "tmp") == []


def test_a_submitter_meets_the_renewal(
    spool: Spool, sweeper: Retention, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RACE: a job arrives between the look and the renewal: the directory stays, with its job."""
    monkeypatch.setattr(retention, "_BLOATED", 1)
    spool.make_ready_dir("echo")

    def hook(operation: str, path: str) -> None:
        if operation == "renew":
            fsops.hook = None
            spool.submit(make_job(id="mine"))

    fsops.hook = hook
    sweeper.renew_directories()
    assert len(spool.list_ready("echo")) == 1
    assert os.listdir(spool.root / "tmp") == []
