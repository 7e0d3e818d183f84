"""What callers use day by day, on one served spool: progress, batches, order, map, futures, ids, cache, retention."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pool.errors import JobConflict, JobFailed, JobRefused, UnknownJob
from pool.job import JobState
from pool.spool.store import Spool
from pool.supervise.retention import Retention, purge
from scenarios.world import ROOT, World, history, kill, wait_until

BATCHER = '''
import time
from inference.fake import Fake, _misbehave


class Batcher(Fake):
    """Runs together what came together; one that is told to misbehave takes the whole batch with it."""

    def run_batch(self, batch, contexts):
        for params in batch:
            if params.do == "input":
                _misbehave("input", params)
            if params.do == "kill":
                time.sleep(0.1)
                _misbehave("kill", params)
        results = []
        for params, context in zip(batch, contexts):
            context.progress("inference", 50.0, f"{len(batch)} at once")
            if params.do == "raise":
                results.append(ValueError("this one cannot be done"))
            else:
                results.append({"value": params.value, "batch": len(batch), "attempt": context.attempt})
        return results
'''


@pytest.fixture(scope="module")
def shared(make_shared: Callable[[str], World]) -> World:
    """Engines: fake on two slots, single on one, cached, deleting, batch."""
    world = make_shared("features")
    (world.folder / "batcher.py").write_text(BATCHER)
    media = world.folder / "media"
    media.mkdir()
    (world.folder / "witness").mkdir()
    one: dict[str, Any] = {"max_concurrent_tasks": 1, "retry_times": 1}
    world.configure(
        {
            "fake": {},
            "single": {**one, "options": {"witness": str(world.folder / "witness")}},
            "cached": {**one, "cache_enabled": True},
            "deleting": {**one, "delete_after_transcription": True},
            "batch": {
                **one,
                "engine": "batcher:Batcher",
                "pythonpath": [str(world.folder)],
                "max_batch": 8,
                "batch_wait_ms": 150,
                "retry_times": 0,
            },
        }
    )
    world.serve(ready=6)
    return world


# ---- while it runs


def test_progress_and_partials_arrive_while_it_runs(shared: World) -> None:
    pool = shared.pool()
    future = pool.submit("fake", do="partials", seconds=0.3)
    arrived = [(part["number"], future.done()) for part in future.partials()]
    assert [number for number, _ in arrived] == [0, 1, 2, 3, 4]
    assert not arrived[0][1]
    assert not arrived[2][1], "in the middle of the job"
    other = pool.submit("fake", do="partials", seconds=0.25)
    words = list(other.progress())
    percents = [word.percent for word in words if word.status == "inference"]
    assert percents == sorted(percents)
    assert len(set(percents)) >= 3
    assert (words[-1].status, words[-1].percent) == ("completed", 100.0)
    assert any(word.message.startswith("part ") for word in words)


def test_partials_begin_anew_with_the_next_attempt(shared: World) -> None:
    pool = shared.pool()
    future = pool.submit("fake", do="partials", seconds=0.2)
    stream = future.partials()
    assert next(stream)["number"] == 0
    _, pid = shared.worker_of(future.id)
    kill(pid)
    rest = [part["number"] for part in stream]
    assert rest[-5:] == [0, 1, 2, 3, 4]
    assert future.record is not None
    assert future.record.attempt == 2


def test_queued_job_says_how_many_are_ahead(shared: World) -> None:
    pool = shared.pool()
    first = pool.submit("single", do="sleep", seconds=60)
    shared.worker_of(first.id)
    others = [pool.submit("single", value=n) for n in range(3)]
    assert others[2].status().status == "queued"
    assert "2 ahead" in others[2].status().message
    assert not others[2].running()
    assert first.running()
    first.cancel()
    assert [other.result(30)["value"] for other in others] == [0, 1, 2]


# ---- batches


def test_what_comes_together_runs_together(shared: World) -> None:
    """One call of the engine for up to max_batch jobs; each has its own record."""
    pool = shared.pool()
    blocker = pool.submit("batch", value="first")
    futures = pool.submit_many("batch", [{"value": n} for n in range(20)])
    blocker.result(30)
    results = [future.result(30) for future in futures]
    assert [result["value"] for result in results] == list(range(20))
    assert max(result["batch"] for result in results) == 8
    assert len({future.record.worker for future in futures if future.record}) == 1


def test_one_that_fails_in_a_batch_fails_alone(shared: World) -> None:
    """An exception in its place, a refused one before the call: the others are not touched."""
    pool = shared.pool()
    calls: list[dict[str, Any]] = [{"value": n} for n in range(6)]
    calls[2] = {"do": "raise"}
    calls[4] = {"audio": "/no/such/file.wav"}
    futures = pool.submit_many("batch", calls)
    for number in (0, 1, 3, 5):
        result = futures[number].result(30)
        assert (result["value"], result["attempt"]) == (number, 1)
    with pytest.raises(JobFailed, match="no such file"):
        futures[4].result(30)
    with pytest.raises(JobFailed):
        futures[2].result(30)


def test_poison_in_a_batch(shared: World) -> None:
    """One that makes the whole call fail, one that kills the process: each ends alone, the others complete, although
    no retries are configured: they were not to blame."""
    pool = shared.pool()
    for poison, kind, count in ((({"do": "input"}), "input", 1), (({"do": "kill"}), "infrastructure", 2)):
        calls: list[dict[str, Any]] = [{"value": n} for n in range(5)]
        calls.insert(2, poison)
        futures = pool.submit_many("batch", calls)
        bad = futures.pop(2)
        assert [future.result(60)["value"] for future in futures] == list(range(5))
        with pytest.raises(JobFailed) as caught:
            bad.result(60)
        assert caught.value.failure.kind == kind
        assert len(caught.value.failure.attempts) == count


# ---- order, many, futures


def test_priority_order(shared: World) -> None:
    pool = shared.pool()
    first = pool.submit("single", do="sleep", seconds=60)
    shared.worker_of(first.id)
    wanted = [0, -100, 100, 5, -5, 0]
    futures = {pool.submit("single", value=n, priority=p).id: p for n, p in enumerate(wanted)}
    first.cancel()
    for job_id in futures:
        shared.record(job_id)
    starts = [job for _, _, what, job, _, _ in history(shared.folder / "witness") if what == "start"]
    order = [job for job in starts if job in futures]
    assert [futures[job_id] for job_id in order] == sorted(wanted, reverse=True)
    assert [job_id for job_id in order if futures[job_id] == 0] == [i for i, p in futures.items() if p == 0], "then age"


def test_map(shared: World) -> None:
    pool = shared.pool()
    values = [result["value"] for result in pool.map("fake", ({"value": n} for n in range(500)), chunksize=16)]
    assert values == list(range(500))
    assert list(pool.map("fake", [])) == []
    single = pool.map("fake", [{"value": n} for n in range(5)], timeout=60)
    assert [result["value"] for result in single] == list(range(5))
    with pytest.raises(JobRefused, match=r"calls\[1\]\.valu"):
        pool.map("fake", [{"value": 1}, {"valu": 2}])
    with pytest.raises(JobRefused, match="chunksize"):
        pool.map("fake", [], chunksize=0)


def test_map_with_items_that_fail(shared: World) -> None:
    """Those before it are yielded; the failing one raises when its turn comes; its neighbours in the chunk ran."""
    pool = shared.pool()
    calls: list[dict[str, Any]] = [{"value": n} for n in range(10)]
    calls[6] = {"do": "raise", "value": "number six"}
    results = pool.map("fake", calls, chunksize=4)
    assert [next(results)["value"] for _ in range(6)] == list(range(6))
    with pytest.raises(JobFailed, match="number six") as caught:
        next(results)
    assert "RuntimeError" in caught.value.failure.traceback
    with pytest.raises(TimeoutError):
        list(pool.map("fake", [{"do": "sleep", "seconds": 1.5}], timeout=0.2))


def test_submit_many(shared: World) -> None:
    pool = shared.pool()
    futures = pool.submit_many("fake", [{"value": n} for n in range(300)], priority=3, consume=True)
    assert [future.result(60)["value"] for future in futures] == list(range(300))
    wait_until(lambda: not any((shared.spool / "out" / f"{f.id}.msgpack").exists() for f in futures), "consumed")


def test_futures_work_with_the_standard_library(shared: World) -> None:
    pool = shared.pool()
    futures = [pool.submit("fake", do="sleep", seconds=s, value=s) for s in (0.6, 0.05, 0.3)]
    assert {f.result()["value"] for f in concurrent.futures.as_completed(futures, 30)} == {0.6, 0.05, 0.3}
    done, rest = concurrent.futures.wait([pool.submit("fake", value=1) for _ in range(3)], 30)
    assert (len(done), len(rest)) == (3, 0)
    called: list[Any] = []
    one = pool.submit("fake", value="called")
    one.add_done_callback(lambda f: called.append(f.result()["value"]))
    wait_until(lambda: called == ["called"])

    async def several() -> list[Any]:
        waiting = [asyncio.wrap_future(pool.submit("fake", value=n)) for n in range(4)]
        bad = asyncio.wrap_future(pool.submit("fake", do="input"))
        results = await asyncio.gather(*waiting)
        with pytest.raises(JobFailed, match="cannot be used"):
            await bad
        return [result["value"] for result in results]

    assert asyncio.run(several()) == [0, 1, 2, 3]


def test_remote_traceback_is_a_note(shared: World) -> None:
    error = shared.pool().submit("fake", do="raise", value="remote", retry_times=0).exception(30)
    assert isinstance(error, JobFailed)
    if sys.version_info >= (3, 11):  # notes came with it
        assert any('raise RuntimeError(params.value or "")' in note for note in error.__notes__)


# ---- ids


ATTACH = """
import sys
from pool import FilePool
pool = FilePool(sys.argv[1], start=False)
print(pool.attach(sys.argv[2]).result(60)["value"])
pool.close()
"""


def test_attach_from_a_new_process(shared: World) -> None:
    """While it runs, and when it is long over."""
    pool = shared.pool()
    future = pool.submit("fake", do="sleep", seconds=1, value="attached")
    argv = [sys.executable, "-c", ATTACH, str(shared.config), future.id]
    for _ in range(2):
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.returncode) == ("attached\n", 0), done.stderr
    assert future.result(30)["value"] == "attached"
    with pytest.raises(UnknownJob, match="no-such-job"):
        pool.attach("no-such-job")


def test_same_id_is_the_same_job(shared: World) -> None:
    pool, other = shared.pool(), shared.pool()
    first = pool.submit("fake", id="mine-1", do="sleep", seconds=0.4, value=[1, {"a": 2}])
    again = other.submit("fake", id="mine-1", value=[1, {"a": 2}], seconds=0.4, do="sleep")
    with pytest.raises(JobConflict, match="mine-1"):
        other.submit("fake", id="mine-1", value="something else")
    assert first.result(30) == again.result(30)
    late = other.submit("fake", id="mine-1", do="sleep", seconds=0.4, value=[1, {"a": 2}])
    assert late.result(30) == first.result()
    with pytest.raises(JobConflict):
        other.submit("fake", id="mine-1", value="something else")
    assert shared.record("mine-1").value["run"] == first.result()["run"]


def test_consumed_id_is_free_again(shared: World) -> None:
    """At once, and again and again: no job is lost between a record that goes and the next job of that id."""
    pool = shared.pool()
    for number in range(100):
        assert pool.submit("fake", id="once", value=number, consume=True).result(30)["value"] == number
    assert shared.state("once") is None


def test_dead_job_is_retried(shared: World) -> None:
    """After its cause is mended: with all its attempts, under the same id."""
    pool = shared.pool()
    audio = shared.folder / "media" / "late.wav"
    future = pool.submit("fake", id="needs-file", audio=str(audio), value="ok")
    with pytest.raises(JobFailed, match="no such file"):
        future.result(30)
    assert pool.state("needs-file") is JobState.FAILED
    audio.write_bytes(b"RIFF")
    again = pool.retry("needs-file")
    assert again.result(30)["value"] == "ok"
    assert again.record is not None
    assert (again.record.attempt, again.record.attempts) == (1, ())
    assert shared.state("needs-file") is JobState.COMPLETED
    assert not [name for name in shared.names("dead") if "needs-file" in name]
    with pytest.raises(UnknownJob):
        pool.retry("needs-file")


# ---- results and files


def test_result_cache(shared: World) -> None:
    """Same content, same parameters: from the cache, output included; changed content: run again."""
    pool = shared.pool()
    audio, copy = shared.folder / "media" / "a.wav", shared.folder / "media" / "b.wav"
    outputs = [shared.folder / "media" / f"out{n}.bin" for n in range(5)]
    audio.write_bytes(b"one")

    def run(source: Path, output: Path, **more: Any) -> tuple[bool, Any]:
        future = pool.submit("cached", do="write", audio=str(source), output=str(output), **more)
        value = future.result(30)
        assert future.record is not None
        assert value["output"] == str(output)
        assert output.read_bytes() == b"x" * 11
        (file,) = future.record.files
        assert (file["path"], file["size"]) == (str(output), 11)
        return future.record.cached, value["run"]

    cached, first = run(audio, outputs[0])
    assert not cached
    wait_until(
        lambda: (
            (shared.spool / "cache" / "results").is_dir() and any((shared.spool / "cache/results").glob("*.msgpack"))
        )
    )
    assert run(audio, outputs[1]) == (True, first)
    copy.write_bytes(b"one")
    assert run(copy, outputs[2]) == (True, first), "a copy is the same content"
    audio.write_bytes(b"two")
    assert run(audio, outputs[3]) == (False, first + 1)
    assert run(audio, outputs[4], mb=0, value="other parameters")[0] is False


def test_input_is_deleted_after_success_only(shared: World) -> None:
    pool = shared.pool()
    audio = shared.folder / "media" / "delete.wav"
    audio.write_bytes(b"x")
    with pytest.raises(JobFailed):
        pool.submit("deleting", audio=str(audio), do="raise", retry_times=0).result(30)
    assert audio.exists()
    assert pool.submit("deleting", audio=str(audio)).result(30)["attempt"] == 1
    wait_until(lambda: not audio.exists(), "the input is deleted")


def test_output_without_a_path_and_large_arrays(shared: World) -> None:
    pool = shared.pool()
    future = pool.submit("fake", do="write", mb=2)
    assert future.result(30)["output"] == "written.bin"
    assert future.record is not None
    (file,) = future.record.files
    path = shared.spool / "out" / future.id / "written.bin"
    assert (Path(file["path"]), file["size"]) == (path, 2 << 20)
    assert path.stat().st_size == 2 << 20


def test_killed_in_the_middle_of_an_output(shared: World, tmp_path: Path) -> None:
    """Neither the file nor a .part of it is left, and an older file of that name is what it was."""
    pool = shared.pool()
    (tmp_path / "old.bin").write_bytes(b"old")
    future = pool.submit("fake", do="write", output=str(tmp_path / "old.bin"), mb=400)
    _, pid = shared.worker_of(future.id)
    wait_until(lambda: [p for p in tmp_path.glob(".*part*") if p.stat().st_size], "a half-written file")
    kill(pid)
    future.cancel()
    with pytest.raises((concurrent.futures.CancelledError, JobFailed)):
        future.result(60)
    assert [path.name for path in tmp_path.iterdir()] == ["old.bin"]
    assert (tmp_path / "old.bin").read_bytes() == b"old"


def test_output_into_a_folder_that_is_not_there(shared: World) -> None:
    error = shared.pool().submit("fake", do="write", output="/no/such/folder/x.bin").exception(30)
    assert isinstance(error, JobFailed)
    assert (error.failure.kind, error.failure.attempt) == ("input", 1)
    assert "does not exist" in error.failure.message


# ---- limits of a job


def test_timeout_of_one_job(shared: World) -> None:
    pool = shared.pool()
    error = pool.submit("single", do="sleep", seconds=30, timeout_s=0.5, retry_times=0).exception(30)
    assert isinstance(error, JobFailed)
    assert error.failure.kind == "timeout"
    assert "0.5 s" in error.failure.message
    assert pool.submit("single", do="sleep", seconds=1.2, timeout_s=20).result(30)["attempt"] == 1


def test_media_roots(world: World) -> None:
    """Jobs may read and write below the roots only; a link out of them is no way out."""
    inside, outside = world.folder / "inside", world.folder / "outside"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.wav").write_bytes(b"x")
    (inside / "link.wav").symlink_to(outside / "a.wav")
    world.configure({"fake": {"max_concurrent_tasks": 1}}, media_roots=[str(inside)]).serve(ready=1)
    pool = world.pool()
    assert pool.submit("fake", audio=str(inside / "a.wav")).result(30)["attempt"] == 1
    for bad in (outside / "a.wav", inside / "link.wav", inside / ".." / "outside" / "a.wav"):
        with pytest.raises(JobFailed, match="outside the allowed media folders"):
            pool.submit("fake", audio=str(bad)).result(30)
    with pytest.raises(JobFailed, match="outside the allowed"):
        pool.submit("fake", do="write", output=str(outside / "new.bin")).result(30)
    with pytest.raises(JobFailed, match="outside the allowed"):
        list(pool.map("fake", [{"audio": str(outside / "a.wav")}]))
    assert not (outside / "new.bin").exists()
    (world.spool / "in" / "drop.json").write_text(json.dumps({"engine": "fake", "audio": str(outside / "a.wav")}))
    assert world.record("drop").state is JobState.FAILED


# ---- retention


def test_retention_and_purge(shared: World) -> None:
    """purge removes what is over, with its files; retention does the same by itself when time has passed."""
    pool = shared.pool()
    done = pool.submit("fake", id="purge-done", do="write")
    bad = pool.submit("fake", id="purge-bad", do="input")
    done.result(30)
    assert bad.exception(30) is not None
    running = pool.submit("fake", do="sleep", seconds=2)
    shared.worker_of(running.id)
    spool = Spool(shared.spool)
    assert purge(spool, older_than_s=3600) == 0
    assert purge(spool, states={JobState.FAILED}) >= 1
    assert shared.state("purge-bad") is None
    assert not [name for name in shared.names("dead") if "purge-bad" in name]
    assert shared.state("purge-done") is JobState.COMPLETED
    assert purge(spool) >= 1
    assert shared.state("purge-done") is None
    assert not (shared.spool / "out" / "purge-done").exists()
    assert running.result(30)["attempt"] == 1, "what runs is not touched"
    assert pool.submit("fake", id="purge-done", value="again").result(30)["value"] == "again"


def test_records_expire(world: World) -> None:
    world.configure({"fake": {"max_concurrent_tasks": 1}}, retention_hours=0).serve(ready=1)
    pool = world.pool()
    future = pool.submit("fake", id="short-lived", do="write")
    future.result(30)
    from pool.config.settings import load_config

    spool = Spool(world.spool)
    time.sleep(0.05)
    Retention(spool, load_config(world.config), turn_s=math.inf).sweep()
    assert world.state("short-lived") is None
    assert [name for name in world.names("out") if "short-lived" in name] == []
    assert world.names("run/ids") == []
    assert pool.submit("fake", value=1).result(30)["attempt"] == 1
