"""Asking for jobs of other machines: answered by a port that lives, never waited for without one."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from steps import dying, in_child, places

from pool.client.filepool import FilePool
from pool.config.settings import Config
from pool.errors import ClusterAway, UnknownJob
from pool.gateways.http import views
from pool.job import Job, JobState, Progress, Record
from pool.spool import away, dependencies, elsewhere, fsops, lookup
from pool.spool.attempts import cancel_path
from pool.spool.seizure import Seizer
from pool.spool.store import Spool
from pool.supervise.control import Control
from pool.supervise.expiry import Expiry
from pool.supervise.intake import Intake
from pool.system import procs


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is decided by it: who waits for a port that answers has as long as the test."""
    monkeypatch.setattr(elsewhere, "_PATIENCE_S", 3600.0)


class FakePort(threading.Thread):
    """A port whose cluster has some jobs. asked: for which it was."""

    def __init__(self, spool: Spool, cluster: dict[str, Job]) -> None:
        super().__init__()
        self.spool, self.cluster = spool, cluster
        self.asked: list[str] = []
        self.away = ""  # why its cluster does not answer
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.002):
            for name, job_id in elsewhere.requests(self.spool):
                self.asked.append(job_id)
                if self.away:
                    elsewhere.decline(self.spool, name, self.away)
                    continue
                if job_id in self.cluster:
                    away.import_job(self.spool, self.cluster[job_id])
                elsewhere.answer(self.spool, name, job_id in self.cluster)


@pytest.fixture
def port(spool: Spool) -> Iterator[FakePort]:
    """A port of a cluster that has the job "theirs"."""
    elsewhere.open_port(spool)
    thread = FakePort(spool, {"theirs": Job("theirs", "echo", {"n": 1}, created=spool.now())})
    thread.start()
    yield thread
    thread.over.set()
    thread.join()
    assert _left(spool) == [], "what was asked is cleared away"


def _left(spool: Spool) -> list[str]:
    folder = spool.root / "run" / "cluster"
    return [*os.listdir(folder / "asked"), *os.listdir(folder / "answers")]


def test_a_job_of_another_machine_is_found(spool: Spool, port: FakePort) -> None:
    place = lookup.find(spool, "theirs")
    assert (place.state, place.away) == (JobState.QUEUED, True)
    assert lookup.progress_now(spool, "theirs") == Progress("queued", 0.0, "waits in the cluster")
    assert port.asked == ["theirs"]  # from then on it is known


def test_what_no_machine_knows_is_unknown(spool: Spool, port: FakePort) -> None:
    with pytest.raises(UnknownJob):
        lookup.find(spool, "nobody")
    assert port.asked == ["nobody"]
    assert places(spool) == {}


@pytest.mark.parametrize("name", ["", "..", "a/b", "a.b", "x" * 101])
def test_what_is_no_id_is_not_asked_for(spool: Spool, port: FakePort, name: str) -> None:
    assert not elsewhere.ask(spool, name)
    assert port.asked == []


def test_whoever_serves_does_not_ask(spool: Spool, port: FakePort) -> None:
    with pytest.raises(UnknownJob):
        lookup.find(spool, "theirs", local=True)
    assert dependencies.gone(spool, ["theirs"]) is not None
    seizer = Seizer(spool, 1)
    request, mark = Path(cancel_path(spool, "theirs")), spool.root / "run" / "expiry" / f"{1:016d}.theirs"
    request.touch()
    mark.touch()
    Control(spool, list, seizer, lambda: None, turn_s=math.inf).turn()
    Expiry(spool, seizer, turn_s=math.inf).turn()
    assert port.asked == []
    assert not request.exists()
    assert not mark.exists()


def test_all_that_follows_a_job_finds_it(spool: Spool, config: Config, port: FakePort) -> None:
    with FilePool(config, start=False) as pool:
        future = pool.attach("theirs")
        assert pool.cancel("theirs")
        assert pool.state("theirs") is JobState.QUEUED
        assert pool.progress_of("theirs").status == "queued"
        assert views.look(spool, "theirs").state == "queued"
        (sent,) = away.waiting(spool)
        away.finish(spool, sent, Record("theirs", "echo", JobState.COMPLETED, 1, 1, 2, 3, "node", {"n": 2}))
        assert future.result(60) == {"n": 2}
        assert pool.attach("theirs").result(60) == {"n": 2}


def test_a_job_may_need_one_of_another_machine(spool: Spool, config: Config, port: FakePort) -> None:
    with contextlib.closing(FilePool(config, start=False)) as pool:
        future = pool.submit("echo", depends_on=["theirs"])
        assert pool.state(future.id) is JobState.HELD
        with pytest.raises(UnknownJob):
            pool.submit("echo", depends_on=["nobody"])
    assert port.asked == ["theirs", "nobody"]


def test_a_drop_may_need_one_as_well(spool: Spool, config: Config, port: FakePort) -> None:
    intake = Intake(spool, config, turn_s=math.inf)
    for job_id, needs in (("drop", "theirs"), ("lost", "nobody")):
        body = json.dumps({"engine": "echo", "depends_on": [needs]})
        (spool.root / "in" / f"{job_id}.json").write_text(body)
    while os.listdir(spool.root / "in"):
        intake.turn()
        time.sleep(0.05)
    assert places(spool)["held"] == ["drop"]
    assert sorted(os.listdir(spool.root / "quarantine")) == ["lost.json", "lost.json.reason.txt"]


AWAY = "the cluster at nats://one:4222 does not answer: connection refused"
FOLLOW: dict[str, Callable[[FilePool, str], object]] = {
    "attach": FilePool.attach,
    "state": FilePool.state,
    "progress": FilePool.progress_of,
    "cancel": FilePool.cancel,
    "cancel_many": lambda pool, job_id: pool.cancel_many([job_id]),
    "origin": FilePool.origin,
    "rerun": FilePool.rerun,
    "submit": lambda pool, job_id: pool.submit("echo", depends_on=[job_id]),
    "view": lambda pool, job_id: views.look(pool.spool, job_id),
}


@pytest.mark.parametrize("how", FOLLOW)
@pytest.mark.parametrize("job_id", ["theirs", "nobody"])
def test_a_cluster_that_does_not_answer_knows_nothing(
    spool: Spool, config: Config, port: FakePort, how: str, job_id: str
) -> None:
    port.away = AWAY
    with contextlib.closing(FilePool(config, start=False)) as pool:
        with pytest.raises(ClusterAway, match=f"{job_id}.*connection refused"):
            FOLLOW[how](pool, job_id)
        assert places(spool) == {}
        port.away = ""
        if how not in ("origin", "rerun") and job_id == "theirs":
            FOLLOW[how](pool, job_id)


def test_a_job_that_was_accepted_before_needs_no_answer(spool: Spool, config: Config, port: FakePort) -> None:
    with contextlib.closing(FilePool(config, start=False)) as pool:
        first = pool.submit("echo", id="mine", depends_on=["theirs"])
        (sent,) = away.waiting(spool)
        away.finish(spool, sent, Record("theirs", "echo", JobState.COMPLETED, 1, 1, 2, 3, "node", {"n": 2}))
        os.unlink(spool.record_path("theirs"))
        port.away = AWAY
        assert pool.submit("echo", id="mine", depends_on=["theirs"]).id == first.id


def test_a_drop_waits_for_a_cluster_that_does_not_answer(spool: Spool, config: Config, port: FakePort) -> None:
    port.away = AWAY
    intake = Intake(spool, config, turn_s=math.inf)
    (spool.root / "in" / "drop.json").write_text(json.dumps({"engine": "echo", "depends_on": ["theirs"]}))
    while len(port.asked) < 2:
        intake.turn()
        time.sleep(0.05)
    assert os.listdir(spool.root / "in") == ["drop.json"]
    port.away = ""
    while os.listdir(spool.root / "in"):
        intake.turn()
        time.sleep(0.05)
    assert places(spool)["held"] == ["drop"]


def test_many_ask_at_once(spool: Spool, port: FakePort) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: elsewhere.ask(spool, "theirs"), range(16)))
        unknown = list(threads.map(lambda _: elsewhere.ask(spool, "nobody"), range(16)))
    assert all(found)
    assert not any(unknown)
    assert len(port.asked) == 32


# ---- without a port


def test_without_a_cluster_nothing_is_written(spool: Spool) -> None:
    fsops.hook = lambda operation, path: pytest.fail(f"{operation} {path}")
    assert not elsewhere.ask(spool, "theirs")
    assert not (spool.root / "run" / "cluster").exists()


def _dead() -> dict[str, object]:
    child = subprocess.Popen([sys.executable, "-c", ""])
    identity = procs.identity_of(child.pid)
    child.wait()
    assert identity is not None
    return {"identity": identity.to_map()}


@pytest.mark.parametrize(
    "content",
    [
        lambda: b"",
        lambda: b"[]",
        lambda: b"{}",
        lambda: b'{"identity": 1}',
        lambda: b"\xff",
        lambda: json.dumps({"identity": {"pid": os.getpid(), "start": "0", "boot": "x"}}).encode(),
        lambda: json.dumps(_dead()).encode(),
    ],
)
def test_a_port_that_is_none_is_not_asked(spool: Spool, content: Callable[[], bytes]) -> None:
    elsewhere.open_port(spool)
    (spool.root / "run" / "cluster" / "port.json").write_bytes(content())
    fsops.hook = lambda operation, path: pytest.fail(f"{operation} {path}")
    with pytest.raises(ClusterAway, match="no port serves"):
        elsewhere.ask(spool, "theirs")


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_a_port_that_goes_is_not_waited_for(spool: Spool, how: str) -> None:
    elsewhere.open_port(spool)
    if how == "killed":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        identity = procs.identity_of(child.pid)
        assert identity is not None
        told = json.dumps({"identity": identity.to_map()}).encode()
        (spool.root / "run" / "cluster" / "port.json").write_bytes(told)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(elsewhere.ask, spool, "theirs")
        while not elsewhere.requests(spool):
            time.sleep(0.001)
        if how == "killed":
            child.kill()
            child.wait()
        else:
            elsewhere.close_port(spool)
        with pytest.raises(ClusterAway, match="no port serves"):
            asked.result()
    assert _left(spool) == []


def test_a_port_that_does_not_answer_is_given_up(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "_PATIENCE_S", 0.01)
    elsewhere.open_port(spool)
    with pytest.raises(ClusterAway, match="has not answered"):
        lookup.find(spool, "theirs")
    assert _left(spool) == []


def test_an_answer_to_nobody_does_not_stay(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """RACE: who asked gives up before the answer, or while it is written."""
    elsewhere.open_port(spool)
    asked = spool.root / "run" / "cluster" / "asked" / "theirs.1-2-boot.token-1"
    elsewhere.answer(spool, asked.name, True)
    asked.touch()
    fsops.hook = lambda operation, path: asked.unlink() if operation == "replace" else None
    elsewhere.answer(spool, asked.name, True)
    assert _left(spool) == []


def test_what_the_dead_asked_goes(spool: Spool) -> None:
    elsewhere.open_port(spool)
    folder = spool.root / "run" / "cluster"

    def ask() -> None:
        dying(number)
        elsewhere.ask(spool, "theirs")

    with contextlib.ExitStack() as stack:
        for number in itertools.count(1):
            thread = FakePort(spool, {})
            stack.callback(thread.join)
            stack.callback(thread.over.set)
            thread.start()
            ended = in_child(ask)
            if ended == 0:
                assert number > 3
                break
    foreign = [Path(folder / name / "a file.of nobody") for name in ("asked", "answers")]
    for path in foreign:
        path.touch()
    elsewhere.open_port(spool)
    assert elsewhere.requests(spool) == []
    assert _left(spool) == [path.name for path in foreign]


def test_what_is_answered_is_not_asked_again(spool: Spool) -> None:
    elsewhere.open_port(spool)
    folder = spool.root / "run" / "cluster"
    from pool.spool import owner

    names = [f"{job_id}.{owner.fresh()}" for job_id in ("first", "second")]
    for at, name in enumerate(names):
        (folder / "asked" / name).touch()
        os.utime(folder / "asked" / name, (at, at))
    assert elsewhere.requests(spool) == [(names[0], "first"), (names[1], "second")]
    elsewhere.answer(spool, names[0], False)
    assert elsewhere.requests(spool) == [(names[1], "second")]
    assert (folder / "answers" / names[0]).read_bytes() == b"unknown"
    elsewhere.answer(spool, names[1], True)
    assert (folder / "answers" / names[1]).read_bytes() == b"known"
