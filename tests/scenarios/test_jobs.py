"""Finding jobs again and running them again with changes: real pools, restarted, killed, and their index hurt."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pool.client.filepool import FilePool
from pool.errors import JobRefused, UnknownJob
from pool.job import JobState
from scenarios.world import ROOT, World, below, kill, wait_until

ENGINE = '''
import numpy
import pydantic
from inference.fake import Fake, FakeParams as Base

class Key(pydantic.BaseModel):
    token: pydantic.SecretStr

class Params(Base):
    model_config = pydantic.ConfigDict(extra="forbid", strict=False, arbitrary_types_allowed=True)
    api_key: pydantic.SecretStr | None = None
    nested: Key | None = None
    marked: str | None = pydantic.Field(None, json_schema_extra={"secret": True})
    picture: list[int] | str | None = None

class Secretive(Fake):
    """Takes secrets."""
    Params = Params

    def check(self, params):
        return Params.model_validate(dict(params))

    def run(self, params, context):
        secret = params.api_key.get_secret_value() if params.api_key else ""
        return {**super().run(params, context), "secret_length": len(secret)}
'''
SECRET = "hunter2-not-to-be-seen"


@pytest.fixture(scope="module")
def shared(make_shared: Callable[[str], World]) -> World:
    """Engines: fake and vault, which takes secrets; one worker each, one attempt."""
    world = make_shared("jobs")
    (world.folder / "vault.py").write_text(ENGINE)
    paths = {"pythonpath": [str(ROOT), str(world.folder)], "max_concurrent_tasks": 1, "retry_times": 0}
    world.configure({"fake": paths, "vault": {**paths, "engine": "vault:Secretive"}})
    world.serve(ready=2)
    return world


def _cli(world: World, *words: str) -> Any:
    """What `python -m pool … --json` says, from a process of its own."""
    argv = [sys.executable, "-m", "pool", *words, "--json", "--config", str(world.config)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def _holds(path: Path, text: str) -> bool:
    """Whether a file of a spool that is at work has a text in it; one that went meanwhile has none."""
    with suppress(OSError):
        return path.is_file() and text.encode() in path.read_bytes()
    return False


def _ids(pool: FilePool, **wanted: Any) -> list[str]:
    return [job.id for job in pool.jobs(**wanted)]


def test_tagged_jobs_are_found_after_a_restart_and_run_again_with_changes(shared: World) -> None:
    pool = shared.pool()
    good = pool.submit("fake", value="a", tags=["nightly", "kunde=ä"], note="the first", priority=3, timeout_s=77)
    bad = pool.submit("fake", do="raise", value="no luck\nat all", tags=["nightly"])
    other = pool.submit("fake", value="c", tags=["daily"])
    good.result(60)
    other.result(60)
    assert bad.exception(60) is not None
    kill(shared.supervisor().pid)  # type: ignore[union-attr]
    for pid in shared.processes():
        kill(pid)
    wait_until(lambda: shared.supervisor() is None and not shared.processes(), "the end of all")
    found = _cli(shared, "jobs", "--tag", "nightly", "--since", "1h")
    assert [job["id"] for job in found["jobs"]] == [bad.id, good.id]
    assert found["next"] == ""
    told = {job["id"]: job for job in found["jobs"]}
    assert told[good.id]["tags"] == ["nightly", "kunde=ä"]
    assert (told[good.id]["note"], told[good.id]["state"]) == ("the first", "completed")
    assert (told[bad.id]["state"], told[bad.id]["kind"]) == ("failed", "engine")
    assert "no luck" in told[bad.id]["reason"]
    assert "\n" not in told[bad.id]["reason"]
    shown = _cli(shared, "jobs", "show", good.id)
    assert shown["params"] == {"value": "a"}
    assert (shown["terms"]["priority"], shown["terms"]["timeout_s"]) == (3, 77.0)
    waits = _cli(shared, "rerun", bad.id, "do=echo", "--priority", "9", "--note", "mended")
    listed = _cli(shared, "jobs", "--state", "queued,deferred,running", "--tag", "nightly")["jobs"]
    assert [(job["id"], job["state"], job["rerun_of"]) for job in listed] == [(waits["id"], "queued", bad.id)]
    shared.serve(ready=2)
    record = shared.record(waits["id"])
    assert record.state is JobState.COMPLETED
    assert record.value["value"] == "no luck\nat all"
    assert (record.kept.rerun_of, record.kept.note, record.kept.tags) == (bad.id, "mended", ("nightly",))
    assert record.kept.terms["priority"] == 9
    assert _ids(pool, tag="nightly") == [waits["id"], bad.id, good.id]
    assert _ids(pool, tag=["nightly", "kunde=ä"]) == [good.id]
    assert _ids(pool, state=[JobState.FAILED], tag="nightly") == [bad.id]


def test_a_secret_is_nowhere_but_in_the_job_file_and_asked_for_again(shared: World) -> None:
    pool = shared.pool()
    first = pool.submit("vault", value="open", api_key=SECRET, nested={"token": SECRET}, marked=SECRET, tags=["vault"])
    assert first.result(60)["secret_length"] == len(SECRET)
    kept = shared.record(first.id).kept
    assert kept.params == {"value": "open"}
    assert kept.left_out == {"api_key": "secret", "nested": "secret", "marked": "secret"}
    dropped = shared.spool / "in" / "dropped.json"
    dropped.with_suffix(".part").write_text(json.dumps({"engine": "vault", "params": {"marked": SECRET}}))
    dropped.with_suffix(".part").rename(dropped)
    shared.record("dropped")
    told = json.dumps([_cli(shared, "jobs"), _cli(shared, "jobs", "show", first.id), pool.origin(first.id).to_map()])
    assert SECRET not in told
    holders = {path for path in below(shared.spool) if _holds(path, SECRET)}
    assert holders == {shared.spool / "run" / "ids" / "dropped"}  # the job file itself, which reserves its id
    with pytest.raises(JobRefused, match=r"params\.api_key: give it again.*nested \(secret\).*marked"):
        pool.rerun(first.id, value="closed")
    again = pool.rerun(first.id, api_key="another", without=["nested", "marked"])
    assert again.result(60)["secret_length"] == len("another")
    failed = pool.submit("vault", do="raise", api_key=SECRET)  # its file in dead/ holds the secret
    assert failed.exception(60) is not None
    with pytest.raises(JobRefused, match="give it again"):
        pool.rerun(failed.id, do="echo")


def test_what_is_too_large_is_left_out_by_name(shared: World) -> None:
    pool = shared.pool()
    job = pool.submit("vault", value="small", picture="x" * 100_000)
    job.result(60)
    kept = shared.record(job.id).kept
    assert kept.params == {"value": "small"}
    assert kept.left_out["picture"].startswith("text of 100")
    with pytest.raises(JobRefused, match="picture"):
        pool.rerun(job.id)
    assert pool.rerun(job.id, picture="y").result(60)["value"] == "small"
    failed = pool.submit("vault", do="raise", picture="x" * 100_000)
    assert failed.exception(60) is not None
    wait_until(lambda: any(failed.id in name for name in shared.names("dead")), "its file in dead/")
    assert pool.rerun(failed.id, do="echo").result(60)  # that is kept whole there


def test_a_map_job_keeps_its_number_of_calls(shared: World) -> None:
    pool = shared.pool()
    list(pool.map("fake", ({"value": n} for n in range(6)), chunksize=3, tags=["mapped"]))
    waiting = pool.submit_many("fake", [{"do": "sleep", "seconds": 30}] * 2, tags=["sleepy"], note="zzz")
    try:
        wait_until(lambda: _ids(pool, state="running", tag="sleepy"), "one that runs")
        running = pool.jobs(state="running", tag="sleepy").jobs[0]
        assert running.took_s is not None
        assert running.note == "zzz"
        assert running.worker.startswith("fake-0.")
        assert set(_ids(pool, tag="sleepy")) == {future.id for future in waiting}
    finally:
        for future in waiting:
            future.cancel()
    assert _ids(pool, tag="mapped") == []  # consumed as they were read: nothing of them stays


def test_a_job_that_is_retried_has_one_row_with_its_new_end(shared: World) -> None:
    pool = shared.pool()
    job = pool.submit("fake", id="turns", do="raise", tags=["turn"])
    assert job.exception(60) is not None
    assert _ids(pool, tag="turn", state="failed") == ["turns"]
    for _ in range(3):
        pool.retry("turns").exception(60)
        page = pool.jobs(tag="turn")
        assert [(one.id, one.state) for one in page] == [("turns", JobState.FAILED)]
    shared.spool.joinpath("out", "turns.msgpack").unlink()  # a foreign hand
    assert _ids(pool, tag="turn") == []


def test_consumed_jobs_are_gone_and_unknown_ones_are_named(shared: World) -> None:
    pool = shared.pool()
    job = pool.submit("fake", value=1, tags=["brief"], consume=True)
    job.result(60)
    wait_until(lambda: not shared.spool.joinpath("out", f"{job.id}.msgpack").exists(), "its record to go")
    assert _ids(pool, tag="brief") == []
    with pytest.raises(UnknownJob):
        pool.rerun(job.id)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "deleted": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b"no database at all" * 1000),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "overwritten": lambda path: path.write_bytes(path.read_bytes()[:5000] + os.urandom(path.stat().st_size - 5000)),
    "directory": lambda path: (path.unlink(), path.mkdir()),
    "older": lambda path: _sql(path, "update meta set value = 0 where name = 'version'"),
    "another boot": lambda path: _sql(path, "update meta set value = 'x' where name = 'boot'"),
    "another spool": lambda path: _sql(path, "update meta set value = 'x' where name = 'spool'"),
    "bad names": lambda path: _sql(path, "update meta set value = 5 where name = 'names'"),
    "other tables": lambda path: _sql(path, "drop table jobs"),
    "bad rows": lambda path: _sql(path, "update jobs set created = 'x', state = 'odd'"),
    "no text": lambda path: _sql(path, "update jobs set note = cast(x'ff00ff' as text)"),
}


def _sql(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as db:
        db.execute(statement)
    db.close()


@pytest.mark.parametrize("damage", sorted(DAMAGES))
def test_a_damaged_index_is_made_anew(shared: World, damage: str) -> None:
    pool = shared.pool()
    pool.submit("fake", value=1, tags=["kept"]).result(60)
    before = [job.id for job in pool.jobs(tag="kept")]
    DAMAGES[damage](shared.spool / "run" / "jobs.sqlite")
    page = pool.jobs(tag="kept")
    assert [job.id for job in page] == before
    if damage == "directory":  # not ours to remove: it is said, and the answer is right all the same
        assert "no regular file" in page.trouble or "directory" in page.trouble
        (shared.spool / "run" / "jobs.sqlite").rmdir()
    else:
        assert page.trouble == ""
    assert [job.id for job in pool.jobs(tag="kept")] == before
    assert pool.jobs(tag="kept").trouble == ""


def test_threads_and_a_forked_child_ask_at_once(shared: World) -> None:
    from concurrent.futures import ThreadPoolExecutor

    pool = shared.pool()
    futures = [pool.submit("fake", value=n, tags=["many"]) for n in range(20)]
    for future in futures:
        future.result(60)
    expected = [future.id for future in reversed(futures)]
    (shared.spool / "run" / "jobs.sqlite").unlink(missing_ok=True)
    with ThreadPoolExecutor(8) as threads:
        pages = list(threads.map(lambda _: _ids(pool, tag="many"), range(16)))
    assert pages == [expected] * 16
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(_ids(pool, tag="many")).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        assert json.loads(stream.read()) == expected
    os.waitpid(pid, 0)


BUILDER = """
import os, signal, sys
from pool.client import index; from pool.job import heads
from pool.spool.store import Spool
from pool.client.browse import page
count = 0
plain = heads.read_record
def read(path, job_id):
    global count
    count += 1
    if count == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain(path, job_id)
heads.read_record = read
index._BATCH = 100
page(Spool(sys.argv[1]))
"""


@pytest.mark.parametrize("number", [1, 150, 399])
def test_a_writer_killed_in_the_middle_of_a_build(tmp_path: Path, child_env: dict[str, str], number: int) -> None:
    from synthetic import fill

    from pool.spool.store import Spool

    spool = Spool.create(tmp_path / "spool", durable=False)
    ids = fill(spool, 400)
    argv = [sys.executable, "-c", BUILDER.format(number=number), str(spool.root)]
    assert subprocess.run(argv, env=child_env, timeout=60).returncode == -signal.SIGKILL
    from pool.client import browse

    found = browse.page(spool, limit=1000)
    assert [job.id for job in found] == ids[::-1]
    assert found.trouble == ""
