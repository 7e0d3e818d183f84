"""Killed at operation 1, 2, 3 … until a run passes untouched: no job is lost, doubled, or without a reason.

A scene prepares a spool and names what is killed. Right after the kill, and again when a supervisor has come, a
worker has run what waits and the supervisor has tidied up, the checker looks at the spool.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import shutil
import signal
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scenarios.world import below
from scenarios.world import history as witnessed
from steps import claim_next

from pool.job import TERMINAL, JobState
from pool.job.references import result_of
from pool.policy.death import Death
from pool.spool import fsops, lookup
from pool.spool.store import Spool
from pool.supervise.judge import Cause, Verdict
from pool.supervise.recovery import End, Recovery
from pool.supervise.retention import Retention, purge
from pool.system.watch import Watcher

from .checker import Spoolview
from .points import At
from .rig import Client, Rig, Unmanned

LONG = (pytest.mark.slow, pytest.mark.timeout(1200))

Act = Callable[[At], bool]
Scene = Callable[[Rig], Act]


def _runs(rig: Rig) -> Counter[str]:
    return Counter(job for _, _, what, job, _, _ in witnessed(rig.witness) if what == "start")


def _states(rig: Rig) -> dict[str, JobState | None]:
    return {job_id: record.state if record else None for job_id, record in Spoolview(rig.root).records.items()}


# ---- clients


def submit_plain(rig: Rig) -> Act:
    return lambda at: rig.client(lambda client: client.submit(value="a"), at)


def submit_named(rig: Rig) -> Act:
    return lambda at: rig.client(lambda client: client.submit("mine"), at)


def submit_batch(rig: Rig) -> Act:
    return lambda at: rig.client(lambda client: client.submit_many(["a", "b", "c"]), at)


def submit_later(rig: Rig) -> Act:
    """Under an id, with both moments."""
    return lambda at: rig.client(lambda client: client.submit("mine", not_before=0.2, expires=3600), at)


def submit_dependent(rig: Rig) -> Act:
    with Client(rig) as client:
        client.submit("first", value=7)

    def submit(client: Client) -> None:
        client.submit("mine", value=result_of("first", "value"))

    return lambda at: rig.client(submit, at)


def cancel(rig: Rig) -> Act:
    with Client(rig) as client:
        client.submit("mine")
    return lambda at: rig.client(lambda client: client.cancel("mine"), at)


def retry(rig: Rig) -> Act:
    """A failed job, run again on request."""
    with Client(rig) as client:
        client.submit("mine", do="input")
    assert rig.work()
    return lambda at: rig.client(lambda client: client.retry("mine"), at)


def consume(rig: Rig) -> Act:
    with Client(rig) as client:
        client.submit("mine", do="write", params={"mb": 1})
        client.submit("other")
        assert rig.work()
        client.read("other")
    return lambda at: rig.client(lambda client: client.consume("mine"), at)


def _three_ends(rig: Rig) -> None:
    with Client(rig) as client:
        client.submit("completed", do="write", params={"mb": 1})
        client.submit("failed", do="input")
        assert rig.work()
        client.submit("cancelled")
        client.cancel("cancelled")
        assert rig.serve()
        for job_id in ("completed", "failed", "cancelled"):
            rig.history.say("removed", id=job_id)
            client.read(job_id)


def purged(rig: Rig) -> Act:
    _three_ends(rig)
    return lambda at: rig.client(lambda client: purge(client.pool.spool, states=TERMINAL), at)


def expired(rig: Rig) -> Act:
    """The same by the supervisor, for those past their time."""
    _three_ends(rig)
    later = Spool(rig.root)
    born = later.now()
    later.now = lambda: born + int(1e15)  # type: ignore[method-assign]
    retention = Retention(later, rig.config, turn_s=math.inf)

    def expire(_: object) -> None:
        while retention.expire():  # a turn is short
            pass

    return lambda at: rig.run(expire, at)


# ---- workers


def publish(rig: Rig) -> Act:
    """Media at a path of the caller's, media in the spool, a JSON rendering."""
    with Client(rig) as client:
        client.submit("path", do="write", output=str(rig.media / "out.bin"), params={"mb": 2})
        client.submit("spool", do="write", params={"mb": 2})
        rig.drop("json.json", {"engine": "fake", "do": "partials"}, "json")
        assert rig.serve()
    return rig.work


def publish_array(rig: Rig) -> Act:
    with Client(rig) as client:
        client.submit("array", engine="echo", params={"array_mb": 1})
    return lambda at: rig.work(at, "echo")


def fail(rig: Rig) -> Act:
    """An attempt that fails and is repeated, and a job that is not."""
    with Client(rig) as client:
        client.submit("again", do="raise", until_attempt=1)
        client.submit("never", do="input")
    return rig.work


# ---- supervisors


def intake(rig: Rig) -> Act:
    """Three jobs in the drop box, and one thing that is none."""
    rig.drop("first.json", {"engine": "fake", "value": 1}, "first")
    rig.drop("second.msgpack", {"engine": "fake", "params": {"value": 2}}, "second")
    rig.drop("third.json", {"engine": "fake", "id": "named", "params": {"value": 3}}, "named")
    rig.drop("wrong.json", {"engine": "nobody"})
    return rig.serve


def release(rig: Rig) -> Act:
    """What a drained worker held goes back unharmed."""
    with Client(rig) as client:
        client.submit("held")
    worker = rig.seat()
    claim_next(rig.spool, worker)
    recovery = Recovery(rig.spool, rig.config, random.Random(0))
    end = End(Death(0, None, "drained"), Verdict(Cause.DRAIN))
    return lambda at: rig.run(lambda _: recovery.recover(worker, end), at)


def recover(rig: Rig) -> Act:
    """Workers that were killed: just after a claim, before a claim that was decided goes, in the middle of an output
    and of a burial."""
    with Client(rig) as client:
        client.submit("decided")
        assert not rig.work("unlink")
        client.read("decided")
        client.submit("failed", do="input")
        assert not rig.work("dead/")
        client.submit("written", do="write", output=str(rig.media / "out.bin"))
        assert not rig.work("fsync")
        client.submit("plain")
        claim_next(rig.spool, rig.seat())
    return rig.serve


def wake(rig: Rig) -> Act:
    """Retries that are due."""
    with Client(rig) as client:
        for job_id in ("one", "two"):
            client.submit(job_id, do="raise", until_attempt=1)
        assert rig.work()
        time.sleep(0.002)
    return rig.serve


def cancel_waiting(rig: Rig) -> Act:
    cancel(rig)(0)
    return rig.serve


def cancel_later(rig: Rig) -> Act:
    with Client(rig) as client:
        client.submit("mine", not_before=3600)
        client.cancel("mine")
    return rig.serve


def _chain(rig: Rig, **first: Any) -> None:
    """Three jobs, each of which needs the one before; the first one is done."""
    with Client(rig) as client:
        client.submit("first", value=7, **first)
        client.submit("mine", value=result_of("first", "value"))
        client.submit("third", value=result_of("mine", "value"))
    assert rig.work()


def let_go(rig: Rig) -> Act:
    _chain(rig)
    return rig.serve


def begin_dependent(rig: Rig) -> Act:
    _chain(rig)
    assert rig.serve()
    return rig.work


def fail_dependent(rig: Rig) -> Act:
    _chain(rig, do="input")
    return rig.serve


def fail_handed(rig: Rig) -> Act:
    """A worker finds that what it needs is not there."""
    with Client(rig) as client:
        client.submit("first", value=7)
        client.submit("mine", value=result_of("first", "nothing"))
    assert rig.work()
    assert rig.serve()
    return rig.work


def cancel_dependent(rig: Rig) -> Act:
    with Client(rig) as client:
        client.submit("first", value=7)
        client.submit("mine", value=result_of("first", "value"))
        client.cancel("mine")
    return rig.serve


def expire(rig: Rig) -> Act:
    """Jobs that wait and are over: one in ready/, one in deferred/."""
    with Client(rig) as client:
        client.submit("ready", expires=0.001)
        client.submit("deferred", not_before=0.01, expires=0.011)
    time.sleep(0.012)
    return rig.serve


def expire_at_claim(rig: Rig) -> Act:
    with Client(rig) as client:
        client.submit("ready", expires=0.001)
    time.sleep(0.002)
    return rig.work


def cancel_held(rig: Rig) -> Act:
    """Its worker was killed; the request was there before it is recovered."""
    with Client(rig) as client:
        client.submit("mine")
        claim_next(rig.spool, rig.seat())
        client.cancel("mine")
    return rig.serve


def mend(rig: Rig) -> Act:
    """A client was killed in the middle of a `retry`."""
    assert not retry(rig)("unlink")
    return rig.serve


def strange(rig: Rig) -> Act:
    """In the directory of a worker that is dead lies what is no job."""
    folder = rig.spool.work_dir(rig.seat())
    Path(folder, "core").write_bytes(b"x")
    Path(folder, "folder").mkdir()
    return rig.serve


def start(rig: Rig) -> Act:
    """With all that is done before the first turn, and after the last one."""
    with Client(rig) as client:
        client.submit("mine")
    claim_next(rig.spool, rig.seat())
    return lambda at: rig.run(lambda _: Unmanned(rig.config).run(), at)


# ---- ports


def send(rig: Rig) -> Act:
    """Jobs that go to another machine, one that comes back first, one that fails there."""
    with Client(rig) as client:
        client.submit("mine")
        client.submit("bad")
        client.submit(value="plain")
    return lambda at: rig.port(at, back=True)


def cancel_sent(rig: Rig) -> Act:
    """The supervisor leaves a request to stop to the port."""
    with Client(rig) as client:
        client.submit("mine")
    assert not rig.port("away/fake.500")
    assert not rig.port(f"replace {rig.root}/progress")
    with Client(rig) as client:
        client.cancel("mine")
    return lambda at: rig.serve(at) and rig.port()


SCENES: list[Scene] = [
    submit_plain,
    submit_named,
    submit_batch,
    submit_later,
    submit_dependent,
    cancel,
    retry,
    consume,
    purged,
    expired,
    publish,
    publish_array,
    fail,
    intake,
    release,
    recover,
    wake,
    cancel_waiting,
    cancel_later,
    expire,
    expire_at_claim,
    cancel_held,
    mend,
    strange,
    start,
    let_go,
    begin_dependent,
    fail_dependent,
    fail_handed,
    cancel_dependent,
    send,
    cancel_sent,
]

# ---- what each scene promises beyond what the checker asks of all


def _expect(scene: Scene, rig: Rig, came_through: bool) -> None:
    told, states, runs = rig.history.told(), _states(rig), _runs(rig)
    if (
        scene in (cancel, cancel_waiting, cancel_later, cancel_held, cancel_dependent, cancel_sent)
        and "mine" in told.stands
    ):
        assert states.pop("first", JobState.COMPLETED) is JobState.COMPLETED
        assert states == {"mine": JobState.CANCELLED}
        assert runs["mine"] == 0
    elif scene in (submit_dependent, let_go, begin_dependent):
        assert set(states.values()) == {JobState.COMPLETED}
        for record in Spoolview(rig.root).records.values():
            assert record is not None
            assert record.value["value"] == 7
    elif scene in (fail_dependent, fail_handed):
        assert states.pop("first") is (JobState.FAILED if scene is fail_dependent else JobState.COMPLETED)
        assert set(states.values()) == {JobState.FAILED}
        assert runs == {"first": 1}
    elif scene in (expire, expire_at_claim):
        if scene is expire or came_through:  # killed between claim and look, a worker had begun it
            assert set(states.values()) == {JobState.FAILED}
            assert not runs
    elif scene in (retry, mend):
        assert runs["mine"] == 2 or (runs["mine"] == 1 and "mine" not in told.stands)
        assert states == {"mine": JobState.FAILED}
    elif scene is consume:
        assert runs == {"mine": 1, "other": 1}
        assert ("mine" in states) <= (not came_through)
    elif scene in (purged, expired):
        assert set(runs.values()) == {1}
        if came_through:
            assert not states
        for job_id in {"completed", "failed", "cancelled"} - states.keys():
            assert not [path for path in below(rig.root) if job_id in path.name]
    elif scene is send:
        assert sorted(map(str, states.values())) == sorted(map(str, [JobState.COMPLETED] * 2 + [states["bad"]]))
        assert (JobState.FAILED if came_through else states["bad"]) is states["bad"]
        assert not came_through or not runs
    elif scene is release:
        assert runs == {"held": 1}
        record = Spoolview(rig.root).records["held"]
        assert record is not None
        assert record.attempt <= (1 if came_through else 2)
    elif scene is intake:
        assert set(states) == {"first", "second", "named"}
        assert set(os.listdir(rig.root / "quarantine")) == {"wrong.json", "wrong.json.reason.txt"}
        assert os.listdir(rig.root / "in") == []
    elif scene is strange:
        assert len(os.listdir(rig.root / "quarantine")) == 4  # each with its reason, says the checker
    elif scene is recover:
        assert [runs["decided"], runs["failed"]] == [1, 1]  # what was published is not run again
        assert not list(rig.media.glob(".*"))


def _kill_and_check(rig: Rig, scene: Scene, at: int) -> bool:
    came_through = scene(rig)(at)
    rig.verify(drained=False)
    rig.finish()
    report = rig.verify()
    _expect(scene, rig, came_through)
    if came_through:
        assert report.recovered == []
    return came_through


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
@pytest.mark.parametrize(
    "stride", [pytest.param(6, marks=pytest.mark.long, id="some"), pytest.param(1, marks=LONG, id="all")]
)
@pytest.mark.invariant(3, 6, 7, 8, 12, 14)
def test_killed_at_every_operation(tmp_path: Path, scene: Scene, stride: int) -> None:
    first = zlib.crc32(scene.__name__.encode()) % stride + 1
    for number in itertools.count(first, stride):
        if _kill_and_check(Rig(tmp_path / str(number)), scene, number):
            assert number > 3
            return


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.invariant(12)
def test_killed_with_fifty_megabytes_in_hand(tmp_path: Path) -> None:
    """At every operation of a worker with large media, and then at moments that nobody has chosen."""

    def large(rig: Rig) -> Act:
        with Client(rig) as client:
            client.submit("path", do="write", output=str(rig.media / "out.bin"), params={"mb": 50})
            client.submit("spool", do="write", params={"mb": 50})
        return rig.work

    def look(rig: Rig) -> None:
        rig.verify(drained=False)
        rig.finish()
        rig.verify()
        assert (rig.media / "out.bin").stat().st_size == 50 << 20
        assert os.listdir(rig.media) == ["out.bin"]
        shutil.rmtree(rig.folder)

    for number in itertools.count(1):
        rig = Rig(tmp_path / str(number), durable=True)
        came_through = large(rig)(number)
        look(rig)
        if came_through:
            break
    rng, killed = random.Random(50), 0
    for number in range(30):
        rig, moment = Rig(tmp_path / f"moment-{number}", durable=True), rng.uniform(0.001, 0.4)

        def at_a_moment(operation: str, path: str, moment: float = moment) -> None:
            fsops.hook = None
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, moment)

        came_through = large(rig)(at_a_moment)
        killed += not came_through
        look(rig)
    assert killed > 3


@pytest.mark.parametrize("scene", [publish, fail], ids=lambda scene: scene.__name__)
@pytest.mark.parametrize(
    "stride", [pytest.param(9, marks=pytest.mark.long, id="some"), pytest.param(1, marks=LONG, id="all")]
)
@pytest.mark.invariant(8)
def test_the_worker_and_then_the_supervisor_are_killed(tmp_path: Path, scene: Scene, stride: int) -> None:
    """Every operation of the worker, each with another one of the supervisor that comes to clean up, and of the
    next one."""
    rng = random.Random(scene.__name__)
    for number in itertools.count(1, stride):
        rig = Rig(tmp_path / str(number))
        came_through = scene(rig)(number)
        for _ in range(2):
            rig.serve(rng.randint(1, 30))
            rig.verify(drained=False)
        rig.finish()
        rig.verify()
        if came_through:
            return


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.__name__)
@pytest.mark.invariant(1)
def test_a_job_is_somewhere_at_every_operation(tmp_path: Path, scene: Scene) -> None:
    """Whoever asks in between is told a state, except of what was removed on request."""
    rig = Rig(tmp_path)
    act = scene(rig)

    def look(operation: str, path: str) -> None:
        told, hook = rig.history.told(), fsops.hook
        fsops.hook = None
        for job_id in told.accepted - told.removed:
            lookup.find(rig.spool, job_id)
        fsops.hook = hook

    assert act(look)


@pytest.mark.invariant(1)
def test_a_retry_that_was_killed_is_repaired_by_the_supervisor_that_serves(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    act = retry(rig)

    class Serving(Unmanned):
        def _wait(self, watcher: Watcher) -> None:
            if self.turns == 2:
                assert not act("unlink")
                assert rig.check(drained=False).faults() == {}
            super()._wait(watcher)

    assert rig.run(lambda supervisor: supervisor.run(), begin=lambda: Serving(rig.config))
    assert lookup.find(rig.spool, "mine").state is JobState.FAILED
    rig.verify()


def test_killed_while_the_spool_is_made(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "rig")
    for number in itertools.count(1, 5):
        root = tmp_path / f"spool-{number}"
        came_through = rig.run(lambda _, root=root: Spool.create(root), number)
        made = Spool.create(root)
        assert made.id == Spool(root).id
        assert os.listdir(root / "in") == []
        if came_through:
            assert number > 30
            return


@pytest.mark.invariant(3)
@pytest.mark.parametrize("scene", [submit_named, publish, intake], ids=lambda scene: scene.__name__)
def test_killed_at_any_piece_of_a_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    """Files are written in pieces of 512 bytes; killed between any two, nothing that can be seen is cut."""

    def write_in_pieces(fd: int, chunk: bytes | memoryview) -> None:
        for begin in range(0, len(chunk), 512):
            fsops.step("piece", "")
            os.write(fd, chunk[begin : begin + 512])

    monkeypatch.setattr(fsops, "_write_all", write_in_pieces)
    for number in itertools.count(1, 3):
        rig, pieces = Rig(tmp_path / str(number)), itertools.count(1)

        def at_piece(operation: str, path: str, number: int = number, pieces: Iterator[int] = pieces) -> None:
            if operation == "piece" and next(pieces) == number:
                os.kill(os.getpid(), signal.SIGKILL)

        came_through = scene(rig)(at_piece)
        rig.verify(drained=False)
        if came_through:
            assert number > 1
            return
