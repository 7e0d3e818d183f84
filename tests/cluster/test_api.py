"""One suite for both: a pool of this machine, and a cluster of two nodes behind an address. What holds for a FilePool
holds for it wherever its jobs run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, as_completed, wait
from pathlib import Path
from typing import Any

import pytest
from scenarios.world import World, wait_until

from cluster.machines import cluster
from cluster.rig import Servers
from pool import AsyncFilePool, FilePool, JobFailed, JobRefused, UnknownEngine, UnknownJob
from pool.errors import JobConflict
from pool.job import JobState

LONG_S = 60.0
ENGINES: dict[str, Any] = {"fake": {"max_concurrent_tasks": 2, "retry_times": 1}}


@pytest.fixture(scope="module", params=["local", "cluster"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """config.json of a pool that serves."""
    folder = tmp_path_factory.mktemp("api")
    if request.param == "local":
        world = World(folder).configure(ENGINES)
        try:
            world.serve(ready=2)
            yield world.config
        finally:
            world.close()
        return
    with Servers(folder / "nats") as servers, cluster(folder / "machines", servers.url) as joined:
        joined.node("one", ENGINES)
        joined.node("two", ENGINES)
        with joined.pool():  # one client keeps the port
            joined.wait_nodes("one", "two")
            yield joined.branch()


@pytest.fixture
def pool(config: Path) -> Iterator[FilePool]:
    with FilePool(config) as pool:
        yield pool


def test_a_result(pool: FilePool) -> None:
    future = pool.submit("fake", value={"text": "grüß", "list": [1, 2.5, None, b"bytes"]})
    assert future.result(LONG_S)["value"] == {"text": "grüß", "list": [1, 2.5, None, b"bytes"]}
    assert future.done()
    assert not future.running()
    record = future.record
    assert record is not None
    assert (record.state, record.attempt, record.engine) == (JobState.COMPLETED, 1, "fake")
    assert record.created <= record.started <= record.finished
    assert record.worker.rpartition("/")[2].startswith("fake-")


def test_many(pool: FilePool) -> None:
    futures = pool.submit_many("fake", [{"value": number} for number in range(40)])
    done, pending = wait(futures, LONG_S)
    assert not pending
    assert [future.result()["value"] for future in futures] == list(range(40))
    assert {future.result()["value"] for future in as_completed(futures, LONG_S)} == set(range(40))
    assert len(done) == 40


@pytest.mark.parametrize("chunksize", [1, 7])
def test_map(pool: FilePool, chunksize: int) -> None:
    calls = [{"value": number} for number in range(30)]
    found = list(pool.map("fake", calls, chunksize=chunksize, timeout=LONG_S))
    assert [one["value"] for one in found] == list(range(30))


def test_a_call_of_a_map_that_fails(pool: FilePool) -> None:
    mapped = pool.map("fake", [{"value": 1}, {"do": "input"}, {"value": 3}], chunksize=3, timeout=LONG_S)
    assert next(mapped)["value"] == 1
    with pytest.raises(JobFailed, match="cannot be used"):
        next(mapped)
    assert next(mapped)["value"] == 3


def test_a_failure_has_its_reasons(pool: FilePool) -> None:
    future = pool.submit("fake", do="raise", value="oops", retry_times=2, retry_on=["engine"])
    error = future.exception(LONG_S)
    assert isinstance(error, JobFailed)
    assert error.failure.kind == "engine"
    assert "oops" in error.failure.message
    assert "RuntimeError" in error.failure.traceback
    assert [one.attempt for one in error.failure.attempts] == [1, 2, 3]
    assert future.record is not None
    assert [one.attempt for one in future.record.attempts] == [1, 2]


def test_a_killed_worker(pool: FilePool) -> None:
    future = pool.submit("fake", do="kill", until_attempt=1, value="after all")
    assert future.result(LONG_S)["value"] == "after all"
    assert future.record is not None
    assert future.record.attempt == 2
    assert "SIGKILL" in future.record.attempts[0].describe()


def test_what_is_wrong_is_refused_with_its_key(pool: FilePool) -> None:
    with pytest.raises(UnknownEngine, match="fake"):
        pool.submit("fakir")
    with pytest.raises(JobRefused, match="did you mean 'value'") as caught:
        pool.submit("fake", valu=1)
    assert caught.value.path == "params.valu"
    with pytest.raises(JobRefused, match="priority"):
        pool.submit("fake", priority=1.5)
    with pytest.raises(UnknownJob):
        pool.attach("never-submitted")
    with pytest.raises(UnknownJob):
        pool.cancel("never-submitted")


def test_an_id_of_ones_own(pool: FilePool) -> None:
    first = pool.submit("fake", id="mine-1", value=1)
    assert pool.submit("fake", id="mine-1", value=1).result(LONG_S) == first.result(LONG_S)
    with pytest.raises(JobConflict):
        pool.submit("fake", id="mine-1", value=2)


def test_attach(pool: FilePool, config: Path) -> None:
    future = pool.submit("fake", do="sleep", seconds=0.3, value="later")
    with FilePool(config) as other:
        assert other.attach(future.id).result(LONG_S)["value"] == "later"
        assert other.state(future.id) is JobState.COMPLETED


def test_progress(pool: FilePool) -> None:
    future = pool.submit("fake", do="sleep", seconds=1.5)
    words = list(future.progress())
    assert any(word.status == "inference" and 0 < word.percent < 100 for word in words)
    assert (words[-1].status, words[-1].percent) == ("completed", 100.0)


def test_partials(pool: FilePool) -> None:
    future = pool.submit("fake", do="partials", seconds=0.2)
    assert list(future.partials()) == [{"number": number} for number in range(5)]


@pytest.mark.parametrize("do", ["sleep", "deaf"])
def test_cancel_of_what_runs(pool: FilePool, do: str) -> None:
    """Also of what does not listen."""
    future = pool.submit("fake", do=do, seconds=600)
    wait_until(future.running, "a worker is at it")
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result(LONG_S)
    assert future.cancelled()
    assert future.record is not None
    assert future.record.failure is not None
    assert pool.state(future.id) is JobState.CANCELLED


def _workers(pool: FilePool) -> int:
    return sum(engine.workers for engine in pool.status().engines if engine.name == "fake")


def test_cancel_of_what_waits(pool: FilePool) -> None:
    blocking = pool.submit_many("fake", [{"do": "sleep", "seconds": 600}] * 16)
    try:
        wait_until(lambda: sum(future.running() for future in blocking) >= _workers(pool), "all workers are busy")
        waiting = pool.submit("fake", value="never", priority=-5, tags=["waits"])
        assert pool.cancel_many(tag="waits") == [waiting.id]
        with pytest.raises(CancelledError):
            waiting.result(LONG_S)
        assert waiting.record is not None
        assert waiting.record.started == 0
    finally:
        pool.cancel_many(blocking)
        wait(blocking, LONG_S)
    assert all(future.cancelled() for future in blocking)


def test_retry(pool: FilePool, tmp_path: Path) -> None:
    """A job that failed runs again under its id, and gets another end."""
    missing = tmp_path / "nowhere" / "file.bin"
    future = pool.submit("fake", do="write", output=str(missing))
    assert isinstance(future.exception(LONG_S), JobFailed)
    missing.parent.mkdir()
    again = pool.retry(future.id)
    assert again.result(LONG_S)["output"] == str(missing)
    assert missing.read_bytes() == b"x" * 11


def test_files(pool: FilePool, tmp_path: Path) -> None:
    """What the caller names lands there; what not, in the job's folder."""
    wanted = tmp_path / "wanted.bin"
    named = pool.submit("fake", do="write", mb=3, output=str(wanted))
    plain = pool.submit("fake", do="write", mb=1)
    assert named.result(LONG_S)["output"] == str(wanted)
    assert wanted.stat().st_size == 3 << 20
    assert list(tmp_path.iterdir()) == [wanted]
    plain.result(LONG_S)
    for future in (named, plain):
        assert future.record is not None
        (file,) = future.record.files
        assert Path(file["path"]).stat().st_size == file["size"]
    assert Path(file["path"]).name == "written.bin"


def test_terms(pool: FilePool) -> None:
    """Priority, tags, note, not_before, expires, timeout."""
    begun = time.monotonic()
    future = pool.submit("fake", value=1, not_before=1.0, tags=["a", "b"], note="für später", priority=3)
    assert pool.state(future.id) in (JobState.DEFERRED, JobState.QUEUED)
    future.result(LONG_S)
    assert time.monotonic() - begun >= 0.9
    (info,) = [one for one in pool.jobs(tag=("a", "b")) if one.id == future.id]
    assert (info.state, info.note, info.engine) == (JobState.COMPLETED, "für später", "fake")
    late = pool.submit("fake", do="sleep", seconds=600, timeout_s=0.5)
    error = late.exception(LONG_S)
    assert isinstance(error, JobFailed)
    assert error.failure.kind == "timeout"


def test_expires(pool: FilePool) -> None:
    blocking = pool.submit_many("fake", [{"do": "sleep", "seconds": 600}] * 16)
    try:
        wait_until(lambda: sum(future.running() for future in blocking) >= _workers(pool), "all workers are busy")
        late = pool.submit("fake", priority=-5, expires=0.5)
        error = late.exception(LONG_S)
    finally:
        pool.cancel_many(blocking)
        wait(blocking, LONG_S)
    assert isinstance(error, JobFailed)
    assert error.failure.kind == "expired"


def test_results_handed_on(pool: FilePool) -> None:
    first = pool.submit("fake", value={"inner": [1, 2]})
    second = pool.submit("fake", value=first["value"]["inner"])
    assert second.result(LONG_S)["value"] == [1, 2]
    bad = pool.submit("fake", do="input")
    third = pool.submit("fake", value=1, depends_on=[bad])
    error = third.exception(LONG_S)
    assert isinstance(error, JobFailed)
    assert error.failure.kind == "dependency"


def test_rerun(pool: FilePool) -> None:
    future = pool.submit("fake", value="first", note="one")
    future.result(LONG_S)
    again = pool.rerun(future.id, value="second")
    assert again.result(LONG_S)["value"] == "second"
    assert again.record is not None
    assert again.record.kept.rerun_of == future.id


def test_jobs_page_by_page(pool: FilePool) -> None:
    futures = pool.submit_many("fake", [{"value": n} for n in range(7)], tags=["paged"])
    wait(futures, LONG_S)
    seen: list[str] = []
    after = ""
    while True:
        page = pool.jobs(tag="paged", limit=3, after=after)
        seen += [info.id for info in page]
        after = page.next
        if not after:
            break
    assert seen == [future.id for future in reversed(futures)]


def test_status(pool: FilePool) -> None:
    wait_until(lambda: pool.status().health.ok, "healthy")
    status = pool.status()
    engine = status.engine("fake")
    assert engine is not None
    assert engine.serving == sum(slot.serving for slot in status.of("fake")) > 0
    assert not pool.prospect("fake").hopeless


def test_sessions(pool: FilePool) -> None:
    with pool.session(tags=["session"], params={"fake": {"value": 5}}) as session:
        futures = [session.submit("fake") for _ in range(3)]
    assert [future.result(0)["value"] for future in futures] == [5, 5, 5]


def test_on_an_event_loop(config: Path) -> None:
    async def main() -> list[Any]:
        async with AsyncFilePool(config) as pool:
            futures = [await pool.submit("fake", value=number) for number in range(5)]
            return [(await future)["value"] for future in futures]

    assert asyncio.run(main()) == list(range(5))


def test_consume(pool: FilePool) -> None:
    future = pool.submit("fake", value=1, consume=True)
    future.result(LONG_S)
    wait_until(lambda: future.id not in {info.id for info in pool.jobs(limit=1000)}, "the record goes")
