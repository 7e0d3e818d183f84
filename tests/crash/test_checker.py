"""The checker finds what it is there to find, and nothing in a spool that is well."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from steps import claim_next, record_of

from pool.format.names import parse_job
from pool.job import Failure, JobState

from .rig import Client, Rig


@pytest.fixture(scope="module")
def well(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Two jobs that completed, one with a file; one that failed in its second attempt; one that was cancelled."""
    rig = Rig(tmp_path_factory.mktemp("well"), durable=False, retry_times=1)
    with Client(rig) as client:
        client.submit("plain")
        client.submit("file", do="write", params={"mb": 1})
        client.submit("broken", do="raise", value="it broke")
        client.submit("stopped", priority=-5)
        client.cancel("stopped")
    rig.finish()
    with Client(rig) as client:
        client.read("plain")
    shutil.copytree(rig.folder, rig.folder.with_name("kept"))
    return rig


@pytest.fixture
def rig(well: Rig) -> Rig:
    """The same for each test, at the same place."""
    shutil.rmtree(well.folder)
    shutil.copytree(well.folder.with_name("kept"), well.folder)
    return well


def _put(rig: Rig, job_id: str, place: str, attempts: int = 0) -> Path:
    """A job file like the one of `job_id` would be, at another place."""
    from pool.format import codec
    from pool.job import Job

    job = Job(job_id, "fake", {"value": job_id}, created=1)
    path = rig.root / place / f"500.0000000000000001.{job_id}.{attempts:02d}.msgpack"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(codec.encode(job.to_map()))
    return path


def _rewrite(rig: Rig, job_id: str, **changes: object) -> None:
    from dataclasses import replace

    from pool.format import codec

    path = rig.root / "out" / f"{job_id}.msgpack"
    path.write_bytes(codec.encode(replace(rig.spool.read_record(job_id), **changes).to_map()))  # type: ignore[arg-type]


def _log(rig: Rig, *lines: str) -> None:
    with open(rig.witness / "1.log", "a") as log:
        for line in lines:
            log.write(f"{time.clock_gettime_ns(time.CLOCK_BOOTTIME)} {line}\n")


BROKEN: dict[str, tuple[str, Callable[[Rig], object]]] = {
    "a record is gone": ("lost", lambda rig: os.unlink(rig.root / "out" / "file.msgpack")),
    "a record that was read is gone": ("lost", lambda rig: os.unlink(rig.root / "out" / "plain.msgpack")),
    "it still waits": ("lost", lambda rig: (_put(rig, "late", "ready/fake"), rig.history.say("accepted", id="late"))),
    "nobody offered it": ("unexpected", lambda rig: _put(rig, "stranger", "ready/fake")),
    "it waits twice": ("duplicated", lambda rig: [_put(rig, "x", f"ready/{name}") for name in ("fake", "echo")]),
    "decided and waiting": ("duplicated", lambda rig: _put(rig, "plain", "ready/fake")),
    "decided and held": ("duplicated", lambda rig: _put(rig, "plain", "work/fake-0.99", 1)),
    "dead and waiting": ("duplicated", lambda rig: _put(rig, "broken", "ready/fake")),
    "a record that was read is another one": ("duplicated", lambda rig: _rewrite(rig, "plain", value={"value": 7})),
    "run again after its record": ("duplicated", lambda rig: _log(rig, "start plain 2 ok", "end plain 2")),
    "half a job": ("partial", lambda rig: os.truncate(_put(rig, "x", "ready/fake"), 20)),
    "half a record": ("partial", lambda rig: os.truncate(rig.root / "out" / "file.msgpack", 20)),
    "media missing": ("partial", lambda rig: os.unlink(rig.root / "out" / "file" / "written.bin")),
    "media changed": ("partial", lambda rig: (rig.root / "out" / "file" / "written.bin").write_bytes(b"other")),
    "two runs at once": ("overlapping", lambda rig: _log(rig, "start plain 1 overlap")),
    "an attempt twice": ("miscounted", lambda rig: _log(rig, "start broken 2 ok", "end broken 2")),
    "an attempt that is not in its name": (
        "miscounted",
        lambda rig: (_put(rig, "x", "ready/fake", 1), _log(rig, "start x 2 ok", "end x 2")),
    ),
    "no reason": ("partial", lambda rig: _rewrite(rig, "broken", failure=None)),
    "a reason is missing": ("unexplained", lambda rig: _rewrite(rig, "broken", attempts=())),
    "a strange kind": ("unexplained", lambda rig: _rewrite(rig, "broken", failure=Failure("bad luck", "it broke"))),
    "cancelled by nobody": (
        "unexplained",
        lambda rig: _rewrite(rig, "plain", state=JobState.CANCELLED, failure=Failure("cancelled", "stop")),
    ),
    "a half-written file": ("untidy", lambda rig: (rig.root / "tmp" / "1-1-x.1").touch()),
    "a claim": ("untidy", lambda rig: _put(rig, "x", "work/fake-0.99", 1)),
    "failed and not dead": ("untidy", lambda rig: shutil.rmtree(rig.root / "dead") or (rig.root / "dead").mkdir()),
    "a reserved id": ("untidy", lambda rig: (rig.root / "run" / "ids" / "x").touch()),
    "refused and gone": ("untidy", lambda rig: rig.history.say("refused", id="x")),
    "refused without a reason": ("untidy", lambda rig: (rig.root / "quarantine" / "x.json").touch()),
    "a reason of nothing": ("untidy", lambda rig: (rig.root / "quarantine" / "x.json.reason.txt").touch()),
    "files of nobody": ("untidy", lambda rig: (rig.root / "out" / "x").mkdir()),
}


def test_a_spool_that_is_well(rig: Rig) -> None:
    report = rig.verify()
    assert (report.jobs, report.done, report.recovered) == (4, 4, [])
    states = {job_id: rig.spool.read_record(job_id).state.value for job_id in ("plain", "file", "broken", "stopped")}
    assert list(states.values()) == ["completed", "completed", "failed", "cancelled"]


@pytest.mark.parametrize("name", BROKEN)
def test_every_fault_is_found(rig: Rig, name: str) -> None:
    kind, breaking = BROKEN[name]
    breaking(rig)
    assert kind in rig.check().faults()


def test_an_answer_that_was_not_heard_is_no_fault(tmp_path: Path) -> None:
    rig = Rig(tmp_path, durable=False)
    rig.history.say("offered", id="mine", value=None)
    rig.client(lambda client: client.pool.submit("fake", id="mine"))
    rig.finish()
    assert rig.verify().recovered == ["mine"]


def test_in_the_middle_of_things_a_claim_is_no_fault(tmp_path: Path) -> None:
    rig = Rig(tmp_path, durable=False)
    with Client(rig) as client:
        client.submit("mine")
    claim = claim_next(rig.spool, rig.seat())
    rig.verify(drained=False)
    rig.spool.put_first(rig.spool.record_path("mine"), b"", False)
    assert parse_job(Path(claim.path).name) == claim.name
    assert "partial" in rig.check(drained=False).faults()
    assert record_of(claim).id == "mine"
