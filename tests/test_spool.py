"""The transitions of a job: one rename each, one claimant, one record, whole or not at all, on any disk."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from steps import JobMaker, claim_next, dying, failing, in_child, places, record_of, seat

from pool.config.settings import Config, parse_config
from pool.constants import ARRAY_FILE_BYTES, MAX_JOB_BYTES
from pool.errors import JobRefused, ProtocolError, SpoolFull
from pool.format.codec import encode
from pool.format.names import WorkerName, job_name, parse_job
from pool.job import Failure, Job, JobState
from pool.job.terms import Terms
from pool.spool import attempts, fsops, lookup, settlement
from pool.spool.seizure import Seizer
from pool.spool.store import Spool
from pool.supervise.recovery import UNSEEN, End, Recovery
from pool.supervise.retention import sweep_remains, sweep_tmp

KB = 1024


def _failure(attempt: int, message: str = "it broke") -> Failure:
    return Failure("engine", message, "run", attempt)


# ---- submit


def test_a_job_goes_through(spool: Spool, make_job: JobMaker) -> None:
    job = make_job(params={"text": "ü", "n": [1, 2.5, None]}, priority=3)
    name = spool.submit(job)
    assert spool.list_ready("echo") == [str(name)]
    claim = claim_next(spool, seat(spool))
    assert spool.read_claim(claim) == job
    assert claim.name.attempts == 1
    assert spool.finish(claim, record_of(claim, value={"answer": 42}))
    record = spool.read_record(job.id)
    assert (record.state, record.value, record.attempt) == (JobState.COMPLETED, {"answer": 42}, 1)
    assert places(spool) == {"out": [job.id]}


def test_everything_of_a_job_is_kept(spool: Spool, make_job: JobMaker) -> None:
    job = make_job(
        items=({"a": 1}, {"a": 2}), retry_times=3, timeout_s=2.5, source="in/x.json", reply="json", priority=-7
    )
    spool.submit(job)
    assert spool.read_claim(claim_next(spool, seat(spool))) == job


@pytest.mark.invariant(25)
def test_files_are_private(spool: Spool, make_job: JobMaker) -> None:
    os.umask(0)
    for state in (JobState.COMPLETED, JobState.FAILED):
        spool.submit(make_job(id=f"job-{state.value}"))
        claim = claim_next(spool, seat(spool))
        spool.retry(claim, _failure(1))
        claim = claim_next(spool, seat(spool))
        spool.finish(claim, record_of(claim, state, {"a": np.zeros(ARRAY_FILE_BYTES, "u1")}), reply="json")
    spool.submit(make_job())
    for path in spool.root.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"params": {"a": object()}}, "params.a"),
        ({"params": {"a": {(1, 2): 3}}}, "params.a"),
        ({"params": {"a": 2**64}}, "params.a"),
        ({"items": ({}, {"a": [object()]})}, "items[1].a[0]"),
        ({"params": {"a": "x" * MAX_JOB_BYTES}}, "params"),
        ({"id": "../x"}, "id"),
        ({"id": ""}, "id"),
    ],
)
def test_what_is_refused_leaves_nothing(spool: Spool, change: dict[str, Any], path: str) -> None:
    job = Job(**{"id": "job", "engine": "echo", "created": spool.now(), **change})
    with pytest.raises(JobRefused) as caught:
        spool.submit(job)
    assert caught.value.path == path
    assert places(spool) == {}


def test_a_batch_with_a_bad_job_leaves_nothing(spool: Spool, make_job: JobMaker) -> None:
    with pytest.raises(JobRefused) as caught:
        spool.submit_many([make_job(), make_job(id="mine"), make_job(params={"a": object()})])
    assert caught.value.path == "jobs[2].params.a"
    assert places(spool) == {}


def test_a_batch_needs_one_sync_per_directory(root: Path, make_job: JobMaker) -> None:
    spool = Spool(root, durable=True)
    for engine in ("echo", "other"):
        spool.make_ready_dir(engine)
    seen: Counter[tuple[str, str]] = Counter()
    fsops.hook = lambda operation, path: seen.update([(operation, Path(path).name)])
    names = spool.submit_many([make_job(engine) for engine in ("echo", "other") for _ in range(20)])
    synced = {name: count for (operation, name), count in seen.items() if operation == "syncdir"}
    assert synced == {"echo": 1, "other": 1}
    assert sum(count for (operation, _), count in seen.items() if operation == "fsync") == 40
    assert spool.list_ready("echo") == [str(name) for name in names[:20]]


# ---- what must be on disk before what


def _trace(spool: Spool, action: Callable[[], object]) -> list[str]:
    """Operations as "rename ready", each with the folder it works in; tmp files without their number."""
    trace: list[str] = []

    def hook(operation: str, path: str) -> None:
        place = Path(path).relative_to(spool.root)
        trace.append(f"{operation} {place if operation in ('syncdir', 'mkdir') else place.parent}")

    fsops.hook = hook
    action()
    fsops.hook = None
    return trace


@pytest.mark.invariant(2)
def test_a_durable_job_is_on_disk_before_it_is_acknowledged(root: Path, make_job: JobMaker) -> None:
    spool = Spool(root, durable=True)
    trace = _trace(spool, lambda: spool.submit(make_job()))
    assert trace == [
        "create tmp",
        "write tmp",
        "fsync tmp",
        "rename ready/echo",
        "mkdir ready/echo",
        "syncdir ready",
        "rename ready/echo",
        "syncdir ready/echo",
    ]
    assert _trace(spool, lambda: spool.submit(make_job(id="mine"))) == [
        "create tmp",
        "write tmp",
        "fsync tmp",
        "link run/ids",
        "syncdir run/ids",
        "rename ready/echo",
        "syncdir ready/echo",
    ]


@pytest.mark.invariant(12)
def test_a_durable_record_is_on_disk_before_the_claim_goes(root: Path, make_job: JobMaker) -> None:
    spool = Spool(root, durable=True)
    spool.submit(make_job(id="mine"))
    claim = claim_next(spool, seat(spool))
    value = {"large": np.zeros(ARRAY_FILE_BYTES, "u1")}
    trace = _trace(spool, lambda: spool.finish(claim, record_of(claim, value=value)))
    assert trace == [
        "mkdir out/mine",
        "syncdir out",
        "create tmp",
        "write tmp",
        "write tmp",
        "fsync tmp",
        "replace out/mine",
        "syncdir out/mine",
        "create tmp",
        "write tmp",
        "fsync tmp",
        "publish out",
        "syncdir out",
        "unlink work/echo-0.1",
    ]


def test_without_durability_nothing_is_synced(spool: Spool, make_job: JobMaker) -> None:
    def life() -> None:
        spool.submit(make_job(id="mine", durable=False))
        claim = claim_next(spool, seat(spool))
        spool.retry(claim, _failure(1))
        claim = claim_next(spool, seat(spool))
        spool.finish(claim, record_of(claim, value={"large": np.zeros(ARRAY_FILE_BYTES, "u1")}), reply="json")

    assert not [step for step in _trace(spool, life) if "sync" in step]


def test_one_job_may_be_less_durable_than_its_spool(root: Path, make_job: JobMaker) -> None:
    spool = Spool(root, durable=True)
    spool.make_ready_dir("echo")
    trace = _trace(spool, lambda: spool.submit(make_job(durable=False)))
    assert trace == ["create tmp", "write tmp", "rename ready/echo"]
    claim = claim_next(spool, seat(spool))
    trace = _trace(spool, lambda: spool.finish(claim, record_of(claim), durable=False))
    assert not [step for step in trace if "sync" in step]


# ---- claim

_RACE = """
import os, random, sys
from pathlib import Path
from pool.format.names import WorkerName, parse_job
from pool.spool.store import Spool
from pool.job.terms import Terms

spool, worker = Spool(Path(sys.argv[1])), WorkerName("echo", int(sys.argv[2]), 1)
os.mkdir(spool.work_dir(worker))
names = [parse_job(name) for name in spool.list_ready("echo")]
if sys.argv[3] == "shuffled":
    random.Random(int(sys.argv[2])).shuffle(names)
print("ready", flush=True)
sys.stdin.readline()
for name in names:
    claim = spool.claim("echo", name, worker)
    if claim is not None:
        assert os.path.exists(claim.path)
        print(name.id)
"""


@pytest.mark.parametrize("order", ["in order", "shuffled"])
@pytest.mark.invariant(5)
def test_a_job_has_one_claimant(root: Path, spool: Spool, child_env: dict[str, str], order: str) -> None:
    """Four processes race for 4,000 jobs: the multiset of claims is the set of jobs."""
    spool.make_ready_dir("echo")
    for number in range(4000):
        os.close(os.open(f"{spool.ready_dir('echo')}/{job_name(0, number, f'job-{number}')}", os.O_CREAT))
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    argv = [sys.executable, "-c", _RACE, str(root)]
    children = [subprocess.Popen([*argv, str(n), order], env=child_env, text=True, **pipes) for n in range(4)]
    for child in children:
        assert child.stdout is not None
        child.stdout.readline()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    claims = [child.communicate(timeout=60)[0].split() for child in children]
    assert all(child.returncode == 0 for child in children)
    everything = Counter(job_id for mine in claims for job_id in mine)
    assert set(everything) == {f"job-{number}" for number in range(4000)}
    assert set(everything.values()) == {1}
    assert spool.list_ready("echo") == []
    for index, mine in enumerate(claims):
        held = spool.claims(WorkerName("echo", index, 1))
        assert sorted(claim.name.id for claim in held) == sorted(mine)
        assert {claim.name.attempts for claim in held} <= {1}


def test_too_late_is_no_error(spool: Spool, make_job: JobMaker) -> None:
    name = spool.submit(make_job())
    assert spool.claim("echo", name, seat(spool, 1)) is not None
    assert spool.claim("echo", name, seat(spool, 2)) is None


def test_jobs_run_by_priority_then_age(spool: Spool, make_job: JobMaker) -> None:
    jobs = [make_job(priority=priority) for priority in (0, -5, 5, 0, 100, -100, 5)]
    random.Random(1).shuffle(jobs)
    spool.submit_many(jobs)
    worker = seat(spool)
    ran = [claim_next(spool, worker).name.id for _ in jobs]
    assert ran == [job.id for job in sorted(jobs, key=lambda job: (-job.priority, job.created))]


def test_foreign_files_are_not_touched(spool: Spool, make_job: JobMaker, hostile_names: tuple[bytes, ...]) -> None:
    spool.submit(make_job(id="mine"))
    worker = seat(spool)
    folders = [f"{spool.root}/{name}" for name in ("ready/echo", f"work/{worker}", "deferred", "out")]
    foreign = [name for name in hostile_names if not name.endswith(b".msgpack")]
    for folder in folders:
        for name in foreign:
            os.close(os.open(os.path.join(os.fsencode(folder), name), os.O_CREAT))
    assert len(spool.list_ready("echo")) == 1
    claim = claim_next(spool, worker)
    assert [held.name for held in spool.claims(worker)] == [claim.name]
    spool.wake_deferred()
    spool.finish(claim, record_of(claim))
    for folder in folders:
        assert set(foreign) <= set(os.listdir(os.fsencode(folder)))


MINE = Job("mine", "echo").to_map()
NO_JOBS: list[Any] = [
    [1, 2],
    {"protocol": 1},
    {**MINE, "protocol": 2},
    {**MINE, "id": "another"},
    {**MINE, "params": [1]},
    {**MINE, "max_attempts": "3"},
    {**MINE, "created": "now"},
    {**MINE, "items": 7},
    {**MINE, "items": [7]},
    {**MINE, "timeout_s": "1"},
    {**MINE, "engine": None},
    {**MINE, "priority": 1.5},
    {**MINE, "reply": ["json"]},
]
DAMAGED = [b"", b"\xc1", b"\x80", b"x" * 100, b"\x91" * 5000, b"\xdf\xff\xff\xff\xff", encode(MINE)[:-1]]


@pytest.mark.parametrize("content", [*DAMAGED, *map(encode, NO_JOBS)])
def test_a_job_file_of_a_foreign_hand(spool: Spool, content: bytes) -> None:
    spool.make_ready_dir("echo")
    Path(spool.ready_dir("echo"), str(job_name(0, 1, "mine"))).write_bytes(content)
    with pytest.raises(ProtocolError):
        spool.read_claim(claim_next(spool, seat(spool)))


# ---- give back


@pytest.mark.invariant(6)
def test_release_gives_the_attempt_back(spool: Spool, make_job: JobMaker) -> None:
    name = spool.submit(make_job(id="mine", priority=2))
    for _ in range(3):
        claim = claim_next(spool, seat(spool))
        assert claim.name.attempts == 1
        spool.release(claim)
        assert spool.list_ready("echo") == [str(name)]
    assert spool.claims(seat(spool)) == []


def test_retry_keeps_the_attempt_and_the_reason(spool: Spool, make_job: JobMaker) -> None:
    spool.submit(make_job(id="mine"))
    for attempt in (1, 2, 3):
        claim = claim_next(spool, seat(spool))
        assert claim.name.attempts == attempt
        spool.retry(claim, _failure(attempt, f"reason {attempt}"))
    assert [note.message for note in spool.notes("mine", 3)] == ["reason 1", "reason 2", "reason 3"]
    claim = claim_next(spool, seat(spool))
    spool.finish(claim, record_of(claim))
    assert spool.notes("mine", 4) == ()
    assert os.listdir(spool.root / "run" / "attempts") == []


def test_the_first_reason_told_about_an_attempt_stays(spool: Spool) -> None:
    spool.note("mine", _failure(1, "what happened"))
    spool.note("mine", _failure(1, "what somebody thought later"))
    assert [note.message for note in spool.notes("mine", 5)] == ["what happened"]
    assert places(spool) == {}


def test_a_damaged_reason_is_skipped(spool: Spool) -> None:
    for attempt in (1, 2, 3):
        spool.note("mine", _failure(attempt))
    Path(spool.note_path("mine", 2)).write_bytes(b"\xc1")
    assert [note.attempt for note in spool.notes("mine", 3)] == [1, 3]


def test_a_reason_that_is_no_text_is_still_told(spool: Spool) -> None:
    """A message that quotes a file name of another system's making cannot be UTF-8; it must not cost the job."""
    spool.note("mine", Failure("engine", "no such file: b\udcff.wav", "run", 1, stderr_tail="\ud800"))
    (note,) = spool.notes("mine", 1)
    assert note.message == "no such file: b?.wav"


def test_deferred_jobs_come_when_they_are_due_in_order(
    spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = spool.now()
    clock = [begun]
    monkeypatch.setattr(spool, "now", lambda: clock[0])
    worker = seat(spool)
    for number, delay_s in enumerate((0.10, 0.02, 60, 0.06)):
        spool.submit(make_job(id=f"job-{number}"))
        spool.retry(claim_next(spool, worker), _failure(1), delay_s=delay_s)
    ready: list[str] = []
    for due_ms, job, next_ms in ((20, "job-1", 60), (60, "job-3", 100), (100, "job-0", 60_000)):
        for at, expected in ((begun + due_ms * 1000 - 1, ready), (begun + due_ms * 1000, [*ready, job])):
            clock[0] = at
            upcoming = spool.wake_deferred()
            names = [parse_job(name) for name in spool.list_ready("echo")]
            assert sorted(name.id for name in names if name is not None) == sorted(expected)
            assert all(name is not None and name.attempts == 1 for name in names)
            assert upcoming == begun + 1000 * (due_ms if expected is ready else next_ms)
        ready.append(job)
    assert places(spool)["deferred"] == ["job-2"]


def test_waking_is_not_stopped_by_what_it_meets(
    spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job_id in ("one", "two"):
        spool.submit(make_job(id=job_id))
        spool.retry(claim_next(spool, seat(spool)), _failure(1), delay_s=0.001)
    deferred = spool.root / "deferred"
    due = "0000000000000001"
    for name in ("README", f"{'²' * 16}.echo.{job_name(0, 1, 'x')}", f"{due}..{job_name(0, 1, 'x')}", f"{due}.echo.x"):
        (deferred / name).touch()
    time.sleep(0.002)
    gone = next(deferred.glob("*one*"))
    real = os.rename

    def rename(src: str, dst: str) -> None:  # RACE: somebody removes the first just now
        gone.unlink(missing_ok=True)
        real(src, dst)

    monkeypatch.setattr(os, "rename", rename)
    assert spool.wake_deferred() is None
    assert places(spool)["ready"] == ["two"]
    assert len(os.listdir(deferred)) == 4
    assert os.listdir(spool.root / "ready") == ["echo"]


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_the_supervisor_was_about_to_end_goes_back_where_it_was(spool: Spool, root: Path, cancelled: bool) -> None:
    """It was killed with jobs in hand: none of them was begun, so none is charged with an attempt, nor is one said to
    have had a worker. What is to be cancelled is cancelled there by the next one."""
    born = spool.now()
    terms = {
        "held": Terms(depends_on=["other"]),
        "deferred": Terms(not_before="1h"),
        "ready": Terms(expires="1h"),
    }
    for place, chosen in terms.items():
        spool.submit(Job(place, "echo", created=born, terms=chosen.fixed(born)))
    seizer, config = Seizer(spool, 7), parse_config({"spool": str(root), "engines": {"echo": {"engine": "a:B"}}}, root)
    claims = [seizer.seize(location) for location in list(lookup.waiting(spool))]
    assert len(places(spool)["work"]) == 3
    assert claims[0] is not None
    if cancelled:
        for place in terms:
            Path(attempts.cancel_path(spool, place)).touch()
    Recovery(spool, config, random.Random(0)).recover(claims[0].worker, End(UNSEEN, seen=False))
    found = places(spool)
    assert [found[place] for place in terms] == [["held"], ["deferred"], ["ready"]]
    assert os.listdir(root / "run" / "attempts") == []
    assert not os.path.exists(spool.work_dir(claims[0].worker))


def test_what_was_begun_in_time_is_tried_on(spool: Spool, make_job: JobMaker) -> None:
    job = replace(make_job(), terms=Terms(expires=0).fixed(spool.now()))
    assert settlement.too_late(spool, job, job.file_name) is not None
    assert settlement.too_late(spool, job, job.file_name.claimed()) is None
    early = replace(job, terms=Terms(expires=60).fixed(spool.now()))
    assert settlement.too_late(spool, early, early.file_name) is None


@pytest.mark.parametrize("years", [-10, 10])
@pytest.mark.invariant(30)
def test_a_jump_of_the_wall_clock_changes_no_order_and_no_due_time(
    root: Path, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch, years: int
) -> None:
    spool = Spool(root)
    spool.submit(make_job(id="retried"))
    spool.retry(claim_next(spool, seat(spool)), _failure(1), delay_s=30)
    first = spool.submit(make_job(id="first", created=spool.now()))
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + years * 365 * 86400 * 10**9)
    monkeypatch.setattr(time, "time", lambda: time.time_ns() / 1e9)
    later = Spool(root)
    second = later.submit(make_job(id="second", created=later.now()))
    upcoming = later.wake_deferred()
    assert upcoming is not None
    assert 25e6 < upcoming - later.now() < 30e6
    os.utime(f"{spool.ready_dir('echo')}/{first}", (2**31, 2**31))  # file times mean nothing
    assert later.list_ready("echo") == [str(first), str(second)]


# ---- publish


@pytest.fixture(params=["renameat2", "link"])
def both_publishes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "link":
        monkeypatch.setattr(fsops, "_renameat2", None)


@pytest.mark.usefixtures("both_publishes")
@pytest.mark.invariant(13)
def test_the_first_result_wins_and_never_changes(spool: Spool, make_job: JobMaker) -> None:
    """Two generations hold the same job, which only a fault of ours could bring about; one result stands."""
    name = spool.submit(make_job(id="mine"))
    one, two = seat(spool, 1), seat(spool, 2)
    first = spool.claim("echo", name, one)
    assert first is not None
    os.link(first.path, f"{spool.work_dir(two)}/{name.claimed().claimed()}")
    (second,) = spool.claims(two)
    array = np.arange(ARRAY_FILE_BYTES, dtype="u1")
    assert spool.finish(first, record_of(first, value={"by": 1, "array": array})) is True
    path = Path(spool.record_path("mine"))
    before = path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()
    assert spool.finish(second, record_of(second, value={"by": 2, "array": array + 1})) is False
    assert (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes()) == before
    value = spool.read_record("mine").value
    assert value["by"] == 1
    assert np.array_equal(value["array"], array)
    assert places(spool) == {"out": ["mine"], "ids": ["mine"]}


@pytest.mark.usefixtures("both_publishes")
@pytest.mark.invariant(13)
def test_a_record_that_appears_meanwhile_wins(spool: Spool, make_job: JobMaker) -> None:
    """RACE: it was not there at the look, and is at the publish."""
    spool.submit(make_job(id="mine"))
    claim = claim_next(spool, seat(spool))
    late = record_of(claim, JobState.FAILED)

    def hook(operation: str, path: str) -> None:
        if operation == "publish":
            fsops.hook = None
            assert spool.finish(claim, record_of(claim, value={"by": "the other"}))

    fsops.hook = hook
    assert spool.finish(claim, late) is False
    assert spool.read_record("mine").value == {"by": "the other"}
    assert places(spool) == {"out": ["mine"], "ids": ["mine"]}


def test_a_failed_job_is_dead_and_runs_again_on_request(spool: Spool, make_job: JobMaker) -> None:
    name = spool.submit(make_job(id="mine"))
    claim = claim_next(spool, seat(spool))
    spool.finish(claim, record_of(claim, JobState.FAILED), reply="json")
    assert places(spool) == {"out": ["mine"], "dead": ["mine"], "ids": ["mine"]}
    (entry,) = os.listdir(spool.root / "dead")
    spool.requeue(entry, "echo", name)
    assert places(spool) == {"ready": ["mine"], "ids": ["mine"]}
    assert not spool.decided("mine")
    assert os.listdir(spool.root / "dead") == []
    assert claim_next(spool, seat(spool)).name.attempts == 1


def test_a_rendering_for_other_languages(spool: Spool, make_job: JobMaker) -> None:
    spool.submit(make_job(id="mine"))
    claim = claim_next(spool, seat(spool))
    value = {"nan": float("nan"), "array": np.zeros(ARRAY_FILE_BYTES, "u1"), "text": "ü", "n": np.int64(3)}
    spool.finish(claim, record_of(claim, value=value), reply="json")
    text = (spool.root / "out" / "mine.json").read_text("utf-8")
    shown = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert shown["state"] == "completed"
    assert shown["value"] == {"nan": None, "array": {"array": [1 << 20], "dtype": "uint8"}, "text": "ü", "n": 3}


@pytest.mark.parametrize("value", [{"a": object()}, {"a": {(1, 2): 3}}, {"a": [2**70]}])
def test_a_result_that_cannot_be_stored_leaves_the_claim(spool: Spool, make_job: JobMaker, value: Any) -> None:
    spool.submit(make_job(id="mine"))
    claim = claim_next(spool, seat(spool))
    with pytest.raises(ProtocolError, match="a"):
        spool.finish(claim, record_of(claim, value=value), reply="json")
    assert places(spool) == {"work": ["mine"], "ids": ["mine"]}
    assert not (spool.root / "out" / "mine.json").exists()


@pytest.mark.parametrize("what", ["consumed", "damaged", "its array is gone"])
def test_tidying_a_claim_that_was_decided(spool: Spool, make_job: JobMaker, what: str) -> None:
    """Its worker was killed between the record and the end of its claim; meanwhile the record had its own fate."""
    spool.submit(make_job(id="mine"))
    claim = claim_next(spool, seat(spool))
    kept = Path(claim.path).read_bytes()
    spool.finish(claim, record_of(claim, value={"array": np.zeros(ARRAY_FILE_BYTES, "u1")}))
    Path(claim.path).write_bytes(kept)
    if what == "consumed":
        os.unlink(spool.record_path("mine"))
    elif what == "damaged":
        Path(spool.record_path("mine")).write_bytes(b"\xc1")
    else:
        fsops.remove_tree(str(spool.files_dir("mine")))
    spool.tidy(claim)
    assert "work" not in places(spool)
    assert ("dead" in places(spool)) == (what == "damaged")


# ---- full and failing disks


def test_a_small_disk_fills_up_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    spool = Spool.create(small_disk / "spool", durable=True)
    worker = seat(spool)
    accepted: list[str] = []
    with pytest.raises(SpoolFull, match="is full") as caught:  # noqa: PT012
        while True:
            job = Job(f"job-{len(accepted)}", "echo", {"ballast": "x" * 20 * KB}, created=spool.now())
            spool.submit(job)
            accepted.append(job.id)
    assert str(small_disk) in str(caught.value)
    assert len(accepted) > 3
    assert places(spool) == {"ready": sorted(accepted)}
    claim = claim_next(spool, worker)  # a claim needs no room
    result = record_of(claim, value={"ballast": "y" * 30 * KB, "array": np.ones(ARRAY_FILE_BYTES, "u1")})
    small = record_of(claim, value={"ballast": "y" * 30 * KB})
    for record in (result, small):
        with pytest.raises(OSError, match="No space left"):
            spool.finish(claim, record, reply="json")
        assert not spool.decided(claim.name.id)
        assert "tmp" not in places(spool)
    spool.release(claim)  # nor does giving back
    assert places(spool)["ready"] == sorted(accepted)
    for name in spool.list_ready("echo")[-2:]:  # somebody makes room
        os.unlink(f"{spool.ready_dir('echo')}/{name}")
        accepted.pop()
    for _ in accepted:
        claim = claim_next(spool, worker)
        assert spool.finish(claim, record_of(claim, value={"ballast": "y" * 10 * KB}))
    assert sorted(spool.read_record(job_id).id for job_id in accepted) == sorted(accepted)
    assert set(places(spool)) == {"out"}


def test_a_file_size_limit_leaves_everything_as_it_was(
    spool: Spool, make_job: JobMaker, file_limit: Callable[[int], None]
) -> None:
    spool.submit(make_job(id="mine"))
    claim = claim_next(spool, seat(spool))
    file_limit(64 * KB)
    with pytest.raises(OSError, match="too large") as caught:
        spool.submit(make_job(id="other", params={"ballast": "x" * 65 * KB}))
    assert caught.value.errno == errno.EFBIG
    assert str(spool.root) in str(caught.value)  # it says where
    for value in ({"ballast": "x" * 65 * KB}, {"array": np.zeros(ARRAY_FILE_BYTES, "u1")}):
        with pytest.raises(OSError, match="too large"):
            spool.finish(claim, record_of(claim, value=value), reply="json")
        assert places(spool) == {"work": ["mine"], "ids": ["mine"]}
    assert spool.finish(claim, record_of(claim, value={"ballast": "x" * 60 * KB}))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG], ids=errno.errorcode.get)
@pytest.mark.parametrize("transition", ["submit", "release", "retry", "defer", "wake", "finish", "fail"])
@pytest.mark.invariant(16)
def test_an_error_at_any_operation_loses_nothing(root: Path, make_job: JobMaker, code: int, transition: str) -> None:
    """The job has one state afterwards, nothing half-written is visible, and the same again goes through."""
    spool = Spool(root, durable=True)
    job = make_job(id="mine")
    worker = seat(spool)
    if transition != "submit":
        spool.submit(job)
    if transition == "wake":
        spool.retry(claim_next(spool, worker), _failure(1), delay_s=0.0001)
        time.sleep(0.001)
    value = {"array": np.ones(ARRAY_FILE_BYTES, "u1")}

    def act() -> None:
        held = spool.claims(worker)
        if transition == "submit":
            spool.submit(job)
        elif transition == "wake":
            spool.wake_deferred()
        elif not held:
            return  # what was asked for had been done before the error
        elif transition == "release":
            spool.release(held[0])
        elif transition in ("retry", "defer"):
            spool.retry(held[0], _failure(held[0].name.attempts), delay_s=60.0 if transition == "defer" else 0.0)
        else:
            state = JobState.COMPLETED if transition == "finish" else JobState.FAILED
            spool.finish(held[0], record_of(held[0], state, value), reply="json")

    for number in range(1, 60):
        if transition not in ("submit", "wake") and not spool.claims(worker) and places(spool).get("ready"):
            claim_next(spool, worker)
        failing(number, lambda path: OSError(code, os.strerror(code), path))
        try:
            act()
            return
        except (OSError, SpoolFull):
            pass
        finally:
            fsops.hook = None
        found = places(spool)
        states = [place for place in ("ready", "work", "deferred") if place in found]
        assert len(states) <= 1
        if "out" in found:
            assert spool.read_record("mine").id == "mine"
        elif transition != "submit":
            assert len(states) == 1, (number, found)
        assert "tmp" not in found, number
        act()
        assert places(spool) != {}
        if transition in ("finish", "fail"):
            assert spool.read_record("mine").value["array"].sum() == ARRAY_FILE_BYTES
            for path in spool.root.glob("out/mine*"):
                path.unlink() if path.is_file() else fsops.remove_tree(str(path))
            for path in spool.root.glob("dead/*"):
                path.unlink()
            spool.ids.free("mine")
            spool.submit(job)
        elif transition == "submit":
            assert places(spool) == {"ready": ["mine"], "ids": ["mine"]}
            os.unlink(f"{spool.ready_dir('echo')}/{spool.list_ready('echo')[0]}")
            spool.ids.free("mine")
        elif transition == "defer":
            (entry,) = (spool.root / "deferred").iterdir()
            entry.rename(f"{spool.ready_dir('echo')}/{entry.name.split('.', 2)[2]}")
        elif transition == "wake":
            spool.retry(claim_next(spool, worker), _failure(1), delay_s=0.0001)
            time.sleep(0.001)
    pytest.fail("it never came through")


# ---- killed at any operation


@pytest.mark.parametrize("outcome", [JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED])
def test_killed_anywhere_in_its_life_a_job_has_one_state(
    root: Path, spool: Spool, config: Config, make_job: JobMaker, outcome: JobState
) -> None:
    """submit, claim, defer, wake, claim, finish in a process that ends at operation n, for every n (the way to the
    other outcomes is the same up to finish, and begins there); then recovery, by a process that ends at operation m as
    well; then what is left is one job that runs, or one record."""
    whole = outcome is JobState.COMPLETED
    acknowledged = root.parent / "acknowledged"

    def life() -> None:
        mine = Spool(root, durable=True)
        job = make_job(id="mine")
        if whole:
            dying(number)
        mine.submit(job)
        acknowledged.touch()
        worker = seat(mine, 1)
        mine.retry(claim_next(mine, worker), _failure(1), delay_s=0.0001)
        time.sleep(0.0005)
        mine.wake_deferred()
        claim = claim_next(mine, worker)
        if not whole:
            dying(number)
        mine.finish(claim, record_of(claim, outcome, {"text": "x" * 1000}), reply="json")

    def recover() -> None:
        theirs = Spool(root, durable=True)
        if again:
            dying(again)
        Recovery(theirs, config, random.Random(0)).recover_abandoned(set())

    for number in range(1, 100):
        ended = in_child(life)
        assert ended in (0, 99)
        again = number % 5 + 1  # a supervisor that is killed in the middle of it, and one that is not
        assert in_child(recover) in (0, 99)
        again = 0
        assert in_child(recover) == 0
        sweep_tmp(spool)
        sweep_remains(spool)
        found = places(spool)
        states = [place for place in ("ready", "deferred", "out") if place in found]
        if acknowledged.exists():
            assert len(states) == 1, (number, found)
        assert "work" not in found, number
        assert "tmp" not in found, number
        assert ("dead" in found) == ("out" in found and outcome is JobState.FAILED), (number, found)
        if "out" in found:
            assert spool.read_record("mine").state is outcome
            assert len(os.listdir(spool.root / "run" / "attempts")) == 0
        else:
            attempts = {name.attempts for name in map(parse_job, spool.list_ready("echo")) if name}
            assert attempts <= {0, 1, 2}
        for folder in ("ready/echo", "deferred", "out", "dead", "run/attempts"):
            for path in (root / folder).glob("*"):
                path.unlink()
        spool.ids.free("mine")
        acknowledged.unlink(missing_ok=True)
        if ended == 0:
            assert number > (15 if whole else 5)
            return
    pytest.fail("it never came through")


def test_killed_anywhere_in_a_requeue_the_job_is_not_lost(
    root: Path, spool: Spool, config: Config, make_job: JobMaker
) -> None:
    for number in range(1, 20):
        spool.submit(make_job(id="mine"))
        claim = claim_next(spool, seat(spool))
        spool.finish(claim, record_of(claim, JobState.FAILED))
        (entry,) = os.listdir(spool.root / "dead")

        def requeue(entry: str = entry, number: int = number, claim: Any = claim) -> None:
            theirs = Spool(root, durable=True)
            dying(number)
            theirs.requeue(entry, "echo", claim.name)

        ended = in_child(requeue)
        Recovery(spool, config, random.Random(0)).repair_requeues()
        sweep_remains(spool)
        found = places(spool)
        assert found in (
            {"ready": ["mine"], "ids": ["mine"]},
            {"out": ["mine"], "dead": ["mine"], "ids": ["mine"]},
        ), number
        assert not list((root / "dead").glob("*.record"))
        for path in [*(root / "ready/echo").iterdir(), *(root / "out").iterdir(), *(root / "dead").iterdir()]:
            path.unlink()
        spool.ids.free("mine")
        if ended == 0:
            assert "ready" in found
            return
    pytest.fail("it never came through")
