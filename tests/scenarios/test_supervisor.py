"""The supervisor is killed, started again, started twice, or never comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pool.client import attendant
from pool.constants import EXIT_LOCKED, Phase
from pool.errors import JobFailed
from pool.job import JobState
from scenarios.test_workers import children_of
from scenarios.world import ROOT, World, alive, kill, overlaps, wait_until


def pids(world: World) -> dict[str, int]:
    return {name: beat.pid for name, beat in world.loaded().items()}


def loads(world: World) -> int:
    path = world.folder / "loads"
    return len(path.read_text().split()) if path.exists() else 0


def test_killed_with_a_hundred_queued(world: World) -> None:
    """100 of 100 complete, by the same workers with the same models; the one that was running is not disturbed."""
    witness = world.folder / "witness"
    witness.mkdir()
    world.configure({"fake": {"options": {"loads": str(world.folder / "loads"), "witness": str(witness)}}})
    world.serve(ready=2)
    pool = world.pool()
    futures = pool.submit_many("fake", [{"do": "sleep", "seconds": 0.03, "value": n} for n in range(100)])
    before = pids(world)
    wait_until(lambda: len(world.names("out")) >= 10, "some results")
    world.kill_supervisor()
    done = len(world.names("out"))
    wait_until(lambda: len(world.names("out")) >= min(100, done + 20), "work goes on without a supervisor")
    world.serve(ready=2)
    assert [future.result(60)["value"] for future in futures] == list(range(100))
    assert pids(world) == before
    assert loads(world) == 2
    assert all(future.record is not None and future.record.attempt == 1 for future in futures)
    assert overlaps(witness) == []
    known = lambda: {world.slot(name)["pid"] for name in ("fake-0", "fake-1")}  # noqa: E731
    wait_until(lambda: known() == set(before.values()), "status knows them")


@pytest.mark.long
def test_adopted_worker_is_watched_like_any_other(world: World) -> None:
    """After the adoption: kill -9, a hang and a drain have the same outcome as before."""
    world.configure({"fake": {"stall_timeout_s": 1.5}}, drain_grace_s=0.5)
    world.serve(ready=2)
    pool = world.pool()
    long = pool.submit("fake", do="sleep", seconds=30)
    name, pid = world.worker_of(long.id)
    world.kill_supervisor()
    world.serve(ready=2)
    wait_until(lambda: world.slot(name.rpartition(".")[0])["pid"] == pid, "adoption")
    error = pool.submit("fake", do="hang_c", retry_times=0).exception(60)
    assert isinstance(error, JobFailed)
    assert error.failure.kind == "timeout"
    assert "in _misbehave" in error.failure.stderr_tail
    kill(pid)
    wait_until(lambda: (pool.state(long.id), pool.progress_of(long.id).attempt) == (JobState.RUNNING, 2), "attempt 2")
    assert world.drain() == 0
    assert (pool.state(long.id), pool.progress_of(long.id).attempt) == (JobState.QUEUED, 1), "the attempt is given back"


@pytest.mark.long
def test_killed_during_spawn_and_during_load(world: World) -> None:
    """Whatever a supervisor had begun when it was killed is taken over or cleaned up: never more than two workers."""
    world.configure({"fake": {"options": {"load_s": 0.7, "loads": str(world.folder / "loads")}}})
    for pause in (0.0, 0.05, 0.6):
        world.serve()
        wait_until(lambda: world.supervisor() is not None, "a supervisor")
        wait_until(lambda: world.processes(), "a first worker")
        time.sleep(pause)
        world.kill_supervisor()
    world.serve(ready=2)
    assert world.pool().submit("fake", value=1).result(30)["value"] == 1
    wait_until(lambda: len(world.processes()) == 2, "two workers and nobody else")
    assert {w.rpartition(".")[0] for w in world.processes().values()} == {"fake-0", "fake-1"}
    assert set(pids(world).values()) == {world.slot("fake-0")["pid"], world.slot("fake-1")["pid"]}
    assert len(world.names("work")) == 2


@pytest.mark.invariant(8)
def test_killed_together_with_all_workers(world: World) -> None:
    """Power goes, so to say: everything at once with kill -9. The next start runs what was not done."""
    world.configure().serve(ready=2)
    pool = world.pool()
    futures = pool.submit_many("fake", [{"do": "sleep", "seconds": 0.05, "value": n} for n in range(40)])
    wait_until(lambda: len(world.names("out")) >= 8, "some results")
    supervisor = world.supervisor()
    assert supervisor is not None
    for pid in (supervisor.pid, *world.processes()):
        kill(pid)
    world.serve(ready=2)
    assert [future.result(60)["value"] for future in futures] == list(range(40))
    again = [f for f in futures if f.record is not None and f.record.attempt == 2]
    assert len(again) <= 2
    for future in again:
        assert future.record is not None
        assert "gone when the supervisor came back" in future.record.attempts[0].message


def test_a_worker_that_dies_unseen_leaves_its_stage_and_its_last_words(world: World) -> None:
    """No supervisor ran: the exit status is lost, and nothing else. Of one that was taken over alive, not even that
    which it had written before."""
    (world.folder / "last_words.py").write_text(
        "import sys, time\n"
        "class LastWords:\n"
        "    def load(self, device, options): pass\n"
        "    def check(self, params): return params\n"
        "    def run(self, params, context):\n"
        "        context.progress('inference', 10, 'melting')\n"
        "        print('the last words of', params['who'], file=sys.stderr, flush=True)\n"
        "        time.sleep(600)\n"
        "    def close(self): pass\n"
    )
    engine = {"engine": "last_words:LastWords", "pythonpath": [str(world.folder)], "retry_times": 0}
    world.configure({"words": {**engine, "max_concurrent_tasks": 2}}).serve(ready=2)
    pool = world.pool()
    unseen, adopted = pool.submit("words", who="one"), pool.submit("words", who="two")
    for future in (unseen, adopted):
        wait_until(lambda future=future: pool.progress_of(future.id).message == "melting", "both melt")
    world.kill_supervisor()
    kill(world.worker_of(unseen.id)[1])
    adopted_pid = world.worker_of(adopted.id)[1]
    world.serve(ready=2)
    error = unseen.exception(60)
    assert isinstance(error, JobFailed)
    assert "gone when the supervisor came back; exit status unknown" in error.failure.message
    assert (error.failure.stage, error.failure.attempt) == ("inference", 1)
    assert "the last words of one" in error.failure.stderr_tail
    kill(adopted_pid)
    error = adopted.exception(60)
    assert isinstance(error, JobFailed)
    assert (error.failure.stage, error.failure.attempt) == ("inference", 1)
    assert "the last words of two" in error.failure.stderr_tail


@pytest.mark.invariant(26)
def test_one_that_starts_slowly_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client starts no second one beside it, however often it looks."""
    hold, starts = world.folder / "hold", world.folder / "starts"
    (world.folder / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if 'serve' in sys.orig_argv:\n"
        f"    os.write(os.open({str(starts)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND), b'.')\n"
        f"    while os.path.exists({str(hold)!r}):\n"
        "        time.sleep(0.01)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(world.folder))
    monkeypatch.setattr(attendant, "_AGAIN_S", 0.0)
    pool = world.configure(orphan_grace_s=0).pool(start=True)
    hold.touch()
    world.kill_supervisor()
    future = pool.submit("fake", value=1)
    for _ in range(20):
        pool.on_look([future])
    wait_until(lambda: starts.read_text() == "..", "another one is being started")
    hold.unlink()
    assert future.result(60)["value"] == 1
    assert starts.read_text() == ".."


@pytest.mark.invariant(26)
def test_a_second_supervisor_is_refused(world: World) -> None:
    world.configure().serve(ready=2)
    second = world.serve()
    assert second.wait(30) == EXIT_LOCKED
    assert "another supervisor serves" in world.log()
    assert len(world.processes()) == 2


@pytest.mark.invariant(26)
@pytest.mark.long
def test_of_ten_at_once_one_runs(world: World) -> None:
    world.configure({"fake": {"max_concurrent_tasks": 1}})
    code = (
        "import sys; from pool.config.settings import load_config; from pool.errors import SupervisorRunning\n"
        "from pool.supervise.supervisor import serve\n"
        "try: sys.exit(serve(load_config(sys.argv[1])))\n"
        "except SupervisorRunning: sys.exit(6)\n"
    )
    many = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(world.config)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(10)
    ]
    world.serving += many
    wait_until(lambda: sum(p.poll() is not None for p in many) == 9, "nine ends")
    assert sorted(p.poll() or 0 for p in many) == [0] + [EXIT_LOCKED] * 9
    world.wait_ready(1)
    assert len(world.processes()) == 1
    (running,) = [p for p in many if p.poll() is None]
    running.send_signal(signal.SIGTERM)
    assert running.wait(30) == 0


@pytest.mark.parametrize("grace", [1.0, 0.0])
@pytest.mark.invariant(27)
def test_orphans_end_themselves_with_their_children(world: World, grace: float) -> None:
    """No supervisor comes back: within the grace nothing of the pool runs any more, and the job is not lost."""
    world.configure(orphan_grace_s=grace).serve(ready=2)
    pool = world.pool()
    future = pool.submit("fake", do="children", seconds=60, until_attempt=1)
    children = children_of(world, future.id)
    assert all(alive(pid) for pid in children)
    world.kill_supervisor()
    wait_until(lambda: not world.processes(), "no orphans", 10)
    wait_until(lambda: not any(alive(pid) for pid in children), "their children are gone", 10)
    world.serve(ready=2)
    assert future.result(30)["attempt"] == 2


def test_orphan_that_holds_the_interpreter_ends_too(world: World) -> None:
    """grace 0 and a worker in native code that lets no thread of Python run: the kernel ends it."""
    (world.folder / "native.py").write_text(
        "import ctypes\nfrom inference.fake import Fake\n"
        "class Native(Fake):\n"
        "    def run(self, params, context):\n"
        "        ctypes.PyDLL(None).sleep(600)\n"
    )
    world.configure(
        {"fake": {"engine": "native:Native", "pythonpath": [str(world.folder)], "max_concurrent_tasks": 1}},
        orphan_grace_s=0,
    ).serve(ready=1)
    future = world.pool().submit("fake")
    world.worker_of(future.id)
    world.kill_supervisor()
    wait_until(lambda: not world.processes(), "no orphans", 10)


def test_workers_of_another_configuration_are_replaced(world: World, tmp_path: Path) -> None:
    """The next supervisor has other options: idle workers go at once, a busy one may finish its job."""
    world.configure().serve(ready=2)
    pool = world.pool()
    future = pool.submit("fake", do="sleep", seconds=1.0)
    old = pids(world)
    world.worker_of(future.id)
    world.kill_supervisor()
    world.configure({"fake": {"options": {"fingerprint": "another"}}})
    world.serve()
    wait_until(lambda: not set(pids(world)) & set(old) and len(pids(world)) == 2, "new workers")
    assert future.result(30)["attempt"] == 1
    assert not any(alive(pid) for pid in old.values())


def test_stray_worker_is_ended(world: World) -> None:
    """A process that carries the tag of a worker nobody knows does not keep its memory for ever."""
    world.configure({"fake": {"max_concurrent_tasks": 1}}).serve(ready=1)
    env = {**os.environ, "FILEPOOL_SPOOL_ID": world.spool_id(), "FILEPOOL_WORKER": "fake-7.99"}
    stray = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=env)
    world.kill_supervisor()
    world.serve(ready=1)
    assert stray.wait(10) == -signal.SIGKILL
    assert world.loaded()
    assert all(beat.phase in (Phase.IDLE, Phase.BUSY) for beat in world.beats().values())
