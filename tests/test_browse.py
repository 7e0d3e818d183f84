"""Lists of jobs: every job once in a walk, whatever moves meanwhile; filters; cursors; a hundred thousand of them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import JobMaker, claim_next, record_of, seat
from synthetic import fill

from pool.client import browse, index, live, tagged
from pool.client.browse import JobPage
from pool.errors import JobRefused
from pool.format.names import WorkerName, new_id, parse_job
from pool.job import Failure, Job, JobState, heads
from pool.job.heads import Head
from pool.job.kept import Kept
from pool.spool import away, fsops
from pool.spool.lookup import find_dead
from pool.spool.store import Claim, Spool


def page(spool: Spool, *, limit: int = 50, after: str = "", within_s: float | None = None, **wanted: Any) -> JobPage:
    return browse.page(spool, browse.Filter(**wanted), limit=limit, after=after, within_s=within_s)


def walk(spool: Spool, limit: int, **wanted: Any) -> list[str]:
    """Ids of all jobs, page by page."""
    found, after = [], ""
    while True:
        got = page(spool, limit=limit, after=after, **wanted)
        found += [job.id for job in got]
        after = got.next
        if not after:
            return found


# ---- the pure part

KEYS = st.builds(
    heads.key_of, st.integers(0, 5), st.text("abAB0-_", min_size=1, max_size=3).map(lambda text: f"i{text}")
)


@given(st.lists(KEYS, unique=True), st.data())
def test_a_merge_is_the_newest_of_both(keys: list[str], data: st.DataObject) -> None:
    def make(key: str, state: str) -> Head:
        born, job_id, _ = key.split(".")
        return Head(job_id, "echo", state, int(born))

    ended = set(data.draw(st.lists(st.sampled_from(keys), unique=True))) if keys else set()
    waiting = set(data.draw(st.lists(st.sampled_from(keys), unique=True))) if keys else set()
    limit = data.draw(st.integers(1, 12))
    found = browse.merge([make(k, "queued") for k in waiting], [make(k, "completed") for k in ended], limit)
    expected = sorted(ended | waiting, reverse=True)[:limit]
    assert [head.key for head in found] == expected
    assert all((head.state == "completed") == (head.key in ended) for head in found)


@given(KEYS)
def test_a_key_comes_back_from_its_cursor(key: str) -> None:
    cursor = browse.cursor_of(key)
    assert browse.key_of(cursor) == key
    assert cursor.isascii()
    assert "=" not in cursor


@pytest.mark.parametrize("cursor", ["x", "j1.", "j1.!!", "j1.eA", "0" * 500, "j2.MDAwMA", "ü"])
def test_a_wrong_cursor_is_refused(spool: Spool, cursor: str) -> None:
    with pytest.raises(JobRefused, match=r"^after: .*is no cursor"):
        page(spool, after=cursor)


@pytest.mark.parametrize(
    ("wanted", "path"),
    [
        ({"state": "runing"}, "state"),
        ({"engine": "No!"}, "engine"),
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"limit": True}, "limit"),
        ({"since": "soon"}, "since"),
        ({"since": -1}, "since"),
        ({"since": True}, "since"),
        ({"tag": "a b"}, "tag"),
        ({"tag": [1]}, "tag"),
    ],
)
def test_a_wrong_question_is_refused_with_its_key(spool: Spool, wanted: dict[str, Any], path: str) -> None:
    with pytest.raises(JobRefused) as error:
        page(spool, **wanted)
    assert error.value.path == path


# ---- what moves


class Mover:
    """Moves jobs of one spool in every way there is, at random."""

    def __init__(self, spool: Spool, draw: Callable[[int], int]) -> None:
        self.spool, self.draw = spool, draw
        self.workers = [seat(spool, generation) for generation in (1, 2)]

    def step(self) -> None:
        with contextlib.suppress(FileNotFoundError, IndexError, StopIteration):
            (
                self.claim,
                self.release,
                self.defer,
                self.wake,
                self.finish,
                self.fail,
                self.retry,
                self.send,
                self.begin,
                self.come_back,
                self.end,
            )[self.draw(11)]()

    def claim(self) -> None:
        claim_next(self.spool, self.workers[self.draw(2)])

    def _claim(self) -> Any:
        return next(claim for worker in self.workers for claim in self.spool.claims(worker))

    def release(self) -> None:
        self.spool.release(self._claim())

    def defer(self) -> None:
        claim = self._claim()
        self.spool.retry(claim, Failure("engine", "no", "run", claim.name.attempts), delay_s=1e-6)

    def wake(self) -> None:
        self.spool.wake_deferred()

    def finish(self) -> None:
        claim = self._claim()
        self.spool.finish(claim, record_of(claim))

    def fail(self) -> None:
        claim = self._claim()
        self.spool.finish(claim, record_of(claim, JobState.FAILED))

    def retry(self) -> None:
        dead = sorted(os.listdir(self.spool.root / "dead"))
        if not dead:
            return
        self.spool.requeue(*find_dead(self.spool, dead[self.draw(len(dead))].split(".")[3]))

    def send(self) -> None:
        name = parse_job(self.spool.list_ready("echo")[0])
        assert name is not None
        away.send(self.spool, "echo", name)

    def _sent(self) -> Any:
        sent = away.waiting(self.spool)
        return sent[self.draw(len(sent))] if sent else next(iter(()))

    def begin(self) -> None:
        sent = self._sent()
        away.begin(self.spool, sent, sent.name.attempts + 1)

    def come_back(self) -> None:
        away.come_back(self.spool, self._sent())

    def end(self) -> None:
        sent = self._sent()
        claim = Claim(sent.path, sent.name, WorkerName(sent.engine, 0, 1))
        away.finish(self.spool, sent, record_of(claim, (JobState.COMPLETED, JobState.FAILED)[self.draw(2)]))


@contextlib.contextmanager
def moving(monkeypatch: pytest.MonkeyPatch, before: Callable[[], None]) -> Iterator[None]:
    """Call `before` ahead of every directory that a list reads."""
    plain = os.listdir

    class Os:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def listdir(self, path: Any) -> Any:
            before()
            return plain(path)

    with monkeypatch.context() as patch:
        for module in (live, index):
            patch.setattr(module, "os", Os())
        yield


@pytest.mark.parametrize("seed", range(40))
def test_every_job_is_listed_once_while_all_of_them_move(
    seed: int, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few moves within each page, any number between two. (Twice around within one look, a job may be missed.)"""
    chance = Random(seed)
    mover = Mover(spool, chance.randrange)
    ids = set()
    for number in range(6):
        job = Job(f"job{number}", "echo", {}, created=spool.now(), digest=f"d{number}")
        spool.submit(job)
        ids.add(job.id)
    if chance.random() < 0.5:
        page(spool)
    found: list[str] = []
    text, after = ("", "JOB")[seed % 2], ""
    while True:
        for _ in range(chance.randrange(7)):
            mover.step()
        left = 3

        def before() -> None:
            nonlocal left
            if left and chance.random() < 0.5:
                left -= 1
                mover.step()

        with moving(monkeypatch, before):
            got = page(spool, limit=2, after=after, text=text)
        found += [job.id for job in got]
        assert got.trouble == ""
        after = got.next
        if not after:
            break
    assert sorted(found) == sorted(ids)


@contextlib.contextmanager
def around(
    monkeypatch: pytest.MonkeyPatch, name: str, before: Callable[[], Any], after: Callable[[], Any]
) -> Iterator[None]:
    """Act before and after a list reads the directory `name` for the first time."""
    plain, left = os.listdir, [before, after]

    class Os:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def listdir(self, path: Any) -> Any:
            here = str(path).endswith(name) and left
            if here:
                left.pop(0)()
            found = plain(path)
            if here:
                left.pop(0)()
            return found

    with monkeypatch.context() as patch:
        for module in (live, index):
            patch.setattr(module, "os", Os())
        yield
    assert not left


def nothing() -> None:
    """Nothing moves."""


def test_a_job_given_back_behind_a_long_queue_is_listed(
    spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.submit(make_job())
    claim = claim_next(spool, seat(spool))
    monkeypatch.setattr(live, "_LONG", 0)
    with around(monkeypatch, "ready/echo", nothing, lambda: spool.release(claim)):
        assert [(job.id, job.state) for job in page(spool)] == [(claim.name.id, JobState.QUEUED)]


def test_a_job_claimed_and_given_back_during_one_look_is_listed(
    spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.submit(job := make_job())
    worker = seat(spool)
    back = lambda: spool.release(spool.claims(worker)[0])  # noqa: E731
    with around(monkeypatch, "ready/echo", lambda: claim_next(spool, worker), back):
        assert [(one.id, one.state) for one in page(spool)] == [(job.id, JobState.QUEUED)]


def test_a_retried_job_is_found_by_its_new_end(spool: Spool, make_job: JobMaker) -> None:
    spool.submit(make_job(tags=("mine",)))
    worker = seat(spool)
    claim = claim_next(spool, worker)
    spool.finish(claim, record_of(claim, JobState.FAILED))
    assert [job.id for job in page(spool, state="failed")] == [claim.name.id]
    spool.requeue(*find_dead(spool, claim.name.id))
    claim = claim_next(spool, worker)
    spool.finish(claim, record_of(claim))
    assert [job.id for job in page(spool, state="completed")] == [claim.name.id]
    assert len(page(spool, state="failed")) == 0


def test_a_claim_whose_record_is_there_has_ended(spool: Spool, make_job: JobMaker) -> None:
    spool.submit(make_job())
    claim = claim_next(spool, seat(spool))
    spool.publish(record_of(claim), "", False)  # its worker was killed before it could tidy
    assert [(job.id, job.state) for job in page(spool)] == [(claim.name.id, JobState.COMPLETED)]
    assert len(page(spool, state="running")) == 0


def test_a_requeue_that_was_killed_half_way_is_listed(spool: Spool, make_job: JobMaker) -> None:
    spool.submit(make_job())
    claim = claim_next(spool, seat(spool))
    spool.finish(claim, record_of(claim, JobState.FAILED))
    assert [job.state for job in page(spool)] == [JobState.FAILED]
    fsops.hook = lambda operation, path: (_ for _ in ()).throw(KeyboardInterrupt) if "ready" in path else None
    with pytest.raises(KeyboardInterrupt):
        spool.requeue(*find_dead(spool, claim.name.id))
    fsops.hook = None
    assert [(job.id, job.state) for job in page(spool)] == [(claim.name.id, JobState.QUEUED)]


# ---- filters


def test_filters_of_jobs_that_wait_run_and_ended(spool: Spool, make_job: JobMaker) -> None:
    tagged: dict[str, Any] = {"tags": ("red", "big"), "note": "look"}
    jobs = [make_job(**tagged), make_job(), make_job(tags=("red",)), make_job("fake", **tagged)]
    for job in jobs:
        spool.submit(job)
    ids = [job.id for job in jobs]
    assert walk(spool, 1) == ids[::-1]
    assert walk(spool, 2, tag="red") == [ids[3], ids[2], ids[0]]
    worker = seat(spool)
    spool.finish(claim := claim_next(spool, worker), record_of(claim, JobState.FAILED))
    claim_next(spool, worker)
    assert walk(spool, 9, state="failed") == [ids[0]]
    assert walk(spool, 9, state=["running", JobState.FAILED]) == [ids[1], ids[0]]
    assert walk(spool, 9, engine="fake") == [ids[3]]
    assert walk(spool, 9, engine=["fake", "echo"], state="queued", tag=["big", "red"]) == [ids[3]]
    assert walk(spool, 9, since=3600) == walk(spool, 9, since="1h") == walk(spool, 9, since=timedelta(hours=1))
    assert walk(spool, 9, since=0) == []
    assert page(spool, engine="fake").jobs[0].note == "look"


def test_a_text_is_found_wherever_a_list_shows_it(spool: Spool, make_job: JobMaker) -> None:
    jobs = [
        make_job(note="Talk with Ada"),
        make_job(tags=("customer=ADA",)),
        make_job(),
        make_job(note="100% \u00c9t\u00e9"),
    ]
    for job in jobs:
        spool.submit(job)
    ids = [job.id for job in jobs]
    worker = seat(spool)

    def check() -> None:
        assert walk(spool, 1, text="ada") == [ids[1], ids[0]]
        assert walk(spool, 9, text=ids[2][3:]) == [ids[2]]
        assert walk(spool, 9, text="0% \u00c9") == [ids[3]]
        assert walk(spool, 9, text="a_a") == walk(spool, 9, text="'") == []
        assert walk(spool, 9, text="ada", tag="customer=ADA") == [ids[1]]

    check()
    for job, state in zip(jobs, (JobState.FAILED, JobState.COMPLETED), strict=False):
        kept = Kept(tags=job.terms.tags, note=job.terms.note)
        spool.finish(claim := claim_next(spool, worker), record_of(claim, state, kept=kept))
        check()
    assert walk(spool, 9, text="it BROKE") == [ids[0]]


def test_records_of_earlier_versions_and_damaged_ones_are_listed(spool: Spool) -> None:
    from pool.format import codec

    born = spool.now()
    old = {
        "protocol": 1,
        "id": "old",
        "engine": "echo",
        "state": "completed",
        "attempt": 1,
        "created": born,
        "started": born,
        "finished": born,
        "worker": "echo-0.1",
        "cached": False,
        "value": {"a": 1},
    }
    out = Path(spool.record_path("x")).parent
    (out / "old.msgpack").write_bytes(codec.encode(old))
    (out / "torn.msgpack").write_bytes(codec.encode(old)[:30])
    (out / "folder.msgpack").mkdir()
    (out / "link.msgpack").symlink_to("nowhere")
    (out / "other.msgpack").write_bytes(codec.encode(old))
    (out / "ill.msgpack").write_bytes(codec.encode({**old, "id": "ill", "created": -1}))
    (out / "note.txt").write_text("foreign")
    found = page(spool)
    assert found.jobs[0].id == "old"
    assert found.jobs[0].tags == ()
    damaged = {job.id: job for job in found.jobs[1:]}
    assert damaged.keys() == {"torn", "folder", "link", "other", "ill"}
    assert all(job.state is JobState.FAILED and "its record" in job.reason for job in damaged.values())


def test_a_large_value_and_large_parameters_are_not_read(spool: Spool, make_job: JobMaker) -> None:
    spool.submit(make_job(params={"text": "x" * 300_000}, tags=("large",)))
    assert page(spool, tag="large").jobs[0].state is JobState.QUEUED
    claim = claim_next(spool, seat(spool))
    spool.finish(claim, record_of(claim, value={"text": "y" * 300_000}))
    assert page(spool).jobs[0].state is JobState.COMPLETED
    assert os.path.getsize(spool.root / "run" / "jobs.sqlite") < 100_000


def test_an_index_that_cannot_be_written_is_said(spool: Spool) -> None:
    ids = fill(spool, 30)
    fsops.hook = lambda operation, path: (_ for _ in ()).throw(OSError(28, "No space left")) if "tmp" in path else None
    found = page(spool)
    assert [job.id for job in found] == ids[::-1]
    assert "No space left" in found.trouble


def test_a_writer_that_does_not_end_is_not_waited_for_for_ever(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    ids = fill(spool, 30)
    monkeypatch.setattr(index, "_LOCK_S", 0.05)
    with FileLock(f"{spool.root}/run/jobs.lock"):
        found = page(spool)
    assert [job.id for job in found] == ids[::-1]
    assert "cannot be kept" in found.trouble
    assert page(spool).trouble == ""


def test_who_cannot_wait_gets_the_newest_and_is_told_how_many_are_unread(spool: Spool) -> None:
    ids = fill(spool, 1100)
    newest = ids[::-1]
    sizes = []
    while True:
        found = page(spool, limit=200, within_s=0.0)
        sizes.append(found.unread)
        assert [job.id for job in found] == newest[:200]
        assert found.trouble == ""
        if not found.unread:
            break
        assert found.to_map()["unread"] == found.unread
    assert sizes == [600, 100, 0]
    assert walk(spool, 300) == newest
    more = fill(spool, 700)
    assert page(spool, within_s=0.0).unread == 200
    assert walk(spool, 300) == [*more[::-1], *newest]  # who has time reads the rest


def test_who_cannot_wait_does_not_wait_for_another_writer(spool: Spool) -> None:
    from filelock import FileLock

    ids = fill(spool, 1100)
    assert page(spool, within_s=0.0).unread == 600
    with FileLock(f"{spool.root}/run/jobs.lock"):
        found = page(spool, within_s=0.0)
        assert [job.id for job in found] == ids[:-51:-1]
        assert (found.unread, found.trouble) == (600, "")
        assert [job.id for job in page(spool, text=ids[-7][2:], within_s=0.0)] == [ids[-7]]
    assert page(spool).unread == 0
    fill(spool, 1)
    with FileLock(f"{spool.root}/run/jobs.lock"):
        assert page(spool, within_s=0.0).unread == 1


def test_files_of_waiting_jobs_are_read_once_for_a_text(
    spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [make_job(note=f"talk {number}" if number % 2 else "") for number in range(30)]
    for job in jobs:
        spool.submit(job)
    reads: list[str] = []
    plain = heads.read_job
    monkeypatch.setattr(heads, "read_job", lambda path, *rest: (reads.append(path), plain(path, *rest))[1])
    monkeypatch.setattr(tagged, "_BATCH", 20)
    assert page(spool, text="nowhere", within_s=0.0).unread == 10
    assert (page(spool, text="nowhere").unread, len(reads)) == (0, 30)
    assert [job.id for job in page(spool, text="TALK 7")] == [jobs[7].id]
    assert [job.id for job in page(spool, text=jobs[8].id[3:])] == [jobs[8].id]
    assert len(reads) == 32  # those that are shown


def test_a_new_record_under_an_old_name_is_read(spool: Spool, make_job: JobMaker) -> None:
    """Consumed, and submitted again with the same id, between two looks."""
    for value in ("first", "second"):
        spool.submit(make_job(id="mine", params={"value": value}))
        claim = claim_next(spool, seat(spool))
        end = JobState.COMPLETED if value == "first" else JobState.CANCELLED
        spool.finish(claim, record_of(claim, end))
        assert [job.id for job in page(spool, state=end)] == ["mine"]
        if value == "first":
            os.unlink(spool.record_path("mine"))
    assert len(page(spool, state="completed")) == 0


def test_marks_do_not_grow_without_end(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    from pool.spool import reuse

    ids = fill(spool, 5)
    page(spool)
    monkeypatch.setattr(index, "_MARKS_BYTES", 100)
    for _ in range(10):
        reuse.mark(spool.root, ids[0])
    assert [job.id for job in page(spool)] == ids[::-1]
    assert not os.path.exists(reuse.place(spool.root))
    reuse.mark(spool.root, ids[0])
    assert [job.id for job in page(spool)] == ids[::-1]


def test_the_names_in_a_large_queue_are_remembered_while_it_is_still(
    spool: Spool, make_job: JobMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_LARGE", 0)
    monkeypatch.setattr(index, "_STILL_NS", 0)
    monkeypatch.setattr(live, "_LONG", 0)
    jobs = [make_job() for _ in range(3)]
    reads = 0

    class Os:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def listdir(self, path: Any) -> Any:
            nonlocal reads
            reads += str(path).endswith("ready/echo")
            return os.listdir(path)

    monkeypatch.setattr(index, "os", Os())
    for job in jobs:
        spool.submit(job)
    expected = [job.id for job in reversed(jobs)]
    assert [[job.id for job in page(spool)] for _ in range(4)] == [expected] * 4
    assert reads == 2  # noted, then remembered
    os.utime(spool.ready_dir("echo"))  # so that the test needs no pause: a change within one tick of the clock
    spool.submit(more := make_job())
    os.utime(spool.ready_dir("echo"), ns=(1, 1))
    assert [job.id for job in page(spool)] == [more.id, *expected]


@pytest.mark.slow
def test_a_hundred_thousand_records_are_walked(spool: Spool) -> None:
    ids = fill(spool, 100_000)
    assert walk(spool, 1000) == ids[::-1]
    assert walk(spool, 1000, tag="some") == ids[::100][::-1]
    more = fill(spool, 1000, tag_every=1)
    os.unlink(spool.record_path(ids[0]))
    assert walk(spool, 1000, state="failed") == [*more[::10][::-1], *ids[10::10][::-1]]


def test_new_ids_sort_like_their_time() -> None:
    assert heads.key_of(5, new_id(5)) < heads.key_of(6, new_id(6))
